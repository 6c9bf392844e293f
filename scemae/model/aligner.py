"""Alignment learned without labels: a view of a face -> where the face lies in it, and how far off that may be.

Not in the paper. One small convolutional network finds seven places of the canonical frame in a view that shows the
face at any roll; a few steps of it lead to the affine that puts the face upright and centred. It was learned from known
random perturbations of roughly aligned faces (docs/alignment.md).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from scemae.geometry import (
    Alignment,
    Array,
    Crop,
    compose_affines,
    fit_affine,
    fit_similarity,
    half_sides_to_pixels,
    similarity,
)
from scemae.model.config import AlignerConfig, TokenAlignerConfig
from scemae.model.convolutions import convolution, fold_norms

ZOOM = (0.25, 4.0)  # an alignment that rescales by less or more has lost the face
MEAN, STD = 0.5, 0.25  # of the pixels that the network sees
COARSEST = 4  # cells: side of the smallest map, so that places are still told apart
LOST = 4.0  # log error of a face whose last step was not taken; the network's own end there
# Other starts of a face that was not found: sides, in sides of its square, and shifts of the centre, in the same.
OTHER_STARTS = {
    1.7: ((0, 0),),
    0.6: ((0, 0),),
    1.3: ((-0.4, 0), (0.4, 0), (0, -0.4), (0, 0.4), (-0.35, -0.35), (0.35, -0.35), (-0.35, 0.35), (0.35, 0.35)),
}


def is_plausible(determinant: Any, centre: Any, extent: Any) -> Any:
    """Whether an alignment may have found the face; numpy or torch, for one face or many (B,).

    `determinant` (B,): of the affine from the aligned crop to the starting one, which has to keep handedness and to
    rescale within `ZOOM`. `centre` (B, 2): of the aligned crop, in pixels of a picture of `extent` = (width, height),
    in which it has to lie.
    """
    inside = ((centre >= -0.5) & (centre <= extent - 0.5)).all(-1)
    return (determinant >= ZOOM[0] ** 2) & (determinant <= ZOOM[1] ** 2) & inside


def other_starts(crop: Crop) -> list[Crop]:
    """Where a face that was not found from `crop` is sought again (`OTHER_STARTS`)."""
    middle = np.full(2, (crop.size - 1) / 2)
    return [
        crop.refine(similarity(0.0, scale, middle, crop.size * np.array(shift)))
        for scale, shifts in OTHER_STARTS.items()
        for shift in shifts
    ]


class Located(NamedTuple):
    """Where faces lie in views, as an aligner sees it.

    Attributes:
        points: (B, P, 2), the canonical points, in half-sides of the view (-1..1, y downwards).
        log_errors: (B,), the logarithm of the mean distance that these points are expected to be off, in half-sides.
    """

    points: Tensor
    log_errors: Tensor


class Aligned(NamedTuple):
    """Where the steps of an alignment led.

    Attributes:
        affines: (B, 2, 3), float64, from pixels of the aligned view to the frame of the starts.
        log_errors: (B,), what the last step expected of itself; `LOST` where it was not taken.
    """

    affines: Tensor
    log_errors: Tensor


class Aligner(nn.Module):
    """The steps that lead from the points of an aligner to an aligned view.

    Attributes:
        input_size: side of the views that affines speak of, px.
        view_size: side of the views that it sees, px: the same squares, resampled.
    """

    def __init__(self, config: AlignerConfig | TokenAlignerConfig, input_size: int, view_size: int) -> None:
        super().__init__()
        self.input_size, self.view_size = input_size, view_size
        self.similarity_steps = config.similarity_steps
        # A least-squares fit to fixed points is linear in what is fitted: probing it with unit vectors gives all of it.
        canonical, count = np.asarray(config.points) / config.scale, len(config.points)
        probes = np.concatenate([np.zeros((1, 2 * count)), np.eye(2 * count)]).reshape(-1, count, 2)
        source, targets = (half_sides_to_pixels(places, input_size) for places in (canonical, probes))
        fits = [np.stack([fit(source, target) for target in targets]) for fit in (fit_similarity, fit_affine)]
        linear = torch.from_numpy(np.stack(fits))
        # No buffers: they stay float64, and on the CPU, where the steps add up.
        self.constants = linear[:, 0]  # (2, 2, 3): similarity, affine
        self.slopes = linear[:, 1:] - linear[:, :1]  # (2, 2 P, 2, 3)

    @property
    def steps(self) -> int:
        """How many steps it takes at most."""
        raise NotImplementedError

    def motion(self, points: Tensor, step: int) -> Tensor:
        """The affines (B, 2, 3), float64, input px, from the canonical view to that with these points (B, P, 2).

        Least squares; in the first `similarity_steps` steps a rotation, scale and shift. Shear and aspect are hard to
        see, and errors in them take many steps to undo while the face is still askew.
        """
        kind = int(step >= self.similarity_steps)
        flat = points.cpu().double().flatten(1)
        return self.constants[kind] + torch.einsum("bp,prc->brc", flat, self.slopes[kind])

    def has_settled(self, points: Tensor, log_errors: Tensor) -> Tensor:
        """Which faces (B,) the next step would hardly move."""
        raise NotImplementedError

    def align(
        self,
        starts: Tensor,
        locate: Callable[[Tensor, Tensor, int], Located],
        accept: Callable[[Tensor, Tensor], Tensor] | None = None,
        steps: Sequence[int] | None = None,
        hopeless: float = LOST,
    ) -> Aligned:
        """Take the steps of the alignment (docs/alignment.md).

        Args:
            starts: (B, 2, 3), the affine of each face from its view to any frame, in which the steps add up.
            locate: `locate(rows, affines, step)`, what the aligner sees in the views of the faces number `rows` (b,)
                with these affines (b, 2, 3).
            accept: `accept(rows, affines)` (b,): which steps are taken, those that lead to these affines; None: all.
            steps: which of the steps; None: all.
            hopeless: the log error from which on no further step is taken.
        """
        affines, log_errors = starts.clone(), torch.full((len(starts),), LOST, dtype=torch.float64)
        rows = torch.arange(len(starts))
        for step in range(self.steps) if steps is None else steps:
            if not len(rows):
                break
            points, errors = (part.double().cpu() for part in locate(rows, affines[rows], step))
            proposed = compose_affines(affines[rows], self.motion(points, step))
            accepted = torch.ones(len(rows), dtype=torch.bool) if accept is None else accept(rows, proposed)
            affines[rows[accepted]] = proposed[accepted]
            log_errors[rows] = torch.where(accepted, errors, LOST)
            rows = rows[~(accepted & self.has_settled(points, errors)) & ~(errors >= hopeless)]
        return Aligned(affines, log_errors)

    def face_scores(self, log_errors: Tensor) -> Tensor:
        """The probability (B,) that the aligned view shows a face; nan if the aligner cannot tell."""
        raise NotImplementedError

    def describe(self, affine: Array) -> Alignment:
        """What the whole affine (2, 3), canonical view to starting view in input px, did to the face."""
        return Alignment.of(affine, self.input_size)


class FaceAligner(Aligner):
    """The convolutional aligner: views (B, 3, V, V), RGB 0..1, to `Located`.

    `norm`: with batch normalisation, as it is trained; a model has it folded into the convolutions (`fold_norms`).
    """

    canonical: Tensor

    def __init__(self, config: AlignerConfig, input_size: int, norm: bool = False) -> None:
        super().__init__(config, input_size, config.view_size)
        self.config = config
        self.register_buffer("canonical", torch.tensor(config.points).div(config.scale), persistent=False)
        layers, side = convolution(3, config.widths[0], 2, norm), -(-config.view_size // 2)
        for before, width in zip(config.widths, config.widths[1:], strict=False):
            stride = 2 if side > COARSEST else 1
            layers += convolution(before, width, stride, norm) + convolution(width, width, 1, norm)
            side = -(-side // stride)
        layers += [nn.Conv2d(config.widths[-1], config.squeezed, 1), nn.Flatten()]
        layers += [nn.Linear(config.squeezed * side**2, config.hidden), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(config.hidden, 2 * len(config.points) + 1))

    def forward(self, views: Tensor) -> Located:
        """See `Located`."""
        outputs = self.layers((views - MEAN) / STD).float()
        return Located(outputs[:, :-1].unflatten(1, (-1, 2)), outputs[:, -1].clamp(-LOST * 2, LOST))

    @property
    def steps(self) -> int:
        return self.config.steps

    def has_settled(self, points: Tensor, log_errors: Tensor) -> Tensor:
        residual = (points - self.canonical.to(points)).square().sum(-1).mean(-1).sqrt()
        return (residual < self.config.settled) & (log_errors < self.config.threshold)

    def face_scores(self, log_errors: Tensor) -> Tensor:
        return torch.sigmoid((self.config.threshold - log_errors) * self.config.slope)

    def fold_norms(self) -> FaceAligner:
        """The same function in evaluation mode, without batch normalisation."""
        folded = FaceAligner(self.config, self.input_size)
        folded.layers.load_state_dict(fold_norms(self.layers).state_dict())
        return folded
