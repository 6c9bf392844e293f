"""Configuration of the training in closed form: the positional discriminant."""

from __future__ import annotations

from dataclasses import dataclass

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
