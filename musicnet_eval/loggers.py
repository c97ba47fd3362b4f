"""Lightning's own loggers, told which run they log: CSV, TensorBoard, MLflow. Layer 6.

`conf/logger` names them with `_partial_: true`, and `training` calls each with the run's plan; any other logger is built
without. What they keep in a run's folder lies in `logs/` (`records.LOGS`), which goes when a run starts afresh:
`logs/csv/version_N` of each attempt, `logs/tensorboard`, `logs/mlflow.json` with the id under which a resumed run goes on.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock
from lightning.pytorch.loggers import CSVLogger, MLFlowLogger, TensorBoardLogger

from musicnet_eval import records
from musicnet_eval.errors import ConfigError, RecordError

if TYPE_CHECKING:
    from musicnet_eval.plans import Plan

OBJECTIVE = "test/song/accuracy"  # what TensorBoard's table of hyperparameters ranks by


class _ByEpoch:
    """Keep curves to one point an epoch: what the tested epoch comes to on validation, measured again at the end, is none."""

    _fitted = False

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        """Log numbers."""
        told = {name: value for name, value in metrics.items() if not (self._fitted and name.startswith("val/"))}
        if set(told) - {"epoch"}:
            super().log_metrics(told, step)  # type: ignore[misc]

    def finalize(self, status: str = "success") -> None:
        """Note that the training is over."""
        super().finalize(status)  # type: ignore[misc]
        self._fitted = self._fitted or status == "success"


class Csv(_ByEpoch, CSVLogger):
    """Lightning's CSV logger: a folder `version_N` for each attempt, since a resumed one would delete the earlier file.

    Args:
        run: The run that is logged.
        options: Lightning's own.
    """

    def __init__(self, run: Plan, **options: Any) -> None:
        super().__init__(save_dir=run.folder / records.LOGS, name="csv", **options)


class TensorBoard(_ByEpoch, TensorBoardLogger):
    """Lightning's TensorBoard logger, in the run's own folder; its `hp_metric` is the accuracy of the test, once there is one.

    Args:
        run: The run that is logged.
        options: Lightning's own.

    Raises:
        ConfigError: TensorBoard is not installed.
    """

    def __init__(self, run: Plan, **options: Any) -> None:
        _require("tensorboard")
        super().__init__(save_dir=run.folder / records.LOGS, name="", version="tensorboard", **options)

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        """Log numbers, and the objective a second time under the name that TensorBoard's table of hyperparameters has."""
        more = {"hp_metric": metrics[OBJECTIVE]} if OBJECTIVE in metrics else {}
        super().log_metrics({**metrics, **more}, step)


class MLflow(_ByEpoch, MLFlowLogger):
    """Lightning's MLflow logger; an attempt of a run that was cut short goes on in the same MLflow run.

    Args:
        run: The run that is logged.
        save_dir: Folder of the local store, `mlflow.db` and `artifacts`.
        tracking_uri: A server, or another database; null: the environment variable MLFLOW_TRACKING_URI, else the local store.
        options: Lightning's own.

    Raises:
        ConfigError: MLflow is not installed.
    """

    def __init__(self, run: Plan, save_dir: str, tracking_uri: str | None = None, **options: Any) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # it would tell its makers what is called otherwise
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")  # its own seven take minutes where nobody answers
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "15")
        _require("mlflow", "mlflow")
        folder, kept = Path(save_dir).resolve(), run.folder / records.LOGS / "mlflow.json"
        uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
        if not uri:
            _require("mlflow", "sqlalchemy", "alembic")
            uri = f"sqlite:///{folder / 'mlflow.db'}"
            options = {"artifact_location": (folder / "artifacts").as_uri(), **options}
        tags = {**{name: str(value) for name, value in run.choices.items()}, "signature": run.signature}
        options = {"experiment_name": run.folder.parent.name, "run_name": run.title, "tags": tags, **options}
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock"):  # of several processes one makes the tables, and the experiment
            earlier = _known(kept, uri)
            super().__init__(tracking_uri=uri, run_id=earlier, **options)
            identity = self.run_id
        self.goes_on = earlier is not None
        if identity is not None:  # there is none on other ranks
            self.experiment.update_run(identity, status="RUNNING")
            records.write_json(kept, {"run_id": identity})

    def log_hyperparams(self, params: Any) -> None:
        """Log the config, unless an earlier attempt has: MLflow refuses other values, and what may differ changes no numbers."""
        if not self.goes_on:
            super().log_hyperparams(params)


def _known(kept: Path, uri: str) -> str | None:
    """Give the MLflow run of an earlier attempt, if the store still has it."""
    from mlflow.exceptions import MlflowException
    from mlflow.tracking import MlflowClient

    with contextlib.suppress(RecordError, MlflowException):
        told = str(records.read_json(kept).get("run_id"))
        return str(MlflowClient(uri).get_run(told).info.run_id)
    return None


def _require(logger: str, *modules: str) -> None:
    """Refuse a logger whose library is not installed, before anything is trained."""
    for module in modules or (logger,):
        if importlib.util.find_spec(module) is None:
            raise ConfigError(
                f"logger={logger} needs the package {module}, which is not installed. "
                f"Install it with: pip install 'musicnet-eval[{logger}]'"
            )
