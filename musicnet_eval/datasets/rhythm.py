"""Index functions of the dance sets: Ballroom, Extended Ballroom. Their traps and licences: docs/data.md."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from musicnet_eval.contracts import Track
from musicnet_eval.datasets.faults import BALLROOM_REPLICAS
from musicnet_eval.datasets.files import Source, audio_files, find_folder, join_groups, name_below, suffix_in
from musicnet_eval.errors import DataError

# --- Ballroom -----------------------------------------------------------------------------------------------------------------

BALLROOM_DANCES = ("ChaChaCha", "Jive", "Quickstep", "Rumba", "Samba", "Tango", "VienneseWaltz", "Waltz")
BALLROOM = Source(
    "Ballroom",
    "BallroomData/ with folders such as ChaChaCha/ and Rumba-American/ and files such as Albums-AnaBelen_Veneo-11.wav",
    "http://mtg.upf.edu/ismir2004/contest/tempoContest/data1.tar.gz (1.5 GB)",
    "none stated with the audio; excerpts from BallroomDancers.com",
)


def ballroom(root: Path | str) -> list[Track]:
    """List the 698 clips of Ballroom in 8 dances; the group is the album, joined where replicas are known.

    The three Rumba folders are one class. `allBallroomFiles`, where it is there, says which files belong to the data set.

    Args:
        root: Holds the dance folders, or is a folder above (`BallroomData/`).

    Raises:
        DataError: No such data set there, or a folder that is none of its dances.
    """
    base = find_folder(root, BALLROOM, (".", "BallroomData", "Ballroom/BallroomData"), lambda f: (f / "ChaChaCha").is_dir())
    listing = base / "allBallroomFiles"
    if listing.is_file():
        lines = (line.strip() for line in listing.read_text(encoding="utf8", errors="replace").splitlines())
        paths = [base / line for line in lines if line.lower().endswith(".wav")]
    else:
        paths = [path for folder in sorted(base.iterdir()) if _dance(folder) for path in audio_files(folder)]
    group = join_groups((_album(one), _album(other)) for one, other in BALLROOM_REPLICAS)
    tracks = []
    for path in paths:
        dance = _dance(path.parent)
        if dance is None:
            raise DataError(f"'{path}' lies in none of Ballroom's dances ({', '.join(BALLROOM_DANCES)}). Move it away.")
        tracks.append(Track(name_below(path, base), path, (dance,), group(_album(path.stem))))
    return tracks


def _dance(folder: Path) -> str | None:
    name = folder.name.partition("-")[0]
    return name if name in BALLROOM_DANCES else None


def _album(stem: str) -> str:
    """Name the album of `Albums-Latin_Jam2-05`; a `Media-104705` stands alone."""
    return stem.rpartition("-")[0] if stem.startswith("Albums-") else stem


# --- Extended Ballroom --------------------------------------------------------------------------------------------------------

EXTENDED_BALLROOM = Source(
    "Extended Ballroom",
    "extendedballroom_v1.1.xml beside folders such as Chacha/ with files such as Chacha/100701.mp3",
    "http://anasynth.ircam.fr/home/media/ExtendedBallroom (metadata and a script that fetches the audio)",
    "none stated; excerpts from BallroomDancers.com",
)
_SAME_RECORDING = ("exact", "time", "karaoke")  # and `version`, another recording of the song, which would join most artists


def extended_ballroom(root: Path | str) -> list[Track]:
    """List the 4,180 clips of Extended Ballroom in 13 dances; the group is the artist, joined where duplicates are marked.

    Args:
        root: Holds the XML file and the dance folders, or is a folder above (`extendedballroom_v1.1/`).

    Raises:
        DataError: No such data set there, or an XML file that cannot be read.
    """
    file = "extendedballroom_v1.1.xml"
    base = find_folder(
        root,
        EXTENDED_BALLROOM,
        (".", "extendedballroom_v1.1", "ballroom_extended_2016", "songs"),
        lambda folder: (folder / file).is_file(),
    )
    try:
        songs = [(dance.tag, song) for dance in ElementTree.parse(base / file).getroot() for song in dance if song.get("id")]
    except (OSError, ElementTree.ParseError) as error:
        raise DataError(f"'{base / file}' cannot be read ({error}). Take it from {EXTENDED_BALLROOM.where}.") from None
    if not songs:
        raise DataError(f"'{base / file}' lists no songs. Take it from {EXTENDED_BALLROOM.where}.")
    own = {song.get("id", ""): _artist(song) for _, song in songs}
    pairs = (
        (own[name], own[other])
        for name, song in ((song.get("id", ""), song) for _, song in songs)
        for mark in _SAME_RECORDING
        for other in _marked(song, mark)
        if other in own
    )
    group = join_groups(pairs)
    suffixes = {dance: suffix_in(base / dance, ".mp3") for dance in {dance for dance, _ in songs}}
    return [
        Track(f"{dance}/{name}", base / dance / f"{name}{suffixes[dance]}", (dance,), group(own[name]))
        for dance, name in ((dance, song.get("id", "")) for dance, song in songs)
    ]


def _marked(song: ElementTree.Element, mark: str) -> list[str]:
    """List the ids that a mark of duplication names, as an attribute or as elements."""
    said = [song.get(mark, ""), *(f"{element.get('id', '')} {element.text or ''}" for element in song.findall(mark))]
    return re.findall(r"\d+", " ".join(said))


def _artist(song: ElementTree.Element) -> str:
    artist = " ".join(song.get("artist", "").casefold().split())
    unknown = artist in ("", "unknown", "various", "various artists")
    return song.get("id", "") if unknown else artist
