"""What every step draws: the rows of a batch that it changes, and by how much. Checks of its arguments.

Small draws come from a NumPy generator and go to the device without waiting for it; noise is drawn where it is used, by a torch
generator seeded from the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.random import Generator
from torch import Tensor

from musicnet_eval.errors import ConfigError

Change = Callable[[Tensor, Generator], Tensor]
Span = tuple[float, float]
FADE = 256  # samples: 12 ms at 22.05 kHz


def drawn_rows(count: int, p: float, generator: Generator) -> np.ndarray[Any, np.dtype[np.intp]]:
    """Draw which of `count` rows are changed, each with probability `p`."""
    return np.flatnonzero(generator.random(count) < p)


def on_share(x: Tensor, p: float, generator: Generator, change: Change) -> Tensor:
    """Change a share of a batch's rows and leave the others as they are, bit for bit.

    Args:
        x: The batch, rows first.
        p: Probability of each row, 0 to 1.
        generator: Of the rows and of all that `change` draws.
        change: Maps rows to changed rows of the same shape.
    """
    rows = drawn_rows(len(x), p, generator)
    if not len(rows):
        return x
    if len(rows) == len(x):
        return change(x, generator)
    at = there(rows, x)
    return x.index_copy(0, at, change(x.index_select(0, at), generator))


def uniform(span: Span, x: Tensor, generator: Generator, *shape: int) -> Tensor:
    """Draw one number (or `shape` numbers) a row of `x`, evenly between the ends of a span, on its device.

    Shape:
        output: `[B, *shape, 1, …]`, as many dimensions as `x` where no shape is given.
    """
    size = (len(x), *shape) if shape else (len(x), *(1,) * (x.ndim - 1))
    return there(generator.uniform(*span, size), x)


def there(values: Any, x: Tensor) -> Tensor:
    """Move small draws to the device of `x`, floats in its precision; waits for no GPU."""
    tensor = torch.as_tensor(values)
    dtype = tensor.dtype if not tensor.is_floating_point() else x.dtype if x.is_floating_point() else torch.float32
    return tensor.to(x.device, dtype, non_blocking=True)


def faded(audio: Tensor) -> Tensor:
    """Fade a song in and out within a few milliseconds, so that its end can go over into its beginning without a click.

    Shape:
        audio: `[…, T]`, kept.
    """
    length = audio.shape[-1]
    ramp = min(FADE, length // 2)
    edge = torch.arange(length, device=audio.device, dtype=audio.dtype)
    return audio * (torch.minimum(edge, length - 1 - edge) / max(ramp, 1)).clamp_max(1.0)


def noise_source(x: Tensor, generator: Generator) -> torch.Generator:
    """Give a torch generator on the device of `x`, for draws as large as a batch."""
    return torch.Generator(x.device).manual_seed(int(generator.integers(2**63)))


# --- checks -------------------------------------------------------------------------------------------------------------------


def check_number(key: str, value: Any, low: float, high: float, unit: str = "") -> float:
    """Give a number of the config that lies within its bounds.

    Raises:
        ConfigError: It does not, or is none.
    """
    if not _is_number(value) or not low <= value <= high:
        raise ConfigError(f"augment.{key}={value!r} must be a number from {low:g} to {high:g}{_spaced(unit)}.")
    return float(value)


def check_share(key: str, value: Any) -> float:
    """Give a probability or share from 0 to 1."""
    return check_number(key, value, 0, 1)


def check_count(key: str, value: Any, low: int, high: int) -> int:
    """Give a whole number of the config that lies within its bounds."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise ConfigError(f"augment.{key}={value!r} must be a whole number from {low} to {high}.")
    return value


def check_span(key: str, value: Any, low: float, high: float, unit: str = "") -> Span:
    """Give a span `[least, most]` of the config that lies within its bounds.

    Raises:
        ConfigError: It is no pair of numbers, the wrong way round, or out of bounds.
    """
    pair = isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 2 and all(map(_is_number, value))
    if not pair or not low <= value[0] <= value[1] <= high:
        turned = f" Turn it round: [{value[1]}, {value[0]}]." if pair and value[0] > value[1] else ""
        shown = list(value) if pair else value
        raise ConfigError(f"augment.{key}={shown!r} must be [least, most], from {low:g} to {high:g}{_spaced(unit)}.{turned}")
    return float(value[0]), float(value[1])


def check_alpha(key: str, value: Any) -> float:
    """Give the parameter of the Beta distribution that mixtures are drawn from, above 0."""
    if not _is_number(value) or not 0 < value <= 1000:
        remedy = f"To switch it off, leave the step out or set augment.{key.partition('.')[0]}.p=0"
        raise ConfigError(f"augment.{key}={value!r} must be above 0 (0.2 to 1 is usual), 1000 at most. {remedy}.")
    return float(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _spaced(unit: str) -> str:
    return f" {unit}" if unit else ""
