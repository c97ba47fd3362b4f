"""`Augment`: the steps of a config in a fixed order, each with a generator of its own."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any, cast

import numpy as np
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from numpy.random import Generator
from torch import Tensor, nn

from musicnet_eval.errors import ConfigError

STAGES = ("audio", "image")


class Augment(nn.Module):
    """Run the steps of a config, by stage: audio, then image.

    Within a stage, steps that mix labels come last, and names decide otherwise: the order in which steps were named does not
    change a run's numbers, nor does one more step change what the others draw.

    Args:
        steps: Steps by name (a null leaves one out), or a single one, or nothing.
        num_classes: C of the mixed labels.

    Raises:
        ConfigError: A step that is no module, or is on something else than audio or image.
    """

    def __init__(self, steps: nn.Module | Mapping[str, nn.Module | None] | None, num_classes: int) -> None:
        super().__init__()
        named = {"augment": steps} if isinstance(steps, nn.Module) else dict(steps or {})
        kept = {name: _checked(name, step) for name, step in named.items() if step is not None}
        order = sorted(kept, key=lambda name: (mixes_labels(kept[name]), name))
        self.stages = nn.ModuleDict(
            {stage: nn.ModuleDict({name: kept[name] for name in order if _stage(kept[name]) == stage}) for stage in STAGES}
        )
        self.num_classes = num_classes
        self.mixes_labels = any(map(mixes_labels, kept.values()))

    @torch.no_grad()
    def forward(self, stage: str, x: Tensor, label: Tensor, draw: Callable[[str], Generator]) -> tuple[Tensor, Tensor]:
        """Run the steps of one stage.

        Args:
            stage: `audio` or `image`.
            x: The batch.
            label: Its labels.
            draw: Gives the generator of a step, by its name.

        Shape:
            x: `[B, T]` or `[B, K, F, N]`, kept. label: `[B]` int or `[B, C]` float; `[B, C]` float once mixed.
        """
        for name, step in cast(nn.ModuleDict, self.stages[stage]).items():
            if mixes_labels(step) and label.ndim == 1:
                label = torch.eye(self.num_classes, device=label.device)[label]
            changed, label = _run(step.to(x.device), x, label, draw(name))
            if changed.shape != x.shape:
                raise ConfigError(
                    f"augment.{name} turns a batch of shape {tuple(x.shape)} into {tuple(changed.shape)}; a step must keep it."
                )
            x = changed
        return x, label


class OnImage(nn.Module):
    """Mark a library's module, `[B, K, F, N]` to the same, as a step on images: torchvision's or kornia's, say.

    Args:
        module: What is done. It draws from the global generators, usually once for the whole batch.
    """

    on = "image"

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, image: Tensor) -> Tensor:
        changed: Tensor = self.module(image)
        return changed


def mixes_labels(step: nn.Module) -> bool:
    """Say whether a step's labels come out as mixtures."""
    return bool(getattr(step, "mixes_labels", False))


def _stage(step: nn.Module) -> str:
    return str(getattr(step, "on", "audio"))


def _checked(name: str, step: Any) -> nn.Module:
    if not isinstance(step, nn.Module):
        raise ConfigError(f"augment.{name}={step!r} is no module. Give it a _target_, or null to leave it out.")
    if _stage(step) not in STAGES:
        raise ConfigError(f"augment.{name} is on {_stage(step)!r}; a step's `on` must be one of {', '.join(STAGES)}.")
    return step


def _run(step: nn.Module, x: Tensor, label: Tensor, generator: Generator) -> tuple[Tensor, Tensor]:
    """Call a step with what its signature names; one that names no generator draws from global ones, seeded for it."""
    takes = inspect.signature(step.forward).parameters
    facts = {name: value for name, value in (("label", label), ("generator", generator)) if name in takes}
    with nullcontext() if "generator" in takes else seeded(generator):
        result = step(x, **facts)
    return result if "label" in takes else (result, label)


@contextmanager
def seeded(generator: Generator) -> Iterator[None]:
    """Seed the global generators of Python, NumPy and torch, and set them back afterwards."""
    with isolate_rng():
        seed = int(generator.integers(2**32))
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        yield
