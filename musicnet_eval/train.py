"""Train one network on one data set and record what came out: `musicnet-train`, one run or a sweep (`-m`).

The recipe: plan (index, splits, signature, folder; no torch yet) → skip what is done → build data, model, trainer → fit → test
the best epoch → write the record. Heavy imports happen inside, so that `--help` and finished runs cost nothing.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
import zipfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, cast

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from musicnet_eval import configs, environment, jobs, records, runs
from musicnet_eval.contracts import RunRecord, Track
from musicnet_eval.datasets import assign_splits, fingerprint, overlapping_groups, planted, split_settings
from musicnet_eval.errors import DataError, MusicnetError
from musicnet_eval.weights import weight_hashes

OBJECTIVE = "test/song/accuracy"  # printed at the end of a run
UNINDEXED = "unindexed"  # stands for the index fingerprint of a run whose data could not be listed


@dataclass(frozen=True)
class Plan:
    """What is settled before anything heavy is imported: the config, the split tracks, and the run's name and place."""

    config: dict[str, Any]
    written: dict[str, Any]  # the same, fit to be written down: no secrets
    tracks: list[Track]
    signature: str
    configuration: str
    folder: Path
    choices: dict[str, Any]
    overrides: list[str]
    faults: Sequence[planted.Fault] = ()

    @property
    def title(self) -> str:
        c = self.choices
        return f"{c['data']} fold {c['fold']} · {c['backbone']} · {c['loss']} · seed {c['seed']}"


def plan(config: DictConfig) -> Plan:
    """Settle a run's tracks, splits, signature and folder.

    Raises:
        MusicnetError: The config or the data cannot be used.
    """
    plain = configs.resolved(config)
    configs.check(plain)
    configs.import_plugins(plain["plugins"])
    tracks = configs.build(plain["data"]["index"], "data.index")
    if not isinstance(tracks, list) or not all(isinstance(track, Track) for track in tracks):
        raise DataError(f"data.index={plain['data']['index'].get('_target_')} must return a list of Track.")
    settings = split_settings(plain["data"], tracks)
    plain["data"]["protocol"] = settings["protocol"]
    split, faults = planted.plant(assign_splits(tracks, **settings), **plain["data"]["plant"])
    return replace(_named(config, plain, split, fingerprint(split), fingerprint(tracks)), faults=faults)


def _named(config: DictConfig, plain: dict[str, Any], tracks: list[Track], split_index: str, index: str) -> Plan:
    choices = _choices(plain)
    weights = weight_hashes(plain["backbone"], plain["backbone_options"])
    signature = records.signature(plain, split_index, weights)
    written = configs.without_secrets(config)
    written["data"]["protocol"] = plain["data"]["protocol"]
    leaf = runs.leaf(choices["backbone"], choices["loss"], choices["seed"], signature)
    return Plan(
        config=plain,
        written=written,
        tracks=tracks,
        signature=signature,
        configuration=records.configuration(plain, index, weights),
        folder=run_folder(plain, leaf),
        choices=choices,
        overrides=configs.overrides_without_secrets(_raw_overrides()),
    )


def _unindexed(config: DictConfig) -> Plan:
    """Name a run whose data cannot be listed, so that its failure has a place."""
    return _named(config, configs.resolved(config), [], UNINDEXED, UNINDEXED)


def _choices(plain: dict[str, Any]) -> dict[str, Any]:
    picked = HydraConfig.get().runtime.choices
    return {
        "data": plain["data"]["name"],
        "protocol": plain["data"]["protocol"],
        "fold": plain["data"]["fold"],
        "spectrogram": picked.get("spectrogram"),
        "augment": picked.get("augment") or _steps(plain["augment"]),
        "backbone": plain["backbone"],
        "loss": picked.get("loss"),
        "seed": plain["seed"],
    }


def _steps(augment: dict[str, Any]) -> str:
    """Name an augmentation that was chosen as a list, which Hydra has no name for, by its steps."""
    if "_target_" in augment:
        return str(augment["_target_"]).rpartition(".")[2]
    return "+".join(sorted(name for name, step in augment.items() if step is not None)) or "none"


def _raw_overrides() -> list[str]:
    """List what was typed, `${…}` left as it is: read as attributes, Hydra's list would have secrets filled in."""
    return cast(list[str], OmegaConf.to_container(HydraConfig.get().overrides.task, resolve=False))


def run_folder(plain: dict[str, Any], leaf: str) -> Path:
    """Place a run: `<runs>/<experiment or data>/<leaf>`, or where `hydra.run.dir` or `hydra.sweep.dir` say."""
    settings = HydraConfig.get()
    base = Path(plain["paths"]["runs"])
    if settings.mode is RunMode.MULTIRUN:
        given = Path(settings.sweep.dir)
        return (given if given != base else base / group_name(plain)) / leaf
    given = Path(settings.run.dir)
    return given if given != base else base / group_name(plain) / leaf


def group_name(plain: Any) -> str:
    """Name the folder that runs of one kind share: the experiment, or the data set."""
    return str(HydraConfig.get().runtime.choices.get("experiment") or plain["data"]["name"]).replace("/", "_")


# --- one run ------------------------------------------------------------------------------------------------------------------


def fit(planned: Plan) -> RunRecord:
    """Build everything, train, test the best epoch, and give the record."""
    clock, started = [time.perf_counter()], records.now()
    from musicnet_eval.evaluate import calibrate, load_weights, quiet, score
    from musicnet_eval.failures import halved
    from musicnet_eval.trainers import make_trainer
    from musicnet_eval.tuning import tune

    quiet()
    data, model, trainer, watching = _build(planned)
    tuned = tune(planned.config["tune"], model, data, partial(make_trainer, planned.config["trainer"]), planned.folder)
    clock.append(time.perf_counter())
    last = runs.last_checkpoint(planned.folder)
    if last.is_file() and not zipfile.is_zipfile(last):
        print(f"{last} is damaged, as after a power cut: the run begins anew", file=sys.stderr, flush=True)
        last.unlink()
    if last.is_file():
        print(f"goes on from {last}", flush=True)
    trainer.fit(model, datamodule=data, ckpt_path=str(last) if last.is_file() else None, weights_only=True)
    clock.append(time.perf_counter())
    metrics = dict(model.last_training)
    load_weights(model, planned.folder / "checkpoints" / "best.ckpt")
    if model.calibration != "none":
        metrics |= calibrate(trainer, model, data)
    found, predictions = score(trainer, model, data)
    clock.append(time.perf_counter())
    metrics |= found
    for name, sign in (("accuracy", 1), ("log_loss", -1)):
        metrics[f"gap/segment/{name}"] = sign * (metrics[f"train/segment/{name}"] - metrics[f"test/segment/{name}"])
    records.write_predictions(planned.folder, predictions, data.facts.classes)
    _keep(planned.folder, planned.config["run"]["keep_checkpoints"])
    throughput: dict[str, float] = {}
    for watcher in watching:
        throughput |= watcher.result() if hasattr(watcher, "result") else {}
    names = ("setup", "fit", "test")
    seconds = {name: round(after - before, 3) for name, before, after in zip(names, clock, clock[1:], strict=False)}
    return RunRecord(
        schema=records.SCHEMA,
        status="done",
        signature=planned.signature,
        configuration=planned.configuration,
        choices=planned.choices,
        overrides=planned.overrides,
        config=planned.written,
        facts=_facts(planned, data, model, trainer) | {"tuned": tuned, "halved": halved(planned.folder)},
        metrics=metrics,
        parameters=sum(parameter.numel() for parameter in model.backbone.parameters()),
        seconds={**seconds, "total": round(clock[-1] - clock[0], 3)},
        throughput=throughput,
        hardware=environment.hardware(str(trainer.strategy.root_device)),
        versions=environment.versions(),
        git=environment.git(),
        started=started,
        finished=records.now(),
    )


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


def _build(planned: Plan) -> tuple[Any, Any, Any, list[Any]]:
    """Build data, model and trainer, and the callbacks that the config adds."""
    import lightning
    import torch

    from musicnet_eval import callbacks, failures, summary
    from musicnet_eval.trainers import check_monitor, make_trainer

    config = planned.config
    sweeping = HydraConfig.get().mode is RunMode.MULTIRUN
    check_monitor(config["monitor"], config["monitor_mode"], sweeping=sweeping)
    if config["num_threads"]:
        torch.set_num_threads(config["num_threads"])
    lightning.seed_everything(config["seed"], workers=True, verbose=False)
    data = configs.build(config["datamodule"], "datamodule", tracks=planned.tracks)
    data.setup()
    model = configs.build(config["model"], "model", facts=data.facts, num_songs=len(data.tracks))
    watching = [configs.build(node, f"callbacks.{name}") for name, node in config["callbacks"].items()]
    fixed = [callbacks.StepSeed(config["seed"]), callbacks.Heartbeat(planned.folder), summary.RunSummary()]
    fixed.append(failures.FiniteLoss(planned.folder, config["monitor"]))
    fixed += callbacks.checkpoints(planned.folder, config["monitor"], config["monitor_mode"], watching)
    if sys.stderr.isatty():
        fixed.append(callbacks.Progress())
    trainer = make_trainer(
        config["trainer"],
        callbacks=[*fixed, *watching],
        logger=_loggers(planned),
        plugins=[callbacks.AtomicCheckpoints()],
        default_root_dir=str(planned.folder),
        enable_checkpointing=True,
    )
    return data, model, trainer, watching


def _loggers(planned: Plan) -> Any:
    made = []
    for name, node in planned.config["logger"].items():
        extra = {"id": planned.signature, "name": planned.title} if name == "wandb" else {}
        logger = configs.build(node, f"logger.{name}", **extra)
        logger.log_hyperparams(planned.written)
        made.append(logger)
    return made or False


def _keep(folder: Path, keep: str) -> None:
    if keep != "all":
        (folder / "checkpoints" / "last.ckpt").unlink(missing_ok=True)
    if keep == "none":
        (folder / "checkpoints" / "best.ckpt").unlink(missing_ok=True)


# --- the command --------------------------------------------------------------------------------------------------------------


def task(config: DictConfig) -> float | None:
    """Do one run as Hydra calls it. In a sweep a failure is recorded and None is given, so that the others go on."""
    sweeping = HydraConfig.get().mode is RunMode.MULTIRUN
    planned: Plan | None = None
    try:
        planned = plan(config)
        if sweeping:
            jobs.enrol(planned.folder.parent, planned.overrides, planned.folder.name)
        if (stored := _stored(planned)) is not None:
            return stored
        runs.forget_failure(_unindexed(config).folder)  # an earlier try that could not list its data had another name
        with runs.lock(planned.folder):  # another process may be at it: wait, and take what it has found
            stored = _stored(planned)
            return _live(planned) if stored is None else stored
    except (KeyboardInterrupt, SystemExit) as stop:
        if planned is not None and (planned.folder / records.STATUS).exists():
            runs.interrupt(planned.folder)
            print(f"interrupted: {planned.folder}", file=sys.stderr)
        raise SystemExit(130 if isinstance(stop, KeyboardInterrupt) else stop.code) from None
    except Exception as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            traceback.print_exc()
        _record_failure(config, planned, error, sweeping=sweeping)
        if sweeping and config.run.on_error != "stop":
            return None
        raise SystemExit(error.exit_code if isinstance(error, MusicnetError) and not sweeping else 1) from None
    finally:
        _finish_wandb(failed=sys.exc_info()[0] is not None)


def _stored(planned: Plan) -> float | None:
    """Give the monitored metric of a run that is done already; None when it is to be done, or repeated."""
    if planned.config["run"]["force"] or not runs.is_done(planned.folder, planned.signature):
        return None
    print(f"done already: {planned.folder}", flush=True)
    return records.read_result(planned.folder)["metrics"][planned.config["monitor"]]


def _live(planned: Plan) -> float | None:
    print(f"run: {planned.title} → {planned.folder}", flush=True)
    text, asked = OmegaConf.to_yaml(OmegaConf.create(planned.written)), planned.config["run"]
    runs.begin(planned.folder, planned.signature, text, fresh=asked["force"], max_attempts=asked["max_attempts"])
    runs.update_status(planned.folder, overrides=planned.overrides)
    if planned.faults:
        records.write_text(planned.folder / records.PLANTED, planted.to_csv(planned.faults))
    previous = {number: signal.signal(number, _stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        from musicnet_eval.failures import fit_in_memory

        record = fit_in_memory(lambda config: fit(replace(planned, config=config)), planned.config, planned.folder)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    runs.finish(planned.folder, record)
    _say_where_time_went(record["throughput"])
    songs = record["facts"]["tracks"]["test"]
    print(
        f"done: {OBJECTIVE} {record['metrics'][OBJECTIVE]:.3f} on {songs} songs, {record['seconds']['total']:.0f} s", flush=True
    )
    return record["metrics"].get(planned.config["monitor"])


def _say_where_time_went(throughput: dict[str, float]) -> None:
    from musicnet_eval.summary import time_row

    if throughput:
        print(time_row(throughput), flush=True)


def _stop(number: int, frame: FrameType | None) -> None:
    """Leave with the signal's own exit code, 130 or 143; Lightning alone would leave with 1 and 0."""
    del frame
    raise SystemExit(128 + number)


def _record_failure(config: DictConfig, planned: Plan | None, error: Exception, *, sweeping: bool) -> None:
    """Say what went wrong, and write `failed.json` unless a single run never came to have a folder."""
    usage = isinstance(error, MusicnetError)
    print(f"error: {error}" if usage else f"failed: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
    where = planned
    if where is None and sweeping:
        try:
            where = _unindexed(config)
        except Exception:  # a config so broken that it has no name; the message above is all there is
            return
    if where is None:
        return
    if sweeping:
        jobs.enrol(where.folder.parent, where.overrides, where.folder.name)
    elif usage and cast(MusicnetError, error).exit_code == MusicnetError.exit_code:
        runs.forget_failure(where.folder)  # a slip of the keyboard leaves no folder behind
        return
    about = {
        "signature": where.signature,
        "configuration": where.configuration,
        "choices": where.choices,
        "overrides": where.overrides,
        "config": where.written,
    }
    runs.fail(where.folder, error, traceback.format_exc(), about)
    print(f"see {where.folder / records.FAILED}", file=sys.stderr, flush=True)


def _finish_wandb(*, failed: bool) -> None:
    """End this run's W&B run: without it, the next job of a sweep would log into the same one."""
    wandb = sys.modules.get("wandb")
    if wandb is not None and getattr(wandb, "run", None) is not None:
        wandb.finish(exit_code=int(failed))


def main() -> None:
    """Run the command `musicnet-train`."""
    if sys.argv[1:] in (["--help"], ["-h"]):
        print(configs.help_text())
        return
    hydra.main(version_base="1.3", config_path=str(configs.CONF), config_name="train")(task)()


if __name__ == "__main__":
    main()
