"""Alignment learned without labels: patch tokens of a view -> the affine that puts the face upright and centred.

Not in the paper. Each stage is a linear projection of the tokens and a linear regression to seven places of the
canonical frame; it was learned from known random perturbations of roughly aligned faces (docs/alignment.md).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from scemae.geometry import Alignment, Array, compose, fit_affine, fit_similarity, half_sides_to_pixels
from scemae.model.config import AlignerConfig

ZOOM = (0.25, 4.0)  # an alignment that rescales by less or more has lost the face


def is_plausible(determinant: Any, centre: Any, extent: Any) -> Any:
    """Whether an alignment may have found the face; numpy or torch, for one face or many (B,).

    `determinant` (B,): of the affine from the aligned crop to the starting one, which has to keep handedness and to
    rescale within `ZOOM`. `centre` (B, 2): of the aligned crop, in pixels of a picture of `extent` = (width, height),
    in which it has to lie.
    """
    inside = ((centre >= -0.5) & (centre <= extent - 0.5)).all(-1)
    return (determinant >= ZOOM[0] ** 2) & (determinant <= ZOOM[1] ** 2) & inside


class AlignerStage(nn.Module):
    """Patch tokens (B, N, D) -> points (B, P, 2) in half-sides of the view."""

    token_mean: Tensor
    token_projection: Tensor
    feature_mean: Tensor
    weight: Tensor
    bias: Tensor

    def __init__(self, tokens: int, width: int, config: AlignerConfig) -> None:
        super().__init__()
        features, outputs = tokens * config.projection_dim, 2 * len(config.points)
        self.register_buffer("token_mean", torch.zeros(width))
        self.register_buffer("token_projection", torch.zeros(width, config.projection_dim))
        self.register_buffer("feature_mean", torch.zeros(features))
        self.register_buffer("weight", torch.zeros(features, outputs))
        self.register_buffer("bias", torch.zeros(outputs))

    def features(self, patch_tokens: Tensor) -> Tensor:
        """The input of the regression (B, N * projection_dim): the tokens (B, N, D), projected and concatenated."""
        return ((patch_tokens - self.token_mean) @ self.token_projection).flatten(1)

    def forward(self, patch_tokens: Tensor) -> Tensor:
        """Where the canonical points lie, (B, P, 2), in the view that the tokens (B, N, D) come from."""
        centred = self.features(patch_tokens) - self.feature_mean
        return (centred @ self.weight + self.bias).unflatten(1, (-1, 2))


class FaceAligner(nn.Module):
    """The stages, and the steps that lead from their points to an aligned view."""

    def __init__(self, config: AlignerConfig, tokens: int, width: int, input_size: int) -> None:
        super().__init__()
        self.config = config
        self.input_size = input_size
        self.stages = nn.ModuleList(AlignerStage(tokens, width, config) for _ in range(config.stages))
        self.canonical = half_sides_to_pixels(np.asarray(config.points) / config.scale, input_size)

    @property
    def device(self) -> torch.device:
        """The device of its buffers."""
        return next(self.buffers()).device

    def forward(self, patch_tokens: Tensor, stage: int) -> Tensor:
        """Points (B, P, 2), half-sides of the view, that stage number `stage` predicts from tokens (B, N, D)."""
        return self.stages[stage](patch_tokens)

    def align(
        self,
        starts: Sequence[Array],
        encode: Callable[[list[Array]], Tensor],
        accept: Callable[[int, Array], bool] | None = None,
        steps: Sequence[int] | None = None,
    ) -> tuple[list[Array], list[float]]:
        """Take the steps of the alignment (docs/alignment.md).

        Args:
            starts: for each face the (2, 3) affine from its view to any frame, in which the steps add up.
            encode: patch tokens (B, N, D) of the views with such affines.
            accept: whether a step is taken that leads face number i to that affine; None: each is.
            steps: which of the steps, numbers into `config.steps`; None: all.

        Returns:
            The affine and the residual (see `affines`) of each face after its last step; inf where that was not taken.
        """
        found, residuals = list(starts), [np.inf] * len(starts)
        for step in range(len(self.config.steps)) if steps is None else steps:
            points = self(encode(found).to(self.device), self.config.steps[step])
            for i, (motion, residual) in enumerate(self.affines(points, step)):
                proposed = compose(found[i], motion)
                accepted = accept is None or accept(i, proposed)
                residuals[i] = residual if accepted else np.inf
                if accepted:
                    found[i] = proposed
        return found, residuals

    def affines(self, points: Tensor, step: int) -> list[tuple[Array, float]]:
        """For each face the (2, 3) affine from the canonical view to the current one, input px, and its residual.

        In the first `similarity_steps` steps it is a similarity.

        The residual is the distance, root-mean-square over the points and in half-sides, from the face to its place
        in the canonical view: near 0 once the steps have converged. (The misfit of the affine itself means nothing:
        the stages were fitted to affine motions only, so they predict one whatever the picture shows.)
        """
        found = half_sides_to_pixels(points.cpu().double().numpy(), self.input_size)
        residuals = np.sqrt(((found - self.canonical) ** 2).sum(-1).mean(-1)) * 2 / self.input_size
        fit = fit_similarity if step < self.config.similarity_steps else fit_affine
        return [(fit(self.canonical, face), float(residual)) for face, residual in zip(found, residuals, strict=True)]

    def confidence(self, residual: float) -> float:
        """0..1, from the residual of the last step: 1/2 where it is the configuration's `residual`."""
        return 0.5 ** (residual / self.config.residual) ** 2

    def describe(self, affine: Array, residual: float) -> Alignment:
        """What the whole affine (2, 3), canonical view to starting view in input px, did to the face."""
        return Alignment.of(affine, self.input_size, self.confidence(residual))
