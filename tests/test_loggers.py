"""Other loggers than W&B: several at once, read back by the libraries' own readers, also after a resume."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from musicnet_eval import configs, records
from tests.conftest import TINY, Command, only_run

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # MLflow's, of SQLAlchemy


def composed(*overrides: str) -> dict[str, Any]:
    return configs.resolved(configs.compose(overrides))["logger"]


def test_one_logger_several_or_none() -> None:
    assert composed() == composed("logger=none") == {}
    assert set(composed("logger=wandb")) == {"wandb"}
    assert set(composed("logger=[csv,wandb,tensorboard,mlflow]")) == {"csv", "wandb", "tensorboard", "mlflow"}


@pytest.mark.slow
def test_three_at_once_and_a_resume(
    train: Command, tones: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An attempt that stops after one epoch and one that goes on: what each library reads back is what `metrics.csv` says."""
    from mlflow.tracking import MlflowClient
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("MY_TOKEN", "hunter2-hunter2")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "stopping.py").write_text(
        "import pathlib, torch\n"
        "class Loss(torch.nn.CrossEntropyLoss):\n"
        "    def forward(self, scores, label):\n"
        "        if list(pathlib.Path('runs').rglob('last.ckpt')) and not pathlib.Path('mended').exists():\n"
        "            raise RuntimeError('not mended yet')\n"
        "        return super().forward(scores, label)\n"
    )
    run = ("data=folder", f"data.root={tones}", "backbone=stats_linear", "plugins=[stopping]", *TINY)
    run += ("loss._target_=stopping.Loss", "logger=[csv,tensorboard,mlflow]", "+run.api_key=${oc.env:MY_TOKEN}")
    assert train(*run) == 1
    folder = only_run(tmp_path / "runs")
    client = MlflowClient(f"sqlite:///{tmp_path / 'runs/mlflow/mlflow.db'}")
    (experiment,) = (found for found in client.search_experiments() if found.name == folder.parent.name)
    (told,) = client.search_runs([experiment.experiment_id])
    assert told.info.status == "FAILED"

    (tmp_path / "mended").touch()
    assert train(*run, "num_threads=2") == 0  # another value of a key that changes no numbers
    record, curves = records.read_result(folder), records.read_curves(folder)
    (again,) = client.search_runs([experiment.experiment_id])
    assert (again.info.run_id, again.info.status) == (told.info.run_id, "FINISHED")
    assert again.data.params["backbone"] == "stats_linear"
    assert again.data.params["run/api_key"] == "***"
    assert {"signature": record["signature"], "loss": "cross_entropy"}.items() <= again.data.tags.items()
    events = EventAccumulator(str(folder / "logs/tensorboard")).Reload()
    versions = [pd.read_csv(folder / f"logs/csv/version_{number}/metrics.csv") for number in (0, 1)]
    for name in ("val/song/f1_macro", "val/segment/loss", "train/segment/accuracy", "lr"):
        truth = pytest.approx([row[name] for row in curves], rel=1e-5)
        assert [point.value for point in client.get_metric_history(told.info.run_id, name)] == truth
        assert [event.value for event in events.Scalars(name)] == truth
        assert list(pd.concat(versions)[name].dropna()) == truth
    assert events.Scalars("hp_metric")[-1].value == pytest.approx(record["metrics"]["test/song/accuracy"])
    assert yaml.safe_load((folder / "logs/csv/version_1/hparams.yaml").read_text())["seed"] == 0
    assert not [file for file in (tmp_path / "runs").rglob("*") if file.is_file() and b"hunter2" in file.read_bytes()]
    assert not (tmp_path / "mlruns").exists()
    capsys.readouterr()

    monkeypatch.setattr(importlib.util, "find_spec", without("tensorboard"))
    assert train(*run, "seed=1") == 2
    assert "pip install 'musicnet-eval[tensorboard]'" in capsys.readouterr().err


def without(module: str) -> Callable[..., Any]:
    """Look for modules as if one of them were not installed."""
    find = importlib.util.find_spec
    return lambda name, *more: None if name == module else find(name, *more)
