"""Index function for any data set that the library mirdata knows; an optional extra, imported when it is called."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from musicnet_eval.contracts import Track
from musicnet_eval.errors import DataError, nearest


def mirdata(dataset: str, root: Path | str, label: str = "genre", group: str | None = None, validate: bool = True) -> list[Track]:
    """List a data set through mirdata, after its own check of files and checksums; needs `pip install mirdata`.

    Tracks without audio or without a label are left out.

    Args:
        dataset: A name out of `mirdata.list_datasets()`, such as `gtzan_genre`.
        root: Where the local copy lies, mirdata's `data_home`.
        label: Which attribute of mirdata's track is the class.
        group: Which attribute says artist, album or work; every track is its own group when None.
        validate: Check every file against mirdata's checksums, which reads the whole data set once.

    Raises:
        DataError: mirdata is not installed, an unknown name, no index, missing or altered files, or an unknown attribute.
    """
    try:
        library: Any = importlib.import_module("mirdata")
    except ModuleNotFoundError:
        raise DataError("data=mirdata needs mirdata, which is not installed: pip install mirdata. Or use data=csv.") from None
    if dataset not in library.list_datasets():
        raise DataError(f"data.dataset={dataset!r} is not one of mirdata's; {nearest(dataset, library.list_datasets())}")
    folder = Path(root).expanduser()
    try:
        source = library.initialize(dataset, data_home=str(folder))
        found = source.load_tracks()
        problems = _problems(*source.validate(verbose=False)) if validate else []
    except FileNotFoundError as error:
        raise DataError(
            f'mirdata cannot list data.dataset={dataset} ({error}). Its index is fetched apart from the audio: python -c "import '
            f"mirdata; mirdata.initialize('{dataset}', data_home='{folder}').download(partial_download=['index'])\""
        ) from None
    except RuntimeError:  # mirdata's word for a data set without tracks
        raise DataError(f"data.dataset={dataset} has no tracks in mirdata. Use another data set, or data=csv.") from None
    if problems:
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise DataError(
            f"mirdata faults {len(problems)} files of {dataset} in data.root='{folder}': {'; '.join(problems[:5])}{more}. "
            "Get them again, or go on without the check with data.validate=false."
        )
    tracks = [made for name, track in found.items() if (made := _track(dataset, name, track, label, group)) is not None]
    if not tracks:
        raise DataError(f"mirdata lists no track of {dataset} with audio and data.label={label}. Choose another attribute.")
    return tracks


def _track(dataset: str, name: str, track: Any, label: str, group: str | None) -> Track | None:
    for key, attribute in (("label", label), ("group", group)):
        if attribute and not hasattr(track, attribute):
            known = [other for other in dir(track) if not other.startswith("_")]
            raise DataError(f"data.{key}={attribute!r} is no attribute of {dataset}'s tracks; {nearest(attribute, known)}")
    audio, value = getattr(track, "audio_path", None), getattr(track, label)
    if not audio or value in (None, ""):
        return None
    together = getattr(track, group) if group else None
    return Track(str(name), Path(audio), (str(value),), str(together) if together else str(name))


def _problems(missing: Mapping[str, Any], altered: Mapping[str, Any]) -> list[str]:
    """Name missing and altered files out of mirdata's nested answer."""
    return [f"{what} {name}" for what, part in (("missing", missing), ("altered", altered)) for name in sorted(_names(part))]


def _names(part: Any) -> set[str]:
    if isinstance(part, str):
        return {part}
    values = part.values() if isinstance(part, Mapping) else part
    return {name for value in values for name in _names(value)}
