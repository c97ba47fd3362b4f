"""Which samples of which song make one item. Layer 3.

Training draws a random position for each track and epoch; validation and test cover each song by a fixed grid that reaches its
end. A whole batch is read in one call, as int16, straight from the decoded cache. Order and positions derive from (seed, epoch)
alone, so a run that is resumed, or read by any number of workers, sees the same batches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset, Sampler

from musicnet_eval.audio import PcmReader
from musicnet_eval.contracts import Batch
from musicnet_eval.errors import DataError


@dataclass(frozen=True)
class Song:
    """What the reader knows of a track: its PCM file, length in samples, label, and place in the data set's list.

    The label is a class index or, where tracks may carry several, a row `[C]` of zeros and ones.
    """

    pcm: str
    length: int
    label: Any
    index: int


class Request(NamedTuple):
    """One batch to read: rows of the data set and, for training, the epoch and the draws that give their random positions."""

    epoch: int
    rows: NDArray[np.int64]
    draws: NDArray[np.int64] | None = None  # a row that is drawn twice an epoch has another position each time; None: the rows


def generator(seed: int, epoch: int, use: str) -> np.random.Generator:
    """Give the generator of one use in one epoch: the draws depend on nothing that happened before."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, epoch, *use.encode()])))


def check_lengths(songs: Sequence[Song], names: Sequence[str], segment: int, sample_rate: int, *, pad_short: bool) -> None:
    """Refuse songs that are shorter than a segment unless they may be padded with silence."""
    short = [(song.length, name) for song, name in zip(songs, names, strict=True) if song.length < segment]
    if short and not pad_short:
        least, name = min(short)
        raise DataError(
            f"data.segment_seconds={segment / sample_rate:g} is longer than {len(short)} of {len(songs)} tracks "
            f"(shortest: {least / sample_rate:.1f} s, '{name}'). "
            f"Use data.segment_seconds<={least / sample_rate:.1f} or data.pad_short=true."
        )


def grid(length: int, segment: int, hop: int) -> list[int]:
    """Place segments at a fixed hop, and one more that ends where the song ends.

    >>> grid(length=10, segment=4, hop=4)
    [0, 4, 6]
    """
    last = max(length - segment, 0)
    starts = list(range(0, last + 1, hop))
    return starts if starts[-1] == last else [*starts, last]


class Segments(Dataset[Batch]):
    """Items of `segment` samples, read a batch at a time through `__getitems__(Request)`.

    Args:
        songs: What to cut.
        segment: Samples an item.
        hop: Samples between grid positions; None draws positions at random (training).
        seed: Of the random positions.
        channels: Of the PCM files; with 2 audio comes as `[B, 2, T]`.
    """

    def __init__(self, songs: Sequence[Song], segment: int, hop: int | None, seed: int = 0, channels: int = 1) -> None:
        self.segment = segment
        self.channels = channels
        self.random = hop is None
        self.seed = seed
        self.reader = PcmReader()
        starts = [[0] if hop is None else grid(song.length, segment, hop) for song in songs]
        repeats = [len(s) for s in starts]
        self.files = [song.pcm for song in songs]
        self.row_song = np.repeat(np.arange(len(songs)), repeats)
        self.start = np.array([start for row in starts for start in row], dtype=np.int64)
        self.slack = np.array([max(song.length - segment, 0) for song in songs], dtype=np.int64)[self.row_song]
        self.label = np.array([song.label for song in songs])  # by song, not by row: with several labels a row is long
        self.song = np.array([song.index for song in songs], dtype=np.int64)[self.row_song]
        self._drawn, self._drawn_epoch = np.zeros(0), -1

    def __len__(self) -> int:
        return len(self.start)

    def __getitem__(self, row: int) -> Batch:
        return self.__getitems__(Request(0, np.array([row])))

    def starts(self, request: Request) -> NDArray[np.int64]:
        """Give each row's first sample: drawn from (seed, epoch) in training, else the grid."""
        epoch, rows, draws = request
        if not self.random:
            return self.start[rows]
        if epoch != self._drawn_epoch:  # once an epoch, not once a batch
            self._drawn = generator(self.seed, epoch, "position").random(len(self))
            self._drawn_epoch = epoch
        return np.asarray(self._drawn[rows if draws is None else draws] * (self.slack[rows] + 1), dtype=np.int64)

    def __getitems__(self, request: Request) -> Batch:
        """Read one batch; samples past a song's end stay silent."""
        rows = request.rows
        start = self.starts(request)
        wide = self.channels
        audio = np.empty((len(rows), self.segment * wide), dtype=np.int16)
        for row, song, first in zip(audio, self.row_song[rows].tolist(), start.tolist(), strict=True):
            count = self.reader.read(self.files[song], first * wide, row)
            row[count:] = 0
        sides = audio.reshape(len(rows), self.segment, wide).transpose(0, 2, 1)
        return Batch(
            audio=torch.from_numpy(audio if wide == 1 else sides),
            label=torch.from_numpy(self.label[self.row_song[rows]]),
            song=torch.from_numpy(self.song[rows]),
            start=torch.from_numpy(start),
        )


def balanced_chances(labels: NDArray[Any], classes: int) -> NDArray[np.float64]:
    """Make every class as likely as any other: an item's chance is the mean of its classes' one over their count.

    Shape:
        labels: `[S]` class indices, or `[S, C]` zeros and ones. output: `[S]`, sums to 1.
    """
    held = labels if labels.ndim == 2 else np.eye(classes)[labels]
    weight = (held / np.maximum(held.sum(axis=0), 1)).sum(axis=1) / held.sum(axis=1)
    chances: NDArray[np.float64] = weight / weight.sum()
    return chances


class TrainOrder(Sampler[Request]):
    """The batches of the present epoch in an order drawn from (seed, epoch), of this rank's share.

    Args:
        rows: Number of rows in the data set.
        batch_size: Rows a batch; the last, smaller batch is dropped when `drop_last` (a batch of one breaks batch norm).
        seed: Of the order.
        epoch: Gives the present epoch at the moment when the loader starts.
        rank: This process, 0 ≤ rank < world.
        world: Number of processes; rows are dealt out so that each has as many batches.
        chances: `[rows]` how likely each row is drawn, with replacement; None takes every row once an epoch.
        done: Gives how many batches of the epoch are done already, at the same moment: a run that was cut goes on after them.
    """

    def __init__(
        self,
        rows: int,
        batch_size: int,
        seed: int,
        epoch: Callable[[], int],
        rank: int = 0,
        world: int = 1,
        chances: NDArray[np.float64] | None = None,
        done: Callable[[], int] = lambda: 0,
    ) -> None:
        self.rows, self.batch_size, self.seed, self.epoch, self.rank, self.world = rows, batch_size, seed, epoch, rank, world
        self.chances, self.done = chances, done

    def __len__(self) -> int:
        share = self.rows // self.world
        # A last batch of one would break batch norm, so it is dropped; larger rests are trained on.
        return share // self.batch_size + (share % self.batch_size > 1)

    def __iter__(self) -> Iterator[Request]:
        epoch, done = self.epoch(), self.done()
        draw = generator(self.seed, epoch, "order")
        order = draw.permutation(self.rows) if self.chances is None else draw.choice(self.rows, self.rows, p=self.chances)
        draws = order if self.chances is None else np.arange(self.rows)
        mine = slice(self.rank, self.rows // self.world * self.world, self.world)
        for batch in range(done, len(self)):
            part = slice(batch * self.batch_size, (batch + 1) * self.batch_size)
            yield Request(epoch, order[mine][part], draws[mine][part])


class EvalOrder(Sampler[Request]):
    """All rows in order, each exactly once over all ranks, in as many batches on each: they wait for each other at every one."""

    def __init__(self, rows: int, batch_size: int, rank: int = 0, world: int = 1) -> None:
        mine = np.arange(rank, rows, world)
        if world == 1:
            self.batches = [mine[first : first + batch_size] for first in range(0, rows, batch_size)]
        else:
            longest = -(-rows // world)
            self.batches = np.array_split(mine, -(-longest // batch_size))

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Request]:
        return (Request(0, rows) for rows in self.batches)


def song_list(files: Sequence[Path | None], lengths: Sequence[int], labels: Sequence[Any]) -> list[Song]:
    """Pair PCM files with lengths and labels; tracks without a file (bad ones, skipped) are left out but keep their index."""
    rows = zip(files, lengths, labels, strict=True)
    return [Song(str(file), length, label, i) for i, (file, length, label) in enumerate(rows) if file is not None]
