"""Alignment of faces that are squares already: those of a pack, of a report, of held-out faces."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scemae.errors import ImageInputError, OptionError
from scemae.geometry import compose_affines, resample_crops, sample_crops, sample_views
from scemae.model.aligner import Aligned, Aligner, Located
from scemae.model.sce_mae import SceMae
from scemae.training.pack import Pack, write_pack

Locate = Callable[[Tensor, int], Located]  # views (b, 3, V, V), 0..1, and the number of the step
MIN_SCORE = 0.5  # with less, a training face is left out


def align_squares(
    aligner: Aligner, locate: Locate, squares: Tensor, starts: Tensor, steps: Sequence[int] | None = None
) -> Aligned:
    """Align faces in squares (n, 3, S, S), 0..1, by these steps of the aligner; None: all.

    `starts` (n, 2, 3), float64, take pixels of the input to those of the square, as the result does.
    `locate`: what the aligner sees in views (b, 3, V, V) in a step.
    """

    def see(rows: Tensor, affines: Tensor, step: int) -> Located:
        crops = resample_crops(affines, aligner.input_size, aligner.view_size)
        return locate(sample_crops(squares[rows], crops, aligner.view_size), step)

    return aligner.align(starts, see, steps=steps)


def align_pack(model: SceMae, pack: Pack, out: Path, *, steps: int = 4, overwrite: bool = False) -> Pack:
    """Write a pack of the same faces, upright and centred by the last `steps` steps of the model's alignment.

    Faces that are not found are left out and named in the pack. Pixels beyond a square are mirrored.
    Raises OptionError where the model has no aligner, DataError where more than a tenth of the faces is left out or the
    pack is framed for another input size.
    """
    aligner = require_aligner(model)
    pack.check_input_size(model.config.input_size)
    chosen = range(max(aligner.steps - steps, 0), aligner.steps)
    central = torch.from_numpy(pack.central_affine[:2])
    to_whole = torch.from_numpy(np.linalg.inv(pack.central_affine)[:2])

    def iter_upright() -> Iterator[tuple[str, NDArray[np.uint8] | ImageInputError]]:
        for rows in np.array_split(np.arange(len(pack)), math.ceil(len(pack) / 64)):
            pixels = pack.read_squares(rows)
            with torch.inference_mode():
                aligned = align_squares(aligner, model.locate_face, pixels, central.expand(len(rows), 2, 3), chosen)
            whole = compose_affines(aligned.affines, to_whole.expand(len(rows), 2, 3))
            upright = (sample_views(pixels, whole, pack.size) * 255).round().byte().permute(0, 2, 3, 1).numpy()
            scores = aligner.face_scores(aligned.log_errors)
            for row, square, score in zip(rows, upright, scores.tolist(), strict=True):
                failure = ImageInputError(f"{pack.names[row]}: no face was found (score {score:.2f})")
                yield pack.names[row], failure if score < MIN_SCORE else square

    return write_pack(
        out,
        iter_upright(),
        count=len(pack),
        input_size=pack.input_size,
        size=pack.size,
        source=f"{pack.source}, aligned",
        skip_at_most=0.1,
        overwrite=overwrite,
    )


def require_aligner(model: SceMae) -> Aligner:
    """The model's aligner; raises OptionError if there is none."""
    if model.aligner is None:
        raise OptionError(f"Model {model.config.name!r} has no aligner; make one: scemae train align.")
    return model.aligner
