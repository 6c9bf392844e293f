"""Positional discriminant: the linear projection of tokens that best tells where in the face they are, closed form."""

from __future__ import annotations

import torch
from torch import Tensor

REACH = 7 / 6  # half-sides of the view, from its middle, to which classes reach: moved views look beyond the unmoved


class PositionalScatter:
    """Sums over tokens whose classes are `cells` x `cells` places of the unmoved view; memory does not grow.

    Linear discriminant analysis with position as the class (docs/alignment.md).
    """

    def __init__(self, width: int, cells: int) -> None:
        self.cells = cells
        self.counts = torch.zeros(cells**2, dtype=torch.float64)
        self.sums = torch.zeros(cells**2, width, dtype=torch.float64)
        self.products = torch.zeros(width, width, dtype=torch.float64)

    def add(self, tokens: Tensor, places: Tensor) -> None:
        """Tokens (B, N, D), and where their centres lie in the unmoved view, (B, N, 2) half-sides."""
        index = ((places / REACH + 1) * (self.cells / 2)).floor().long().flatten(0, 1)
        inside = ((index >= 0) & (index < self.cells)).all(dim=1)
        index, kept = index[inside], tokens.flatten(0, 1)[inside].double()
        classes = index[:, 1] * self.cells + index[:, 0]
        self.counts += torch.bincount(classes, minlength=self.cells**2)
        self.sums.index_add_(0, classes, kept)
        self.products += kept.T @ kept

    def solve(self, dim: int, shrinkage: float) -> tuple[Tensor, Tensor]:
        """Mean (D,) and projection (D, dim), float32: what is projected has unit variance.

        The leading directions of scatter between the classes against scatter within them, to whose diagonal
        `shrinkage` times its mean is added.
        """
        total = self.counts.sum()
        mean = self.sums.sum(0) / total
        seen = self.counts > 0
        centred = self.sums[seen] / self.counts[seen, None] - mean
        between = centred.T @ (centred * (self.counts[seen, None] / total))
        overall = self.products / total - torch.outer(mean, mean)
        within = overall - between
        within += shrinkage * within.diagonal().mean() * torch.eye(len(within), dtype=torch.float64)
        factor = torch.linalg.cholesky(within)
        whitened = torch.linalg.solve_triangular(factor, between, upper=False)
        whitened = torch.linalg.solve_triangular(factor, whitened.T, upper=False)
        _, directions = torch.linalg.eigh((whitened + whitened.T) / 2)
        projection = torch.linalg.solve_triangular(factor.T, directions.flip(1)[:, :dim], upper=True)
        deviation = (projection * (overall @ projection)).sum(0).sqrt()
        return mean.float(), (projection / deviation).float()
