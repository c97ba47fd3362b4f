"""Look for a learning rate and a batch size before the training begins: Lightning's tuner. Layer 4.

The search runs on a copy of the model with a trainer of its own, so that the training starts from where it would without. What
was found lies in `checkpoints/tuned.json` beside the checkpoints: a resumed run takes it from there and searches no more.
"""

from __future__ import annotations

import contextlib
import copy
import io
import math
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lightning.pytorch.tuner.tuning import Tuner

from musicnet_eval import records
from musicnet_eval.errors import ConfigError

FOUND = "tuned.json"
MIN_LR, MAX_LR = 1e-6, 1.0  # between which the search for a rate rises


def tune(wish: Mapping[str, Any], model: Any, data: Any, make_trainer: Callable[..., Any], folder: Path) -> dict[str, float]:
    """Find what is wished for, set it, and give it by config key: `data.batch_size`, then `optimizer.lr` at that batch size.

    Args:
        wish: The config's `tune`: `lr` and `batch_size` (true or false), `lr_steps`, `max_batch_size`.
        model: Its `make_optimizer` gets the rate.
        data: Its `batch_size` is set.
        make_trainer: Makes a trainer like the run's own, with the arguments given on top.
        folder: The run's folder.

    Raises:
        ConfigError: Nothing sensible can be found.
    """
    if not (wish["lr"] or wish["batch_size"]):
        return {}
    place = folder / "checkpoints" / FOUND
    found: dict[str, float] = records.read_json(place) if place.is_file() else {}
    if not found:
        if wish["batch_size"]:
            found["data.batch_size"] = data.batch_size = _batch_size(model, data, make_trainer, wish["max_batch_size"])
        if wish["lr"]:
            found["optimizer.lr"] = _learning_rate(model, data, make_trainer, wish["lr_steps"], folder)
        records.write_json(place, found)
        print(f"tuned: {' '.join(f'{key}={value:.4g}' for key, value in found.items())}", flush=True)
    if "data.batch_size" in found:
        data.batch_size = int(found["data.batch_size"])
    if "optimizer.lr" in found:
        model.make_optimizer = partial(model.make_optimizer, lr=found["optimizer.lr"])
    return found


def _learning_rate(model: Any, data: Any, make_trainer: Callable[..., Any], steps: int, folder: Path) -> float:
    """Raise the rate from step to step, and take it where the loss fell fastest; the curve goes to `pictures/`."""
    from matplotlib.figure import Figure

    bar = contextlib.nullcontext() if sys.stderr.isatty() else contextlib.redirect_stderr(io.StringIO())
    with tempfile.TemporaryDirectory() as scratch, bar:
        # No epoch may end the search, and none is validated: the search counts steps.
        trainer = make_trainer(default_root_dir=scratch, max_epochs=10**6, check_val_every_n_epoch=10**6)
        finder = Tuner(trainer).lr_find(
            copy.deepcopy(model), datamodule=data, min_lr=MIN_LR, max_lr=MAX_LR, num_training=steps, update_attr=False
        )
    curve = {"lr": [], "loss": []} if finder is None else finder.results
    rate = steepest(curve["lr"], curve["loss"])
    if finder is None or rate is None:
        raise ConfigError(f"tune.lr_steps={steps} found no rate at which the loss falls. Use more steps, or tune.lr=false.")
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    finder.plot(ax=axes)
    axes.axvline(rate, linestyle="--", label=f"optimizer.lr={rate:.2g}")
    axes.legend()
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "pictures" / "learning-rate.png", dpi=100)
    return rate


def steepest(rates: Sequence[float], losses: Sequence[float], skip: int = 10) -> float | None:
    """Give the rate at which the loss falls fastest per decade; None where it falls nowhere.

    Lightning's own suggestion takes the slope per unit of rate: among rates that rise by factors it is largest at the smallest
    ones, where noise alone decides.

    Args:
        rates: Rising by a constant factor.
        losses: Of each step, smoothed; not finite where it diverged.
        skip: First values to leave out, in which the smoothing has seen too little.

    Reference:
        Smith, "Cyclical Learning Rates for Training Neural Networks", WACV 2017 (the range test).
    """
    pairs = [(rate, loss) for rate, loss in zip(rates, losses, strict=False) if math.isfinite(loss)][skip:]
    slopes = [(after[1] - before[1], here[0]) for before, here, after in zip(pairs, pairs[1:], pairs[2:], strict=False)]
    slope, rate = min(slopes, default=(0.0, 0.0))
    return rate if slope < 0 else None


def _batch_size(model: Any, data: Any, make_trainer: Callable[..., Any], largest: int) -> int:
    """Double the batch, from `data.batch_size` on, until memory, the data or `largest` ends it."""
    first, rows = int(data.batch_size), data.count_tracks()["train"]
    limit = min(largest, rows)
    if first >= limit:
        return first
    with tempfile.TemporaryDirectory() as scratch:
        trainer = make_trainer(default_root_dir=scratch, max_epochs=10**6, check_val_every_n_epoch=10**6)
        trials = 1 + int(math.log2(limit / first))
        found = Tuner(trainer).scale_batch_size(copy.deepcopy(model), datamodule=data, init_val=first, max_trials=trials)
    return int(min(found or first, limit))
