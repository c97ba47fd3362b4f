"""Evaluate a finished run again, perhaps on other data: `musicnet-evaluate RUN_DIR [overrides]`.

The network and its front end are the run's own; only `data.*` and `trainer.*` may be turned. What comes out goes to
`RUN_DIR/evaluations/<hash>/` (`evaluation.json`, `predictions.csv`); the run's own `result.json` is never touched.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import itertools
import logging
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from musicnet_eval import configs, ranks, records, runs
from musicnet_eval.contracts import RunRecord, Track
from musicnet_eval.datasets import assign_splits, fingerprint, split_settings
from musicnet_eval.errors import ConfigError, DataError, MusicnetError, RecordError
from musicnet_eval.pipes import ends_with_reader
from musicnet_eval.recipes import filled

SPLITS = ("val", "test")
TURNABLE = ("data", "trainer", "num_threads", "plugins")


def quiet() -> None:
    """Take out Lightning's own log handlers, which would say everything twice under Hydra, and advice that does not hold here."""
    import lightning  # adds the handlers when it is imported

    for name in (lightning.pytorch.__name__, lightning.fabric.__name__):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.setLevel(logging.WARNING)
    # A warm cache feeds the network from the training process; more loader workers were measured to be slower.
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # Lightning 2.6 with torch from 2.9 on
    warnings.filterwarnings("ignore", message=".*The number of training batches .* is smaller than the logging interval.*")
    warnings.filterwarnings("ignore", message=".*your dataloader is not resumable.*")  # ours begins where the epoch was cut
    warnings.filterwarnings(
        "ignore", message=".*It is recommended to use `self.log.*sync_dist=True.*"
    )  # they are gathered before
    warnings.filterwarnings("ignore", message=".*Checkpoint directory .* exists and is not empty.*")


def score(trainer: Any, model: Any, data: Any) -> tuple[dict[str, float], list[records.Prediction]]:
    """Run a network over validation and test, and give the metrics and one prediction a song."""
    metrics: dict[str, float] = {}
    predictions: list[records.Prediction] = []
    for split in SPLITS:
        metrics |= _measure(trainer, model, data, split)
        predictions += _predictions(split, data, model.last_votes[split])
    return metrics, predictions


def calibrate(trainer: Any, model: Any, data: Any) -> dict[str, float]:
    """Fit a network's temperature on validation, and give what its probabilities were worth before, as `…_uncalibrated`."""
    from musicnet_eval.metrics import OF_PROBABILITIES

    before = {key: value for split in SPLITS for key, value in _measure(trainer, model, data, split).items()}
    model.calibrate()
    return {f"{key}_uncalibrated": value for key, value in before.items() if key.rpartition("/")[2] in OF_PROBABILITIES}


def _measure(trainer: Any, model: Any, data: Any, split: str) -> dict[str, float]:
    from musicnet_eval.trainers import shards

    run = trainer.validate if split == "val" else trainer.test
    heard = copy.deepcopy(model) if shards(trainer) else model  # what was cut into pieces stays so
    run(heard, datamodule=data, verbose=False)
    model.last_votes, model.last_heard = {**model.last_votes, **heard.last_votes}, {**model.last_heard, **heard.last_heard}
    return {key: float(value) for key, value in trainer.callback_metrics.items() if key.startswith(f"{split}/")}


def _predictions(split: str, data: Any, votes: Any) -> list[records.Prediction]:
    from musicnet_eval.metrics import decide

    classes = data.facts.classes
    said = decide(votes.probabilities, multilabel=data.facts.multilabel).tolist()
    rows = []
    for song, chances, named in zip(votes.songs.tolist(), votes.probabilities.tolist(), said, strict=True):
        track: Track = data.tracks[song]
        predicted = "|".join(itertools.compress(classes, named))
        by_class = dict(zip(classes, chances, strict=True))
        rows.append(records.Prediction(split, track.id, track.group, "|".join(sorted(track.labels)), predicted, by_class))
    return rows


def load_weights(model: Any, checkpoint: Path, prefix: str = "", fit: Callable[[dict[str, Any]], None] | None = None) -> None:
    """Load a checkpoint's weights, tensors only; with a prefix, those below it. `fit` may first make the model fit them.

    Raises:
        RecordError: No such file, a file that is no checkpoint or holds more than tensors, or one of another network.
    """
    import pickle
    import zipfile

    import torch

    if not checkpoint.is_file():
        raise RecordError(f"'{checkpoint}' does not exist. Train with run.keep_checkpoints=best, or run it again.")
    try:
        state = torch.load(checkpoint, map_location="cpu", weights_only=True)["state_dict"]
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, TypeError, zipfile.BadZipFile, OSError) as error:
        raise RecordError(f"'{checkpoint}' is not a checkpoint of tensors only ({str(error).splitlines()[0]}).") from None
    state = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    if fit is not None:
        fit(state)
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:3]]
        raise RecordError(f"'{checkpoint}' belongs to another network than its config says: {' '.join(lines)[:300]}") from None


def evaluate(run: Path, overrides: list[str]) -> Path:
    """Evaluate a run and give the folder that holds what came out."""
    record = records.read_result(run)
    config, plugins = _config(record, overrides)
    import lightning
    import torch

    if config["num_threads"]:
        torch.set_num_threads(config["num_threads"])
    quiet()
    split = _split(config["data"])
    if overrides:
        _check_unheard(split, record)
    data = configs.build(config["datamodule"], "datamodule", tracks=split)
    if record["facts"].get("band_statistics"):  # the images stay those of the training, whatever data is turned
        data.spectrogram.learn(record["facts"]["band_statistics"])
    data.setup()
    if list(data.facts.classes) != list(record["facts"]["classes"]):
        differing = sorted(set(data.facts.classes) ^ set(record["facts"]["classes"]))
        raise DataError(f"The data has other classes than the run was trained on; differing: {differing}. Mend data.* to match.")
    if data.facts.multilabel != bool(record["facts"].get("multilabel")):
        raise DataError("The data has one label a song and the run was trained on several, or the other way round. Mend data.*.")
    lightning.seed_everything(config["seed"], workers=True, verbose=False)
    model = configs.build(config["model"], "model", facts=data.facts, num_songs=len(data.tracks))
    load_weights(model, runs.best_checkpoint(run))
    model.temperature = record["facts"].get("temperature") or 1.0
    node = config["trainer"]
    if ranks.several(node):  # a run on several devices is evaluated on one
        node = {**node, "devices": 1, "num_nodes": 1, "strategy": "auto"}
    trainer = configs.build(
        node,
        "trainer",
        logger=False,
        enable_progress_bar=sys.stderr.isatty(),
        enable_model_summary=False,
        enable_checkpointing=False,
        use_distributed_sampler=False,
        default_root_dir=str(run),
    )
    metrics, predictions = score(trainer, model, data)
    name = hashlib.sha256(records.canonical([config, fingerprint(split)]).encode()).hexdigest()[:12]
    folder = run / "evaluations" / name
    records.write_predictions(folder, predictions, data.facts.classes)
    about = {
        "schema": records.SCHEMA,
        "run": record["signature"],
        "overrides": overrides,
        "plugins": plugins,
        "tracks": data.count_tracks(),
        "metrics": metrics,
        "finished": records.now(),
    }
    records.write_json(folder / "evaluation.json", about)
    _print(metrics)
    return folder


def _split(choice: dict[str, Any]) -> list[Track]:
    tracks = configs.build(choice["index"], "data.index")
    return assign_splits(tracks, **split_settings(choice, tracks))


def _check_unheard(split: list[Track], record: RunRecord) -> None:
    """Refuse to test on songs that the run was trained on, as another fold of its own data would."""
    try:
        trained = {track.path.resolve() for track in _split(record["config"]["data"]) if track.split == "train"}
    except DataError as error:
        print(f"note: cannot check that none of these songs was trained on: {error}", file=sys.stderr)
        return
    known = [track for track in split if track.split in SPLITS and track.path.resolve() in trained]
    if known:
        tested = sum(track.split in SPLITS for track in split)
        raise DataError(
            f"{len(known)} of {tested} songs to be tested (first: {known[0].id!r}) were trained on by this run. A test on them "
            "says nothing: leave data.fold, data.folds, data.split_seed and data.protocol as they were, or name other data."
        )


def _config(record: RunRecord, overrides: list[str]) -> tuple[dict[str, Any], list[str]]:
    """Take the stored config, with data and trainer composed anew when something of them is turned."""
    for override in overrides:
        key = override.lstrip("+~").partition("=")[0]
        if "=" not in override or key.split(".")[0] not in TURNABLE:
            raise ConfigError(
                f"{override!r} cannot be turned in an evaluation; only {', '.join(TURNABLE)} can. Train another run."
            )
    config = dict(record["config"])
    plugins: list[str] = []
    if overrides:
        kept = [o for o in record["overrides"] if not o.lstrip("+~").startswith(("hydra", "plugins"))]
        turned = configs.resolved(configs.compose([*kept, *overrides]))
        plugins = turned["plugins"]
        stored_front = config["datamodule"]["spectrogram"]
        config |= {key: turned[key] for key in ("data", "datamodule", "trainer", "num_threads")}
        config["datamodule"] = {**turned["datamodule"], "spectrogram": stored_front, "augment": None}
    configs.import_plugins(plugins)
    stored = [name for name in record["config"].get("plugins", []) if name not in plugins]
    if stored:
        print(f"note: the run was trained with plugins={stored}, which are not imported unless you name them.", file=sys.stderr)
    config = filled(config, record["facts"].get("recipe"))
    parts = {key: config[key] for key in ("data", "datamodule", "model", "trainer")}
    configs.check_stored({**parts, "trained on": record["config"]["data"]}, plugins)
    # The checkpoint brings all weights: nothing is to be fetched, from anywhere.
    model = dict(config["model"])
    model["backbone_options"] = {**model["backbone_options"], "pretrained": False, "checkpoint_path": None}
    return {**config, "model": model}, plugins


def _print(metrics: dict[str, float]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("metric", "value")
    for name, value in sorted(metrics.items()):
        table.add_row(name, f"{value:.4f}")
    Console().print(table)


@ends_with_reader
def main(argv: list[str] | None = None) -> int:
    """Run the command `musicnet-evaluate`."""
    parser = argparse.ArgumentParser(
        prog="musicnet-evaluate",
        description="Evaluate a finished run again on validation and test, perhaps on other data.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=(
            "Only data.* and trainer.* can be turned (and num_threads, plugins); network and front end are the run's own.\n"
            "Writes RUN_DIR/evaluations/<hash>/evaluation.json and predictions.csv, and prints the metrics and that folder.\n\n"
            "examples:\n"
            "  musicnet-evaluate runs/tradition/resnet18-cross_entropy-s0-0123456789ab\n"
            "  musicnet-evaluate RUN_DIR data.hop_seconds=0.5            denser windows\n"
            "  musicnet-evaluate RUN_DIR data=csv data.manifest=my.csv   other songs of the same classes\n\n"
            "exit codes: 0 done; 2 bad usage or input"
        ),
    )
    parser.add_argument(
        "run", type=Path, metavar="RUN_DIR", help="folder of a finished run, with result.json and checkpoints/best.ckpt"
    )
    parser.add_argument("overrides", nargs="*", help="KEY=VALUE, as for musicnet-train")
    given = parser.parse_args(argv)
    try:
        print(evaluate(given.run, given.overrides))
    except MusicnetError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
