from __future__ import annotations

import csv
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from musicnet_eval import records
from musicnet_eval.callbacks import least_probable
from tests.conftest import TINY, Command, only_run


def result(run: Path) -> dict[str, Any]:
    return dict(records.read_result(run))


@pytest.fixture(scope="module")
def finished(tones: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Train once; give the folder that the command was called in."""
    import sys

    from hydra.core.global_hydra import GlobalHydra

    from musicnet_eval.train import main

    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["musicnet-train", "data=folder", f"data.root={tones}", "backbone=test_resnet", *TINY])
        GlobalHydra.instance().clear()
        main()
    return folder


def test_a_run_folder_is_whole(finished: Path, tones: Path) -> None:
    run = only_run(finished)
    assert run.parent == finished / "runs" / tones.name
    assert run.name.startswith("test_resnet-cross_entropy-s0-")
    present = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    expected = {"status.json", "result.json", "config.yaml", "predictions.csv", "metrics.csv", "suspect_labels.csv"}
    expected |= {"checkpoints/best.ckpt", "checkpoints/last.ckpt", "pictures/spectrograms.json", "pictures/hardest.json"}
    present.discard(".lock")  # stays behind on some systems; it holds nothing
    expected |= {f"pictures/suspect-{rank}.png" for rank in range(1, 7)}  # of 6 training songs
    drawn = {f"pictures/spectrogram-{i}.png" for i in range(3)} | {
        f"pictures/hardest-{i}.png" for i in range(6)
    }  # of 6 test songs
    assert present == expected | drawn
    status = json.loads((run / "status.json").read_text())
    assert (status["state"], status["attempt"], status["epoch"]) == ("done", 1, 1)


def test_the_songs_with_the_least_probability_of_their_label_are_drawn_first(finished: Path) -> None:
    run = only_run(finished)
    tested = [row for row in records.read_predictions(run) if row.split == "test"]
    order = [row.song for row in sorted(tested, key=lambda row: row.probabilities[row.label])]
    listed = json.loads((run / "pictures" / "hardest.json").read_text())
    assert [entry["song"] for entry in listed] == order[:6]
    assert all((run / "pictures" / entry["file"]).read_bytes().startswith(b"\x89PNG") for entry in listed)


@pytest.mark.parametrize(
    ("labels", "expected"), [([0, 1, 0], [12, 11]), ([[1, 1], [0, 1], [0, 0]], [12, 11])], ids=["one label", "several"]
)
def test_hardest_songs_by_hand(labels: list[Any], expected: list[int]) -> None:
    chances = torch.tensor([[0.9, 0.1], [0.7, 0.3], [0.2, 0.8]])  # of their labels: 0.9, 0.3, 0.2; or means of 0.5, 0.3, none
    assert least_probable(torch.tensor([10, 11, 12]), chances, torch.tensor(labels), 2) == expected


def test_the_record_says_what_was_run(finished: Path, tones: Path) -> None:
    record = result(only_run(finished))
    assert record["signature"] == only_run(finished).name.rpartition("-")[2]
    assert record["choices"] == {
        "data": tones.name,
        "protocol": "group_kfold",
        "fold": 0,
        "spectrogram": "log_mel",
        "augment": "none",
        "backbone": "test_resnet",
        "loss": "cross_entropy",
        "seed": 0,
    }
    assert record["facts"]["classes"] == ["high", "low", "middle"]
    assert record["facts"]["class_counts"] == [2, 2, 2]
    assert record["facts"]["image_shape"] == [1, 32, 1 + 4000 // 128]
    assert record["facts"]["tracks"] == {"train": 6, "val": 6, "test": 6}
    assert record["facts"]["leaky"] is False
    assert record["overrides"][0] == "data=folder"
    assert record["versions"]["torch"] == torch.__version__.partition("+")[0] or "+" in record["versions"]["torch"]
    assert record["throughput"]["train_segments_per_second"] > 0
    yaml_config = yaml.safe_load((only_run(finished) / "config.yaml").read_text())
    assert yaml_config == record["config"]


def test_predictions_and_metrics_agree(finished: Path) -> None:
    run = only_run(finished)
    metrics = result(run)["metrics"]
    for split in ("val", "test"):
        rows = [row for row in records.read_predictions(run) if row.split == split]
        assert len(rows) == len({row.song for row in rows}) == 6
        assert all(row.song.startswith(row.label) for row in rows)
        assert sum(row.label == row.predicted for row in rows) / 6 == pytest.approx(metrics[f"{split}/song/accuracy"])
        assert all(sum(row.probabilities.values()) == pytest.approx(1, abs=1e-4) for row in rows)
        assert all(row.predicted == max(row.probabilities, key=row.probabilities.__getitem__) for row in rows)
        loss = -sum(math.log(row.probabilities[row.label]) for row in rows) / 6
        assert loss == pytest.approx(metrics[f"{split}/song/log_loss"], rel=1e-3)
    assert metrics["gap/segment/accuracy"] == pytest.approx(metrics["train/segment/accuracy"] - metrics["test/segment/accuracy"])


def test_curves_have_one_row_an_epoch(finished: Path) -> None:
    with (only_run(finished) / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["0", "1"]
    assert {"step", "lr", "train/segment/accuracy", "train/segment/loss", "val/segment/loss", "val/song/f1_macro"} <= set(rows[0])


def test_a_smaller_last_batch_weighs_less(tones: Path, train: Command, tmp_path: Path) -> None:
    assert train("data=folder", f"data.root={tones}", "backbone=stats_linear", *TINY, "data.batch_size=5") == 0
    for row in records.read_curves(only_run(tmp_path / "runs")):  # 12 segments to validate on: batches of 5, 5 and 2
        assert row["val/segment/loss"] == pytest.approx(row["val/segment/log_loss"], rel=1e-5)


def test_checkpoints_hold_tensors_and_plain_data_only(finished: Path) -> None:
    for name in ("best", "last"):
        checkpoint = torch.load(only_run(finished) / "checkpoints" / f"{name}.ckpt", weights_only=True)
        assert any(key.startswith("backbone.") for key in checkpoint["state_dict"])
    assert "optimizer_states" in checkpoint  # `last` holds all that a resumed run needs


def test_done_is_not_done_again(
    finished: Path, tones: Path, monkeypatch: pytest.MonkeyPatch, train: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(finished)
    run = only_run(finished)
    before = (run / "result.json").stat().st_mtime_ns
    same = ("data=folder", f"data.root={tones}", "backbone=test_resnet", *TINY)
    # What cannot change the numbers does not make another run: spelling, threads, caches, loggers.
    assert train(*same, "num_threads=null", "data.cache_dir=elsewhere", "optimizer.lr=1e-3", "callbacks=none") == 0
    assert f"done already: {run.relative_to(finished)}" in capsys.readouterr().out
    assert (run / "result.json").stat().st_mtime_ns == before


def test_the_same_seed_gives_the_same_numbers_another_seed_others(tones: Path, train: Command, tmp_path: Path) -> None:
    common = ("data=folder", f"data.root={tones}", "backbone=test_resnet", *TINY, "+backbone_options.drop_rate=0.3")
    for name, extra in (("a", ()), ("b", ("data.num_workers=1",)), ("c", ("seed=1",))):
        assert train(*common, *extra, f"hydra.run.dir={tmp_path / name}") == 0
    a, b, c = (result(tmp_path / name) for name in "abc")
    assert a["metrics"] == b["metrics"]
    assert (tmp_path / "a/predictions.csv").read_bytes() == (tmp_path / "b/predictions.csv").read_bytes()
    assert (tmp_path / "a/metrics.csv").read_bytes() == (tmp_path / "b/metrics.csv").read_bytes()
    assert a["signature"] == b["signature"] != c["signature"]
    assert a["configuration"] == c["configuration"]
    assert a["metrics"] != c["metrics"]


def test_the_data_moved_elsewhere_is_the_same_run(finished: Path, tones: Path, train: Command, tmp_path: Path) -> None:
    shutil.copytree(tones, tmp_path / "copy")
    overrides = ("data=folder", f"data.root={tmp_path / 'copy'}", "backbone=test_resnet", *TINY)
    assert train(*overrides, f"hydra.run.dir={tmp_path / 'run'}") == 0
    assert result(tmp_path / "run")["signature"] == result(only_run(finished))["signature"]


@pytest.mark.parametrize("loss", ["balanced_trusted", "balanced_trusted_robust", "logit_adjusted"])
@pytest.mark.slow
def test_losses_that_need_facts_train(tones: Path, train: Command, tmp_path: Path, loss: str) -> None:
    assert train("data=folder", f"data.root={tones}", "backbone=stats_linear", f"loss={loss}", *TINY) == 0
    assert result(only_run(tmp_path))["choices"]["loss"] == loss


@pytest.mark.slow
def test_tones_are_learnt(tones: Path, train: Command, tmp_path: Path) -> None:
    """Three pure tones of different pitch: whatever cannot tell them apart is broken."""
    overrides = (
        "data=folder",
        f"data.root={tones}",
        "backbone=stats_linear",
        *TINY,
        "trainer.max_epochs=30",
        "optimizer.lr=0.03",
    )
    assert train(*overrides) == 0
    assert result(only_run(tmp_path))["metrics"]["test/song/accuracy"] == 1.0


@pytest.mark.slow
def test_official_manifest(tones: Path, train: Command, tmp_path: Path) -> None:
    rows = [
        f"{name}/{i}.wav,{name},album{i},{'test' if i < 2 else 'val' if i == 2 else 'train'}"
        for name in ("low", "middle", "high")
        for i in range(6)
    ]
    (tmp_path / "songs.csv").write_text("\n".join(["path,label,group,split", *rows]))
    overrides = ("data=csv", "data.manifest=songs.csv", f"data.root={tones}", "backbone=stats_linear")
    assert train(*overrides, *TINY) == 0
    record = result(only_run(tmp_path))
    assert record["facts"]["tracks"] == {"train": 9, "val": 3, "test": 6}
    assert (record["choices"]["data"], record["choices"]["protocol"]) == ("songs", "official")
    assert record["config"]["data"]["protocol"] == "official"
    assert train(*overrides, *TINY, "data.protocol=group_kfold", f"hydra.run.dir={tmp_path / 'dealt'}") == 0
    assert result(tmp_path / "dealt")["facts"]["tracks"] == {"train": 6, "val": 6, "test": 6}


def test_a_group_in_two_splits_is_refused_or_marked(
    tones: Path, train: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [f"{name}/{i}.wav,{name},elvis,{('test', 'val', 'train')[i % 3]}" for name in ("low", "high") for i in range(6)]
    (tmp_path / "songs.csv").write_text("\n".join(["path,label,group,split", *rows]))
    overrides = ("data=csv", "data.manifest=songs.csv", f"data.root={tones}", "backbone=stats_linear", *TINY)
    assert train(*overrides) == 2
    assert "'elvis' in test and train and val" in capsys.readouterr().err
    assert train(*overrides, "data.allow_group_overlap=true", "++trainer.limit_test_batches=1") == 0
    run = only_run(tmp_path)
    assert result(run)["facts"]["leaky"] is True
    tested = sum(row.split == "test" for row in records.read_predictions(run))
    assert tested < result(run)["facts"]["tracks"]["test"]
    assert f"on {tested} songs" in capsys.readouterr().out


@pytest.mark.slow
def test_splits_of_one_song(tones: Path, train: Command, tmp_path: Path) -> None:
    overrides = ("data=folder", f"data.root={tones}", "backbone=stats_linear", *TINY, "data.folds=18")
    assert train(*overrides) == 0
    assert result(only_run(tmp_path))["facts"]["tracks"] == {"train": 16, "val": 1, "test": 1}


@pytest.mark.parametrize("keep", ["best", "none"])
@pytest.mark.slow
def test_keep_checkpoints(tones: Path, train: Command, tmp_path: Path, keep: str) -> None:
    assert train("data=folder", f"data.root={tones}", "backbone=stats_linear", *TINY, f"run.keep_checkpoints={keep}") == 0
    left = [path.name for path in (only_run(tmp_path) / "checkpoints").iterdir()]
    assert left == (["best.ckpt"] if keep == "best" else [])


def test_secrets_are_written_nowhere(tones: Path, train: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef" * 3)
    overrides = ("data=folder", f"data.root={tones}", "backbone=stats_linear", *TINY, "++paths.note=${oc.env:WANDB_API_KEY}")
    monkeypatch.setenv("LAB_DSN", "postgres-without-login")
    monkeypatch.setenv("LAB_PAT", "github-says-so")
    monkeypatch.setenv("LAB_BASE", "mysql://me:sesame99@host/base")  # by its name it could be anything
    more = ("++paths.dsn=${oc.env:LAB_DSN}", "++paths.pat=${oc.env:LAB_PAT}", "++paths.base=${oc.env:LAB_BASE}")
    assert train(*overrides, *more, "++paths.my_token=hunter2hunter2") == 0
    texts = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert len(texts) > 5
    secrets = (b"0123456789abcdef" * 3, b"hunter2", b"postgres-without-login", b"github-says-so", b"sesame99")
    assert not any(secret in text for text in texts for secret in secrets)
    told = yaml.safe_load((only_run(tmp_path) / "config.yaml").read_text())["paths"]
    assert (told["note"], told["base"]) == ("***", "mysql://***@host/base")
