"""The index functions that other libraries stand behind: Parquet through pyarrow, mirdata's own loaders on miniatures."""

from __future__ import annotations

import hashlib
import importlib
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile

from musicnet_eval import datasets
from musicnet_eval.errors import DataError

# --- Parquet ------------------------------------------------------------------------------------------------------------------

ROWS = [
    {"path": "a.wav", "label": "x|y", "group": "elvis", "split": "train", "year": 1999},
    {"path": "/abs/b.wav", "label": "x", "group": None, "split": "", "year": 2001},
    {"path": "c.wav", "label": "y", "group": "elvis", "split": "test", "year": None},
]


def test_parquet_says_the_same_as_csv(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "songs.parquet")
    lines = [",".join(str(row[name] or "") for name in ROWS[0]) for row in ROWS]
    (tmp_path / "songs.csv").write_text("\n".join([",".join(ROWS[0]), *lines]))
    tracks = datasets.parquet(tmp_path / "songs.parquet")
    assert tracks == datasets.csv(tmp_path / "songs.csv")
    assert (tracks[0].labels, tracks[0].group, tracks[0].split) == (("x", "y"), "elvis", "train")
    (tmp_path / "audio").mkdir()
    assert datasets.parquet(tmp_path / "songs.parquet", tmp_path / "audio")[0].path == tmp_path / "audio/a.wav"


def test_parquet_of_pandas_with_categories_lists_and_row_groups(tmp_path: Path) -> None:
    import pandas as pd

    frame = pd.DataFrame({"path": [f"{i}.wav" for i in range(12)], "label": pd.Categorical(["b", "a", "c"] * 4)})
    frame.to_parquet(tmp_path / "songs.parquet", row_group_size=5, compression="zstd")
    assert Counter(t.labels for t in datasets.parquet(tmp_path / "songs.parquet")) == {("a",): 4, ("b",): 4, ("c",): 4}
    several = pa.table({"path": ["a.wav", "b.wav"], "label": [["x", "y"], ["z"]]})
    pq.write_table(several, tmp_path / "several.parquet")
    assert [t.labels for t in datasets.parquet(tmp_path / "several.parquet")] == [("x", "y"), ("z",)]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"file": ["a.wav"], "label": ["x"]}, r"lacks \['path'\]"),
        ({"path": ["a.wav"], "label": [None]}, "row 1 has no label"),
        ({"path": ["a.wav"], "label": ["x"], "split": ["dev"]}, "row 1 has split='dev'"),
    ],
)
def test_parquet_refusals(tmp_path: Path, table: dict[str, list[str | None]], message: str) -> None:
    pq.write_table(pa.table(table), tmp_path / "songs.parquet")
    with pytest.raises(DataError, match=message):
        datasets.parquet(tmp_path / "songs.parquet")


def test_parquet_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "songs.parquet").write_text("path,label\n")
    with pytest.raises(DataError, match=r"songs.parquet' cannot be read .* Save it as a Parquet table"):
        datasets.parquet(tmp_path / "songs.parquet")
    with pytest.raises(DataError, match="does not exist"):
        datasets.parquet(tmp_path / "nothing.parquet")


# --- mirdata ------------------------------------------------------------------------------------------------------------------


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def tone(path: Path, pitch: float) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, 0.3 * np.sin(2 * np.pi * pitch * np.arange(800) / 8000), 8000)
    return path


def point_index(monkeypatch: pytest.MonkeyPatch, dataset: str, folder: Path, index: dict[str, object] | None) -> None:
    """Let mirdata look for its index, which its `download` would fetch, in a folder of ours."""
    known = importlib.import_module(f"mirdata.datasets.{dataset}").INDEXES
    default = known[known["default"]]
    monkeypatch.setattr(default, "indexes_dir", str(folder))
    folder.mkdir(parents=True, exist_ok=True)
    if index is not None:
        (folder / default.filename).write_text(json.dumps(index))


@pytest.fixture
def gtzan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Lay a miniature of mirdata's GTZAN: audio as it unpacks, the annotations beside it, and an index of their checksums."""
    home = tmp_path / "gtzan_genre"
    tracks = {}
    for number, genre in enumerate(("blues", "hiphop", "jazz")):
        for k in range(2):
            name = f"{genre}.{k:05d}"
            audio = tone(home / f"gtzan_genre/genres/{genre}/{name}.wav", 200 + 50 * number + k)
            beats = home / f"gtzan_tempo_beat-main/beats/gtzan_{genre}_{k:05d}.beats"
            beats.parent.mkdir(parents=True, exist_ok=True)
            beats.write_text("0.5 1\n1.0 2\n")
            files = {"audio": audio, "beats": beats}
            tracks[name] = {kind: [str(file.relative_to(home)), md5(file)] for kind, file in files.items()}
            tracks[name]["tempo"] = [None, None]
    point_index(monkeypatch, "gtzan_genre", tmp_path / "indexes", {"version": "1.0", "tracks": tracks})
    return home


def test_mirdata_lists_what_its_loader_knows(gtzan: Path) -> None:
    tracks = datasets.mirdata("gtzan_genre", gtzan)
    assert [(t.id, t.labels, t.group) for t in tracks[2:4]] == [
        ("hiphop.00000", ("hip-hop",), "hiphop.00000"),
        ("hiphop.00001", ("hip-hop",), "hiphop.00001"),
    ]
    assert all(soundfile.info(t.path).samplerate == 8000 for t in tracks)
    assert len(tracks) == 6


def test_mirdata_names_a_file_that_is_altered_and_one_that_is_missing(gtzan: Path) -> None:
    wrong = tone(gtzan / "gtzan_genre/genres/jazz/jazz.00001.wav", 999)
    with pytest.raises(DataError, match=r"faults 1 files of gtzan_genre .*: altered .*jazz.00001.wav") as caught:
        datasets.mirdata("gtzan_genre", gtzan)
    assert "https://github.com/TempoBeatDownbeat/gtzan_tempo_beat" in str(caught.value)
    assert "licence, in mirdata's words" in str(caught.value)
    wrong.unlink()
    (gtzan / "gtzan_tempo_beat-main/beats/gtzan_blues_00000.beats").unlink()
    with pytest.raises(DataError, match=r"faults 2 files.*: missing gtzan_genre/genres/jazz/jazz.00001.wav; missing gtzan_tempo"):
        datasets.mirdata("gtzan_genre", gtzan)
    assert len(datasets.mirdata("gtzan_genre", gtzan, validate=False)) == 6


def test_mirdata_with_a_wrong_root(gtzan: Path) -> None:
    with pytest.raises(
        DataError, match=r"faults 12 files of gtzan_genre in data.root='.*nowhere'.*and 7 more.*Get them from http"
    ):
        datasets.mirdata("gtzan_genre", gtzan / "nowhere")


def test_mirdata_with_wrong_names(gtzan: Path) -> None:
    with pytest.raises(DataError, match=r"data.dataset='gtzan' is not one of mirdata's; did you mean 'gtzan_genre'"):
        datasets.mirdata("gtzan", gtzan)
    with pytest.raises(DataError, match=r"data.label='genr' is no attribute of gtzan_genre's tracks; did you mean 'genre'"):
        datasets.mirdata("gtzan_genre", gtzan, label="genr")
    with pytest.raises(DataError, match=r"data.group='artist' is no attribute"):
        datasets.mirdata("gtzan_genre", gtzan, group="artist")


def test_mirdata_without_its_index(gtzan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    point_index(monkeypatch, "gtzan_genre", tmp_path / "empty", None)
    with pytest.raises(DataError, match=r"cannot list data.dataset=gtzan_genre .*download\(partial_download=\['index'\]\)"):
        datasets.mirdata("gtzan_genre", gtzan)


def test_mirdata_takes_the_splits_and_groups_of_its_tracks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Groove MIDI: metadata in a table, audio that may be absent, splits `train`, `validation`, `test`."""
    home = tmp_path / "groove"
    rows = ["drummer,session,id,style,bpm,beat_type,time_signature,midi_filename,audio_filename,duration,split"]
    tracks = {}
    for k, split in enumerate(("train", "validation", "test", "train")):
        audio = tone(home / f"drummer1/session1/{k}_rock_120_beat_4-4.wav", 100 + k)
        name = f"drummer1/session1/{k}"
        rows.append(f"drummer{k % 2},session1,{name},rock/folk,120,beat,4-4,{k}.mid,{audio.name},1.0,{split}")
        there = [str(audio.relative_to(home)), md5(audio)] if k < 3 else [None, None]
        tracks[name] = {"midi": [None, None], "audio": there}
    (home / "info.csv").write_text("\n".join(rows))
    index = {"version": "1.0.0", "metadata": {"info": ["info.csv", md5(home / "info.csv")]}, "tracks": tracks}
    point_index(monkeypatch, "groove_midi", tmp_path / "indexes", index)
    found = datasets.mirdata("groove_midi", home, label="style", group="drummer")
    assert [(t.labels, t.group, t.split) for t in found] == [
        (("rock/folk",), "drummer0", "train"),
        (("rock/folk",), "drummer1", "val"),
        (("rock/folk",), "drummer0", "test"),
    ]
