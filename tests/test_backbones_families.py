"""Every family of timm's on a spectrogram: built and trained a step, or refused with a reason, as docs/backbones.md says."""

from __future__ import annotations

import gc
import re

import pytest
import timm
import torch

from experiments.backbones.families import CLASSES, SHAPE, families, judge
from musicnet_eval.backbones import build, resized_to
from musicnet_eval.errors import ConfigError
from tests.conftest import REPOSITORY

PAGE = (REPOSITORY / "docs/backbones.md").read_text(encoding="utf8")
ROWS = {
    family: (name, verdict) for family, name, verdict in re.findall(r"^\| (\w+) \| `([^`]+)` \| (.+?) \| ", PAGE, re.MULTILINE)
}
# The verdict hangs on patches, not on how often a block is repeated: 32 of these would take 7 GB and two minutes.
LIGHTER = {"deepseek_vit_412m": {"depth": 2}}


def test_the_page_lists_every_family() -> None:
    written = re.search(r"with timm (\S+);", PAGE)
    assert written is not None
    known = set(families())
    # Another release of timm may have other families; those of this one are all there.
    assert set(ROWS) == known if written[1] == timm.__version__ else len(known & set(ROWS)) > 80


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # timm's own, of what torch will take away
@pytest.mark.parametrize("family", sorted(ROWS))
def test_the_smallest_member_takes_a_step_or_is_refused(family: str) -> None:
    name, verdict = ROWS[family]
    if timm.is_model(name):
        assert judge(name, **LIGHTER.get(name, {})).said == verdict
        gc.collect()


def test_what_needs_another_size_gets_it_and_keeps_its_names() -> None:
    network = build("crossvit_tiny_240", {}, CLASSES, SHAPE).eval()
    assert resized_to(network) == (240, 240)
    assert (
        network.state_dict().keys() == timm.create_model("crossvit_tiny_240", in_chans=1, num_classes=CLASSES).state_dict().keys()
    )
    image = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(0))
    enlarged = torch.nn.functional.interpolate(image, (240, 240), mode="bilinear", antialias=True)
    torch.testing.assert_close(network(image), network(enlarged))  # resizing what has the size already changes nothing


def test_a_size_that_is_asked_for() -> None:
    network = build("test_vit", {"img_size": [64, 96]}, CLASSES, SHAPE)
    assert resized_to(network) == (64, 96)
    assert resized_to(build("test_vit", {}, CLASSES, (1, 128, 128))) is None


def test_a_network_of_three_channels_only_says_so() -> None:
    with pytest.raises(ConfigError, match=r"backbone=csatv2 takes images of 3 channels only, not of 1\. Use spectrogram="):
        build("csatv2", {}, CLASSES, SHAPE)
