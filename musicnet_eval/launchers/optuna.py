"""`hydra/sweeper=optuna`: the next jobs are chosen by what the earlier ones have scored.

No storage is kept: when the sweep is asked for again, the seeded sampler asks for the same points, and the runs that are done
answer at once. So a killed search goes on where it was.
"""

from __future__ import annotations

import functools
import logging
import math
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from hydra_plugins.hydra_optuna_sweeper import optuna_sweeper
from omegaconf import DictConfig, OmegaConf

from musicnet_eval import environment, plans
from musicnet_eval.errors import ConfigError
from musicnet_eval.launchers.collecting import Jobs, Rule, check, concluded, first_line, whole
from musicnet_eval.launchers.process import ProcessLauncher

with warnings.catch_warnings():  # Optuna 2, the one that Hydra's plugin takes, uses names that SQLAlchemy 2 has moved
    warnings.simplefilter("ignore", DeprecationWarning)
    import optuna

RULES = {
    "n_trials": whole(1),
    "n_jobs": whole(1, says="; it is hydra.launcher.n_jobs where it is not said"),
    "direction": Rule(
        "maximize or minimize, one word, as by monitor_mode=max|min: a run has one monitored metric",
        lambda value: value in ("maximize", "minimize"),
    ),
}
RESULTS = "optimization_results.yaml"  # as the plugin names it


class OptunaSweeper(optuna_sweeper.OptunaSweeper):
    """Search by Optuna, for which a run that failed, or has no number, is a failed trial."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take what Hydra gives, and look at what the launcher hands back."""
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        asked: int | None = self.sweeper.n_jobs
        if asked is None and isinstance(self.sweeper.launcher, ProcessLauncher):  # which decides by itself
            self.sweeper.n_jobs = self.sweeper.launcher.places()
        elif asked == -1:  # of hydra/launcher=joblib
            self.sweeper.n_jobs = environment.cores()
        self.sweeper.launcher = cast(Launcher, _Numbers(self.sweeper.launcher))
        self.written = Path(config.hydra.sweep.dir) / RESULTS
        self.results = (plans.sweep_folder(config) or self.written.parent) / RESULTS  # searches of one `paths.runs` have one each

    def sweep(self, arguments: list[str]) -> None:
        """Search, and print the best trial."""
        try:
            self._check()
        except ConfigError as refusal:
            print(f"error: {refusal}", file=sys.stderr)
            raise SystemExit(refusal.exit_code) from None
        optuna.logging.set_verbosity(logging.WARNING)
        for stale in (self.written, self.results):
            stale.unlink(missing_ok=True)
        assert self.sweeper.config is not None
        try:
            with concluded(self.sweeper.hydra_context, self.sweeper.config):
                super().sweep(arguments)
        except ValueError as error:  # Optuna's word for a search without one whole trial, and for a space that makes no sense
            print(f"optuna: {error}", file=sys.stderr, flush=True)
            if not self.sweeper.job_idx:
                raise SystemExit(2) from None
            return
        self.written.replace(self.results)
        best: Any = OmegaConf.load(self.results)
        print(f"best trial: {best.best_value:.4f} with {' '.join(f'{key}={value}' for key, value in best.best_params.items())}")

    def _check(self) -> None:
        """Refuse what does not go with runs that give one number each, and open the storage.

        Raises:
            ConfigError: A setting of the sweeper cannot be used.
        """
        check("sweeper", vars(self.sweeper), RULES)
        if isinstance(
            self.sweeper.sampler, functools.partial
        ):  # the grid's alone is one; it breaks off where its last trial fails
            raise ConfigError("A grid is left to Hydra's own sweeper: say KEY=A,B,C without hydra/sweeper=optuna.")
        if self.sweeper.storage is not None:
            try:
                self.sweeper.storage = optuna.storages.get_storage(self.sweeper.storage)
            except Exception as error:  # of SQLAlchemy, of a database's driver, or of Redis
                raise ConfigError(
                    f"hydra.sweeper.storage={environment.without_secrets(str(self.sweeper.storage))!r} cannot be opened "
                    f"({first_line(error)}). Name a database as sqlite:///FILE in a folder that is there, or null for none."
                ) from error


class _Numbers:
    """A launcher whose jobs give a finite number, or none."""

    def __init__(self, launcher: Any) -> None:
        self.launcher = launcher

    def launch(self, job_overrides: Jobs, initial_job_idx: int) -> Sequence[JobReturn]:
        returns: Sequence[JobReturn] = self.launcher.launch(job_overrides, initial_job_idx)
        for told in returns:
            value = told._return_value
            if isinstance(value, float) and not math.isfinite(value):
                told.return_value = None
        return returns
