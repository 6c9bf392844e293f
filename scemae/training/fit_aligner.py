"""The aligner, learned without labels from known motions of roughly aligned faces, in closed form (docs/alignment.md).

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
from scemae.training.acceleration import choose_precision
from scemae.training.closed_form_config import AlignConfig
from scemae.training.discriminant import learn_projection
from scemae.training.engine import describe_hardware
from scemae.training.model_writer import CardSection, describe_run, draw_view, write_model
from scemae.training.motions import Encode, Moves, TokenSource, random_motions, token_encoder
from scemae.training.pack import Pack, sample_pack, write_pack
from scemae.training.run_folder import create_model_folder
from scemae.weights.zoo import load_model, locate_model

COPIES_SHOWN = 4  # of each sample face in a picture
MIN_CONFIDENCE = 0.5  # with less, a training face is left out


@dataclass(frozen=True, kw_only=True)
class StageError:
    """Error of a stage on moved views of held-out faces: mean distances from the true points, input px."""

    amplitude: float  # of the motions
    unmoved: float  # of the points of the canonical view: without alignment
    predicted: float  # of the predicted points
    ridge: float  # the penalty with which the prediction is best


def fit_aligner(model: SceMae, pack: Pack, config: AlignConfig) -> tuple[FaceAligner, list[StageError]]:
    """An aligner for the model's backbone, and the error of each of its stages on held-out faces.

    Raises DataError where the pack has too few faces or is framed for another input size.
    """
    pack.check_input_size(model.config.input_size)
    train, held_out = pack.split(config.held_out, config.seed)
    grid, width = model.backbone.grid, model.config.backbone.width
    aligner = FaceAligner(config.aligner, grid**2, width, pack.input_size)
    encode = token_encoder(model)
    passes = len(config.amplitudes) * (config.projection_views + config.views + len(held_out))
    errors = []
    with tqdm(total=passes, unit="view", delay=2, disable=None) as bar:
        for number, (stage, amplitude) in enumerate(zip(aligner.stages, config.amplitudes, strict=True)):
            assert isinstance(stage, AlignerStage)
            source = TokenSource(
                encode=encode,
                pack=pack,
                faces=train,
                config=config,
                amplitude=amplitude,
                batch_size=config.batch_size,
                seed=(config.seed, number),
                bar=bar,
            )
            unseen = dataclasses.replace(source, faces=held_out, seed=(config.seed, number, 1))
            stage.token_mean, stage.token_projection = learn_projection(
                source,
                views=config.projection_views,
                cells=config.cells,
                dim=config.projection_dim,
                shrinkage=config.shrinkage,
            )
            errors.append(_fit_regression(stage, source, unseen, aligner.canonical, config))
    return aligner, errors


def _fit_regression(
    stage: AlignerStage, source: TokenSource, unseen: TokenSource, canonical: Array, config: AlignConfig
) -> StageError:
    """Fill the regression of a stage, with the ridge penalty that is best on held-out views."""
    size = source.pack.input_size
    features, outputs = stage.weight.shape
    sums = CentredSums(features, outputs)
    for tokens, moves in source.iter_tokens(config.views, 1):
        sums.add(stage.features(tokens), _targets(moves, canonical, size))
    mean_x, mean_y, gram, moment = sums.centre()
    stage.feature_mean, stage.bias = mean_x.float(), mean_y.float()
    held_out = [(stage.features(tokens), moves) for tokens, moves in unseen.iter_tokens(len(unseen.faces), 2)]
    truth = np.concatenate([moves.to_moved(canonical) for _, moves in held_out])
    tried = []
    for ridge, weight in zip(config.ridges, solve_ridge(gram, moment, config.ridges, features), strict=True):
        found = [_points((x - stage.feature_mean) @ weight.float() + stage.bias, size) for x, _ in held_out]
        tried.append((_mean_distance(np.concatenate(found), truth), ridge, weight.float()))
    error, ridge, stage.weight = min(tried, key=lambda result: result[0])
    unmoved = _mean_distance(canonical, truth)
    return StageError(amplitude=source.amplitude, unmoved=unmoved, predicted=error, ridge=ridge)


def _targets(moves: Moves, canonical: Array, size: int) -> Tensor:
    """The canonical points in each view (n, 2 P), half-sides."""
    half_sides = pixels_to_half_sides(moves.to_moved(canonical), size)
    return torch.from_numpy(half_sides).float().flatten(1)


def _points(outputs: Tensor, size: int) -> Array:
    """Undoes `_targets`' encoding: (n, P, 2), input px."""
    return half_sides_to_pixels(outputs.unflatten(1, (-1, 2)).numpy(), size)


def _mean_distance(found: Array, truth: Array) -> float:
    return float(np.linalg.norm(found - truth, axis=-1).mean())


def align_views(
    aligner: FaceAligner, encode: Encode, squares: Tensor, to_square: Array, steps: Sequence[int]
) -> tuple[Array, Array]:
    """Align views of squares (n, 3, S, S), 0..1, by these steps, numbers into the aligner's `steps`.

    `to_square` (n, 3, 3) takes pixels of each view to pixels of its square, before; returned are the same after, and
    the confidences (n,).
    """

    def encode_views(affines: list[Array]) -> Tensor:
        return encode(sample_views(squares, torch.from_numpy(np.stack(affines)), aligner.input_size))

    aligned = np.tile(np.eye(3), (len(squares), 1, 1))
    aligned[:, :2], residuals = aligner.align(list(to_square[:, :2]), encode_views, steps=steps)
    return aligned, np.array([aligner.confidence(residual) for residual in residuals])


def align_pack(model: SceMae, pack: Pack, out: Path, *, steps: int = 4, overwrite: bool = False) -> Pack:
    """Write a pack of the same faces, upright and centred by the last `steps` steps of the model's alignment.

    Faces whose alignment is not confident are left out and named in the pack. Pixels beyond a square are mirrored.
    Raises OptionError where the model has no aligner, DataError where more than a tenth of the faces is left out or the
    pack is framed for another input size.
    """
    aligner = require_aligner(model)
    pack.check_input_size(model.config.input_size)
    encode, total = token_encoder(model), len(aligner.config.steps)

    def iter_upright() -> Iterator[tuple[str, NDArray[np.uint8] | ImageInputError]]:
        for rows in np.array_split(np.arange(len(pack)), math.ceil(len(pack) / 64)):
            pixels = pack.read_squares(rows)
            starts = np.tile(pack.central_affine, (len(rows), 1, 1))
            found, confidences = align_views(aligner, encode, pixels, starts, range(max(total - steps, 0), total))
            whole = torch.from_numpy((found @ np.linalg.inv(pack.central_affine))[:, :2])
            upright = (sample_views(pixels, whole, pack.size) * 255).round().byte().permute(0, 2, 3, 1).numpy()
            for row, square, confidence in zip(rows, upright, confidences, strict=True):
                failure = ImageInputError(f"{pack.names[row]}: the alignment failed (confidence {confidence:.2f})")
                yield pack.names[row], square if confidence >= MIN_CONFIDENCE else failure

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


def require_aligner(model: SceMae) -> FaceAligner:
    """The model's aligner; raises OptionError if there is none."""
    if model.aligner is None:
        raise OptionError(f"Model {model.config.name!r} has no aligner; make one: scemae train align.")
    return model.aligner


def draw_before_and_after(aligner: FaceAligner, encode: Encode, config: AlignConfig) -> Image.Image:
    """Sample faces, moved at full amplitude, and below them the same after all steps of the alignment."""
    size = aligner.input_size
    pack = sample_pack(size)
    rows = np.tile(np.arange(len(pack)), COPIES_SHOWN)
    rng = np.random.default_rng(config.seed)
    motions = random_motions(rng, len(rows), config, amplitude=1.0, input_size=size)
    pixels, starts = pack.read_squares(rows), pack.central_affine @ motions
    ends, _ = align_views(aligner, encode, pixels, starts, range(len(aligner.config.steps)))
    views = [sample_views(pixels, torch.from_numpy(affines[:, :2]), size) for affines in (starts, ends)]
    return draw.stack_rows([draw.row([draw_view(view) for view in row]) for row in views])


def train_align(
    source: str,
    pack: Pack,
    config: AlignConfig,
    out: Path,
    card_fields: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> list[StageError]:
    """Fit an aligner for the model `source` and write `out`/model: that model with this aligner.

    `card_fields`: fields of its configuration to change. Raises RunError where `out` is in use or holds a model.
    """
    start = time.monotonic()
    model = load_model(source)
    with create_model_folder(out, overwrite) as folder:
        aligner, errors = fit_aligner(model, pack, config)
        encode = token_encoder(model)
        rows = {
            f"stage {number}, amplitude {error.amplitude:g}": f"points moved by {error.unmoved:.2f} px, predicted to "
            f"{error.predicted:.2f} px (held-out faces, ridge {error.ridge:g})"
            for number, error in enumerate(errors)
        }
        hardware = describe_hardware(model.device, 1, choose_precision(model.device))
        rows |= describe_run((time.monotonic() - start) / 3600, hardware)
        pictures = {"before and after": draw_before_and_after(aligner, encode, config)}
        model_config = dataclasses.replace(model.config, aligner=config.aligner, **(card_fields or {}))
        tensors = {name: t for name, t in model.state_dict().items() if not name.startswith("aligner.")}
        tensors |= {f"aligner.{name}": tensor for name, tensor in aligner.state_dict().items()}
        section = CardSection(title="alignment", rows=rows, config=config, pictures=pictures)
        write_model(folder, model_config, tensors, section, locate_model(source).folder)
    return errors
