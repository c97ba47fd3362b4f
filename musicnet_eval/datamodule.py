"""`MusicDataModule`: tracks → batches of segments → spectrogram images on the device. Layer 4; knows neither model nor callbacks.

The loader hands out int16 audio; `on_after_batch_transfer` makes it float, augments it (training only) and turns it into images
on the accelerator, so that no spectrogram is ever computed per item or on the wrong side of the bus. `facts` is all that a model
learns of the data.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader

from musicnet_eval.audio import PCM_SCALE, pcm_length, read_pcm
from musicnet_eval.augment import Augment
from musicnet_eval.bad_files import check_choice, settle, with_known_faults
from musicnet_eval.cache import DecodedCache
from musicnet_eval.contracts import SPLITS, Batch, DataFacts, Track
from musicnet_eval.datasets import class_counts, classes_of
from musicnet_eval.errors import ConfigError, DataError
from musicnet_eval.normalization import kept, statistics_key, statistics_of
from musicnet_eval.segments import EvalOrder, Segments, Song, TrainOrder, balanced_chances, check_lengths, generator, song_list
from musicnet_eval.spectrograms import make_images

SAMPLERS = ("uniform", "balanced")


class MusicDataModule(lightning.LightningDataModule):
    """Serve the segments of a split list of tracks as images.

    Args:
        tracks: What to learn from and test on, each with its split.
        spectrogram: Module `[B, T] → [B, K, F, N]`; one that `must_learn` is given the training split's statistics.
        augment: Steps on training batches by name, or one, or None (`musicnet_eval.augment`): any module `[B, T] → [B, T]`, say.
        sample_rate: Hz; sources of other rates are resampled once.
        channels: 1 mixes each song to mono; 2 keeps it stereo: audio is `[B, 2, T]`, images are `[B, 2K, F, N]`.
        segment_seconds: Length of one item, seconds.
        hop_seconds: Distance of grid positions in validation and test, seconds; the segment's length when None.
        max_seconds: Use no more than this of each track's start, seconds; everything when None.
        pad_short: Pad songs shorter than a segment with silence, rather than refuse them.
        batch_size: Segments a batch, 2 or more.
        sampler: `uniform` takes every training track once an epoch; `balanced` draws as many, every class as likely as any other.
        num_workers: Loader processes; 0 reads in the training process, which a warm cache makes fast enough.
        cache_dir: Where decoded audio is kept.
        cache_max_gb: Size that this folder is kept to, in 10⁹ bytes; unbounded when None.
        on_bad_file: `error` names unusable files and stops; `skip` leaves them out and records them; `report` stops with a table
            of them all.
        seed: Of order and positions.

    Raises:
        ConfigError: A value out of range.
    """

    facts: DataFacts

    def __init__(
        self,
        tracks: Sequence[Track],
        spectrogram: nn.Module,
        augment: nn.Module | Mapping[str, nn.Module | None] | None = None,
        *,
        sample_rate: int = 22050,
        channels: int = 1,
        segment_seconds: float = 3.0,
        hop_seconds: float | None = None,
        max_seconds: float | None = None,
        pad_short: bool = False,
        batch_size: int = 32,
        sampler: str = "uniform",
        num_workers: int = 0,
        cache_dir: Path | str = "data/cache",
        cache_max_gb: float | None = None,
        on_bad_file: str = "error",
        seed: int = 0,
    ) -> None:
        super().__init__()
        _check_range("data.sample_rate", sample_rate, 1000, 384_000, "Hz")
        _check_range("data.segment_seconds", segment_seconds, 0.05, 3600, "seconds")
        _check_range("data.batch_size", batch_size, 2, 65_536, "segments (batch norm needs two)")
        if sampler not in SAMPLERS:
            raise ConfigError(f"data.sampler={sampler!r} must be one of {', '.join(SAMPLERS)}.")
        _check_range("data.num_workers", num_workers, 0, 1024, "processes")
        for key, value in (("data.hop_seconds", hop_seconds), ("data.max_seconds", max_seconds)):
            if value is not None:
                _check_range(key, value, 0.01, 86_400, "seconds, or null")
        if cache_max_gb is not None:
            _check_range("data.cache_max_gb", cache_max_gb, 0, 10**6, "gigabytes, or null")
        check_choice(on_bad_file)
        self.tracks = list(tracks)
        self.spectrogram: Any = spectrogram
        self.augment = Augment(augment, len(self.classes))
        self.sample_rate = int(sample_rate)
        self.channels = channels
        mono = [name for name, step in self.augment.stages["audio"].named_children() if not getattr(step, "stereo", False)]
        if channels == 2 and mono:
            raise ConfigError(
                f"data.channels=2 does not go with augmentation of audio ({', '.join(mono)}), which takes mono. "
                "Let it say `stereo = True` if it takes [B, 2, T], or use data.channels=1."
            )
        self.segment = round(segment_seconds * sample_rate)
        self.hop = self.segment if hop_seconds is None else max(1, round(hop_seconds * sample_rate))
        self.pad_short = pad_short
        self.batch_size = int(batch_size)
        self.sampler = sampler
        self.num_workers = int(num_workers)
        self.cache = DecodedCache(cache_dir, self.sample_rate, max_seconds, channels, cache_max_gb)
        self.on_bad_file = on_bad_file
        self.seed = seed
        self.bad_tracks: dict[str, str] = {}
        self.front_end_seconds = 0.0  # spent in training batches so far, for those who ask where the time went
        self._batches = 1
        self._songs: dict[str, list[Song]] = {}

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in index order, from all tracks; known before any file is read."""
        return classes_of(self.tracks)

    def setup(self, stage: str | None = None) -> None:
        """Decode what is not in the cache yet, once, and learn the facts. `stage` does not matter: all splits are prepared."""
        del stage
        if self._songs:
            return
        files, lengths = self._usable_files()
        multilabel = any(len(track.labels) > 1 for track in self.tracks)
        songs = song_list(files, lengths, list(targets(self.tracks, self.classes, multilabel=multilabel)))
        names = [self.tracks[song.index].id for song in songs]
        check_lengths(songs, names, self.segment, self.sample_rate, pad_short=self.pad_short)
        usable = [self.tracks[song.index] for song in songs]
        for split in SPLITS:
            self._songs[split] = [song for song in songs if self.tracks[song.index].split == split]
            if not self._songs[split]:
                raise DataError(f"No usable track is left in split {split!r}. Mend the bad files named above, or add tracks.")
        self._learn()
        self.facts = DataFacts(
            classes=self.classes,
            class_counts=class_counts(usable, self.classes),
            image_shape=self._image_shape(),
            sample_rate=self.sample_rate,
            multilabel=multilabel,
        )

    def _usable_files(self) -> tuple[list[Path | None], list[int]]:
        """Give each track's PCM file, None for a bad one, and its length in samples; name the bad ones."""
        files, bad = self.cache.build(self.tracks)
        lengths = [0 if file is None else pcm_length(file, self.channels) for file in files]
        if self.on_bad_file != "error" and not self.pad_short:  # otherwise `check_lengths` says what the short ones need
            wanted = f"shorter than data.segment_seconds={self.segment / self.sample_rate:g}"
            for track, file, length in zip(self.tracks, files, lengths, strict=True):
                if file is not None and length < self.segment:
                    bad[track.id] = f"lasts {length / self.sample_rate:.1f} s, {wanted}"
        self.bad_tracks = with_known_faults(bad)
        settle(self.tracks, self.bad_tracks, self.on_bad_file, self.cache.folder)
        return [None if track.id in bad else file for track, file in zip(self.tracks, files, strict=True)], lengths

    def _learn(self) -> None:
        """Let a front end that normalises by the training split learn its statistics."""
        if not getattr(self.spectrogram, "must_learn", False):
            return
        spectrogram = self.spectrogram.spectrogram
        songs = (Path(song.pcm).name for song in self._songs["train"])
        key = statistics_key(spectrogram, self.segment, (str(self.hop), *songs))
        audio = (batch["audio"].float() / PCM_SCALE for batch in self.eval_dataloader("train"))
        images = (make_images(spectrogram, segments.flatten(0, -2)) for segments in audio)  # both sides count alike
        self.spectrogram.learn(kept(self.cache.folder / "statistics" / f"{key}.json", lambda: statistics_of(images)))

    @property
    def band_statistics(self) -> dict[str, Any] | None:
        """Mean and deviation of each band, `[K][F]`, where the front end normalises by the training split."""
        return getattr(self.spectrogram, "learnt", None)

    def state_dict(self) -> dict[str, Any]:
        """Put into every checkpoint what the front end has learnt, so that the checkpoint is whole."""
        return {} if self.band_statistics is None else {"band_statistics": self.band_statistics}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take from a checkpoint what the front end had learnt."""
        self.spectrogram.learn(state_dict["band_statistics"])

    def _image_shape(self) -> tuple[int, int, int]:
        silence = torch.zeros(1, self.segment)
        with torch.no_grad():
            image = self.spectrogram(silence)
            raw = getattr(self.spectrogram, "spectrogram", self.spectrogram)(silence)
        if image.ndim != 4:
            raise ConfigError(
                f"spectrogram={type(self.spectrogram).__name__} gives shape {tuple(image.shape)}; it must give [B, K, F, N]."
            )
        if raw.shape[-1] < 2:
            raise ConfigError(
                f"The spectrogram makes one frame of a segment of {self.segment} samples (data.segment_seconds). "
                "Lower spectrogram.hop_length, or raise data.segment_seconds."
            )
        return self.channels * int(image.shape[1]), int(image.shape[2]), int(image.shape[3])

    # --- loaders ---

    def train_dataloader(self) -> DataLoader[Batch]:
        rank, world = self._place()
        data = Segments(self._songs["train"], self.segment, hop=None, seed=self.seed, channels=self.channels)
        chances = balanced_chances(data.label, len(self.classes)) if self.sampler == "balanced" else None
        order = TrainOrder(len(data), self.batch_size, self.seed, self._epoch, rank, world, chances, self._done)
        self._batches = len(order)
        if self._batches == 0:
            raise DataError(
                f"{len(data)} training tracks make no batch for {world} processes. Lower data.batch_size or add tracks."
            )
        return self._loader(data, order)

    def eval_dataloader(self, split: str) -> DataLoader[Batch]:
        """Cover every song of a split by the fixed grid, each segment once over all ranks."""
        data = Segments(self._songs[split], self.segment, self.hop, channels=self.channels)
        if len(data) < self._place()[1]:
            raise DataError(
                f"{len(data)} segments in split {split!r} are too few for {self._place()[1]} processes. Use fewer devices."
            )
        return self._loader(data, EvalOrder(len(data), 2 * self.batch_size, *self._place()))

    def val_dataloader(self) -> DataLoader[Batch]:
        return self.eval_dataloader("val")

    def test_dataloader(self) -> DataLoader[Batch]:
        return self.eval_dataloader("test")

    def _loader(self, data: Segments, order: TrainOrder | EvalOrder) -> DataLoader[Batch]:
        # `sampler` with batch_size=None hands a whole Request to the data set: one read a batch.
        return _LateLoader(
            _WholeBatches(data),
            sampler=order,
            batch_size=None,
            num_workers=self.num_workers,
            worker_init_fn=_leave_signals,
            persistent_workers=self.num_workers > 0,
            pin_memory=torch.cuda.is_available(),
        )

    def _place(self) -> tuple[int, int]:
        trainer = self.trainer
        return (trainer.global_rank, trainer.world_size) if trainer is not None else (0, 1)

    def _epoch(self) -> int:
        # From the steps taken, not from trainer.current_epoch, which lags when a resumed run starts its loader.
        if self.trainer is None:
            return 0
        steps = -(-self._limited() // self.trainer.accumulate_grad_batches)
        return self.trainer.global_step // steps

    def _done(self) -> int:
        """Count the batches of the present epoch that a run which was cut in its middle has done."""
        loop = None if self.trainer is None else self.trainer.fit_loop
        return 0 if loop is None or not loop.restarting else (loop.batch_idx + 1) % self._limited()

    def _limited(self) -> int:
        """Count the batches of an epoch as `trainer.limit_train_batches` leaves them."""
        limit = 1.0 if self.trainer is None else self.trainer.limit_train_batches
        return max(1, min(self._batches, limit) if isinstance(limit, int) else int(self._batches * limit))

    # --- on the device ---

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Make the image on the device: int16 → float → spectrogram; in training audio, image and label are augmented."""
        del dataloader_idx
        began = time.perf_counter()
        audio, label = batch["audio"].float() / PCM_SCALE, batch["label"]
        if self.trainer is None or not self.trainer.training:
            return {**batch, "audio": audio, "image": self.image(audio)}
        audio, label = self.augment("audio", audio, label, self._draw)
        image, label = self.augment("image", self.image(audio), label, self._draw)
        self.front_end_seconds += time.perf_counter() - began
        return {**batch, "audio": audio, "label": label, "image": image}

    def _draw(self, step: str) -> np.random.Generator:
        """Give the generator of one augmentation step in the present batch."""
        assert self.trainer is not None
        batches = self.trainer.fit_loop.total_batch_idx + 1  # global_step would stand still while gradients are accumulated
        return generator(self.seed, batches, f"augment {step} {self.trainer.global_rank}")

    def image(self, audio: Tensor) -> Tensor:
        """Turn float audio, `[B, T]` or `[B, 2, T]`, into images on the device where it lies."""
        return make_images(self.spectrogram, audio)

    def count_tracks(self) -> dict[str, int]:
        """Count the usable tracks of each split."""
        return {split: len(songs) for split, songs in self._songs.items()}

    def examples(self, device: torch.device) -> list[tuple[str, str, Tensor]]:
        """Give one training example a class: class name, track id, and the image `[K, F, N]` of the middle of the song."""
        first = {name: song.index for song in reversed(self._songs["train"]) for name in self.tracks[song.index].labels}
        images = self.middles([first[name] for name in sorted(first)], device)
        return [(name, self.tracks[first[name]].id, image) for name, image in zip(sorted(first), images, strict=True)]

    def clip(self, track: int, seconds: float) -> NDArray[np.int16]:
        """Give the middle of a track as it was decoded, `[T]`, or `[T, 2]` with `data.channels=2`; shorter where the track is.

        Args:
            track: Its place in the data set's list.
            seconds: How much of it at most.
        """
        song = next(song for split in SPLITS for song in self._songs[split] if song.index == track)
        length = min(song.length, round(seconds * self.sample_rate))
        audio = np.zeros((length, *(2,) * (self.channels == 2)), dtype=np.int16)
        read_pcm(song.pcm, (song.length - length) // 2, audio)
        return audio

    def middles(self, tracks: Sequence[int], device: torch.device) -> Tensor:
        """Give the image of the middle of each track, `[S, K, F, N]`, by its place in the data set's list."""
        songs = {song.index: song for split in SPLITS for song in self._songs[split]}
        audio = np.zeros((len(tracks), self.segment, *(2,) * (self.channels == 2)), dtype=np.int16)
        for row, place in zip(audio, tracks, strict=True):
            read_pcm(songs[place].pcm, max(0, (songs[place].length - self.segment) // 2), row)
        sounds = torch.from_numpy(audio).to(device).float() / PCM_SCALE
        return self.image(sounds if self.channels == 1 else sounds.transpose(1, 2))


def _leave_signals(worker: int) -> None:
    """Let the training process alone decide when to stop: a terminal, or Slurm, signals all processes at once."""
    del worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))  # a second one is meant


class _LateLoader(DataLoader[Batch]):
    """Let workers read nothing before the first batch is asked for.

    Lightning makes the iterator when a schedule asks how long the training is, before it knows where a resumed run goes on.
    """

    def __iter__(self) -> Any:
        yield from super().__iter__()


class _WholeBatches(torch.utils.data.Dataset[Batch]):
    """Let a loader without batching of its own pass whole requests through."""

    def __init__(self, data: Segments) -> None:
        self.data = data

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, request: Any) -> Batch:
        return self.data.__getitems__(request)


def targets(tracks: Sequence[Track], classes: Sequence[str], *, multilabel: bool) -> NDArray[Any]:
    """Give each track's label: `[S]` class indices, or `[S, C]` zeros and ones where tracks may carry several."""
    index = {name: i for i, name in enumerate(classes)}
    if not multilabel:
        return np.array([index[track.labels[0]] for track in tracks], dtype=np.int64)
    held = np.zeros((len(tracks), len(classes)), dtype=np.float32)
    for row, track in zip(held, tracks, strict=True):
        row[[index[name] for name in track.labels]] = 1
    return held


def _check_range(key: str, value: float, low: float, high: float, unit: str) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise ConfigError(f"{key}={value!r} must be a number from {low:g} to {high:g} {unit}.")
