"""`ast`: timm's vision transformer on overlapping patches of a spectrogram. Layer 3."""

from __future__ import annotations

from functools import partial
from typing import Any

from timm.layers.helpers import to_2tuple
from timm.layers.patch_embed import PatchEmbed
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch import nn

from musicnet_eval.backbones.checks import check_least

__all__ = ["OverlappingPatches", "ast", "checkpoint_filter_fn"]  # the last is how timm's weights come in: positions interpolated

default_cfgs = generate_default_cfgs(
    {
        "ast.deit_in1k": {
            "hf_hub_id": "timm/deit_base_patch16_384.fb_in1k",
            "input_size": (3, 384, 384),
            "fixed_input_size": True,
            "num_classes": 1000,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        }
    }
)


class OverlappingPatches(PatchEmbed):
    """Cut an image into patches that overlap; a last one that is not whole is left out.

    Args:
        patch_stride: Bins and frames from one patch to the next.
        given: Arguments of timm's `PatchEmbed`.
    """

    def __init__(self, *, patch_stride: int | tuple[int, int] = 10, **given: Any) -> None:
        super().__init__(**given)
        stride = to_2tuple(patch_stride)
        self.proj.stride = stride
        self.grid_size = tuple((s - p) // d + 1 for s, p, d in zip(self.img_size, self.patch_size, stride, strict=True))
        self.num_patches = self.grid_size[0] * self.grid_size[1]


@register_model
def ast(
    pretrained: bool = False,
    img_size: tuple[int, int] = (128, 1024),
    patch_size: int | tuple[int, int] = 16,
    patch_stride: int | tuple[int, int] = 10,
    **given: Any,
) -> nn.Module:
    """Make an audio spectrogram transformer in the size of ViT-Base, or as `embed_dim`, `depth` and `num_heads` say.

    With `pretrained` it starts from DeiT's ImageNet weights, as the authors' does; of the two tokens that theirs averages one
    is kept. A patch of any shape, `patch_size=[128,2]` say, takes the same way.

    Reference:
        Gong, Chung and Glass, "AST: Audio Spectrogram Transformer", Interspeech 2021 (arXiv:2104.01778).
    """
    patch = to_2tuple(patch_size)
    check_least("ast", img_size, *patch)
    sizes = {"patch_size": patch, "embed_dim": 768, "depth": 12, "num_heads": 12, **given}
    network: nn.Module = build_model_with_cfg(
        VisionTransformer,
        "ast",
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        img_size=img_size,
        embed_layer=partial(OverlappingPatches, patch_stride=patch_stride),
        **sizes,
    )
    return network
