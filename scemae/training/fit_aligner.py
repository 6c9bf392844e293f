"""The aligner, learned without labels from known perturbations of roughly aligned faces (docs/alignment.md).

scemae train align --model MODEL --data PACK --backgrounds FOLDER --out RUN
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from scemae import draw
from scemae.errors import DataError, ImageInputError, OptionError
from scemae.geometry import (
    Array,
    apply_affines,
    compose_affines,
    determinants,
    half_side_to_pixel_affines,
    half_sides_to_pixels,
    invert_affines,
    resample_crops,
    sample_crops,
    sample_views,
)
from scemae.images import iter_photos
from scemae.model.aligner import Aligned, Aligner, FaceAligner, Located
from scemae.model.config import AlignerConfig
from scemae.model.sce_mae import SceMae
from scemae.training.batches import Batches
from scemae.training.model_writer import CardSection, draw_view, write_model
from scemae.training.pack import Pack, sample_pack, write_pack
from scemae.training.perturbation_config import CANONICAL_POINTS, AlignConfig
from scemae.training.perturbed_views import (
    Perturbations,
    cut_backgrounds,
    draw_affines,
    draw_fields,
    locate_canonical,
    render_views,
)
from scemae.training.recipe import History
from scemae.weights.zoo import load_model, locate_model

Network = TypeVar("Network", bound=nn.Module)
Locate = Callable[[Tensor, int], Located]  # views (b, 3, V, V), 0..1, and the number of the step
PHOTO = 192  # px: side of the pictures in which the threshold of the verdict is set
COPIES_SHOWN = 4  # of each sample face in a picture
LOST_ERROR = 1.0  # half-sides: what a view without a face counts as
FOUND_ERROR = 0.15  # half-sides: up to this error of its points an aligned face counts as found
MIN_SCORE = 0.5  # with less, a training face is left out


class AlignerLoss(nn.Module):
    """The aligner as it is trained, and the loss: the log-likelihood of Laplace-distributed distances."""

    def __init__(self, aligner: FaceAligner) -> None:
        super().__init__()
        self.aligner = aligner

    def forward(self, views: Tensor, points: Tensor, is_face: Tensor) -> dict[str, Tensor]:
        """Views (n, 3, V, V), 0..1, where the canonical points lie (n, P, 2), and which show a face (n,)."""
        located = self.aligner(views)
        distance = torch.where(is_face, mean_distance(located.points, points), LOST_ERROR)
        return {"loss": (distance * (-located.log_errors).exp() + located.log_errors).mean()}


def _aligner_config(config: AlignConfig) -> AlignerConfig:
    """What config.json will say of it; threshold and slope are set at the end."""
    return AlignerConfig(
        points=CANONICAL_POINTS,
        view_size=config.view_size,
        widths=config.widths,
        squeezed=config.squeezed,
        hidden=config.hidden,
        steps=config.alignment_steps,
        similarity_steps=config.similarity_steps,
        settled=config.settled,
        threshold=-2.0,
        slope=1.0,
    )


def mean_distance(found: Tensor, truth: Tensor) -> Tensor:
    """Mean distance (n,) of points (n, P, 2)."""
    return (found - truth).norm(dim=-1).mean(-1)


class PerturbedFaces:
    """What both recipes of this kind share: perturbed views of the faces of a pack, over pictures without faces."""

    compiles = False  # slower than the plain convolutions, measured on CPUs with and without AMX

    def __init__(
        self,
        config: AlignConfig,
        pack: Pack,
        source: str,
        backgrounds: Path | None = None,
        card_fields: Mapping[str, Any] | None = None,
    ) -> None:
        self.model = load_model(source, device="cpu")
        pack.check_input_size(self.model.config.input_size)
        self.config, self.pack, self.source, self.card_fields = config, pack, source, card_fields
        self.origin = self.model.id.sha256
        self.faces, self.held_out = pack.split(config.held_out, config.seed)
        self.batches = Batches(len(self.faces), config.batch_size, config.seed)
        pictures = read_pictures(backgrounds, config.seed)
        unseen = math.ceil(len(pictures) / 8)
        rng, plain = np.random.default_rng([config.seed, 5]), len(pictures) // 8
        shown = [*pictures[:-unseen], *draw_plain_pictures(plain, rng)]
        self.backgrounds = cut_backgrounds(shown, config.background_squares, config.view_size, rng)
        self.unseen_pictures = pictures[-unseen:]
        self.report_every = math.ceil(config.steps / 20)
        torch.manual_seed(config.seed)

    def require(self, kind: type[Network], found: nn.Module | None, wanted: nn.Module) -> Network:
        """What the model has of a kind; raises OptionError unless its tensors are those of `wanted`."""
        shapes = {name: tensor.shape for name, tensor in wanted.state_dict().items()}
        if isinstance(found, kind) and {name: t.shape for name, t in found.state_dict().items()} == shapes:
            return found
        raise OptionError(f"{self.source} has no {kind.__name__} of these sizes to refine; leave out --refine.")

    def load(self, step: int, part: slice) -> tuple[Tensor, ...]:
        """Squares (b, S, S, 3) and backgrounds (b, V, V, 3), uint8, and the fields of the perturbations."""
        rows, config = self.faces[self.batches.rows(step)[part]], self.config
        drawn = Perturbations.draw(self.batches.rng(step), config.batch_size, len(self.backgrounds), config)[part]
        squares = self.pack.squares[rows]
        drawn.replace_some(squares, self.backgrounds)
        fields = [torch.from_numpy(values) for values in vars(drawn).values()]
        return torch.from_numpy(squares), torch.from_numpy(self.backgrounds[drawn.background]), *fields

    def render(self, squares: Tensor, backgrounds: Tensor, drawn: Mapping[str, Tensor]) -> Tensor:
        """Perturbed views (n, 3, V, V), 0..1, of squares (n, S, S, 3) over backgrounds (n, V, V, 3)."""
        views = render_views(squares, backgrounds, drawn, self.pack.input_size / self.pack.size, backgrounds.shape[1])
        return views.contiguous(memory_format=torch.channels_last)

    def held_out_views(
        self, config: AlignConfig, size: int | None = None, faces: bool = True
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Views (n, 3, V, V) of the held-out faces over pictures that training did not show, and what was done to them.

        `faces`: else only the pictures are seen.
        """
        rng, count = np.random.default_rng([config.seed, 3]), len(self.held_out)
        behind = torch.from_numpy(cut_backgrounds(self.unseen_pictures, count, size or config.view_size, rng))
        fields = draw_fields(rng, count, count, config)
        if not faces:
            fields["border"] = torch.full_like(fields["border"], -9.0)
            fields["mirrored_border"] = torch.zeros_like(fields["mirrored_border"])
        return self.render(torch.from_numpy(self.pack.squares[self.held_out]), behind, fields), fields


class AlignRecipe(PerturbedFaces):
    """The recipe that the engine trains."""

    def __init__(
        self,
        config: AlignConfig,
        pack: Pack,
        source: str,
        backgrounds: Path | None = None,
        card_fields: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(config, pack, source, backgrounds, card_fields)
        aligner = FaceAligner(_aligner_config(config), pack.input_size, norm=not config.refine)
        if config.refine:
            aligner.load_state_dict(self.require(FaceAligner, self.model.aligner, aligner).state_dict())
        self.module = AlignerLoss(aligner)

    def prepare(self, loaded: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The arguments of the loss: views, points, which are faces."""
        squares, backgrounds, *fields = loaded
        drawn = dict(zip(Perturbations.__dataclass_fields__, fields, strict=True))
        points = locate_canonical(drawn["affines"], self.module.aligner.canonical)
        return self.render(squares, backgrounds, drawn), points, drawn["is_face"]

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """Errors, input px of 96, on held-out faces: of one look at near and wide views, and after all steps."""
        aligner = self._trained()
        errors = {}
        for name, wide in (("near", 0.0), ("wide", 1.0)):
            config = dataclasses.replace(self.config, wide=wide, negatives=0.0)
            views, fields = self.held_out_views(config)
            points = locate_canonical(fields["affines"], aligner.canonical)
            found = torch.cat([aligner(part).points for part in views.split(256)])
            errors[f"{name}_error"] = float(mean_distance(found, points).mean()) * 48
        return errors

    def draw_report(self) -> Image.Image:
        """Sample faces, perturbed, and below them the same aligned."""
        return draw_before_and_after(self._trained(), self.config)

    def export(self, folder: Path, history: History) -> None:
        """Write the source model with this aligner, its threshold set on held-out faces and backgrounds."""
        aligner = self._trained()
        threshold, slope, rates = self._set_threshold(aligner)
        config = dataclasses.replace(aligner.config, threshold=threshold, slope=slope)
        section = CardSection.of_training(
            "alignment", self.config, history, {"before and after": draw_before_and_after(aligner, self.config)}
        )
        measured = {
            name.replace("_", " "): f"{value:.2f} input px (held-out faces)" for name, value in self.measure().items()
        }
        section = dataclasses.replace(section, rows={**section.rows, **measured, **rates})
        model_config = dataclasses.replace(self.model.config, aligner=config, **(self.card_fields or {}))
        tensors = {name: t for name, t in self.model.state_dict().items() if not name.startswith("aligner.")}
        tensors |= {f"aligner.{name}": tensor for name, tensor in aligner.state_dict().items()}
        write_model(folder, model_config, tensors, section, locate_model(self.source).folder)

    def _trained(self) -> FaceAligner:
        """The aligner as it is now, as models have it, on the CPU."""
        return copy.deepcopy(self.module.aligner).cpu().fold_norms().eval().requires_grad_(False)

    def _set_threshold(self, aligner: FaceAligner) -> tuple[float, float, dict[str, str]]:
        """The threshold and slope of the log odds of a face, and the error rates on what they were set on.

        Set on photos with a held-out face at a random place, started from loose boxes of it, and on as many without.
        """
        rng, count = np.random.default_rng([self.config.seed, 4]), len(self.held_out)
        config = dataclasses.replace(self.config, wide=1.0, scales=(2.0, 3.0), farthest=0.4, negatives=0.0)
        starts = draw_affines(rng, count, dataclasses.replace(config, scales=(0.5, 1.8), farthest=0.7))
        errors, log_errors = [], []
        for is_face in (True, False):
            photos, fields = self.held_out_views(config, PHOTO, is_face)
            to_photo = invert_affines(fields["affines"].double())
            first, truth = (
                half_side_to_pixel_affines(affines, aligner.input_size, PHOTO)
                for affines in (compose_affines(to_photo, torch.from_numpy(starts).double()), to_photo)
            )
            found = align_squares(aligner, lambda views, step: aligner(views), photos, first)
            errors.append(_alignment_errors(found.affines, truth, aligner))
            log_errors.append(found.log_errors)
        found_faces = torch.cat([errors[0] < FOUND_ERROR, torch.zeros(count, dtype=torch.bool)])
        threshold, slope = fit_logistic(torch.cat(log_errors), found_faces)
        kept = torch.cat(log_errors) < threshold
        shares = (found_faces[:count], kept[found_faces], ~kept[count:])
        reached, right, refused = (f"{float(share.double().mean()):.4f}" for share in shares)
        rates = {
            "found": f"{reached} of {count:,} held-out faces, from loose boxes at any roll",
            "verdict": f"{right} of the found faces kept, {refused} of {count:,} squares without a face refused",
        }
        return threshold, slope, rates


def _alignment_errors(affines: Tensor, truth: Tensor, aligner: FaceAligner) -> Tensor:
    """Mean distance (n,) of the canonical points under two affines (n, 2, 3), in half-sides of the second one."""
    canonical = torch.from_numpy(half_sides_to_pixels(aligner.canonical.numpy(), aligner.input_size))
    places = [apply_affines(to_square, canonical.expand(len(affines), -1, -1)) for to_square in (affines, truth)]
    return mean_distance(*places) / (determinants(truth).abs().sqrt() * aligner.input_size / 2)


def fit_logistic(x: Tensor, y: Tensor) -> tuple[float, float]:
    """Threshold t and slope s > 0 so that sigmoid(s (t - x)) is the most likely probability of y (n,), bool.

    Newton's steps on the log-likelihood, with a weak prior that keeps the slope finite where x separates y.
    """
    design = torch.stack([torch.ones_like(x), -x], dim=1).double()
    weights = torch.tensor([0.0, 1.0], dtype=torch.float64)
    prior = torch.diag(torch.tensor([0.0, 0.05], dtype=torch.float64))
    for _ in range(50):
        p = torch.sigmoid(design @ weights)
        gradient = design.T @ (p - y.double()) + prior @ weights
        hessian = (design * (p * (1 - p) + 1e-9)[:, None]).T @ design + prior + 1e-9 * torch.eye(2)
        weights = weights - torch.linalg.solve(hessian, gradient).clamp(-2, 2)
    return float(weights[0] / weights[1]), float(weights[1])


def read_pictures(folder: Path | None, seed: int) -> list[Array]:
    """Pictures (H, W, 3) without faces: those of a folder, or without one plain colours that run into each other."""
    if folder is None:
        return draw_plain_pictures(64, np.random.default_rng([seed, 6]))
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in Image.registered_extensions())
    if len(paths) < 8:
        raise DataError(f"{folder} holds {len(paths)} pictures; wanted at least 8 without faces.")
    return [np.asarray(photo.image) for photo in iter_photos(paths)]


def draw_plain_pictures(count: int, rng: np.random.Generator) -> list[Array]:
    """Pictures (96, 96, 3), uint8, of a few random colours that run into each other."""
    coarse = rng.integers(0, 256, (count, 3, 3, 3), dtype=np.uint8)
    return [np.asarray(Image.fromarray(colours).resize((96, 96), Image.Resampling.BICUBIC)) for colours in coarse]


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


def draw_before_and_after(aligner: FaceAligner, config: AlignConfig) -> Image.Image:
    """Sample faces, turned, moved and scaled, and below them the same aligned."""
    size, pack = aligner.input_size, sample_pack(aligner.input_size)
    rows = np.tile(np.arange(len(pack)), COPIES_SHOWN)
    squares = pack.read_squares(rows)
    near = dataclasses.replace(config, wide=1.0, scales=(0.8, 1.3), farthest=0.4)
    moves = torch.from_numpy(draw_affines(np.random.default_rng(0), len(rows), near)).double()
    starts = half_side_to_pixel_affines(moves * torch.tensor(size / pack.size), size, pack.size)
    with torch.inference_mode():
        aligned = align_squares(aligner, lambda views, step: aligner(views), squares, starts)
    views = [sample_views(squares, affines, size) for affines in (starts, aligned.affines)]
    return draw.stack_rows([draw.row([draw_view(view) for view in row]) for row in views])
