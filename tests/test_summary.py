"""What is said before a training: counted by hand, by plain loops, and by what a run's record says."""

from __future__ import annotations

import gc
import io
import weakref
from pathlib import Path

import pytest
import timm
import torch
from rich.console import Console
from torch import nn

from musicnet_eval import records
from musicnet_eval.backbones import build
from musicnet_eval.finetune import Finetune
from musicnet_eval.summary import cost, memory_bytes, parameters_row, short, show, stages, time_row
from tests.conftest import TINY, Command, only_run


def test_cost_by_hand() -> None:
    network = nn.Sequential(nn.Conv2d(2, 3, 5), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 6 * 8, 4))
    counted = cost(network, (2, 10, 12))
    assert counted.macs == 6 * 8 * 3 * (2 * 5 * 5) + 3 * 6 * 8 * 4
    # kept for the backward pass: the image, and what comes out of the ReLU, which the linear layer needs too
    assert counted.kept_bytes == 4 * (2 * 10 * 12 + 3 * 6 * 8)


def test_resnet18_costs_what_its_authors_say() -> None:
    assert cost(timm.create_model("resnet18"), (3, 224, 224)).macs == pytest.approx(1.8e9, rel=0.02)  # He et al. 2016, table 1


def test_counting_changes_nothing() -> None:
    network = timm.create_model("test_resnet", num_classes=3, drop_rate=0.5)
    network.get_submodule("bn1").eval()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    modes = [module.training for module in network.modules()]
    state = torch.get_rng_state()
    cost(network, (3, 32, 32))
    assert all(value.equal(before[name]) for name, value in network.state_dict().items())
    assert [module.training for module in network.modules()] == modes
    assert torch.get_rng_state().equal(state)
    assert all(parameter.grad is None for parameter in network.parameters())


class Exponential(nn.Module):
    """A layer that keeps its own output for the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        output = (image * self.weight).exp()
        self.seen = weakref.ref(output)
        return output


def test_counting_holds_nothing_afterwards() -> None:
    network = Exponential()
    cost(network, (1, 8, 8))
    gc.collect()
    assert network.seen() is None


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "stats_linear", "torchvision/squeezenet1_1"])
def test_stages_hold_every_parameter_once(name: str) -> None:
    network = build(name, {}, 3, (1, 64, 64))
    frozen = Finetune(trained_stages=1).frozen(network, 0)
    parts = stages(network, 4, frozen)
    assert sum(part.parameters for part in parts) == sum(p.numel() for p in network.parameters())
    assert sum(part.learning for part in parts) == sum(p.numel() for n, p in network.named_parameters() if n not in frozen)
    assert parts[-1].name == "head"
    assert parts[-1].learning == parts[-1].parameters


def test_frozen_stages_keep_less_and_are_said() -> None:
    network = build("test_resnet", {}, 3, (1, 64, 64))
    whole = cost(network, (1, 64, 64)).kept_bytes
    for parameter in network.parameters():
        parameter.requires_grad = False
    network.get_submodule("fc").requires_grad_()
    assert cost(network, (1, 64, 64)).kept_bytes < whole / 10
    told = parameters_row(stages(network, 4, frozenset()))
    assert told.count("(frozen)") == 4
    assert "learn at first" in told


def test_memory_of_a_network_by_hand() -> None:
    parts = stages(nn.Sequential(nn.Linear(10, 10, bias=False), nn.Linear(10, 2, bias=False)), 4, frozenset({"0.weight"}))
    # 120 weights; of 20 that learn a gradient and two moments; 100 bytes of each image
    assert memory_bytes(parts, 100, 8, half=False) == 4 * 120 + 3 * 4 * 20 + 800
    assert memory_bytes(parts, 100, 8, half=True) == 4 * 120 + 3 * 4 * 20 + 400


def test_a_table_in_a_terminal_and_lines_elsewhere() -> None:
    shown = {}
    for terminal in (True, False):
        file = io.StringIO()
        show({"data": "6 tracks", "image": "1×2×3"}, Console(file=file, force_terminal=terminal, width=60))
        shown[terminal] = file.getvalue()
    assert shown[False] == "data: 6 tracks\nimage: 1×2×3\n"
    assert "─" in shown[True]
    assert all(text in shown[True] for text in ("data", "6 tracks", "1×2×3"))


@pytest.mark.parametrize(("number", "said"), [(0, "0"), (999, "999"), (1000, "1 k"), (23_500_000, "23.5 M"), (4.1e9, "4.1 G")])
def test_numbers_to_three_digits(number: float, said: str) -> None:
    assert short(number) == said


def test_a_run_says_what_it_is_and_where_its_time_went(
    train: Command, tones: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ("data=folder", f"data.root={tones}", *TINY, "backbone=test_vit", "finetune=head")
    assert train(*given, "data.segment_seconds=0.512") == 0
    lines = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
    record = records.read_result(only_run(tmp_path / "runs"))
    assert lines["data"] == "6 train, 6 val, 6 test tracks; 3 classes"
    assert lines["image"] == "1×32×33 (channels × bins × frames), resized to 32×64 for the network"
    assert record["facts"]["resized_to"] == [32, 64]
    assert lines["parameters"].startswith(f"{short(record['parameters'])}, of which {short(64 * 3 + 3)} learn at first: stage 1")
    assert lines["training"] == "2 epochs, 4 steps; 32-true on cpu"  # 6 tracks by 4
    shares = {name: value for name, value in record["throughput"].items() if name.endswith("_share")}
    assert set(shares) == {"data_share", "front_end_share", "step_share"}
    assert all(0 < share < 1 for share in shares.values())
    assert sum(shares.values()) == pytest.approx(1)
    assert lines["time"] == time_row(record["throughput"]).removeprefix("time: ")


def test_nothing_is_said_of_time_that_nobody_measured(train: Command, tones: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train("data=folder", f"data.root={tones}", *TINY, "backbone=stats_linear", "callbacks=none") == 0
    assert "time:" not in capsys.readouterr().out
