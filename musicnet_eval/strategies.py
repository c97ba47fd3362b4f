"""How Lightning spreads one run over several devices, where its own strategies do not do. Layer 1; knows only Lightning.

`trainer=ddp` is Lightning's own. So is `trainer=fsdp` on GPUs; Lightning refuses CPUs, which are good for trying it out.
"""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import FSDPStrategy
from torch import nn
from torch.distributed.fsdp import FullOptimStateDictConfig, FullyShardedDataParallel, OptimStateKeyType, StateDictType
from torch.optim import Optimizer


class FSDP(FSDPStrategy):
    """Cut weights, gradients and optimizer state into shards, one a process, on GPUs or, over gloo, on CPUs.

    Arguments are those of Lightning's `FSDPStrategy`.
    """

    def _setup_model(self, model: nn.Module) -> nn.Module:
        if self.root_device.type != "cpu":
            return super()._setup_model(model)
        # Lightning names a device by its number, and PyTorch takes any number for one of an accelerator.
        return FullyShardedDataParallel(
            model,
            cpu_offload=self.cpu_offload,
            mixed_precision=self.mixed_precision_config,
            sharding_strategy=self.sharding_strategy,
            device_id=torch.device("cpu"),
            **self.kwargs,
        )

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Gather an optimizer's whole state, for a checkpoint; only the first process gets it."""
        if self.root_device.type != "cpu":
            return super().optimizer_state(optimizer)
        # PyTorch gathers one kind of state after the other into one buffer, and counts on the copy from there: on a CPU
        # all kinds would be the last one, means of gradients those of their squares. So each kind is gathered by itself.
        inner = optimizer._optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
        network, mine, whole = self.model, inner.state_dict(), dict[str, Any]()
        assert network is not None
        with FullyShardedDataParallel.state_dict_type(
            network, StateDictType.FULL_STATE_DICT, None, FullOptimStateDictConfig(offload_to_cpu=True, rank0_only=True)
        ):
            for kind in sorted({kind for state in mine["state"].values() for kind in state}):
                part = {**mine, "state": {key: {kind: state[kind]} for key, state in mine["state"].items() if kind in state}}
                gathered = FullyShardedDataParallel.optim_state_dict(network, inner, part)
                for key, state in whole.get("state", {}).items():
                    gathered["state"].setdefault(key, {}).update(state)
                whole = gathered
        if whole and self.is_global_zero:
            return FullyShardedDataParallel.rekey_optim_state_dict(whole, OptimStateKeyType.PARAM_ID, network)
        return whole

    def on_validation_start(self) -> None:
        """Take the running means of norms from the first process, as ddp does: they are what a checkpoint holds."""
        assert self.model is not None
        for buffer in self.model.buffers():
            torch.distributed.broadcast(buffer, 0)
