"""Every YAML composes, resolves and builds; what a config names exists."""

from __future__ import annotations

import inspect
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hydra.utils import get_object
from torch import nn

from musicnet_eval import configs
from musicnet_eval.classifier import finish
from musicnet_eval.contracts import DataFacts
from musicnet_eval.errors import ConfigError
from tests.conftest import REPOSITORY

FILES = sorted(path.relative_to(configs.CONF).as_posix() for path in configs.CONF.rglob("*.yaml"))
CHOICES = [file.removesuffix(".yaml") for file in FILES if "/" in file and not file.startswith("experiment/")]
EXPERIMENTS = [file.removesuffix(".yaml").partition("/")[2] for file in FILES if file.startswith("experiment/")]
ROOTED = ("folder", "gtzan", "fma", "ismir2004", "emotion_4q", "pmemo", "mtg_jamendo_moodtheme", "ballroom", "extended_ballroom")
NEEDED = {f"data/{name}": ["data.root=songs"] for name in ROOTED}
NEEDED |= {"data/mirdata": ["data.root=songs", "data.dataset=gtzan_genre"]}
NEEDED |= {f"data/{kind}": [f"data.manifest=songs.{kind}"] for kind in ("csv", "jsonl", "parquet")}


def composed(*overrides: str) -> dict[str, Any]:
    return configs.resolved(configs.compose(overrides))


@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_composes_and_names_what_exists(choice: str) -> None:
    group, _, name = choice.rpartition("/")
    config = composed(f"{group}={name}", *NEEDED.get(choice, []))
    configs.check(config)
    for target in configs._targets(config):
        assert callable(get_object(target)), target


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_composes_and_says_command_time_and_score(experiment: str) -> None:
    configs.check(composed(f"experiment={experiment}"))
    header = (configs.CONF / "experiment" / f"{experiment}.yaml").read_text(encoding="utf8")
    assert all(word in header for word in ("# Command:", "# Time:", "# Score:"))


@pytest.mark.parametrize("choice", [c for c in CHOICES if c.startswith("spectrogram/")])
def test_spectrograms_build_and_run(choice: str) -> None:
    node = composed(f"spectrogram={choice.partition('/')[2]}", "spectrogram.size=[32,48]")["datamodule"]["spectrogram"]
    image = configs.build(node, "spectrogram")(torch.zeros(2, 22050))
    assert (len(image), *image.shape[2:]) == (2, 32, 48)


@pytest.mark.slow
def test_the_readme_states_the_shape_of_every_spectrogram() -> None:
    table = re.findall(
        r"^\| `(\w+)` \| (\d+) × (\d+) × (\d+) \|", (REPOSITORY / "README.md").read_text(encoding="utf8"), re.MULTILINE
    )
    assert {name for name, *_ in table} == {c.partition("/")[2] for c in CHOICES if c.startswith("spectrogram/")}
    for name, *shape in table:
        config = composed(f"spectrogram={name}")
        front = configs.build(config["datamodule"]["spectrogram"], "spectrogram")
        segment = torch.zeros(1, round(config["data"]["segment_seconds"] * config["data"]["sample_rate"]))
        assert front(segment).shape[1:] == tuple(map(int, shape)), name


def test_a_stack_is_composed_from_the_command_line() -> None:
    turned = [
        "+spectrogram@spectrogram.channels.pcen=pcen",
        "spectrogram.channels.chroma=null",
        "spectrogram.channels.cqt.n_bins=60",
    ]
    node = composed("spectrogram=stack", "data.sample_rate=16000", *turned)["datamodule"]["spectrogram"]
    front = configs.build(node, "spectrogram")
    assert list(front.spectrogram.channels) == ["log_mel", "cqt", "pcen"]
    assert node["spectrogram"]["channels"]["pcen"]["sample_rate"] == 16000
    assert front.spectrogram.channels["cqt"](torch.zeros(1, 8000)).shape[2] == 60
    assert front(torch.zeros(1, 8000)).shape[1] == 3


@pytest.mark.parametrize("choice", [c for c in CHOICES if c.startswith(("optimizer/", "scheduler/"))])
@pytest.mark.slow
def test_optimizers_and_schedules_build_and_step(choice: str) -> None:
    group, _, name = choice.partition("/")
    config = composed(f"{group}={name}")
    weight = nn.Parameter(torch.ones(3))
    optimizer = finish(configs.build(config["optimizer"], "optimizer"), params=[weight])
    scheduler = finish(configs.build(config["scheduler"], "scheduler"), optimizer=optimizer, total_steps=10)
    for _ in range(10):
        optimizer.zero_grad()
        (weight**2).sum().backward()
        optimizer.step()
        scheduler.step(*([0.5] if hasattr(scheduler, "monitor") else []))
    assert (weight < 1).all()


@pytest.mark.parametrize("choice", [c for c in CHOICES if c.startswith(("callbacks/", "trainer/"))])
def test_callbacks_and_trainers_build(choice: str) -> None:
    group, _, name = choice.partition("/")
    config = composed(f"{group}={name}")
    for key, node in config["callbacks"].items():
        assert configs.build(node, f"callbacks.{key}") is not None
    if isinstance(strategy := config["trainer"].get("strategy"), dict):
        assert configs.build(strategy, "trainer.strategy") is not None
    if name in ("gpu", "fsdp") and not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="trainer cannot be made"):
            configs.build(config["trainer"], "trainer")
    else:
        facts = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
        assert configs.build(config["trainer"], "trainer", **facts).max_epochs == 20


def test_a_target_that_cannot_be_imported_is_told_from_one_that_cannot_be_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_installation.py").write_text('raise RuntimeError("compiled with different CUDA versions")\n')
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=r"CUDA versions\)\. Mend loss\._target_, or the installed packages\."):
        configs.build({"_target_": "broken_installation.Loss"}, "loss")
    with pytest.raises(ConfigError, match=r"no_such\S*\)\. Mend optimizer\.\*$"):
        configs.build({"_target_": "torch.optim.Adam", "no_such": 1}, "optimizer", params=[torch.zeros(1)])


def test_the_trainer_has_lightnings_own_arguments_only() -> None:
    import lightning

    known = set(inspect.signature(lightning.Trainer.__init__).parameters)
    assert set(composed()["trainer"]) - {"_target_"} <= known


def test_model_and_data_nodes_name_every_argument() -> None:
    """A config key is a constructor argument: none is left out, none is made up."""
    config = composed()
    for node, given in (("model", {"facts", "num_songs"}), ("datamodule", {"tracks"})):
        arguments = set(inspect.signature(get_object(config[node]["_target_"])).parameters)
        assert set(config[node]) - {"_target_"} == arguments - given


def test_the_whole_model_builds_from_the_defaults() -> None:
    facts = DataFacts(classes=("a", "b"), class_counts=(3, 4), image_shape=(1, 32, 40), sample_rate=22050)
    model = configs.build(composed("backbone=test_resnet", "loss=balanced_trusted")["model"], "model", facts=facts, num_songs=7)
    assert model(torch.zeros(2, 1, 32, 40)).shape == (2, 2)
    assert isinstance(model.make_optimizer, partial)


def test_shipped_targets_are_found() -> None:
    assert {"torch.nn.CrossEntropyLoss", "musicnet_eval.classifier.MusicClassifier"} <= configs.shipped_targets()
    assert "torch.load" not in configs.shipped_targets()


@pytest.mark.parametrize("file", FILES)
def test_yaml_is_plain_and_explains_itself(file: str) -> None:
    text = (configs.CONF / file).read_text(encoding="utf8")
    yaml.safe_load(text)
    assert "\t" not in text
    if file.startswith(("loss/", "data/", "spectrogram/", "experiment/")):
        assert text.startswith("#"), "a choice opens by saying what it is"


def test_conf_is_found_beside_the_package() -> None:
    assert (configs.CONF / "train.yaml").is_file()
    assert Path(configs.CONF).name == "conf"


def test_unknown_things_are_named() -> None:
    for override, named in (("losss=x", "losss"), ("loss=nope", "nope"), ("data.foldd=1", "foldd")):
        with pytest.raises(ConfigError, match=named):
            configs.compose([override])


def test_missing_values_are_named() -> None:
    with pytest.raises(ConfigError, match=r"data.manifest must be given, and is not. Say data.manifest=VALUE"):
        composed("data=csv")
