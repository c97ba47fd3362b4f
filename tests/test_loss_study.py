"""The loss study: what it asks for can be composed, and its tables say what its runs say."""

from __future__ import annotations

import csv
import itertools
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from experiments.losses import study, tables
from musicnet_eval import configs
from tests.fake_runs import write_run


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.slow
def test_every_run_composes_and_has_its_place_in_the_tables(quick: bool):
    places = set()
    for sweep in study.sweeps(2, quick=quick):
        axes = [[f"{key}={value}" for value in values.split(",")] for key, _, values in (axis.partition("=") for axis in sweep)]
        for overrides in itertools.product(*axes):
            config = configs.resolved(configs.compose([*study.FIXED, *overrides]))
            plant, loss = config["data"]["plant"], config["loss"]
            choice = next(o.partition("=")[2] for o in overrides if o.startswith("loss="))
            condition = tables.CONDITIONS[plant["wrong_labels"], plant["imbalance"]]
            places.add((condition, tables.LOSSES[choice, loss.get("balance_factor")], config["seed"]))
    assert len(places) == 4 * (len(study.QUICK) if quick else len(tables.LOSSES)) * 2


def planted(folder: Path, loss: str, seed: int, correct: int, ece: float) -> Path:
    config = {"data": {"plant": {"wrong_labels": 0.2, "imbalance": None}}, "loss": {"balance_factor": None}}
    numbers = {"test/song/ece": ece, "test/song/f1_macro": 0.0, "test/song/accuracy": correct / 40}
    run = write_run(folder, correct, 40, metrics=numbers, config=config, loss=loss, seed=seed)
    draw = np.random.default_rng(seed)
    trust, wrong = draw.random(90), draw.random(90) < 0.3
    with (run / "suspect_labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("song", "group", "trust"), *((f"s{i}", f"g{i // 3}", t) for i, t in enumerate(trust))])
    with (run / "planted.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("song", "fault"), *((f"s{i}", "wrong_label") for i in np.flatnonzero(wrong))])
    return run


def test_tables_pair_by_seed_and_correct_by_holm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tables, "BY_SONG", ("test/song/accuracy",))
    monkeypatch.setattr(tables, "BY_SEED", ("test/song/ece",))
    for seed in range(4):
        planted(tmp_path, "cross_entropy", seed, 20 + seed, 0.10 + 0.01 * seed)
        planted(tmp_path, "focal", seed, 24 + seed, 0.05 + 0.011 * seed)
        if seed < 3:  # a study cut short
            planted(tmp_path, "balanced_trusted_robust", seed, 22 + seed, 0.2)
    found = {(line.loss, line.metric): line for line in tables.lines(tables.find(tmp_path))}
    base, focal, robust = (found[name, "test/song/accuracy"] for name in ("cross_entropy", "focal", "balanced_trusted_robust"))
    assert (base.seeds, focal.seeds, robust.seeds) == (4, 4, 3)
    assert base.difference is None
    assert focal.difference == pytest.approx(0.1)
    assert robust.difference == pytest.approx(0.05)  # on the seeds that both have
    assert focal.low < 0.1 < focal.high
    p = sorted([focal.p, robust.p])
    assert sorted([focal.p_holm, robust.p_holm]) == pytest.approx([min(2 * p[0], 1), min(max(2 * p[0], p[1]), 1)])
    ece = found["focal", "test/song/ece"]
    assert ece.difference == pytest.approx(np.mean([-0.05 + 0.001 * seed for seed in range(4)]))
    area = found["focal", "label trust AUROC"]
    each = []
    for seed in range(4):
        draw = np.random.default_rng(seed)
        trust, wrong = draw.random(90), draw.random(90) < 0.3
        each.append(roc_auc_score(wrong, -trust))
    assert area.mean == pytest.approx(np.mean(each))
    assert area.low < area.mean < area.high


def test_auroc_with_weights_and_ties_equals_scikit_learn():
    draw = np.random.default_rng(0)
    for _ in range(20):
        trust, wrong, weight = draw.integers(0, 9, 60) / 9, draw.random(60) < 0.3, draw.integers(0, 3, 60).astype(float)
        assert tables._auroc(trust, wrong, weight) == pytest.approx(roc_auc_score(wrong, -trust, sample_weight=weight))


def test_written_tables_go_between_the_marks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tables, "BY_SONG", ("test/song/accuracy",))
    monkeypatch.setattr(tables, "BY_SEED", ("test/song/ece",))
    for loss in ("cross_entropy", "focal"):
        for seed in range(2):
            config = {"data": {"plant": {"wrong_labels": None, "imbalance": None}}, "loss": {}}
            write_run(tmp_path / "runs", 20, 40, metrics={"test/song/ece": 0.1}, config=config, loss=loss, seed=seed)
    (tmp_path / "README.md").write_text(f"before\n{tables.BEGIN}\nold\n{tables.END}\nafter\n")
    tables.write(tmp_path / "runs", tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "| focal | 2 | 0.500 ± 0.000 | +0.000 " in text
    assert (tmp_path / "differences.png").read_bytes().startswith(b"\x89PNG")
    with (tmp_path / "results.csv").open() as file:
        assert {row["loss"] for row in csv.DictReader(file)} == {"cross_entropy", "focal"}
