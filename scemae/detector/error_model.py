"""How far off a landmark may be: what error to expect of it, from the head's confidence and the held-out faces."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scemae.calibration import Calibration

LEAST_DOUBT = 0.01  # a confidence above 0.99 counts as 0.99
NOISE = 0.1  # of the mean error, added before logarithms: a hit by chance tells little
TINY = np.finfo(np.float64).tiny
PRIOR_POINTS = 50.0  # whose error is proportional to the doubt, beside the held-out ones


@dataclass(frozen=True, eq=False, kw_only=True)
class HeldOut:
    """What is known of m faces that were held out.

    Attributes:
        errors: (m, K), input px; nan where not known.
        confidence: (m, K), 0..1, of the same predictions; nan where the head does not tell.
        groups: (m,), from 0: the faces of a group depend on each other.
    """

    errors: NDArray[np.float64]
    confidence: NDArray[np.float64]
    groups: NDArray[np.int64]


@dataclass(frozen=True, eq=False, kw_only=True)
class ErrorModel:
    """The error to expect of K landmarks: `lengths` times a power of the doubt, 1 minus the confidence.

    Attributes:
        held_out: what it was fitted on.
        lengths: (K,), input px: at the mean doubt.
        power: of the doubt; 0 if the confidence is not known to tell anything.
        doubts: the least, mean and largest logarithm of the doubt; beyond them it has no further effect.
        calibration: how the errors compare with what is expected.
    """

    held_out: HeldOut
    lengths: NDArray[np.float64]
    power: float
    doubts: tuple[float, float, float]
    calibration: Calibration

    @classmethod
    def fit(cls, held_out: HeldOut) -> Self:
        """From the errors on held-out faces, with few of which it stays near one error for all."""
        errors, known = held_out.errors, np.isfinite(held_out.errors)
        told = known & np.isfinite(held_out.confidence)
        doubt, power, doubts = np.zeros(errors.shape), 0.0, (0.0, 0.0, 0.0)
        if known.any() and (told == known).all():
            doubt = _log_doubt(torch.from_numpy(held_out.confidence)).numpy()
            doubts = float(doubt[known].min()), float(doubt[known].mean()), float(doubt[known].max())
            power = _fit_power(errors, doubt, known)
        factors = np.exp(power * (doubt - doubts[1]))
        lengths = _shrink_means(np.where(known, errors / factors, np.nan))
        groups = np.broadcast_to(held_out.groups[:, None], errors.shape)
        ratios = errors[known] / np.maximum(factors * lengths, TINY)[known]
        return cls(
            held_out=held_out,
            lengths=lengths,
            power=power,
            doubts=doubts,
            calibration=Calibration(ratios=ratios, groups=groups[known]),
        )

    def expect(self, confidence: Tensor) -> Tensor:
        """The expected errors (B, K), input px, of predictions with a confidence (B, K), 0..1. Traceable."""
        lengths = torch.from_numpy(self.lengths)
        if self.power == 0:
            return torch.zeros_like(confidence, dtype=torch.float64) + lengths
        least, mean, largest = self.doubts
        return lengths * (self.power * (_log_doubt(confidence.double()).clamp(least, largest) - mean)).exp()


def _shrink_means(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean (K,) of each column of values (m, K), without the nan ones, drawn to that of all.

    The fewer values there are, and the less columns differ beyond chance, the more (empirical Bayes).
    """
    known = np.isfinite(values)
    counts = known.sum(axis=0)
    if not counts.any():
        return np.full(len(counts), np.nan)
    means = np.where(known, values, 0.0).sum(axis=0) / np.maximum(counts, 1)
    off = np.where(known, values - means, 0.0)
    chance = np.square(off).sum() / max(known.sum() - (counts > 0).sum(), 1) / np.maximum(counts, 1)  # (K,) variances
    spread = np.square(means - values[known].mean()) - chance
    between = max(spread[counts > 0].mean(), 0.0)
    weights = np.where(counts > 0, between / np.maximum(between + chance, TINY), 0.0)
    return weights * means + (1 - weights) * values[known].mean()


def _log_doubt(confidence: Tensor) -> Tensor:
    return (1 - confidence).clamp(LEAST_DOUBT, 1).log()


def _fit_power(errors: NDArray[np.float64], doubt: NDArray[np.float64], known: NDArray[np.bool_]) -> float:
    """The slope of the logarithm of the error over that of the doubt, within each landmark; not below 0.

    Drawn to 1: with few points the slope is hard to see.
    """
    logs = np.log(errors + NOISE * errors[known].mean() + TINY)

    def centre(values: NDArray[np.float64]) -> NDArray[np.float64]:
        means = np.where(known, values, 0.0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
        centred: NDArray[np.float64] = (values - means)[known]
        return centred

    x, y = centre(doubt), centre(logs)
    variance = x.var()
    return (
        0.0 if variance == 0 else max(0.0, float((x @ y + PRIOR_POINTS * variance) / (x @ x + PRIOR_POINTS * variance)))
    )
