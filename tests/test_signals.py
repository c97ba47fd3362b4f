"""Ctrl-C and SIGTERM end a run with the signal's exit code, and leave it marked as interrupted."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import TINY


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("mode", [[], ["-m"]])
def test_signals(tones: Path, tmp_path: Path, number: signal.Signals, code: int, mode: list[str]) -> None:
    overrides = ["data=folder", f"data.root={tones}", "backbone=test_resnet", *TINY, "trainer.max_epochs=100000"]
    command = [sys.executable, "-m", "musicnet_eval.train", *mode, *overrides]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 240
        while not list(tmp_path.rglob("metrics.csv")):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.2)
        process.send_signal(number)
        _, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == code
    assert "Traceback" not in errors
    (status,) = tmp_path.rglob("status.json")
    assert json.loads(status.read_text())["state"] == "interrupted"
    assert not list(tmp_path.rglob("result.json"))
