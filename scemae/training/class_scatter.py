"""Linear discriminant analysis (LDA): the linear projection of tokens that best tells their classes apart."""

from __future__ import annotations

import torch
from torch import Tensor

from scemae.errors import OptionError
from scemae.model.projector import Projector


class ClassScatter:
    """LDA of tokens of D numbers, each of one of `classes` classes.

    It keeps sums over the tokens, so that memory does not grow with their number (docs/alignment.md).
    """

    def __init__(self, width: int, classes: int) -> None:
        self.counts = torch.zeros(classes, dtype=torch.float64)
        self.sums = torch.zeros(classes, width, dtype=torch.float64)
        self.products = torch.zeros(width, width, dtype=torch.float64)

    def add_classes(self, tokens: Tensor, classes: Tensor) -> None:
        """Add tokens (n, D) of classes (n,)."""
        kept = tokens.double()
        self.counts += torch.bincount(classes, minlength=len(self.counts))
        self.sums.index_add_(0, classes, kept)
        self.products += kept.T @ kept

    def solve(self, dim: int, shrinkage: float) -> tuple[Tensor, Tensor]:
        """Mean (D,) and projection (D, dim), float32, of unit variance: the `dim` leading directions of the LDA.

        These maximise the scatter between the classes against the scatter within them, to whose diagonal `shrinkage`
        times its mean is added. Raises OptionError where `dim` is larger than D.
        """
        if dim > len(self.products):
            raise OptionError(f"A projection to {dim} dimensions was asked for; the tokens have {len(self.products)}.")
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


def make_projector(mean: Tensor, projection: Tensor) -> Projector:
    """The projector that subtracts a mean (D,), then projects (D, dim)."""
    projector = Projector(*projection.shape)
    projector.load_state_dict({"weight": projection.T[..., None, None], "bias": -mean @ projection})
    return projector.requires_grad_(False)
