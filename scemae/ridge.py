"""Ridge regression in closed form, for the cascade head and for the aligner.

For rows X (n, F) and targets Y (n, O) the weights W (F, O) that minimise ||Y - X W||^2 + penalty ||W||^2 are

    W = (X^T X + penalty I)^-1 X^T Y      primal: a system of F equations
      = X^T (X X^T + penalty I)^-1 Y      dual: a system of n equations

The two are equal; the smaller one is solved. The penalty is `ridge` times the mean diagonal of X^T X, trace(X^T X) / F,
and so does not depend on the number of rows or their scale; X X^T has the same trace.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


class RidgeSystem:
    """Ridge regressions of X (n, R, F) on Y (n, R, 2), without intercept, for any parts of the n faces.

    The products are made once, so that solving for other parts does not read X again: X X^T for the dual, where there
    are at most as many rows n R as features; X^T X and X^T Y of each part for the primal.
    """

    def __init__(self, x: Tensor, y: Tensor, parts: NDArray[np.int64]) -> None:
        self.features = x.shape[2]
        self.dual = len(x) * x.shape[1] <= self.features
        if self.dual:
            self.rows, self.targets = x.flatten(0, 1), y.flatten(0, 1)  # (n R, F), (n R, 2)
            self.kernel = self.rows @ self.rows.T  # (n R, n R)
            self.row_parts = np.repeat(parts, x.shape[1])
        else:
            self.sums = {int(part): _normal_equations(x[parts == part], y[parts == part]) for part in np.unique(parts)}

    def solve(self, parts: Sequence[int], ridges: Sequence[float]) -> list[Tensor]:
        """For each ridge the weights (F, 2) from the rows of `parts`."""
        if self.dual:
            chosen = torch.from_numpy(np.flatnonzero(np.isin(self.row_parts, parts)))
            kernel = self.kernel[chosen][:, chosen]
            rows, targets = self.rows[chosen], self.targets[chosen]
            return [rows.T @ alpha for alpha in solve_ridge(kernel, targets, ridges, self.features)]
        gram, moment = torch.zeros(self.features, self.features), torch.zeros(self.features, 2)
        for part in parts:
            if part in self.sums:
                gram += self.sums[part][0]
                moment += self.sums[part][1]
        return solve_ridge(gram, moment, ridges, self.features)


class CentredSums:
    """The sums of a linear regression of y on x with intercept, row by row: memory does not grow with the rows."""

    def __init__(self, features: int, outputs: int) -> None:
        self.count = 0
        self.x, self.y = (torch.zeros(width, dtype=torch.float64) for width in (features, outputs))
        self.gram, self.moment = (torch.zeros(features, width, dtype=torch.float64) for width in (features, outputs))

    def add(self, x: Tensor, y: Tensor) -> None:
        """Add rows x (b, features) and y (b, outputs)."""
        self.count += len(x)
        self.x += x.sum(0)
        self.y += y.sum(0)
        self.gram += x.T @ x
        self.moment += x.T @ y

    def centre(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The means of x and y, and X^T X and X^T Y of the rows minus these means."""
        mean_x, mean_y = self.x / self.count, self.y / self.count
        gram = self.gram - self.count * torch.outer(mean_x, mean_x)
        return mean_x, mean_y, gram, self.moment - self.count * torch.outer(mean_x, mean_y)


def solve_ridge(matrix: Tensor, right: Tensor, ridges: Sequence[float], features: int) -> list[Tensor]:
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
    """X^T X (F, F) and X^T Y (F, 2) of x (n, R, F) and y (n, R, 2)."""
    rows = x.flatten(0, 1)
    return rows.T @ rows, rows.T @ y.flatten(0, 1)
