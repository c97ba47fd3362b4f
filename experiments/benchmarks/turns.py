"""A callback that lets the bare loop and our trainer take turns, epoch by epoch, on the same segments (`plugins=[turns]`).

Before each of the trainer's epochs the bare loop does the same one: the same int16 segments in the same batches, from memory,
on a copy of the same network that began with the same weights. All that happens from the end of the bare epoch to the start of
the next one counts as ours: reading segments, hooks, metrics, validation, checkpoints, tables.
"""

from __future__ import annotations

import copy
import itertools
import json
import time
from pathlib import Path
from typing import Any

import torch
from bare import Batches, accuracy, train_epoch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback


def clocks() -> tuple[float, float]:
    """Give wall time and this process's CPU time, seconds."""
    return time.perf_counter(), time.process_time()


class Turns(Callback):
    """Time the bare loop's epochs and the trainer's in turn.

    Args:
        results: JSON file to write when training ends: `bare` and `ours`, each a list of (wall, CPU) seconds an epoch, and
            whether both networks ended with equal weights.
    """

    def __init__(self, results: str) -> None:
        self.results = Path(results)
        self.seconds: dict[str, list[tuple[float, float]]] = {"bare": [], "ours": []}
        self.began: tuple[float, float] | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        self.network = copy.deepcopy(pl_module.backbone)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=1e-3, weight_decay=0.01)
        self.front = data.spectrogram
        self.validation = self._held(data.val_dataloader(), trainer.limit_val_batches)

    @staticmethod
    def _held(loader: Any, limit: int | float) -> Batches:
        batches = itertools.islice(loader, limit if isinstance(limit, int) else None)
        return [(batch["audio"], batch["label"]) for batch in batches]

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        del pl_module
        self._stop("ours")
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        batches = self._held(data.train_dataloader(), trainer.limit_train_batches)
        deterministic = torch.are_deterministic_algorithms_enabled()
        torch.use_deterministic_algorithms(False)  # a bare loop would not have asked for it  # noqa: FBT003
        self.began = clocks()
        train_epoch(self.network, self.optimizer, self.front, batches)
        accuracy(self.network, self.front, self.validation)
        self._stop("bare")
        torch.use_deterministic_algorithms(deterministic, warn_only=True)
        del batches
        self.began = clocks()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        del trainer
        self._stop("ours")
        pairs = zip(self.network.state_dict().values(), pl_module.backbone.state_dict().values(), strict=True)
        equal = all(torch.equal(bare, ours) for bare, ours in pairs)
        self.results.write_text(json.dumps({**self.seconds, "equal": equal}), encoding="utf8")

    def _stop(self, whose: str) -> None:
        if self.began is not None:
            wall, cpu = clocks()
            self.seconds[whose].append((wall - self.began[0], cpu - self.began[1]))
            self.began = None
