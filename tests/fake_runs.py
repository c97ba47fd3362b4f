"""Whole run folders without training, for the tests of what reads them."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from musicnet_eval import records
from musicnet_eval.records import Prediction

# The smallest PNG: one grey pixel.
PNG = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg==")
CHOICES = {
    "data": "toy",
    "protocol": "group_kfold",
    "fold": 0,
    "spectrogram": "mel",
    "augment": "none",
    "backbone": "resnet18",
    "loss": "cross_entropy",
    "seed": 0,
}


def predictions(correct: int, songs: int, classes: Sequence[str], fold: int = 0, groups: int | None = None) -> list[Prediction]:
    """Give `songs` test rows, classes in turn, of which the first `correct` are right and the others one class further."""
    rows = []
    for i in range(songs):
        true = i % len(classes)
        said = true if i < correct else (true + 1) % len(classes)
        chances = {name: (0.9 if k == said else 0.1 / max(len(classes) - 1, 1)) for k, name in enumerate(classes)}
        group = f"group{i % groups}" if groups else f"song{fold}-{i}"
        rows.append(Prediction("test", f"song{fold}-{i}", group, classes[true], classes[said], chances))
    return rows


def said(
    hits: Sequence[bool], groups: Sequence[str] | None = None, classes: Sequence[str] = ("blues", "jazz")
) -> list[Prediction]:
    """Give one test row a song, right where `hits` says so, in the groups given."""
    rows = predictions(0, len(hits), classes)
    named = groups or [row.song for row in rows]
    return [
        row._replace(predicted=row.label if hit else row.predicted, group=group)
        for row, hit, group in zip(rows, hits, named, strict=True)
    ]


def write_run(
    folder: Path,
    correct: int = 15,
    songs: int = 20,
    classes: Sequence[str] = ("blues", "jazz"),
    metrics: Mapping[str, float | None] | None = None,
    overrides: Iterable[str] = (),
    config: Mapping[str, Any] | None = None,
    epochs: int = 3,
    groups: int | None = None,
    rows: Sequence[Prediction] | None = None,
    pictures: bool = False,
    **choices: Any,
) -> Path:
    """Write a finished run below `folder`; choices (`backbone=`, `seed=`, …) name it as a real one would be named.

    Args:
        folder: Where the run folder goes.
        correct: Test songs said right.
        songs: Test songs.
        classes: Class names.
        metrics: More metrics, or other values for those that follow from `correct` and `songs`.
        overrides: The user's overrides, as the record lists them.
        config: More of the resolved config; a different one makes a different configuration.
        epochs: Rows of `metrics.csv`.
        groups: Number of groups that the songs fall into; None: each song its own.
        rows: Predictions in place of those that follow from `correct` and `songs`; the song accuracy then follows from them.
        pictures: Whether to write one picture a class.
        choices: Entries of the record's `choices` that differ from the usual ones.
    """
    chosen = {**CHOICES, **choices}
    front = {name: chosen[name] for name in ("data", "protocol", "spectrogram", "augment", "backbone", "loss")}
    whole = {"choices": front, **(config or {})}
    repeat = {"seed": chosen["seed"], "fold": chosen["fold"]}
    signature = hashlib.sha256(json.dumps({**whole, **repeat}, sort_keys=True).encode()).hexdigest()[:12]
    if rows is not None and metrics is None:
        metrics = {"test/song/accuracy": sum(row.label == row.predicted for row in rows) / len(rows)}
    run = folder / f"{chosen['backbone']}-{chosen['loss']}-s{chosen['seed']}-{signature}".replace("/", "_")
    accuracy = correct / songs
    numbers = {
        "test/song/accuracy": accuracy,
        "test/song/log_loss": 1.5 - accuracy,
        "test/segment/accuracy": 0.9 * accuracy,
        "val/song/accuracy": accuracy,
        "train/segment/accuracy": 0.95,
        "gap/segment/accuracy": 0.95 - 0.9 * accuracy,
    }
    record = {
        "schema": 1,
        "status": "done",
        "signature": signature,
        "configuration": hashlib.sha256(records.canonical(whole).encode()).hexdigest()[:12],
        "choices": chosen,
        "overrides": [f"seed={chosen['seed']}", *overrides],
        "config": {**whole, "seed": chosen["seed"]},
        "facts": {"classes": list(classes), "multilabel": False, "sample_rate": 22050},
        "metrics": {**numbers, **(metrics or {})},
        "parameters": 11_170_000,
        "seconds": {"setup": 1.0, "fit": 60.0, "test": 4.0, "total": 65.0},
        "throughput": {},
        "hardware": {"device": "cpu"},
        "versions": {"torch": "2.9.0", "timm": "1.0.22"},
        "git": {},
        "started": "2025-01-01T00:00:00+00:00",
        "finished": "2025-01-01T00:01:05+00:00",
    }
    records.write_json(run / records.RESULT, record)
    records.write_predictions(
        run, rows if rows is not None else predictions(correct, songs, classes, chosen["fold"], groups), classes
    )
    write_curves(run, epochs, accuracy)
    if pictures:
        write_pictures(run, classes)
    return run


def write_curves(run: Path, epochs: int, accuracy: float) -> None:
    """Write `metrics.csv`: training goes on rising, validation ends at `accuracy`; train and val in rows of their own."""
    lines = ["epoch,step,train/segment/accuracy,train/segment/loss,val/segment/accuracy,val/segment/loss,val/song/accuracy"]
    for epoch in range(epochs):
        done = (epoch + 1) / epochs
        lines.append(f"{epoch},{10 * epoch},{0.5 + 0.45 * done},{1.2 - done},,,")
        lines.append(f"{epoch},{10 * epoch},,,{accuracy * done**0.3},{1.4 - accuracy * done},{accuracy}")
    records.write_text(run / records.METRICS, "\n".join(lines) + "\n")


def write_pictures(run: Path, classes: Sequence[str], png: bytes = PNG) -> None:
    """Write one PNG a class and the list of them."""
    (run / "pictures").mkdir(parents=True, exist_ok=True)
    listed = []
    for i, name in enumerate(classes):
        (run / "pictures" / f"spectrogram-{i}.png").write_bytes(png)
        listed.append(
            {"class": name, "song": f"{name}/1.wav", "file": f"spectrogram-{i}.png", "caption": f"{name}: 3 s, mel, 64 bins"}
        )
    (run / "pictures" / "spectrograms.json").write_text(json.dumps(listed), encoding="utf8")


def write_hardest(run: Path, songs: Sequence[str], png: bytes = PNG) -> Path:
    """Write pictures of test songs and the list of them."""
    (run / "pictures").mkdir(parents=True, exist_ok=True)
    listed = [{"song": song, "file": f"hardest-{i}.png"} for i, song in enumerate(songs)]
    for entry in listed:
        (run / "pictures" / entry["file"]).write_bytes(png)
    (run / "pictures" / "hardest.json").write_text(json.dumps(listed), encoding="utf8")
    return run


def write_audit(folder: Path, **told: Any) -> Path:
    """Write an audit of 60 tracks with two recordings found twice, one of them across splits."""
    empty: dict[str, list[Any]] = {name: [] for name in ("groups", "bad_files", "known_bad", "silent", "clipped")}
    audit = {
        "schema": 1,
        "kind": "audit",
        "data": "toy",
        "protocol": "group_kfold",
        "fold": 0,
        "tracks": 60,
        "decoded": 60,
        "hours": 1.5,
        "leaks": {"duplicates": 1, "groups": 0},
        "conflicting": 0,
        "findings": {"duplicates": [{}, {}], **empty},
        "written": "2025-01-01T00:00:00+00:00",
    }
    records.write_json(folder / "audit.json", {**audit, **told})
    return folder


def write_failed(run: Path, error: str = "RuntimeError: out of memory") -> Path:
    """Write a failed run."""
    failure = {"error": error, "traceback": f"Traceback …\n{error}", "choices": CHOICES, "overrides": [], "signature": "f" * 12}
    records.write_json(run / records.FAILED, {**failure, "config": {}, "finished": "2025-01-01T00:00:30+00:00"})
    records.write_json(run / records.STATUS, {"state": "failed"})
    return run


def write_status(run: Path, state: str, epoch: int = 3) -> Path:
    """Write a run that is neither done nor failed."""
    records.write_json(run / records.STATUS, {"state": state, "epoch": epoch, "heartbeat": "2025-01-01T00:00:10+00:00"})
    return run
