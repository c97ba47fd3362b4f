"""`musicnet-status`: what it says of runs must be what became of them, told by their files alone."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from musicnet_eval import jobs, records, runs, status
from tests import fake_runs
from tests.conftest import TINY, Command

NOW = datetime(2025, 6, 1, 12, 0, tzinfo=UTC)


def ago(seconds: float) -> str:
    return (NOW - timedelta(seconds=seconds)).isoformat()


def running(run: Path, seconds: float, **fields: Any) -> Path:
    told = {"state": "running", "epoch": 0, "heartbeat": ago(seconds), "pid": os.getpid(), "host": socket.gethostname()}
    records.write_json(run / records.STATUS, told | fields)
    return run


@pytest.fixture(scope="module")
def gone() -> int:
    """Give the number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.mark.parametrize(
    ("seconds", "elsewhere", "ended", "state"),
    [
        (5, False, False, "running"),
        (5, False, True, "dead"),  # killed just now
        (3600, False, False, "running"),  # the process is there: it decodes, say
        (3600, False, True, "dead"),
        (3600, True, True, "running"),  # nothing is known of another host's processes
    ],
)
def test_dead_or_alive(tmp_path: Path, gone: int, seconds: float, elsewhere: bool, ended: bool, state: str) -> None:
    fields = ({"host": "elsewhere"} if elsewhere else {}) | ({"pid": gone} if ended else {})
    running(tmp_path / "run", seconds, **fields)
    (shown,) = status.collect([tmp_path], now=NOW)
    assert (shown.state, shown.heartbeat_seconds) == (state, seconds)
    patient = "running" if seconds == 5 else state
    assert status.collect([tmp_path], dead_minutes=10, now=NOW)[0].state == patient


def test_the_lock_tells_where_a_process_number_was_given_anew(tmp_path: Path, gone: int) -> None:
    """This process's number stands for one that another process has by now; that of an ended one for another container's."""
    run = running(tmp_path / "run", 5)
    with FileLock(run / runs.LOCK):
        assert status.collect([tmp_path], now=NOW)[0].state == "running"
        running(run, 5, pid=gone)
        assert status.collect([tmp_path], now=NOW)[0].state == "running"
    before = (run / runs.LOCK).stat()
    running(run, 5)
    assert status.collect([tmp_path], now=NOW)[0].state == "dead"
    assert status.collect([tmp_path], dead_minutes=10, now=NOW)[0].state == "running"
    running(run, 5, host="elsewhere")
    assert status.collect([tmp_path], now=NOW)[0].state == "running"
    assert (run / runs.LOCK).stat().st_mtime_ns == before.st_mtime_ns


def test_time_left(tmp_path: Path) -> None:
    """Epochs 4 to 9 of 10 are left, a minute each; half a minute of the first is over."""
    told = {"epoch": 4, "epochs": 10, "seconds_per_epoch": 60.0, "epoch_started": ago(30)}
    running(tmp_path / "run", 1, **told)
    (shown,) = status.collect([tmp_path], now=NOW)
    assert shown.eta_seconds == 6 * 60 - 30
    assert f"epoch 5/10, left 6 min, heartbeat 1 s ago, {socket.gethostname()}, process" in status.lines([shown])[0]
    running(tmp_path / "run", 1)  # no epoch has begun
    assert "epoch" not in status.lines(status.collect([tmp_path], now=NOW))[0]
    running(tmp_path / "run", 1, **told | {"epoch_started": ago(600)})  # an epoch that takes longer than the others
    assert status.collect([tmp_path], now=NOW)[0].eta_seconds == 5 * 60
    running(tmp_path / "run", 1, **told | {"seconds_per_epoch": None})
    assert status.collect([tmp_path], now=NOW)[0].eta_seconds is None
    running(tmp_path / "run", 1, **told | {"epochs": -1})  # without an end
    assert status.collect([tmp_path], now=NOW)[0].eta_seconds is None


def test_every_state_and_every_format(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = fake_runs.write_run(tmp_path, correct=15)
    records.write_text(done / records.CONFIG, "seed: 0\nmonitor: val/song/accuracy\n")
    fake_runs.write_failed(tmp_path / "broken", "RuntimeError: \x1b[31mno\nmore")
    fake_runs.write_status(tmp_path / "stopped", "interrupted")
    records.write_text(tmp_path / "torn" / records.STATUS, '{"state": "run')
    fake_runs.write_status(tmp_path / "lost", "done")  # its record is gone
    jobs.plan(tmp_path, [["seed=0"], ["seed=1"], ["seed=2", "backbone=x"], ["seed=3"]])
    jobs.enrol(tmp_path, ["seed=1"], "broken")
    jobs.enrol(tmp_path, ["seed=3"], "empty")  # on a full disk it got no further than its folder
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/.lock").touch()
    assert status.main([str(tmp_path), "--format", "json"]) == 1
    shown = json.loads(capsys.readouterr().out)
    assert {Path(row["run"]).name: row["state"] for row in shown} == {
        done.name: "done",  # the job seed=0 by its record's overrides
        "broken": "failed",
        "stopped": "interrupted",
        "torn": "unknown",
        "lost": "unknown",
        "seed=2 backbone=x": "missing",
        "seed=3": "missing",
    }
    (row,) = (row for row in shown if row["state"] == "done")
    assert (row["monitor"], row["value"], row["loss"]) == ("val/song/accuracy", 0.75, pytest.approx(0.2))
    assert status.main([str(tmp_path)]) == 1
    text = capsys.readouterr().out
    assert "broken: state failed, RuntimeError: \\x1b[31mno\\x0amore" in text
    assert text.splitlines()[-1] == "1 done, 1 interrupted, 1 failed, 2 missing, 2 unknown"
    (tmp_path / "broken" / records.FAILED).unlink()
    fake_runs.write_status(tmp_path / "broken", "interrupted")
    assert status.main([str(tmp_path)]) == 0


def test_a_loss_that_is_no_number_is_null_in_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = running(tmp_path / "run", 5)
    records.write_text(run / records.METRICS, "epoch,step,train/segment/loss\n0,10,nan\n")
    status.main([str(tmp_path), "--format", "json"])
    (row,) = json.loads(capsys.readouterr().out, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    assert row["loss"] is None


def test_missing_jobs_are_named_by_what_sets_them_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shared = ["data=folder", f"data.root=/{'far' * 100}"]
    jobs.plan(tmp_path / "a", [[*shared, f"seed={seed}", "loss=focal"] for seed in (0, 1)])
    assert status.main([str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines()[:2] == ["seed=0: state missing", "seed=1: state missing"]
    jobs.plan(tmp_path / "b", [[*shared, "seed=0"]])  # nothing sets it apart
    assert [row.run for row in status.collect([tmp_path])] == ["a: seed=0", "a: seed=1", f"b: {' '.join(shared)} seed=0"]


@pytest.mark.parametrize("arguments", [["nowhere"], ["."], [".", "--watch", "0"], [".", "--dead-after", "never"]])
def test_bad_usage(arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        code = status.main(arguments)
    except SystemExit as stop:
        code = int(stop.code or 0)
    assert code == 2


def test_torn_ledgers_lose_a_line_at_most(tmp_path: Path) -> None:
    jobs.plan(tmp_path, [["seed=0"], ["seed=1"]])
    jobs.enrol(tmp_path, ["seed=0"], "a")
    with (tmp_path / jobs.LEDGER).open("a") as file:
        file.write('{"overrides": ["seed=1"], "ru')
    ledger = jobs.read(tmp_path)
    assert ledger is not None
    assert ledger.unbegun({}) == [("seed=1",)]
    (tmp_path / jobs.LEDGER).write_text("[]\n")
    assert jobs.read(tmp_path) is None
    jobs.enrol(tmp_path / "elsewhere", ["seed=0"], "a")  # a single folder without a sweep gets none
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize(
    ("swept", "count"),
    [
        (("seed=0,1", "optimizer.lr=1e-3,1e-2,0.1"), 6),
        (("seed=range(0,4)",), 4),
        (("+backbone_options.drop_rate=0.1,0.2", "backbone='test_resnet'"), 2),
    ],
)
@pytest.mark.slow
def test_the_plan_names_the_jobs_as_they_name_themselves(
    tones: Path, train: Command, tmp_path: Path, swept: tuple[str, ...], count: int
) -> None:
    """A batch of 1 is refused in every job, so none of them trains; each has a record of what it was asked for."""
    train("-m", "data=folder", f"data.root={tones}", "backbone=test_resnet", *TINY, "data.batch_size=1", *swept)
    (folder,) = {run.parent for run in records.find_runs([tmp_path / "runs"])}
    ledger = jobs.read(folder)
    assert ledger is not None
    assert len(ledger.jobs) == len(ledger.runs) == count
    assert ledger.unbegun({}) == []
    asked = {tuple(sorted(records.read_json(run / records.FAILED)["overrides"])) for run in records.find_runs([folder])}
    assert asked == {tuple(sorted(job)) for job in ledger.jobs}


@pytest.mark.slow
def test_a_sweep_is_watched_from_another_process(tones: Path, tmp_path: Path) -> None:
    given = ["data=folder", f"data.root={tones}", "backbone=stats_linear", *TINY, "trainer.max_epochs=100000", "seed=0,1"]
    sweep = subprocess.Popen(
        [sys.executable, "-m", "musicnet_eval.train", "-m", *given],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    runs = tmp_path / "runs"
    try:
        deadline = time.monotonic() + 240
        while not (runs.is_dir() and any(row.eta_seconds and row.loss for row in status.collect([runs]))):
            assert sweep.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.2)
        first, second = status.collect([runs])
        assert (first.state, second.state) == ("running", "missing")
        assert first.epochs == 100000
        assert first.epoch is not None
        assert first.epoch > 0
        assert first.heartbeat_seconds is not None
        assert first.heartbeat_seconds < 60
        assert first.monitor == "val/song/f1_macro"
        assert first.message == f"{socket.gethostname()}, process {sweep.pid}"
        assert "seed=1" in second.run
    finally:
        os.kill(sweep.pid, signal.SIGKILL)
        sweep.wait()
    time.sleep(2)
    assert Counter(row.state for row in status.collect([runs], dead_minutes=1 / 60)) == {"dead": 1, "missing": 1}
    assert status.main([str(runs), "--dead-after", "0.01"]) == 1


def test_watching_on_a_terminal_ends_with_the_last_run(tmp_path: Path) -> None:
    run = running(tmp_path / "run", 0, heartbeat=datetime.now(UTC).isoformat(), epochs=7)
    master, terminal = pty.openpty()
    command = [sys.executable, "-m", "musicnet_eval.status", str(tmp_path), "--watch", "0.2"]
    watch = subprocess.Popen(command, stdout=terminal, stderr=terminal)
    os.close(terminal)
    told = b""
    try:
        while b"1 running" not in told:
            told += os.read(master, 65536)
        assert b"1/7" in told
        records.write_json(run / records.STATUS, {"state": "interrupted", "epoch": 6, "epochs": 7})
        while True:
            try:
                told += os.read(master, 65536)
            except OSError:  # Linux says so when the other end is closed
                break
        assert watch.wait(60) == 0
    finally:
        watch.kill()
        watch.wait()
        os.close(master)
    assert b"1 interrupted" in told
    assert b"7/7" in told


@pytest.mark.parametrize(("height", "left_out"), [(15, "… and 13 more (10 done, 3 missing)"), (40, None)])
def test_what_is_watched_fits_the_terminal(tmp_path: Path, height: int, left_out: str | None) -> None:
    for seed in range(10):
        fake_runs.write_run(tmp_path, seed=seed)
    told = {"heartbeat": datetime.now(UTC).isoformat(), "host": f"a-host-{'far-' * 30}away"}  # a note longer than the terminal
    running(tmp_path / f"zfnet-{'long_' * 20}loss-s0-0123456789ab", 0, **told)
    fake_runs.write_failed(tmp_path / "broken", "RuntimeError: " + "no room " * 40)
    jobs.plan(tmp_path, [[f"seed={seed}"] for seed in range(10, 23)])
    master, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", height, 100, 0, 0))
    environment = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")} | {"TERM": "xterm"}
    command = [sys.executable, "-m", "musicnet_eval.status", str(tmp_path), "--watch", "600"]
    watch = subprocess.Popen(command, stdout=terminal, stderr=terminal, env=environment)
    os.close(terminal)
    picture = b""
    try:
        while b"10 done, 1 running, 1 failed, 13 missing" not in picture:
            assert select.select([master], [], [], 30)[0]
            picture += os.read(master, 65536)
    finally:
        watch.kill()
        watch.wait()
        os.close(master)
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", picture.decode()).splitlines()
    assert len(lines) == (15 if left_out else 27)  # headings, a line a run, counts
    assert max(map(len, lines)) <= 100
    states = [line.split()[1] for line in lines[1:-2]]
    assert states == (["running", "failed", *["missing"] * 13, *["done"] * 9])[: len(states)]
    assert lines[1].startswith("zfnet-long_")
    assert "-s0-0123456789ab running" in lines[1]
    assert left_out is None or lines[-2] == left_out
