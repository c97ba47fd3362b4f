"""The nouns that travel between the parts: `Track`, `Batch`, `DataFacts`, `RunRecord`.

Layer 0: imports nothing of the package and no torch, so that every part, reporting included, can speak of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

if TYPE_CHECKING:
    from torch import Tensor

SPLITS = ("train", "val", "test")


@dataclass(frozen=True, slots=True)
class Track:
    """One song: one audio file, the unit that splits, votes and statistics count.

    Args:
        id: Name that is unique in its data set and the same on every machine (a path relative to the root, say).
        path: Where the audio file lies on this machine.
        labels: Its class, or classes when multi-label.
        group: What must not cross splits: artist, album or work; the id where nothing is known.
        split: `train`, `val`, `test`, or None until a protocol has decided.
    """

    id: str
    path: Path
    labels: tuple[str, ...]
    group: str
    split: str | None = None


class Batch(TypedDict):
    """What the loader hands on, and what the device receives.

    Shape:
        audio: `[B, T]`, or `[B, 2, T]` with `data.channels=2`; int16 PCM from the loader, float in [-1, 1] after transfer.
        label: `[B]` int class index, or `[B, C]` float when multi-label or mixed.
        song: `[B]` int index of the track in its data set's list.
        start: `[B]` int first sample of the segment, at the data module's sample rate.
        image: `[B, K, F, N]` float: K channels, F bins, N frames; present after transfer.
    """

    audio: Tensor
    label: Tensor
    song: Tensor
    start: Tensor
    image: NotRequired[Tensor]


@dataclass(frozen=True, slots=True)
class DataFacts:
    """All that a model may know of a data set.

    Args:
        classes: Class names in index order (sorted).
        class_counts: Training tracks of each class.
        image_shape: `(K, F, N)` of one spectrogram image.
        sample_rate: Hz.
        multilabel: True when a track may carry several labels.
    """

    classes: tuple[str, ...]
    class_counts: tuple[int, ...]
    image_shape: tuple[int, int, int]
    sample_rate: int
    multilabel: bool = False


class RunRecord(TypedDict):
    """`result.json`, schema 1: what a finished run says of itself. Written once, last, and only when the run is whole."""

    schema: int
    status: str
    signature: str
    configuration: str
    choices: dict[str, Any]  # data, protocol, fold, spectrogram, augment, backbone, loss, seed
    overrides: list[str]
    config: dict[str, Any]
    facts: dict[str, Any]
    metrics: dict[str, float]
    parameters: int
    seconds: dict[str, float]
    throughput: dict[str, float]
    hardware: dict[str, Any]
    versions: dict[str, str]
    git: dict[str, Any]
    started: str
    finished: str
