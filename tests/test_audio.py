from __future__ import annotations

import multiprocessing
from pathlib import Path

import numpy as np
import pytest
import soundfile

from musicnet_eval.audio import DecodedCache, decode, read_pcm
from musicnet_eval.contracts import Track
from musicnet_eval.errors import AudioError, ConfigError, DataError


def tone(rate: int, seconds: float = 1.0, pitch: float = 440.0) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * pitch * np.arange(round(rate * seconds)) / rate)


@pytest.mark.parametrize("kind", ["wav", "flac", "aiff", "au"])
def test_lossless_formats_are_exact(tmp_path: Path, kind: str) -> None:
    pcm = np.random.default_rng(1).integers(-32768, 32768, 4000).astype(np.int16)
    soundfile.write(tmp_path / f"a.{kind}", pcm, 8000, subtype="PCM_16")
    np.testing.assert_array_equal(decode(tmp_path / f"a.{kind}", 8000), pcm)


@pytest.mark.parametrize("kind", ["ogg", "mp3"])
def test_lossy_formats_keep_the_tone(tmp_path: Path, kind: str) -> None:
    soundfile.write(tmp_path / f"a.{kind}", tone(22050, 2.0), 22050)
    spectrum = np.abs(np.fft.rfft(decode(tmp_path / f"a.{kind}", 22050)[4096 : 4096 + 22050].astype(float)))
    assert spectrum.argmax() == 440  # one bin a hertz


@pytest.mark.parametrize("rate", [8000, 44100, 48000, 192000])
def test_resampling_keeps_a_tone_and_its_level(tmp_path: Path, rate: int) -> None:
    soundfile.write(tmp_path / "a.wav", tone(rate), rate, subtype="FLOAT")
    got = decode(tmp_path / "a.wav", 22050)[500:-500] / 32768
    want = tone(22050)[500 : 500 + len(got)]
    assert abs(len(got) + 1000 - 22050) <= 1
    assert np.abs(got - want).max() < 1e-3


def test_a_tone_above_the_new_half_rate_is_killed(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", tone(44100, pitch=15_000.0), 44100, subtype="FLOAT")
    assert np.abs(decode(tmp_path / "a.wav", 22050)[500:-500]).max() < 33  # 60 dB below full scale


@pytest.mark.parametrize("channels", [2, 8])
def test_channels_are_averaged(tmp_path: Path, channels: int) -> None:
    audio = np.stack([tone(8000) * i / channels for i in range(channels)], axis=1)
    soundfile.write(tmp_path / "a.wav", audio, 8000, subtype="FLOAT")
    np.testing.assert_allclose(decode(tmp_path / "a.wav", 8000) / 32768, audio.mean(axis=1), atol=2e-5)


def test_louder_than_full_scale_is_clipped_not_wrapped(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", 3 * tone(8000), 8000, subtype="FLOAT")
    pcm = decode(tmp_path / "a.wav", 8000)
    assert pcm.max() == 32767
    assert pcm.min() == -32768


def test_max_seconds(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", tone(8000, 3.0), 8000)
    assert len(decode(tmp_path / "a.wav", 8000, max_seconds=1.5)) == 12000


def bad_files(folder: Path) -> dict[str, str]:
    """Write files that are no usable audio; give name → what the message must say."""
    (folder / "text.wav").write_text("not audio")
    (folder / "empty.mp3").touch()
    soundfile.write(folder / "nosamples.wav", np.zeros(0), 8000)
    soundfile.write(folder / "nan.wav", np.array([0.0, np.nan, 0.1]), 8000, subtype="FLOAT")
    soundfile.write(folder / "whole.flac", tone(8000), 8000)
    (folder / "cut.flac").write_bytes((folder / "whole.flac").read_bytes()[:30])
    (folder / "folder.wav").mkdir()
    return {
        "text.wav": "cannot be decoded",
        "empty.mp3": "cannot be decoded",
        "nosamples.wav": "no samples",
        "nan.wav": "not finite",
        "cut.flac": "cannot be decoded",
        "folder.wav": "cannot be decoded",
        "missing.wav": "does not exist",
    }


def test_bad_files_each_say_why(tmp_path: Path) -> None:
    for name, message in bad_files(tmp_path).items():
        with pytest.raises(AudioError, match=message):
            decode(tmp_path / name, 8000)


def test_bad_files_are_reported_together_or_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = [*bad_files(tmp_path), "whole.flac"]
    tracks = [Track(name, tmp_path / name, ("x",), name) for name in names]
    cache = DecodedCache(tmp_path / "cache", 8000)
    with pytest.raises(DataError, match=r"7 of 8 audio files are unusable(.|\n)*data.on_bad_file=skip"):
        cache.build(tracks)
    files = cache.build(tracks, on_bad_file="skip")
    assert [name for name, file in zip(names, files, strict=True) if file is not None] == ["whole.flac"]
    assert "text.wav" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="error, skip"):
        cache.build(tracks, on_bad_file="ignore")


def test_cache_decodes_once_and_notices_a_changed_source(tmp_path: Path) -> None:
    source = tmp_path / "a.wav"
    soundfile.write(source, tone(8000), 8000)
    cache = DecodedCache(tmp_path / "cache", 8000)
    first = cache.add(source)
    written = first.stat().st_mtime_ns
    assert cache.add(source) == first
    assert first.stat().st_mtime_ns == written
    soundfile.write(source, tone(8000, 0.5), 8000)
    assert cache.add(source) != first
    assert DecodedCache(tmp_path / "cache", 4000).path(source) != cache.path(source)


def _build(cache: Path, sources: list[Path]) -> None:
    DecodedCache(cache, 8000).build([Track(p.name, p, ("x",), p.name) for p in sources])


def test_two_processes_build_one_cache(tmp_path: Path) -> None:
    sources = [tmp_path / f"{i}.wav" for i in range(12)]
    for i, path in enumerate(sources):
        soundfile.write(path, tone(8000, pitch=200.0 + 50 * i), 8000)
    context = multiprocessing.get_context("spawn")
    builders = [context.Process(target=_build, args=(tmp_path / "cache", sources)) for _ in range(2)]
    for builder in builders:
        builder.start()
    for builder in builders:
        builder.join(120)
        assert builder.exitcode == 0
    cache = DecodedCache(tmp_path / "cache", 8000)
    for path in sources:
        np.testing.assert_array_equal(np.fromfile(cache.path(path), np.int16), decode(path, 8000))
    assert not list((tmp_path / "cache").rglob("*.tmp"))


def test_read_pcm_and_many_open_files(tmp_path: Path) -> None:
    pcm = np.arange(100, dtype=np.int16)
    for i in range(600):
        (pcm + i).tofile(tmp_path / f"{i}.pcm")
    out = np.empty(10, dtype=np.int16)
    for i in [*range(600), 0]:
        assert read_pcm(str(tmp_path / f"{i}.pcm"), 95, out) == 5
        np.testing.assert_array_equal(out[:5], np.arange(95, 100) + i)
    descriptors = Path("/proc/self/fd")
    if descriptors.exists():
        assert len(list(descriptors.iterdir())) < 900


def test_cache_that_cannot_be_written(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", tone(8000), 8000)
    (tmp_path / "cache").write_text("in the way")
    with pytest.raises(DataError, match=r"data.cache_dir"):
        DecodedCache(tmp_path / "cache", 8000).add(tmp_path / "a.wav")
