"""A sweep that is killed three times without warning ends as one that was not; `make soak` does it longer, to every engine."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from experiments.soak import soak
from tests.conftest import TINY


@pytest.mark.slow
def test_three_kills_change_nothing(tones: Path, tmp_path: Path) -> None:
    axes = ("backbone=test_resnet,stats_linear", "loss=cross_entropy,balanced_trusted_robust", "trainer.max_epochs=3")
    reference, startup = soak.undisturbed(tmp_path, ["data=folder", f"data.root={tones}", *TINY, *axes, "augment=[noise,mixup]"])
    row = soak.soak("basic", 3, reference, startup, seed=0)
    assert row["kills of the sweep"] == 3
    assert row["runs"] == 4 * int(str(row["sweeps"]))
    assert int(str(row["begun again"])) <= 3  # at most the epoch that a kill cut short


@pytest.mark.parametrize(
    "asked",
    [
        lambda sweep: soak.kill_at_random(sweep, random.Random(1), 0.0, of_workers=False),  # draws epochs to wait for
        soak.finish,
        lambda sweep: soak.undisturbed(sweep.folder.parent, sweep.overrides),
    ],
)
def test_a_hang_is_no_kill(asked: Callable[[soak.Sweep], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[subprocess.Popen[bytes]] = []

    def start(sweep: soak.Sweep) -> subprocess.Popen[bytes]:
        begun.append(subprocess.Popen(["sleep", "60"]))
        return begun[-1]

    monkeypatch.setattr(soak.Sweep, "start", start)
    monkeypatch.setattr(soak, "PATIENCE", 0.1)
    sweep = soak.Sweep(tmp_path / "sweep", [])
    with pytest.raises(soak.SoakError, match="has hung"):
        asked(sweep)
    assert not sweep.kills
    assert [process.poll() is None for process in begun] == [False]
