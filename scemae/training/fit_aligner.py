"""The aligner, learned without labels from known motions of roughly aligned faces, closed form (docs/alignment.md).

scemae train align --model MODEL --data PACK --out RUN
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from scemae import draw
from scemae.errors import ImageInputError, OptionError
from scemae.geometry import Array, half_sides_to_pixels, pixels_to_half_sides, sample_views
from scemae.model.aligner import AlignerStage, FaceAligner
from scemae.model.sce_mae import SceMae
from scemae.ridge import CentredSums, solve_ridge
from scemae.training.acceleration import fastest_precision
from scemae.training.engine import hardware
from scemae.training.model_writer import CardSection, circumstances, view_picture, write_model
from scemae.training.motions import Moves, random_motions
from scemae.training.pack import INPUT, Pack, sample_pack, write_pack
from scemae.training.positional_discriminant import Encode, TokenSource, positional_projection, token_encoder
from scemae.training.run_config import AlignConfig
from scemae.training.run_folder import model_written
from scemae.weights.zoo import load_model, locate_model

COPIES = 4  # of each sample face in a picture
SURE = 0.5  # confidence below which a training face counts as lost


@dataclass(frozen=True)
class StageError:
    """Mean distance of the predicted from the true points on held-out views, input px, and where they were unmoved."""

    amplitude: float
    unmoved: float
    predicted: float
    ridge: float


def fit_aligner(model: SceMae, pack: Pack, config: AlignConfig) -> tuple[FaceAligner, list[StageError]]:
    """An aligner for the model's backbone, and the error of each of its stages on faces held out.

    Raises OptionError where the pack has too few faces.
    """
    train, held_out = pack.split(config.held_out, config.seed)
    grid, width = model.backbone.grid, model.config.backbone.width
    aligner = FaceAligner(config.aligner, grid**2, width, INPUT)
    encode = token_encoder(model)
    passes = len(config.amplitudes) * (config.projection_views + config.views + len(held_out))
    errors = []
    with tqdm(total=passes, unit="view", delay=2, disable=None) as bar:
        for number, (stage, amplitude) in enumerate(zip(aligner.stages, config.amplitudes, strict=True)):
            assert isinstance(stage, AlignerStage)
            source = TokenSource(encode, pack, train, config, amplitude, config.batch_size, (config.seed, number), bar)
            unseen = dataclasses.replace(source, faces=held_out, seed=(config.seed, number, 1))
            stage.token_mean, stage.token_projection = positional_projection(
                source, config.projection_views, config.cells, config.projection_dim, config.shrinkage
            )
            errors.append(_fit_regression(stage, source, unseen, aligner.canonical, config))
    return aligner, errors


def _fit_regression(
    stage: AlignerStage, source: TokenSource, unseen: TokenSource, canonical: Array, config: AlignConfig
) -> StageError:
    """Fill the regression of a stage, with the ridge that is best on held-out views."""
    features, outputs = stage.weight.shape
    sums = CentredSums(features, outputs)
    for tokens, moves in source.tokens(config.views, 1):
        sums.add(stage.features(tokens), _targets(moves, canonical))
    mean_x, mean_y, gram, moment = sums.centre()
    stage.feature_mean, stage.bias = mean_x.float(), mean_y.float()
    seen = [(stage.features(tokens), moves) for tokens, moves in unseen.tokens(len(unseen.faces), 2)]
    best = StageError(source.amplitude, float("nan"), math.inf, float("nan"))
    for ridge, weight in zip(config.ridges, solve_ridge(gram, moment, config.ridges, features), strict=True):
        found = [_points((x - stage.feature_mean) @ weight.float() + stage.bias) for x, _ in seen]
        truth = [moves.to_moved(canonical) for _, moves in seen]
        error = _distance(np.concatenate(found), np.concatenate(truth))
        if error < best.predicted:
            best = StageError(source.amplitude, _distance(canonical, np.concatenate(truth)), error, ridge)
            stage.weight = weight.float()
    return best


def _targets(moves: Moves, canonical: Array) -> Tensor:
    """The canonical points in each view (n, 2 P), half-sides."""
    half_sides = pixels_to_half_sides(moves.to_moved(canonical), INPUT)
    return torch.from_numpy(half_sides).float().flatten(1)


def _points(outputs: Tensor) -> Array:
    return half_sides_to_pixels(outputs.unflatten(1, (-1, 2)).numpy(), INPUT)


def _distance(found: Array, truth: Array) -> float:
    return float(np.linalg.norm(found - truth, axis=-1).mean())


def align_views(
    aligner: FaceAligner, encode: Encode, squares: Tensor, to_square: Array, steps: Sequence[int]
) -> tuple[Array, Array]:
    """Align views of squares (n, 3, S, S), 0..1, by these steps, numbers into the aligner's `steps`.

    `to_square` (n, 3, 3) takes pixels of each view to pixels of its square, before; returned are the same after, and
    the confidences (n,).
    """

    def encode_views(affines: list[Array]) -> Tensor:
        return encode(sample_views(squares, torch.from_numpy(np.stack(affines)), INPUT))

    aligned = np.tile(np.eye(3), (len(squares), 1, 1))
    aligned[:, :2], residuals = aligner.align(list(to_square[:, :2]), encode_views, steps=steps)
    return aligned, np.array([aligner.confidence(residual) for residual in residuals])


def align_pack(model: SceMae, pack: Pack, out: Path, *, steps: int = 4, overwrite: bool = False) -> Pack:
    """Write a pack of the same faces upright and centred: the model's last `steps` alignment steps, from the centre.

    Faces that the alignment loses are left out and named in the pack. Pixels beyond a square are mirrored.
    Raises OptionError where the model has no aligner, DataError where more than a tenth of the faces is lost.
    """
    aligner = require_aligner(model)
    encode, total = token_encoder(model), len(aligner.config.steps)

    def squares() -> Iterator[tuple[str, NDArray[np.uint8] | ImageInputError]]:
        for rows in np.array_split(np.arange(len(pack)), math.ceil(len(pack) / 64)):
            pixels = pack.pixels(rows)
            starts = np.tile(pack.central, (len(rows), 1, 1))
            found, confidences = align_views(aligner, encode, pixels, starts, range(max(total - steps, 0), total))
            whole = torch.from_numpy((found @ np.linalg.inv(pack.central))[:, :2])
            upright = (sample_views(pixels, whole, pack.size) * 255).round().byte().permute(0, 2, 3, 1).numpy()
            for row, square, confidence in zip(rows, upright, confidences, strict=True):
                lost = ImageInputError(f"{pack.names[row]}: the alignment lost the face (confidence {confidence:.2f})")
                yield pack.names[row], square if confidence >= SURE else lost

    return write_pack(out, squares(), len(pack), pack.size, f"{pack.source}, aligned", 0.1, overwrite)


def require_aligner(model: SceMae) -> FaceAligner:
    """The model's aligner; raises OptionError where there is none."""
    if model.aligner is None:
        raise OptionError(f"Model {model.config.name!r} has no aligner; make one: scemae train align.")
    return model.aligner


def before_and_after(aligner: FaceAligner, encode: Encode, config: AlignConfig) -> Image.Image:
    """Sample faces, moved at full amplitude, and below them what all steps of the alignment make of these views."""
    pack = sample_pack()
    rows = np.tile(np.arange(len(pack)), COPIES)
    motions = random_motions(np.random.default_rng(config.seed), len(rows), config, amplitude=1.0)
    pixels, starts = pack.pixels(rows), pack.central @ motions
    ends, _ = align_views(aligner, encode, pixels, starts, range(len(aligner.config.steps)))
    views = [sample_views(pixels, torch.from_numpy(affines[:, :2]), INPUT) for affines in (starts, ends)]
    return draw.stack_rows([draw.row([view_picture(view) for view in row]) for row in views])


def train_align(
    source: str,
    pack: Pack,
    config: AlignConfig,
    out: Path,
    label: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> list[StageError]:
    """Fit an aligner for the model `source` and write `out`/model: that model with this aligner.

    `label`: fields of its configuration that shall be others. Raises RunError where `out` is in use or holds a model.
    """
    start = time.monotonic()
    model = load_model(source)
    with model_written(out, overwrite) as folder:
        aligner, errors = fit_aligner(model, pack, config)
        encode = token_encoder(model)
        rows = {
            f"stage {number}, amplitude {error.amplitude:g}": f"points {error.unmoved:.2f} px from where they were, "
            f"{error.predicted:.2f} px from where they were predicted (held-out faces, ridge {error.ridge:g})"
            for number, error in enumerate(errors)
        }
        machine = hardware(model.device, 1, fastest_precision(model.device))
        rows |= circumstances((time.monotonic() - start) / 3600, machine)
        pictures = {"before and after": before_and_after(aligner, encode, config)}
        described = dataclasses.replace(model.config, aligner=config.aligner, **(label or {}))
        tensors = {name: t for name, t in model.state_dict().items() if not name.startswith("aligner.")}
        tensors |= {f"aligner.{name}": tensor for name, tensor in aligner.state_dict().items()}
        chapter = CardSection("alignment", rows, config, pictures)
        write_model(folder, described, tensors, chapter, locate_model(source).folder)
    return errors
