"""Index functions of the emotion sets: 4Q audio emotion, PMEmo, MTG-Jamendo mood/theme. Traps and licences: docs/data.md."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from musicnet_eval.contracts import Track
from musicnet_eval.datasets.files import QUADRANTS, Source, find_folder, read_table, suffix_in
from musicnet_eval.errors import DataError

# --- 4Q -----------------------------------------------------------------------------------------------------------------------

EMOTION_4Q = Source(
    "the 4Q audio emotion set",
    "panda_dataset_taffc_metadata.csv beside the folders Q1 to Q4 with files such as Q1/MT0000004637.mp3",
    "http://mir.dei.uc.pt/downloads.html (4Q audio emotion dataset, Panda et al. 2018)",
    "none stated; excerpts of commercial recordings, for research",
)
_4Q_TABLE = "panda_dataset_taffc_metadata.csv"


def emotion_4q(root: Path | str) -> list[Track]:
    """List the 900 clips of 4Q audio emotion, 225 for each quadrant of valence and arousal; the group is the artist.

    Args:
        root: Holds the metadata table and Q1 to Q4, or is a folder above (`MER_audio_taffc_dataset/`).

    Raises:
        DataError: No such data set there, or a row whose quadrant is none.

    Reference:
        Panda, Malheiro, Paiva: Novel Audio Features for Music Emotion Recognition, IEEE Trans. Affective Computing 11(4), 2020.
    """
    places = (".", "MER_audio_taffc_dataset", "MER_audio_taffc_dataset/MER_audio_taffc_dataset")
    base = find_folder(root, EMOTION_4Q, places, lambda folder: (folder / _4Q_TABLE).is_file() and (folder / "Q1").is_dir())
    suffix = suffix_in(base / "Q1", ".mp3")
    tracks = []
    for row in read_table(base / _4Q_TABLE, ("Song", "Artist", "Quadrant")):
        quadrant = row["Quadrant"].strip('"').upper()
        if quadrant not in QUADRANTS:
            raise DataError(f"'{base / _4Q_TABLE}' puts {row['Song']} in {quadrant!r}; it must be one of {', '.join(QUADRANTS)}.")
        name = row["Song"].strip('"')
        artist = " ".join(row["Artist"].strip('"').casefold().split())
        tracks.append(Track(name, base / quadrant / f"{name}{suffix}", (quadrant,), artist or name))
    return tracks


# --- PMEmo --------------------------------------------------------------------------------------------------------------------

PMEMO = Source(
    "PMEmo",
    "annotations/static_annotations.csv, metadata.csv and chorus/1.mp3",
    "http://pmemo.hellohui.cn, linked at https://github.com/HuiZhangDB/PMEmo (1.3 GB)",
    "MIT for the repository, none stated for the choruses, which are of commercial recordings",
)


def pmemo(root: Path | str, midpoint: float = 0.5) -> list[Track]:
    """List PMEmo's 767 songs of static annotation, as quadrants of mean valence and arousal; the group is the artist.

    Q1 is valence and arousal at or above the midpoint, Q2 arousal alone, Q3 neither, Q4 valence alone. The numbers are the
    published means, on a scale from 0 to 1, not rescaled.

    Args:
        root: Holds `annotations/`, `metadata.csv` and `chorus/`, or is a folder above (`PMEmo2019/`).
        midpoint: Where low ends and high begins, between 0 and 1.

    Raises:
        DataError: No such data set there, a midpoint out of range, or an annotation that is no number.
    """
    if not 0 < midpoint < 1:
        raise DataError(
            f"data.midpoint={midpoint} must lie between 0 and 1, where PMEmo's annotations lie. Use data.midpoint=0.5."
        )
    table = "annotations/static_annotations.csv"
    base = find_folder(root, PMEMO, (".", "PMEmo2019", "PMEmo2019/PMEmo2019"), lambda folder: (folder / table).is_file())
    artists: dict[str, str] = {}
    if (base / "metadata.csv").is_file():
        rows = read_table(base / "metadata.csv", ("musicId", "artist"))
        artists = {row["musicId"]: " ".join(row["artist"].casefold().split()) for row in rows}
    suffix = suffix_in(base / "chorus", ".mp3")
    tracks = []
    for row in read_table(base / table, ("musicId", "Arousal(mean)", "Valence(mean)")):
        name = row["musicId"]
        try:
            high = float(row["Valence(mean)"]) >= midpoint, float(row["Arousal(mean)"]) >= midpoint
        except ValueError:
            raise DataError(f"'{base / table}' has an annotation for {name} that is no number. Take it as published.") from None
        quadrant = {(True, True): "Q1", (False, True): "Q2", (False, False): "Q3", (True, False): "Q4"}[high]
        tracks.append(Track(name, base / "chorus" / f"{name}{suffix}", (quadrant,), artists.get(name) or name))
    return tracks


# --- MTG-Jamendo --------------------------------------------------------------------------------------------------------------

JAMENDO = Source(
    "MTG-Jamendo",
    "data/splits/split-0/autotagging_moodtheme-train.tsv (a checkout of the repository) and audio such as audio/48/948.mp3",
    "https://github.com/MTG/mtg-jamendo-dataset (scripts/download, autotagging_moodtheme: 152 GB)",
    "metadata CC BY-NC-SA 4.0; each track under the Creative Commons licence its artist chose",
)
_JAMENDO_PARTS = {"train": "train", "validation": "val", "test": "test"}
_PREFIX = "mood/theme---"


def mtg_jamendo_moodtheme(
    root: Path | str, audio_root: Path | str | None = None, split_number: int = 0, tags: str = "single"
) -> list[Track]:
    """List the mood/theme subset of MTG-Jamendo with one of its five official splits; the group is the artist.

    Args:
        root: A checkout of the repository, with `data/splits/`.
        audio_root: Holds the folders `00` to `99`; when None, looked for below the root.
        split_number: Which official split, 0 to 4; 0 is that of MediaEval.
        tags: `single` keeps the tracks of exactly one tag, and of them the tags that all three parts have; `all` keeps every
            tag of every track.

    Raises:
        DataError: No such data set there, or a value out of range.
    """
    if split_number not in range(5):
        raise DataError(f"data.split_number={split_number!r} must be 0 to 4: MTG-Jamendo has five official splits.")
    if tags not in ("single", "all"):
        raise DataError(f"data.tags={tags!r} must be single or all.")
    file = f"split-{split_number}/autotagging_moodtheme-train.tsv"
    splits = find_folder(root, JAMENDO, ("data/splits", "splits"), lambda folder: (folder / file).is_file()).resolve()
    places = (".", "audio", "audio-low", "raw_30s/audio", "autotagging_moodtheme/audio", "data/audio")
    audio = find_folder(audio_root or root, JAMENDO, places, lambda folder: any(folder.glob("[0-9][0-9]")))
    rows = [(split, *row) for part, split in _JAMENDO_PARTS.items() for row in _jamendo_rows(splits, split_number, part)]
    low = not (audio / rows[0][3]).exists() and (audio / rows[0][3]).with_suffix(".low.mp3").exists()
    tracks = [
        Track(name, audio / (path.removesuffix(".mp3") + ".low.mp3" if low else path), labels, artist, split)
        for split, name, artist, path, labels in rows
    ]
    return tracks if tags == "all" else _single(tracks)


def _jamendo_rows(splits: Path, number: int, part: str) -> Iterator[tuple[str, str, str, tuple[str, ...]]]:
    file = splits / f"split-{number}" / f"autotagging_moodtheme-{part}.tsv"
    try:
        lines = file.read_text(encoding="utf8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"'{file}' cannot be read ({error}). Take it from {JAMENDO.where}.") from None
    if not lines or lines[0].split("\t") != ["TRACK_ID", "ARTIST_ID", "ALBUM_ID", "PATH", "DURATION", "TAGS"]:
        raise DataError(f"'{file}' does not begin with TRACK_ID, ARTIST_ID, … TAGS. Take it from {JAMENDO.where}.")
    for line in lines[1:]:
        name, artist, _, path, _, *tags = line.split("\t")
        yield name, artist, path, tuple(tag.removeprefix(_PREFIX) for tag in tags if tag.startswith(_PREFIX))


def _single(tracks: list[Track]) -> list[Track]:
    alone = [track for track in tracks if len(track.labels) == 1]
    parts: dict[str, set[str | None]] = defaultdict(set)
    for track in alone:
        parts[track.labels[0]].add(track.split)
    return [track for track in alone if len(parts[track.labels[0]]) == len(_JAMENDO_PARTS)]
