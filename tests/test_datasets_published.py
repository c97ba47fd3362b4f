"""The index functions on miniature copies of each data set's real layout: directory names, metadata columns, file names."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from musicnet_eval import configs, datasets, records
from musicnet_eval.contracts import Track
from musicnet_eval.datasets.faults import BALLROOM_REPLICAS
from musicnet_eval.errors import DataError
from tests.conftest import TINY, Command


def lay(root: Path, files: Iterable[str]) -> Path:
    """Put empty files below a root: an index reads no audio."""
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).touch()
    return root


def group_of(tracks: list[Track]) -> dict[str, str]:
    return {track.id: track.group for track in tracks}


# --- GTZAN --------------------------------------------------------------------------------------------------------------------

GENRES = ("blues", "classical", "country", "disco", "hiphop", "jazz", "metal", "pop", "reggae", "rock")


@pytest.mark.parametrize(
    "layout", ["genres/{g}", "genres_original/{g}", "Data/genres_original/{g}", "{g}", "gtzan_genre/genres/{g}", "."]
)
@pytest.mark.parametrize("suffix", ["wav", "au"])
def test_gtzan_in_every_common_layout(tmp_path: Path, layout: str, suffix: str) -> None:
    lay(tmp_path, [f"{layout.format(g=g)}/{g}.{n:05d}.{suffix}" for g in GENRES for n in range(100)])
    lay(tmp_path, ["._blues.00000.wav", "features_30_sec.csv", "images_original/blues/blues00000.png", "bextract_single.mf"])
    tracks = datasets.gtzan(tmp_path)
    assert Counter(t.labels[0] for t in tracks) == dict.fromkeys(GENRES, 100)
    assert all(track.path.is_file() for track in tracks)
    assert tracks[529].id == "jazz.00029"
    split = datasets.assign_splits(tracks, "fault_filtered")
    assert Counter(t.split for t in split) == {"train": 443, "val": 197, "test": 290}


def test_gtzan_lists_what_is_missing_where_it_would_lie(tmp_path: Path) -> None:
    """The common copy lacks jazz.00054 or holds it corrupt: decoding names it either way, and the index is the same."""
    names = [f"genres/{g}/{g}.{n:05d}.wav" for g in GENRES for n in range(100)]
    whole = datasets.gtzan(lay(tmp_path / "whole", names))
    without = datasets.gtzan(lay(tmp_path / "without", [name for name in names if "jazz.00054" not in name]))
    assert datasets.fingerprint(whole) == datasets.fingerprint(without)
    (lost,) = [track for track in without if not track.path.exists()]
    assert lost.path == tmp_path / "without/genres/jazz/jazz.00054.wav"
    ((name, fault),) = datasets.known_bad([lost.id, "jazz.00055"]).items()
    assert (name, fault.split(";")[0]) == ("jazz.00054", "GTZAN: does not start as a WAV file does, in the common copy")
    assert "source: https://" in fault
    assert {t.id: t.split for t in datasets.assign_splits(without, "fault_filtered")}["jazz.00054"] == "train"


def test_gtzan_with_files_that_it_does_not_have(tmp_path: Path) -> None:
    lay(tmp_path, ["blues/blues.00000.wav", "blues/blues.00100.wav"])
    with pytest.raises(DataError, match=r"holds \['blues.00100'\]: GTZAN has 00000 to 00099"):
        datasets.gtzan(tmp_path)


# --- FMA ----------------------------------------------------------------------------------------------------------------------

FMA_HEADER = (  # the columns that matter among the 52 of the published table, in their order there
    ",album,album,artist,artist,set,set,track,track,track\n"
    ",id,title,id,name,split,subset,bit_rate,genre_top,title\n"
    "track_id,,,,,,,,,\n"
)
FMA_ROWS = (
    '2,1,AWOL,1,AWOL,training,small,256000,Hip-Hop,"Food, ""again"""\n'
    "5,1,AWOL,1,AWOL,training,small,256000,Hip-Hop,This World\n"
    "10,6,Constant Hitmaker,6,Kurt Vile,test,small,192000,Pop,Freeway\n"
    "140,61,Alec K,54,Alec K,validation,medium,128000,Folk,Queen\n"
    "20,4,Niris,4,Nicky Cook,training,large,256000,,Spiritual Level\n"
    "133297,9,Nowhere,7,Nobody,training,small,256000,Pop,Silence\n"
)


@pytest.mark.parametrize("audio", ["fma_small", "fma_small/fma_small", "fma_medium", "fma_large"])
@pytest.mark.parametrize("metadata", ["fma_metadata", "fma_metadata/fma_metadata", "."])
def test_fma_layouts(tmp_path: Path, audio: str, metadata: str) -> None:
    lay(tmp_path, [f"{metadata}/tracks.csv", f"{audio}/000/000002.mp3"])
    (tmp_path / metadata / "tracks.csv").write_text(FMA_HEADER + FMA_ROWS, encoding="utf8")
    tracks = datasets.fma(tmp_path)
    assert [(t.id, t.labels, t.group, t.split) for t in tracks] == [
        ("000002", ("Hip-Hop",), "artist 1", "train"),
        ("000005", ("Hip-Hop",), "artist 1", "train"),
        ("000010", ("Pop",), "artist 6", "test"),
        ("133297", ("Pop",), "artist 7", "train"),
    ]
    assert tracks[0].path == tmp_path / audio / "000/000002.mp3"
    assert datasets.known_bad(t.id for t in tracks) == {
        "133297": "FMA: holds no audio; source: https://github.com/mdeff/fma/wiki"
    }
    assert len(datasets.known_bad(f"{number:06d}" for number in range(160_000))) == 6 + 147  # the wiki's, and issue 49's


def test_fma_root_may_be_the_audio_folder(tmp_path: Path) -> None:
    lay(tmp_path, ["fma_metadata/tracks.csv", "fma_small/000/000002.mp3"])
    (tmp_path / "fma_metadata/tracks.csv").write_text(FMA_HEADER + FMA_ROWS)
    assert datasets.fma(tmp_path / "fma_small")[0].path.is_file()


def test_fma_subsets_hold_each_other_and_need_a_genre(tmp_path: Path) -> None:
    lay(tmp_path, ["fma_metadata/tracks.csv", "fma_large/000/000002.mp3", "fma_full/000/000002.mp3"])
    (tmp_path / "fma_metadata/tracks.csv").write_text(FMA_HEADER + FMA_ROWS)
    counts = {subset: len(datasets.fma(tmp_path, subset)) for subset in ("small", "medium", "large", "full")}
    assert counts == {"small": 4, "medium": 5, "large": 5, "full": 5}
    assert "fma_full" in datasets.fma(tmp_path, "full")[0].path.parts
    with pytest.raises(DataError, match=r"data.subset='smal' is no subset of FMA; did you mean 'small'"):
        datasets.fma(tmp_path, "smal")


def test_fma_with_another_table(tmp_path: Path) -> None:
    lay(tmp_path, ["fma_metadata/tracks.csv", "fma_small/000/000002.mp3"])
    (tmp_path / "fma_metadata/tracks.csv").write_text("track_id,album_id\n2,1\n")
    with pytest.raises(DataError, match=r"lacks the columns \['set.split', 'set.subset', 'track.genre_top', 'artist.id'\]"):
        datasets.fma(tmp_path)


# --- ISMIR2004 ----------------------------------------------------------------------------------------------------------------


def ismir(root: Path) -> Path:
    lay(
        root,
        [
            "audio/training/classical/jacob_heringman/black_cow/16-waissel_polish_dance.mp3",
            "audio/training/metal_punk/skitzo/heavy_shit/1-dust.mp3",
            "audio/evaluation/classical/jacob_heringman/siena_lute_book/2-fantasia_25_(anon).mp3",
            "audio/evaluation/rock/etherine/gleam/5-modulation.mp3",
            "audio/development/artist_14_album_4_track_5.mp3",
            "audio/development/artist_14_album_1_track_2.mp3",
            "metadata/training/tracklist.csv",
        ],
    )
    truth = root / "metadata/development/ground_truth.csv"
    truth.parent.mkdir(parents=True)
    rows = [("14_album_4_track_5", "world"), ("14_album_1_track_2", "jazz_blues")]
    truth.write_text("".join(f'"tracks/artist_{name}.mp3","{label}"\n' for name, label in rows))
    return root


@pytest.mark.parametrize("below", [".", "ismir04_genre"])
def test_ismir2004(tmp_path: Path, below: str) -> None:
    ismir(tmp_path / below)
    tracks = datasets.ismir2004(tmp_path)
    assert {(t.labels[0], t.group, t.split) for t in tracks} == {
        ("classical", "jacob_heringman", "train"),
        ("metal_punk", "skitzo", "train"),
        ("classical", "jacob_heringman", "test"),
        ("rock_pop", "etherine", "test"),
        ("world", "development/artist_14", "val"),
        ("jazz_blues", "development/artist_14", "val"),
    }
    assert all(t.path.is_file() for t in tracks)
    assert datasets.overlapping_groups(tracks) == ["jacob_heringman"]  # the contest shared artists: refused unless allowed


# --- emotion ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("below", [".", "MER_audio_taffc_dataset"])
def test_emotion_4q(tmp_path: Path, below: str) -> None:
    lay(tmp_path / below, ["Q1/MT0000004637.mp3", "Q3/MT0000011357.mp3"])
    text = (
        '"Song","Artist","Title","Quadrant","PQuad","MoodsTotal","Moods","MoodsFoundStr"\n'
        '"MT0000004637","Charlie Poole","Hello, again","Q1",1,2,"x","y"\n'
        '"MT0000011357","charlie  poole","Adi\xf3s","Q3",1,2,"x","y"\n'
    )
    (tmp_path / below / "panda_dataset_taffc_metadata.csv").write_bytes(text.encode("latin-1"))
    one, other = datasets.emotion_4q(tmp_path)
    assert (one.id, one.labels, one.path.is_file()) == ("MT0000004637", ("Q1",), True)
    assert (other.labels, other.group) == (("Q3",), one.group)


@pytest.mark.parametrize("below", [".", "PMEmo2019"])
def test_pmemo_quadrants(tmp_path: Path, below: str) -> None:
    base = lay(tmp_path / below, ["chorus/1.mp3", "annotations/static_annotations.csv"])
    rows = {"1": (0.8, 0.7), "4": (0.6, 0.2), "5": (0.1, 0.3), "6": (0.2, 0.5)}  # arousal, valence
    text = "musicId,Arousal(mean),Valence(mean)\n" + "".join(f"{name},{a},{v}\n" for name, (a, v) in rows.items())
    (base / "annotations/static_annotations.csv").write_text(text)
    people = "musicId,fileName,title,artist,album,duration,chorus_start_time,chorus_end_time\n"
    people += "1,1.mp3,Good Drank,2 Chainz,Pretty Girls,32.0,02:35,03:05\n4,4.mp3,Other,2 chainz,x,30,0,1\n"
    (base / "metadata.csv").write_text(people)
    tracks = datasets.pmemo(tmp_path)
    assert {t.id: t.labels[0] for t in tracks} == {"1": "Q1", "4": "Q2", "5": "Q3", "6": "Q4"}
    assert group_of(tracks) == {"1": "2 chainz", "4": "2 chainz", "5": "5", "6": "6"}
    assert tracks[0].path.is_file()
    assert {t.id: t.labels[0] for t in datasets.pmemo(tmp_path, 0.75)} == {"1": "Q2", "4": "Q3", "5": "Q3", "6": "Q3"}
    with pytest.raises(DataError, match=r"data.midpoint=5 must lie between 0 and 1"):
        datasets.pmemo(tmp_path, 5)


def jamendo(root: Path, low: bool = False) -> Path:
    header = "TRACK_ID\tARTIST_ID\tALBUM_ID\tPATH\tDURATION\tTAGS\n"
    rows = {
        "train": [
            "0000948\tartist_000087\talbum_000149\t48/948.mp3\t212.7\tmood/theme---happy",
            "2\tartist_2\ta\t02/2.mp3\t9\tmood/theme---sad",
        ],
        "validation": [
            "3\tartist_3\ta\t03/3.mp3\t9\tmood/theme---happy",
            "4\tartist_4\ta\t04/4.mp3\t9\tmood/theme---slow\tmood/theme---sad",
        ],
        "test": ["5\tartist_5\ta\t05/5.mp3\t9\tmood/theme---happy", "6\tartist_6\ta\t06/6.mp3\t9\tmood/theme---sad"],
    }
    for number in (0, 1):
        for part, lines in rows.items():
            file = root / f"data/splits/split-{number}/autotagging_moodtheme-{part}.tsv"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(header + "".join(f"track_{line}\n" for line in (lines if number == 0 else lines[:1])))
    return lay(root, [f"{'audio-low' if low else 'audio'}/48/948{'.low' if low else ''}.mp3"])


@pytest.mark.parametrize("low", [False, True])
def test_mtg_jamendo_keeps_songs_of_one_tag(tmp_path: Path, low: bool) -> None:
    jamendo(tmp_path, low)
    tracks = datasets.mtg_jamendo_moodtheme(tmp_path)
    # track 4 has two tags; without it `sad` has no validation track, and is left out as well
    assert [(t.id, t.labels, t.group, t.split) for t in tracks] == [
        ("track_0000948", ("happy",), "artist_000087", "train"),
        ("track_3", ("happy",), "artist_3", "val"),
        ("track_5", ("happy",), "artist_5", "test"),
    ]
    assert tracks[0].path.is_file()
    every = datasets.mtg_jamendo_moodtheme(tmp_path, tags="all")
    assert [t.labels for t in every if t.id == "track_4"] == [("slow", "sad")]
    assert len(every) == 6
    assert len(datasets.mtg_jamendo_moodtheme(tmp_path, split_number=1, tags="all")) == 3


def test_mtg_jamendo_audio_elsewhere_and_wrong_values(tmp_path: Path) -> None:
    jamendo(tmp_path / "repository")
    (tmp_path / "repository/audio").rename(tmp_path / "songs")
    tracks = datasets.mtg_jamendo_moodtheme(tmp_path / "repository", tmp_path / "songs")
    assert tracks[0].path == tmp_path / "songs/48/948.mp3"
    with pytest.raises(DataError, match=r"data.split_number=5 must be 0 to 4"):
        datasets.mtg_jamendo_moodtheme(tmp_path, split_number=5)
    with pytest.raises(DataError, match=r"data.tags='one' must be single or all"):
        datasets.mtg_jamendo_moodtheme(tmp_path, tags="one")


# --- rhythm -------------------------------------------------------------------------------------------------------------------

BALLROOM = (
    "ChaChaCha/Albums-Latin_Jam2-05.wav",
    "Quickstep/Albums-AnaBelen_Veneo-11.wav",
    "Quickstep/Albums-Chrisanne2-12.wav",
    "Rumba-American/Media-103402.wav",
    "Rumba-Misc/Media-103415.wav",
    "Rumba-International/Albums-AnaBelen_Veneo-03.wav",
    "Waltz/Media-104705.wav",
)


@pytest.mark.parametrize("listed", [True, False])
@pytest.mark.parametrize("below", [".", "BallroomData"])
def test_ballroom(tmp_path: Path, below: str, listed: bool) -> None:
    base = lay(tmp_path / below, [*BALLROOM, "nada/readme.txt"])
    if listed:
        (base / "allBallroomFiles").write_text("".join(f"./{name}\n" for name in BALLROOM))
    tracks = datasets.ballroom(tmp_path)
    assert sorted(t.id for t in tracks) == sorted(BALLROOM)
    assert Counter(t.labels[0] for t in tracks) == {"Quickstep": 2, "Rumba": 3, "ChaChaCha": 1, "Waltz": 1}
    group = {Path(t.id).stem: t.group for t in tracks}
    assert group["Albums-AnaBelen_Veneo-11"] == group["Albums-Chrisanne2-12"] == group["Albums-AnaBelen_Veneo-03"]
    assert group["Media-103402"] == group["Media-103415"] != group["Media-104705"]


def test_ballroom_replicas_are_thirteen_pairs() -> None:
    assert len(BALLROOM_REPLICAS) == 13  # 4 exact, 9 of the recording, as published
    assert len({name for pair in BALLROOM_REPLICAS for name in pair}) == 26


@pytest.mark.parametrize("below", [".", "extendedballroom_v1.1", "ballroom_extended_2016"])
@pytest.mark.parametrize("marked", [' exact="100701"/>', '><exact id="100701"/></song>', "><exact>100701</exact></song>"])
def test_extended_ballroom(tmp_path: Path, below: str, marked: str) -> None:
    base = lay(tmp_path / below, ["Chacha/100701.mp3", "Waltz/100800.mp3"])
    (base / "extendedballroom_v1.1.xml").write_text(
        '<extendedballroom><Chacha><song id="100701" artist="Ross Mitchell" title="a" album="b" bpm="120" hash="0"/>'
        f'<song id="100702" artist="Klaus Hallen"{marked}<song id="100703" artist="klaus hallen"/></Chacha>'
        '<Waltz><song id="100800" artist="Unknown"/><song id="100801" artist="Max Greger" version="100701"/></Waltz>'
        "</extendedballroom>"
    )
    tracks = datasets.extended_ballroom(tmp_path)
    assert Counter(t.labels[0] for t in tracks) == {"Chacha": 3, "Waltz": 2}
    group = group_of(tracks)
    assert group["Chacha/100701"] == group["Chacha/100702"] == group["Chacha/100703"]
    assert len(set(group.values())) == 3
    assert tracks[0].path.is_file()


# --- all ----------------------------------------------------------------------------------------------------------------------

PUBLISHED: dict[str, Callable[[Path], list[Track]]] = {
    "gtzan": datasets.gtzan,
    "fma": datasets.fma,
    "ismir2004": datasets.ismir2004,
    "emotion_4q": datasets.emotion_4q,
    "pmemo": datasets.pmemo,
    "mtg_jamendo_moodtheme": datasets.mtg_jamendo_moodtheme,
    "ballroom": datasets.ballroom,
    "extended_ballroom": datasets.extended_ballroom,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_wrong_root_says_all_there_is_to_know(tmp_path: Path, name: str) -> None:
    lay(tmp_path, ["holiday/photo.jpg"])
    with pytest.raises(DataError) as caught:
        PUBLISHED[name](tmp_path)
    said = str(caught.value)
    assert re.search(r"looked for .*; found holiday/.*To be had from https?://.*; licence: .*Nothing is downloaded", said)
    with pytest.raises(DataError, match="it does not exist"):
        PUBLISHED[name](tmp_path / "nowhere")


def test_mirdata_and_pyarrow_are_named_with_their_pip_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("mirdata", "pyarrow", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, module, None)  # as where it is not installed
    with pytest.raises(DataError, match=r"not installed: pip install 'musicnet-eval\[mirdata\]'"):
        datasets.mirdata("gtzan_genre", tmp_path)
    with pytest.raises(DataError, match=r"not installed: pip install 'musicnet-eval\[parquet\]'"):
        datasets.parquet(tmp_path / "songs.parquet")


def test_a_run_on_fma_records_its_bad_file(tmp_path: Path, train: Command) -> None:
    """From the published layout to a record: official splits, an MP3 that holds no audio named, then left out and recorded."""
    draw = np.random.default_rng(0)
    rows = []
    for number in range(24):
        genre, pitch = (("Folk", 300), ("Rock", 900))[number % 2]
        split = ("training", "training", "validation", "test")[number // 2 % 4]
        rows.append(f"{number},1,a,{number // 2},b,{split},small,1,{genre},t\n")
        file = lay(tmp_path, [f"fma/fma_small/000/{number:06d}.mp3"]) / f"fma/fma_small/000/{number:06d}.mp3"
        tone = 0.3 * np.sin(2 * np.pi * pitch * np.arange(16000) / 16000) + 0.01 * draw.standard_normal(16000)
        soundfile.write(file, tone, 16000, format="MP3")
    lay(tmp_path, ["fma/fma_metadata/tracks.csv", "fma/fma_small/133/133297.mp3"])
    rows.append("133297,9,Nowhere,99,Nobody,training,small,256000,Rock,Silence\n")
    (tmp_path / "fma/fma_metadata/tracks.csv").write_text(FMA_HEADER + "".join(rows))
    overrides = ("data=fma", "data.root=fma", "backbone=stats_linear", *TINY)
    assert train(*overrides) != 0
    assert train(*overrides, "data.on_bad_file=skip", f"hydra.run.dir={tmp_path / 'run'}") == 0
    record = records.read_result(tmp_path / "run")
    assert (record["choices"]["data"], record["choices"]["protocol"]) == ("fma", "official")
    assert list(record["facts"]["bad_tracks"]) == ["133297"]
    assert "known fault: FMA: holds no audio" in record["facts"]["bad_tracks"]["133297"]
    assert record["facts"]["tracks"] == {"train": 12, "val": 6, "test": 6}


def test_gtzan_is_split_by_the_fault_filtered_lists_unless_told_otherwise() -> None:
    config = configs.resolved(configs.compose(["data=gtzan", "data.root=songs"]))
    assert config["data"]["protocol"] == "fault_filtered"
