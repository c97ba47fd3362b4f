"""The audio-native networks: authors' parameter counts, any channels and shape, stages, heads, and what each is by its paper."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from torch import nn

from musicnet_eval.backbones import CosineHead, build, give_cosine_head, resized_to
from musicnet_eval.backbones.cnn14 import Cnn14
from musicnet_eval.errors import ConfigError
from musicnet_eval.finetune import Finetune, body_stages, freeze, head_names

SMALL_AST = {"embed_dim": 48, "num_heads": 3, "depth": 2}
NATIVE = {
    "short_chunk_cnn": {"width": 8},
    "short_chunk_cnn_res": {"width": 8},
    "cnn14": {"widths": (4, 5, 6, 7, 8, 9)},
    "crnn": {"maps": (6, 7, 8, 9), "hidden": 5},
    "musicnn": {"vertical": 6, "horizontal": 5, "maps": 8, "hidden": 9},
    "ast": SMALL_AST,
}


def size(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "shape", "classes", "stated"),
    [
        ("cnn14", (1, 64, 96), 527, 80_753_615),  # Kong et al., table of multi-adds and parameters
        ("crnn", (1, 96, 1366), 50, 1.0e6),  # Choi et al., by the width of its layers
        ("musicnn", (1, 96, 187), 50, 787e3),  # Pons and Serra
    ],
)
def test_as_many_parameters_as_the_authors_state(name: str, shape: tuple[int, int, int], classes: int, stated: float) -> None:
    assert size(build(name, {}, classes, shape)) == pytest.approx(stated, rel=0 if name == "cnn14" else 0.002)


@pytest.mark.parametrize(
    ("maps", "stated"), [((30, 60), 0.1e6), ((48, 96), 0.25e6), ((68, 137), 0.5e6), ((169, 339), 3e6)], ids=str
)
def test_the_other_sizes_of_crnn(maps: tuple[int, int], stated: float) -> None:
    options = {"maps": (maps[0], *[maps[1]] * 3), "hidden": maps[0]}
    assert size(build("crnn", options, 50, (1, 96, 96))) == pytest.approx(stated, rel=0.03)


@pytest.mark.parametrize("name", sorted(NATIVE))
@pytest.mark.parametrize("shape", [(1, 128, 130), (3, 130, 161)], ids=str)
def test_any_channels_and_shape(name: str, shape: tuple[int, int, int]) -> None:
    network = build(name, NATIVE[name], num_classes=5, image_shape=shape)
    scores = network(torch.randn(2, *shape, generator=torch.Generator().manual_seed(0)))
    assert scores.shape == (2, 5)
    assert resized_to(network) is None
    scores.square().sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


@pytest.mark.parametrize(
    ("name", "shape", "least"),
    [
        ("short_chunk_cnn", (1, 64, 130), "64×130 (bins × frames) to nothing; it needs 128×128 at least"),
        ("cnn14", (1, 64, 31), "it needs 32×32 at least"),
        ("crnn", (1, 84, 130), "it needs 96×96 at least"),
    ],
)
def test_an_image_of_which_nothing_is_left(name: str, shape: tuple[int, int, int], least: str) -> None:
    with pytest.raises(ConfigError) as refused:
        build(name, NATIVE[name], 5, shape)
    assert least in str(refused.value)
    assert "spectrogram.size=" in str(refused.value)


@pytest.mark.parametrize("name", ["musicnn", "short_chunk_cnn_res"])
def test_small_images_are_taken_where_pooling_allows(name: str) -> None:
    assert build(name, NATIVE[name], 5, (1, 12, 20)).eval()(torch.zeros(3, 1, 12, 20)).shape == (3, 5)


@pytest.mark.parametrize("name", sorted(NATIVE))
def test_stages_and_head(name: str) -> None:
    network = build(name, NATIVE[name], 5, (1, 128, 130))
    assert head_names(network) == {"head.weight", "head.bias"}
    stages = body_stages(network, 4)
    assert 2 <= len(stages) <= 4
    assert sorted(n for stage in stages for n in stage) == sorted(n for n, _ in network.named_parameters() if "head" not in n)
    frozen = Finetune(trained_stages=1).frozen(network, 0)
    freeze(network, [n for n, _ in network.named_parameters()], frozen)
    network(torch.randn(2, 1, 128, 130)).sum().backward()
    learns = {n for n, parameter in network.named_parameters() if parameter.grad is not None}
    assert learns == set(stages[-1]) | {"head.weight", "head.bias"}


@pytest.mark.parametrize("name", sorted(NATIVE))
def test_a_cosine_head_fits(name: str) -> None:
    network = build(name, NATIVE[name], 5, (1, 128, 130)).eval()
    give_cosine_head(network, name, (1, 128, 130), 16.0)
    assert isinstance(network.get_submodule("head"), CosineHead)
    assert network(torch.randn(2, 1, 128, 130)).abs().max() <= 16


def test_musicnn_does_not_hear_when() -> None:
    """All filters pool over frames in the end: what moves inside of a silent image gives the same scores."""
    network = build("musicnn", NATIVE["musicnn"], 5, (1, 40, 600)).eval()
    image = torch.zeros(1, 1, 40, 600)
    image[:, :, 18, 300] = 3.0
    torch.testing.assert_close(network(image.roll(7, dims=3)), network(image), rtol=1e-4, atol=1e-5)
    assert (network(image) - network(image.roll(12, dims=2))).abs().max() > 1e-5


def test_crnn_hears_order() -> None:
    """A sound at the end weighs otherwise than the same sound at the beginning."""
    network = build("crnn", NATIVE["crnn"], 5, (1, 96, 960)).eval()
    image = torch.zeros(1, 1, 96, 960)
    image[..., 20:60, 100:160] = 5.0
    assert (network(image) - network(image.roll(96 * 7, dims=3))).abs().max() > 1e-4


def test_cnn14_by_its_formula() -> None:
    """The head of CNN14 gets the mean over bands, then maximum plus mean over frames."""
    network = build("cnn14", NATIVE["cnn14"], 5, (1, 32, 64)).eval()
    assert isinstance(network, Cnn14)
    image = torch.randn(2, 1, 32, 64, generator=torch.Generator().manual_seed(0))
    bands = (image / (1 + network.norm.eps) ** 0.5).numpy()  # a fresh batch norm divides by about one
    maps = network.blocks(torch.from_numpy(bands))
    frames = maps.sum(dim=2) / maps.shape[2]
    want = network.head(network.dense(frames.max(dim=2).values + frames.sum(dim=2) / frames.shape[2]))
    torch.testing.assert_close(network(image), want, rtol=1e-4, atol=1e-5)


def test_patches_overlap_as_in_the_paper() -> None:
    network = build("ast", SMALL_AST, 5, (1, 128, 1024))
    assert network.patch_embed.grid_size == (12, 101)  # 16 bins and frames, every 10 of them
    assert network.pos_embed.shape == (1, 1 + 1212, 48)
    image = torch.randn(1, 1, 128, 1024, generator=torch.Generator().manual_seed(0))
    weight, bias = network.patch_embed.proj.weight, network.patch_embed.proj.bias
    want = (image[0, :, 20:36, 50:66] * weight).sum(dim=(1, 2, 3)) + bias  # the patch in row 2, column 5
    torch.testing.assert_close(network.patch_embed(image)[0, 2 * 101 + 5], want, rtol=1e-4, atol=1e-5)


def test_patches_of_any_shape() -> None:
    network = build("ast", {**SMALL_AST, "patch_size": (128, 2), "patch_stride": (128, 1)}, 5, (1, 128, 130))
    assert network.patch_embed.grid_size == (1, 129)


def test_weights_of_a_vision_transformer_go_in_with_positions_between(tmp_path: Path) -> None:
    sizes = {"embed_dim": 48, "depth": 2, "num_heads": 3}
    source = timm.create_model("vit_tiny_patch16_224", num_classes=7, **sizes)
    with torch.no_grad():  # positions that rise from left to right
        columns = torch.arange(14.0).repeat(14)
        source.pos_embed[0, 1:] = columns[:, None]
    torch.save(source.state_dict(), tmp_path / "vit.pth")
    network = build("ast", {**sizes, "checkpoint_path": str(tmp_path / "vit.pth")}, 5, (1, 128, 130))
    torch.testing.assert_close(network.patch_embed.proj.weight, source.patch_embed.proj.weight.sum(dim=1, keepdim=True))
    torch.testing.assert_close(network.blocks[1].mlp.fc1.weight, source.blocks[1].mlp.fc1.weight)
    rows, frames = network.patch_embed.grid_size
    positions = network.pos_embed[0, 1:, 0].detach().reshape(rows, frames)
    assert (positions.diff(dim=1) > 0).all()
    torch.testing.assert_close(positions, positions[:1].expand(rows, frames))
    assert float(positions.mean()) == pytest.approx(6.5, abs=0.1)
