"""Measure how near `recipe=auto` comes to the best memory format and precision; `bench.py` prints a row a network.

First the probe chooses, as in a run. Then all candidates take turns at whole training steps in plain PyTorch (cross-entropy,
AdamW, autocast), and medians of CPU time are compared. What takes many times as long on two images is measured no further.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from musicnet_eval import backbones, configs
from musicnet_eval.contracts import DataFacts
from musicnet_eval.evaluate import quiet
from musicnet_eval.recipes import FORMATS, PRECISIONS, Candidate, settle

NETWORKS = (
    "resnet18",
    "mobilenetv3_small_050",
    "vit_tiny_patch16_224",
    "tf_efficientnet_lite0",
    "convnext_atto",
    "densenet121",
    "resnet50",
    "cnn14",
)
FACTS = DataFacts(classes=tuple("abcdefghij"), class_counts=(1,) * 10, image_shape=(1, 128, 130), sample_rate=22050)
CANDIDATES = [Candidate(layout, precision) for precision in PRECISIONS for layout in reversed(FORMATS)]
PLAIN = CANDIDATES[0]  # PyTorch as it is
HOPELESS, LIMIT = 3.0, 1.10


class Sides:
    """A network in every memory format, and its training steps in every precision."""

    def __init__(self, name: str) -> None:
        network = backbones.build(name, {}, len(FACTS.classes), FACTS.image_shape).train()
        self.networks = {False: network, True: copy.deepcopy(network).to(memory_format=torch.channels_last)}
        self.optimizers = {layout: torch.optim.AdamW(one.parameters(), lr=1e-5) for layout, one in self.networks.items()}

    def step(self, candidate: Candidate, image: Tensor) -> float:
        """Train on one batch, and give its CPU time, seconds."""
        optimizer, label = self.optimizers[candidate.channels_last], torch.arange(len(image)) % len(FACTS.classes)
        half = candidate.precision != "32-true"
        began = time.process_time()
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False) if half else contextlib.nullcontext():
            scores = self.networks[candidate.channels_last](image)
        nn.functional.cross_entropy(scores.float(), label).backward()
        optimizer.step()
        return time.process_time() - began


def chosen(name: str, batch_size: int, work: Path) -> tuple[Candidate, dict[str, Any]]:
    """Let the probe choose for a network, as a run would that nothing was kept for."""
    given = [f"backbone={name}", f"data.batch_size={batch_size}", "recipe=auto", "trainer=cpu", "paths.data=data"]
    found = settle(configs.resolved(configs.compose(given)), FACTS, work / "cache", work / name)[1]
    return Candidate(found["model.channels_last"], found["trainer.precision"]), found


def table(name: str, batch_size: int, rounds: int) -> tuple[dict[Candidate, list[float]], dict[Candidate, float]]:
    """Time all candidates: seconds of every round, and of those that are hopeless the ratio to the fastest on two images."""
    sides, two = Sides(name), torch.randn(2, *FACTS.image_shape)
    first = {candidate: sides.step(candidate, two) for candidate in CANDIDATES}
    for candidate in (PLAIN, PLAIN._replace(channels_last=True)):
        first[candidate] = sides.step(candidate, two)  # the first steps of all have made ready what is made once
    hopeless = {one: spent / min(first.values()) for one, spent in first.items() if spent > HOPELESS * min(first.values())}
    seconds: dict[Candidate, list[float]] = {candidate: [] for candidate in CANDIDATES if candidate not in hopeless}
    images = torch.randn(batch_size, *FACTS.image_shape)
    for _ in range(rounds + 1):
        for candidate, spent in seconds.items():
            spent.append(sides.step(candidate, images))
    return {candidate: spent[1:] for candidate, spent in seconds.items()}, hopeless


def row(name: str, batch_size: int, rounds: int, work: Path) -> dict[str, Any]:
    """Give what a row of the table says of one network."""
    choice, found = chosen(name, batch_size, work)
    seconds, hopeless = table(name, batch_size, rounds)
    median = {candidate: statistics.median(spent) for candidate, spent in seconds.items()}
    best = min(median, key=median.__getitem__)
    value = median[choice] / median[best] if choice in median else hopeless[choice]
    against = median.get(PLAIN, float("nan"))
    told = [f"{_short(candidate)} {spent / against:.2f}" for candidate, spent in median.items() if candidate != PLAIN]
    told += [f"{_short(candidate)} about {times:.0f}" for candidate, times in hopeless.items()]
    note = f"probe {found['seconds']:.1f} s on {found['images']} of {batch_size} images: {_short(choice)}"
    return {
        "what": f"recipe=auto: {name} / the best",
        "value": f"{value:.2f} ×",
        "target": f"<= {LIMIT:.2f} ×",
        "met": value <= LIMIT,
        "rounds": {"ours": seconds.get(choice, []), "bare": seconds[best]},
        "note": f"{note}; over plain float32: {', '.join(told)}",
    }


def _short(candidate: Candidate) -> str:
    """Name a candidate in a cell.

    >>> _short(Candidate(True, "bf16-mixed"))
    'bf16 channels last'
    """
    words = [candidate.precision.partition("-")[0]] if candidate.precision != PRECISIONS[0] else []
    return " ".join([*words, *["channels last"] * candidate.channels_last]) or "plain"


def measure(networks: Sequence[str], batch_size: int, rounds: int) -> list[dict[str, Any]]:
    """Give a row a network."""
    rows = []
    quiet()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        for name in networks:
            print(f"recipe=auto beside its candidates: {name}", file=sys.stderr, flush=True)
            rows.append(row(name, batch_size, rounds, Path(folder)))
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("networks", nargs="*", default=NETWORKS, help="timm's names, or ours")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    torch.set_num_threads(1)
    for one in measure(given.networks, given.batch_size, given.rounds):
        print(one["what"], one["value"], one["target"], "met" if one["met"] else "NOT met", one["note"], sep=" | ")
