"""Configurations of the trainings in closed form: the positional discriminant and the aligner."""

from __future__ import annotations

from dataclasses import dataclass

from scemae.errors import OptionError
from scemae.model.config import AlignerConfig
from scemae.training.training_config import MotionConfig, option


@dataclass(frozen=True, kw_only=True)
class DiscriminantConfig(MotionConfig):
    """The positional discriminant: a projector in closed form, from moved faces (ours, not in the paper)."""

    projector_dim: int = option(64, "Dimensions of the projected features.")
    amplitude: float = option(1.0, "How far faces are moved, see --rotation.")
    views: int = option(6000, "Moved views that the projector is learned from.")
    cells: int = option(20, "Classes of position along one axis of the face.")
    shrinkage: float = option(0.1, "Multiple of its mean variance added to the scatter within the classes.")
    batch_size: int = option(256, "Views encoded at a time.")
    held_out: int = option(200, "Faces held out to measure the matching error between them and warped copies of them.")
    seed: int = option(0, "Seed of the held-out faces, the order of the others and their motions.")

    def __post_init__(self) -> None:
        self._check_at_least_1("projector_dim", "views", "cells", "batch_size")
        self._check("amplitude", "above 0: faces that do not move teach only the place", self.amplitude > 0)


CANONICAL_POINTS = (  # places of the canonical view, half-sides: brows, nose, mouth corners, chin, forehead
    (-0.4, -0.4),
    (0.4, -0.4),
    (0.0, 0.06),
    (-0.32, 0.47),
    (0.32, 0.47),
    (0.0, 0.88),
    (0.0, -0.82),
)


@dataclass(frozen=True, kw_only=True)
class AlignConfig(MotionConfig):
    """The aligner, learned without labels (docs/alignment.md; ours, not in the paper)."""

    amplitudes: tuple[float, ...] = option((1.0, 0.5, 0.3), "How far faces are moved, one trained stage for each.")
    steps: tuple[int, ...] = option((0, 0, 0, 1, 1, 2, 2, 2, 2), "Stage that each step of the alignment uses, from 0.")
    similarity_steps: int = option(5, "Number of initial steps that only rotate, scale and shift.")
    residual: float = option(
        0.05, "Movement in the last step, in half-sides of the view, that means a confidence of one half."
    )
    projection_dim: int = option(24, "Dimensions that each token is projected to.")
    cells: int = option(16, "Classes of position along one axis of the face, for that projection.")
    shrinkage: float = option(0.1, "Multiple of its mean variance added to the scatter within the classes.")
    projection_views: int = option(2000, "Moved views that each stage's projection is learned from.")
    views: int = option(16_000, "Moved views that each stage's regression is learned from.")
    ridges: tuple[float, ...] = option(
        (0.1, 0.3, 1.0), "Ridge penalties tried on the held-out faces, as multiples of the mean variance."
    )
    held_out: int = option(1000, "Faces held out to choose the ridge penalty and to measure the error.")
    batch_size: int = option(100, "Views encoded at a time.")
    seed: int = option(0, "Seed of the held-out faces, the order of the others and their motions.")

    def __post_init__(self) -> None:
        if not self.steps or not self.amplitudes or sorted(set(self.steps)) != list(range(len(self.amplitudes))):
            raise OptionError(
                f"steps {self.steps} must use each of the {len(self.amplitudes)} stages (amplitudes), counted from 0."
            )
        self._check_at_least_1("projection_views", "views", "held_out", "batch_size")

    @property
    def aligner(self) -> AlignerConfig:
        """What the model's config.json says of the aligner."""
        return AlignerConfig(
            points=CANONICAL_POINTS,
            scale=1.0,
            steps=self.steps,
            similarity_steps=self.similarity_steps,
            projection_dim=self.projection_dim,
            residual=self.residual,
        )
