"""What wandb is asked for, checked and without secrets: the mode, names, settings, a folder. Layer 2; no wandb at import."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from musicnet_eval import configs
from musicnet_eval.environment import without_secrets
from musicnet_eval.errors import ConfigError

OURS = ("mode", "run_id", "project", "entity", "run_group", "run_name", "run_job_type", "run_tags", "resume")
FLUSH_SECONDS = 2.0  # after so long, what was logged is on disk
QUIET = {  # wandb's settings that `settings` of the logger may overrule
    "silent": True,  # what matters is said in our own words, once; wandb's stand in the logs/ of its folder
    "console": "off",  # a progress bar of many hours would be uploaded
    "disable_git": True,  # config has commit and branch; wandb would upload the whole difference to it
    "x_transaction_log_flush_interval": FLUSH_SECONDS,
}


def mode(offline: Any) -> str:
    """Say how W&B is used: `online`, `offline` or `disabled`; offline unless the logger's `offline` or WANDB_MODE says otherwise.

    Raises:
        ConfigError: The two contradict each other, or one of them is no mode.
    """
    if offline is not None and not isinstance(offline, bool):  # "no" is a word to Hydra, and a word counts as true
        raise ConfigError(f"logger.wandb.offline={offline!r} must be true, false or null.")
    told = os.environ.get("WANDB_MODE", "")
    known = {"": "offline", "dryrun": "offline", "run": "online"} | {name: name for name in ("online", "offline", "disabled")}
    if told not in known:
        raise ConfigError(f"WANDB_MODE={told!r} must be online, offline or disabled. Mend it, or unset it.")
    if offline is None:
        return known[told]
    asked = "offline" if offline else "online"
    if told and known[told] != asked:
        raise ConfigError(f"logger.wandb.offline={str(offline).lower()} contradicts WANDB_MODE={told}. Leave one of them out.")
    return asked


def named(key: str, value: Any) -> Any:
    """Give what wandb is to be told under a key: a name as text, and no secret in it.

    Raises:
        ConfigError: A name that is none.
    """
    if isinstance(value, list):
        return [without_secrets(str(one)) for one in value]
    if value is None or isinstance(value, Mapping):
        return value
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        raise ConfigError(f"logger.wandb.{key}={value!r} must be a name.")
    if value == "":
        where = " Unset WANDB_PROJECT, which may have said so." if key == "project" else ""
        raise ConfigError(f"logger.wandb.{key} is empty and must be a name.{where}")
    return without_secrets(str(value))


def unwritable(folder: Path) -> str:
    """Say why a folder cannot be made or written to, nothing if it can: wandb would take another place, and not say so."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return ""
    except OSError as error:
        return f"'{folder}': {error.strerror}"


def settings(given: Mapping[str, Any], init_seconds: float, finish_seconds: float) -> dict[str, Any]:
    """Lay what the user says over our own settings, and check it."""
    import wandb

    if taken := [name for name in OURS if name in given]:
        raise ConfigError(
            f"logger.wandb.settings.{taken[0]} would be of no effect: the run says it by itself. Use logger.wandb.project, "
            "entity, group, tags or offline."
        )
    ours = {name: value for name, value in QUIET.items() if name in wandb.Settings.model_fields}  # names with x_ may go
    times = {"init_timeout": init_seconds, "finish_timeout": finish_seconds, "finish_timeout_raises": True}
    asked = {**ours, **times, **given}
    try:
        wandb.Settings(**asked)
    except Exception as error:  # pydantic's, or one of wandb's own
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(f"wandb refuses a setting ({reason}). Mend logger.wandb.settings.*") from None
    return asked


@contextlib.contextmanager
def masked_arguments() -> Iterator[None]:
    """Hide secrets of the command line while wandb looks at it: it writes all of it into its files."""
    typed = sys.argv
    sys.argv = [*typed[:1], *configs.overrides_without_secrets(typed[1:])]
    try:
        yield
    finally:
        sys.argv = typed
