"""The README's recipes are run as printed, and what the pages name exists.

In the README `<!-- test: FOLDER/FILE -->` before a block makes it a file, `<!-- run: FOLDER -->` makes it commands. Each recipe
has a folder of its own, with `my_music/` (the tones) and `song.wav` in it. To a printed `musicnet-train` only `TINY` is added,
for speed, and `my_music` as data where the line names none; `RUN_DIR` becomes the newest run.
"""

from __future__ import annotations

import csv
import re
import runpy
import shlex
import shutil
import tomllib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import yaml
from omegaconf import OmegaConf

from musicnet_eval import configs, evaluate, predict, records
from musicnet_eval.errors import ConfigError
from tests.conftest import REPOSITORY, TINY, Command

README = (REPOSITORY / "README.md").read_text(encoding="utf8")
PAGES = [REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
PAGES += [*sorted((REPOSITORY / "docs").glob("*.md")), REPOSITORY / "experiments/LOG.md"]
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf8"))
MARKED = re.compile(r"<!-- (test|run): (\S+) -->\n```\w+\n(.*?)```", re.DOTALL)
FENCED = re.compile(r"^```(\w*)\n(.*?)^```", re.DOTALL | re.MULTILINE)
FILES = {name: text for kind, name, text in MARKED.findall(README) if kind == "test"}
COMMANDS = {name: text.splitlines() for kind, name, text in MARKED.findall(README) if kind == "run"}


@pytest.fixture
def recipe(tones: Path, tmp_path: Path, train: Command) -> Callable[[str], list[Path]]:
    """Follow one recipe; give its runs, oldest first."""
    (tmp_path / "my_music").symlink_to(tones)
    shutil.copy(tones / "low/0.wav", tmp_path / "song.wav")
    commands = {
        "musicnet-train": lambda given: train(*given),
        "musicnet-predict": predict.main,
        "musicnet-evaluate": evaluate.main,
    }

    def runs() -> list[Path]:
        return sorted(
            (path.parent for path in tmp_path.rglob("result.json")), key=lambda run: (run / "result.json").stat().st_mtime_ns
        )

    def follow(name: str) -> list[Path]:
        for file, text in FILES.items():
            if file.startswith(f"{name}/"):
                target = tmp_path / file.removeprefix(f"{name}/")
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_text(text.replace("RUN_DIR", str(runs()[-1])) if "RUN_DIR" in text else text, encoding="utf8")
        for line in COMMANDS[name]:
            command, *given = shlex.split(line)
            if command == "musicnet-train":
                given += TINY if any(word.startswith("data=") for word in given) else ["data=folder", "data.root=my_music", *TINY]
            assert commands[command]([str(runs()[-1]) if word == "RUN_DIR" else word for word in given]) == 0, line
        return runs()

    return follow


Recipe = Callable[[str], list[Path]]


def test_every_recipe_is_followed_below() -> None:
    assert set(COMMANDS) == {"use", "folder", "csv", "own_backbone", "own_loss", "own_augment"}
    assert {name.partition("/")[0] for name in FILES} == {"use", "csv", "own_backbone", "own_loss", "own_augment"}


def test_use(recipe: Recipe, train: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("data=folder", "data.root=my_music", "backbone=stats_linear", *TINY) == 0
    (run,) = recipe("use")
    assert '"path": "song.wav"' in capsys.readouterr().out
    (evaluation,) = run.glob("evaluations/*/evaluation.json")
    assert records.read_json(evaluation)["overrides"] == ["data.hop_seconds=0.25"]
    told = runpy.run_path("snippet.py")
    shown = capsys.readouterr().out.split()
    assert sum(told["probabilities"].values()) == pytest.approx(1)
    assert shown[0] in ("high", "low", "middle")
    assert float(shown[1]) == records.read_result(run)["metrics"]["test/song/accuracy"]


@pytest.mark.slow
def test_folder(recipe: Recipe) -> None:
    (run,) = recipe("folder")
    choices = records.read_result(run)["choices"]
    assert (choices["data"], choices["backbone"]) == ("my_music", "resnet18")


@pytest.mark.slow
def test_csv(recipe: Recipe, tmp_path: Path) -> None:
    rows = list(csv.DictReader(FILES["csv/songs.csv"].splitlines()))
    time = np.arange(8000) / 8000
    for number, row in enumerate(rows):
        (tmp_path / row["path"]).parent.mkdir(exist_ok=True)
        pitch = {"blues": 300, "jazz": 900}[row["label"]] + number
        soundfile.write(tmp_path / row["path"], 0.3 * np.sin(2 * np.pi * pitch * time), 8000)
    (run,) = recipe("csv")
    groups: dict[str, set[str]] = {}
    for row in rows:
        groups.setdefault(row["group"], set())
    for prediction in records.read_predictions(run):
        groups[prediction.group].add(prediction.split)
    assert all(len(splits) <= 1 for splits in groups.values())  # none, for those that train
    assert sum(records.read_result(run)["facts"]["tracks"].values()) == len(rows)


def test_own_backbone(recipe: Recipe, capsys: pytest.CaptureFixture[str]) -> None:
    (run,) = recipe("own_backbone")
    record = records.read_result(run)
    assert record["choices"]["backbone"] == "my_net"
    classes, width = 3, 32
    convolutions = (25 * width + width + 2 * width) + (25 * width * 2 * width + 2 * width + 4 * width)
    assert record["parameters"] == convolutions + (2 * width + 1) * classes
    assert "song.wav" in capsys.readouterr().out


@pytest.mark.slow
def test_own_loss(recipe: Recipe) -> None:
    first, *swept = recipe("own_loss")
    loss = records.read_result(first)["config"]["loss"]
    assert loss == {"_target_": "mylab_losses.Tempered", "temperature": 3}
    assert [records.read_result(run)["choices"]["loss"] for run in swept] == ["cross_entropy", "tempered"]
    assert (swept[1].parent / "report.html").exists()
    # Measured by the same cross-entropy the two differ: the temperature took part in the training.
    plain, tempered = (records.read_result(run)["metrics"]["train/segment/log_loss"] for run in swept)
    assert plain != tempered


@pytest.mark.slow
def test_own_augmentation(recipe: Recipe) -> None:
    among, alone = (records.read_result(run) for run in recipe("own_augment"))
    assert [run["choices"]["augment"] for run in (among, alone)] == ["crackle+mixup+specaugment", "crackle"]
    assert among["config"]["augment"]["mixup"]["alpha"] == 0.4
    assert alone["config"]["augment"]["crackle"]["chance"] == 1e-3


# --- what the pages name ------------------------------------------------------------------------------------------------------


def code(page: Path) -> Iterator[str]:
    """Give the pieces of code on a page that a shell would see: fenced commands, line by line, and inline code."""
    text = page.read_text(encoding="utf8")
    for language, block in FENCED.findall(text):
        if language in ("", "bash", "sh", "console"):
            yield from block.splitlines()
    yield from re.findall(r"`([^`\n]+)`", FENCED.sub("", text))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_targets_exist(page: Path) -> None:
    text = page.read_text(encoding="utf8")
    scripts = set(PROJECT["project"]["scripts"])
    named = set(re.findall(r"\bmusicnet-[a-z]+\b", text)) - {"musicnet-eval"}
    assert named <= scripts
    targets = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(encoding="utf8"), re.MULTILINE))
    assert {name for span in code(page) for name in re.findall(r"^make (?:[A-Z]+=\S+ )?([a-z][a-z-]*)", span)} <= targets
    extras = set(PROJECT["project"]["optional-dependencies"])
    assert set(re.findall(r"(?:musicnet-eval|'\.)\[([a-z]+)\]", text)) <= extras


KEY = re.compile(r"(?<![\w.+$/-])([a-z][a-z_]*(?:\.[a-z_]+)*)=([^\s`'\"]*)")


@cache
def accepted(key: str, value: str) -> bool:
    """Say whether the config has a key, under any choice of its group, or a group a choice."""
    group = "/".join(key.split(".")[:2]) if key.startswith(("hydra.launcher.", "hydra.sweeper.")) else key.partition(".")[0]
    choices = sorted(path.stem for path in (configs.CONF / group).glob("*.yaml"))
    if choices and key == group:
        return all(name in choices for name in re.split(r"[|,]", value) if name.isidentifier() and name.islower())
    if not key.startswith("hydra."):
        return any(has(composed(f"{group}={choice}" if choice else None), key) for choice in choices or [None])
    for choice in choices or [None]:
        try:
            given = value if key == "hydra.mode" else "x"  # one of a few words
            configs.compose([*([f"{group}={choice}"] if choice else []), f"{key}={given}"])
        except ConfigError:
            continue
        return True
    return False


@cache
def composed(override: str | None) -> Any:
    """Compose the config under one choice, interpolations left as they are."""
    return OmegaConf.to_container(configs.compose([override] if override else []), resolve=False)


def has(config: Any, key: str) -> bool:
    """Say whether a config has a key."""
    for name in key.split("."):
        if not isinstance(config, dict) or name not in config:
            return False
        config = config[name]
    return True


@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.name not in ("CHANGELOG.md", "LOG.md")], ids=lambda page: page.name
)
def test_keys_exist(page: Path) -> None:
    # A choice of the reader's own (loss=tempered) is in a recipe, which is run above.
    recipes = {line for lines in COMMANDS.values() for line in lines}
    spans = [span for span in code(page) if "(" not in span and span not in recipes]
    keys = {pair for span in spans for pair in KEY.findall(span)}
    assert {f"{key}={value}" for key, value in keys if not accepted(key, value)} == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_launchers_and_sweepers_exist(page: Path) -> None:
    for group, names in re.findall(r"hydra/(launcher|sweeper)=([\w|,]+)", page.read_text(encoding="utf8")):
        known = {path.stem for path in (configs.CONF / "hydra" / group).glob("*.yaml")} | {"basic"}
        assert set(re.split(r"[|,]", names)) <= known


def test_printed_training_commands_compose() -> None:
    recipes = {line for lines in COMMANDS.values() for line in lines}
    lines = [line for line in code(REPOSITORY / "README.md") if line.startswith("musicnet-train ") and line not in recipes]
    assert len(lines) >= 2
    for line in lines:
        given = [word for word in shlex.split(line)[1:] if "=" in word]
        configs.compose([word if "[" in word else word.partition(",")[0] for word in given])


def slug(heading: str) -> str:
    """Name a heading's anchor as GitHub does."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    text = FENCED.sub("", page.read_text(encoding="utf8"))
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith(("https://", "mailto:")):
            continue
        file, _, anchor = link.partition("#")
        target = page.parent / file if file else page
        assert target.exists(), link
        if anchor:
            assert anchor in {slug(h) for h in re.findall(r"^#+ (.*)$", target.read_text(encoding="utf8"), re.MULTILINE)}, link


def test_the_citation_agrees_with_the_project() -> None:
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text(encoding="utf8"))
    assert {"cff-version", "message", "title", "authors"} <= set(citation)
    assert str(citation["version"]) == PROJECT["project"]["version"]
    assert citation["license"] == PROJECT["project"]["license"]
    (paper,) = citation["references"]
    bibtex = re.search(r"```bibtex\n(.*?)```", README, re.DOTALL)
    assert bibtex
    names = [f"{author['family-names']}, {author['given-names']}" for author in paper["authors"]]
    assert " and ".join(names) in bibtex[1]
    for value in (
        paper["doi"],
        paper["title"],
        f"{paper['start']}--{paper['end']}",
        f"{{{paper['volume']}}}",
        f"{{{paper['year']}}}",
    ):
        assert str(value) in bibtex[1]


def test_supported_pythons() -> None:
    low, high = re.search(r"Python 3\.(\d+) to 3\.(\d+)", README).groups()  # type: ignore[union-attr]
    assert PROJECT["project"]["requires-python"] == f">=3.{low},<3.{int(high) + 1}"
