"""The aligner of model folders that scemae 0.1.0 wrote: patch tokens of a view -> the canonical points in it.

Each stage is a linear projection of the tokens and a linear regression to the points. Such folders are still read and
run; `scemae train align` makes the convolutional `FaceAligner`, which also tells whether there is a face.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from scemae.model.aligner import Aligner
from scemae.model.config import TokenAlignerConfig


class AlignerStage(nn.Module):
    """Patch tokens (B, N, D) -> points (B, P, 2) in half-sides of the view."""

    token_mean: Tensor
    token_projection: Tensor
    feature_mean: Tensor
    weight: Tensor
    bias: Tensor

    def __init__(self, tokens: int, width: int, config: TokenAlignerConfig) -> None:
        super().__init__()
        features, outputs = tokens * config.projection_dim, 2 * len(config.points)
        self.register_buffer("token_mean", torch.zeros(width))
        self.register_buffer("token_projection", torch.zeros(width, config.projection_dim))
        self.register_buffer("feature_mean", torch.zeros(features))
        self.register_buffer("weight", torch.zeros(features, outputs))
        self.register_buffer("bias", torch.zeros(outputs))

    def forward(self, patch_tokens: Tensor) -> Tensor:
        """Where the canonical points lie, (B, P, 2), in the view that the tokens (B, N, D) come from."""
        features = ((patch_tokens - self.token_mean) @ self.token_projection).flatten(1)
        return ((features - self.feature_mean) @ self.weight + self.bias).unflatten(1, (-1, 2))


class TokenAligner(Aligner):
    """The stages; each step uses one of them."""

    def __init__(self, config: TokenAlignerConfig, tokens: int, width: int, input_size: int) -> None:
        super().__init__(config, input_size, input_size)
        self.config = config
        self.stages = nn.ModuleList(AlignerStage(tokens, width, config) for _ in range(config.stages))

    def forward(self, patch_tokens: Tensor, step: int) -> Tensor:
        """Points (B, P, 2), half-sides of the view, that a step predicts from its tokens (B, N, D)."""
        return self.stages[self.config.steps[step]](patch_tokens)

    @property
    def steps(self) -> int:
        return len(self.config.steps)

    def has_settled(self, points: Tensor, log_errors: Tensor) -> Tensor:
        return torch.zeros_like(log_errors, dtype=torch.bool)

    def face_scores(self, log_errors: Tensor) -> Tensor:
        return torch.full_like(log_errors, torch.nan)
