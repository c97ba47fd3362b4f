"""The built wheel works on its own: in a fresh environment that sees this one's packages but not this checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, TINY, only_run


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(REPOSITORY)],
        check=True,
        capture_output=True,
    )
    (built,) = out.glob("*.whl")
    return built


def test_the_wheel_ships_configs_checksums_template_and_types(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for path in (REPOSITORY / "conf").rglob("*.yaml"):
        assert f"musicnet_eval/conf/{path.relative_to(REPOSITORY / 'conf').as_posix()}" in names
    assert {"musicnet_eval/report.html.jinja", "musicnet_eval/py.typed"} <= names
    assert any(name.startswith("musicnet_eval/checksums/") for name in names)
    assert not any(name.startswith(("tests/", "data/", "runs/")) for name in names)


@pytest.mark.slow
def test_the_wheel_trains_in_a_fresh_environment(wheel: Path, tones: Path, tmp_path: Path) -> None:
    home = tmp_path / "venv"
    venv.create(home, with_pip=False)
    site = next((home / "lib").glob("python3*/site-packages"))
    (site / "others.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    zipfile.ZipFile(wheel).extractall(site)
    # The editable install of this checkout is a .pth of the other environment: what lies in this one comes first.
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    python = str(home / "bin" / "python")

    def run(*words: str) -> str:
        done = subprocess.run([python, *words], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = run("-c", "import musicnet_eval, musicnet_eval.configs as c; print(musicnet_eval.__file__); print(c.CONF)")
    assert all(line.startswith(str(home)) for line in where.splitlines())
    assert "musicnet-train -m" in run("-m", "musicnet_eval.train", "--help")
    run("-m", "musicnet_eval.train", "data=folder", f"data.root={tones}", "backbone=test_resnet", *TINY)
    assert (only_run(tmp_path / "runs") / "result.json").is_file()
    assert "test_resnet" in run("-m", "musicnet_eval.leaderboard", "runs")
    assert run("-m", "musicnet_eval.report", "runs").strip().endswith("report.html")
