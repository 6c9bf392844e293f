"""Configurations of what learns from perturbed views: the aligner and the face finder (ours, not in the paper)."""

from __future__ import annotations

from dataclasses import dataclass

from scemae.training.run_config import RunConfig
from scemae.training.training_config import MotionConfig, option

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
class AlignConfig(MotionConfig, RunConfig):
    """The aligner, learned without labels (docs/alignment.md; ours, not in the paper)."""

    batch_size: int = 256
    steps: int = 12_000
    learning_rate: float = 2e-3
    warmup: float = 0.02
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 1e-2
    clip_norm: float | None = 5.0
    refine: bool = option(
        False, "Start from what the model has, its normalisation folded in, instead of random weights."
    )
    view_size: int = option(64, "Side of the views that the aligner sees, px.")
    widths: tuple[int, ...] = option((16, 32, 64, 96, 160), "Channels of its convolutions.")
    squeezed: int = option(32, "Channels that the last map is reduced to.")
    hidden: int = option(256, "Numbers in the layer before the outputs.")
    wide: float = option(0.6, "Fraction of the views with any roll, --scales, and shifts up to --farthest.")
    scales: tuple[float, float] = option((0.4, 2.5), "Smallest and largest side of a wide view, in sides of the face.")
    farthest: float = option(1.0, "Largest shift of a wide view along each axis, in half-sides of the face.")
    growing: tuple[float, float] = option(
        (0.6, 1.8), "Scales between which the largest shift grows with the scale, so that smaller views shift less."
    )
    negatives: float = option(0.15, "Fraction of the views that show a background, or a small piece of a face.")
    grey: float = option(0.2, "Fraction of the views without colour.")
    hidden_part: float = option(0.3, "Fraction of the views of which a part is hidden.")
    background_squares: int = option(8192, "Squares cut out of the pictures of --backgrounds.")
    alignment_steps: int = option(3, "Steps that the alignment takes at most.")
    similarity_steps: int = option(0, "Number of initial steps that only rotate, scale and shift.")
    settled: float = option(0.15, "A step that moves the points by less, half-sides (rms), is the last one.")
    face_share: float = option(
        0.05, "Share of the squares looked at that show a face, for which the score is a probability."
    )
    held_out: int = option(1000, "Faces held out to measure the error and to set the threshold of the verdict.")

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_at_least_1("view_size", "squeezed", "hidden", "alignment_steps", "held_out", "background_squares")
        self._check("widths", "one number at least, all at least 1", min(self.widths, default=0) >= 1)
        self._check("scales", "two rising numbers above 0", 0 < self.scales[0] < self.scales[1])
        self._check("face_share", "above 0 and below 1", 0 < self.face_share < 1)
        for name in ("wide", "negatives", "grey", "hidden_part"):
            self._check(name, "in 0..1", 0 <= getattr(self, name) <= 1)


@dataclass(frozen=True, kw_only=True)
class FindConfig(AlignConfig):
    """The first look for faces in whole pictures, learned without labels (docs/find.md; ours, not in the paper)."""

    batch_size: int = 128
    steps: int = 4000
    view_size: int = 96
    wide: float = 1.0
    scales: tuple[float, float] = (1.9, 7.0)
    growing: tuple[float, float] = (0.0, 10.0)
    negatives: float = 0.3
    finder_widths: tuple[int, int, int] = option((16, 32, 64), "Channels of the finder at strides of 2, 4 and 8 px.")
    sides: tuple[float, float] = option((18.0, 40.0), "Smallest and largest side of the faces that it sees, px.")
    unsure: float = option(1.25, "Sides up to so many times smaller or larger are neither faces nor not.")
