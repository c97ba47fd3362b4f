"""The shape of the code: who may import whom, what stays light, how big a file and a function may be."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "musicnet_eval"
FILES = sorted(path for path in PACKAGE.rglob("*.py"))
HEAVY = {
    "torch",
    "torchaudio",
    "torchvision",
    "lightning",
    "timm",
    "torchmetrics",
    "scipy",
    "matplotlib",
    "pandas",
    "sklearn",
    "wandb",
}

DESIGN = PACKAGE.parent / "docs" / "design.md"


def layers() -> dict[str, set[str]]:
    """Read the table of section 3 of docs/design.md: module → what of the package it may import."""
    table: dict[str, set[str]] = {}
    nouns: set[str] = set()
    for row in re.findall(r"^\| \d \| (.+) \| (.+) \|$", DESIGN.read_text(encoding="utf8"), flags=re.MULTILINE):
        modules, allowed = ({name.strip().strip("`") for name in cell.split(",")} for cell in row)
        nouns |= modules if not nouns else set()
        table |= dict.fromkeys(modules, allowed)
    return {
        name: {"__version__", name} | (allowed - {"layer 0"}) | (nouns if "layer 0" in allowed else set())
        for name, allowed in table.items()
    }


MAY_IMPORT_HYDRA = {"configs", "launchers", "plans", "sweep", "train", "training"}
LIGHT = {
    "contracts",
    "errors",
    "records",
    "significance",
    "runs",
    "datasets",
    "environment",
    "weights",
    "configs",
    "plans",
    "train",
    "training",
    "evaluate",
    "predict",
    "leaderboard",
    "report",
    "audit",
    "sweep",
    "status",
    "jobs",
    "wandb_run",
    "wandb_sweep",
    "wandb_tables",
    "launchers",
    "tradition",
    "oneill",
    "embedded",
    "rendering",
    "pieces",
    "scores",
}


def module(path: Path) -> str:
    """Name a file's module; a folder counts as one."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path, *, top_only: bool = False) -> Iterator[str]:
    """Give the dotted names that a file imports; with `top_only`, those that importing the file runs."""
    tree = ast.parse(path.read_text(encoding="utf8"))
    nodes = list(_run_on_import(tree)) if top_only else list(ast.walk(tree))
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _run_on_import(node: ast.AST) -> Iterator[ast.AST]:
    for child in ast.iter_child_nodes(node):
        typing_only = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test)
        if not typing_only and not isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            yield child
            yield from _run_on_import(child)


def test_every_module_has_a_layer() -> None:
    assert {module(path) for path in FILES} == set(layers())


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_imports_follow_the_design(path: Path) -> None:
    used = {name.split(".")[1] for name in imports(path) if name.startswith("musicnet_eval.")}
    assert used <= layers()[module(path)]


def test_docstrings_name_the_layer_of_the_design() -> None:
    rows = re.findall(r"^\| (\d) \| (.+?) \|", DESIGN.read_text(encoding="utf8"), flags=re.MULTILINE)
    number = {name.strip().strip("`"): layer for layer, cell in rows for name in cell.split(",")}
    for path in FILES:
        said = re.search(r"Layer (\d)", ast.get_docstring(ast.parse(path.read_text(encoding="utf8"))) or "")
        assert said is None or said[1] == number[module(path)], path.name


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_hydra_stays_in_few_hands(path: Path) -> None:
    if module(path) not in MAY_IMPORT_HYDRA:
        assert not [name for name in imports(path) if name.split(".")[0] in ("hydra", "omegaconf")]


@pytest.mark.parametrize("path", [p for p in FILES if module(p) in LIGHT], ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_light_modules_import_nothing_heavy_at_their_top(path: Path) -> None:
    assert not [name for name in imports(path, top_only=True) if name.split(".")[0] in HEAVY]


def test_no_circles() -> None:
    edges = {module(p): {n.split(".")[1] for n in imports(p, top_only=True) if n.startswith("musicnet_eval.")} for p in FILES}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " → ".join((*trail, name))
        if name not in done:
            for other in edges.get(name, set()) - {name}:
                visit(other, (*trail, name))
            done.add(name)

    for name in edges:
        visit(name, ())


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_sizes(path: Path) -> None:
    text = path.read_text(encoding="utf8")
    assert text.count("\n") <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            assert length <= 60, f"{node.name} has {length} lines"


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.relative_to(PACKAGE).as_posix())
def test_docstrings(path: Path) -> None:
    """A module says what it owns; a public function or class says what it does."""
    tree = ast.parse(path.read_text(encoding="utf8"))
    assert ast.get_docstring(tree)
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{path.name}: {node.name}"


@pytest.mark.parametrize("command", ["train", "evaluate", "predict", "leaderboard", "report", "audit", "status", "dashboard"])
def test_help_is_light(command: str) -> None:
    code = (
        f"import sys, runpy; sys.argv = ['musicnet-{command}', '--help']\n"
        "try:\n"
        f"    runpy.run_module('musicnet_eval.{command}', run_name='__main__')\n"
        "except SystemExit as stop:\n"
        "    assert not stop.code, stop.code\n"
        f"print('heavy:', sorted(set(sys.modules) & {HEAVY!r}))"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().endswith("heavy: []")
    assert f"musicnet-{command}" in done.stdout
    assert "xit codes" in done.stdout
    assert len(done.stdout.splitlines()) > 12


def test_help_says_what_hydra_would(tmp_path: Path) -> None:
    """The quick help and the one that Hydra composes (with a further flag) name the same choices."""

    def said(*flags: str) -> set[str]:
        command = [sys.executable, "-m", "musicnet_eval.train", "--help", *flags]
        return set(subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout.split())

    assert said() == said("--config-dir", str(tmp_path))


def test_nothing_is_left_open() -> None:
    for path in FILES:
        text = path.read_text(encoding="utf8")
        assert not any(word in text for word in ("TODO", "FIXME", "XXX", "NotImplementedError", "pragma: no cover")), path
