"""What a loss needs and takes, and which pairings with data, augmentation and trainer are refused before the training begins.

The vocabulary, plain attributes of a loss's class (or properties, where it depends on arguments):

| attribute | says | where it is missing |
|---|---|---|
| `needs_cosines` | its first argument is cosines `[B, C]`: the network ends in a `CosineHead` with the loss's `scale` | False |
| `needs_class_counts` | it cannot do its work without `class_counts` of the training split (`_partial_: true`) | False |
| `needs_progress` | it changes over the training, as `set_progress` tells | False |
| `takes_soft_targets` | a label may be a mixture, as mixup and CutMix make them | True |
| `multilabel` | True: labels are independent, `[B, C]` of 0 and 1; False: one label a track; None: it does not say | None |

Torch's own losses cannot carry attributes: `TORCH` speaks for them. A foreign loss that says nothing is refused nothing.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from musicnet_eval.errors import ConfigError

DEFAULTS: dict[str, bool | None] = {
    "needs_cosines": False,
    "needs_class_counts": False,
    "needs_progress": False,
    "takes_soft_targets": True,
    "multilabel": None,
}
TORCH: dict[type[nn.Module], dict[str, bool]] = {
    nn.CrossEntropyLoss: {"multilabel": False},
    nn.NLLLoss: {"multilabel": False, "takes_soft_targets": False},
    nn.MultiMarginLoss: {"multilabel": False, "takes_soft_targets": False},
    nn.BCEWithLogitsLoss: {"multilabel": True},
    nn.MultiLabelSoftMarginLoss: {"multilabel": True},
}


def requirement(loss: Any, name: str) -> bool | None:
    """Look up what a loss says of itself, or what is known of it; see the table at the top.

    >>> requirement(nn.BCEWithLogitsLoss(), "multilabel")
    True
    """
    known = next((facts for kind, facts in TORCH.items() if isinstance(loss, kind)), {})
    value: bool | None = getattr(loss, name, known.get(name, DEFAULTS[name]))
    return value


def cosine_scale(loss: Any) -> float | None:
    """Give the scale of the cosine head that a loss needs, or None.

    Raises:
        ConfigError: It needs cosines, but has no positive number `scale`.
    """
    if not requirement(loss, "needs_cosines"):
        return None
    scale = getattr(loss, "scale", None)
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not scale > 0:
        raise ConfigError(
            f"loss={_name(loss)} needs cosines, but its `scale` is {scale!r}. Give it a positive attribute `scale`."
        )
    return float(scale)


def check_pairing(loss: Any, *, multilabel: bool, mixes_labels: bool = False, endless: bool = False) -> None:
    """Refuse a loss that does not go with the data, the augmentation or the trainer.

    Args:
        loss: The finished loss.
        multilabel: A track of the data may carry several labels.
        mixes_labels: The augmentation mixes labels.
        endless: The trainer does not say how many steps there will be.

    Raises:
        ConfigError: A wrong pairing, with its reason and remedy.
    """
    name, wants = _name(loss), requirement(loss, "multilabel")
    if multilabel and wants is False:
        raise ConfigError(
            f"loss={name} takes one label a track, but tracks of this data carry several. Use loss=bce or loss=asymmetric, or "
            "data of one label a track."
        )
    if wants and not multilabel:
        raise ConfigError(
            f"loss={name} judges each label by itself, but every track of this data carries just one. Use loss=cross_entropy or "
            "loss=asymmetric_single_label."
        )
    if mixes_labels and requirement(loss, "takes_soft_targets") is False:
        raise ConfigError(
            f"loss={name} takes whole labels, but this augmentation mixes the labels of two tracks. Use augment=none, or a loss "
            "of soft targets such as loss=cross_entropy."
        )
    if endless and requirement(loss, "needs_progress"):
        raise ConfigError(
            f"loss={name} changes over the training, but the trainer does not say how long that is (max_epochs=-1). Set "
            "trainer.max_epochs or trainer.max_steps; for a balanced trusted loss, loss.trust_warmup=0 does without."
        )


def _name(loss: Any) -> str:
    return getattr(type(loss), "__name__", str(loss))
