"""Conformal prediction: within which distance a prediction lies, from the errors of predictions that were held out."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ROUNDING = 1e-9  # of sums of weights


@dataclass(frozen=True, eq=False, kw_only=True)
class Calibration:
    """The ratios of errors to what was expected of them, of m held-out points.

    Attributes:
        ratios: (m,).
        groups: (m,) numbers: points of one group, such as those of one face, depend on each other.
    """

    ratios: NDArray[np.float64]
    groups: NDArray[np.int64]

    @property
    def count(self) -> int:
        """The number of groups, G."""
        return len(np.unique(self.groups))

    def quantile(self, coverage: float) -> float:
        """The ratio that a new point stays below with that probability; nan where there are too few groups to tell.

        Each group has the same weight. Of N independent ratios it is number ceil((N + 1) coverage), which is exact on
        average over what was held out. The ratios are worth as many independent ones as give the share of those below
        a limit the variance that it has among groups: G, or more where points of one group differ.
        """
        if needed_groups(coverage) > self.count:
            return float("nan")
        members, sizes = np.unique(self.groups, return_inverse=True, return_counts=True)[1:]
        order = np.argsort(self.ratios)
        below = np.cumsum(1 / sizes[members[order]]) / self.count  # the weight up to each ratio
        limit = self.ratios[order][np.searchsorted(below, coverage - ROUNDING)]
        shares = np.bincount(members, self.ratios > limit) / sizes  # of each group, above the limit
        beyond, variance = shares.mean(), shares.var()
        worth = (self.count - 1) * beyond * (1 - beyond) / variance if variance > 0 else 0
        worth = np.clip(worth, self.count, len(self.ratios))
        rank = min(coverage * (worth + 1) / worth, 1)
        return float(self.ratios[order][np.searchsorted(below, rank - ROUNDING)])


def needed_groups(coverage: float) -> int:
    """The least number of groups with which the quantile for a coverage, 0..1, is known."""
    return int(np.ceil(coverage / (1 - coverage) - ROUNDING))
