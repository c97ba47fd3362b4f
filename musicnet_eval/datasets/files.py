"""What the index functions share: finding a data set's folder, saying what is missing and where to get it, joining groups."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from musicnet_eval.errors import DataError

_LIBSNDFILE = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aif", ".aiff", ".aifc", ".au", ".snd", ".caf", ".w64")
_FFMPEG = (".aac", ".ac3", ".ape", ".m4a", ".m4b", ".mka", ".mpc", ".tta", ".wma", ".wv")  # through the extra `decode`
AUDIO_SUFFIXES = frozenset((*_LIBSNDFILE, *_FFMPEG))
QUADRANTS = ("Q1", "Q2", "Q3", "Q4")


@dataclass(frozen=True)
class Source:
    """What an error says of a published data set.

    Args:
        name: Its title.
        layout: What its folder holds.
        where: Where it is to be had.
        licence: Its terms, as found.
    """

    name: str
    layout: str
    where: str
    licence: str


def existing_folder(root: Path | str) -> Path:
    """Give a folder that exists.

    Raises:
        DataError: It does not, or is a file.
    """
    base = Path(root).expanduser()
    if not base.is_dir():
        what = "is a file, not a folder" if base.exists() else "does not exist"
        raise DataError(f"data.root='{base}' {what}. Point data.root at the folder that holds the audio.")
    return base


def readable(name: Path | str) -> str:
    """Write a name so that every file and terminal can show it: bytes that are no UTF-8 become `\\xe9`."""
    return os.fsencode(name).decode("utf8", "backslashreplace")


def name_below(path: Path, base: Path) -> str:
    """Name a file by its path below a folder, the same on every machine."""
    return readable(path.relative_to(base).as_posix())


def audio_files(base: Path) -> list[Path]:
    """List the audio files at and below a folder, sorted, without hidden ones."""
    found = []
    for here, subfolders, files in os.walk(base):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        found += [Path(here, name) for name in files if Path(name).suffix.lower() in AUDIO_SUFFIXES and name[0] != "."]
    return sorted(found)


def find_folder(root: Path | str, source: Source, candidates: Sequence[str], holds: Callable[[Path], bool]) -> Path:
    """Give the first of several folders below a root (`.` is the root) that holds the data set.

    Raises:
        DataError: None does; the message says what was looked for and found, where the data set is to be had, and its licence.
    """
    base = Path(root).expanduser()
    for name in candidates:
        folder = base if name == "." else base / name
        if folder.is_dir() and holds(folder):
            return folder
    raise wrong_root(base, source)


def wrong_root(base: Path, source: Source) -> DataError:
    """Make the error of a root that does not hold a data set."""
    if base.is_dir():
        names = sorted(path.name + "/" * path.is_dir() for path in base.iterdir())
        found = f"found {', '.join(names[:8])}{', …' if len(names) > 8 else ''}" if names else "found an empty folder"
    else:
        found = "it is a file" if base.exists() else "it does not exist"
    return DataError(
        f"data.root='{base}' does not hold {source.name}: looked for {source.layout}; {found}. Point data.root at the folder "
        f"that holds it. To be had from {source.where}; licence: {source.licence}. Nothing is downloaded for you."
    )


def read_table(file: Path, required: Sequence[str]) -> Iterator[dict[str, str]]:
    """Read a data set's own CSV table, row by row.

    Raises:
        DataError: The table cannot be read or lacks a column.
    """
    try:
        # Metadata of odd encoding name artists and titles: one replaced letter does no harm.
        with file.open(newline="", encoding="utf-8-sig", errors="replace") as stream:
            reader = csv.DictReader(stream, skipinitialspace=True)
            columns = [name.strip() for name in reader.fieldnames or []]
            missing = [name for name in required if name not in columns]
            if missing:
                raise DataError(
                    f"'{file}' has the columns {columns[:12]}; it lacks {missing}. Take the file as it was published."
                )
            reader.fieldnames = columns
            for row in reader:
                yield {name: (row[name] or "").strip() for name in required}
    except (OSError, csv.Error) as error:
        raise DataError(f"'{file}' cannot be read ({error}). Take the file as it was published.") from None


def suffix_in(folder: Path, default: str) -> str:
    """Give the suffix that the audio files of a folder have; the default where there is none."""
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    known = (Path(name).suffix for name in names if not name.startswith("."))
    return next((suffix for suffix in known if suffix.lower() in AUDIO_SUFFIXES), default)


def join_groups(pairs: Iterable[tuple[str, str]]) -> Callable[[str], str]:
    """Give a function that names the joint group of a name, after joining pairs: what is joined with the same is joined.

    >>> group = join_groups([("b", "a"), ("b", "c")])
    >>> group("c"), group("d")
    ('a', 'd')
    """
    parent: dict[str, str] = {}

    def top(name: str) -> str:
        while name in parent:
            name = parent[name]
        return name

    for one, other in pairs:
        low, high = sorted((top(one), top(other)))
        if low != high:
            parent[high] = low
    return top
