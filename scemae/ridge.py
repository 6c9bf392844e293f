"""Ridge regression in closed form: the smaller of two equal systems, from sums that are made once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class RidgeSystem:
    """Ridge regressions of X (n, R, F) on Y (n, R, 2) from any parts of the n faces, without reading X again.

    Solves the smaller of the two equal systems: (F, F), or (n R, n R) where there are fewer rows than features.
    """

    def __init__(self, x: Tensor, y: Tensor, parts: NDArray[np.int64]) -> None:
        self.features = x.shape[2]
        self.dual = len(x) * x.shape[1] <= self.features
        if self.dual:
            self.rows, self.targets = x.flatten(0, 1), y.flatten(0, 1)
            self.kernel = self.rows @ self.rows.T
            self.row_parts = np.repeat(parts, x.shape[1])
        else:
            self.sums = {int(part): _normal_equations(x[parts == part], y[parts == part]) for part in np.unique(parts)}

    def solve(self, parts: Sequence[int], ridges: Sequence[float]) -> list[Tensor]:
        """For each ridge the weights (F, 2) from the rows of `parts`; it multiplies the mean diagonal of X^T X."""
        if self.dual:
            chosen = torch.from_numpy(np.flatnonzero(np.isin(self.row_parts, parts)))
            kernel = self.kernel[chosen][:, chosen]
            rows, targets = self.rows[chosen], self.targets[chosen]
            return [rows.T @ alpha for alpha in ridge_solutions(kernel, targets, ridges, self.features)]
        gram, moment = torch.zeros(self.features, self.features), torch.zeros(self.features, 2)
        for part in parts:
            if part in self.sums:
                gram += self.sums[part][0]
                moment += self.sums[part][1]
        return ridge_solutions(gram, moment, ridges, self.features)


def ridge_solutions(matrix: Tensor, right: Tensor, ridges: Sequence[float], features: int) -> list[Tensor]:
    """For each ridge (matrix + penalty I)^-1 right; changes `matrix`. Without data the solution is zero."""
    mean_diagonal = float(matrix.trace()) / features
    if mean_diagonal == 0:
        return [torch.zeros_like(right) for _ in ridges]
    solutions, present = [], 0.0
    for ridge in ridges:
        matrix.diagonal().add_((ridge - present) * mean_diagonal)
        present = ridge
        solutions.append(torch.cholesky_solve(right, torch.linalg.cholesky(matrix)))
    return solutions


def _normal_equations(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    rows = x.flatten(0, 1)
    return rows.T @ rows, rows.T @ y.flatten(0, 1)
