"""What a run is, told once before it trains: data, image, network, cost, steps; and where the time went. Layer 4.

It meets data and model through the trainer alone, and changes nothing of either.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from musicnet_eval.backbones import resized_to
from musicnet_eval.finetune import body_stages, freeze, head_names
from musicnet_eval.trainers import shards

FLOAT_BYTES = 4
MOMENTS = 2  # that AdamW keeps of each weight that learns; other optimizers keep fewer


@dataclass(frozen=True)
class Cost:
    """What one image costs: multiply-accumulates forward, and bytes kept for the backward pass."""

    macs: int
    kept_bytes: int


def cost(network: nn.Module, image_shape: tuple[int, int, int], device: torch.device | str = "cpu") -> Cost:
    """Send one image forward and count; weights, statistics and random generators stay as they are.

    Counted are the products of convolutions, linear layers and attention, as papers do; what is kept is counted in float32.

    Args:
        network: Any; what of it has no gradient keeps little.
        image_shape: `(K, F, N)`.
        device: Where the network lies.
    """
    weights = {p.untyped_storage().data_ptr() for p in network.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # the tensor itself would hold its own graph alive for ever

    training = [module for module in network.modules() if module.training]
    network.eval()
    try:
        with FlopCounterMode(display=False) as counter, saved_tensors_hooks(keep, lambda tensor: tensor), torch.enable_grad():
            network(torch.zeros(1, *image_shape, device=device))
    finally:
        for module in training:
            module.training = True
    return Cost(counter.get_total_flops() // 2, sum(kept.values()))


@dataclass(frozen=True)
class Stage:
    """A part of the network: how many parameters it has, and how many of them learn in the first epoch."""

    name: str
    parameters: int
    learning: int


def stages(network: nn.Module, count: int, frozen: frozenset[str]) -> list[Stage]:
    """Count the parameters of a network's stages, from the input up, and of its head.

    Args:
        network: Any.
        count: Stages of the body, at most.
        frozen: Names of the parameters that do not learn.
    """
    parts = {f"stage {number}": names for number, names in enumerate(body_stages(network, count), 1)}
    parts["head"] = sorted(head_names(network))
    of = dict(network.named_parameters())
    return [
        Stage(
            part,
            sum(of[name].numel() for name in names),
            sum(of[name].numel() for name in names if name not in frozen and of[name].requires_grad),
        )
        for part, names in parts.items()
    ]


def memory_bytes(parts: list[Stage], kept_bytes: int, batch_size: int, *, half: bool) -> int:
    """Estimate the memory that training takes at least: weights, gradients, moments, and what is kept of a batch.

    Args:
        parts: The network's stages.
        kept_bytes: Of one image, in float32.
        batch_size: Images.
        half: True in mixed precision, which keeps about half as many bytes of a batch.
    """
    weights = sum(part.parameters for part in parts) * FLOAT_BYTES
    learning = sum(part.learning for part in parts) * FLOAT_BYTES
    return weights + (1 + MOMENTS) * learning + kept_bytes * batch_size // (2 if half else 1)


class RunSummary(Callback):
    """Print once, before the first step, what is about to be trained: a table in a terminal, plain lines elsewhere.

    Args:
        console: Where to print; None is standard output.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console
        self._rows: dict[str, str] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit" and trainer.is_global_zero and shards(trainer):  # once it is in pieces, no process can ask it alone
            self._rows = rows(trainer, pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Here the network is not compiled yet, and lies where it will be trained.
        if trainer.is_global_zero and not shards(trainer):
            self._rows = rows(trainer, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        del pl_module
        if not trainer.is_global_zero:
            return
        show({**self._rows, "training": training_row(trainer)}, self.console or Console())


def rows(trainer: Trainer, model: Any) -> dict[str, str]:
    """Say in words what data and network are."""
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    facts, network = data.facts, model.backbone
    # The epoch in which most learns is the one that must fit into memory; what learns at first is told stage by stage.
    most = model.finetune.frozen(network, max(0, (trainer.max_epochs or 1) - 1))
    freeze(network, model.learnable, most)
    price = cost(network, facts.image_shape, model.device)
    at_most = stages(network, model.finetune.stages, most)
    at_first = stages(network, model.finetune.stages, model.finetune.frozen(network, 0))
    memory = memory_bytes(at_most, price.kept_bytes, data.batch_size, half="16" in str(trainer.precision))
    tracks, resized = data.count_tracks(), resized_to(network)
    image = f"{'×'.join(map(str, facts.image_shape))} (channels × bins × frames)"
    return {
        "data": f"{', '.join(f'{number} {split}' for split, number in tracks.items())} tracks; {len(facts.classes)} classes"
        + (", several a track" if facts.multilabel else ""),
        "image": image if resized is None else f"{image}, resized to {resized[0]}×{resized[1]} for the network",
        "parameters": parameters_row(at_first),
        "cost": f"{short(price.macs)} multiply-accumulates an image; about {short(memory)}B of memory "
        f"in training at batch size {data.batch_size}",
    }


def parameters_row(parts: list[Stage]) -> str:
    """Say how many parameters each stage has, and which of them learn."""
    whole, learning = sum(part.parameters for part in parts), sum(part.learning for part in parts)
    told = ", ".join(f"{part.name} {short(part.parameters)}{'' if part.learning else ' (frozen)'}" for part in parts)
    return f"{short(whole)}, of which {short(learning)} learn{'' if learning == whole else ' at first'}: {told}"


def training_row(trainer: Trainer) -> str:
    """Say how long the training is, in which precision and where."""
    steps = trainer.estimated_stepping_batches
    epochs = f"{trainer.max_epochs} epochs, {int(steps)} steps" if math.isfinite(steps) else "without end"
    left = f" ({int(steps) - trainer.global_step} left)" if trainer.global_step and math.isfinite(steps) else ""
    several = f"{trainer.world_size} processes, this one on " if trainer.world_size > 1 else ""
    return f"{epochs}{left}; {trainer.precision} on {several}{trainer.strategy.root_device}"


def show(told: Mapping[str, str], console: Console) -> None:
    """Print rows as a table in a terminal, and as lines that any tool can read elsewhere."""
    if not console.is_terminal:
        for name, text in told.items():
            print(f"{name}: {text}", file=console.file, flush=True)
        return
    table = Table(show_header=False)
    for name, text in told.items():
        table.add_row(name, text)
    console.print(table)


def time_row(throughput: Mapping[str, float]) -> str:
    """Say where the time of the training went; nothing where nobody measured it."""
    if "step_share" not in throughput:
        return ""
    shares = (("data", "data_share"), ("front end", "front_end_share"), ("step", "step_share"))
    told = ", ".join(f"{name} {throughput[key]:.0%}" for name, key in shares)
    return f"time: {told}; {throughput['train_segments_per_second']:.4g} segments/s"


def short(number: float) -> str:
    """Write a number to three digits, by thousands.

    >>> short(11_181_642), short(820), short(1_814_000_000)
    ('11.2 M', '820', '1.81 G')
    """
    for factor, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= factor:
            return f"{number / factor:.3g} {unit}"
    return f"{number:g}"
