"""Index functions for data of the user's own: one folder a class, or a manifest as CSV, JSON Lines or Parquet."""

from __future__ import annotations

import csv as csv_module
import importlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from musicnet_eval.contracts import SPLITS, Track
from musicnet_eval.datasets.files import AUDIO_SUFFIXES, audio_files, existing_folder, name_below, readable
from musicnet_eval.errors import DataError

COLUMNS = ("path", "label", "group", "split")
REQUIRED = ("path", "label")


def folder(root: Path | str) -> list[Track]:
    """List a data set that has one folder a class: `root/blues/a.wav`, `root/jazz/album/b.flac`.

    The class is the first folder below the root; every file with an audio suffix below it is a track, its own group.

    Raises:
        DataError: No such folder, no class folders, or no audio below them.
    """
    base = existing_folder(root)
    classes = sorted(p.name for p in base.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not classes:
        raise DataError(
            f"data.root='{base}' holds no class folders. data=folder wants one folder a class, as in "
            f"'{base}/jazz/song.wav'. Point data.root at the folder above the classes, or use data=csv data.manifest=FILE."
        )
    tracks = []
    for name in classes:
        for path in audio_files(base / name):
            identity = name_below(path, base)
            tracks.append(Track(identity, path, (readable(name),), identity))
    if not tracks:
        raise DataError(
            f"data.root='{base}' has {len(classes)} class folders ({', '.join(classes[:5])}) but no audio files in them "
            f"(looked for {', '.join(sorted(AUDIO_SUFFIXES))}). Put audio there, or point data.root elsewhere."
        )
    return tracks


def csv(manifest: Path | str, root: Path | str | None = None) -> list[Track]:
    """List a data set from a manifest with the columns `path,label[,group][,split][,title]`; other columns are ignored.

    Args:
        manifest: CSV file, UTF-8, with a header row. Several labels are joined by `|`.
        root: Folder that relative paths start from; the manifest's own folder when None.

    Raises:
        DataError: No such file, missing columns, an empty cell, an unknown split, or a path listed twice.
    """
    file, base = _places(manifest, root)
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv_module.DictReader(stream)
            _check_columns(file, list(reader.fieldnames or []))
            tracks = [_track(row, f"line {number}", file, base) for number, row in enumerate(reader, start=2)]
    except (OSError, UnicodeDecodeError, csv_module.Error) as error:
        raise _unreadable(file, "a CSV file in UTF-8", error) from None
    return _some(tracks, file)


def jsonl(manifest: Path | str, root: Path | str | None = None) -> list[Track]:
    """List a data set from JSON Lines: one object a line, `{"path": …, "label": …}`, with `group` and `split` where known.

    Args:
        manifest: File in UTF-8. Several labels are a list, or joined by `|`; blank lines and other keys are ignored.
        root: Folder that relative paths start from; the manifest's own folder when None.

    Raises:
        DataError: No such file, a line that is no JSON object, a missing value, or an unknown split.
    """
    file, base = _places(manifest, root)
    tracks = []
    try:
        with file.open(encoding="utf-8-sig") as stream:
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    tracks.append(_track(_json_object(line, number, file), f"line {number}", file, base))
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(file, "JSON Lines in UTF-8", error) from None
    return _some(tracks, file)


def parquet(manifest: Path | str, root: Path | str | None = None) -> list[Track]:
    """List a data set from a Parquet table with the columns `path, label[, group][, split]`; needs the extra `parquet`.

    Args:
        manifest: Parquet file. Several labels are a list, or joined by `|`; other columns are ignored.
        root: Folder that relative paths start from; the manifest's own folder when None.

    Raises:
        DataError: pyarrow is not installed, no such file, missing columns, a missing value, or an unknown split.
    """
    try:
        reader: Any = importlib.import_module("pyarrow.parquet")
    except ModuleNotFoundError:
        raise DataError(
            "data=parquet needs pyarrow, which is not installed: pip install 'musicnet-eval[parquet]'. Or use data=csv."
        ) from None
    file, base = _places(manifest, root)
    try:
        columns = list(reader.read_schema(file).names)
        _check_columns(file, columns)
        rows = reader.read_table(file, columns=[name for name in COLUMNS if name in columns]).to_pylist()
    except (OSError, ValueError) as error:  # pyarrow's own errors are ValueErrors
        raise _unreadable(file, "a Parquet table", error) from None
    return _some([_track(row, f"row {number}", file, base) for number, row in enumerate(rows, start=1)], file)


# --- what they share ----------------------------------------------------------------------------------------------------------


def _places(manifest: Path | str, root: Path | str | None) -> tuple[Path, Path]:
    file = Path(manifest).expanduser()
    base = existing_folder(root) if root is not None else file.parent
    if not file.exists():
        raise DataError(f"data.manifest='{file}' does not exist. Point data.manifest at a file with path and label.")
    return file, base


def _check_columns(file: Path, columns: list[str]) -> None:
    missing = [name for name in REQUIRED if name not in columns]
    if missing:
        raise DataError(
            f"data.manifest='{file}' has the columns {columns}; it lacks {missing}. "
            "Give it a header row path,label[,group][,split][,title]."
        )


def _json_object(line: str, number: int, file: Path) -> Mapping[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError(f"data.manifest='{file}' line {number} is no JSON ({error}). Write one object a line.") from None
    if not isinstance(row, dict):
        raise DataError(f"data.manifest='{file}' line {number} is a {type(row).__name__}. Write one object a line.")
    return row


def _track(row: Mapping[str, Any], where: str, file: Path, base: Path) -> Track:
    path, group, split = (_text(row.get(name)) for name in ("path", "group", "split"))
    given = row.get("label")
    parts: Iterable[Any] = given if isinstance(given, list) else _text(given).split("|")
    labels = tuple(text for text in map(_text, parts) if text)
    if not path or not labels:
        lacking = "label" if path else "path"
        raise DataError(f"data.manifest='{file}' {where} has no {lacking}. Fill it, or remove the line.")
    if split and split not in SPLITS:
        raise DataError(f"data.manifest='{file}' {where} has split={split!r}; it must be train, val or test, or empty.")
    return Track(path, base / Path(path).expanduser(), labels, group or path, split or None)


def _text(value: Any) -> str:
    return "" if value is None else str(value).strip()


def _some(tracks: list[Track], file: Path) -> list[Track]:
    if not tracks:
        raise DataError(f"data.manifest='{file}' has no rows. List at least two tracks of two classes.")
    return tracks


def _unreadable(file: Path, wanted: str, error: Exception) -> DataError:
    return DataError(f"data.manifest='{file}' cannot be read ({error}). Save it as {wanted}.")
