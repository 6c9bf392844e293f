"""The aligner, learned without labels from known perturbations of roughly aligned faces (docs/alignment.md).

scemae train align --model MODEL --data PACK --backgrounds FOLDER --out RUN
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from scemae import draw
from scemae.geometry import (
    apply_affines,
    compose_affines,
    determinants,
    half_side_to_pixel_affines,
    half_sides_to_pixels,
    invert_affines,
    sample_views,
)
from scemae.model.aligner import FaceAligner
from scemae.model.config import AlignerConfig
from scemae.training.align_pack import align_squares
from scemae.training.model_writer import CardSection, draw_view
from scemae.training.pack import Pack, sample_pack
from scemae.training.perturbation_config import CANONICAL_POINTS, AlignConfig
from scemae.training.perturbed_faces import PerturbedFaces
from scemae.training.perturbed_views import draw_affines, locate_canonical
from scemae.training.recipe import History

PHOTO = 192  # px: side of the pictures in which the threshold of the verdict is set
COPIES_SHOWN = 4  # of each sample face in a picture
LOST_ERROR = 1.0  # half-sides: what a view without a face counts as
FOUND_ERROR = 0.25  # half-sides: up to this error an aligned face was found; training faces are off by 0.1 themselves
LEAST_SLOPE = 0.05  # of the verdict, also where no held-out face is found


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
        views, drawn = self.render_loaded(loaded)
        return views, locate_canonical(drawn["affines"], self.module.aligner.canonical), drawn["is_face"]

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """Errors, input px of 96, on held-out faces: of one look at near and at wide views."""
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
        self.write(folder, "aligner", aligner, config, section)

    def _trained(self) -> FaceAligner:
        """The aligner as it is now, as models have it, on the CPU."""
        return copy.deepcopy(self.module.aligner).cpu().fold_norms().eval().requires_grad_(False)

    def _set_threshold(self, aligner: FaceAligner) -> tuple[float, float, dict[str, str]]:
        """The threshold and slope of the log odds of a face, and the error rates on what they were set on.

        Set on photos with a held-out face at a random place, started from loose boxes of it, and on as many without.
        """
        rng, count = np.random.default_rng([self.config.seed, 4]), len(self.held_out)
        config = dataclasses.replace(self.config, wide=1.0, scales=(2.0, 3.0), farthest=0.4, negatives=0.0)
        config = dataclasses.replace(config, hidden_part=0.0)
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
        share = self.config.face_share
        threshold += math.log(share / (1 - share)) / slope  # half of the squares above show a face
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
    """Threshold t and slope s >= `LEAST_SLOPE` so that sigmoid(s (t - x)) is the likeliest probability of y (n,), bool.

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
    slope = max(float(weights[1]), LEAST_SLOPE)
    return float(weights[0]) / slope, slope


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
