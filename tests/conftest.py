"""What tests share: a tiny data set of tones, the embedded data set, and commands called in this process."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a shell's background job: what tests start would ignore it too
    signal.signal(signal.SIGINT, signal.default_int_handler)

REPOSITORY = Path(__file__).resolve().parent.parent
TINY = (  # the smallest run that is a real one
    "data.sample_rate=8000",
    "data.segment_seconds=0.5",
    "data.batch_size=4",
    "data.folds=3",
    "spectrogram.n_fft=256",
    "spectrogram.hop_length=128",
    "spectrogram.n_mels=32",
    "trainer=cpu",
    "trainer.max_epochs=2",
    "num_threads=1",
)


@pytest.fixture(scope="session")
def tones(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a folder-per-class data set: 3 classes of pure tones (300, 900, 2700 Hz) in noise, 6 tracks of 1.2 s each, 8 kHz."""
    root = tmp_path_factory.mktemp("tones")
    draw = np.random.default_rng(0)
    time = np.arange(9600) / 8000
    for name, pitch in (("low", 300.0), ("middle", 900.0), ("high", 2700.0)):
        (root / name).mkdir()
        for number in range(6):
            tone = 0.3 * np.sin(2 * np.pi * pitch * draw.uniform(0.97, 1.03) * time + draw.uniform(0, 6))
            soundfile.write(root / name / f"{number}.wav", tone + 0.02 * draw.standard_normal(len(time)), 8000)
    return root


@pytest.fixture(scope="session")
def tradition_root() -> Path:
    """Give the folder where the embedded data set is built, once, for `make demo` and the tests alike."""
    return Path(os.environ.get("MUSICNET_DATA", REPOSITORY / "data")) / "tradition"


Command = Callable[..., int]


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Call `musicnet-train` in this process, in a folder of its own, and give its exit code."""
    from hydra.core.global_hydra import GlobalHydra

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def command(*overrides: str) -> int:
        from musicnet_eval.train import main

        monkeypatch.setattr(sys, "argv", ["musicnet-train", *overrides])
        GlobalHydra.instance().clear()
        try:
            main()
        except SystemExit as stop:
            return 1 if isinstance(stop.code, str) else int(stop.code or 0)
        finally:
            GlobalHydra.instance().clear()
        return 0

    return command


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Start a headless Chromium, once for all pages."""
    from tests.browsing import start

    chrome = start()
    yield chrome
    chrome.quit()


def only_run(folder: Path) -> Path:
    """Give the one run folder below a folder."""
    from musicnet_eval.records import find_runs

    (run,) = find_runs([folder])
    return run
