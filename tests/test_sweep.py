"""A sweep on the embedded data: one run that fails does not stop the others, and asking again repeats nothing."""

from __future__ import annotations

import contextlib
import csv
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hydra import initialize_config_dir
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.global_hydra import GlobalHydra
from hydra.plugins.config_source import ConfigResult, ConfigSource
from hydra.types import RunMode
from omegaconf import OmegaConf

from musicnet_eval import configs, jobs, plans, records, sweep
from tests.conftest import TINY, Command

SMALL = (
    "spectrogram.n_mels=32",
    "spectrogram.hop_length=2048",
    "trainer=cpu",
    "trainer.max_epochs=1",
    "++trainer.limit_train_batches=4",
    "++trainer.limit_val_batches=2",
    "++trainer.limit_test_batches=2",
    "num_threads=1",
)


@pytest.mark.slow
def test_two_by_two_on_the_embedded_data(
    train: Command, tradition_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sometimes.py").write_text(
        "import pathlib, torch\n"
        "class Loss(torch.nn.CrossEntropyLoss):\n"
        "    def forward(self, scores, label):\n"
        "        if not pathlib.Path('mended').exists():\n"
        "            raise RuntimeError('not mended yet')\n"
        "        return super().forward(scores, label)\n"
    )
    (tmp_path / "more/loss").mkdir(parents=True)
    (tmp_path / "more/loss/sometimes.yaml").write_text("_target_: sometimes.Loss\n")
    asked = (
        "-m",
        "--config-dir=more",
        f"paths.data={tradition_root.parent}",
        "backbone=test_resnet,stats_linear",
        "loss=cross_entropy,sometimes",
        "plugins=[sometimes]",
        *SMALL,
    )
    assert train(*asked) == 1
    folder = tmp_path / "runs/tradition"
    states = Counter(records.state(run) for run in records.find_runs([folder]))
    assert states == {"done": 2, "failed": 2}
    shown = capsys.readouterr()
    assert "2 of 4 runs failed" in shown.err
    assert {path.name for path in folder.iterdir() if path.is_file()} == {
        *("leaderboard.md", "leaderboard.csv", "report.html", "sweep.jsonl")
    }
    assert "sweep: 4 jobs, 0 of them done already" in shown.out
    # What other processes would have to go by, the files, tells the same as what was counted here, whoever has the ledger by now.
    ledger = jobs.read(folder)
    assert ledger is not None
    assert len(ledger.jobs) == 4
    assert jobs.unfinished(folder, ledger.jobs) == 2
    jobs.plan(folder, [["seed=9"]])
    assert jobs.unfinished(folder, ledger.jobs) == 2
    table = (folder / "leaderboard.md").read_text()
    assert "not mended yet" in table
    failed = next(folder.rglob("failed.json"))
    assert json.loads(failed.read_text())["choices"]["loss"] == "sometimes"

    (tmp_path / "mended").touch()
    written = {path: path.stat().st_mtime_ns for path in folder.rglob("result.json")}
    assert train(*asked) == 0
    assert len(written) == 2
    assert all(path.stat().st_mtime_ns == before for path, before in written.items())
    told = capsys.readouterr().out
    assert told.count("done already: ") == 2
    assert "sweep: 4 jobs, 2 of them done already by their overrides; the rest takes about" in told
    assert "the 2 runs here" in told
    assert jobs.unfinished(folder, ledger.jobs) == 0
    assert {records.state(run) for run in records.find_runs([folder])} == {"done"}
    assert not list(folder.rglob("failed.json"))
    with (folder / "leaderboard.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 4


@pytest.mark.slow
def test_a_given_sweep_folder_holds_the_runs(train: Command, tones: Path, tmp_path: Path) -> None:
    overrides = ("data=folder", f"data.root={tones}", "backbone=stats_linear", "seed=0,1", *TINY)
    assert train(*overrides[:2], "-m", *overrides[2:], f"hydra.sweep.dir={tmp_path / 'here'}") == 0
    assert [run.parent for run in records.find_runs([tmp_path / "here"])] == [tmp_path / "here"] * 2
    assert (tmp_path / "here/report.html").is_file()


@pytest.mark.slow
def test_a_sweep_over_data_has_a_plan_in_each_folder(
    train: Command, tones: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(tones, tmp_path / "other")
    asked = ("-m", "data=folder", f"data.root={tones},{tmp_path / 'other'},nowhere", "backbone=stats_linear", "seed=0,1", *TINY)
    assert train(*asked) == 1
    told = capsys.readouterr()
    assert "sweep: 6 jobs, 0 of them done already by their overrides; time and disk can be told once" in told.out
    assert "2 of 6 runs failed" in told.err
    plans = {name: jobs.read(tmp_path / "runs" / name) for name in (tones.name, "other", "nowhere")}
    assert {name: plan and len(plan.jobs) for name, plan in plans.items()} == {tones.name: 2, "other": 2, "nowhere": 2}
    assert train(*asked) == 1
    told = capsys.readouterr()
    assert "sweep: 6 jobs, 4 of them done already by their overrides; the rest takes about" in told.out
    assert told.out.count("done already: ") == 4
    assert "2 of 6 runs failed" in told.err


@pytest.mark.slow
def test_data_that_is_missing_fails_its_own_runs_only(train: Command, tones: Path, tmp_path: Path) -> None:
    overrides = ("data=folder", f"data.root={tones},nowhere", "backbone=stats_linear", *TINY)
    assert train("-m", *overrides) == 1
    assert Counter(records.state(run) for run in records.find_runs([tmp_path / "runs"])) == {"done": 1, "failed": 1}
    (tmp_path / "nowhere").symlink_to(tones)  # mended: the failure is taken back
    assert train("-m", *overrides) == 0
    assert {records.state(run) for run in records.find_runs([tmp_path / "runs"])} == {"done"}


def test_stop_on_error(train: Command, tones: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    overrides = ("data=folder", f"data.root={tones}", "backbone=nosuchnet,stats_linear", "run.on_error=stop", *TINY)
    assert train("-m", *overrides) == 1
    assert not list(tmp_path.rglob("result.json"))
    told = capsys.readouterr()
    assert "2 of 2 runs are not done" in told.err
    assert "nosuchnet" in (tmp_path / "runs" / tones.name / "leaderboard.md").read_text()
    assert "[2/2]" not in told.out


@pytest.mark.parametrize("swept", ["seed=0,1", "data.name=a,b"])
def test_a_place_that_cannot_be_written(
    swept: str, train: Command, tones: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "runs").touch()
    assert train("-m", "data=folder", f"data.root={tones}", swept, *TINY) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert "give another paths.runs" in told
    assert told.count("\n") == 1


@pytest.mark.slow
def test_seeds_share_a_row_and_folds_too(train: Command, tones: Path, tmp_path: Path) -> None:
    from musicnet_eval import leaderboard

    overrides = ("data=folder", f"data.root={tones}", "backbone=stats_linear", "seed=0,1", "data.fold=0,1", *TINY)
    assert train("-m", *overrides) == 0
    runs = [records.read_result(run) for run in records.find_runs([tmp_path / "runs"])]
    assert len({run["signature"] for run in runs}) == 4
    assert len({run["configuration"] for run in runs}) == 1
    (row,) = leaderboard.as_rows(leaderboard.collect([tmp_path / "runs"]))
    assert row["runs"] == 4
    assert row["mean"] == pytest.approx(sum(run["metrics"]["test/song/accuracy"] for run in runs) / 4)


@pytest.mark.slow
def test_signatures_say_whether_a_sweep_is_finished(
    train: Command, tones: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    songs = shutil.copytree(tones, tmp_path / "songs")
    overrides = ("-m", "data=folder", f"data.root={songs}", "backbone=stats_linear", "seed=0,1", *TINY, "trainer.max_epochs=1")
    assert train(*overrides) == 0
    assert "[2/2] seed=1" in capsys.readouterr().out
    assert train(*overrides) == 0
    told = capsys.readouterr().out
    assert told.count("done already: ") == 2
    assert "[2/2]" not in told  # Hydra's sweeper was not asked
    assert "report: " in told
    assert train(*overrides, "run.force=true") == 0
    told = capsys.readouterr().out
    assert "2 jobs, 0 of them done already" in told
    assert told.count("done: ") == 2
    with full_disk():  # what is done by now is said all the same
        assert train(*overrides) == 1
    told = capsys.readouterr()
    assert told.out.count("done already: ") == 2  # also by runs that were asked for with run.force
    assert "[2/2]" not in told.out
    assert told.err.count("cannot be written (File too large)") == told.err.count("\n") == 1
    with full_disk():
        assert train(*overrides, "+run.note=3", "seed=0,1,2") == 2
    told = capsys.readouterr()
    assert told.out.count("done already: ") == 2
    assert told.err.count("cannot be written (File too large)") == told.err.count("\n") == 1
    assert train(*overrides, "seed=0,1,0") == 0
    assert not [line for line in capsys.readouterr().out.splitlines() if line.startswith("[")]
    assert train(*overrides, "seed=0,1,0", "backbone=stats_linear,nosuchnet") == 1
    told = capsys.readouterr()
    assert "[3/3]" in told.out
    assert "3 of 6 runs failed" in told.err
    shutil.copy(songs / "low/0.wav", songs / "low/more.wav")  # the same overrides, other data
    assert train(*overrides) == 0
    told = capsys.readouterr().out
    assert "2 jobs, 2 of them done already by their overrides" in told
    assert told.count("done: ") == 2
    assert len(list((tmp_path / "runs").rglob(records.RESULT))) == 4


@contextlib.contextmanager
def full_disk() -> Iterator[None]:
    """Let no file grow, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.slow
def test_a_longer_finished_sweep_is_looked_through_on_all_cores(train: Command, tones: Path, tmp_path: Path) -> None:
    asked = (
        "-m",
        "data=folder",
        f"data.root={tones}",
        "backbone=stats_linear",
        *TINY,
        "trainer.max_epochs=1",
    )
    assert train(*asked, "seed=range(0,10)") == 0
    command = [sys.executable, "-m", "musicnet_eval.train", *asked, "seed=range(0,10)"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("done already: ") == 10
    assert "[1/10]" not in done.stdout
    command[-1] = "seed=range(0,12)"  # two more than are done: those two alone come to Hydra's sweeper
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "12 jobs, 10 of them done already by their overrides" in done.stdout
    assert done.stdout.count("done already: ") == 10
    told = [line.partition(";")[0] for line in done.stdout.splitlines() if line.startswith("[")]
    assert told == ["[1/2] seed=10", "[2/2] seed=11"]


def test_who_looks_at_jobs_ends_with_the_sweep(tmp_path: Path) -> None:
    script = (
        "import os, sys, time\n"
        "from musicnet_eval import sweep\n"
        "with sweep._lookers() as pool:\n"
        "    print(*{pool.submit(os.getpid).result() for _ in range(9)}, flush=True)\n"
        "    list(pool.map(time.sleep, [float(sys.argv[1])] * 50))\n"
    )

    def looking(seconds: str) -> tuple[subprocess.Popen[str], list[int]]:
        asked = [sys.executable, "-c", script, seconds]
        parent = subprocess.Popen(asked, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, process_group=0)
        assert parent.stdout is not None
        return parent, [int(each) for each in parent.stdout.readline().split()]

    parent, children = looking("0.2")
    os.killpg(parent.pid, signal.SIGINT)  # as a terminal does
    _, said = parent.communicate(timeout=60)
    assert "KeyboardInterrupt" in said
    assert "Exception in thread" not in said
    parent, more = looking("600")
    parent.kill()
    parent.communicate(timeout=60)  # they hold its output too
    for child in children + more:
        assert not Path(f"/proc/{child}/cmdline").exists() or not Path(f"/proc/{child}/cmdline").read_bytes()


def test_files_that_are_read_once_compose_the_same_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    several = [["seed=1"], ["backbone=cnn14", "augment=[noise,mixup]"], ["experiment=demo", "~loss"], ["seed=1"], ["trainer=cpu"]]
    read: Counter[str] = Counter()
    configs.prefer_ours()
    files = SourcesRegistry.instance().resolve("file")
    load = files.load_config
    with initialize_config_dir(str(configs.CONF), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        whole = loader.load_configuration("train", [], RunMode.MULTIRUN)
        expected = [plans.job_config(loader, whole, *job) for job in enumerate(several)]

        def counting(source: ConfigSource, config_path: str) -> ConfigResult:
            read[config_path] += 1
            return load(source, config_path)

        monkeypatch.setattr(files, "load_config", counting)
        quick = plans.read_once(loader)
        found = [plans.job_config(quick, whole, *job) for job in enumerate(several)]
    for one, other in zip(found, expected, strict=True):
        assert OmegaConf.to_container(one, resolve=False) == OmegaConf.to_container(other, resolve=False)
    assert len(read) > 10
    assert set(read.values()) == {1}


def test_a_run_that_goes_while_a_sweep_ends_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / records.RESULT).symlink_to(tmp_path / "gone")  # is listed, and not there any more
    assert sweep._inputs(tmp_path).startswith("<!-- ")


def test_typed_secrets_are_masked_in_what_hydra_keeps(
    train: Command, tones: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_LAB_TOKEN", "hunter2-hunter2")
    asked = ("-m", "data=folder", f"data.root={tones}", "backbone=stats_linear", *TINY, "trainer.max_epochs=1")
    typed = ("+run.api_key=hunter3-hunter3", "+run.note=hunter2-hunter2", "+run.more={my_token:hunter4-hunter4,b:1}", "seed=0,1")
    assert train(*asked, *typed) == 0
    for file in tmp_path.rglob("*"):
        assert not file.is_file() or b"hunter" not in file.read_bytes(), file
    told = OmegaConf.load(tmp_path / "runs/multirun.yaml")
    assert {"+run.api_key=***", "+run.more={my_token:***,b:1}"} <= set(told.hydra.overrides.task)
    assert "seed=0,1" in told.hydra.overrides.task
