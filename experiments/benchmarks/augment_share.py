"""Measure what share of a ResNet-18 training step front end and augmentation take; `bench.py` prints the rows.

The two take turns at the same batch, as in training: log-mel song by song, steps on audio before it and on images after it.
"""

from __future__ import annotations

import statistics
import time
from functools import partial
from typing import Any

import timm
import torch
from torch import Tensor, nn

from musicnet_eval import configs
from musicnet_eval.augment import Augment
from musicnet_eval.segments import generator
from musicnet_eval.spectrograms import LogMel, make_images

RATE, CLASSES, LIMIT = 22050, 6, 0.10
CHOICES = ("none", "specaugment", "mixup", "music_strong")


def augmentation(choice: str) -> Augment:
    """Build one choice of `conf/augment`, as a run would."""
    nodes = configs.resolved(configs.compose([f"augment={choice}"]))["augment"]
    return Augment({name: configs.build(node, f"augment.{name}") for name, node in nodes.items()}, CLASSES)


class Sides:
    """The two sides: a training step, and all that makes its batch out of audio.

    Args:
        audio: `[B, T]` float, at 22.05 kHz.
    """

    def __init__(self, audio: Tensor) -> None:
        self.audio, self.label = audio, torch.arange(len(audio)) % CLASSES
        self.front = LogMel(RATE, 2048, 512, 128)
        self.augments = {choice: augmentation(choice) for choice in CHOICES}
        self.network = timm.create_model("resnet18", in_chans=1, num_classes=CLASSES).to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.AdamW(self.network.parameters())
        self.image = make_images(self.front, audio)
        self.parts: dict[str, list[float]] = {}

    def step(self) -> None:
        """Train on one batch of images."""
        self.optimizer.zero_grad()
        nn.functional.cross_entropy(self.network(self.image), self.label).backward()
        self.optimizer.step()

    def batch(self, choice: str, number: int) -> None:
        """Make the batch of one step, and note the seconds of audio steps, front end and image steps."""
        draw = partial(generator, 0, number)
        clock = [time.perf_counter()]
        audio, label = self.augments[choice]("audio", self.audio, self.label, draw)
        clock.append(time.perf_counter())
        image = make_images(self.front, audio)
        clock.append(time.perf_counter())
        self.augments[choice]("image", image, label, draw)
        clock.append(time.perf_counter())
        for part, before, after in zip(("audio", "front end", "image"), clock, clock[1:], strict=False):
            self.parts.setdefault(f"{choice} {part}", []).append(after - before)


def measure(audio: Tensor, rounds: int) -> list[dict[str, Any]]:
    """Let all take turns; give what a row of the table says of each choice.

    Args:
        audio: `[B, T]` float, at 22.05 kHz.
        rounds: How often each is timed, after one round that warms up; what is drawn differs from round to round.
    """
    sides = Sides(audio)
    seconds: dict[str, list[float]] = {name: [] for name in ("step", *CHOICES)}
    for number in range(rounds + 1):
        for name in seconds:
            began = time.perf_counter()
            sides.step() if name == "step" else sides.batch(name, number)
            seconds[name].append(time.perf_counter() - began)
    median = {name: statistics.median(values[1:]) for name, values in seconds.items()}
    rows = []
    for choice in CHOICES:
        share = median[choice] / median["step"]
        parts = {part: statistics.median(sides.parts[f"{choice} {part}"][1:]) for part in ("audio", "front end", "image")}
        split = ", ".join(f"{part} {spent / median['step']:.1%}" for part, spent in parts.items())
        rows.append(
            {
                "what": f"front end and `augment={choice}` / a ResNet-18 step",
                "value": f"{share:.1%}",
                "target": f"< {LIMIT:.0%}",
                "met": share < LIMIT,
                "rounds": {"ours": seconds[choice][1:], "bare": seconds["step"][1:]},
                "note": f"{len(audio)} × {audio.shape[1] / RATE:g} s, 128 mels; {split}",
            }
        )
    return rows


if __name__ == "__main__":
    torch.set_num_threads(1)
    noise = 0.1 * torch.randn(32, 3 * RATE, generator=torch.Generator().manual_seed(0))
    for row in measure(noise, rounds=9):
        print(row["what"], row["value"], row["target"], "met" if row["met"] else "NOT met", row["note"], sep=" | ")
