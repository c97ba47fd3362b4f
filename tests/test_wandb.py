"""Weights & Biases, offline: each job of a sweep is a run of its own, named by its signature, and finished."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from musicnet_eval import records, wandb_sweep
from tests.conftest import TINY, Command


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
def test_two_jobs_are_two_runs(tones: Path, train: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_SILENT", "true")
    overrides = ("data=folder", f"data.root={tones}", "backbone=stats_linear", "seed=0,1", "logger=wandb", *TINY)
    assert train("-m", *overrides) == 0
    signatures = {records.read_result(run)["signature"] for run in records.find_runs([tmp_path / "runs"])}
    files = {path.stem.removeprefix("run-") for path in (tmp_path / "runs/wandb").glob("offline-run-*/run-*.wandb")}
    (kept,) = (tmp_path / "runs").glob(f"*/{wandb_sweep.KEPT}")
    assert files == signatures | {json.loads(kept.read_text())["id"]}
    assert len(files) == 3  # two jobs and their leaderboard
    assert sys.modules["wandb"].run is None  # nothing is left open for a third job to log into
