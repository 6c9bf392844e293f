"""Alignment learned without labels: patch tokens of a view -> the affine that puts the face upright and centred.

Not in the paper. Each stage is a linear projection of the tokens and a linear regression to seven places of the
canonical frame; it was learned from known random perturbations of roughly aligned faces (docs/alignment.md).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from scemae.geometry import Alignment, Array, fit_affine, fit_similarity, half_sides_to_pixels
from scemae.model.config import AlignerConfig


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
        """What the regression reads (B, N * projection_dim): the tokens (B, N, D), projected, one after the other."""
        return ((patch_tokens - self.token_mean) @ self.token_projection).flatten(1)

    def forward(self, patch_tokens: Tensor) -> Tensor:
        """Points (B, P, 2): where the canonical points lie in the view that the tokens (B, N, D) are of."""
        centred = self.features(patch_tokens) - self.feature_mean
        points: Tensor = (centred @ self.weight + self.bias).unflatten(1, (-1, 2))
        return points


class FaceAligner(nn.Module):
    """The stages, and the step from their points to an affine."""

    def __init__(self, config: AlignerConfig, tokens: int, width: int, input_size: int) -> None:
        super().__init__()
        self.config = config
        self.input_size = input_size
        self.stages = nn.ModuleList(AlignerStage(tokens, width, config) for _ in range(config.stages))
        self.canonical = half_sides_to_pixels(np.asarray(config.points) / config.scale, input_size)

    @property
    def device(self) -> torch.device:
        """Where its numbers are."""
        return next(self.buffers()).device

    def forward(self, patch_tokens: Tensor, stage: int) -> Tensor:
        """Points (B, P, 2), half-sides of the view, that stage number `stage` predicts from tokens (B, N, D)."""
        points: Tensor = self.stages[stage](patch_tokens)
        return points

    def affines(self, points: Tensor, step: int) -> list[tuple[Array, float]]:
        """For each face the (2, 3) affine from the canonical view to the present one, input px, and its residual.

        It is a similarity in the first `similarity_steps` steps.

        The residual is how far, root-mean-square over the points and in half-sides, the face still is from where the
        canonical view has it: near 0 once the steps have converged. (The misfit of the affine itself says nothing:
        the stages were fitted to affine motions only, so what they predict is one, whatever the picture shows.)
        """
        found = half_sides_to_pixels(points.cpu().double().numpy(), self.input_size)
        residuals = np.sqrt(((found - self.canonical) ** 2).sum(-1).mean(-1)) * 2 / self.input_size
        fit = fit_similarity if step < self.config.similarity_steps else fit_affine
        return [(fit(self.canonical, face), float(residual)) for face, residual in zip(found, residuals, strict=True)]

    def describe(self, affine: Array, residual: float) -> Alignment:
        """What the whole affine (2, 3), canonical view to starting view in input px, did to the face."""
        return Alignment.of(affine, self.input_size, confidence=0.5 ** (residual / self.config.residual) ** 2)
