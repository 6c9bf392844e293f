"""Two views of each face and their maps: the face at rest, and moved and warped in a known way."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from scemae.geometry import MeanFrame, apply_affines, invert_affines, pad_crops, sample_pixels, sample_views
from scemae.model.sce_mae import SceMae
from scemae.output import atomic_write, make_folder
from scemae.training.motions import Moves, change_light
from scemae.training.pack import Pack
from scemae.training.random_warps import SmoothWarps, draw_smooth_warps
from scemae.training.register_config import RegisterConfig
from scemae.training.run_config import Precision

EXPANSION = 2  # of the maps
Kind = Literal["still", "moved"]
KINDS: tuple[Kind, Kind] = ("still", "moved")


@dataclass(frozen=True, eq=False, kw_only=True)
class FaceViews:
    """Views of N faces of a pack; everything random about a face follows from the seed and its row alone.

    Attributes:
        frame: places of the mean face, one at each cell of a map.
        rows: (N,) of the pack.
        still: moves that at most mirror: the registered face.
        moves, warps: what is done to the second view, which is mirrored or not whether the first is.
        margin: by how much the views are wider on each side than what the model sees, px.
        folder: where the maps are, a file for each batch and kind.
        batch_size: faces in one.
    """

    frame: MeanFrame
    pack: Pack
    rows: NDArray[np.int64]
    still: Moves
    moves: Moves
    warps: SmoothWarps
    margin: int
    folder: Path
    batch_size: int

    @classmethod
    def draw(
        cls, frame: MeanFrame, pack: Pack, rows: NDArray[np.int64], margin: int, config: RegisterConfig, folder: Path
    ) -> FaceViews:
        """Random views of these rows; the other arguments are attributes, or what they are drawn by."""
        rngs = [np.random.default_rng([config.seed, 3, row]) for row in rows]
        still, moves = (
            Moves.concatenate(
                [Moves.draw(rng, 1, config, amplitude=amplitude, input_size=pack.input_size) for rng in rngs]
            )
            for amplitude in (0, config.amplitude)
        )
        warps = draw_smooth_warps(rngs, amplitude=config.warp, input_size=pack.input_size, margin=margin)
        return cls(
            frame=frame,
            pack=pack,
            rows=rows,
            still=still,
            moves=moves,
            warps=warps,
            margin=margin,
            folder=folder,
            batch_size=config.batch_size,
        )

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def parts(self) -> list[slice]:
        """The faces of each batch."""
        return [slice(i, min(i + self.batch_size, len(self))) for i in range(0, len(self), self.batch_size)]

    def encode(self, model: SceMae, precision: Precision) -> None:
        """Write the maps that are not there yet."""
        make_folder(self.folder)
        for part in _show(self.parts, "encoding"):
            for kind in KINDS:
                path = self.path(kind, part)
                if not path.exists():
                    maps = encode_maps(model, self.render(kind, part), precision)
                    with atomic_write(path) as temporary:
                        np.save(temporary, maps.half().numpy())

    def iter_maps(self, kind: Kind, purpose: str) -> Iterator[tuple[slice, Tensor]]:
        """The faces of each batch and their maps (b, D, h, w), float32, with a progress bar that says for what."""
        for part in _show(self.parts, purpose):
            yield part, torch.from_numpy(np.load(self.path(kind, part))).float()

    def place(self, shapes: Tensor, part: slice) -> Tensor:
        """Shapes (b, P, 2) of the still views of some faces in their moved views, input px."""
        mirrored = torch.from_numpy(self.still.mirrored != self.moves.mirrored)[part, None, None]
        unmoved = torch.where(mirrored, self.frame.mirror(shapes, self.pack.input_size), shapes)
        motions = torch.from_numpy(self.moves.motions[part, :2])
        return self.warps[part].to_warped(apply_affines(invert_affines(motions).to(shapes), unmoved))

    def render(self, kind: Kind, part: slice) -> Tensor:
        """These views of some faces, with margin, (b, 3, S, S), 0..1."""
        moves, size = (self.still if kind == "still" else self.moves)[part], self.pack.input_size + 2 * self.margin
        axis = torch.arange(size) - float(self.margin)
        places = torch.cartesian_prod(axis, axis).flip(1).expand(len(moves.mirrored), -1, -1)
        if kind == "moved":
            places = self.warps[part].to_unwarped(places)
        places = apply_affines(moves.to_square(self.pack).float(), places).unflatten(1, (size, size))
        return change_light(sample_pixels(self.pack.read_squares(self.rows[part]), places), moves.light)

    def path(self, kind: Kind, part: slice) -> Path:
        """Where the maps of these views are."""
        return self.folder / f"{kind}-{part.start:06d}.npy"


def encode_maps(model: SceMae, views: Tensor, precision: Precision) -> Tensor:
    """Backbone maps (b, D, h, w), float32, on the CPU, of views with margin (b, 3, S, S), 0..1, as `EXPANSION` says."""
    with torch.inference_mode(), torch.autocast(model.device.type, torch.bfloat16, enabled=precision == "bf16"):
        return model(model.normalise(views), EXPANSION).float().cpu()


def encode_central(model: SceMae, pack: Pack, rows: NDArray[np.int64], precision: Precision) -> Tensor:
    """Maps, float16, of faces at the usual framing, as they are."""
    margin = model.view_margin
    crops = pad_crops(torch.from_numpy(pack.central_affine[None, :2]), margin)
    parts = []
    for chosen in np.array_split(rows, -(-len(rows) // 50)):
        views = sample_views(pack.read_squares(chosen), crops.expand(len(chosen), 2, 3), pack.input_size + 2 * margin)
        parts.append(encode_maps(model, views, precision).half())
    return torch.cat(parts)


def _show(parts: list[slice], purpose: str) -> tqdm[slice]:
    return tqdm(parts, desc=purpose, unit="batch", delay=2, disable=None, leave=False)
