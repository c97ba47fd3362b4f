"""The numbers a run is judged by, and how segments make songs. Layer 1: `measures` and `votes`."""

from musicnet_eval.metrics.measures import (
    METRICS,
    OF_PROBABILITIES,
    ONE_LABEL,
    Scored,
    add_batch,
    compute,
    decide,
    mean_metric,
    monitorable,
    names,
    probabilities,
    right,
    running_log_loss,
)
from musicnet_eval.metrics.votes import VOTES, Heard, SegmentScores, SongVotes, Votes, fit_temperature

__all__ = [
    "METRICS",
    "OF_PROBABILITIES",
    "ONE_LABEL",
    "VOTES",
    "Heard",
    "Scored",
    "SegmentScores",
    "SongVotes",
    "Votes",
    "add_batch",
    "compute",
    "decide",
    "fit_temperature",
    "mean_metric",
    "monitorable",
    "names",
    "probabilities",
    "right",
    "running_log_loss",
]
