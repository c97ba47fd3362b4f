"""Lightning callbacks that watch a run: status and heartbeat, `metrics.csv`, throughput, pictures, progress. Layer 4.

They meet data and model through the trainer alone. Those that only look are listed in `records.LOOKING_CALLBACKS`, since they
cannot change a run's numbers; `StepSeed` does, and every run has it.
"""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, Checkpoint
from torch import Tensor

from musicnet_eval import records, runs


class StepSeed(Callback):
    """Seed torch before every training batch from (seed, rank, batch): dropout draws the same in a resumed run.

    Args:
        seed: The run's seed.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        del trainer, pl_module, stage
        # Deterministic mode would also fill every new tensor before use: 3 % of a ResNet-18's step for memory nobody reads.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        del pl_module, batch, batch_idx
        batches = trainer.fit_loop.total_batch_idx  # global_step would stand still while gradients are accumulated
        torch.manual_seed(((self.seed * 1009 + trainer.global_rank) << 32) + batches)


class Heartbeat(Callback):
    """Keep `status.json` fresh: epoch and time of the last sign of life.

    Args:
        folder: The run's folder.
        every_seconds: Least time between two writes, seconds.
    """

    def __init__(self, folder: Path, every_seconds: float = 15.0) -> None:
        self.folder = folder
        self.every_seconds = every_seconds
        self._last = 0.0
        self._began, self._first_epoch = 0.0, 0  # of this attempt

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        del pl_module
        self._began, self._first_epoch = time.monotonic(), trainer.current_epoch

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if time.monotonic() - self._last > self.every_seconds:
            self._beat(trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        del pl_module
        whole = trainer.current_epoch - self._first_epoch
        seconds = round((time.monotonic() - self._began) / whole, 3) if whole else None
        self._beat(trainer, epoch_started=records.now(), seconds_per_epoch=seconds)

    def _beat(self, trainer: Trainer, **more: Any) -> None:
        self._last = time.monotonic()
        if trainer.is_global_zero:
            told = {"epoch": trainer.current_epoch, "epochs": trainer.max_epochs, "step": trainer.global_step}
            runs.update_status(self.folder, **told, **more)


class MetricsTable(Checkpoint):
    """Append one row an epoch to `metrics.csv`: `epoch,step,<metric keys>`, whatever the logger.

    It is a `Checkpoint` because Lightning calls those after the model has logged its training metrics.
    """

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        del pl_module
        if not trainer.is_global_zero or trainer.sanity_checking:
            return
        row: dict[str, Any] = {"epoch": trainer.current_epoch, "step": trainer.global_step}
        row |= {name: f"{float(value):.7g}" for name, value in sorted(trainer.callback_metrics.items())}
        self._append(Path(trainer.default_root_dir) / records.METRICS, row)

    def _append(self, path: Path, row: dict[str, Any]) -> None:
        columns = list(row)
        old: list[dict[str, str]] = []
        if path.exists():
            with path.open(newline="", encoding="utf8") as file:
                reader = csv.DictReader(file)
                # A resumed run repeats nothing: rows from this epoch on belong to an attempt that was cut short.
                old = [line for line in reader if int(line["epoch"]) < row["epoch"]]
                columns = [*(reader.fieldnames or []), *(name for name in columns if name not in (reader.fieldnames or []))]
        with records.replacing(path) as temporary, temporary.open("w", newline="", encoding="utf8") as file:
            writer = csv.DictWriter(file, columns, restval="")
            writer.writeheader()
            writer.writerows([*old, row])


class Throughput(Callback):
    """Measure segments a second in training, and where its time went; the first epoch, which warms up, is left out if it can be.

    The clock is this process's: `front_end_share` is the time in which the data module made images and augmented, `step_share`
    forward, backward and optimizer, `data_share` the rest of an epoch (waiting for the loader, copying to the device, callbacks).
    Nothing waits for an accelerator on that account: there the first share that has to wait for it holds the work of all.
    """

    def __init__(self) -> None:
        self.epochs: list[tuple[int, float, float, float]] = []  # segments; seconds in all, of the front end, of steps
        self._count, self._began, self._front, self._steps, self._step = 0, 0.0, 0.0, 0.0, 0.0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        del pl_module
        self._count, self._began, self._front, self._steps = 0, time.perf_counter(), self._front_end(trainer), 0.0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        del trainer, pl_module, batch, batch_idx
        self._step = time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        del pl_module, outputs, batch_idx
        self._steps += time.perf_counter() - self._step
        self._count += len(batch["label"]) * trainer.world_size

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        del pl_module
        if trainer.state.fn == "fit" and not trainer.sanity_checking and self._count:
            front = self._front_end(trainer) - self._front
            self.epochs.append((self._count, time.perf_counter() - self._began, front, self._steps))
            self._count = 0
            told = {f"throughput/{name}": value for name, value in _shares(self.epochs[-1:]).items()}
            for logger in trainer.loggers:
                logger.log_metrics({**told, "epoch": trainer.current_epoch}, trainer.global_step - 1)  # as Lightning counts

    @staticmethod
    def _front_end(trainer: Trainer) -> float:
        seconds: float = getattr(trainer.datamodule, "front_end_seconds", 0.0)  # type: ignore[attr-defined]
        return seconds

    def result(self) -> dict[str, float]:
        """Give `train_segments_per_second` and the shares of its time, or nothing when no epoch was finished."""
        return _shares(self.epochs[1:] or self.epochs)


def _shares(epochs: Sequence[tuple[int, float, float, float]]) -> dict[str, float]:
    """Give the segments a second of some epochs, and where their time went."""
    if not epochs:
        return {}
    count, seconds, front, steps = (sum(column) for column in zip(*epochs, strict=True))
    shares = {"front_end_share": front / seconds, "step_share": steps / seconds}
    return {"train_segments_per_second": count / seconds, "data_share": 1 - sum(shares.values()), **shares}


class Pictures(Callback):
    """Draw spectrograms as the network sees them into `pictures/`: one a class, and the hardest test songs.

    `spectrograms.json` and `hardest.json` name them.

    Args:
        height: Least height of a picture in pixels; small images are enlarged by whole factors.
        hardest: How many test songs are drawn, those that get the least probability of their labels first, 0 or more.
    """

    def __init__(self, height: int = 160, hardest: int = 6) -> None:
        self.height = height
        self.hardest = hardest

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        folder = Path(trainer.default_root_dir) / "pictures"
        folder.mkdir(parents=True, exist_ok=True)
        entries = []
        for number, (name, song, image) in enumerate(data.examples(pl_module.device)):
            file = f"spectrogram-{number}.png"
            draw(image.cpu().numpy(), folder / file, self.height)
            seconds = data.segment / data.sample_rate
            caption = f"{image.shape[1]} bins from low (bottom) to high, {seconds:g} s from left to right"
            entries.append({"class": name, "song": song, "file": file, "caption": caption})
        records.write_text(folder / "spectrograms.json", json.dumps(entries, indent=1))

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        model: Any = pl_module
        votes = model.last_votes["test"]
        places = least_probable(votes.songs, votes.probabilities, votes.labels, self.hardest)
        folder = Path(trainer.default_root_dir) / "pictures"
        folder.mkdir(parents=True, exist_ok=True)
        entries = []
        for number, (place, image) in enumerate(zip(places, data.middles(places, pl_module.device), strict=True)):
            file = f"hardest-{number}.png"
            draw(image.cpu().numpy(), folder / file, self.height)
            entries.append({"song": data.tracks[place].id, "file": file})
        records.write_text(folder / "hardest.json", json.dumps(entries, indent=1))


def least_probable(songs: Tensor, probabilities: Tensor, labels: Tensor, count: int) -> list[int]:
    """List the songs that get the least probability of their label, least first; of several labels the mean counts.

    Shape:
        songs: `[S]`. probabilities: `[S, C]`. labels: `[S]` class index, or `[S, C]` zeros and ones.
    """
    held = labels if labels.dim() == 2 else torch.nn.functional.one_hot(labels, probabilities.shape[1])
    chances = (probabilities * held).sum(dim=1) / held.sum(dim=1).clamp(min=1)
    return [int(place) for place in songs[chances.argsort(stable=True)[:count]]]


# Dark to bright through purple and orange, as of our own choosing: equal steps of lightness, readable without colour.
_PALETTE = np.array([[8, 6, 30], [72, 18, 107], [170, 44, 98], [238, 117, 63], [252, 246, 190]], dtype=float)


def draw(image: np.ndarray[Any, np.dtype[np.float32]], path: Path, height: int) -> None:
    """Save one image `[K, F, N]` as a PNG, low bins at the bottom, stretched from its lowest to its highest value.

    Three channels are drawn as red, green and blue; of any other number the first is drawn.
    """
    from PIL import Image

    shown = image if len(image) == 3 else image[:1]
    low, high = float(shown.min()), float(shown.max())
    level = (shown[:, ::-1] - low) / (high - low or 1.0)
    anchors = np.linspace(0, 1, len(_PALETTE))
    colours = level * 255 if len(level) == 3 else [np.interp(level[0], anchors, colour) for colour in _PALETTE.T]
    colour = np.stack([*colours], axis=-1)
    factor = max(1, -(-height // image.shape[1]))
    picture = np.rint(colour).astype(np.uint8).repeat(factor, axis=0).repeat(factor, axis=1)
    Image.fromarray(picture).save(path, optimize=True)


class Progress(lightning.pytorch.callbacks.RichProgressBar):
    """Show a rich progress bar of epochs and batches, refreshed rarely enough to cost nothing."""

    def __init__(self) -> None:
        super().__init__(refresh_rate=4)


class EarlyStopping(lightning.pytorch.callbacks.EarlyStopping):
    """Stop when the monitored metric has not improved for some epochs; a run that was stopped and then cut short stays stopped.

    Lightning's own would train one more epoch after a resume. Arguments are Lightning's (`patience`, `min_delta`, …).
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        del pl_module
        if self.stopped_epoch or self.wait_count >= self.patience:
            trainer.should_stop = True
