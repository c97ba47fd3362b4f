"""Lightning's trainer as the config asks for it, and the metric that chooses the best epoch: refused, not bent. Layer 2."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from musicnet_eval import configs
from musicnet_eval.errors import ConfigError, nearest
from musicnet_eval.metrics import monitorable

LOWER_IS_BETTER = ("loss", "log_loss", "brier", "ece", "ece_adaptive")


def make_trainer(node: Mapping[str, Any], **arguments: Any) -> Any:
    """Make a trainer, which writes nothing but what the arguments ask for.

    Args:
        node: The config's `trainer`.
        arguments: Lightning's own; they go before the node's.

    Raises:
        ConfigError: A precision that does not go with float32 images, or for which Lightning would take another; several devices.
    """
    asked = str(node.get("precision") or "32-true")
    if asked in ("16-true", "bf16-true", "64-true"):
        raise ConfigError(
            f"trainer.precision={asked} changes the weights themselves, while images and losses stay float32. "
            "Use bf16-mixed, 16-mixed (on a GPU) or 32-true."
        )
    usual = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": sys.stderr.isatty(),
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "use_distributed_sampler": False,  # the data module deals rows to ranks itself, each exactly once
    }
    trainer = configs.build({k: v for k, v in node.items() if k not in arguments}, "trainer", **{**usual, **arguments})
    if str(trainer.precision).partition("-")[0] != asked.partition("-")[0]:
        raise ConfigError(
            f"trainer.precision={asked} does not work here; Lightning would take {trainer.precision}. "
            f"Ask for trainer.precision={trainer.precision}."
        )
    if trainer.num_devices * trainer.num_nodes > 1:  # each process would wait for the lock of the one run folder
        raise ConfigError(
            f"trainer.devices={trainer.num_devices}, trainer.num_nodes={trainer.num_nodes}: one run on several devices is not "
            "there yet. Use trainer.devices=1; other devices can take other runs of a sweep."
        )
    return trainer


def check_monitor(monitor: str, mode: str, *, sweeping: bool) -> None:
    """Refuse a metric that is not there, one watched the wrong way round, and, in a sweep, the value of the loss itself.

    Raises:
        ConfigError: As said.
    """
    if monitor not in monitorable():
        raise ConfigError(f"monitor={monitor!r} is no validation metric; {nearest(monitor, monitorable())}")
    name = monitor.rpartition("/")[2]
    if sweeping and name == "loss":
        raise ConfigError(
            f"monitor={monitor} in a sweep would choose each run's best epoch by another measure wherever losses differ. Use "
            "monitor=val/song/f1_macro, or monitor=val/segment/log_loss monitor_mode=min, which mean the same for all losses."
        )
    better = "min" if name in LOWER_IS_BETTER else "max"
    if mode != better:
        raise ConfigError(f"monitor_mode={mode} would keep the worst epoch by {monitor}; use monitor_mode={better}.")
