"""Rows over several data sets: mean ranks, Friedman's test, critical differences, signed ranks. See `significance`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from musicnet_eval import significance
from musicnet_eval.leaderboard.text import listing

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from musicnet_eval.leaderboard.board import Table


class Standing(NamedTuple):
    """The rows that all data sets have, best mean rank first, and what may be said of them."""

    labels: tuple[str, ...]
    data_sets: int
    ranks: significance.Ranks

    def same(self, nemenyi: bool = False) -> NDArray[np.bool_]:
        """Tell which two rows cannot be told apart `[K, K]`: by signed ranks, or by Nemenyi's critical difference."""
        import numpy as np

        apart = np.abs(self.ranks.ranks[:, None] - self.ranks.ranks)
        close = apart < self.ranks.critical_difference if nemenyi else self.ranks.p_holm >= significance.ALPHA
        return close | np.eye(len(self.labels), dtype=bool)

    def notes(self) -> list[str]:
        """Say it in words."""
        named = listing([f"{label} {rank:.2f}" for label, rank in zip(self.labels, self.ranks.ranks, strict=True)], 12)
        few = " With fewer than ten data sets both tests are approximate." if self.data_sets < 10 else ""
        pairs = len(self.labels) * (len(self.labels) - 1) // 2
        differ = int(len(self.labels) ** 2 - self.same().sum()) // 2
        least = (
            f" Fewer than six data sets leave no pair below p = {2.0 ** (1 - self.data_sets):.3g}." if self.data_sets < 6 else ""
        )
        return [
            f"Mean ranks over {self.data_sets} data sets, 1 is best: {named}. Friedman's test (Iman-Davenport): "
            f"p = {self.ranks.p:.3g}. Ranks that lie {self.ranks.critical_difference:.2f} apart or more differ at 5 % "
            f"(Nemenyi).{few}",
            f"Signed ranks over data sets (Wilcoxon, Holm over {pairs} pairs): {differ} of {pairs} pairs differ at 5 %.{least}",
        ]


def over_data_sets(tables: Sequence[Table], lower: bool) -> Standing | None:
    """Compare the rows that are in all tables by their ranks, where there are three data sets or more of two such rows.

    Args:
        tables: One for each data set; data sets that have several protocols would count twice and are not compared.
        lower: Whether a lower score is better.
    """
    import numpy as np

    if len(tables) < 3 or len({table.data for table in tables}) < len(tables):
        return None
    found = [{tuple(sorted(row.settings.items())): row for row in table.rows} for table in tables]
    shared = [key for key in found[0] if all(key in rows for rows in found)]
    if len(shared) < 2:
        return None
    scores = np.array([[rows[key].mean for key in shared] for rows in found]) * (-1 if lower else 1)
    order = np.argsort(significance.mean_ranks(scores).ranks, kind="stable")
    labels = tuple(found[0][shared[i]].label for i in order)
    return Standing(labels, len(tables), significance.mean_ranks(scores[:, order]))
