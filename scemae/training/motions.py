"""Known random motions of roughly aligned faces (augmentation): what the aligner and the projectors learn from."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from scemae.geometry import Array, random_affines, sample_views
from scemae.model.sce_mae import SceMae
from scemae.training.acceleration import choose_precision
from scemae.training.batches import Batches
from scemae.training.pack import Pack
from scemae.training.training_config import MotionConfig

Encode = Callable[[Tensor], Tensor]  # views (B, 3, S, S), 0..1, to patch tokens (B, N, D)


def random_motions(
    rng: np.random.Generator, count: int, config: MotionConfig, *, amplitude: float, input_size: int
) -> Array:
    """Affines (count, 3, 3) about the view's centre, from pixels of a moved view to those of the unmoved one."""
    deviations = ("rotation", "log_scale", "shear", "shift")
    return random_affines(rng, count, input_size, **{name: amplitude * getattr(config, name) for name in deviations})


def move_points(motions: Array, xy: Array) -> Array:
    """Points (P, 2) or (n, P, 2) through affines (n, 3, 3): (n, P, 2)."""
    return xy @ motions[:, :2, :2].swapaxes(1, 2) + motions[:, None, :2, 2]


@dataclass(frozen=True, eq=False, kw_only=True)
class Moves:
    """What is done to n faces: mirror, then move, then change the light."""

    motions: Array  # (n, 3, 3): moved to unmoved input px
    mirrored: NDArray[np.bool_]  # (n,)
    contrast: NDArray[np.float32]  # (n,): factor on the distance from mid-grey
    brightness: NDArray[np.float32]  # (n,): added to pixels of 0..1

    @classmethod
    def draw(
        cls,
        rng: np.random.Generator,
        count: int,
        config: MotionConfig,
        *,
        amplitude: float,
        input_size: int,
        flip: bool = True,
    ) -> Moves:
        """Random moves, with `flip` half of them mirrored; at amplitude 0 nothing else is done to a face."""
        motions = random_motions(rng, count, config, amplitude=amplitude, input_size=input_size)
        mirrored = (rng.random(count) < 0.5) & flip
        contrast, brightness = rng.standard_normal((2, count)).astype(np.float32) * (amplitude > 0)
        return cls(
            motions=motions,
            mirrored=mirrored,
            contrast=np.exp(config.log_contrast * contrast),
            brightness=config.brightness * brightness,
        )

    @classmethod
    def concatenate(cls, parts: Sequence[Moves]) -> Moves:
        """The moves of all parts, one after the other."""
        return cls(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in vars(parts[0])})

    def __getitem__(self, chosen: slice) -> Moves:
        """The moves of some of the faces."""
        return Moves(**{name: values[chosen] for name, values in vars(self).items()})

    def to_square(self, pack: Pack) -> Tensor:
        """Affines (n, 2, 3) from pixels of the moved views to those of the faces' squares in a pack."""
        flips = np.tile(np.eye(3), (len(self.mirrored), 1, 1))
        flips[self.mirrored, 0] = (-1, 0, pack.input_size - 1)
        return torch.from_numpy((pack.central_affine @ flips @ self.motions)[:, :2])

    def sample(self, pack: Pack, rows: NDArray[np.int64]) -> Tensor:
        """Moved views (n, 3, S, S), 0..1, of n faces of a pack."""
        squares = torch.from_numpy(pack.squares[rows])
        return render_moved(squares, self.to_square(pack), self.light, pack.input_size)

    @property
    def light(self) -> Tensor:
        """What is done to the light, (n, 2): contrast and brightness."""
        return torch.from_numpy(np.stack([self.contrast, self.brightness], axis=1))

    def to_moved(self, xy: Array) -> Array:
        """Where points (P, 2) of the unmoved views lie in the moved ones, (n, P, 2), input px."""
        return move_points(np.linalg.inv(self.motions), xy)

    def to_unmoved(self, xy: Array) -> Array:
        """Where points (P, 2) of the moved views lie in the unmoved ones, (n, P, 2), input px."""
        return move_points(self.motions, xy)


def render_moved(squares: Tensor, to_square: Tensor, light: Tensor, input_size: int) -> Tensor:
    """Moved views (n, 3, S, S), 0..1, of squares (n, size, size, 3), uint8, on their device; see `Moves`."""
    return change_light(sample_views(squares.permute(0, 3, 1, 2).float() / 255, to_square, input_size), light)


def change_light(views: Tensor, light: Tensor) -> Tensor:
    """Views (n, 3, H, W), 0..1, in another light (n, 2): contrast and brightness, see `Moves`."""
    contrast, brightness = light[:, :, None, None, None].unbind(1)
    return ((views - 0.5) * contrast + 0.5 + brightness).clamp(0, 1)


def token_centres(grid: int, input_size: int) -> Array:
    """Centres (grid * grid, 2) of the patches of a view, input px, row by row."""
    axis = (np.arange(grid) + 0.5) * (input_size / grid) - 0.5
    return np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)


def token_encoder(model: SceMae) -> Encode:
    """Views (B, 3, S, S), 0..1, to patch tokens (B, N, D), float32, at the machine's fastest precision."""
    bf16 = choose_precision(model.device) == "bf16"

    def encode(views: Tensor) -> Tensor:
        with torch.inference_mode(), torch.autocast(model.device.type, torch.bfloat16, enabled=bf16):
            return model.patch_tokens(model.normalise(views)).float().cpu()

    return encode


@dataclass(frozen=True, eq=False, kw_only=True)
class TokenSource:
    """Moved views of faces of a pack, and their tokens."""

    encode: Encode  # views to tokens, see `token_encoder`
    pack: Pack  # of the faces
    faces: NDArray[np.int64]  # rows of the pack
    config: MotionConfig  # the deviations at amplitude 1
    amplitude: float  # of the motions
    batch_size: int  # views at a time
    seed: tuple[int, ...]  # of the order of the faces and the motions
    bar: tqdm[None]  # counts the views

    def iter_tokens(self, views: int, purpose: int) -> Iterator[tuple[Tensor, Moves]]:
        """`views` views in batches: the tokens (B, N, D) and the moves; other views for each purpose."""
        size = min(self.batch_size, len(self.faces), views)
        batches = Batches(len(self.faces), size, (*self.seed, purpose))
        for step in range(math.ceil(views / size)):
            rows = self.faces[batches.rows(step)]
            moves = Moves.draw(
                batches.rng(step),
                len(rows),
                self.config,
                amplitude=self.amplitude,
                input_size=self.pack.input_size,
            )
            yield self.encode(moves.sample(self.pack, rows)), moves
            self.bar.update(len(rows))
