"""Views of unlabelled faces under known perturbations, as boxes and photos come: what the aligner learns from."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from scemae.geometry import Array
from scemae.training.batches import Squares
from scemae.training.perturbation_config import AlignConfig

CHUNK = 32  # views at a time on a CPU: what its caches hold
LEVELS = 4  # of the pyramid of a square, each half as large
PIECE = (0.06, 0.2)  # scales of a view that shows a piece of a face only


@dataclass(frozen=True, eq=False, kw_only=True)
class Perturbations:
    """What is done to n faces, all float32.

    Attributes:
        affines: (n, 2, 3), half-sides of the view to half-sides of the face's canonical frame.
        mirrored: (n,) bool, whether the face is mirrored first.
        is_face: (n,) bool; of the others a quarter shows only the background, a quarter a small piece of the face all
            over, a half a decoy in the place of the face.
        replaced: (n,) bool, whether a decoy is in the place of the face.
        decoy: (n, 3), the piece of the face that it shows: left, top, side, in sides of the picture; 0: a background.
        mirrored_border: (n,) bool, whether the face's picture is mirrored all around; else the background begins.
        border: (n, 4), where the face's picture ends: left, right, top, bottom, in its half-sides; beyond 1 it is
            mirrored.
        softness: (n,), width of that edge.
        rounded: (n,) bool, whether it is an ellipse.
        background: (n,), which background.
        patch: (n, 4), centre and half sides of what hides a part of the view, in its half-sides; sides of 0: nothing.
        light: (n, 8): contrast, brightness, gamma, three gains, width of the noise, 1 for a grey picture.
        blur: (n,), how many levels of the pyramid are skipped.
    """

    affines: NDArray[np.float32]
    mirrored: NDArray[np.bool_]
    is_face: NDArray[np.bool_]
    replaced: NDArray[np.bool_]
    decoy: NDArray[np.float32]
    mirrored_border: NDArray[np.bool_]
    border: NDArray[np.float32]
    softness: NDArray[np.float32]
    rounded: NDArray[np.bool_]
    background: NDArray[np.int64]
    patch: NDArray[np.float32]
    light: NDArray[np.float32]
    blur: NDArray[np.float32]

    @classmethod
    def draw(cls, rng: np.random.Generator, count: int, backgrounds: int, config: AlignConfig) -> Perturbations:
        """Random perturbations, of which a part is wide: any roll, `scales`, shifts up to half a side."""
        light = np.empty((count, 8), np.float32)
        light[:, 0] = np.exp(0.25 * rng.standard_normal(count))
        light[:, 1] = 0.12 * rng.standard_normal(count)
        light[:, 2] = np.exp(0.3 * rng.standard_normal(count))
        light[:, 3:6] = np.exp(0.06 * rng.standard_normal((count, 3)))
        light[:, 6] = 0.2 * rng.random(count) * (rng.random(count) < 0.5)
        light[:, 7] = rng.random(count) < config.grey
        patch = np.column_stack([rng.uniform(-1, 1, (count, 2)), rng.uniform(0.08, 0.45, (count, 2))])
        patch[:, 2:] *= (rng.random(count) < config.hidden_part)[:, None]
        affines = draw_affines(rng, count, config)
        is_face = rng.random(count) >= config.negatives
        kind = np.where(is_face, 1, rng.random(count))
        piece, empty, replaced = (kind < 0.25), (kind >= 0.25) & (kind < 0.5), (kind >= 0.5) & ~is_face
        side = rng.uniform(0.2, 0.4, count)
        decoy = (
            np.column_stack([*(rng.random((2, count)) * (1 - side)), side])
            * (replaced & (rng.random(count) < 0.5))[:, None]
        )
        scales = np.sqrt(np.abs(np.linalg.det(affines[:, :, :2])))
        zoomed = (rng.uniform(*PIECE, count) / scales)[:, None, None]
        affines[:, :, :2] = np.where(piece[:, None, None], affines[:, :, :2] * zoomed, affines[:, :, :2])
        border = rng.uniform(0.86, 1.25, (count, 4))
        border[empty] = -9  # nothing of the face is seen
        blur = rng.uniform(0, 0.6, count) + (rng.random(count) < 0.2) * rng.uniform(0.5, 1.5, count)
        return cls(
            affines=affines,
            mirrored=rng.random(count) < 0.5,
            is_face=is_face,
            replaced=replaced,
            decoy=decoy.astype(np.float32),
            mirrored_border=(is_face & (scales < 1.5) & (rng.random(count) < 0.3)) | piece,
            border=border.astype(np.float32),
            softness=(0.01 + 0.3 * rng.random(count) ** 2).astype(np.float32),
            rounded=rng.random(count) < 0.4,
            background=rng.integers(backgrounds, size=count),
            patch=patch.astype(np.float32),
            light=light,
            blur=blur.astype(np.float32),
        )

    def replace_some(self, squares: Tensor, backgrounds: Squares) -> None:
        """Put the decoys in the place of the squares (n, S, S, 3), uint8, that they replace."""
        axis = np.arange(squares.shape[1]) / squares.shape[1]
        for of_face in (True, False):
            rows = np.flatnonzero(self.replaced & ((self.decoy[:, 2] > 0) == of_face))
            replaced = torch.from_numpy(rows).to(squares.device)
            sources = squares[replaced] if of_face else backgrounds[(self.background[rows] + 1) % len(backgrounds)]
            left, top, side = self.decoy[rows, :, None].swapaxes(0, 1)
            places = ((start + axis * np.where(side, side, 1)) * sources.shape[1] for start in (top, left))
            down, across = (torch.from_numpy(place.astype(np.int64)).to(squares.device) for place in places)
            number = torch.arange(len(rows), device=squares.device)[:, None, None]
            squares[replaced] = sources[number, down[:, :, None], across[:, None, :]]

    def __getitem__(self, chosen: slice) -> Perturbations:
        """The perturbations of some of the faces."""
        return Perturbations(**{name: values[chosen] for name, values in vars(self).items()})


def draw_fields(rng: np.random.Generator, count: int, backgrounds: int, config: AlignConfig) -> dict[str, Tensor]:
    """Random `Perturbations` as `render_views` takes them."""
    drawn = Perturbations.draw(rng, count, backgrounds, config)
    return {name: torch.from_numpy(values) for name, values in vars(drawn).items()}


def draw_affines(rng: np.random.Generator, count: int, config: AlignConfig) -> NDArray[np.float32]:
    """Random affines (count, 2, 3), half-sides of a view to half-sides of the canonical frame."""
    wide = rng.random(count) < config.wide
    amplitude = rng.choice([1.0, 1.0, 0.5, 0.3], count)
    near = {name: amplitude * getattr(config, name) for name in ("rotation", "log_scale", "shear", "shift")}
    angle = np.where(wide, rng.uniform(-math.pi, math.pi, count), near["rotation"] * rng.standard_normal(count))
    smallest, largest = np.log(config.scales)
    zoom = np.where(wide, rng.uniform(smallest, largest, count), near["log_scale"] * rng.standard_normal(count))
    scale = np.exp(zoom)
    far = rng.uniform(-1, 1, (count, 2)) * config.farthest * scale.clip(*config.growing)[:, None]
    shift = np.where(wide[:, None], far, near["shift"][:, None] * rng.standard_normal((count, 2)))
    aspect, slant = near["shear"] * rng.standard_normal((2, count))
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    stretch = np.array([[scale * np.exp(aspect), slant], [np.zeros(count), scale * np.exp(-aspect)]])
    linear = np.einsum("ijn,jkn->nik", turn, stretch)
    return np.concatenate([linear, shift[:, :, None]], axis=2).astype(np.float32)


def locate_canonical(affines: Tensor, canonical: Tensor) -> Tensor:
    """Where the canonical points (P, 2) lie in views with these affines (n, 2, 3): (n, P, 2), half-sides."""
    return torch.linalg.solve(affines[..., :2], (canonical - affines[:, None, :, 2]).mT).mT


def render_views(squares: Tensor, backgrounds: Tensor, drawn: Mapping[str, Tensor], frame: float, size: int) -> Tensor:
    """Views (n, 3, size, size), 0..1, of squares (n, S, S, 3) uint8 over backgrounds (n, size, size, 3) uint8.

    `drawn`: the fields of `Perturbations`. `frame`: the side of the canonical frame over that of the square.
    """
    chunk = CHUNK if squares.device.type == "cpu" else len(squares)
    parts = (part.split(chunk) for part in (squares, backgrounds, *drawn.values()))
    return torch.cat(
        [
            _render(s, b, dict(zip(drawn, values, strict=True)), frame, size)
            for s, b, *values in zip(*parts, strict=True)
        ]
    )


def _render(squares: Tensor, backgrounds: Tensor, drawn: Mapping[str, Tensor], frame: float, size: int) -> Tensor:
    grid = F.affine_grid(drawn["affines"] * frame, [len(squares), 3, size, size], align_corners=False)
    x, y = grid.unbind(-1)
    left, right, top, bottom = drawn["border"][:, :, None, None].unbind(1)
    inside = torch.stack([x + left, right - x, y + top, bottom - y]).amin(0)
    ellipse = 1 - torch.hypot(2 * x / (left + right), 2 * y / (top + bottom))
    inside = torch.where(drawn["rounded"][:, None, None], torch.minimum(inside, ellipse), inside)
    shown = (
        (inside / drawn["softness"][:, None, None] + 0.5)
        .clamp(0, 1)
        .maximum(drawn["mirrored_border"][:, None, None].float())
    )
    axis = (torch.arange(size, device=squares.device) + 0.5) * (2 / size) - 1
    across, down, half_width, half_height = drawn["patch"][:, :, None, None].unbind(1)
    beyond = torch.maximum((axis - across).abs() - half_width, (axis[:, None] - down).abs() - half_height)
    hidden = (0.5 - beyond * 16).clamp(0, 1) * (half_width > 0)
    grid[..., 0] *= 1 - 2 * drawn["mirrored"][:, None, None].float()
    behind = backgrounds.permute(0, 3, 1, 2).float() / 255
    view = _sample_pyramid(squares.permute(0, 3, 1, 2).float() / 255, grid, drawn["affines"], drawn["blur"], frame)
    view = torch.lerp(behind, view, shown[:, None])
    view = torch.lerp(view, behind.roll(1, 0), hidden[:, None])
    return _relight(view, drawn["light"])


def _sample_pyramid(pixels: Tensor, grid: Tensor, affines: Tensor, blur: Tensor, frame: float) -> Tensor:
    """Bilinear samples of the level of a pyramid whose pixels are about those of the view."""
    ratio = torch.linalg.det(affines[..., :2]).abs().sqrt() * (frame * pixels.shape[-1] / grid.shape[1])
    level = (ratio.clamp(min=1e-3).log2() + blur).floor().clamp(0, LEVELS - 1)
    views = pixels.new_empty(len(pixels), 3, *grid.shape[1:3])
    rows = torch.arange(len(pixels), device=pixels.device)
    for number in range(LEVELS):
        here = level[rows] == number
        views[rows[here]] = F.grid_sample(
            pixels[here], grid[rows[here]], padding_mode="reflection", align_corners=False
        )
        rows, pixels = rows[~here], F.avg_pool2d(pixels[~here], 2)
    return views


def _relight(views: Tensor, light: Tensor) -> Tensor:
    contrast, brightness, gamma, red, green, blue, noise, grey = light[:, :, None, None, None].unbind(1)
    views = views.clamp_(1e-3, 1).pow_(gamma).mul_(torch.cat([red, green, blue], dim=1) * contrast)
    views = views.add_(0.5 - 0.5 * contrast + brightness)
    views = views.lerp_(views.mean(1, keepdim=True), grey)
    return views.add_((torch.rand_like(views) - 0.5).mul_(noise)).clamp_(0, 1)


def cut_backgrounds(pictures: Sequence[Array], count: int, size: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Random squares (count, size, size, 3), uint8, of pictures (H, W, 3) uint8, of 1/6 to all of their side."""
    squares = []
    for number in range(count):
        picture = Image.fromarray(pictures[number % len(pictures)])
        side = max(min(picture.size) * math.exp(rng.uniform(math.log(1 / 6), 0)), 8)
        left, top = rng.uniform(0, picture.width - side), rng.uniform(0, picture.height - side)
        box = (left, top, left + side, top + side)
        square = np.asarray(picture.resize((size, size), Image.Resampling.BILINEAR, box=box))
        squares.append(square[:, :: rng.choice((-1, 1))])
    return np.stack(squares)
