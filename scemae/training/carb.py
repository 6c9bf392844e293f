"""CARB: keep the attentive tokens; approximate the rest by a few cluster centres.

The tokens of the Correspondence Approximation and Refinement Block (paper Sec. 3.3), selected as in Sec. 3.2: the
attentive ones by Eq. 1 (`Backbone.cls_similarity`), density peaks among the others by Eq. 2 and Eq. 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from scemae.errors import OptionError
from scemae.model.backbone import gather_tokens
from scemae.training.stage2_config import Density

NEIGHBOURS = 5  # of the density "knn"


@dataclass(frozen=True, eq=False)
class Selection:
    """Which of N tokens stand for all."""

    attentive: Tensor  # (B, A), indices in rising order
    centers: Tensor  # (B, K), indices in rising order, of some of the inattentive tokens
    substitute: Tensor  # (B, N), for each token the index in `kept` of the one that stands for it

    @property
    def kept(self) -> Tensor:
        """Indices (B, A + K) of the kept tokens: the attentive ones, then the centers."""
        return torch.cat([self.attentive, self.centers], dim=1)

    @classmethod
    def concatenate(cls, parts: Sequence[Selection]) -> Selection:
        """The selections of several batches in one."""
        return cls(*(torch.cat([getattr(part, name) for part in parts]) for name in cls.__dataclass_fields__))


def select(
    tokens: Tensor, similarity: Tensor, attentive_ratio: float, num_clusters: int, density: Density
) -> Selection:
    """Split tokens (B, N, D) by their CLS similarity (B, N), and cluster the inattentive ones, if there are any."""
    attentive, inattentive = split_attentive(similarity, attentive_ratio)
    if not inattentive.shape[1] and not num_clusters:
        return Selection(attentive, inattentive, attentive)
    if not 1 <= num_clusters <= inattentive.shape[1]:
        raise OptionError(f"num_clusters is {num_clusters}; there are {inattentive.shape[1]} inattentive tokens.")
    distances = pairwise_distances(gather_tokens(tokens, inattentive))
    centers = cluster_centers(distances, num_clusters, density, tokens.shape[-1])
    # Each inattentive token goes to its nearest centre, a centre to itself even where another is as near.
    to_centers = distances.gather(2, centers[:, None].expand(-1, distances.shape[1], -1))
    own = torch.arange(num_clusters, device=tokens.device).expand_as(centers)
    nearest = to_centers.argmin(2).scatter(1, centers, own)
    count = attentive.shape[1]
    substitute = torch.empty_like(similarity, dtype=torch.long)
    substitute.scatter_(1, attentive, torch.arange(count, device=tokens.device).expand_as(attentive))
    substitute.scatter_(1, inattentive, count + nearest)
    return Selection(attentive, inattentive.gather(1, centers), substitute)


def split_attentive(similarity: Tensor, attentive_ratio: float) -> tuple[Tensor, Tensor]:
    """Indices, in rising order, of the `attentive_ratio` (eta) of N tokens most similar to CLS, and of the others.

    eta N is rounded down, to at least 1; of equal tokens the first ones are attentive (paper Sec. 3.2).
    """
    total = similarity.shape[1]
    count = max(1, int(attentive_ratio * total + 1e-6))
    order = similarity.argsort(dim=1, descending=True, stable=True)
    return order[:, :count].sort(dim=1).values, order[:, count:].sort(dim=1).values


def pairwise_distances(tokens: Tensor) -> Tensor:
    """Euclidean distances (B, M, M), float32, from differences: products lose the digits of near tokens."""
    exact = tokens.float()
    return torch.cdist(exact, exact, compute_mode="donot_use_mm_for_euclid_dist")


def log_density(distances: Tensor, density: Density, width: int) -> Tensor:
    """Logarithm of the density rho (B, M), Eq. 2, from distances (B, M, M) between tokens of `width` numbers.

    Eq. 2 as printed, exp(+ sum of squared distances), is largest for the loneliest token and overflows. "knn" is a
    density, which the text asks for: exp(- mean squared distance to the 5 nearest / width), as in TCFormer; "mean"
    takes all tokens instead of 5; "paper_literal" is the printed one.
    """
    squared = distances**2
    if density == "paper_literal":
        return squared.sum(2)
    if density == "mean":
        return -squared.mean(2) / width
    if density == "knn":
        neighbours = min(NEIGHBOURS, squared.shape[2] - 1)
        nearest = squared.topk(neighbours + 1, dim=2, largest=False).values[:, :, 1:]  # without the token itself
        return -nearest.mean(2) / width if neighbours else torch.zeros_like(squared[:, :, 0])
    raise OptionError(f"density is {density!r}; it must be one of {', '.join(get_args(Density))}.")


def cluster_centers(distances: Tensor, num_clusters: int, density: Density, width: int) -> Tensor:
    """Density peaks: indices (B, K), rising, of the tokens with the highest rho * delta (rho: Eq. 2, delta: Eq. 3).

    delta is the distance to the nearest token of higher density, for the densest that to the farthest token. Of
    equally dense tokens the first counts as denser, so that nothing is random. All in logarithms: exp(log rho)
    overflows.
    """
    log_rho = log_density(distances, density, width)
    count = log_rho.shape[1]
    rank = log_rho.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    denser = rank[:, None, :] < rank[:, :, None]
    delta = distances.masked_fill(~denser, torch.inf).amin(2)
    delta = torch.where(rank == 0, distances.amax(2), delta)
    score = log_rho + delta.clamp(min=1e-12).log()
    assert num_clusters <= count
    best = score.argsort(dim=1, descending=True, stable=True)[:, :num_clusters]
    return best.sort(dim=1).values
