from __future__ import annotations

import os
import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile
import soxr
from scipy.signal import chirp

from musicnet_eval import audio
from musicnet_eval.audio import PcmReader, decode, frames, read_pcm
from musicnet_eval.errors import AudioError


def tone(rate: int, seconds: float = 1.0, pitch: float = 440.0) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * pitch * np.arange(round(rate * seconds)) / rate)


def encode(path: Path, sound: np.ndarray, rate: int, codec: str = "aac") -> None:
    """Write float sound `[T]` or `[T, 2]` with FFmpeg's encoder."""
    channels = np.ascontiguousarray(np.atleast_2d(sound.T), dtype=np.float32)
    with av.open(path, "w") as container:
        stream: Any = container.add_stream(codec, rate=rate, layout="stereo" if len(channels) == 2 else "mono")
        for start in range(0, channels.shape[1], 1024):
            part = np.ascontiguousarray(channels[:, start : start + 1024])
            frame = av.AudioFrame.from_ndarray(part, format="fltp", layout=stream.layout.name)
            frame.sample_rate, frame.pts = rate, start
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


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


@pytest.mark.parametrize("kind", ["flac", "ogg", "mp3", "wav"])
def test_a_second_decoder_agrees(tmp_path: Path, kind: str) -> None:
    soundfile.write(tmp_path / f"a.{kind}", 0.5 * chirp(np.arange(44100) / 22050, 50, 2.0, 5000), 22050)
    ours = decode(tmp_path / f"a.{kind}", 22050)
    with av.open(tmp_path / f"a.{kind}") as container:
        packed: Any = av.AudioResampler(format="flt", layout="mono")
        parts = [part.to_ndarray()[0] for frame in container.decode(audio=0) for part in packed.resample(frame)]
    theirs = np.concatenate(parts)
    assert abs(len(ours) - len(theirs)) < 2500  # they may keep an encoder's padding
    lag = np.correlate(theirs[:12_000], ours[4000:8000] / 32768, mode="valid").argmax() - 4000
    np.testing.assert_allclose(ours[8000:40_000] / 32768, theirs[8000 + lag : 40_000 + lag], atol=2e-3)


# --- FFmpeg, for what libsndfile cannot read ---


@pytest.mark.parametrize(("name", "codec", "error"), [("a.m4a", "aac", 0.02), ("a.m4a", "alac", 1e-4), ("a.mka", "ac3", 0.02)])
def test_other_formats_keep_the_tone_its_level_and_length(tmp_path: Path, name: str, codec: str, error: float) -> None:
    encode(tmp_path / name, tone(44100, 3.0), 44100, codec)
    with pytest.raises(soundfile.LibsndfileError):
        soundfile.info(tmp_path / name)
    got = decode(tmp_path / name, 44100) / 32768
    assert abs(len(got) / 44100 - 3) < 0.07  # AAC and AC-3 come in frames, and keep their padding
    middle = got[20_000 : 20_000 + 44100]
    spectrum = np.abs(np.fft.rfft(middle))
    assert spectrum.argmax() == 440
    assert abs(np.sqrt(2 * np.mean(middle**2)) - 0.5) < error
    assert abs(frames(tmp_path / name, 44100) / 44100 - 3) < 0.07


def test_stereo_and_resampling_through_ffmpeg(tmp_path: Path) -> None:
    sides = np.stack([tone(44100, 2.0), tone(44100, 2.0, 880.0)], axis=1)
    encode(tmp_path / "a.m4a", sides, 44100, "alac")
    got = decode(tmp_path / "a.m4a", 22050, channels=2)
    for side, pitch in zip(got[5000 : 5000 + 22050].T, (440, 880), strict=True):
        assert np.abs(np.fft.rfft(side.astype(float))).argmax() == pitch
    assert len(decode(tmp_path / "a.m4a", 22050, max_seconds=0.5)) == 11025


def test_what_libsndfile_reads_never_goes_to_ffmpeg(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", tone(8000), 8000)
    code = "import sys; from musicnet_eval.audio import decode; from pathlib import Path; decode(Path('a.wav'), 8000)"
    code += "; assert 'av' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


def test_without_the_extra_the_message_names_it(tmp_path: Path) -> None:
    """In a Python that cannot see PyAV: as where it is not installed."""
    encode(tmp_path / "a.m4a", tone(44100), 44100)
    code = "import sys; sys.modules['av'] = None; from musicnet_eval.audio import decode; from pathlib import Path\n"
    code += "try: decode(Path('a.m4a'), 8000)\nexcept Exception as error: print(error)"
    done = subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, capture_output=True, text=True)
    assert "pip install 'musicnet-eval[decode]'" in done.stdout


def test_a_playlist_is_not_followed(tmp_path: Path) -> None:
    """FFmpeg alone would open whatever a playlist names."""
    encode(tmp_path / "a.aac", tone(44100), 44100)
    (tmp_path / "list.m4a").write_text(f"#EXTM3U\n#EXTINF:1,\n{tmp_path}/a.aac\n#EXT-X-ENDLIST\n")
    (tmp_path / "concat.m4a").write_text(f"ffconcat version 1.0\nfile {tmp_path}/a.aac\n")
    for name in ("list.m4a", "concat.m4a"):
        with pytest.raises(AudioError, match="nor does FFmpeg find audio"):
            decode(tmp_path / name, 8000)


# --- rates and channels ---


@pytest.mark.parametrize("rate", [8000, 44100, 48000, 192000])
def test_resampling_keeps_a_tone_and_its_level(tmp_path: Path, rate: int) -> None:
    soundfile.write(tmp_path / "a.wav", tone(rate), rate, subtype="FLOAT")
    got = decode(tmp_path / "a.wav", 22050)[500:-500] / 32768
    want = tone(22050)[500 : 500 + len(got)]
    assert abs(len(got) + 1000 - 22050) <= 1
    assert np.abs(got - want).max() < 1e-3


@pytest.mark.parametrize("rate", [8000, 44100, 192000])
def test_resampling_by_blocks_equals_soxr_on_the_whole_sweep(tmp_path: Path, rate: int) -> None:
    seconds = 3 * audio.BLOCK / rate + 0.3  # several blocks, and a rest
    time = np.arange(round(seconds * rate)) / rate
    sweep = (0.5 * chirp(time, 50, seconds, rate / 2.2)).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", sweep, rate, subtype="FLOAT")
    want = np.rint(soxr.resample(sweep, rate, 22050, quality="HQ") * 32768).astype(np.int16)
    np.testing.assert_array_equal(decode(tmp_path / "a.wav", 22050), want)


def test_a_tone_above_the_new_half_rate_is_killed(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", tone(44100, pitch=15_000.0), 44100, subtype="FLOAT")
    assert np.abs(decode(tmp_path / "a.wav", 22050)[500:-500]).max() < 33  # 60 dB below full scale


@pytest.mark.parametrize("channels", [2, 8])
def test_channels_are_averaged(tmp_path: Path, channels: int) -> None:
    sound = np.stack([tone(8000) * i / channels for i in range(channels)], axis=1)
    soundfile.write(tmp_path / "a.wav", sound, 8000, subtype="FLOAT")
    np.testing.assert_allclose(decode(tmp_path / "a.wav", 8000) / 32768, sound.mean(axis=1), atol=2e-5)


@pytest.mark.parametrize(("channels", "kept"), [(1, [0, 0]), (2, [0, 1]), (8, [0, 1])])
@pytest.mark.parametrize("rate", [8000, 11025])
def test_stereo_keeps_the_first_two_channels_and_doubles_one(tmp_path: Path, channels: int, kept: list[int], rate: int) -> None:
    sound = np.stack([tone(8000, pitch=200.0 + 100 * i) for i in range(channels)], axis=1)
    soundfile.write(tmp_path / "a.wav", sound, 8000, subtype="FLOAT")
    got = decode(tmp_path / "a.wav", rate, channels=2)
    assert got.shape == (rate, 2)
    alone = [soxr.resample(sound[:, i].astype(np.float32), 8000, rate, quality="HQ") for i in kept]
    np.testing.assert_allclose(got / 32768, np.stack(alone, axis=1), atol=2e-5)


def test_louder_than_full_scale_is_clipped_not_wrapped(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", 3 * tone(8000), 8000, subtype="FLOAT")
    pcm = decode(tmp_path / "a.wav", 8000)
    assert pcm.max() == 32767
    assert pcm.min() == -32768


@pytest.mark.parametrize("seconds", [1.5, 0.1, 3.0, 99.0])
def test_max_seconds(tmp_path: Path, seconds: float) -> None:
    soundfile.write(tmp_path / "a.wav", tone(8000, 3.0), 8000)
    assert len(decode(tmp_path / "a.wav", 8000, max_seconds=seconds)) == frames(tmp_path / "a.wav", 8000, seconds)
    assert frames(tmp_path / "a.wav", 8000, seconds) == min(seconds, 3) * 8000


@pytest.mark.slow
def test_an_hour_takes_no_more_memory_than_a_minute(tmp_path: Path) -> None:
    """Stream an hour in a process of its own, and look at its peak memory."""
    soundfile.write(tmp_path / "hour.wav", np.tile(tone(8000, 60.0), 60), 8000)
    code = (
        "import re, resource; from pathlib import Path; from musicnet_eval.audio import blocks\n"
        "def read(seconds): return sum(len(b) for b in blocks(Path('hour.wav'), 11025, seconds))\n"
        # On Linux `ru_maxrss` begins with what pytest has taken.
        "def peak():\n"
        "    status = Path('/proc/self/status')\n"
        "    if status.exists(): return int(re.search(r'VmHWM:\\s+(\\d+)', status.read_text())[1]) * 1024\n"
        "    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "read(60); before = peak(); print(read(None), peak() - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, capture_output=True, text=True)
    samples, grown = map(int, done.stdout.split())
    assert samples == 3600 * 11025
    assert grown < 20e6  # the hour is 159 MB of float


# --- reading the cache's files ---


@pytest.mark.parametrize("bound", [0, 300 * 200, 10**6])
def test_pcm_readers_read_the_same_mapped_or_not_and_keep_no_file_open(tmp_path: Path, bound: int) -> None:
    pcm = np.arange(100, dtype=np.int16)
    for i in range(600):
        (pcm + i).tofile(tmp_path / f"{i}.pcm")
    reader = PcmReader(bound)
    out = np.empty(10, dtype=np.int16)
    for i in [*range(600), 0]:
        assert reader.read(str(tmp_path / f"{i}.pcm"), 95, out) == 5
        np.testing.assert_array_equal(out[:5], np.arange(95, 100) + i)
    assert len(reader.maps) == min(600, bound // 200)
    copy = deepcopy(reader)  # as it is sent to a loader process
    assert not copy.maps
    assert copy.read(str(tmp_path / "7.pcm"), 0, out) == 10
    descriptors = Path("/proc/self/fd")
    if descriptors.exists():
        assert len(list(descriptors.iterdir())) < 900


def test_read_pcm_of_two_channels(tmp_path: Path) -> None:
    sound = np.arange(200, dtype=np.int16).reshape(100, 2)
    sound.tofile(tmp_path / "a.pcm")
    out = np.empty((10, 2), dtype=np.int16)
    assert read_pcm(str(tmp_path / "a.pcm"), 95, out) == 5
    np.testing.assert_array_equal(out[:5], sound[95:])


def test_names_that_are_not_utf8_and_very_long_ones(tmp_path: Path) -> None:
    for name in (os.fsdecode(b"caf\xe9"), "x" * 240, "日本語 'quoted'\n"):
        for kind in ("wav", "mp3"):
            soundfile.write(tmp_path / f"a.{kind}", tone(8000), 8000)
            target = tmp_path / f"{name}.{kind}"
            (tmp_path / f"a.{kind}").rename(target)
            assert abs(len(decode(target, 8000)) - 8000) <= 1
        encode(tmp_path / "a.m4a", tone(44100), 44100)
        (tmp_path / "a.m4a").rename(tmp_path / f"{name}.m4a")
        assert len(decode(tmp_path / f"{name}.m4a", 8000)) >= 8000
