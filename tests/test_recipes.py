"""`recipe=auto`: what is measured, left out and chosen; that all runs of a network share it, and are those asked for by hand."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from musicnet_eval import configs, records
from musicnet_eval.contracts import DataFacts
from musicnet_eval.errors import ConfigError
from musicnet_eval.evaluate import main as evaluate
from musicnet_eval.recipes import Candidate, Steps, candidates, choose, convolution_ratio, filled, measure, settle
from tests.conftest import TINY, Command, only_run
from tests.test_resume import STOP

DEFAULT, PLAIN, HALF, PLAIN_HALF = OPTIONS = [
    Candidate(channels_last=layout, precision=precision) for precision in ("32-true", "bf16-mixed") for layout in (True, False)
]
CONTEXTS = {"32-true": contextlib.nullcontext, "bf16-mixed": lambda: torch.autocast("cpu", torch.bfloat16)}
CPU = torch.device("cpu")


def asked(*overrides: str) -> list[Candidate]:
    config = configs.resolved(configs.compose(overrides))
    configs.check(config)
    return candidates(config)


# --- what is asked for --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "open_"),
    [
        (["recipe=default"], []),
        (["recipe=auto"], OPTIONS),
        (["recipe=auto", "trainer.precision=32-true"], [DEFAULT, PLAIN]),
        (["recipe=auto", "model.channels_last=false"], [PLAIN, PLAIN_HALF]),
        (["recipe=auto", "model.channels_last=true", "trainer.precision=bf16-mixed"], []),
        (["recipe=auto", "trainer=gpu"], OPTIONS),
        (["recipe=finetune", "trainer.precision=auto"], [DEFAULT, HALF]),
        (["trainer.precision=16-mixed", "model.channels_last=auto"], [one._replace(precision="16-mixed") for one in OPTIONS[:2]]),
    ],
)
def test_what_is_said_by_hand_stays(overrides: list[str], open_: list[Candidate]) -> None:
    assert asked(*overrides) == open_


def test_a_compiled_network_is_not_probed() -> None:
    with pytest.raises(ConfigError, match=r"model\.channels_last=auto is chosen by a probe.*model\.compile=false"):
        asked("recipe=auto", "model.compile=true")


def test_auto_is_no_memory_format_of_other_switches() -> None:
    with pytest.raises(ConfigError, match=r"data\.pad_short='auto' must be true or false"):
        asked("recipe=auto", "data.pad_short=auto")


def test_auto_without_a_choice_is_refused() -> None:
    config = {"model": {"channels_last": True}, "trainer": {"precision": "auto"}}
    with pytest.raises(ConfigError, match=r"trainer\.precision=auto is chosen when a run is trained.*trainer\.precision=VALUE"):
        filled(config, {})
    found = {"model.channels_last": False, "trainer.precision": "bf16-mixed"}
    assert filled(config, found) == {"model": {"channels_last": True}, "trainer": {"precision": "bf16-mixed"}}
    assert config["trainer"]["precision"] == "auto"


# --- what is chosen -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "chosen"),
    [
        ([1.0, 1.0, 1.0, 1.0], DEFAULT),
        ([1.02, 1.2, 1.0, 1.1], DEFAULT),  # a tie
        ([1.2, 1.02, 1.0, 1.1], PLAIN),
        ([2.0, 2.1, 1.0, 1.1], HALF),
        ([2.0, 2.1, 2.0, 1.1], PLAIN_HALF),
    ],
)
def test_the_simplest_of_the_fastest_is_chosen(seconds: list[float], chosen: Candidate) -> None:
    assert choose(dict(zip(OPTIONS, seconds, strict=True)), OPTIONS) == chosen
    assert choose({chosen: 1.0}, OPTIONS) == chosen


class Picky(nn.Module):
    """A network that takes its time, or none, or fails, by the memory format of its weights and the precision that it runs in."""

    def __init__(self, **moods: str) -> None:
        super().__init__()
        self.layer = nn.Conv2d(2, 3, 3)  # of one channel, both formats would look the same
        self.moods = moods

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.layer(image).mean((2, 3))
        layout = "last" if self.layer.weight.is_contiguous(memory_format=torch.channels_last) else "first"
        mood = self.moods.get(f"{layout}_{'half' if scores.dtype == torch.bfloat16 else 'full'}", "")
        if mood == "fails":
            raise RuntimeError("\"picky\" not implemented for\n'BFloat16'")
        if mood == "no number":
            scores = scores * float("nan")
        end = time.process_time() + 0.02 * (mood == "slow") + 0.2 * (mood == "very slow")
        while time.process_time() < end:
            pass
        return scores


@pytest.mark.parametrize(
    ("moods", "chosen", "left_out"),
    [
        ({}, None, {}),
        ({"last_full": "slow", "last_half": "slow", "first_half": "slow"}, PLAIN, None),
        ({"last_full": "slow", "first_full": "slow", "last_half": "slow"}, PLAIN_HALF, None),
        (
            {"first_full": "very slow", "last_half": "fails", "first_half": "no number"},
            DEFAULT,
            {PLAIN: "times as long as the fastest", HALF: 'RuntimeError: "picky" not implemented for', PLAIN_HALF: "no numbers"},
        ),
    ],
)
def test_what_is_measured_and_what_is_left_out(
    moods: dict[str, str], chosen: Candidate | None, left_out: dict[Candidate, str] | None
) -> None:
    steps = Steps(Picky(**moods), CONTEXTS, OPTIONS, (2, 8, 8), CPU)
    times = measure(steps, batch_size=4, budget=0.3)
    assert steps.images == 4
    assert set(times) | set(steps.left_out) == set(OPTIONS)
    assert all(seconds > 0 for seconds in times.values())
    if chosen is not None:
        assert choose(times, OPTIONS) == chosen
    if left_out:
        assert set(steps.left_out) == set(left_out)
        for option, reason in left_out.items():
            assert reason in steps.left_out[option]


def test_what_nothing_can_train_fails_as_it_would_in_training() -> None:
    steps = Steps(Picky(last_full="fails", first_full="fails"), CONTEXTS, [DEFAULT, PLAIN], (2, 8, 8), CPU)
    with pytest.raises(RuntimeError, match="not implemented"):
        measure(steps, batch_size=4)


def test_a_long_step_takes_fewer_images() -> None:
    moods = dict.fromkeys(("last_full", "first_full"), "slow")
    steps = Steps(Picky(**moods), CONTEXTS, [DEFAULT, PLAIN], (2, 8, 8), CPU)
    measure(steps, batch_size=1000, budget=0.4)
    assert 4 <= steps.images <= 10  # 20 ms for two images: 0.4 s are 2 rounds of 2 steps of 10 × 10 ms


def test_a_step_is_a_step_of_gradient_descent() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    steps = Steps(network, CONTEXTS, [DEFAULT], (1, 3, 4), CPU)
    steps.noise(5)
    trained, weight = steps.networks[True], network.get_submodule("1").weight
    scores = network(steps.batch)
    scores.logsumexp(1).mean().backward()
    steps.step(DEFAULT)
    assert weight.grad is not None
    torch.testing.assert_close(trained.get_submodule("1").weight, weight - 1e-4 * weight.grad)


def test_a_precision_that_is_none_costs_as_much() -> None:
    assert 0.2 < convolution_ratio(contextlib.nullcontext) < 5


# --- in a run -----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def small(tones: Path) -> list[str]:
    return ["data=folder", f"data.root={tones}", "backbone=test_resnet", "+backbone_options.drop_rate=0.3", *TINY]


def outcome(run: Path) -> tuple[dict[str, float], bytes, list[str]]:
    """Give a run's numbers: metrics, curves, and what it says of each song."""
    predictions = (run / "predictions.csv").read_text().splitlines()
    return dict(records.read_result(run)["metrics"]), (run / "metrics.csv").read_bytes(), predictions


def keep(cache: Path, **choice: Any) -> Path:
    """Let the one choice that is kept be another."""
    (place,) = cache.glob("recipes/*.json")
    found = json.loads(place.read_text())
    place.write_text(json.dumps(found | choice))
    return place


@pytest.mark.slow
def test_a_run_is_the_one_asked_for_by_hand_and_all_of_a_sweep_share_the_choice(
    train: Command, small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(name: str, *given: str) -> dict[str, Any]:
        assert train(*small, *given, f"hydra.run.dir={tmp_path / name}") == 0
        return dict(records.read_result(tmp_path / name))

    facts = run("probed", "recipe=auto")["facts"]["recipe"]
    shown = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("recipe: "))
    choice = Candidate(facts["model.channels_last"], facts["trainer.precision"])
    assert shown.startswith(f"recipe: {choice}")
    assert min(facts["ratios"].values()) == 1 <= facts["ratios"][str(choice)] <= 1.03
    assert set(facts["ratios"]) | set(facts["left_out"]) == {str(option) for option in OPTIONS}
    assert facts["images"] == 4
    assert (facts["for"]["backbone"], facts["for"]["image_shape"], facts["for"]["batch_size"]) == ("test_resnet", [1, 32, 32], 4)
    by_hand = run("by_hand", *str(choice).split())
    assert outcome(tmp_path / "probed") == outcome(tmp_path / "by_hand")
    assert by_hand["facts"]["recipe"] == {}

    # Other seeds and losses take what is kept, whatever they would find themselves: here what nobody would.
    place = keep(tmp_path / "data/cache", **{"model.channels_last": False, "trainer.precision": "bf16-mixed"})
    kept = json.loads(place.read_text())
    other = ("seed=1", "loss=focal")
    assert run("shared", "recipe=auto", *other)["facts"]["recipe"] == kept
    run("shared_by_hand", "model.channels_last=false", "trainer.precision=bf16-mixed", *other)
    assert outcome(tmp_path / "shared") == outcome(tmp_path / "shared_by_hand")
    assert outcome(tmp_path / "shared") != outcome(tmp_path / "probed")

    # A run asks for `auto` in its config, and is evaluated as it was trained.
    assert records.read_result(tmp_path / "shared")["config"]["trainer"]["precision"] == "auto"
    assert evaluate([str(tmp_path / "shared")]) == 0
    assert evaluate([str(tmp_path / "shared"), "data.num_workers=0"]) == 0
    for again in (tmp_path / "shared/evaluations").glob("*/evaluation.json"):
        metrics = records.read_result(tmp_path / "shared")["metrics"]
        assert json.loads(again.read_text())["metrics"].items() <= metrics.items()


@pytest.mark.slow
def test_a_choice_is_kept_for_what_it_was_made_for(small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    facts = DataFacts(classes=("a", "b"), class_counts=(3, 4), image_shape=(1, 32, 32), sample_rate=8000)
    config = configs.resolved(configs.compose([*small, "recipe=auto"]))
    cache = tmp_path / "cache"

    def settled(run: str, **other: Any) -> dict[str, Any]:
        return settle({**config, **other}, facts, cache, tmp_path / run)[1]

    torch.manual_seed(5)
    first, drawn = settled("first"), torch.rand(3)
    torch.manual_seed(5)
    assert torch.rand(3).equal(drawn)  # the probe leaves random generators as they were
    assert settled("second", seed=1, loss={}, optimizer={}, finetune={}) == first
    assert f"recipe: {Candidate(first['model.channels_last'], first['trainer.precision'])}" in capsys.readouterr().out

    assert settled("larger", data={**config["data"], "batch_size": 8})["images"] == 8
    assert len(list((cache / "recipes").glob("*.json"))) == 2
    (place,) = (file for file in (cache / "recipes").glob("*.json") if json.loads(file.read_text()) == first)
    for text in ("{", "{}", json.dumps(first | {"trainer.precision": "8-bit"}), json.dumps(first | {"ratios": 1})):
        place.write_text(text)  # damaged, or no candidate
        assert settled(f"after {text[:60]}")["for"] == first["for"]
        assert json.loads(place.read_text())["images"] == 4


@pytest.mark.slow
def test_a_run_that_is_cut_short_goes_on_as_it_began(train: Command, small: list[str], tmp_path: Path) -> None:
    (tmp_path / "stop.py").write_text(STOP)
    stopping = (
        "plugins=[stop]",
        "+callbacks.stop._target_=stop.Stop",
        "+callbacks.stop.hook=batch_end",
        "+callbacks.stop.epoch=1",
    )
    assert train(*small, *stopping, "recipe=auto") == 130
    run = only_run(tmp_path / "runs")
    keep(tmp_path / "data/cache", **{"model.channels_last": False, "trainer.precision": "bf16-mixed"})
    began = json.loads((run / "checkpoints/recipe.json").read_text())
    assert train(*small, *stopping, "recipe=auto") == 0
    assert records.read_result(run)["facts"]["recipe"] == began
    assert (tmp_path / "epochs").read_text() == "0 1 1 "


def test_a_choice_that_cannot_be_kept_is_refused(
    train: Command, small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "data/cache").mkdir(parents=True)
    (tmp_path / "data/cache/recipes").write_text("in the way")
    assert train(*small, "recipe=auto") == 2
    assert "recipe=auto cannot keep its choice in" in capsys.readouterr().err
