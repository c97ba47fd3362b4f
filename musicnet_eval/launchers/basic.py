"""Hydra's own sweeper, for grids, without the jobs that are done: it would compose each of them twice."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.types import Override

from musicnet_eval.launchers.collecting import concluded


class Grid(BasicSweeper):
    """Ask for each combination of what the overrides list, but for those that a callback knows to be done (`left`)."""

    def split_arguments(  # type: ignore[override]  # Hydra's own knows no callbacks
        self, overrides: list[Override], max_batch_size: int | None
    ) -> list[Sequence[Sequence[str]]]:
        """Give batches of jobs, each by its overrides."""
        assert self.hydra_context is not None
        batches: list[Sequence[Sequence[str]]] = list(BasicSweeper.split_arguments(overrides, max_batch_size))
        for callback in self.hydra_context.callbacks.callbacks:
            if hasattr(callback, "left"):
                batches = [callback.left(batch) for batch in batches]
        return [batch for batch in batches if batch]

    def sweep(self, arguments: list[str]) -> Any:
        """Run the jobs."""
        assert self.config is not None
        with concluded(self.hydra_context, self.config):
            return super().sweep(arguments)
