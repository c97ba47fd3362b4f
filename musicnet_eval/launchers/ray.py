"""`hydra/launcher=ray`: jobs on a Ray cluster, or on a small one that Ray starts on this machine for the sweep.

Hydra's plugin gives up at the first job that was killed, and Ray passes neither environment nor working folder to workers of a
cluster. Here every outcome is waited for, the variables of `env` travel, and jobs work in the sweep's own folder.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import ray
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, setup_globals
from hydra.types import HydraContext, TaskFunction
from hydra_plugins.hydra_ray_launcher import ray_launcher
from hydra_plugins.hydra_ray_launcher._launcher_util import launch_job_on_ray
from omegaconf import DictConfig, OmegaConf

from musicnet_eval.errors import ConfigError
from musicnet_eval.launchers.collecting import Collecting, Jobs, first_line
from musicnet_eval.plans import job_config


class RayLauncher(Collecting, ray_launcher.RayLauncher):
    """Run jobs as tasks of Ray.

    Args:
        ray: `init`, arguments of `ray.init`, and `remote`, options of each job: `num_cpus`, `num_gpus`, `max_retries`.
        env: Names of environment variables that workers get, where they are set.
    """

    def __init__(self, ray: DictConfig, env: Sequence[str]) -> None:
        ray_launcher.RayLauncher.__init__(self, ray)
        self.env = env

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Take what Hydra gives, and bind the task to the present folder."""
        task = InPlace(task_function, str(Path.cwd()))
        ray_launcher.RayLauncher.setup(self, hydra_context=hydra_context, task_function=task, config=config)

    def collect(self, job_overrides: Jobs, first: int) -> Sequence[JobReturn]:
        """Hand all jobs to Ray, which runs as many at once as it has room for, and give the outcome of each."""
        assert self.hydra_context is not None
        assert self.config is not None
        assert self.task_function is not None
        setup_globals()
        self._start()
        waiting: list[Any] = []  # jobs of Ray, and outcomes that are there already
        for number, overrides in enumerate(job_overrides, first):
            if (done := self.stored(number, overrides)) is not None:
                waiting.append(done)
                continue
            config = job_config(self.hydra_context.config_loader, self.config, number, overrides)
            state = Singleton.get_state()
            waiting.append(launch_job_on_ray(self.hydra_context, self.ray_cfg.remote, config, self.task_function, state))
        jobs = enumerate(zip(waiting, job_overrides, strict=True), first)
        return [self._outcome(job, number, overrides) for number, (job, overrides) in jobs]

    def _outcome(self, job: Any, number: int, overrides: Sequence[str]) -> JobReturn:
        if isinstance(job, JobReturn):
            return job
        try:
            return cast(JobReturn, ray.get(job))
        except Exception as error:  # what the worker raised, or that it was killed, by a type of Ray's own
            return self.lost(number, overrides, first_line(error))

    def _start(self) -> None:
        if ray.is_initialized():
            return
        settings = cast(dict[str, Any], OmegaConf.to_container(self.ray_cfg.init, resolve=True))
        environment = settings.setdefault("runtime_env", {}).setdefault("env_vars", {})
        environment |= {name: os.environ[name] for name in self.env if name in os.environ}
        try:
            ray.init(**settings)
        except (ConnectionError, ValueError, TypeError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:300]
            raise ConfigError(f"Ray does not start ({reason}). Mend hydra.launcher.ray.init.*: {sorted(settings)}.") from error


@dataclass
class InPlace:
    """The task, in the folder where the sweep was asked for.

    Args:
        task: What Hydra calls.
        folder: That folder.
    """

    task: TaskFunction
    folder: str

    def __call__(self, config: DictConfig) -> Any:
        """Do one job."""
        try:
            os.chdir(self.folder)
        except OSError as error:
            raise ConfigError(
                f"'{self.folder}' is not there on a Ray worker. Ask for the sweep in a folder that all nodes share."
            ) from error
        return self.task(config)
