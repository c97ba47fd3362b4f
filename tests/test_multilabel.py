"""Songs of several labels, through the whole chain: manifest, loader, network, votes, record, tables, prediction."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import sklearn.metrics
import soundfile

from musicnet_eval import evaluate, leaderboard, load_run, predict, records
from musicnet_eval.metrics import ONE_LABEL
from tests.conftest import TINY, Command, only_run

PITCHES = {"bass": 200.0, "flute": 900.0, "piccolo": 2800.0}


@pytest.fixture(scope="session")
def chords(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write 36 mixtures of one to three tones, 8 kHz, 1.2 s each, and the manifest that names the tones of each."""
    root = tmp_path_factory.mktemp("chords")
    draw = np.random.default_rng(0)
    time = np.arange(9600) / 8000
    lines = ["path,label"]
    for number in range(36):
        held = [name for i, name in enumerate(PITCHES) if (number % 7 + 1) >> i & 1]
        audio = 0.02 * draw.standard_normal(len(time))
        for name in held:
            audio = audio + 0.2 * np.sin(2 * np.pi * PITCHES[name] * draw.uniform(0.97, 1.03) * time + draw.uniform(0, 6))
        soundfile.write(root / f"{number}.wav", audio, 8000)
        lines.append(f"{number}.wav,{'|'.join(draw.permutation(held))}")
    (root / "songs.csv").write_text("\n".join(lines))
    return root


@pytest.fixture
def run(chords: Path, train: Command, tmp_path: Path) -> Path:
    data = ("data=csv", f"data.manifest={chords}/songs.csv", "data.protocol=kfold", "loss=bce", "backbone=stats_linear")
    assert train(*data, *TINY, "trainer.max_epochs=12", "optimizer.lr=0.05", "scheduler=constant") == 0
    return only_run(tmp_path)


def test_a_run_on_several_labels_is_whole(run: Path) -> None:
    record = records.read_result(run)
    assert record["facts"]["multilabel"] is True
    assert record["facts"]["classes"] == ["bass", "flute", "piccolo"]
    songs = {key.removeprefix("test/song/") for key in record["metrics"] if key.startswith("test/song/")}
    assert {"roc_auc_macro", "pr_auc_macro", "f1_macro", "accuracy", "log_loss"} <= songs
    assert not songs & set(ONE_LABEL)
    rows = [row for row in records.read_predictions(run) if row.split == "test"]
    truth = np.array([[name in row.label.split("|") for name in PITCHES] for row in rows])
    chances = np.array([[row.probabilities[name] for name in PITCHES] for row in rows])
    assert truth.sum(axis=1).max() > 1
    said = np.array([[name in row.predicted.split("|") for name in PITCHES] for row in rows])
    np.testing.assert_array_equal(said, chances >= 0.5)
    metrics = record["metrics"]
    assert metrics["test/song/roc_auc_macro"] == pytest.approx(sklearn.metrics.roc_auc_score(truth, chances), abs=1e-4)
    assert metrics["test/song/accuracy"] == pytest.approx(sklearn.metrics.accuracy_score(truth, said))
    assert metrics["test/song/roc_auc_macro"] > 0.9  # tones are easy to tell


def test_prediction_and_evaluation_agree_with_the_training(
    run: Path, chords: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [row for row in records.read_predictions(run) if row.split == "test"]
    loaded = load_run(run)
    for row in rows:
        assert loaded.predict(chords / row.song) == pytest.approx(row.probabilities, abs=1e-5)
    capsys.readouterr()
    assert predict.main([str(run), *(str(chords / row.song) for row in rows), "--format", "json"]) == 0
    assert [found["predicted"] for found in json.loads(capsys.readouterr().out)] == [row.predicted for row in rows]
    folder = evaluate.evaluate(run, [])
    assert [row for row in records.read_predictions(folder) if row.split == "test"] == rows
    assert leaderboard.main([str(tmp_path), "--metric", "test/song/pr_auc_macro", "--format", "json"]) == 0


def test_balanced_batches_and_another_vote(chords: Path, train: Command, tmp_path: Path) -> None:
    data = ("data=csv", f"data.manifest={chords}/songs.csv", "data.protocol=kfold", "loss=bce", "backbone=stats_linear")
    assert train(*data, *TINY, "data.sampler=balanced", "model.vote=max") == 0
    run = only_run(tmp_path)
    rows = [row for row in records.read_predictions(run) if row.split == "test"]
    for row in rows:
        assert load_run(run).predict(chords / row.song) == pytest.approx(row.probabilities, abs=1e-5)


def test_calibration_is_reported_before_and_after(chords: Path, train: Command, tmp_path: Path) -> None:
    data = ("data=csv", f"data.manifest={chords}/songs.csv", "data.protocol=kfold", "loss=bce", "backbone=stats_linear")
    assert train(*data, *TINY, "model.calibration=temperature") == 0
    run = only_run(tmp_path)
    record = records.read_result(run)
    assert record["facts"]["temperature"] != 1
    for name in ("log_loss", "brier", "ece", "ece_adaptive"):
        assert f"test/song/{name}_uncalibrated" in record["metrics"]
    assert record["metrics"]["val/song/log_loss"] < record["metrics"]["val/song/log_loss_uncalibrated"]
    rows = [row for row in records.read_predictions(run) if row.split == "test"]
    for row in rows:
        assert load_run(run).predict(chords / row.song) == pytest.approx(row.probabilities, abs=1e-5)
    again = json.loads((evaluate.evaluate(run, []) / "evaluation.json").read_text())["metrics"]
    assert again["test/song/log_loss"] == pytest.approx(record["metrics"]["test/song/log_loss"])


def test_a_loss_for_one_label_is_refused(chords: Path, train: Command, capsys: pytest.CaptureFixture[str]) -> None:
    data = ("data=csv", f"data.manifest={chords}/songs.csv", "data.protocol=kfold", "loss=cross_entropy")
    assert train(*data, *TINY, "backbone=stats_linear") == 2
    assert "loss=bce" in capsys.readouterr().err
