"""Commands whose reader leaves say nothing of it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

from musicnet_eval import audit
from tests import fake_runs


@pytest.fixture
def closed() -> Iterator[int]:
    """Give the end of a pipe that nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    yield writing
    os.close(writing)


@pytest.mark.parametrize("name", ["status", "leaderboard", "report", "audit", "predict", "evaluate"])
def test_nobody_reads_the_help(closed: int, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with os.fdopen(os.dup(closed), "w") as output:
        monkeypatch.setattr(sys, "stdout", output)
        assert import_module(f"musicnet_eval.{name}").main(["--help"]) == 141


def test_nobody_reads_an_audit(closed: int, tones: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with os.fdopen(os.dup(closed), "w", buffering=1) as output:
        monkeypatch.setattr(sys, "stdout", output)
        assert audit.main(["data=folder", f"data.root={tones}", "--out", str(tmp_path), "--workers", "1"]) == 141
    assert (tmp_path / "audit.html").is_file()


def test_nobody_reads_how_runs_stand(closed: int, tmp_path: Path) -> None:
    fake_runs.write_run(tmp_path)
    command = [sys.executable, "-m", "musicnet_eval.status", str(tmp_path)]
    done = subprocess.run(command, stdout=closed, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (141, "")
