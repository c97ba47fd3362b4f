"""Lightning's trainer as the config asks for it, and the metric that chooses the best epoch: refused, not bent. Layer 2."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from lightning.pytorch.strategies import FSDPStrategy
from torch.cuda import is_available as cuda_is_available

from musicnet_eval import configs
from musicnet_eval.errors import ConfigError, nearest
from musicnet_eval.metrics import monitorable

BY_NUMBER = (
    "Adadelta",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "Lion",
    "NAdam",
    "RAdam",
    "RMSprop",
    "SGD",
)  # never look at a whole weight
LOWER_IS_BETTER = ("loss", "log_loss", "brier", "ece", "ece_adaptive")


def make_trainer(node: Mapping[str, Any], **arguments: Any) -> Any:
    """Make a trainer, which writes nothing but what the arguments ask for.

    Args:
        node: The config's `trainer`.
        arguments: Lightning's own; they go before the node's.

    Raises:
        ConfigError: A precision that does not go with float32 images, or for which Lightning would take another; shards
            without CUDA.
    """
    asked = str(node.get("precision") or "32-true")
    if asked in ("16-true", "bf16-true", "64-true"):
        raise ConfigError(
            f"trainer.precision={asked} changes the weights themselves, while images and losses stay float32. "
            "Use bf16-mixed, 16-mixed (on a GPU) or 32-true."
        )
    if "fsdp" in str(node.get("strategy")).lower() and node.get("accelerator") != "cpu" and not cuda_is_available():
        raise ConfigError(
            "trainer=fsdp needs GPUs with CUDA, and there is none here. Use trainer=ddp, or trainer=default; to try it out on "
            "CPUs, trainer=fsdp trainer.accelerator=cpu trainer.devices=2."
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
    return trainer


def check_several(config: Mapping[str, Any], trainer: Any, *, shared: bool) -> None:
    """Refuse what does not go with one run on several devices, before any process is started.

    Args:
        config: The resolved config.
        trainer: Made of it.
        shared: Whether other jobs of a sweep run in this process too.

    Raises:
        ConfigError: As said.
    """
    devices = trainer.num_devices * trainer.num_nodes
    if devices == 1:
        if shards(trainer):
            raise ConfigError(
                "trainer=fsdp with one device has nothing to cut. Use trainer.devices=2 or more, or trainer=default."
            )
        return
    many = f"trainer.devices={trainer.num_devices}" + (
        f", trainer.num_nodes={trainer.num_nodes}" if trainer.num_nodes > 1 else ""
    )
    if shared:
        raise ConfigError(
            f"{many} inside a sweep: the other processes of a run start as its command does, and would begin the sweep anew. Use "
            "hydra/launcher=process, which gives each job a command of its own, or trainer.devices=1."
        )
    if trainer.num_nodes > 1 and not trainer.strategy.cluster_environment.creates_processes_externally:
        raise ConfigError(
            f"{many} needs someone who starts the command on each host: torchrun, or srun. Else trainer.num_nodes=1."
        )
    strategy = str(config["trainer"].get("strategy"))
    if any(kind in strategy for kind in ("spawn", "fork", "notebook")):
        raise ConfigError(
            f"trainer.strategy={strategy} copies a process that is running. Use trainer=ddp, which starts each anew."
        )
    for key, value, instead in (
        ("tune.lr", config["tune"]["lr"], "Search with trainer.devices=1 first, and give optimizer.lr"),
        ("tune.batch_size", config["tune"]["batch_size"], "Search with trainer.devices=1 first, and give data.batch_size"),
        ("run.on_oom=halve_batch", config["run"]["on_oom"] == "halve_batch", "Give a smaller data.batch_size"),
        (
            "run.checkpoint_every_n_steps",
            config["run"]["checkpoint_every_n_steps"],
            "Use null: each process has sums of its own in mid-epoch, last.ckpt is written at the end of each epoch",
        ),
    ):
        if value:
            raise ConfigError(f"{key} does not go with {many}. {instead}.")
    if shards(trainer):
        _check_shards(config)


def _check_shards(config: Mapping[str, Any]) -> None:
    """Refuse what looks at whole weights, where each process holds a part of them, and what PyTorch would mix up."""
    if config["model"]["channels_last"]:
        raise ConfigError(
            "model.channels_last=true with trainer=fsdp would go on from a checkpoint with the optimizer's state in "
            "another order than its weights. Use model.channels_last=false."
        )
    optimizer = str(config["optimizer"].get("_target_")).rpartition(".")[2]
    if optimizer not in BY_NUMBER:
        raise ConfigError(
            f"optimizer={optimizer} may look at whole weights, and trainer=fsdp cuts them. Use trainer=ddp, or one of "
            f"{', '.join(BY_NUMBER)}."
        )
    for name, node in config["callbacks"].items():
        target = str((node or {}).get("_target_"))
        if "WeightAveraging" in target or target.endswith("Histograms"):
            raise ConfigError(f"callbacks.{name} looks at whole weights, and trainer=fsdp cuts them. Use trainer=ddp.")


def shards(trainer: Any) -> bool:
    """Say whether each process holds but a part of the weights."""
    return isinstance(trainer.strategy, FSDPStrategy)


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
