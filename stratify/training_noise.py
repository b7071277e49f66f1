"""How far two trainings on the same data differ, pooled over all that were repeated.

A score is the largest |estimate| / band of a slice's failing metrics, so 1 lies on the edge of the band. Its spread
between training seeds grows with it (a student that is further off is less certainly so), and below half a band no
further: the spread of a score s is `sd` x max(s, 1/2). One `sd` for all slices and interventions, because two seeds
each leave one degree of freedom a pair, by which no slice could be told from another (pooling as in Smyth 2004, with
all weight on the common variance).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..catalogs.errors import DistdataError

PRIOR_SD = 0.12
PRIOR_DF = 4.0
"""What is believed of the spread before any training was repeated, and how many degrees of freedom that counts."""
SMALLEST = 0.5
"""Scores below this spread as this one does: what is left there is the gate's own noise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingNoise:
    """Relative standard deviation of a score between training seeds, and its degrees of freedom (the prior's too)."""

    sd: float
    df: float

    def error(self, score: float, n_seeds: int) -> float:
        """Return the standard error of the mean score of `n_seeds` trainings whose expected score is `score`."""
        return self.sd * max(score, SMALLEST) / math.sqrt(n_seeds)


def pooled_noise(groups: Iterable[Sequence[float]]) -> TrainingNoise:
    """Pool the spread of scores within `groups`: the seeds of one slice under one intervention each.

    sd^2 = (4 x 0.12^2 + sum over groups of sum((s - mean)^2) / max(mean, 1/2)^2) / (4 + sum(n - 1)).

    Raises:
        DistdataError: a score that is no number of at least 0.
    """
    squares, df = PRIOR_DF * PRIOR_SD**2, PRIOR_DF
    for scores in groups:
        check_scores(scores)
        if len(scores) > 1:
            mean = math.fsum(scores) / len(scores)
            squares += math.fsum((s - mean) ** 2 for s in scores) / max(mean, SMALLEST) ** 2
            df += len(scores) - 1
    return TrainingNoise(sd=math.sqrt(squares / df), df=df)


def check_scores(scores: Iterable[float]) -> None:
    """Refuse a score that is no number of at least 0."""
    for score in scores:
        if not (math.isfinite(score) and score >= 0):
            raise DistdataError(
                f"diagnose: a score of {score:g} bands; it must be a number of at least 0. Gate that student again: a "
                "metric that can't be computed is undecided and no score."
            )
