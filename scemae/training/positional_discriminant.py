"""Positional discriminant: the linear projection of tokens that best tells where in the face they are, closed form."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from scemae.errors import OptionError
from scemae.geometry import pixels_to_half_sides
from scemae.model.sce_mae import SceMae
from scemae.training.acceleration import fastest_precision
from scemae.training.batches import Batches
from scemae.training.motions import Moves, token_centres
from scemae.training.pack import INPUT, Pack
from scemae.training.run_config import MotionConfig

Encode = Callable[[Tensor], Tensor]
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
        `shrinkage` times its mean is added. Raises OptionError where `dim` is larger than D.
        """
        if dim > len(self.products):
            raise OptionError(f"A projection to {dim} numbers was asked for; the tokens have {len(self.products)}.")
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


def token_encoder(model: SceMae) -> Encode:
    """Views (B, 3, 96, 96) of 0..1 -> patch tokens (B, N, D), float32, at the machine's fastest precision."""
    bf16 = fastest_precision(model.device) == "bf16"

    def encode(views: Tensor) -> Tensor:
        with torch.inference_mode(), torch.autocast(model.device.type, torch.bfloat16, enabled=bf16):
            return model.patch_tokens(model.normalise(views)).float().cpu()

    return encode


@dataclass(frozen=True)
class TokenSource:
    """Moved views of some faces of a pack and their tokens, as many as asked for."""

    encode: Encode
    pack: Pack
    faces: NDArray[np.int64]
    config: MotionConfig
    amplitude: float
    batch_size: int
    seed: tuple[int, ...]
    bar: tqdm[None]

    def tokens(self, views: int, purpose: int) -> Iterator[tuple[Tensor, Moves]]:
        """`views` views in batches, each with its tokens (B, N, D); of each purpose others."""
        size = min(self.batch_size, len(self.faces), views)
        batches = Batches(len(self.faces), size, (*self.seed, purpose))
        for step in range(math.ceil(views / size)):
            rows = self.faces[batches.rows(step)]
            moves = Moves.draw(batches.rng(step), len(rows), self.config, self.amplitude)
            yield self.encode(moves.views(self.pack, rows)), moves
            self.bar.update(len(rows))


def positional_projection(
    source: TokenSource, views: int, cells: int, dim: int, shrinkage: float
) -> tuple[Tensor, Tensor]:
    """Mean (D,) and projection (D, dim) of tokens, learned from so many views: see `PositionalScatter`."""
    scatter: PositionalScatter | None = None
    for tokens, moves in source.tokens(views, 0):
        scatter = scatter or PositionalScatter(tokens.shape[-1], cells)
        places = moves.to_unmoved(token_centres(math.isqrt(tokens.shape[1])))
        scatter.add(tokens, torch.from_numpy(pixels_to_half_sides(places, INPUT)))
    assert scatter is not None
    return scatter.solve(dim, shrinkage)
