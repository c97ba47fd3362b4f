"""Index function for any data set that the library mirdata knows; an optional extra, imported when it is called."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from musicnet_eval.contracts import Track
from musicnet_eval.errors import DataError, nearest

_SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


def mirdata(dataset: str, root: Path | str, label: str = "genre", group: str | None = None, validate: bool = True) -> list[Track]:
    """List a data set through mirdata, after its own check of files and checksums; needs the extra `mirdata`.

    Tracks without audio or without a label are left out. Splits are those of mirdata's tracks, where these have any.

    Args:
        dataset: A name out of `mirdata.list_datasets()`, such as `gtzan_genre`.
        root: Where the local copy lies, mirdata's `data_home`.
        label: Which attribute of mirdata's track is the class; a list makes several labels.
        group: Which attribute says artist, album or work; every track is its own group when None.
        validate: Check every file against mirdata's checksums, which reads the whole data set once.

    Raises:
        DataError: mirdata is not installed, an unknown name, no index, missing or altered files, or an unknown attribute.
    """
    try:
        library: Any = importlib.import_module("mirdata")
    except ModuleNotFoundError:
        raise DataError(
            "data=mirdata needs mirdata, which is not installed: pip install 'musicnet-eval[mirdata]'. Or use data=csv."
        ) from None
    if dataset not in library.list_datasets():
        raise DataError(f"data.dataset={dataset!r} is not one of mirdata's; {nearest(dataset, library.list_datasets())}")
    folder = Path(root).expanduser()
    try:
        source = library.initialize(dataset, data_home=str(folder))
        found = source.load_tracks()
        problems = _problems(folder, *source.validate(verbose=False)) if validate else []
    except FileNotFoundError as error:
        raise DataError(
            f'mirdata cannot list data.dataset={dataset} ({error}). Its index is fetched apart from the audio: python -c "import '
            f"mirdata; mirdata.initialize('{dataset}', data_home='{folder}').download(partial_download=['index'])\""
        ) from None
    except AttributeError:  # mirdata's word for a data set without tracks
        raise DataError(f"data.dataset={dataset} has no tracks in mirdata. Use another data set, or data=csv.") from None
    if problems:
        raise _faulty(dataset, folder, problems)
    tracks = [made for name, track in found.items() if (made := _track(dataset, name, track, label, group)) is not None]
    if not tracks:
        raise DataError(f"mirdata lists no track of {dataset} with audio and data.label={label}. Choose another attribute.")
    return tracks


def _track(dataset: str, name: str, track: Any, label: str, group: str | None) -> Track | None:
    value = _attribute(dataset, track, "label", label)
    labels = tuple(str(one) for one in (value if isinstance(value, (list, tuple)) else [value]) if one not in (None, ""))
    audio = getattr(track, "audio_path", None)
    if not audio or not labels:
        return None
    together = _attribute(dataset, track, "group", group) if group else None
    split = _SPLITS.get(str(getattr(track, "split", None)))
    return Track(str(name), Path(audio), labels, str(together) if together else str(name), split)


def _attribute(dataset: str, track: Any, key: str, name: str) -> Any:
    known = [other for other in dir(track) if not other.startswith("_")]
    if name not in known:
        raise DataError(f"data.{key}={name!r} is no attribute of {dataset}'s tracks; {nearest(name, known)}")
    try:
        return getattr(track, name)
    except (OSError, AttributeError, KeyError, ValueError) as error:  # what mirdata's loaders raise on files that are not theirs
        raise DataError(
            f"mirdata cannot read data.{key}={name} of {dataset}'s track {track.track_id} ({error}). Check the files with "
            "data.validate=true."
        ) from None


def _faulty(dataset: str, folder: Path, problems: list[str]) -> DataError:
    module = importlib.import_module(f"mirdata.datasets.{dataset}")
    remotes = (getattr(module, "REMOTES", None) or {}).values()
    where = ", ".join(dict.fromkeys(remote.url for remote in remotes)) or "the place that mirdata's page on it names"
    licence = " ".join(str(getattr(module, "LICENSE_INFO", "not stated")).split())
    more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
    return DataError(
        f"mirdata faults {len(problems)} files of {dataset} in data.root='{folder}': {'; '.join(problems[:5])}{more}. Get them "
        f"from {where}; licence, in mirdata's words: {licence} Or go on without the check with data.validate=false."
    )


def _problems(folder: Path, missing: Mapping[str, Any], altered: Mapping[str, Any]) -> list[str]:
    """Name missing and altered files out of mirdata's nested answer, from the data set's folder on."""
    parts = (("missing", missing), ("altered", altered))
    return [f"{what} {os.path.relpath(name, folder)}" for what, part in parts for name in sorted(set(_names(part)))]


def _names(part: Any) -> Iterator[str]:
    if isinstance(part, str):
        yield part
    else:
        for value in part.values() if isinstance(part, Mapping) else part:
            yield from _names(value)
