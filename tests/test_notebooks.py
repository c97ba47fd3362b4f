"""The notebooks run from top to bottom, are short, and are stored without outputs."""

from __future__ import annotations

from pathlib import Path

import nbclient
import nbformat
import pytest

from tests.conftest import REPOSITORY
from tests.fake_runs import write_run

NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_stored_without_outputs_and_short(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    assert sum(cell.source.count("\n") + 1 for cell in code) < 60
    assert not any("def " in cell.source for cell in code), "logic belongs into the package"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the kernel is another process; what warns here is Jupyter's own client
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs(path: Path, tradition_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_run(tmp_path / "runs" / "one")
    monkeypatch.setenv("MUSICNET_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("MUSICNET_DATA", str(tradition_root.parent))
    notebook = nbformat.read(path, as_version=4)
    nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    assert any(output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs)
