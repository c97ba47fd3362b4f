"""Steps on images: masks, warps, crops and mixtures, measured on images whose values say where they come from."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import torch
from timm.data.mixup import mixup_target
from torch import Tensor
from torch.nn import functional as F

from musicnet_eval.augment import Cutmix, FilterBankJitter, Mixup, RandomResizedCrop, SpecAugment


def draw(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def places(rows: int, bands: int = 40, frames: int = 60) -> Tensor:
    """Give images of two channels: the number of the band, and the number of the frame."""
    grid = torch.meshgrid(torch.arange(bands), torch.arange(frames), indexing="ij")
    return torch.stack(grid).float().repeat(rows, 1, 1, 1)


# --- masks --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", ["freq", "time"])
def test_one_mask_is_one_stripe_of_at_most_the_width_asked_for(axis: str) -> None:
    image = places(2000) + 1
    settings = {"freq_masks": 0, "time_masks": 0, f"{axis}_masks": 1, f"{axis}_share": 0.26}
    masked = SpecAugment(**settings, value=-7)(image, draw())  # type: ignore[arg-type]
    hidden = masked == -7
    assert torch.equal(masked[~hidden], image[~hidden])
    length = 40 if axis == "freq" else 60
    lines = hidden if axis == "freq" else hidden.mT
    assert torch.equal(lines, lines[:, :1, :, :1].expand_as(lines))  # whole lines, the same in both channels
    line = lines[:, 0, :, 0]
    widths = line.sum(dim=1)
    edges = F.pad(line.int(), (1, 1)).diff(dim=1).abs().sum(dim=1)
    assert (edges <= 2).all(), "one piece"
    widest = int(0.26 * length)
    counts = np.bincount(widths.numpy())
    assert len(counts) == widest + 1  # from none to the widest
    assert scipy.stats.chisquare(counts).pvalue > 1e-3
    assert line.any(dim=0).all(), "every place is hidden at times"


def test_masks_add_up_and_hold_the_mean_of_their_channel() -> None:
    image = torch.randn(64, 3, 40, 60, generator=torch.Generator().manual_seed(0)) + torch.tensor([0.0, 5.0, -3.0]).view(3, 1, 1)
    masked = SpecAugment(freq_masks=3, time_masks=2)(image, draw())
    hidden = masked != image
    assert torch.equal(hidden[:, 0], hidden[:, 1])
    assert hidden[:, 0].float().mean(dim=(1, 2)).max() <= 1 - (1 - 3 * 0.2) * (1 - 2 * 0.2)
    mean = image.mean(dim=(2, 3), keepdim=True).expand_as(image)
    torch.testing.assert_close(masked[hidden], mean[hidden])


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (128, 130)])
def test_masks_never_outgrow_an_image(size: tuple[int, int]) -> None:
    step = SpecAugment(freq_share=1.0, time_share=1.0, time_warp=0.5, value=0)
    for seed in range(20):
        assert step(torch.ones(4, 1, *size), draw(seed)).shape == (4, 1, *size)


# --- warps and crops ----------------------------------------------------------------------------------------------------------


def check_warped(source: Tensor, last: int, share: float) -> None:
    """Hold positions `[B, L]` read by a warp to its rules."""
    torch.testing.assert_close(source[:, 0], torch.zeros(len(source)))
    torch.testing.assert_close(source[:, -1], torch.full((len(source),), float(last)))
    assert (source.diff(dim=1) > -1e-4).all(), "time does not run backwards"
    moved = (source - torch.arange(last + 1)).abs().amax(dim=1)
    assert moved.max() <= share * last + 1e-3
    assert moved.median() > 0.2 * share * last
    bends = (source.diff(dim=1).diff(dim=1).abs() > 1e-3).sum(dim=1)
    assert (bends <= 2).all(), "two straight pieces"


def test_time_warp_moves_one_moment() -> None:
    image = places(200)
    warped = SpecAugment(freq_masks=0, time_masks=0, time_warp=0.2)(image, draw())
    torch.testing.assert_close(warped[:, 0], image[:, 0])
    check_warped(warped[:, 1, 0], 59, 0.2)
    torch.testing.assert_close(warped[:, 1], warped[:, 1, :1].expand(-1, 40, -1))


def test_a_warp_reads_between_frames_as_numpy_does() -> None:
    image = places(20)
    image[:, 0] = torch.from_numpy(draw(1).standard_normal((20, 40, 60)))
    warped = SpecAugment(freq_masks=0, time_masks=0, time_warp=0.2)(image, draw())
    for row, source, before in zip(warped[:, 0, 7], warped[:, 1, 7], image[:, 0, 7], strict=True):
        np.testing.assert_allclose(row, np.interp(source, np.arange(60), before), atol=1e-4)


def test_filter_bank_jitter_moves_one_band() -> None:
    image = places(200)
    warped = FilterBankJitter(warp=0.1, gain=0, p=1)(image, draw())
    torch.testing.assert_close(warped[:, 1], image[:, 1])
    check_warped(warped[:, 0, :, 0], 39, 0.1)


def test_filter_bank_jitter_raises_and_lowers_bands() -> None:
    image = torch.randn(300, 2, 41, 30, generator=torch.Generator().manual_seed(0)) * 3
    gain = FilterBankJitter(warp=0, gain=0.5, knots=5, p=1)(image, draw()) - image
    torch.testing.assert_close(gain, gain[:, :1, :, :1].expand_as(gain), atol=1e-5, rtol=0)
    curve = gain[:, 0, :, 0] / image.std(dim=(1, 2, 3), correction=0).unsqueeze(1)
    assert 0.48 < float(curve.abs().max()) <= 0.5001
    bends = curve.diff(dim=1).diff(dim=1).abs() > 1e-4
    assert set(bends.any(dim=0).nonzero().flatten().tolist()) == {9, 19, 29}  # at the inner knots only


def test_crops_are_boxes_within_the_image_of_the_area_asked_for() -> None:
    image = places(400, 100, 100)
    cropped = RandomResizedCrop((0.3, 0.5), (0.5, 2.0), p=1)(image, draw())
    assert float(cropped.min()) >= 0
    assert float(cropped.max()) <= 99
    inner = cropped[:, :, 40:60, 40:60]
    bands = (inner[:, 0, -1, 0] - inner[:, 0, 0, 0]) / 19  # how much of the image a step in the result covers
    frames = (inner[:, 1, 0, -1] - inner[:, 1, 0, 0]) / 19
    area = bands * frames
    assert 0.299 < float(area.min()) < 0.31
    assert 0.49 < float(area.max()) < 0.501
    ratio = frames / bands
    assert 0.499 < float(ratio.min()) < 0.52
    assert 1.9 < float(ratio.max()) < 2.001
    assert scipy.stats.kstest(np.log2(ratio.numpy()), "uniform", (-1, 2)).pvalue > 1e-3
    torch.testing.assert_close(inner[:, 0], inner[:, 0, :, :1].expand_as(inner[:, 0]), atol=1e-3, rtol=0)


def test_a_crop_of_everything_is_the_image() -> None:
    image = torch.randn(3, 1, 20, 30)
    torch.testing.assert_close(RandomResizedCrop((1, 1), (1, 1), p=1)(image, draw()), image, atol=1e-5, rtol=0)


# --- mixtures -----------------------------------------------------------------------------------------------------------------


def test_mixup_blends_images_and_losses_by_the_same_share() -> None:
    image, label = torch.randn(8, 1, 5, 7, generator=torch.Generator().manual_seed(0)), torch.arange(8) % 3
    mixed, soft = Mixup(alpha=1.0)(image, torch.eye(8), draw())  # labels of their own say who is in it
    share, other = soft.diagonal(), (soft * (1 - torch.eye(8))).argmax(dim=1)
    assert (other != torch.arange(8)).all()
    weight = share.view(-1, 1, 1, 1)
    torch.testing.assert_close(mixed, weight * image + (1 - weight) * image[other])
    _, blended = Mixup(alpha=1.0)(image, F.one_hot(label, 3).float(), draw())
    logits = torch.randn(8, 3, generator=torch.Generator().manual_seed(1))
    parts = [F.cross_entropy(logits, target, reduction="none") for target in (label, label[other])]
    torch.testing.assert_close(F.cross_entropy(logits, blended, reduction="none"), share * parts[0] + (1 - share) * parts[1])


def test_mixup_of_two_is_timms() -> None:
    label = torch.tensor([0, 2])
    _, soft = Mixup(alpha=0.4)(torch.zeros(2, 1, 2, 2), F.one_hot(label, 3).float(), draw())
    torch.testing.assert_close(soft[0], mixup_target(label, 3, lam=float(soft[0, 0]))[0])


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_shares_follow_the_beta_distribution(alpha: float) -> None:
    _, soft = Mixup(alpha)(torch.zeros(500, 1, 1, 1), torch.eye(500), draw())
    assert scipy.stats.kstest(soft.diagonal().numpy(), scipy.stats.beta(alpha, alpha).cdf).pvalue > 1e-3


def test_cutmix_labels_are_areas() -> None:
    rows = 200
    image = torch.arange(rows).float().view(-1, 1, 1, 1).expand(rows, 2, 20, 30)
    mixed, soft = Cutmix(alpha=1.0, p=1)(image, torch.eye(rows), draw())
    for row in range(rows):
        pasted = mixed[row, 0] != row
        torch.testing.assert_close(1 - soft[row, row], pasted.float().mean())
        if pasted.any():
            other = int(mixed[row, 0][pasted][0])
            torch.testing.assert_close(soft[row, other], pasted.float().mean())
            assert (mixed[row, :, pasted] == other).all()
            box = torch.outer(pasted.any(dim=1), pasted.any(dim=0))
            assert torch.equal(box, pasted)  # one rectangle
            for side in (pasted.any(dim=1), pasted.any(dim=0)):
                assert F.pad(side.int(), (1, 1)).diff().abs().sum() == 2  # in one piece
    assert 0.1 < float(1 - soft.diagonal().mean()) < 0.5  # boxes over the edge are cut: less than half


@pytest.mark.parametrize("step", [Mixup(p=1), Mixup(alpha=5, p=0.5), Cutmix(p=1)])
def test_label_mass_is_kept(step: Mixup | Cutmix) -> None:
    image = torch.randn(64, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    one = F.one_hot(torch.arange(64) % 5, 5).float()
    several = (torch.rand(64, 5, generator=torch.Generator().manual_seed(1)) > 0.5).float()
    for label in (one, several):
        _, mixed = step(image, label, draw())
        low, high = label.sum(dim=1).min(), label.sum(dim=1).max()
        assert (mixed.sum(dim=1) >= low - 1e-5).all()
        assert (mixed.sum(dim=1) <= high + 1e-5).all()
        assert float(mixed.min()) >= 0
        assert float(mixed.max()) <= 1
    _, mixed = step(image, one, draw())
    torch.testing.assert_close(mixed.sum(dim=1), torch.ones(64))
