"""Index functions of the genre sets: GTZAN, FMA, ISMIR2004. Their traps and licences: docs/data.md."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path

from musicnet_eval.contracts import Track
from musicnet_eval.datasets.files import AUDIO_SUFFIXES, Source, audio_files, find_folder, name_below, wrong_root
from musicnet_eval.errors import DataError, nearest

# --- GTZAN --------------------------------------------------------------------------------------------------------------------

GTZAN_GENRES = ("blues", "classical", "country", "disco", "hiphop", "jazz", "metal", "pop", "reggae", "rock")
GTZAN = Source(
    "GTZAN",
    "genres/, genres_original/ or ten genre folders with files such as blues/blues.00000.wav or .au",
    "https://www.kaggle.com/datasets/andradaolteanu/gtzan-dataset-music-genre-classification or "
    "https://huggingface.co/datasets/marsyas/gtzan (the first source, marsyas.info, is gone)",
    "none stated; excerpts of commercial recordings, for research",
)
_GTZAN_NAME = re.compile(rf"({'|'.join(GTZAN_GENRES)})\.(\d{{5}})(\.\w+)", re.IGNORECASE)


def gtzan(root: Path | str) -> list[Track]:
    """List the 1000 tracks of GTZAN; artists are not known to us, so every track is its own group.

    Args:
        root: Holds `genres/`, `genres_original/`, `Data/genres_original/`, the ten genre folders, or the files themselves.

    Raises:
        DataError: No such data set there, or a file with a number that the data set does not have.
    """
    places = (".", "genres", "genres_original", "Data/genres_original", "gtzan_genre/genres", "gtzan/genres")
    base = find_folder(root, GTZAN, places, lambda folder: next(_gtzan_files(folder), None) is not None)
    found = {path.stem.lower(): path for path in _gtzan_files(base)}
    names = [(genre, f"{genre}.{number:05d}") for genre in GTZAN_GENRES for number in range(100)]
    strange = sorted(found.keys() - {name for _, name in names})
    if strange:
        raise DataError(f"data.root='{base}' holds {strange[:3]}: GTZAN has 00000 to 00099 of a genre. Use data=folder for it.")
    some = next(iter(found.values()))  # a file that is missing is named where it would lie
    below = some.parent != base
    return [
        Track(name, found.get(name, base / (genre if below else "") / f"{name}{some.suffix}"), (genre,), name)
        for genre, name in names
    ]


def _gtzan_files(base: Path) -> Iterator[Path]:
    for folder in (base, *(base / genre for genre in GTZAN_GENRES)):
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            match = _GTZAN_NAME.fullmatch(path.name)
            if match and match[3].lower() in AUDIO_SUFFIXES:
                yield path


# --- FMA ----------------------------------------------------------------------------------------------------------------------

FMA_SUBSETS = {"small": ("small",), "medium": ("small", "medium"), "large": ("small", "medium", "large")}
FMA_SUBSETS["full"] = FMA_SUBSETS["large"]
FMA = Source(
    "FMA",
    "fma_metadata/tracks.csv and beside it fma_small/000/000002.mp3 (or fma_medium/, fma_large/, fma_full/)",
    "https://github.com/mdeff/fma (fma_metadata.zip and fma_small.zip, 7.2 GiB; medium 22, large 93, full 879 GiB)",
    "metadata CC BY 4.0; each track under the Creative Commons licence its artist chose",
)
_FMA_SPLITS = {"training": "train", "validation": "val", "test": "test"}
_FMA_COLUMNS = (("set", "split"), ("set", "subset"), ("track", "genre_top"), ("artist", "id"))


def fma(root: Path | str, subset: str = "small") -> list[Track]:
    """List a subset of FMA with its official splits; a track's class is its top genre, its group the artist.

    Tracks without a top genre, which only `large` and `full` have, are left out.

    Args:
        root: Holds `fma_metadata/` and the audio folder of the subset, or of a larger one with clips of the same length.
        subset: `small` (8,000 tracks, 8 genres), `medium` (25,000, 16), `large` or `full` (106,574; with a genre 49,598).

    Raises:
        DataError: An unknown subset, no such data set there, or a table that is not FMA's.
    """
    if subset not in FMA_SUBSETS:
        raise DataError(f"data.subset={subset!r} is no subset of FMA; {nearest(subset, FMA_SUBSETS)}")
    base = Path(root).expanduser()
    tables = ("fma_metadata", "fma_metadata/fma_metadata", ".", "../fma_metadata")
    table = find_folder(base, FMA, tables, lambda folder: (folder / "tracks.csv").is_file()) / "tracks.csv"
    larger = ["full"] if subset == "full" else ["small", "medium", "large"][("small", "medium", "large").index(subset) :]
    places = [place for name in larger for place in (f"fma_{name}/fma_{name}", f"fma_{name}")]
    audio = find_folder(base, FMA, [*places, "."], lambda folder: any(folder.glob("[0-9][0-9][0-9]")))
    tracks = []
    for number, split, member, genre, artist in _fma_rows(table):
        if member in FMA_SUBSETS[subset] and genre:
            name = f"{int(number):06d}"
            path = audio / name[:3] / f"{name}.mp3"
            tracks.append(Track(name, path, (genre,), f"artist {artist}" if artist else name, _FMA_SPLITS.get(split)))
    if not tracks:
        raise DataError(f"'{table}' lists no track of data.subset={subset} with a top genre. Take fma_metadata.zip as published.")
    return tracks


def _fma_rows(table: Path) -> Iterator[tuple[str, ...]]:
    """Give number, split, subset, top genre and artist of each track; the table has three header rows."""
    limit = csv.field_size_limit(2**24)  # artists' biographies can be long
    try:
        with table.open(newline="", encoding="utf-8-sig", errors="replace") as stream:
            reader = csv.reader(stream)
            header = list(zip(next(reader, []), next(reader, []), strict=False))
            next(reader, None)
            missing = [".".join(column) for column in _FMA_COLUMNS if column not in header]
            if missing:
                raise DataError(
                    f"'{table}' lacks the columns {missing}. Take tracks.csv of fma_metadata.zip, not raw_tracks.csv."
                )
            columns = [0, *(header.index(column) for column in _FMA_COLUMNS)]
            for row in reader:
                yield tuple(row[column].strip() for column in columns)
    except (OSError, csv.Error, IndexError) as error:
        raise DataError(f"'{table}' cannot be read ({error}). Take it as published, from {FMA.where}.") from None
    finally:
        csv.field_size_limit(limit)


# --- ISMIR2004 ----------------------------------------------------------------------------------------------------------------

ISMIR2004 = Source(
    "ISMIR2004 Genre",
    "audio/training/classical/ARTIST/ALBUM/TRACK.mp3, audio/evaluation/ likewise, audio/development/ and "
    "metadata/development/ground_truth.csv",
    "https://zenodo.org/record/1302992",
    "CC BY-NC-SA 1.0",
)
_ISMIR_MERGED = {"jazz_blues": ("jazz", "blues"), "metal_punk": ("metal", "punk"), "rock_pop": ("rock", "pop")}
_ISMIR_CLASSES = {name: name for name in ("classical", "electronic", "world", *_ISMIR_MERGED)}
_ISMIR_CLASSES |= {part: name for name, parts in _ISMIR_MERGED.items() for part in parts}


def ismir2004(root: Path | str) -> list[Track]:
    """List the ISMIR2004 genre contest: training trains, development validates, evaluation tests; the group is the artist.

    Artists of the development part are anonymous (`artist_14_album_1_track_2.mp3`): they form groups, but under other names.

    Args:
        root: Holds `audio/` and `metadata/`, or is a folder above (`ismir04_genre/`).

    Raises:
        DataError: No such data set there, or a class that it does not have.
    """
    base = find_folder(root, ISMIR2004, (".", "ismir04_genre"), lambda folder: (folder / "audio/training").is_dir())
    tracks = []
    for part, split in (("training", "train"), ("evaluation", "test")):
        for path in audio_files(base / "audio" / part):
            genre, *artist = path.relative_to(base / "audio" / part).parts[:-1] or ("",)
            name = name_below(path, base / "audio")
            tracks.append(Track(name, path, (_ismir_class(genre, path),), artist[0] if artist else name, split))
    if not tracks:
        raise wrong_root(base, ISMIR2004)
    return tracks + list(_ismir_development(base))


def _ismir_development(base: Path) -> Iterator[Track]:
    truth = base / "metadata" / "development" / "ground_truth.csv"
    if not (base / "audio" / "development").is_dir():
        return  # without it, `official` takes val from train
    if not truth.is_file():
        raise DataError(f"'{truth}' is missing, which says the classes of audio/development. Take it from {ISMIR2004.where}.")
    with truth.open(newline="", encoding="utf-8-sig", errors="replace") as stream:
        for row in csv.reader(stream, skipinitialspace=True):
            if len(row) >= 2 and Path(row[0]).suffix.lower() == ".mp3":
                file = Path(row[0].strip()).name
                path = base / "audio" / "development" / file
                artist = re.match(r"artist_\d+", file)
                group = f"development/{artist[0] if artist else file}"
                yield Track(f"development/{file}", path, (_ismir_class(row[1], path),), group, "val")


def _ismir_class(name: str, path: Path) -> str:
    known = _ISMIR_CLASSES.get(name.strip().lower().replace("-", "_"))
    if known is None:
        raise DataError(f"'{path}' is of class {name!r}; known are {', '.join(sorted(_ISMIR_CLASSES))}. Move it away.")
    return known
