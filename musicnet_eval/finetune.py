"""Which parts of a network learn, from when on, and how fast: transfer by freezing and by rates. Layer 3.

A network is a body of layers, counted from the input, and a head, the classifier. timm's networks say how they fall into layers
(`group_matcher`) and which part is the head; of others the head is the last module with parameters of its own, and the layers
are the children. All parameters are given to the optimizer from the start, each in the group of its rate; those that are frozen
have no gradient, so no optimizer touches them. What learns is thus a function of the epoch alone, the same in a resumed run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from timm.models import group_parameters
from torch import nn

from musicnet_eval.errors import ConfigError

Groups = list[dict[str, Any]]


class Finetune:
    """Decide what of a network learns in which epoch, and at which share of the learning rate.

    Args:
        trained_stages: Stages of the body, from the head down, that learn from the start; 0 trains the head alone, None all.
        epochs_per_stage: After so many epochs the next stage begins to learn, and so on; None never unfreezes.
        stages: Into how many stages the body is cut, at most; fewer where it has fewer layers.
        layer_decay: Rate of a layer over that of the layer above it, in (0, 1]; 1 gives all layers the same.
        head_lr_scale: Rate of the head over `optimizer.lr`.

    Raises:
        ConfigError: A value out of range.

    Reference:
        Howard and Ruder, "Universal Language Model Fine-tuning for Text Classification", ACL 2018 (rates by layer, unfreezing);
        Bao et al., "BEiT: BERT Pre-Training of Image Transformers", ICLR 2022 (layer decay as in timm).
    """

    def __init__(
        self,
        trained_stages: int | None = None,
        epochs_per_stage: int | None = None,
        stages: int = 4,
        layer_decay: float = 1.0,
        head_lr_scale: float = 1.0,
    ) -> None:
        for key, value, least in (("trained_stages", trained_stages, 0), ("epochs_per_stage", epochs_per_stage, 1)):
            if value is not None and (not _whole(value) or value < least):
                raise ConfigError(f"finetune.{key}={value!r} must be a whole number from {least}, or null.")
        if not _whole(stages) or stages < 1:
            raise ConfigError(f"finetune.stages={stages!r} must be a whole number from 1.")
        if not _number(layer_decay) or not 0 < layer_decay <= 1:
            raise ConfigError(f"finetune.layer_decay={layer_decay!r} must be in (0, 1]; 1 gives all layers the same rate.")
        if not _number(head_lr_scale) or head_lr_scale <= 0:
            raise ConfigError(f"finetune.head_lr_scale={head_lr_scale!r} must be above 0; 1 gives the head optimizer.lr.")
        self.trained_stages, self.epochs_per_stage, self.stages = trained_stages, epochs_per_stage, stages
        self.layer_decay, self.head_lr_scale = layer_decay, head_lr_scale

    @property
    def changes(self) -> bool:
        """Say whether what learns changes over the training."""
        return self.trained_stages is not None and self.epochs_per_stage is not None

    def frozen(self, network: nn.Module, epoch: int) -> frozenset[str]:
        """Name the parameters that do not learn in an epoch."""
        if self.trained_stages is None:
            return frozenset()
        stages = body_stages(network, self.stages)
        trained = self.trained_stages + (epoch // self.epochs_per_stage if self.epochs_per_stage else 0)
        return frozenset(name for stage in stages[: max(0, len(stages) - trained)] for name in stage)

    def parameter_groups(
        self, model: nn.Module, network: nn.Module, *, weight_decay_exclude_1d: bool, flat: Iterable[str] | None = None
    ) -> Groups:
        """Sort a model's parameters into groups for an optimizer, each with its share of the rate, `lr_scale`.

        Args:
            model: Whose parameters to sort; what it has beside the network counts as head.
            network: The network inside it, of whose parameters the layers are known.
            weight_decay_exclude_1d: No weight decay on parameters of one dimension (norms, biases), nor on those that a timm
                network excludes by name.
            flat: Names in the model of those of one dimension; None looks at their shapes, which shards do not keep.
        """
        layers, head = layer_of(network, coarse=False), head_names(network)
        top = max(layers.values(), default=0)
        exclude: Any = getattr(network, "no_weight_decay", tuple)
        spared = set(exclude())
        if flat is None:
            flat = (name for name, parameter in model.named_parameters() if parameter.ndim <= 1)
        one_dimensional = set(flat)
        names = {id(parameter): name for name, parameter in network.named_parameters()}
        groups: dict[tuple[float, bool], dict[str, Any]] = {}
        for full_name, parameter in model.named_parameters():
            name = names.get(id(parameter))
            in_head = name is None or name in head
            scale = self.head_lr_scale if in_head else self.layer_decay ** (top - layers[str(name)])
            decays = not (weight_decay_exclude_1d and (full_name in one_dimensional or name in spared))
            group = {"lr_scale": scale} if decays else {"lr_scale": scale, "weight_decay": 0.0}
            groups.setdefault((scale, decays), {"params": [], **group})["params"].append(parameter)
        return list(groups.values())


def head_names(network: nn.Module) -> frozenset[str]:
    """Name the parameters of a network's head: timm's classifier, else the last module with parameters of its own."""
    if callable(getattr(network, "get_classifier", None)):
        found: Any = network.get_classifier()  # type: ignore[operator]
        heads = list(found) if isinstance(found, (tuple, list)) else [found]
    else:
        heads = [module for module in network.modules() if next(module.parameters(recurse=False), None) is not None][-1:]
    inside = {id(parameter) for head in heads if isinstance(head, nn.Module) for parameter in head.parameters()}
    return frozenset(name for name, parameter in network.named_parameters() if id(parameter) in inside)


def layer_of(network: nn.Module, *, coarse: bool) -> dict[str, int]:
    """Number the layer of each parameter from the input up; the head has the highest number.

    Args:
        network: timm's, or any other.
        coarse: Count stages (several blocks each) rather than single blocks, where a network of timm's tells them apart.
    """
    if callable(getattr(network, "group_matcher", None)):
        matcher = network.group_matcher(coarse=coarse)  # type: ignore[operator]
        layers: dict[str, int] = group_parameters(network, matcher, reverse=True)
        return layers
    head = head_names(network)
    body = _children([(name, p.numel()) for name, p in network.named_parameters() if name not in head])
    layers = {name: number for number, names in enumerate(body) for name in names}
    return layers | dict.fromkeys(head, len(body))


def _children(body: list[tuple[str, int]], prefix: str = "", whole: int = 0) -> list[list[str]]:
    """Cut named parameters by the child that owns them; a child with more than half of the body is cut in its turn."""
    parts: dict[str, list[tuple[str, int]]] = {}
    for name, count in body:
        parts.setdefault(name.removeprefix(prefix).partition(".")[0], []).append((name, count))
    whole = whole or sum(count for _, count in body)
    cut: list[list[str]] = []
    for child, owned in parts.items():
        inner = f"{prefix}{child}."
        leaf = all("." not in name.removeprefix(inner) for name, _ in owned)
        large = 2 * sum(count for _, count in owned) > whole
        cut += _children(owned, inner, whole) if large and not leaf else [[name for name, _ in owned]]
    return cut


def body_stages(network: nn.Module, stages: int) -> list[list[str]]:
    """Cut a network's body into so many stages at most, from the input up, of about as many layers each; names of parameters.

    What stands between the body's last block and the head (a last norm, a last convolution) goes with that block.
    """
    layers, head = layer_of(network, coarse=True), head_names(network)
    top = max((layers[name] for name in head), default=-1)
    numbers = sorted({number for name, number in layers.items() if name not in head and number != top})
    if not numbers:
        return [names] if (names := [name for name in layers if name not in head]) else []
    parts = min(stages, len(numbers))
    place = {number: i * parts // len(numbers) for i, number in enumerate(numbers)}
    cut: list[list[str]] = [[] for _ in range(parts)]
    for name, number in layers.items():
        if name not in head:
            cut[place.get(number, parts - 1)].append(name)
    return cut


def freeze(network: nn.Module, learnable: Iterable[str], frozen: Iterable[str]) -> None:
    """Freeze parameters by name and let the others learn; norms that are frozen keep their running statistics too.

    Args:
        network: In training mode afterwards, but for those norms.
        learnable: Names of the parameters that learn unless frozen; a network may have fixed ones of its own.
        frozen: Names of those that do not learn now.
    """
    learnable, frozen = set(learnable), set(frozen)
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(name in learnable and name not in frozen)
    network.train()
    for prefix, module in network.named_modules():
        own = [f"{prefix}.{name}" if prefix else name for name, _ in module.named_parameters(recurse=False)]
        if own and frozen.issuperset(own) and getattr(module, "running_mean", None) is not None:
            module.eval()


def scale_rates(groups: Iterable[Mapping[str, Any]]) -> None:
    """Multiply each group's rate by its `lr_scale`, once, before a schedule takes the rates as its own."""
    for group in groups:
        group["lr"] *= group.get("lr_scale", 1.0)  # type: ignore[index]


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
