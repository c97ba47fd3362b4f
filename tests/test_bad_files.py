"""Every kind of bad file that the field's data sets hold: is it named, with what is wrong, or used?"""

from __future__ import annotations

import csv
import errno
import json
import os
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile

from musicnet_eval import mp3, records
from musicnet_eval.audio import decode
from musicnet_eval.bad_files import CHOICES, settle, with_known_faults
from musicnet_eval.cache import DecodedCache
from musicnet_eval.contracts import Track
from musicnet_eval.errors import AudioError, ConfigError, DataError
from tests.conftest import TINY, Command

RATE = 8000
SOUND = 0.3 * np.random.default_rng(0).standard_normal(10 * RATE)


def written(path: Path, sound: np.ndarray = SOUND, rate: int = RATE, **options: str) -> Path:
    plain = path.with_name(f"plain{path.suffix}")  # soundfile writes to UTF-8 names only
    soundfile.write(plain, sound, rate, **options)
    return plain.rename(path)


def cut(path: Path, share: float, **options: str) -> Path:
    """Write ten seconds and keep a share of the file."""
    whole = written(path, **options).read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    return path


def loop(path: Path) -> Path:
    other = path.with_suffix(".link")
    path.symlink_to(other)
    other.symlink_to(path)
    return path


def with_bytes(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def folder(path: Path) -> Path:
    path.mkdir()
    return path


def pipe(path: Path) -> Path:
    os.mkfifo(path)
    return path


def long_name(path: Path) -> Path:
    return path.with_name("x" * 300 + ".wav")  # longer than any file system allows: it cannot even be looked at


def unlike_itself(path: Path) -> Path:
    """Write a file that is an MP3 up to its third frame, and text from there on."""
    return with_bytes(path, written(path.with_suffix(".mp3")).read_bytes()[:600] + b"and so on, " * 9000)


UNUSABLE: dict[str, tuple[Callable[[Path], Path], str]] = {
    "missing.wav": (lambda p: p, "does not exist"),
    "dangling.wav": (lambda p: (p.symlink_to("nowhere.wav"), p)[1], "does not exist"),
    "zero.wav": (lambda p: with_bytes(p, b""), r"is empty \(0 bytes\)"),
    "zero.mp3": (lambda p: with_bytes(p, b""), r"is empty \(0 bytes\)"),
    "no_samples.wav": (lambda p: written(p, np.zeros(0)), "holds no samples"),
    "text.wav": (lambda p: with_bytes(p, b"this is no audio, but text\n" * 999), "cannot be decoded"),
    "text.mp3": (lambda p: with_bytes(p, b"this is no audio, but text\n" * 999), "cannot be decoded"),
    "page.m4a": (lambda p: with_bytes(p, b"<!DOCTYPE html><title>404</title>"), "cannot be decoded"),
    "header_only.flac": (lambda p: with_bytes(p, written(p).read_bytes()[:30]), "cannot be decoded"),
    "headless.raw": (lambda p: with_bytes(p, b"\x01\x02" * 9999), "cannot be decoded"),
    "cut.wav": (lambda p: cut(p, 0.6), r"is cut: it holds 6\.0 s of the 10\.0 s"),
    "cut.aiff": (lambda p: cut(p, 0.6), r"is cut: it holds 6\.0 s of the 10\.0 s"),
    "cut.au": (lambda p: cut(p, 0.6), r"is cut: it holds 6\.0 s of the 10\.0 s"),
    "cut.w64": (lambda p: cut(p, 0.6), r"is cut: it holds 6\.0 s of the 10\.0 s"),
    "cut.flac": (lambda p: cut(p, 0.6), "is cut"),
    "cut.mp3": (lambda p: cut(p, 0.6), r"is cut: it holds [56]\.\d s of the 10\.0 s"),
    "cut.ogg": (lambda p: cut(p, 0.6), "is cut: its last Ogg page is not whole"),
    "cut.opus": (lambda p: cut(p, 0.6, format="OGG", subtype="OPUS"), "is cut: its last Ogg page is not whole"),
    "cut_long.ogg": (lambda p: with_bytes(p, written(p).read_bytes()[:-1]), "is cut: its last Ogg page is not whole"),
    "unlike_itself.dat": (unlike_itself, "is cut or damaged: it cannot be decoded beyond"),
    "nan.wav": (lambda p: written(p, np.append(SOUND, np.nan), subtype="FLOAT"), "not finite"),
    "inf.wav": (lambda p: written(p, np.append(SOUND, np.inf), subtype="FLOAT"), "not finite"),
    "silence.wav": (lambda p: written(p, np.zeros(10 * RATE)), "nothing but digital silence"),
    "silence.mp3": (lambda p: written(p, np.zeros(10 * RATE)), "nothing but digital silence"),
    "one_sample.wav": (lambda p: written(p, np.array([0.5])), "lasts 0.12 ms, too short for any segment"),
    "folder.wav": (folder, "is a folder"),
    "pipe.wav": (pipe, "is no regular file"),
    "loop.wav": (loop, f"cannot be opened \\({os.strerror(errno.ELOOP)}\\)"),
    "long.wav": (long_name, f"cannot be opened \\({os.strerror(errno.ENAMETOOLONG)}\\)"),
    "null.wav": (lambda p: p.with_name("a\0b.wav"), "cannot be opened"),
}
USABLE: dict[str, tuple[Callable[[Path], Path], float]] = {  # and its seconds
    "whole.wav": (written, 10),
    "mp3_called.wav": (lambda p: written(p.with_suffix(".mp3")).rename(p), 10),
    "flac_called.mp3": (lambda p: written(p.with_suffix(".flac")).rename(p), 10),
    "clipped.wav": (lambda p: written(p, np.clip(30 * SOUND, -1, 1)), 10),
    "nearly_silent.wav": (lambda p: written(p, np.append(np.zeros(10 * RATE - 1), 0.5)), 10),
    "8_channels.wav": (lambda p: written(p, np.repeat(SOUND[:, None], 8, axis=1)), 10),
    "192_kHz.wav": (lambda p: written(p, np.tile(SOUND, 2), 192_000), 20 * RATE / 192_000),
    "8_kHz.wav": (written, 10),
    "24_bit.wav": (lambda p: written(p, subtype="PCM_24"), 10),
    "linked.wav": (lambda p: (p.symlink_to(written(p.with_name("target.flac"))), p)[1], 10),
    os.fsdecode(b"not_utf8_\xff.wav"): (written, 10),
    "longest_name_" + "x" * 200 + ".wav": (written, 10),
    "line\nbreak 'quote' 日本.wav": (written, 10),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_unusable_files_say_why(tmp_path: Path, name: str) -> None:
    make, reason = UNUSABLE[name]
    path = make(tmp_path / name)
    with pytest.raises(AudioError, match=reason):
        decode(path, RATE)
    built = DecodedCache(tmp_path / "cache", RATE).build([Track("it", path, ("x",), "it")])
    assert built.files == [None]
    assert list(built.bad) == ["it"]
    assert str(path) not in built.bad["it"]  # goes into records, where this machine's paths mean nothing
    assert not list((tmp_path / "cache").rglob("*.pcm*"))


@pytest.mark.parametrize("name", USABLE)
def test_odd_files_are_used(tmp_path: Path, name: str) -> None:
    make, seconds = USABLE[name]
    path = make(tmp_path / name)
    (file,), bad = DecodedCache(tmp_path / "cache", RATE).build([Track("it", path, ("x",), "it")])
    assert not bad
    assert file is not None
    pcm = np.fromfile(file, np.int16)
    assert abs(len(pcm) / RATE - seconds) < 0.001
    np.testing.assert_array_equal(pcm, decode(path, RATE))


def test_a_file_without_permission(tmp_path: Path) -> None:
    """Root may read anything: decode as a user who may not."""
    path = written(tmp_path / "locked.wav")
    path.chmod(0)
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    code = (
        "import os, sys; from pathlib import Path; from musicnet_eval.audio import decode; import soundfile\n"
        "if os.geteuid() == 0: os.setuid(65534)\n"
        "try: decode(Path(sys.argv[1]), 8000)\n"
        "except Exception as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    assert f"cannot be opened ({os.strerror(errno.EACCES)})" in done.stdout


def test_a_length_that_the_writer_never_knew_is_no_claim(tmp_path: Path) -> None:
    """Streaming writers leave the largest number as the length."""
    path = written(tmp_path / "a.wav")
    content = bytearray(path.read_bytes())
    at = content.index(b"data") + 4
    for unknown in (0xFFFFFFFF, 0x7FFFF000):
        content[at : at + 4] = struct.pack("<I", unknown)
        path.write_bytes(content)
        assert len(decode(path, RATE)) == 10 * RATE


def without_length(path: Path, sound: np.ndarray, **options: Any) -> Path:
    """Write an MP3 and take away its first frame, which states the length."""
    content = written(path, sound, 44100, **options).read_bytes()
    assert mp3.states_length(path)
    first = mp3.header(content[:4])
    assert first is not None
    return with_bytes(path, content[first.size :])


@pytest.mark.parametrize("mode", ["CONSTANT", "VARIABLE"])
def test_an_mp3_whose_length_no_header_states_is_used_whole(tmp_path: Path, mode: str) -> None:
    """libsndfile alone reads 4 of the 12 seconds of the second one, and says nothing."""
    sound = np.concatenate([0.3 * np.random.default_rng(0).standard_normal(3 * 44100), 0.1 * np.sin(0.05 * np.arange(9 * 44100))])
    path = without_length(tmp_path / "a.mp3", sound, bitrate_mode=mode, compression_level=0.5)
    assert not mp3.states_length(path)
    alone = soundfile.info(path).duration
    assert (alone < 6) is (mode == "VARIABLE")
    with av.open(path) as container:
        want = sum(frame.samples for frame in container.decode(audio=0)) / 44100
    assert abs(want - 12) < 0.1
    assert abs(len(decode(path, 22050)) / 22050 - want) < 0.03
    assert abs(mp3.seconds(path) - want) < 0.03


def test_a_flac_whose_header_states_no_length_is_used_whole(tmp_path: Path) -> None:
    """As encoders leave it that write into a pipe: libsndfile cannot read it."""
    content = bytearray(written(tmp_path / "a.flac").read_bytes())
    content[21] &= 0xF0  # the 36 bits of the stream's number of samples
    content[22:26] = bytes(4)
    (tmp_path / "a.flac").write_bytes(content)
    assert soundfile.info(tmp_path / "a.flac").frames > 1 << 60
    np.testing.assert_allclose(decode(tmp_path / "a.flac", RATE) / 32768, np.clip(SOUND, -1, 1), atol=4e-5)


@pytest.mark.parametrize("rate", [8000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000])
def test_frames_of_every_rate_are_counted(tmp_path: Path, rate: int) -> None:
    path = written(tmp_path / "a.mp3", 0.1 * np.random.default_rng(0).standard_normal((5 * rate, 2)), rate)
    with av.open(path) as container:
        packets = [packet for packet in container.demux(audio=0) if packet.size]
    samples = {True: 1152, False: 576}[rate >= 32_000]
    assert mp3.seconds(path) == pytest.approx((len(packets) + 1) * samples / rate)  # the first one holds the length alone


# --- what is done about them ---


def tracks_of(root: Path) -> list[Track]:
    """Make a usable file and every unusable one, in two classes."""
    made = [make(root / name) for name, (make, _) in UNUSABLE.items()]
    paths = [written(root / "whole.wav"), *made]
    return [Track(path.name, path, (("even", "odd")[i % 2],), path.name, "train") for i, path in enumerate(paths)]


def test_all_are_reported_together(tmp_path: Path) -> None:
    tracks = tracks_of(tmp_path)
    bad = DecodedCache(tmp_path / "cache", RATE).build(tracks).bad
    assert list(bad) == [track.id for track in tracks[1:]]
    with pytest.raises(DataError, match="are unusable") as caught:
        settle(tracks, bad, "error", tmp_path)
    message = str(caught.value)
    assert f"{len(bad)} of {len(tracks)} audio files" in message
    assert f"… and {len(bad) - 10} more" in message
    assert (
        f"even {len(bad) // 2} of {len(tracks) - len(tracks) // 2}, odd {len(bad) - len(bad) // 2} of {len(tracks) // 2}"
        in message
    )
    assert "data.on_bad_file=skip" in message
    settle(tracks[:1], {}, "error", tmp_path)


def test_report_lists_all_and_writes_a_table(tmp_path: Path) -> None:
    tracks = tracks_of(tmp_path)
    bad = DecodedCache(tmp_path / "cache", RATE).build(tracks).bad
    with pytest.raises(DataError) as caught:
        settle(tracks, bad, "report", tmp_path)
    assert all(str(track.path) in str(caught.value) for track in tracks[1:])
    with (tmp_path / "bad_files.csv").open(newline="", encoding="utf8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["id"], row["reason"]) for row in rows] == list(bad.items())
    assert {row["split"] for row in rows} == {"train"}


def test_known_faults_come_with_their_source() -> None:
    reasons = with_known_faults({"133297": "holds no samples", "jazz.00054": "cannot be decoded", "rock/a.wav": "is empty"})
    assert reasons["133297"] == "holds no samples; known fault: FMA: holds no audio; source: https://github.com/mdeff/fma/wiki"
    assert "; known fault: GTZAN: " in reasons["jazz.00054"]
    assert reasons["rock/a.wav"] == "is empty"


def test_clipped_tracks_are_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tracks = [Track(name, tmp_path / name, ("x",), name) for name in ("loud.wav", "fine.wav")]
    written(tracks[0].path, 3 * SOUND)
    written(tracks[1].path)
    for expected in (True, False):
        DecodedCache(tmp_path / "cache", RATE).build(tracks)
        shown = capsys.readouterr().err
        assert ("1 of 2 decoded tracks are clipped" in shown) is expected
        assert "fine" not in shown


# --- through the command ---


@pytest.fixture
def spoilt(tones: Path, tmp_path: Path) -> list[str]:
    """Give the overrides of a data set with two bad files and a short one."""
    for label in ("low", "middle", "high"):
        (tmp_path / "music" / label).mkdir(parents=True)
        for number in range(6):
            (tmp_path / "music" / label / f"{number}.wav").symlink_to(tones / label / f"{number}.wav")
    (tmp_path / "music/low/text.wav").write_text("no")
    (tmp_path / "music/high/zero.wav").touch()
    written(tmp_path / "music/high/short.wav", SOUND[:2000])
    return ["data=folder", f"data.root={tmp_path / 'music'}", "backbone=stats_linear", *TINY, f"paths.cache={tmp_path / 'cache'}"]


def test_error_and_report_stop_with_exit_code_2(
    spoilt: list[str], train: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(*spoilt) == 2
    shown = capsys.readouterr().err
    assert "2 of 21 audio files are unusable" in shown
    assert "By class: high 1 of 8, low 1 of 7" in shown
    assert train(*spoilt, "data.on_bad_file=report") == 2
    assert "lasts 0.2 s, shorter than data.segment_seconds=0.5" in capsys.readouterr().err
    with (tmp_path / "cache/bad_files.csv").open(newline="", encoding="utf8") as file:
        assert sorted(row["id"] for row in csv.DictReader(file)) == ["high/short.wav", "high/zero.wav", "low/text.wav"]
    assert not list(tmp_path.rglob("result.json"))


def test_skip_records_them_with_their_reasons(spoilt: list[str], train: Command, tmp_path: Path) -> None:
    assert train(*spoilt, "data.on_bad_file=skip", f"hydra.run.dir={tmp_path / 'run'}") == 0
    facts = records.read_result(tmp_path / "run")["facts"]
    assert sorted(facts["bad_tracks"]) == ["high/short.wav", "high/zero.wav", "low/text.wav"]
    assert facts["bad_tracks"]["high/zero.wav"] == "is empty (0 bytes)"
    assert str(tmp_path) not in json.dumps(facts)
    assert sum(facts["tracks"].values()) == 18


def test_a_choice_that_is_none(tones: Path, tmp_path: Path) -> None:
    from musicnet_eval.datamodule import MusicDataModule
    from musicnet_eval.spectrograms import LogMel

    with pytest.raises(ConfigError, match=f"must be one of {', '.join(CHOICES)}"):
        MusicDataModule([], LogMel(8000, 256, 128, 16), cache_dir=tmp_path, on_bad_file="ignore")
