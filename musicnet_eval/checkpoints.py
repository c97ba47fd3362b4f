"""When a run's checkpoints are written, how, and how a signal stops it: `best.ckpt`, `last.ckpt`. Layer 4.

`last.ckpt` is written at the end of each epoch, every so many steps if asked for, and when a signal stops the training between.
A run goes on from any of them with the same numbers bit for bit, on a CPU: order and draws derive from seed, epoch and batch, and
what is summed up over an epoch is in the checkpoint.
"""

from __future__ import annotations

import os
import signal
import threading
import zipfile
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, Checkpoint, ModelCheckpoint, WeightAveraging
from lightning.pytorch.plugins.io import TorchCheckpointIO

from musicnet_eval import records, runs
from musicnet_eval.errors import ConfigError


class AtomicCheckpoints(TorchCheckpointIO):
    """Write each checkpoint beside its place and move it there, so that a kill never leaves half a file.

    Lightning's own goes through the system's temporary folder, whose move is no longer atomic on another file system.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        del storage_options
        # `last` is written each epoch and only saves time after a kill: waiting for the disk would cost 5 % of a 10 s epoch.
        with records.replacing(Path(path), durable=Path(path) != runs.last_checkpoint(Path(path).parent.parent)) as temporary:
            torch.save(checkpoint, temporary)


class MovableCheckpoint(ModelCheckpoint):
    """Know the best epoch also where the run's folder has been moved since: Lightning's own forgets it there."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        paths = {name: self._here(state_dict[name]) for name in ("best_model_path", "kth_best_model_path", "last_model_path")}
        scores = {self._here(path): score for path, score in state_dict["best_k_models"].items()}
        super().load_state_dict({**state_dict, **paths, "best_k_models": scores, "dirpath": self.dirpath})

    def _here(self, path: str) -> str:
        return str(Path(str(self.dirpath)) / Path(path).name) if path else path


class StepCheckpoints(Checkpoint):
    """Write `last.ckpt` in mid-epoch too: every so many optimizer steps, and when SIGINT or SIGTERM stops the training.

    A signal lets the present optimizer step end. One that comes between steps and the next epoch (validation, test, set-up), or
    while another is heeded, stops at once: the run then goes on from its last checkpoint.

    Args:
        folder: The run's folder.
        every_n_steps: Optimizer steps between two of them; None writes one for signals alone.

    Raises:
        ConfigError: Steps are given where the middle of an epoch cannot be gone on from exactly.
    """

    def __init__(self, folder: Path, every_n_steps: int | None = None) -> None:
        self.last = runs.last_checkpoint(folder)
        self.every_n_steps = every_n_steps
        self._exact = self._stepping = False
        self._step, self._signal = 0, 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Each process has sums of its own; and Lightning leaves a validation in mid-epoch out where it goes on just before it.
        alone, at_end = trainer.world_size == 1, trainer.val_check_batch == trainer.num_training_batches
        self._exact, self._step, self._signal = alone and at_end, trainer.global_step, 0
        if self.every_n_steps and not self._exact:
            which = "several devices" if not alone else f"trainer.val_check_interval={trainer.val_check_interval}"
            raise ConfigError(
                f"run.checkpoint_every_n_steps={self.every_n_steps} with {which} could not go on with the same numbers. "
                "Use run.checkpoint_every_n_steps=null, which writes last.ckpt at the end of each epoch."
            )
        self._listen()
        if trainer.fit_loop.restarted_mid_epoch:
            # Lightning leaves these hooks out where it goes on in mid-epoch, though callbacks set themselves up there.
            for callback in trainer.callbacks:  # type: ignore[attr-defined]
                callback.on_train_epoch_start(trainer, pl_module)
            pl_module.on_train_epoch_start()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        del trainer, pl_module
        self._stepping = self._exact

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        stepped, self._step = trainer.global_step > self._step, trainer.global_step
        if trainer.is_last_batch or trainer.global_step == trainer.max_steps:  # the end of the epoch writes one of its own
            self._stepping = False
            self._leave_if_asked()
            return
        due = bool(self._signal) or (self.every_n_steps is not None and trainer.global_step % self.every_n_steps == 0)
        if stepped and due:  # gradients that are still being accumulated are in no checkpoint
            trainer.save_checkpoint(self.last)
            self._leave_if_asked()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        del trainer, pl_module
        self._listen()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        del trainer, pl_module
        self._listen()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        del trainer, pl_module, exception
        self._stepping = False

    def _listen(self) -> None:
        """Take the signals from Lightning, which sets its own handler whenever it starts something."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, self._hear)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        del frame
        at_once, self._signal = bool(self._signal) or not self._stepping, number
        if at_once:
            self._leave_if_asked()
        os.write(2, b"stops after this step; once more stops at once\n")  # print could meet itself here

    def _leave_if_asked(self) -> None:
        if self._signal:
            raise SystemExit(128 + self._signal)


def checkpoints(
    folder: Path, monitor: str, mode: str, every_n_steps: int | None = None, others: Sequence[Any] = ()
) -> list[Callback]:
    """Make the checkpoint callbacks: the best by `monitor`, weights only, and the last with all that a resumed run needs.

    Args:
        folder: The run's folder.
        monitor: The metric that says which is best.
        mode: `max` or `min`.
        every_n_steps: Optimizer steps between two checkpoints in mid-epoch; None writes `last.ckpt` at the end of each epoch.
        others: The run's other callbacks. Where one averages weights, the best checkpoint holds more than weights, since
            Lightning puts the averaged weights into whole checkpoints only.
    """
    lean = not any(isinstance(other, WeightAveraging) for other in others)
    common: dict[str, Any] = {
        "dirpath": folder / "checkpoints",
        "enable_version_counter": False,
        "auto_insert_metric_name": False,
    }
    best = MovableCheckpoint(filename="best", monitor=monitor, mode=mode, save_top_k=1, save_weights_only=lean, **common)
    last = MovableCheckpoint(filename="last", monitor=None, save_top_k=1, save_on_train_epoch_end=True, **common)
    return [best, last, StepCheckpoints(folder, every_n_steps)]


def can_go_on(last: Path) -> bool:
    """Say whether a run can go on from a checkpoint: it and those that it calls the best so far are as they were written.

    Args:
        last: The run's `last.ckpt`.
    """
    loaded = _whole(last)
    if loaded is None:
        return False
    states = [state for state in loaded.get("callbacks", {}).values() if isinstance(state, dict)]
    named = {Path(state["best_model_path"]).name for state in states if state.get("best_model_path")} - {last.name}
    return all(_whole(last.parent / name) is not None for name in named)


def _whole(path: Path) -> dict[str, Any] | None:
    """Load one of Lightning's checkpoints if every byte is as it was written, which torch does not check; None if not."""
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:
                return None
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # whatever the damage makes of it
        return None
    return loaded if isinstance(loaded, dict) and "pytorch-lightning_version" in loaded else None
