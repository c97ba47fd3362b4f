"""A sweep's leaderboard in W&B: one run that is updated, holding what leaderboard.csv holds, read back by W&B's own reader."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import wandb

from musicnet_eval import leaderboard, report, wandb_sweep
from tests.fake_runs import write_failed, write_run
from tests.wandb_stub import KEY, Stub

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
WANDB: dict[str, Any] = {"logger": {"wandb": {"project": "mine"}}}


def sweep(folder: Path, config: dict[str, Any], backbones: tuple[str, ...] = ("resnet18", "stats_linear")) -> Path:
    for data in ("toy", "other"):
        for place, backbone in enumerate(backbones):
            for seed in (0, 1):
                write_run(folder, correct=15 + seed - 3 * place, data=data, backbone=backbone, seed=seed, config=config)
    write_failed(folder / "broken")
    return folder


def publish(folder: Path, **options: Any) -> None:
    page = report.write([folder], folder / "report.html")
    wandb_sweep.publish(
        folder, leaderboard.collect([folder]), page, {"save_dir": str(folder.parent), "project": "mine", **options}
    )


def read_back(file: Path) -> dict[str, Any]:
    """Give the summary of an offline run as `wandb leet inspect` reads it."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--summary", "--json", str(file)]
    found: dict[str, Any] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return found


def test_one_run_that_holds_the_leaderboard(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_DATA_DIR", "")
    monkeypatch.delenv("WANDB_DATA_DIR")
    folder = sweep(tmp_path / "runs/mood", WANDB)
    publish(folder)
    write_run(folder, correct=19, data="toy", backbone="convnext_tiny", config=WANDB)
    publish(folder)
    assert f"wandb sync --no-skip-online {tmp_path / 'runs/wandb/*run-*'}\n" in capsys.readouterr().out
    kept = json.loads((folder / wandb_sweep.KEPT).read_text())
    files = sorted((tmp_path / "runs/wandb").glob("offline-run-*/run-*.wandb"))
    assert [file.stem for file in files] == [f"run-{kept['id']}"] * 2  # the same run, taken up again
    told = read_back(files[-1])
    assert (told["state"], told["project"], told["tags"], told["run_id"]) == ("finished", "mine", ["leaderboard"], kept["id"])
    told = told["summary"]
    assert (told["configurations"], told["runs"], told["failed"]) == (5, 9, 1)
    assert (told["best/toy"], told["mean/toy"], told["best/other"]) == ("convnext_tiny", 0.95, "resnet18")

    media = files[-1].parent / "files"
    logged = json.loads((media / told["leaderboard"]["path"]).read_text())
    board = leaderboard.collect([folder])
    truth = list(csv.DictReader(io.StringIO(leaderboard.to_csv(board))))
    assert logged["columns"] == list(truth[0])
    assert [["" if cell is None else str(cell) for cell in row] for row in logged["data"]] == [
        list(row.values()) for row in truth
    ]
    bars = json.loads((media / told["leaderboard/toy_table"]["path"]).read_text())["data"]
    assert bars == [["convnext_tiny", 0.95], ["resnet18", 0.775], ["stats_linear", 0.625]]
    assert (media / told["leaderboard/report"]["path"]).read_text() == (folder / "report.html").read_text()
    staged = [json.loads(file.read_text())["data"] for file in (tmp_path / "runs/wandb/data/artifacts/staging").iterdir()]
    assert logged["data"] in staged  # what `wandb sync` is going to look for


@pytest.mark.slow
def test_online_it_goes_to_the_group_of_the_runs_and_is_linked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = sweep(tmp_path / "runs/mood", WANDB, ("resnet18",))
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    with Stub() as stub:
        monkeypatch.setenv("WANDB_BASE_URL", stub.url)
        wandb.teardown()
        publish(folder, offline=False)
        publish(folder, offline=False)
        wandb.teardown()
    kept = json.loads((folder / wandb_sweep.KEPT).read_text())
    assert kept["url"] == f"{stub.url}/lab/mine/runs/{kept['id']}"
    assert not kept["troubles"]
    told = stub.runs[kept["id"]]
    named = {name: told.attributes[name] for name in ("displayName", "groupName", "jobType")}
    assert named == {"displayName": "leaderboard of mood", "groupName": "mood", "jobType": "leaderboard"}
    assert told.exit_code == 0
    assert told.summary["configurations"] == 2
    assert any(name.endswith(".html") for name in told.files)
    assert [name for name in stub.runs if name not in ("artifacts", kept["id"])] == []  # taken up again, not anew


def test_what_was_not_logged_to_wandb_stays_out(tmp_path: Path) -> None:
    folder = sweep(tmp_path / "runs/mood", {"logger": {}})
    publish(folder)
    assert not (tmp_path / "runs/wandb").exists()
    assert not (folder / wandb_sweep.KEPT).exists()


def test_a_wrong_option_is_said_and_harms_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = sweep(tmp_path / "runs/mood", WANDB, ("resnet18",))
    publish(folder, settings={"no_such_setting": 1})
    assert "logger.wandb.settings" in capsys.readouterr().err


def test_a_file_that_cannot_be_written_is_said_and_harms_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    folder = sweep(tmp_path / "runs/mood", WANDB, ("resnet18",))
    (folder / wandb_sweep.KEPT).mkdir()  # as good as a full disk
    publish(folder)
    assert f"could not write {wandb_sweep.KEPT}" in capsys.readouterr().err
