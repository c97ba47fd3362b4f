"""A sweep that is killed three times without warning ends as one that was not; `make soak` does it longer, to every engine."""

from __future__ import annotations

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
