"""Run records: sign, write, find and read them. The one bridge between training and reporting; imports no torch.

A run folder holds `status.json` (replaced atomically while the run lives), then either `result.json` (once, last: it exists only
when the run is whole) or `failed.json` (traceback and config; removed on success), beside `config.yaml`, `predictions.csv`,
`metrics.csv`, `pictures/` and `checkpoints/`. A record written by anyone can be ranked.

A *signature* names a run by what can change its numbers; a *configuration* is the same without seed and fold, so that the seeds
and folds of one choice of data, front end, network and loss fall together in one row of a table.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import math
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, cast

from musicnet_eval.contracts import RunRecord
from musicnet_eval.errors import RecordError

SCHEMA = 1
RESULT, FAILED, STATUS, CONFIG = "result.json", "failed.json", "status.json", "config.yaml"
PREDICTIONS, METRICS = "predictions.csv", "metrics.csv"
PLANTED, SUSPECTS = "planted.csv", "suspect_labels.csv"
CONSOLE = "console.log"  # what a run in a process of its own has printed
LOGS = "logs"  # what loggers other than our own keep in a run's folder

# Keys that cannot change a run's numbers. A key that is not listed here does, until shown otherwise.
NOT_IN_SIGNATURE = (
    "hydra",
    "logger",
    "num_threads",
    "paths",
    "run",
    "data.name",
    "data.root",
    "data.manifest",  # where the list lies; what it says is in the index fingerprint
    "data.index.root",
    "data.index.manifest",
    "data.audio_root",
    "data.index.audio_root",
    "data.validate",  # checks files, changes none
    "data.index.validate",
    "data.allow_group_overlap",  # what it lets pass is in the index fingerprint
    "data.cache_dir",
    "data.cache_max_gb",
    "data.num_workers",
    "data.plant",  # what it changes is in the fingerprint of the split index
    "datamodule.cache_dir",
    "datamodule.cache_max_gb",
    "datamodule.num_workers",
)
NOT_IN_CONFIGURATION = (
    *(key for key in NOT_IN_SIGNATURE if key != "data.plant"),
    *("seed", "datamodule.seed", "data.fold", "data.plant.seed"),
)
# Callbacks that only look at a run; any other callback may change it and counts.
LOOKING_CALLBACKS = (
    "musicnet_eval.callbacks.MetricsTable",
    "musicnet_eval.callbacks.Pictures",
    "musicnet_eval.callbacks.Throughput",
    "musicnet_eval.label_trust.LabelTrust",
    "musicnet_eval.wandb_logger.Histograms",
    "lightning.pytorch.callbacks.LearningRateMonitor",
)


# --- identity -----------------------------------------------------------------------------------------------------------------


def signature(config: Mapping[str, Any], index: str, weights: Mapping[str, str] | None = None) -> str:
    """Name a run by all that can change its numbers.

    Args:
        config: The resolved configuration as plain containers.
        index: Fingerprint of the tracks with their splits (`datasets.fingerprint`).
        weights: Hash of each named weight file.

    Returns:
        12 hexadecimal digits, the same for 1 and 1.0, for 1e-3 and 0.001, and for any order of keys.
    """
    return _digest(_without(config, NOT_IN_SIGNATURE), index, weights)


def configuration(config: Mapping[str, Any], index: str, weights: Mapping[str, str] | None = None) -> str:
    """Name what seeds and folds repeat: the signature without seed and fold. `index` is that of the tracks before splitting."""
    plant = config.get("data", {}).get("plant") or {}
    nothing = () if plant.get("wrong_labels") or plant.get("imbalance") else ("data.plant",)
    return _digest(_without(config, (*NOT_IN_CONFIGURATION, *nothing)), index, weights)


def _digest(config: Mapping[str, Any], index: str, weights: Mapping[str, str] | None) -> str:
    text = canonical({"config": config, "index": index, "weights": dict(weights or {})})
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def canonical(value: Any) -> str:
    """Write plain containers as JSON in one way only: sorted keys, and whole floats as integers."""
    return json.dumps(_whole(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def _whole(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _whole(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_whole(item) for item in value]
    if isinstance(value, float):
        if not math.isfinite(value):
            return str(value)
        if value.is_integer():
            return int(value)
    return value


def _without(config: Mapping[str, Any], dropped: Iterable[str]) -> dict[str, Any]:
    kept = json.loads(json.dumps(config, default=str))
    for key in dropped:
        *parents, leaf = key.split(".")
        node: Any = kept
        for parent in parents:
            node = node.get(parent) if isinstance(node, dict) else None
        if isinstance(node, dict):
            node.pop(leaf, None)
    callbacks = kept.get("callbacks")
    if isinstance(callbacks, dict):
        kept["callbacks"] = {
            name: node
            for name, node in callbacks.items()
            if isinstance(node, dict) and node.get("_target_") not in LOOKING_CALLBACKS
        }
    return cast(dict[str, Any], kept)


def file_hash(path: Path) -> str:
    """Hash a weight file's bytes (SHA-256, 16 hexadecimal digits)."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


# --- writing ------------------------------------------------------------------------------------------------------------------


def now() -> str:
    """Give the present time as ISO 8601 in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@contextlib.contextmanager
def replacing(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Lend a temporary path beside `path` that takes its place when the block ends well: readers never see half a file.

    Args:
        path: What is written.
        durable: Wait until the disk has it, against a power cut; a killed process leaves whole files either way.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        if durable:
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, in UTF-8 and with the line ends as given."""
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf8") as file:
        file.write(text)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write strict JSON atomically; numbers that are not finite become null, since JSON has no word for them."""
    write_text(path, json.dumps(finite(value), indent=1, allow_nan=False) + "\n")


def finite(value: Any) -> Any:
    """Copy plain containers with null in place of numbers that are not finite."""
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


# --- reading ------------------------------------------------------------------------------------------------------------------


def read_json(path: Path) -> dict[str, Any]:
    """Read one JSON object, or say what is wrong with the file."""
    try:
        value = json.loads(path.read_text(encoding="utf8"))
    except FileNotFoundError:
        raise RecordError(f"'{path}' does not exist. Give the folder of a run, or of a sweep, that holds it.") from None
    except (OSError, ValueError, RecursionError) as error:  # ValueError: no UTF-8, no JSON, or a number of 5,000 digits
        raise RecordError(f"'{path}' is not readable JSON ({error}). Run it again with run.force=true, or remove it.") from None
    if not isinstance(value, dict):
        raise RecordError(f"'{path}' holds a {type(value).__name__}, not an object. It was not written by musicnet-train.")
    return value


def read_result(run: Path) -> RunRecord:
    """Read a run's `result.json`, checked: schema 1, every field there and of its type."""
    path = run / RESULT
    record = read_json(path)
    if record.get("schema") != SCHEMA:
        raise RecordError(f"'{path}' has schema {record.get('schema')!r}; this version reads schema {SCHEMA}. Run it again.")
    fields: dict[str, type | tuple[type, ...]] = {
        "status": str,
        "signature": str,
        "configuration": str,
        "choices": dict,
        "overrides": list,
        "config": dict,
        "facts": dict,
        "metrics": dict,
        "parameters": int,
        "seconds": dict,
        "throughput": dict,
    }
    for name, kind in fields.items():
        if not isinstance(record.get(name), kind):
            raise RecordError(f"'{path}' has no usable field '{name}'. It is half-written or foreign; run it again.")
    for field in ("metrics", "seconds", "throughput"):
        for name, value in record[field].items():
            if not _is_number(value):
                raise RecordError(f"'{path}' gives {field} {name!r} as {value!r}, which is no number. Run it again.")
    for name, value in (("parameters", record["parameters"]), ("temperature", record["facts"].get("temperature"))):
        if not _is_number(value):
            raise RecordError(f"'{path}' gives {name} as {str(value)[:40]!r}, which is no number. Run it again.")
    if not all(isinstance(item, str) for item in record["overrides"]):
        raise RecordError(f"'{path}' lists overrides that are not text. It is half-written or foreign; run it again.")
    return cast(RunRecord, record)


def _is_number(value: Any) -> bool:
    """Accept null and what is not finite (no such number), and what can be summed as floats; true and false are no numbers."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return True
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 2**1000


class Prediction(NamedTuple):
    """One row of `predictions.csv`: what a run says of one song. Several labels are joined by `|`."""

    split: str
    song: str
    group: str
    label: str
    predicted: str
    probabilities: dict[str, float]


def write_predictions(run: Path, rows: Iterable[Prediction], classes: Iterable[str]) -> None:
    """Write `predictions.csv`: one row a song, one `prob_<class>` column a class."""
    names = list(classes)
    with replacing(run / PREDICTIONS) as temporary, temporary.open("w", newline="", encoding="utf8") as file:
        writer = csv.writer(file)
        writer.writerow(["split", "song", "group", "label", "predicted", *(f"prob_{name}" for name in names)])
        for row in rows:
            numbers = (f"{row.probabilities[name]:.6g}" for name in names)
            writer.writerow([row.split, row.song, row.group, row.label, row.predicted, *numbers])


def read_predictions(run: Path) -> list[Prediction]:
    """Read `predictions.csv`, checked: its columns are there, every probability is a number."""
    path = run / PREDICTIONS
    try:
        with path.open(newline="", encoding="utf8") as file:
            reader = csv.DictReader(file)
            columns = reader.fieldnames or []
            missing = {"split", "song", "group", "label", "predicted"}.difference(columns)
            if missing:
                raise RecordError(f"'{path}' lacks the columns {sorted(missing)}. Run musicnet-evaluate on its run again.")
            chances = [name for name in columns if name.startswith("prob_")]
            rows = []
            for line in reader:
                if None in line or None in line.values():
                    raise ValueError(f"line {reader.line_num} has not {len(columns)} cells")
                numbers = {name.removeprefix("prob_"): float(line[name]) for name in chances}
                texts = (line["split"], line["song"], line["group"], line["label"], line["predicted"])
                rows.append(Prediction(*texts, numbers))
            return rows
    except FileNotFoundError:
        raise RecordError(f"'{path}' does not exist. The run is not whole; run it again.") from None
    except (OSError, csv.Error, ValueError) as error:
        raise RecordError(f"'{path}' is damaged ({error}). Run it again with run.force=true.") from None


def read_curves(run: Path) -> list[dict[str, float]]:
    """Read `metrics.csv`: one dictionary a row, empty cells left out. A last row cut short by a kill is left out too."""
    path = run / METRICS
    try:
        with path.open(newline="", encoding="utf8") as file:
            reader = csv.DictReader(file)
            width = len(reader.fieldnames or [])
            rows = []
            for line in reader:
                if None in line or sum(value is not None for value in line.values()) != width:
                    continue
                with contextlib.suppress(ValueError):
                    rows.append({name: float(value) for name, value in line.items() if value != ""})
            return rows
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise RecordError(f"'{path}' is damaged ({error}). Run it again with run.force=true.") from None


def find_runs(folders: Iterable[Path]) -> list[Path]:
    """Find every run folder at or below the given folders, each once, sorted by path.

    Raises:
        RecordError: A folder does not exist.
    """
    found: set[Path] = set()
    for folder in folders:
        if not folder.is_dir():
            raise RecordError(f"'{folder}' is not a folder. Give a run folder, or a folder that holds runs (default: runs).")
        for here, subfolders, files in os.walk(folder):
            if not {RESULT, FAILED, STATUS}.isdisjoint(files):
                found.add(Path(here).resolve())
                subfolders.clear()  # what lies inside a run (its evaluations) is that run's own
            subfolders[:] = [name for name in subfolders if not name.startswith(".")]
    return sorted(found)


def state(run: Path) -> str:
    """Say how a run stands: `done` by its record alone, `failed`, `running`, `interrupted`, or `unknown` by damaged files."""
    with contextlib.suppress(RecordError):
        if (run / RESULT).exists() and read_result(run):
            return "done"
    try:
        told = str(read_json(run / STATUS).get("state", "unknown"))
    except RecordError:
        told = "unknown"
    if told == "done":
        told = "unknown"  # its record is gone, or cannot be read
    tried_again = told in ("running", "interrupted")  # the earlier failure stays on disk until the run is whole
    return "failed" if (run / FAILED).exists() and not tried_again else told
