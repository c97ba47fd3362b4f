"""Weights & Biases: what a run shows there, read back by wandb's own reader; and that nothing which goes wrong there harms a run.

Truth: `wandb leet inspect` for offline files, a server of our own for online ones, scikit-learn for tables, the run's own files.
"""

from __future__ import annotations

import csv
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import wandb
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support
from wandb.util import get_core_path

from musicnet_eval import records, wandb_files, wandb_run, wandb_settings, wandb_tables
from musicnet_eval.errors import ConfigError
from musicnet_eval.metrics import METRICS, Scored
from musicnet_eval.records import Prediction
from tests.conftest import TINY, Command, only_run
from tests.wandb_stub import KEY, Run, Stub, refused

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
TOKEN, TYPED = "hunter2-hunter2-hunter2", "hunter3-hunter3-hunter3"  # of the environment; typed
# What is told once, and kept for the process: a key, a mode, a server.
VARIABLES = ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL", "WANDB_PROJECT", "WANDB_ENTITY", "WANDB_DIR", "WANDB_RUN_GROUP")


@pytest.fixture(autouse=True, scope="module")
def collected() -> Iterator[None]:
    """Have what wandb leaves of its artifacts, folders in cycles, collected while the warnings about it are ignored."""
    yield
    gc.collect()


@pytest.fixture(autouse=True)
def afresh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Let wandb know nothing of this machine's user, and forget what it was told."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name in ("WANDB_DATA_DIR", "WANDB_ERROR_REPORTING"):  # which a run sets; put back afterwards
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(wandb_run, "_unreachable", None)
    wandb.teardown()
    yield
    wandb.teardown()


def asked(tones: Path, *more: str) -> list[str]:
    return ["data=folder", f"data.root={tones}", "backbone=stats_linear", "logger=wandb", *TINY, *more]


def inspect(folder: Path) -> list[dict[str, Any]]:
    """Read a run back with W&B's own reader, a dictionary a record (`wandb leet inspect --json`)."""
    (file,) = folder.glob("run-*.wandb")
    core = [get_core_path(), "leet", "inspect", "--no-observability"]
    command = [*core, "--json", "--run-file", str(file), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def history(told: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [one["history"]["item"] for one in told if one["type"] == "history"]


def summary(told: list[dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for one in told:
        found |= one["summary"].get("update", {}) if one["type"] == "summary" else {}
    return found


def ended(told: list[dict[str, Any]]) -> int:
    """Give the exit code; what is not written when it is 0 counts as 0."""
    (last,) = [one["exit"] for one in told if one["type"] == "exit"]
    return int(last.get("exit_code", 0))


def folder_of(run: Path) -> Path:
    """Give the folder of a run's W&B files, as its status says."""
    return Path(records.read_json(run / records.STATUS)["wandb"]["folder"])


def check_curves(told: list[dict[str, Any]], run: Path) -> None:
    """Compare what W&B has by epoch with `metrics.csv`: every number of every epoch, and nothing else of these names."""
    with (run / records.METRICS).open(newline="") as file:
        expected = list(csv.DictReader(file))
    for row in expected:
        heard: dict[str, Any] = {}
        for item in history(told):
            if item.get("epoch") == int(row["epoch"]):
                heard |= item
        names = set(row) - {"epoch", "step"}
        assert names <= set(heard)
        assert {name for name in heard if name.startswith(("train/", "val/", "gap/"))} <= names
        for name in names:
            assert heard[name] == pytest.approx(float(row[name]), rel=1e-5), name
        assert heard["epoch"] == int(row["epoch"])
        assert heard["trainer/global_step"] >= 0


# --- offline: four jobs in one process, four at once ---------------------------------------------------------------------------


FAILING = """
import os
import torch


class Loss(torch.nn.CrossEntropyLoss):
    '''Fail in one job of four, with a secret in the message.'''

    def __init__(self, fails):
        super().__init__()
        self.fails = fails

    def forward(self, scores, label):
        if self.fails:
            raise RuntimeError("cannot log in with " + os.environ["MY_LAB_TOKEN"])
        return super().forward(scores, label)
"""


@pytest.mark.slow
def test_four_jobs_in_one_process(
    tones: Path, train: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each is one W&B run with its true end and what its files say; secrets are nowhere; numbers are as without W&B."""
    (tmp_path / "failing.py").write_text(FAILING)
    own = ("plugins=[failing]", "loss._target_=failing.Loss")
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "wandb", None)  # to import it would fail
        assert train(*asked(tones, *own, "+loss.fails=false", "logger=none", "hydra.run.dir=plain")) == 0
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("MY_LAB_TOKEN", TOKEN)
    given = [*asked(tones, *own, "+note=${oc.env:MY_LAB_TOKEN}", f"+lab_token={TYPED}"), "logger.wandb.tags=[mine]"]
    assert train("-m", *given, "seed=0,1", "+loss.fails=false,true") == 1
    said = capsys.readouterr()
    assert f"upload with: {wandb_files.SYNC} {Path('runs/wandb')}" in said.out
    assert TOKEN not in said.out + said.err
    runs = records.find_runs([tmp_path / "runs" / tones.name])
    assert len(runs) == 4
    for run in runs:
        check_run(run, inspect(folder_of(run)), tones.name)
    assert wandb.run is None
    assert len(list((tmp_path / "runs/wandb").glob("offline-run-*"))) == 5  # and the leaderboard's
    (same,) = [run for run in runs if "-s0-" in run.name and (run / records.RESULT).exists()]
    assert (same / records.METRICS).read_bytes() == (tmp_path / "plain" / records.METRICS).read_bytes()
    for file in [*(tmp_path / "runs").rglob("*"), *(tmp_path / "home").rglob("*")]:
        if file.is_file():
            assert not any(secret.encode() in file.read_bytes() for secret in (KEY, TOKEN, TYPED)), file


def check_run(run: Path, told: list[dict[str, Any]], data: str) -> None:
    """Compare what W&B holds of one run of the sweep with the files of the run."""
    (about,) = [one["run"] for one in told if one["type"] == "run"]
    config: dict[str, Any] = about["config"]["update"]
    for one in told:
        config |= one["config"].get("update", {}) if one["type"] == "config" else {}
    status, found = records.read_json(run / records.STATUS), summary(told)
    identity = wandb_run.identity(status["signature"], data, run.parent.name)
    assert (about["run_id"], about["run_group"], about["job_type"]) == (identity, data, "train")
    assert {data, "stats_linear", "log_mel", "mine"} <= set(about["tags"])
    assert (config["note"], config["lab_token"], config["choices"]["backbone"]) == ("***", "***", "stats_linear")
    assert config["optimizer"]["lr"] == 0.001
    assert status["wandb"]["troubles"] == []
    if (run / records.FAILED).exists():
        assert (ended(told), found["state"]) == (1, "failed")
        assert found["error"] == "RuntimeError: cannot log in with ***"
        return
    assert (ended(told), found["state"]) == (0, "done")
    record = records.read_result(run)
    assert (record["facts"]["wandb"]["id"], config["signature"]) == (identity, record["signature"])
    assert config["configuration"] == record["configuration"]
    check_curves(told, run)
    assert [item["epoch"] for item in history(told) if item.get("throughput/train_segments_per_second", 0) > 0] == [0, 1]
    last = records.read_curves(run)[-1]
    assert found["val/song/accuracy"] == pytest.approx(last["val/song/accuracy"])
    best = max(records.read_curves(run), key=lambda row: row["val/song/f1_macro"])
    assert found["best/epoch"] == record["facts"]["best_epoch"] == best["epoch"]
    assert found["best/val/song/f1_macro"] == found["objective"] == record["metrics"]["val/song/f1_macro"]
    assert found["test/song/accuracy"] == record["metrics"]["test/song/accuracy"]
    assert {*wandb_run.TABLES, wandb_run.EXAMPLES} <= {name.partition("._type")[0] for name in found}
    folder = Path(status["wandb"]["folder"]) / "files/media/table"
    (said,) = (json.loads(file.read_text()) for file in (folder / "test").glob("predictions_*.json"))
    songs = {row.song: row for row in records.read_predictions(run) if row.split == "test"}
    assert {row[0]: row[3] for row in said["data"]} == {name: row.predicted for name, row in songs.items()}


@pytest.mark.slow
def test_four_jobs_at_once(tones: Path, train: Command, tmp_path: Path) -> None:
    light = ("callbacks=none", "+callbacks.table._target_=musicnet_eval.callbacks.MetricsTable", "trainer.max_epochs=1")
    assert train("-m", *asked(tones, "hydra/launcher=process", "hydra.launcher.n_jobs=4", "seed=0,1,2,3", *light)) == 0
    runs = records.find_runs([tmp_path / "runs" / tones.name])
    assert len({folder_of(run) for run in runs}) == 4
    for run in runs:
        told = inspect(folder_of(run))
        assert ended(told) == 0
        assert [one["run"]["run_group"] for one in told if one["type"] == "run"] == [tones.name]
        check_curves(told, run)


STOP = """
import os, pathlib, signal
from lightning.pytorch.callbacks import Callback


class Stop(Callback):
    def on_train_epoch_start(self, trainer, module):
        if trainer.current_epoch == 1 and not pathlib.Path("stopped").exists():
            pathlib.Path("stopped").touch()
            os.kill(os.getpid(), signal.{name})
"""


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), pytest.param("SIGINT", 130, marks=pytest.mark.slow)])
def test_an_interrupted_run_goes_on_as_the_same_run(
    tones: Path, train: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, code: int
) -> None:
    """Ctrl-C ends its W&B run with 130, Slurm with 143; asked for again it is the same run, here and on a server."""
    plugin = f"stop_once_by_{name}"  # a name of its own: modules stay imported from test to test
    (tmp_path / f"{plugin}.py").write_text(STOP.replace("{name}", name))
    overrides = asked(tones, f"plugins=[{plugin}]", "callbacks=none", f"+callbacks.stop._target_={plugin}.Stop")
    assert train(*overrides, "+callbacks.table._target_=musicnet_eval.callbacks.MetricsTable") == code
    run = only_run(tmp_path / "runs" / tones.name)
    first = inspect(folder_of(run))
    assert (ended(first), summary(first)["state"]) == (code, "interrupted")
    assert train(*overrides, "+callbacks.table._target_=musicnet_eval.callbacks.MetricsTable") == 0
    second = inspect(folder_of(run))
    assert ended(second) == 0
    identity = records.read_result(run)["facts"]["wandb"]["id"]
    assert {one["run"]["run_id"] for one in (*first, *second) if one["type"] == "run"} == {identity}
    check_curves([*first, *second], run)
    with Stub() as stub:
        synced(stub, capsys.readouterr().out, tmp_path)
        assert set(stub.runs) - {"artifacts"} == {identity}
        check_arrived(stub.runs[identity], run)


def test_attempts_are_uploaded_in_their_order(tmp_path: Path) -> None:
    names = ("offline-run-20261128_072235-a1-b2", "offline-run-20261128_072235-a1-b2-1", "run-20261128_072240-a1-b2")
    for name in (*names, "run-20261128_072230-a1-c3", "offline-run-20261128_072239-a1-b2"):  # another run's, and one that arrived
        (tmp_path / name).mkdir()
        (tmp_path / name / "run-a1-b2.wandb").touch()
    wandb_files.mark_synced(tmp_path / "offline-run-20261128_072239-a1-b2")
    assert [attempt.name for attempt in wandb_files.attempts(tmp_path, "a1-b2")] == list(names)
    listed = subprocess.run(
        ["bash", "-c", wandb_files.upload_command(tmp_path, "a1-b2").replace("wandb sync --no-skip-online", "echo")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "a1-c3" not in listed.stdout
    assert all(name in listed.stdout for name in names)
    wandb_files.replace(tmp_path / names[-1], "a1-b2")
    assert [attempt.name for attempt in wandb_files.attempts(tmp_path, "a1-b2")] == [names[-1]]


KILL = STOP.replace("os.kill(", "__import__('time').sleep(4)  # until wandb has written something\n            os.kill(")


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["offline", "online"])
def test_a_killed_run_goes_on_as_the_same_run(tones: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    """SIGKILL leaves a file that is cut short; all that came before and after it arrives, and its end is the last one's."""
    (tmp_path / "killed_once.py").write_text(KILL.replace("{name}", "SIGKILL"))
    given = asked(tones, "plugins=[killed_once]", "callbacks=none", "+callbacks.stop._target_=killed_once.Stop")
    table = "+callbacks.table._target_=musicnet_eval.callbacks.MetricsTable"
    command = [sys.executable, "-m", "musicnet_eval.train", *given, table]
    with Stub() as stub:
        if mode == "online":
            online(monkeypatch, stub.url)
        ends = [subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120) for _ in range(2)]
        assert [end.returncode for end in ends] == [-9, 0], ends[1].stderr
        if mode == "offline":
            synced(stub, ends[1].stdout, tmp_path)
        else:
            synced(stub, f"upload with: {wandb_files.SYNC} runs/wandb/*run-*", tmp_path)  # nothing is left to upload
        run = only_run(tmp_path / "runs" / tones.name)
        heard = stub.runs[records.read_result(run)["facts"]["wandb"]["id"]]
    assert {row["epoch"] for row in heard.history if "epoch" in row} == {row["epoch"] for row in records.read_curves(run)}
    assert (heard.exit_code, heard.summary["state"]) == (0, "done")


def synced(stub: Stub, out: str, beside: Path) -> None:
    """Run, in a shell, the last line that says how to upload."""
    line = [line for line in out.splitlines() if "upload with: " in line][-1].partition("upload with: ")[2]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "WANDB_API_KEY": KEY, "WANDB_BASE_URL": stub.url, "PATH": path}
    done = subprocess.run(["bash", "-c", line], cwd=beside, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    print(done.stdout, done.stderr)  # wandb leaves with 0 also where it could not upload


def check_arrived(heard: Run, run: Path) -> None:
    """Compare what a server has with the run's files: its curves, each epoch once, and its end."""
    curve = [(row["epoch"], row["val/song/accuracy"]) for row in heard.history if "val/song/accuracy" in row]
    assert curve == [(row["epoch"], pytest.approx(row["val/song/accuracy"])) for row in records.read_curves(run)]
    assert (heard.exit_code, heard.summary["state"], heard.summary.get("error")) == (0, "done", None)


REPEATS = """
import pathlib, torch
from lightning.pytorch.callbacks import Callback


class Fail(Callback):
    '''Fail once, in the second epoch.'''

    def on_train_epoch_start(self, trainer, module):
        if trainer.current_epoch == 1 and not pathlib.Path("failed").exists():
            pathlib.Path("failed").touch()
            raise {error}("planned")
"""


def repeating(tones: Path, tmp_path: Path, error: str, name: str) -> list[str]:
    (tmp_path / f"{name}.py").write_text(REPEATS.replace("{error}", error))
    table = "+callbacks.table._target_=musicnet_eval.callbacks.MetricsTable"
    return asked(tones, f"plugins=[{name}]", "callbacks=none", table, f"+callbacks.fail._target_={name}.Fail")


@pytest.mark.slow
def test_a_retried_run_has_no_error_left(tones: Path, train: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = repeating(tones, tmp_path, "RuntimeError", "fails_once")
    with Stub() as stub:
        online(monkeypatch, stub.url)
        assert train(*given) == 1
        (heard,) = (run for name, run in stub.runs.items() if name != "artifacts")
        assert (heard.exit_code, heard.summary["error"]) == (1, "RuntimeError: planned")
        assert train(*given) == 0
        check_arrived(heard, only_run(tmp_path / "runs" / tones.name))


@pytest.mark.slow
@pytest.mark.parametrize("how", ["by force", "with half the batch"])
def test_what_begins_anew_is_uploaded_alone(
    tones: Path, train: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    given = asked(tones, "callbacks=none", "+callbacks.table._target_=musicnet_eval.callbacks.MetricsTable")
    if how == "by force":
        assert train(*given, "trainer.max_epochs=3") == train(*given, "trainer.max_epochs=3", "run.force=true") == 0
    else:
        error = "torch.OutOfMemoryError"
        assert train(*repeating(tones, tmp_path, error, "fills_memory"), "run.on_oom=halve_batch") == 0
    assert len(list((tmp_path / "runs/wandb").glob("offline-run-*"))) == 2
    run = only_run(tmp_path / "runs" / tones.name)
    with Stub() as stub:
        synced(stub, capsys.readouterr().out, tmp_path)
        check_arrived(stub.runs[records.read_result(run)["facts"]["wandb"]["id"]], run)


@pytest.mark.slow
def test_data_sets_of_one_layout_are_runs_of_their_own(tones: Path, train: Command, tmp_path: Path) -> None:
    (tmp_path / "noisy").symlink_to(tones)
    roots = f"data.root={tones},{tmp_path / 'noisy'}"
    given = [one for one in asked(tones, "callbacks=none", "trainer.max_epochs=1") if not one.startswith("data.root")]
    assert train("-m", *given, roots) == 0
    runs = records.find_runs([tmp_path / "runs"])
    assert len({records.read_json(run / records.STATUS)["signature"] for run in runs}) == 1
    assert len({records.read_json(run / records.STATUS)["wandb"]["id"] for run in runs}) == 2


@pytest.mark.slow
def test_the_line_names_the_id_that_wandb_chose(
    tones: Path, train: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_SWEEP_ID", "theirs")
    assert train(*asked(tones, "callbacks=none", "trainer.max_epochs=1")) == 0
    told = records.read_result(only_run(tmp_path / "runs" / tones.name))["facts"]["wandb"]
    assert told["folder"].endswith(told["id"])
    assert f"/*run-*-{told['id']}*\n" in capsys.readouterr().out


@pytest.mark.slow
def test_histograms_and_checkpoints_on_request(tones: Path, train: Command, tmp_path: Path) -> None:
    network = ("backbone=test_resnet", "trainer.max_epochs=1")
    assert train(*asked(tones, *network, "callbacks=[default,histograms]", "logger.wandb.checkpoints=best")) == 0
    run = only_run(tmp_path / "runs" / tones.name)
    assert train(*asked(tones, *network, "logger=none", "hydra.run.dir=plain")) == 0  # to look changes nothing
    assert (tmp_path / "plain" / records.METRICS).read_bytes() == (run / records.METRICS).read_bytes()
    assert records.read_result(tmp_path / "plain")["signature"] == records.read_result(run)["signature"]
    told = inspect(folder_of(run))
    artifacts = {one["artifact"]["name"]: one["artifact"] for one in told if one["type"] == "artifact"}
    kept = artifacts[f"model-{records.read_result(run)['facts']['wandb']['id']}"]
    assert [file["path"] for file in kept["manifest"]["contents"]] == ["best.ckpt"]
    names = {name.partition("._type")[0] for item in history(told) for name in item if name.endswith("._type")}
    assert {name.partition("/")[0] for name in names} >= {"gradients", "weights"}
    row = next(item for item in history(told) if "weights/fc.weight.values" in item)
    assert sum(row["weights/fc.weight.values"]) == 3 * 96  # three classes times what the last layer sees
    assert len(row["weights/fc.weight.bins"]) == 33


def test_histograms_need_wandb(tones: Path, train: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(*asked(tones, "logger=none", "callbacks=histograms")) == 2
    assert "Add logger=wandb" in capsys.readouterr().err


KILLING = """
import os, signal, subprocess
from lightning.pytorch.callbacks import Callback


class Kill(Callback):
    '''Kill wandb's own process once, as the system may when memory runs out.'''

    done = False

    def on_train_epoch_start(self, trainer, module):
        if trainer.current_epoch == 1 and not Kill.done:
            Kill.done = True
            said = subprocess.check_output(["pgrep", "-P", str(os.getpid()), "-f", "wandb-core"])
            os.kill(int(said), signal.SIGKILL)
"""


@pytest.mark.slow
def test_a_dead_service_harms_neither_this_run_nor_the_next(
    tones: Path, train: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "killing.py").write_text(KILLING)
    more = ("plugins=[killing]", "callbacks=none", "+callbacks.kill._target_=killing.Kill", "seed=0,1")
    assert train("-m", *asked(tones, *more)) == 0
    assert "W&B: could not log metrics (ConnectionResetError" in capsys.readouterr().err
    first, second = records.find_runs([tmp_path / "runs" / tones.name])
    assert records.read_json(first / records.STATUS)["wandb"]["troubles"]
    assert records.read_json(second / records.STATUS)["wandb"]["troubles"] == []
    assert ended(inspect(folder_of(second))) == 0


FREEZING = """
import os, signal, subprocess
from lightning.pytorch.callbacks import Callback


class Freeze(Callback):
    '''Stop wandb's own process once, and log more than fits between it and us.'''

    def on_train_epoch_start(self, trainer, module):
        if trainer.current_epoch == 1:
            said = subprocess.check_output(["pgrep", "-P", str(os.getpid()), "-f", "wandb-core"])
            os.kill(int(said), signal.SIGSTOP)
            for number in range(20):
                trainer.loggers[0].log_metrics({"epoch": 1, "note": str(number) * 1_000_000})
"""


@pytest.mark.slow
def test_a_frozen_service_does_not_hold_up_the_run(
    tones: Path, train: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "freezing.py").write_text(FREEZING)
    more = ("plugins=[freezing]", "+callbacks.freeze._target_=freezing.Freeze", *SHORT)
    assert train(*asked(tones, *more)) == 0
    assert "W&B: could not log metrics within 2 s, and does not wait for it" in capsys.readouterr().err
    run = only_run(tmp_path / "runs" / tones.name)
    assert records.read_json(run / records.STATUS)["wandb"]["troubles"]
    assert [row["epoch"] for row in records.read_curves(run)] == [0, 1]
    left = subprocess.run(["pgrep", "-P", str(os.getpid()), "-f", "wandb-core"], check=False, stdout=subprocess.DEVNULL)
    assert left.returncode == 1  # none


SHORT = ("logger.wandb.init_seconds=3", "logger.wandb.finish_seconds=2")  # of waiting


# --- online: a server that works, and servers that do not --------------------------------------------------------------------


def online(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    for name, value in (("WANDB_API_KEY", KEY), ("WANDB_BASE_URL", url), ("WANDB_MODE", "online")):
        monkeypatch.setenv(name, value)


@pytest.mark.slow
def test_a_server_gets_the_run_as_it_ended(
    tones: Path, train: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with Stub() as stub:
        online(monkeypatch, stub.url)
        assert train(*asked(tones)) == 0
        run = only_run(tmp_path / "runs" / tones.name)
        identity = records.read_result(run)["facts"]["wandb"]["id"]
        heard = stub.runs[identity]
        assert stub.unknown == []
        assert f"W&B: {stub.url}/lab/musicnet_eval/runs/{identity}" in capsys.readouterr().out
        assert (heard.exit_code, heard.summary["state"]) == (0, "done")
        assert (heard.attributes["groupName"], heard.attributes["jobType"]) == (tones.name, "train")
        assert heard.attributes["displayName"].startswith(f"{tones.name} fold 0 · stats_linear")
        curve = {row["epoch"]: row["val/song/accuracy"] for row in heard.history if "val/song/accuracy" in row}
        expected = {row["epoch"]: row["val/song/accuracy"] for row in records.read_curves(run)}
        assert curve == pytest.approx(expected)
        assert any(name.endswith("test/predictions.table.json") for name in stub.runs["artifacts"].files)
        size = sum(len(content) for one in stub.runs.values() for content in one.files.values())
        assert 20_000 < size < 1_000_000
        count = len(heard.history)
        synced(stub, f"upload with: {wandb_files.SYNC} runs/wandb/*run-*", tmp_path)
        assert len(heard.history) == count  # what is there already is left out
        assert train(*asked(tones, "run.force=true")) == 0  # once more: the same run
        assert list(stub.runs) == [identity, "artifacts"]


@pytest.mark.parametrize(
    "trouble", ["no key", *(pytest.param(name, marks=pytest.mark.slow) for name in ("errors", "hang", "refused"))]
)
def test_without_a_server_it_goes_on_offline(
    tones: Path, train: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], trouble: str
) -> None:
    with Stub(trouble if trouble in ("errors", "hang") else "healthy") as stub:
        online(monkeypatch, refused() if trouble == "refused" else stub.url)
        if trouble == "no key":
            monkeypatch.delenv("WANDB_API_KEY")
        began = time.monotonic()
        several = ("-m", "seed=0,1") if trouble == "refused" else ()  # the second is not made to wait too
        assert train(*several, *asked(tones, *SHORT, "callbacks=none", "trainer.max_epochs=1")) == 0
        assert time.monotonic() - began < 120  # a bound against hanging, no measure of speed
    said = capsys.readouterr()
    assert "could not begin online, and goes on offline" in said.err
    assert f"upload with: {wandb_files.SYNC}" in said.out
    assert "Traceback" not in said.err
    for run in records.find_runs([tmp_path / "runs" / tones.name]):
        told = records.read_result(run)["facts"]["wandb"]
        assert (told["asked"], told["mode"]) == ("online", "offline")
        reason = "no API key" if trouble == "no key" else "not asked again so soon" if "-s1-" in run.name else "Error"
        assert reason in told["troubles"][0]
        assert ended(inspect(folder_of(run))) == 0


@pytest.mark.slow
def test_a_server_that_fails_in_mid_run(tones: Path, tmp_path: Path) -> None:
    """The run ends well, in time, leaves no process behind, and on disk is everything for a later `wandb sync`."""
    with Stub(then="errors") as stub:
        env = {**os.environ, "WANDB_API_KEY": KEY, "WANDB_BASE_URL": stub.url, "WANDB_MODE": "online"}
        command = [sys.executable, "-m", "musicnet_eval.train", *asked(tones, *SHORT)]
        # wandb's own process has our output too: as long as it lives, this waits
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    run = only_run(tmp_path / "runs" / tones.name)
    check_troubled(done.stdout, done.stderr, run, tmp_path)
    with Stub() as healthy:
        synced(healthy, done.stdout, tmp_path)
        check_arrived(healthy.runs[records.read_result(run)["facts"]["wandb"]["id"]], run)


@pytest.mark.slow
def test_a_server_that_hangs_in_mid_run(
    tones: Path, train: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with Stub(then="hang") as stub:
        online(monkeypatch, stub.url)
        assert train(*asked(tones, *SHORT)) == 0
        said = capsys.readouterr()
        check_troubled(said.out, said.err, only_run(tmp_path / "runs" / tones.name), tmp_path)


def check_troubled(out: str, err: str, run: Path, beside: Path) -> None:
    assert "W&B: could not" in err
    assert f"online; upload with: {wandb_files.SYNC}" in out
    told = records.read_json(run / records.STATUS)["wandb"]
    assert told["mode"] == "online"
    assert told["troubles"]
    check_curves(inspect(beside / told["folder"]), run)


# --- what a user may write ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("logger.wandb.checkpoints=some", "logger.wandb.checkpoints='some' must be one of none, best, all"),
        ("logger.wandb.hardest=-1", "logger.wandb.hardest=-1 must be a number, 0 or more"),
        ("+logger.wandb.settings.no_such=1", "wandb refuses a setting"),
        ("logger.wandb.project=a/b", "wandb refuses what logger.wandb"),
        ("logger.wandb.project=true", "logger.wandb.project=True must be a name"),
        ("logger.wandb.offline=no", "logger.wandb.offline='no' must be true, false or null"),
        ("logger.wandb.hardest=1.5", "logger.wandb.hardest=1.5 must be a whole number"),
        ("logger.wandb.audio_seconds=0", "logger.wandb.audio_seconds=0 must be a number, 0.1 or more"),
        ("logger.wandb.save_dir=null", "logger.wandb.save_dir=None must be a folder"),
        ("logger.wandb.project=''", "logger.wandb.project is empty and must be a name. Unset WANDB_PROJECT"),
        ("logger.wandb.tags=abc", "logger.wandb.tags='abc' must be a list of words"),
        ("logger.wandb.tags=['']", "logger.wandb.tags=[''] must be a list of words"),
        ("+logger.wandb.settings.mode=disabled", "logger.wandb.settings.mode would be of no effect"),
        ("+logger.other.save_dir=x", "logger.other={'save_dir': 'x'} names no logger"),
    ],
)
def test_slips_are_named(tones: Path, train: Command, capsys: pytest.CaptureFixture[str], override: str, named: str) -> None:
    assert train(*asked(tones, override)) == 2
    assert named in capsys.readouterr().err


@pytest.mark.parametrize(("name", "value"), [("WANDB_BASE_URL", "nonsense"), ("WANDB_MODE", "sometimes")])
def test_slips_of_the_environment_are_named(
    tones: Path, train: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    assert train(*asked(tones)) == 2
    told = capsys.readouterr().err
    assert name.removeprefix("WANDB_").lower() in told.lower()
    assert "Mend" in told


@pytest.mark.slow
def test_numbers_are_names_and_secrets_are_none(
    tones: Path, train: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_LAB_TOKEN", TOKEN)
    names = ("logger.wandb.project=2024", "logger.wandb.group=7", "logger.wandb.tags=['${oc.env:MY_LAB_TOKEN}',12]")
    assert train(*asked(tones, *names, "callbacks=none", "trainer.max_epochs=1")) == 0
    told = inspect(folder_of(only_run(tmp_path / "runs" / tones.name)))
    (about,) = [one["run"] for one in told if one["type"] == "run"]
    assert (about["project"], about["run_group"]) == ("2024", "7")
    assert {"***", "12"} <= set(about["tags"])


@pytest.mark.slow
def test_a_folder_that_cannot_be_written_costs_the_run_nothing(
    tones: Path, train: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a_file").touch()
    given = ("logger.wandb.save_dir=a_file/wandb", "callbacks=none", "trainer.max_epochs=1")
    assert train(*asked(tones, *given)) == 0
    assert "could not begin, and the run goes on without ('a_file/wandb': Not a directory)" in capsys.readouterr().err
    told = records.read_json(only_run(tmp_path / "runs" / tones.name) / records.STATUS)["wandb"]
    assert told["mode"] == "disabled"


def test_the_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [wandb_settings.mode(offline=offline) for offline in (None, True, False)] == ["offline", "offline", "online"]
    monkeypatch.setenv("WANDB_MODE", "online")
    assert [wandb_settings.mode(offline=offline) for offline in (None, False)] == ["online", "online"]
    with pytest.raises(ConfigError, match=r"logger\.wandb\.offline=true contradicts WANDB_MODE=online"):
        wandb_settings.mode(offline=True)
    monkeypatch.setenv("WANDB_MODE", "sometimes")
    with pytest.raises(ConfigError, match="must be online, offline or disabled"):
        wandb_settings.mode(offline=None)


# --- tables ---------------------------------------------------------------------------------------------------------------------

CLASSES = ["a", "b", "c"]


def rows(count: int = 200) -> list[Prediction]:
    draw = np.random.default_rng(0)
    made = []
    for number in range(count):
        chances = draw.dirichlet([1, 2, 1])
        label, said = CLASSES[draw.integers(3)], CLASSES[int(chances.argmax())]
        made.append(Prediction("test", f"s{number}", "g", label, said, dict(zip(CLASSES, chances, strict=True))))
    return made


def test_tables_agree_with_scikit_learn() -> None:
    said = rows()
    true, named = [row.label for row in said], [row.predicted for row in said]
    columns = list(zip(*precision_recall_fscore_support(true, named, labels=CLASSES, zero_division=0), strict=True))
    assert [row[1:] for row in wandb_tables.by_class(said, CLASSES, multilabel=False).rows] == [
        pytest.approx(row) for row in columns
    ]
    counts = np.array([row[2] for row in wandb_tables.confusion(said, CLASSES).rows]).reshape(3, 3)
    assert (counts == confusion_matrix(true, named, labels=CLASSES)).all()


def test_classes_of_several_labels() -> None:
    said = [
        Prediction("test", "1", "g", "a|b", "a", {"a": 0.9, "b": 0.4, "c": 0.1}),
        Prediction("test", "2", "g", "b", "b|c", {"a": 0.2, "b": 0.7, "c": 0.6}),
        Prediction("test", "3", "g", "c", "", {"a": 0.2, "b": 0.1, "c": 0.4}),
    ]
    true, named = [[1, 1, 0], [0, 1, 0], [0, 0, 1]], [[1, 0, 0], [0, 1, 1], [0, 0, 0]]
    columns = list(zip(*precision_recall_fscore_support(true, named, zero_division=0), strict=True))
    assert [row[1:] for row in wandb_tables.by_class(said, CLASSES, multilabel=True).rows] == [
        pytest.approx(row) for row in columns
    ]


def test_a_class_may_hold_the_mark_between_labels() -> None:
    said = [Prediction("test", str(number), "g", "a|b", "a|b", {"a|b": 0.9, "c": 0.1}) for number in range(3)]
    assert wandb_tables.by_class(said, ["a|b", "c"], multilabel=False).rows == [("a|b", 1.0, 1.0, 1.0, 3), ("c", 0, 0, 0, 0)]
    assert [row[4:] for row in wandb_tables.predictions(said, multilabel=False).rows] == [(0.9, 0.9, True)] * 3
    assert wandb_tables.probability_of_label(said[0], multilabel=False) == 0.9
    ((*_, claimed, holds),) = wandb_tables.reliability(said, multilabel=False).rows
    assert (claimed, holds) == (pytest.approx(0.9), 1.0)


def test_the_reliability_diagram_shows_the_calibration_error() -> None:
    """Its bins, weighted by their songs, come to the metric that the run records."""
    import torch

    said = rows()
    bins = wandb_tables.reliability(said, multilabel=False).rows
    assert all(above < claimed <= up_to + 1e-12 for above, up_to, _, claimed, _ in bins)
    error = sum(count * abs(claimed - holds) for _, _, count, claimed, holds in bins) / sum(row[2] for row in bins)
    chances = torch.tensor([[row.probabilities[name] for name in CLASSES] for row in said]).float()
    labels = torch.tensor([CLASSES.index(row.label) for row in said])
    assert error == pytest.approx(float(METRICS["ece"](Scored.of(chances, labels))), abs=1e-6)


def test_media_stay_within_their_budget(tmp_path: Path) -> None:
    media = wandb_tables.Media(0.01)
    quiet = np.zeros(2000, dtype=np.int16)
    given = [media.sound(quiet, 8000) for _ in range(4)]
    assert [one is not None for one in given] == [True, True, False, False]
    assert media.picture(tmp_path / "none.png") is None


def test_one_song_that_is_gone_costs_its_own_sound_and_picture_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def sound(song: str) -> tuple[Any, int]:
        if song == "s0":
            raise FileNotFoundError(song)
        return np.zeros(800, dtype=np.int16), 8000

    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/s1.png").write_text("no picture")
    (tmp_path / "pictures/hardest.json").write_text(json.dumps([{"song": "s1", "file": "s1.png"}]))
    hard = [(row, 0.1) for row in rows(3)]
    table = wandb_tables._hardest(hard, tmp_path, sound, wandb_tables.Media(1.0))
    assert [row[0] for row in table.rows] == ["s0", "s1", "s2"]
    assert [row[4] is None for row in table.rows] == [True, False, False]
    assert [row[5] for row in table.rows] == [None] * 3
    told = capsys.readouterr().err
    assert "could not let 's0' be heard" in told
    assert "could not show the picture 's1.png'" in told
