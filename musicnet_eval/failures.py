"""What fails a training by itself: a loss that is no number, and memory that runs out. Layer 4.

Both end as a `TrainingError`, which says what may help and is recorded in `failed.json`; a batch that does not fit can be halved.
"""

from __future__ import annotations

import gc
import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.memory import garbage_collection_cuda, is_oom_error

from musicnet_eval import records, runs
from musicnet_eval.contracts import RunRecord
from musicnet_eval.errors import TrainingError

HALVED = "halved.json"  # beside the checkpoints, and gone with them: a resumed run does not try again what did not fit
NEVER = torch.iinfo(torch.int64).max


class FiniteLoss(Callback):
    """Fail a run whose loss is no finite number, and say since when.

    The first such step is noted on the device at every step; to read it makes the CPU wait for the device, so it is read every
    `every_steps` steps and at the end of an epoch, and at every step where device and CPU are one.

    Args:
        folder: The run's folder.
        monitor: The metric to name beside the loss.
        every_steps: Steps between two looks on an accelerator.
    """

    def __init__(self, folder: Path, monitor: str, every_steps: int = 50) -> None:
        self.folder = folder
        self.monitor = monitor
        self.every_steps = every_steps
        self._first = torch.tensor(NEVER)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        del trainer
        self._first = torch.tensor(NEVER, device=pl_module.device)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        del batch, batch_idx
        step = trainer.fit_loop.total_batch_idx
        self._first = torch.minimum(self._first, torch.where(torch.isfinite(outputs["loss"].detach()), NEVER, step))
        due = pl_module.device.type == "cpu" or (step + 1) % self.every_steps == 0 or trainer.is_last_batch
        if due and (first := int(self._first)) < NEVER:
            raise self._error(trainer, "training loss", first)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        del pl_module, checkpoint
        if (first := int(self._first)) < NEVER:  # such weights are nothing to go on from
            raise self._error(trainer, "training loss", first)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        del pl_module
        loss = trainer.callback_metrics.get("val/segment/loss")
        if trainer.state.fn == "fit" and loss is not None and not math.isfinite(loss):
            raise self._error(trainer, "validation loss", trainer.fit_loop.total_batch_idx)

    def _error(self, trainer: Trainer, which: str, step: int) -> TrainingError:
        whole = [row for row in records.read_curves(self.folder) if math.isfinite(row.get("train/segment/loss", math.nan))]
        last = {name: value for name, value in whole[-1].items() if math.isfinite(value)} if whole else {}
        shown = ", ".join(f"{name} {last[name]:.4g}" for name in ("train/segment/loss", self.monitor) if name in last)
        before = f"The last epoch before it was {last['epoch']:.0f} ({shown})" if last else "No epoch was whole before"
        wider = "" if trainer.precision == "32-true" else ", trainer.precision=32-true"
        return TrainingError(
            f"The {which} is no finite number at epoch {trainer.current_epoch}, step {step} (both from 0). {before}. "
            f"Lower optimizer.lr, or try trainer.gradient_clip_val=1{wider}.",
            {"epoch": trainer.current_epoch, "step": step, "last_metrics": last},
        )


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether an error means that memory ran out, on whatever device."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or is_oom_error(error):
        return True
    told = str(error)
    signs = ("out of memory", "can't allocate memory", "not enough memory", "CUBLAS_STATUS_ALLOC_FAILED")
    return isinstance(error, RuntimeError) and any(sign in told for sign in signs)


def fit_in_memory(fit: Callable[[dict[str, Any]], RunRecord], config: dict[str, Any], folder: Path) -> RunRecord:
    """Train; where memory runs out and `run.on_oom=halve_batch`, start afresh with half the batch and twice the accumulation.

    Args:
        fit: Trains a run of the given config and gives its record.
        config: The resolved config.
        folder: The run's folder.

    Raises:
        TrainingError: Memory ran out, and the batch is not to be halved, or cannot be.
    """
    config = _with_batch(config, halved(folder))
    while True:
        try:
            return fit(config)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            size, told = config["data"]["batch_size"], next(iter(str(error).splitlines()), type(error).__name__)
            smaller = _halve(config)
            if not smaller or config["run"]["on_oom"] == "fail":
                raise TrainingError(_remedy(size, smaller, told), {"data.batch_size": size}) from error
        # Out of the handler: until here the error's traceback has held what filled the memory.
        print(
            f"out of memory with data.batch_size={size} ({told[:200]}); tries again with {smaller}", file=sys.stderr, flush=True
        )
        gc.collect()
        garbage_collection_cuda()
        runs.start_over(folder)
        records.write_json(folder / "checkpoints" / HALVED, smaller)
        config = _with_batch(config, smaller)


def halved(folder: Path) -> dict[str, int]:
    """Give the batch that a run was halved to, by config key; nothing where the one asked for is used."""
    place = folder / "checkpoints" / HALVED
    return records.read_json(place) if place.is_file() else {}


def _halve(config: Mapping[str, Any]) -> dict[str, int]:
    """Give half the batch with twice the accumulation; nothing where the product would change, or a batch of one would result."""
    size, steps = config["data"]["batch_size"], config["trainer"].get("accumulate_grad_batches") or 1
    if size % 2 or size < 4:
        return {}
    return {"data.batch_size": size // 2, "trainer.accumulate_grad_batches": 2 * steps}


def _with_batch(config: dict[str, Any], batch: Mapping[str, int]) -> dict[str, Any]:
    if not batch:
        return config
    size = {"batch_size": batch["data.batch_size"]}
    steps = {"accumulate_grad_batches": batch["trainer.accumulate_grad_batches"]}
    return {
        **config,
        "data": {**config["data"], **size},
        "datamodule": {**config["datamodule"], **size},
        "trainer": {**config["trainer"], **steps},
    }


def _remedy(size: int, smaller: Mapping[str, int], told: str) -> str:
    rest = "a shorter data.segment_seconds, or a smaller backbone"
    if not smaller:
        return f"Memory ran out with data.batch_size={size}, which cannot be halved ({told[:200]}). Take {rest}."
    asked = " ".join(f"{key}={value}" for key, value in smaller.items())
    return (
        f"Memory ran out with data.batch_size={size} ({told[:200]}). Take {asked}, which gives the same batch to each optimizer "
        f"step, or run.on_oom=halve_batch, which does so by itself; else {rest}."
    )
