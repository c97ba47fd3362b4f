"""Every spectrogram with every augmentation and a network of every kind: it trains, or is refused with the reason."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from musicnet_eval import configs
from musicnet_eval.augment import Augment
from musicnet_eval.backbones import build
from musicnet_eval.errors import ConfigError
from musicnet_eval.segments import generator
from musicnet_eval.spectrograms import make_images

ROWS, CLASSES = 4, 3
NETWORKS = (
    "test_resnet",
    "test_efficientnet",
    "test_vit",
    "torchvision/squeezenet1_1",
    "stats_linear",
    "short_chunk_cnn",
    "crnn",
)
# What pools an image of so few bins to nothing, and says so.
TOO_SMALL = {("torchvision/squeezenet1_1", "chroma")}
TOO_SMALL |= {(backbone, choice) for backbone in ("short_chunk_cnn", "crnn") for choice in ("chroma", "cqt", "mfcc")}


def choices(group: str) -> list[str]:
    return sorted(path.stem for path in (configs.CONF / group).glob("*.yaml"))


@cache
def composed(group: str, choice: str) -> dict[str, Any]:
    return configs.resolved(configs.compose([f"{group}={choice}"]))


@cache
def sound() -> Tensor:
    """Give noise as long as a segment is by default."""
    data = composed("spectrogram", "log_mel")["data"]
    length = round(data["segment_seconds"] * data["sample_rate"])
    return 0.1 * torch.randn(ROWS, length, generator=torch.Generator().manual_seed(0))


@cache
def front(spectrogram: str) -> Any:
    return configs.build(composed("spectrogram", spectrogram)["datamodule"]["spectrogram"], "spectrogram")


@cache
def plain(spectrogram: str) -> Tensor:
    return make_images(front(spectrogram), sound()[:2])


@pytest.mark.slow
@pytest.mark.parametrize("augment", choices("augment"))
def test_every_spectrogram_of_augmented_audio_is_augmented(augment: str) -> None:
    steps = {name: configs.build(node, f"augment.{name}") for name, node in composed("augment", augment)["augment"].items()}
    module = Augment(steps, CLASSES)

    def draw(name: str) -> Any:
        return generator(0, 0, name)

    audio, label = module("audio", sound(), torch.arange(ROWS) % CLASSES, draw)
    for spectrogram in choices("spectrogram"):
        image, mixed = module("image", make_images(front(spectrogram), audio), label, draw)
        assert image.shape == (ROWS, *plain(spectrogram).shape[1:]), spectrogram
        assert image.isfinite().all(), spectrogram
        assert mixed.shape in ((ROWS,), (ROWS, CLASSES))


@pytest.mark.slow
@pytest.mark.parametrize("backbone", NETWORKS)
def test_every_network_trains_on_every_spectrogram_or_says_why_not(backbone: str) -> None:
    for spectrogram in choices("spectrogram"):
        image = plain(spectrogram)
        if (backbone, spectrogram) in TOO_SMALL:
            with pytest.raises(ConfigError, match=f"backbone={backbone}.*{'×'.join(map(str, image.shape[2:]))}"):
                build(backbone, {}, CLASSES, tuple(image.shape[1:]))
            continue
        network = build(backbone, {}, CLASSES, tuple(image.shape[1:]))
        scores = network(image)
        scores.square().mean().backward()
        assert scores.shape == (2, CLASSES), spectrogram
        assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters()), spectrogram
