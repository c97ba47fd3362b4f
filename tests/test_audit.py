"""Plant every kind of duplicate, leak and fault, and see that the audit names it, and nothing else."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
import shutil
from collections.abc import Callable
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyloudnorm
import pytest
import soundfile
import soxr

from musicnet_eval.audit import findings, main
from musicnet_eval.audit.fingerprints import RATE as FINGERPRINT_RATE
from musicnet_eval.audit.fingerprints import agreement, words
from musicnet_eval.audit.listen import Heard, listen
from musicnet_eval.audit.page import render
from musicnet_eval.contracts import Track

RATE = 22050


@cache
def song(seed: int, seconds: float = 8.0) -> np.ndarray:
    """Play random notes, two voices of decaying harmonics, over a little noise."""
    draw = np.random.default_rng(seed)
    audio = 0.003 * draw.standard_normal(round(seconds * RATE))
    for _voice in range(2):
        begin = 0.0
        while begin < seconds - 0.1:
            length = draw.uniform(0.15, 0.5)
            time = np.arange(round(min(length, seconds - begin) * RATE)) / RATE
            pitch = 220 * 2 ** (draw.integers(0, 30) / 12)
            tone = sum(np.sin(2 * np.pi * k * pitch * time) / k for k in range(1, 6))
            first = round(begin * RATE)
            audio[first : first + len(time)] += 0.12 * np.exp(-4 * time) * tone
            begin += length
    return audio


def write(path: Path, audio: np.ndarray, rate: int = RATE, **how: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(os.fsencode(path), audio, rate, format=path.suffix[1:], **how)


class Planted:
    """A manifest of songs of two classes, to which tests add what they plant."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.rows: list[dict[str, str]] = []
        for number in range(12):
            split = ("train", "train", "val", "test")[number % 4]
            self.add(f"{number:02d}.wav", song(number), ("blues", "jazz")[number // 6], split)

    def add(self, name: str, audio: np.ndarray | None, label: str, split: str, group: str = "", **how: Any) -> None:
        if audio is not None:
            write(self.root / name, audio, **how)
        self.rows.append({"path": name, "label": label, "group": group, "split": split})

    def audit(self, *more: str) -> tuple[int, dict[str, Any]]:
        with (self.root / "songs.csv").open("w", newline="", encoding="utf8") as file:
            writer = csv.DictWriter(file, ["path", "label", "group", "split"])
            writer.writeheader()
            writer.writerows(self.rows)
        out = self.root / "out"
        code = main(["data=csv", f"data.manifest={self.root / 'songs.csv'}", "--out", str(out), *more])
        return code, json.loads((out / "audit.json").read_text(encoding="utf8"))


@pytest.fixture
def planted(tmp_path: Path) -> Planted:
    return Planted(tmp_path)


def pairs(record: dict[str, Any]) -> list[list[str]]:
    return [sorted(file["id"] for file in found["files"]) for found in record["findings"]["duplicates"]]


def test_a_clean_set_is_clean(planted: Planted, capsys: pytest.CaptureFixture[str]) -> None:
    code, record = planted.audit()
    assert code == 0
    assert record["leaks"] == {"duplicates": 0, "groups": 0}
    assert not any(record["findings"].values())
    assert record["compared"] == record["decoded"] == 12
    assert "No leak found" in capsys.readouterr().out


def test_counts_equal_those_of_pandas(planted: Planted) -> None:
    planted.rows = [{**row, "group": f"g{number // 2}"} for number, row in enumerate(planted.rows)]
    planted.rows[1] |= {"label": "blues|jazz"}
    _, record = planted.audit()
    table = pd.DataFrame(planted.rows)
    table["label"] = table["label"].str.split("|")
    told = table.explode("label").groupby(["label", "split"]).agg(tracks=("path", "size"), groups=("group", "nunique"))
    counted = {(row["class"], row["split"]): (row["tracks"], row["groups"]) for row in record["counts"]}
    assert counted == {key: tuple(row) for key, row in zip(told.index, told.to_numpy().tolist(), strict=True)}
    assert sum(row["hours"] for row in record["counts"]) == pytest.approx(13 * 8 / 3600, abs=1e-3)
    rows = pd.read_csv(planted.root / "out/tracks.csv")
    assert rows["id"].tolist() == table["path"].tolist()
    assert (rows["seconds"] == 8).all()
    assert record["levels"][0]["loudness"][2] == pytest.approx(rows["loudness"][:6].median(), abs=0.01)
    for name, digest in zip(rows["id"], rows["sha256"], strict=True):
        assert digest == hashlib.sha256((planted.root / name).read_bytes()).hexdigest()


def encoded(form: str) -> Callable[[np.ndarray], np.ndarray]:
    def code(audio: np.ndarray) -> np.ndarray:
        file = io.BytesIO()
        soundfile.write(file, audio, RATE, format=form)
        file.seek(0)
        return soundfile.read(file)[0]

    return code


ALTERED: dict[str, tuple[str, float, Callable[[np.ndarray], np.ndarray]]] = {  # kind, where the original begins in it, how
    "mp3": ("copy", 0.0, encoded("MP3")),
    "ogg": ("copy", 0.0, encoded("OGG")),
    "11 kHz": ("copy", 0.0, lambda audio: soxr.resample(soxr.resample(audio, RATE, 11025), 11025, RATE)),
    "softer": ("copy", 0.0, lambda audio: audio / 10),
    "later": ("overlapping", 1.7, lambda audio: np.concatenate([np.zeros(round(1.7 * RATE)), audio])[: len(audio)]),
    "excerpt": ("excerpt", -2.5, lambda audio: audio[round(2.5 * RATE) : round(6.5 * RATE)]),
    "all": ("excerpt", -2.5, lambda audio: encoded("OGG")(audio[round(2.5 * RATE) : round(7 * RATE)] / 8)),
}


@pytest.mark.parametrize("how", ALTERED)
@pytest.mark.slow
def test_an_altered_copy_across_splits_is_a_leak(how: str, planted: Planted, capsys: pytest.CaptureFixture[str]) -> None:
    kind, begin, alter = ALTERED[how]
    planted.add("copy.wav", alter(song(4)), "blues", "test")
    code, record = planted.audit()
    (found,) = record["findings"]["duplicates"]
    assert code == 1
    assert record["leaks"] == {"duplicates": 1, "groups": 0}
    assert found["kind"] == kind
    assert found["crosses"]
    assert not found["conflicting"]
    starts = {file["id"]: file["start"] for file in found["files"]}
    assert starts.keys() == {"04.wav", "copy.wav"}
    assert starts["copy.wav"] - starts["04.wav"] == pytest.approx(begin, abs=0.03)
    assert "crosses splits" in capsys.readouterr().out


def test_equal_samples_and_equal_bytes(planted: Planted) -> None:
    shutil.copy(planted.root / "00.wav", planted.root / "bytes.wav")
    planted.add("bytes.wav", None, "blues", "train")
    planted.add("samples.flac", soundfile.read(planted.root / "05.wav")[0], "jazz", "train")
    planted.add("stereo.wav", np.stack([soundfile.read(planted.root / "07.wav")[0]] * 2, axis=1), "jazz", "test")
    _, record = planted.audit()
    told = {tuple(ids): found for ids, found in zip(pairs(record), record["findings"]["duplicates"], strict=True)}
    assert {ids: found["kind"] for ids, found in told.items()} == {
        ("00.wav", "bytes.wav"): "same file",
        ("05.wav", "samples.flac"): "same audio",
        ("07.wav", "stereo.wav"): "same audio",
    }
    assert told["05.wav", "samples.flac"]["conflicting"]  # blues and jazz
    assert not told["00.wav", "bytes.wav"]["crosses"]


def test_duplicates_in_one_split_leak_nothing(planted: Planted) -> None:
    planted.add("copy.wav", song(4) / 2, "jazz", "train")
    code, record = planted.audit()
    (found,) = record["findings"]["duplicates"]
    assert code == 0
    assert found["conflicting"]
    assert not found["crosses"]


def test_copies_of_copies_are_joined(planted: Planted) -> None:
    """Of equal files one is compared, and speaks for all: the leak is between its twin and the altered copy."""
    planted.rows[4]["split"] = "train"
    planted.add("twin.wav", soundfile.read(planted.root / "04.wav")[0], "blues", "val")
    planted.add("soft.wav", song(4) / 4, "blues", "train")
    _, record = planted.audit()
    assert sorted(pairs(record)) == [["04.wav", "soft.wav", "twin.wav"], ["04.wav", "twin.wav"]]
    assert record["leaks"]["duplicates"] == 2


def test_groups_across_splits(planted: Planted) -> None:
    for number in (0, 2, 3):
        planted.rows[number]["group"] = "The Mondays"
    planted.rows[4]["group"] = planted.rows[5]["group"] = "River Trio"  # both train
    code, record = planted.audit()
    assert code == 1
    (found,) = record["findings"]["groups"]
    assert (found["group"], found["splits"]) == ("The Mondays", {"train": 1, "val": 1, "test": 1})
    assert [file["id"] for file in found["files"]] == ["00.wav", "02.wav", "03.wav"]


@pytest.mark.slow
def test_nothing_alike_in_what_has_little_to_tell(planted: Planted) -> None:
    """Tones, fades, loops of different music, silence around it, and noise: none of them is another's copy."""
    time = np.arange(8 * RATE) / RATE
    draw = np.random.default_rng(5)
    for number, pitch in enumerate((440.0, 440.0, 441.0, 880.0)):
        planted.add(f"tone{number}.wav", 0.3 * np.sin(2 * np.pi * pitch * time + number), "blues", "train")
        planted.add(
            f"fade{number}.wav", np.exp(-(0.3 + 0.1 * number) * time) * np.sin(2 * np.pi * pitch * time + number), "jazz", "val"
        )
        planted.add(f"noise{number}.wav", 0.1 * draw.standard_normal(len(time)), "jazz", "test")
        planted.add(f"loop{number}.wav", np.tile(song(50 + number, 1.0), 8), "jazz", "test")
        quiet = np.concatenate([np.zeros(4 * RATE), song(60 + number, 4.0)]) + 1e-4 * draw.standard_normal(len(time))
        planted.add(f"late{number}.wav", quiet, "jazz", "train")
        pulse = np.where(time % 0.5 < 0.02, 0.5, 0.0) * draw.standard_normal(len(time))
        planted.add(f"click{number}.wav", pulse, "blues", "test")
    code, record = planted.audit()
    assert pairs(record) == []
    assert code == 0


def test_the_same_tune_played_otherwise_is_no_copy(planted: Planted) -> None:
    """Equal pitches and times on other instruments: sine against many harmonics, plucked against held."""
    draw = np.random.default_rng(7)
    notes = [(220 * 2 ** (draw.integers(0, 24) / 12), 0.25 + 0.25 * draw.integers(0, 2)) for _ in range(24)]

    def play(harmonics: list[float], decay: float) -> np.ndarray:
        parts = []
        for pitch, length in notes:
            time = np.arange(round(length * RATE)) / RATE
            tone = sum(part * np.sin(2 * np.pi * k * pitch * time) for k, part in enumerate(harmonics, start=1))
            parts.append(0.2 * np.exp(-decay * time) * np.minimum(1, time / 0.01) * tone)
        return np.concatenate(parts)[: 8 * RATE]

    planted.add("flute.wav", play([1.0, 0.05], 0.5), "blues", "train")
    planted.add("harpsichord.wav", play([1 / k for k in range(1, 9)], 8.0), "blues", "test")
    planted.add("clarinet.wav", play([1.0, 0.0, 0.6, 0.0, 0.4], 0.2), "jazz", "val")
    _, record = planted.audit()
    assert pairs(record) == []


# --- bad files ----------------------------------------------------------------------------------------------------------------


def test_bad_files_are_listed_and_survived(planted: Planted, capsys: pytest.CaptureFixture[str]) -> None:
    (planted.root / "empty.wav").touch()
    (planted.root / "text.wav").write_text("no audio at all")
    (planted.root / "folder.wav").mkdir()
    (planted.root / "loop.wav").symlink_to(planted.root / "loop.wav")
    os.mkfifo(planted.root / "pipe.wav")
    write(planted.root / "nan.wav", np.full(RATE, np.nan, dtype=np.float32), subtype="FLOAT")
    write(planted.root / "clipped.wav", np.clip(8 * song(30), -1, 1))
    silent = np.concatenate([song(31, 2.0), np.zeros(7 * RATE)])
    write(planted.root / "silent.wav", silent)
    bad = ["empty.wav", "text.wav", "folder.wav", "loop.wav", "pipe.wav", "nan.wav", "missing.wav"]
    for name in [*bad, "clipped.wav", "silent.wav"]:
        planted.add(name, None, "blues", "train")
    code, record = planted.audit()
    assert code == 0
    found = record["findings"]
    assert {row["id"]: bool(row["reason"]) for row in found["bad_files"]} == dict.fromkeys(bad, True)
    assert "finite" in next(row["reason"] for row in found["bad_files"] if row["id"] == "nan.wav")
    assert [row["id"] for row in found["clipped"]] == ["clipped.wav"]
    assert [row["id"] for row in found["silent"]] == ["silent.wav"]
    assert found["silent"][0]["share"] == pytest.approx(7 / 9, abs=0.02)
    assert sum(row["bad"] for row in record["counts"]) == len(bad)
    assert "unusable files: missing.wav: does not exist" in capsys.readouterr().out


def test_names_that_break_pages(planted: Planted, capsys: pytest.CaptureFixture[str]) -> None:
    odd = ["<script>alert(1)<b>.wav", "[red]\x1b[31m.wav", os.fsdecode(b"caf\xe9.wav")]
    for number, name in enumerate(odd):
        write(planted.root / "a" / name, song(1) / 2**number)
        write(planted.root / "b" / f"{number}.wav", song(10 + number))
    out = planted.root / "out"
    assert main(["data=folder", f"data.root={planted.root}", "data.protocol=stratified", "data.folds=3", "--out", str(out)]) == 1
    record = json.loads((out / "audit.json").read_text(encoding="utf8"))
    page = (out / "audit.html").read_text(encoding="utf8")
    assert "<script" not in page
    assert "\x1b" not in page + capsys.readouterr().out
    assert "caf\\xe9.wav" in page
    shown = [*odd[:2], "caf\\xe9.wav"]
    found = {file["id"] for duplicate in record["findings"]["duplicates"] for file in duplicate["files"]}
    assert found == {f"a/{name}" for name in shown}
    assert "caf\\xe9.wav" in (out / "tracks.csv").read_text(encoding="utf8")


def test_known_faults_of_published_sets_are_named(planted: Planted) -> None:
    planted.add("jazz.00054", None, "jazz", "train")
    _, record = planted.audit()
    assert [row["id"] for row in record["findings"]["known_bad"]] == ["jazz.00054"]


# --- checksums ----------------------------------------------------------------------------------------------------------------


def test_checksums_are_verified(planted: Planted, capsys: pytest.CaptureFixture[str]) -> None:
    file = planted.root / "sums.json"
    assert planted.audit("--write-checksums", str(file))[0] == 0
    sums = json.loads(file.read_text())["sha256"]
    assert sums == {row["path"]: hashlib.sha256((planted.root / row["path"]).read_bytes()).hexdigest() for row in planted.rows}
    assert planted.audit("--verify", str(file))[0] == 0
    assert "every file is as it was" in capsys.readouterr().out
    write(planted.root / "03.wav", song(40))
    (planted.root / "05.wav").unlink()
    planted.add("new.wav", song(41), "jazz", "train")
    code, record = planted.audit("--verify", str(file))
    assert code == 1
    assert record["checksums"] == {"missing": ["05.wav"], "changed": ["03.wav"], "new": ["new.wav"]}
    assert "files are not what they were: missing 1, changed 1" in " ".join(capsys.readouterr().out.split())
    page = (planted.root / "out/audit.html").read_text(encoding="utf8")
    assert re.search(r"changed: 1</strong>\s*<code>03.wav", page)


@pytest.mark.slow
def test_checksums_beside_the_audit(planted: Planted) -> None:
    """An override behind the bare flag is an override, not the file."""
    planted.audit("--write-checksums", "data.split_seed=1")
    assert planted.audit("--verify")[0] == 0
    assert (planted.root / "out/checksums.json").is_file()


# --- wrong input --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["data=folder", "data.root=nowhere"], "does not exist"),
        (["data=folder", "data.root=."], "data.root"),
        (["data=nothing"], "nothing"),
        (["backbone=resnet18"], "only data"),
        (["data.root"], "cannot be turned"),
        (["data=csv"], "data.manifest"),
        (["data=folder", "data.root=.", "data.max_seconds=-2"], "data.max_seconds=-2"),
        (["data=folder", "data.root=.", "data.sample_rate=fast"], "data.sample_rate='fast'"),
        (["data=folder", "data.root=.", "--verify", "nowhere.json"], "--write-checksums"),
    ],
)
def test_wrong_input_says_what_training_says(
    given: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(given) == 2
    assert said in capsys.readouterr().err


def test_a_protocol_that_is_none(planted: Planted, capsys: pytest.CaptureFixture[str]) -> None:
    planted.audit()
    assert main(["data=csv", f"data.manifest={planted.root / 'songs.csv'}", "data.protocol=oficial"]) == 2
    assert "did you mean 'official'" in capsys.readouterr().err


def test_data_without_splits_are_looked_at_all_the_same(planted: Planted, capsys: pytest.CaptureFixture[str]) -> None:
    planted.rows = planted.rows[:6]  # one class
    planted.add("copy.wav", song(3) / 3, "blues", "train")
    code, record = planted.audit()
    assert code == 2
    assert record["split_error"]
    assert record["protocol"] == "official"
    assert pairs(record) == [["03.wav", "copy.wav"]]
    assert "at least 2" in capsys.readouterr().err


def test_nothing_that_can_be_decoded(planted: Planted, capsys: pytest.CaptureFixture[str]) -> None:
    for row in planted.rows:
        (planted.root / row["path"]).unlink()
    assert planted.audit()[0] == 2
    assert "None of 12 tracks" in capsys.readouterr().err


# --- the page -----------------------------------------------------------------------------------------------------------------


class _Balance(HTMLParser):
    """Check that every element that is opened is closed, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_has_sounds(planted: Planted) -> None:
    planted.add("copy.wav", song(4) / 2, "blues", "test")
    planted.audit()
    page = (planted.root / "out/audit.html").read_text(encoding="utf8")
    parser = _Balance()
    parser.feed(page)
    assert not parser.open
    assert page.count("<audio") == 2
    assert not re.search(r"https?://", page)
    planted.audit("--snippets", "0")
    assert "<audio" not in (planted.root / "out/audit.html").read_text(encoding="utf8")


@pytest.mark.slow
def test_a_hundred_thousand_tracks_make_a_small_page() -> None:
    """Lists are cut on the page, their totals told, and whole in the record."""
    splits = ("train", "val", "test")
    tracks = [Track(f"{n}.wav", Path(f"{n}.wav"), (f"class {n % 300}",), f"g{n // 2}", splits[n % 3]) for n in range(100_000)]
    record = findings.summary(tracks, [Heard(None, reason="does not exist")] * len(tracks))
    assert len(record["findings"]["bad_files"]) == len(tracks)
    crossing = (
        pd.DataFrame({"group": [t.group for t in tracks], "split": [t.split for t in tracks]}).groupby("group").split.nunique()
    )
    assert record["leaks"]["groups"] == (crossing > 1).sum()
    about = {
        "data": "large",
        "protocol": "official",
        "fold": 0,
        "folds": 5,
        "split_error": None,
        "index": "0",
        "max_seconds": None,
    }
    page = render({**about, **record, "overrides": [], "checksums": None, "version": "1", "written": "now"}, {})
    assert len(page) < 300_000
    assert "100 of 100000 are shown" in page


# --- levels -------------------------------------------------------------------------------------------------------------------


def test_loudness_is_that_of_the_standard(tmp_path: Path) -> None:
    """By ITU-R BS.1770 a sine of 997 Hz at full scale in one channel is at -3.01 LUFS; EBU Tech 3341 lets meters err by 0.1."""
    write(tmp_path / "sine.wav", np.sin(2 * np.pi * 997 * np.arange(3 * 48000) / 48000), 48000)
    heard = listen(tmp_path / "sine.wav", RATE)
    assert heard.loudness == pytest.approx(-3.01, abs=0.1)
    assert heard.peak == pytest.approx(0, abs=0.01)
    assert (heard.sample_rate, heard.channels, heard.format) == (48000, 1, "WAV PCM_16")


def test_long_files_are_heard_in_chunks_as_if_whole(tmp_path: Path) -> None:
    audio = np.concatenate([song(1) * level for level in (0.01, 1, 0.3, 0.1, 0.6, 1, 0.05, 0.8, 1, 0.2, 0.5, 1)])
    write(tmp_path / "long.flac", audio)
    heard = listen(tmp_path / "long.flac", RATE)
    assert heard.seconds == 96
    assert heard.loudness == pytest.approx(pyloudnorm.Meter(RATE).integrated_loudness(audio), abs=0.02)
    whole = words(soxr.resample(audio.astype(np.float32), RATE, FINGERPRINT_RATE))
    assert agreement(whole, heard.words, 0) > 0.95


def test_clipped_and_silent_shares_are_counted(tmp_path: Path) -> None:
    audio = 0.5 * np.sin(2 * np.pi * 50 * np.arange(10 * 8000) / 8000)
    audio[100:110] = 1.0
    audio[200:202] = -1.0  # two in a row are music
    audio[60_000:] = 0
    write(tmp_path / "a.wav", audio, 8000)
    heard = listen(tmp_path / "a.wav", RATE)
    assert heard.clipped == pytest.approx(10 / 80_000, abs=1e-6)
    assert heard.silent == pytest.approx(0.25)
