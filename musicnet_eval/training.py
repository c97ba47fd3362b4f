"""One run's training: build data, model and trainer, fit, test the best epoch, make the record. Layer 6.

Heavy imports happen inside: who has nothing to train pays for none of them.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from musicnet_eval import configs, environment, ranks, records, runs, wandb_run
from musicnet_eval.contracts import RunRecord
from musicnet_eval.datasets import overlapping_groups
from musicnet_eval.errors import ConfigError
from musicnet_eval.plans import Plan, sweeping


def fit(planned: Plan) -> RunRecord:
    """Build everything, train, test the best epoch, and give the record."""
    clock, started = [time.perf_counter()], records.now()
    from musicnet_eval.failures import halved
    from musicnet_eval.trainers import check_several, make_trainer
    from musicnet_eval.tuning import tune

    planned, recipe, data, model, trainer, watching = _ready(planned)
    check_several(planned.config, trainer, shared=HydraConfig.get().mode is RunMode.MULTIRUN)
    tuned = tune(planned.config["tune"], model, data, partial(make_trainer, planned.config["trainer"]), planned.folder)
    last, best = _cut_short_at(planned.folder), runs.best_checkpoint(planned.folder)
    clock.append(time.perf_counter())
    with _team(planned, trainer):
        trainer.fit(model, datamodule=data, ckpt_path=last, weights_only=True)
        clock.append(time.perf_counter())
        model, metrics = _tested(planned, data, model, trainer)
    clock.append(time.perf_counter())
    throughput: dict[str, float] = {}
    for watcher in watching:
        throughput |= watcher.result() if hasattr(watcher, "result") else {}
    names = ("setup", "fit", "test")
    seconds = {name: round(after - before, 3) for name, before, after in zip(names, clock, clock[1:], strict=False)}
    more = {
        "tuned": tuned,
        "recipe": recipe,
        "halved": halved(planned.folder),
        "best_epoch": _epoch_of(best),
        "wandb": wandb_run.told(),
    }
    record = RunRecord(
        schema=records.SCHEMA,
        status="done",
        signature=planned.signature,
        configuration=planned.configuration,
        choices=planned.choices,
        overrides=planned.overrides,
        config=planned.written,
        facts=_facts(planned, data, model, trainer) | more,
        metrics=metrics,
        parameters=sum(size for name, size in model.sizes.items() if name.startswith("backbone.")),
        seconds={**seconds, "total": round(clock[-1] - clock[0], 3)},
        throughput=throughput,
        hardware={**environment.hardware(str(trainer.strategy.root_device)), **_devices(trainer)},
        versions=environment.versions(),
        git=environment.git(),
        started=started,
        finished=records.now(),
    )
    for logger in trainer.loggers:
        if hasattr(logger, "conclude"):
            logger.conclude(record, data)
    return record


def take_part(planned: Plan) -> None:
    """Train and test in a process that another one leads: the same steps, and nothing is written."""
    planned, _, data, model, trainer, _ = _ready(planned)
    last = runs.last_checkpoint(planned.folder)
    trainer.fit(model, datamodule=data, ckpt_path=str(last) if last.is_file() else None, weights_only=True)
    _tested(planned, data, model, trainer)


def _ready(planned: Plan) -> tuple[Plan, Any, Any, Any, Any, list[Any]]:
    """Build all that a training needs, by the plan with the recipe settled."""
    from musicnet_eval.evaluate import quiet
    from musicnet_eval.recipes import settle

    quiet()
    data = _data(planned)
    config, recipe = settle(planned.config, data.facts, data.cache.folder, planned.folder)
    planned = replace(planned, config=config)
    return planned, recipe, data, *_build(planned, data)


def _team(planned: Plan, trainer: Any) -> ranks.Team:
    """Have the other processes of this run on this host, if there are any."""
    environment_of = getattr(trainer.strategy, "cluster_environment", None)
    return ranks.Team(
        trainer.num_devices if trainer.num_devices * trainer.num_nodes > 1 else 1,
        planned.folder,
        external=environment_of is not None and environment_of.creates_processes_externally,
        threads=planned.config["num_threads"],
        stuck=lambda failure: runs.fail(planned.folder, failure, "", planned.about),
    )


def _devices(trainer: Any) -> dict[str, int]:
    """Say on how many devices a run was: of each host, and in all."""
    return {"devices": trainer.num_devices, "nodes": trainer.num_nodes, "world_size": trainer.world_size}


def _tested(planned: Plan, data: Any, model: Any, trainer: Any) -> tuple[Any, dict[str, float]]:
    """Test the best epoch: give the network with all metrics of the run, and write its predictions."""
    from musicnet_eval.evaluate import calibrate, load_weights, score
    from musicnet_eval.trainers import shards

    metrics = dict(model.last_training)
    if shards(trainer):  # what has been trained is in pieces
        model = configs.build(planned.config["model"], "model", facts=data.facts, num_songs=len(data.tracks))
    load_weights(model, runs.best_checkpoint(planned.folder))
    if model.calibration != "none":
        metrics |= calibrate(trainer, model, data)
    found, predictions = score(trainer, model, data)
    metrics |= found
    for name, sign in (("accuracy", 1), ("log_loss", -1)):
        metrics[f"gap/segment/{name}"] = sign * (metrics[f"train/segment/{name}"] - metrics[f"test/segment/{name}"])
    if trainer.is_global_zero:
        records.write_predictions(planned.folder, predictions, data.facts.classes)
    return model, metrics


def forget_damaged(folder: Path) -> None:
    """Have a run begin anew, loggers and tables too, whose checkpoints cannot be gone on from."""
    from musicnet_eval.checkpoints import can_go_on

    last = runs.last_checkpoint(folder)
    if last.is_file() and not can_go_on(last):
        print(f"checkpoints in {last.parent} are damaged, as after a power cut: the run begins anew", file=sys.stderr, flush=True)
        runs.start_over(folder)


def _cut_short_at(folder: Path) -> str | None:
    """Name the checkpoint from which a run goes on, if it was cut short."""
    last = runs.last_checkpoint(folder)
    if not last.is_file():
        return None
    print(f"goes on from {last}", flush=True)
    return str(last)


def _epoch_of(checkpoint: Path) -> int:
    """Give the epoch, from 0, of a checkpoint's weights."""
    import torch

    return int(torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)["epoch"])


def _facts(planned: Plan, data: Any, model: Any, trainer: Any) -> dict[str, Any]:
    """Say what the data was, and what became of the network beside its numbers."""
    return {
        **asdict(data.facts),
        "tracks": data.count_tracks(),
        "bad_tracks": data.bad_tracks,
        "band_statistics": data.band_statistics,
        "temperature": model.temperature,
        "resized_to": model.resized_to,
        "trainable_parameters": model.trained_parameters(trainer.current_epoch),
        "leaky": bool(overlapping_groups(planned.tracks)),
        "planted": dict(Counter(fault.fault for fault in planned.faults)),
    }


def _data(planned: Plan) -> Any:
    """Build the data module, with all seeds set."""
    import lightning
    import torch

    from musicnet_eval.trainers import check_monitor

    config = planned.config
    check_monitor(config["monitor"], config["monitor_mode"], sweeping=sweeping())
    # torch knows of no control groups: in a container that may use 2 of 64 cores it would start 64 threads
    torch.set_num_threads(config["num_threads"] or min(torch.get_num_threads(), environment.cores()))
    lightning.seed_everything(config["seed"], workers=True, verbose=False)
    data = configs.build(config["datamodule"], "datamodule", tracks=planned.tracks)
    data.setup()
    return data


def _build(planned: Plan, data: Any) -> tuple[Any, Any, list[Any]]:
    """Build model and trainer, and the callbacks that the config adds."""
    from musicnet_eval import callbacks, checkpoints, failures, summary
    from musicnet_eval.trainers import make_trainer

    config = planned.config
    model = configs.build(config["model"], "model", facts=data.facts, num_songs=len(data.tracks))
    watching = [configs.build(node, f"callbacks.{name}") for name, node in config["callbacks"].items()]
    fixed = [callbacks.StepSeed(config["seed"]), callbacks.Heartbeat(planned.folder), summary.RunSummary()]
    fixed.append(failures.FiniteLoss(planned.folder, config["monitor"]))
    every = config["run"]["checkpoint_every_n_steps"]
    fixed += checkpoints.checkpoints(planned.folder, config["monitor"], config["monitor_mode"], every, watching)
    if sys.stderr.isatty():
        fixed.append(callbacks.Progress())
    trainer = make_trainer(
        config["trainer"],
        callbacks=[*fixed, *watching],
        logger=_loggers(planned) if ranks.leads(config["trainer"]) else False,
        plugins=[checkpoints.AtomicCheckpoints()],
        default_root_dir=str(planned.folder),
        enable_checkpointing=True,
    )
    return model, trainer, watching


def _loggers(planned: Plan) -> Any:
    """Make the loggers that the config names; one that says `_partial_: true` is told which run it logs."""
    made = []
    for name, node in planned.config["logger"].items():
        if node is None:
            continue
        if not isinstance(node, dict) or "_target_" not in node:
            raise ConfigError(
                f"logger.{name}={node!r} names no logger (_target_). Choose it with the others: 'logger=[csv,{name}]'."
            )
        extra: dict[str, Any] = {"run": planned} if node.get("_partial_") else {}
        logger = configs.build(node, f"logger.{name}", **extra)
        logger.log_hyperparams(planned.written)
        made.append(logger)
    return made or False
