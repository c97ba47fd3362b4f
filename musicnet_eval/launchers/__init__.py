"""Launchers and sweepers: a process a job, and those of other packages, made ready when a sweep asks for one. Layer 6; no torch.

`process` is our own. joblib, submitit, Ray and Optuna come to Hydra by plugins of their own: their modules here hold a thin
subclass of the plugin's class, for what that leaves out: the outcome of every job is waited for, whatever becomes of the others,
and the sweep's tables hear of it. A module is imported only when a sweep asks for it, since its package may not be there.
"""

from __future__ import annotations

import importlib
from typing import NamedTuple

from hydra.core.plugins import Plugins
from omegaconf import DictConfig, OmegaConf

from musicnet_eval.errors import ConfigError


class Engine(NamedTuple):
    """Where a launcher or sweeper is, and which extra brings its package."""

    module: str
    name: str
    extra: str


BASIC = "hydra._internal.core_plugins.basic_sweeper.BasicSweeper"
ENGINES = {  # by the `_target_` of our YAML; Hydra takes plugins of this prefix, and its own
    BASIC: Engine("basic", "Grid", ""),
    "hydra_plugins.musicnet_eval.ProcessLauncher": Engine("process", "ProcessLauncher", ""),
    "hydra_plugins.musicnet_eval.JoblibLauncher": Engine("joblib", "JoblibLauncher", "joblib"),
    "hydra_plugins.musicnet_eval.LocalLauncher": Engine("submitit", "LocalLauncher", "slurm"),
    "hydra_plugins.musicnet_eval.SlurmLauncher": Engine("submitit", "SlurmLauncher", "slurm"),
    "hydra_plugins.musicnet_eval.RayLauncher": Engine("ray", "RayLauncher", "ray"),
    "hydra_plugins.musicnet_eval.OptunaSweeper": Engine("optuna", "OptunaSweeper", "optuna"),
}


def prepare(config: DictConfig) -> None:
    """Make the launcher and the sweeper that a sweep asks for known to Hydra.

    Args:
        config: The sweep's own config, as Hydra hands it over before the first job.

    Raises:
        ConfigError: A package is not installed.
    """
    for part in ("launcher", "sweeper"):
        target = OmegaConf.select(config, f"hydra.{part}._target_")
        if target not in ENGINES:
            continue
        engine = ENGINES[target]
        try:
            module = importlib.import_module(f"musicnet_eval.launchers.{engine.module}")
        except ImportError as error:
            choice = config.hydra.runtime.choices[f"hydra/{part}"]
            raise ConfigError(
                f"hydra/{part}={choice} needs a package that is not there ({error}). "
                f"Say pip install 'musicnet-eval[{engine.extra}]'."
            ) from error
        Plugins.instance().class_name_to_class[target] = getattr(module, engine.name)
