"""Configs: where they lie, how they are composed, checked and resolved, and what may be built from them.

What a user types is built as typed. What comes out of a run folder may be a stranger's: from it only targets that our own
`conf/` names, or that a plugin of the present command line defines, are built. A name pattern would not do, since
`torch.nn.modules.module.torch.load` matches `torch.nn.*`: the list holds whole names, and a plugin's object must say that it was
defined there.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, cast

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from musicnet_eval.environment import SECRET, without_held_secrets, without_logins
from musicnet_eval.environment import without_secrets as _without_values
from musicnet_eval.errors import ConfigError, MusicnetError, RecordError

_PACKAGE = Path(__file__).resolve().parent
CONF = _PACKAGE / "conf" if (_PACKAGE / "conf").is_dir() else _PACKAGE.parent / "conf"  # in the wheel; in a checkout
_ENV = re.compile(r"\$\{oc\.env:\s*([A-Za-z_][A-Za-z0-9_]*)")

OmegaConf.register_new_resolver("in", lambda value, choices: value in choices, replace=True)
OmegaConf.register_new_resolver("stem", lambda path: Path(str(path)).expanduser().stem, replace=True)


def _without(node: DictConfig, *keys: str) -> dict[str, Any]:
    """Give a node's content but for some keys: in the config, `${without:${spectrogram},size}`."""
    plain = cast(dict[str, Any], OmegaConf.to_container(node, resolve=True))
    return {key: value for key, value in plain.items() if key not in keys}


OmegaConf.register_new_resolver("without", _without, replace=True)


def help_text() -> str:
    """Give the help of `musicnet-train` out of `conf/train.yaml`, as Hydra would, in a third of its time."""
    import yaml

    text: str = yaml.safe_load((CONF / "train.yaml").read_text(encoding="utf8"))["hydra"]["help"]["template"]
    groups = sorted(folder for folder in CONF.iterdir() if folder.is_dir() and folder.name != "hydra")
    lines = (f"{folder.name}: {', '.join(sorted(file.stem for file in folder.glob('*.yaml')))}" for folder in groups)
    return text.replace("$APP_CONFIG_GROUPS", "\n".join(lines))


# --- composing and resolving --------------------------------------------------------------------------------------------------


def prefer_ours() -> None:
    """Let the files of `conf/hydra/` stand for the entries of the same names that Hydra's plugins store.

    Hydra would merge both, with a warning, and refuse the one of Optuna.
    """
    from hydra.core.config_store import ConfigStore
    from hydra.core.plugins import Plugins

    Plugins.instance()  # imports the plugins that are installed, and these store their entries
    groups = ConfigStore.instance().repo.get("hydra", {})
    for file in CONF.glob("hydra/*/*.yaml"):
        groups.get(file.parent.name, {}).pop(file.name, None)


def compose(overrides: Sequence[str]) -> DictConfig:
    """Compose the training config outside of a Hydra application.

    Raises:
        ConfigError: Hydra cannot compose it: an unknown key or choice.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException

    prefer_ours()
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return hydra_compose("train", overrides=list(overrides))
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(f"The overrides {list(overrides)} do not compose: {str(error).strip()}") from None


def resolved(config: DictConfig) -> dict[str, Any]:
    """Resolve a composed config into plain containers, without Hydra's own node.

    Raises:
        ConfigError: A mandatory key is missing, or an interpolation leads nowhere.
    """
    try:
        missing = sorted(_missing(OmegaConf.to_container(config, resolve=False)))
        if missing:
            raise ConfigError(f"{', '.join(missing)} must be given, and is not. Say {missing[0]}=VALUE on the command line.")
        # Hydra's own node is as large as all others together: a sweep that resolved it for every job would feel it.
        parts = {str(name): config[name] for name in config if name != "hydra"}
        plain = {k: OmegaConf.to_container(v, resolve=True) if OmegaConf.is_config(v) else v for k, v in parts.items()}
    except OmegaConfBaseException as error:
        lacking = re.search(r"Missing mandatory value: (\S+)", str(error))
        if lacking:
            raise ConfigError(f"{lacking[1]} must be given, and is not. Say {lacking[1]}=VALUE on the command line.") from None
        raise ConfigError(f"The config cannot be resolved: {str(error).splitlines()[0]}") from None
    return plain


def _missing(value: Any, key: str = "") -> Iterator[str]:
    """List the keys of an unresolved config that must be given and are not, but Hydra's own."""
    if isinstance(value, dict):
        for name, item in value.items():
            if key or name != "hydra":
                yield from _missing(item, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _missing(item, f"{key}[{number}]")
    elif value == MISSING:
        yield key


def without_secrets(config: DictConfig, values: Mapping[str, Any]) -> dict[str, Any]:
    """Copy a resolved config for writing down, with `***` in place of anything that smells of a secret.

    That is: a value whose key says so, one read from an environment variable whose name says so, one that holds such a
    variable's value, and a login in an address.

    Args:
        config: As composed, which tells what came from an environment variable.
        values: The same, resolved.
    """
    secrets = {value for name, value in os.environ.items() if SECRET.search(name) and len(value) >= 8}

    def masked(key: str, raw: Any, value: Any) -> Any:
        if isinstance(value, dict):
            return {name: masked(str(name), raw.get(name) if isinstance(raw, dict) else None, v) for name, v in value.items()}
        if isinstance(value, list):
            raws = raw if isinstance(raw, list) else [None] * len(value)
            return [masked(key, r, v) for r, v in zip(raws, value, strict=True)]
        from_env = isinstance(raw, str) and any(SECRET.search(name) for name in _ENV.findall(raw))
        named = isinstance(value, str) and bool(SECRET.search(key))
        held = isinstance(value, str) and any(secret in value for secret in secrets)
        if from_env or named or held:
            return "***"
        return without_logins(value) if isinstance(value, str) else value

    raw = OmegaConf.to_container(config, resolve=False)
    return cast(dict[str, Any], masked("", raw, dict(values)))


def overrides_without_secrets(overrides: Sequence[str]) -> list[str]:
    """Mask values of overrides whose key, or a key inside, is called like a secret, and those of secret environment variables."""
    parts = [override.partition("=") for override in overrides]
    return [f"{k}=***" if SECRET.search(k) else k + equals + without_held_secrets(_without_values(v)) for k, equals, v in parts]


def mask(file: Path) -> None:
    """Mask the secrets in a config that Hydra has written, also where it keeps what was typed.

    Args:
        file: A YAML file, rewritten only if there is something to mask.
    """
    config = cast(DictConfig, OmegaConf.load(file))
    told = cast(dict[str, Any], OmegaConf.to_container(config, resolve=False))
    masked = without_secrets(config, told)
    typed = masked["hydra"]["overrides"]
    typed.update({name: overrides_without_secrets(each) for name, each in typed.items()})
    if typed != told["hydra"]["overrides"]:
        masked["hydra"]["job"]["override_dirname"] = "***"  # the same once more, in one word
    if masked != told:
        file.write_text(OmegaConf.to_yaml(OmegaConf.create(masked)), encoding="utf8")


WHOLE = {  # key → smallest and largest
    "seed": (0, 2**31 - 1),
    "num_threads": (1, 1024),
    "trainer.max_epochs": (1, 10**9),
    "data.fold": (0, 10**6),
    "data.folds": (3, 10**6),
    "data.split_seed": (0, 2**31 - 1),
    "tune.lr_steps": (20, 10**6),
    "tune.max_batch_size": (2, 10**6),
    "run.max_attempts": (1, 10**6),
    "run.checkpoint_every_n_steps": (1, 10**9),
}
SWITCHES = (
    "data.pad_short",
    "data.allow_group_overlap",
    "run.force",
    "model.channels_last",
    "backbone_options.pretrained",
    "model.compile",
    "model.weight_decay_exclude_1d",
    "tune.lr",
    "tune.batch_size",
)
CHOICES = {
    "monitor_mode": ("min", "max"),
    "run.on_error": ("continue", "stop"),
    "run.on_oom": ("fail", "halve_batch"),
    "run.keep_checkpoints": ("all", "best", "none"),
}
NULLABLE = ("num_threads", "run.max_attempts", "run.checkpoint_every_n_steps")
AUTO = "auto"  # in place of a value that a probe is to choose (`recipes`)


def check(config: Mapping[str, Any]) -> None:
    """Refuse values that no part would refuse by itself before the training begins.

    Raises:
        ConfigError: A value of the wrong type, out of range, or not among its choices.
    """
    for key, (least, most) in WHOLE.items():
        value = _value(config, key)
        if value is None and key in NULLABLE:
            continue
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            or_null = ", or null" if key in NULLABLE else ""
            raise ConfigError(f"{key}={value!r} must be a whole number from {least} to {most}{or_null}.")
    automatic = [key for key in ("model.channels_last", "trainer.precision") if _value(config, key) == AUTO]
    for key in SWITCHES:
        if not isinstance(_value(config, key), bool) and key not in automatic:
            raise ConfigError(f"{key}={_value(config, key)!r} must be true or false.")
    if automatic and _value(config, "model.compile"):
        raise ConfigError(
            f"{automatic[0]}=auto is chosen by a probe of the network as it is, and model.compile=true trains another one. Use "
            "model.compile=false, or recipe=default with model.channels_last=true|false and trainer.precision=VALUE."
        )
    for key, choices in CHOICES.items():
        if _value(config, key) not in choices:
            raise ConfigError(f"{key}={_value(config, key)!r} must be one of {', '.join(choices)}.")
    if _value(config, "run.on_oom") == "halve_batch" and _value(config, "tune.batch_size"):
        raise ConfigError("run.on_oom=halve_batch and tune.batch_size=true both look for a batch that fits. Use one of them.")
    for key in ("backbone", "paths.cache", "paths.runs"):
        if not isinstance(_value(config, key), str):
            raise ConfigError(
                f"{key}={_value(config, key)!r} must be a {'name, as in backbone=resnet18' if key == 'backbone' else 'folder'}."
            )


def _value(config: Mapping[str, Any], key: str) -> Any:
    node: Any = config
    for part in key.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return node


# --- building -----------------------------------------------------------------------------------------------------------------


def import_plugins(names: Sequence[str]) -> None:
    """Import the modules that the present command line names; they may lie in the folder where it is called.

    Raises:
        ConfigError: A module cannot be imported.
    """
    if isinstance(names, str) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"plugins={names!r} must be a list of module names, as in plugins=[mylab.nets].")
    if names and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    for name in names:
        try:
            importlib.import_module(name)
        except Exception as error:  # a plugin is a stranger's code: whatever it raises, say which one it was
            raise ConfigError(
                f"plugins=[{name}] cannot be imported ({type(error).__name__}: {error}). Is it on PYTHONPATH?"
            ) from error


def build(node: Any, what: str, **facts: Any) -> Any:
    """Build a `_target_` node, with errors that say which part could not be made and why.

    Args:
        node: Plain containers with a `_target_`, or anything else, which is handed back as it is.
        what: The config key, for the error.
        facts: Further arguments of the target.
    """
    from hydra.utils import instantiate

    if not isinstance(node, Mapping) or "_target_" not in node:
        return node
    try:
        if not facts:
            return instantiate(dict(node), _convert_="all")
        # Facts go in by a call: Hydra would turn dataclasses among its arguments into configs.
        return instantiate({**node, "_partial_": True}, _convert_="all")(**facts)
    except Exception as error:  # whatever a target raises, it is the config that names it and its arguments
        cause: BaseException = error
        while cause.__cause__ is not None and not isinstance(cause, MusicnetError):
            cause = cause.__cause__
        if isinstance(cause, MusicnetError):
            raise cause from None
        # Hydra's message says which node inside this one it was, and what it names.
        inner = re.search(r"full_key: (\S+)", str(error))
        named = re.search(r"target '([^']+)'", str(error))
        key = inner.group(1) if inner else what
        target = named.group(1) if named else node["_target_"]
        reason = " ".join(str(cause).split())[:400]
        # A name may be wrong, or right and what it imports broken: torch and torchaudio of different CUDA versions, say.
        remedy = f"{key}._target_, or the installed packages." if str(error).startswith("Error locating target") else f"{key}.*"
        raise ConfigError(f"{key} cannot be made from {target} ({type(cause).__name__}: {reason}). Mend {remedy}") from error


def check_stored(config: Mapping[str, Any], plugins: Sequence[str]) -> None:
    """Refuse a config out of a run folder that names anything but shipped targets and the present plugins' own.

    Args:
        config: The part that is going to be built.
        plugins: Modules named on the present command line, imported already.

    Raises:
        RecordError: A target that is neither.
    """
    from hydra.utils import get_object

    # A resolved config has no interpolations left; in a stranger's, one could bring in a node that was never looked at.
    if "${" in json.dumps(config, default=str):
        raise RecordError(
            "The run's config holds an interpolation '${…}', which a stored config never does. It was tampered with."
        )
    for target in _targets(config):
        if target in shipped_targets():
            continue
        owners = [name for name in plugins if target.startswith(f"{name}.")]
        if any(
            str(getattr(get_object(target), "__module__", "")).split(".")[: len(o.split("."))] == o.split(".") for o in owners
        ):
            continue
        raise RecordError(
            f"The run's config wants to build {target!r}, which musicnet_eval does not ship. If it is yours and you trust it, "
            f"name its module: plugins=[{target.rpartition('.')[0]}]."
        )


@cache
def shipped_targets() -> frozenset[str]:
    """List every `_target_` that a YAML under our `conf/` names."""
    import yaml

    return frozenset(
        target for path in sorted(CONF.rglob("*.yaml")) for target in _targets(yaml.safe_load(path.read_text(encoding="utf8")))
    )


def _targets(node: Any) -> Iterator[str]:
    if isinstance(node, Mapping):
        if "_target_" in node:
            yield str(node["_target_"])
        for value in node.values():
            yield from _targets(value)
    elif isinstance(node, (list, tuple)):
        for value in node:
            yield from _targets(value)
