"""`musicnet-dashboard`: the workspace as a golden file, saved twice against the stub of W&B's server, refused with reasons."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb

from musicnet_eval import dashboard
from tests.conftest import REPOSITORY
from tests.fake_runs import write_run
from tests.wandb_stub import KEY, Stub, refused

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
GOLDEN = REPOSITORY / "tests/golden/dashboard.json"


@pytest.fixture(autouse=True)
def afresh() -> Iterator[None]:
    """Let wandb forget server and key, which it keeps for the process."""
    yield
    wandb.teardown()


def sweep(folder: Path) -> Path:
    """Write two networks × two rates × two seeds that say they were logged to W&B."""
    logger = {"wandb": {"project": "mine", "entity": None, "group": None}}
    for backbone in ("resnet18", "stats_linear"):
        for rate in (0.1, 0.01):
            for seed in (0, 1):
                config = {"logger": logger, "optimizer": {"lr": rate, "_target_": "torch.optim.AdamW"}}
                write_run(folder, backbone=backbone, seed=seed, config=config, overrides=[f"optimizer.lr={rate}"])
    return folder


def brief(spec: dict[str, Any]) -> dict[str, Any]:
    """Give what of a workspace is ours: panels section by section, without what the library adds to a table's panel."""
    whole = spec["spec"]["section"]
    (runs,) = whole["runSets"]
    sections = {}
    for section in whole["panelBankConfig"]["sections"]:
        panels = []
        for panel in section["panels"]:
            shown = panel["config"]
            if panel["viewType"] == "Weave":
                shown = {"table": shown["panel2Config"]["exp"]["fromOp"]["inputs"]["key"]["val"]}
            if panel["viewType"] == "Vega2":
                (table,) = (f for f in shown["userQuery"]["queryFields"][0]["fields"] if f["name"] == "summaryTable")
                keys = ("panelDefId", "fieldSettings", "stringSettings")
                shown = {**{key: shown[key] for key in keys}, "table": table["args"][0]["value"]}
            panels.append({panel["viewType"]: shown})
        sections[section["name"]] = {"open": section["isOpen"], "panels": panels}
    sets = {key: runs[key] for key in ("filters", "grouping", "sort")} | {"columns": runs["runFeed"]["columnOrder"]}
    names = {key: spec[key] for key in ("entity", "project", "displayName")}
    return {**names, "runs": sets, "axis": whole["settings"]["xAxis"], "sections": sections}


def test_the_workspace_is_the_golden_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, files = sweep(tmp_path / "mood"), [tmp_path / "1.json", tmp_path / "2.json"]
    for file in files:
        assert dashboard.main([str(folder), "--entity", "lab", "--save", str(file)]) == 0
    assert capsys.readouterr().out.split() == [str(file) for file in files]
    assert files[0].read_text() == files[1].read_text()
    made = brief(json.loads(files[0].read_text()))
    if os.environ.get("WRITE_GOLDEN"):
        GOLDEN.write_text(json.dumps(made, indent=1) + "\n", encoding="utf8")
    assert made == json.loads(GOLDEN.read_text(encoding="utf8"))


def test_what_was_varied_becomes_axes_and_groups(tmp_path: Path) -> None:
    assert dashboard.read(sweep(tmp_path / "a"), "test/song/accuracy").varied == ("choices.backbone", "optimizer.lr")
    for name in ("torch.optim.SGD", "torch.optim.Adam"):  # a whole part was chosen: optimizer=sgd
        config = {"logger": {"wandb": {"project": "mine"}}, "optimizer": {"_target_": name, "lr": 0.1}}
        write_run(tmp_path / "b", config=config, overrides=[f"optimizer={name[-4:]}"])
        recipe = {"logger": {"wandb": {"project": "mine"}}, "trainer": {"max_epochs": len(name)}}
        write_run(tmp_path / "c", config=recipe, overrides=[f"recipe={name[-4:]}"])
    assert dashboard.read(tmp_path / "b", "test/song/accuracy").varied == ("choices.backbone", "optimizer._target_")
    assert dashboard.read(tmp_path / "c", "test/song/accuracy").varied == ("choices.backbone", "configuration")


def test_it_is_saved_and_then_updated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = sweep(tmp_path / "mood")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    with Stub() as stub:
        monkeypatch.setenv("WANDB_BASE_URL", stub.url)
        assert dashboard.main([str(folder)]) == 0
        assert dashboard.main([str(folder)]) == 0
    first, second = stub.views
    assert "id" not in first
    assert second["id"]
    assert (second["name"], second["entityName"], second["projectName"]) == (first["name"], "lab", "mine")
    sent, file = json.loads(second["spec"]), tmp_path / "file.json"
    assert dashboard.main([str(folder), "--save", str(file)]) == 0
    assert sent == json.loads(file.read_text())["spec"]  # what is written is what is sent
    assert capsys.readouterr().out.split()[0].endswith(f"/lab/mine?nw={first['name'][3:-2]}")


@pytest.mark.slow  # wandb waits 20 s for a server that is not there
def test_errors_say_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fails(code: int, text: str, *arguments: str) -> None:
        assert dashboard.main(list(arguments)) == code
        shown = capsys.readouterr()
        assert text in shown.err
        assert not shown.out

    logged, unlogged = str(sweep(tmp_path / "mood")), str(write_run(tmp_path / "plain"))
    fails(2, "is not a folder", str(tmp_path / "nowhere"))
    fails(2, "no run at or below", unlogged)
    fails(2, "metric 'test/song/nothing'", logged, "--metric", "test/song/nothing")
    fails(2, "--project 'a/b' must be a name", logged, "--project", "a/b")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    fails(2, "There is no API key. Run `wandb login`", logged)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_BASE_URL", refused())
    wandb.teardown()  # it keeps the address for the process
    fails(1, "W&B did not take the workspace (no answer from http://127.0.0.1:", logged)
    (tmp_path / "file").touch()
    fails(2, "cannot be written", logged, "--save", str(tmp_path / "file/no.json"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None)
    fails(2, "pip install 'musicnet-eval[dashboard]'", logged)
