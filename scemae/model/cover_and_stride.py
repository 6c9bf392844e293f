"""Cover-and-stride: a finer map from shifted copies of a view, without retraining (paper Sec. 3.3)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from scemae.errors import OptionError
from scemae.geometry import CellGrid

MARGIN = 4
EXPANSIONS = (1, 2, 4, 8)


def shifts(expansion: int, patch_size: int = 8) -> list[int]:
    """Pixel shifts of the passes along one axis: {0}, {-2, 2}, {-3, -1, 1, 3}, and -3..4 at `expansion` 8.

    They are symmetric wherever whole pixels allow it. At 8 the exact ones are half pixels, so all are half a pixel
    to the right and below: `cell_grid` carries that.
    """
    if expansion not in EXPANSIONS:
        raise OptionError(f"expansion is {expansion!r}; it must be one of {EXPANSIONS}.")
    stride = patch_size // expansion
    first = -((patch_size - stride) // 2)
    found = [first + stride * index for index in range(expansion)]
    if patch_size % expansion or max(-found[0], found[-1]) > MARGIN:
        raise OptionError(f"expansion is {expansion}, which patches of {patch_size} px do not allow; 1 always is.")
    return found


def cell_grid(expansion: int, patch_size: int = 8) -> CellGrid:
    """Where the cells of an expanded map lie: origin 3.5, 1.5, 0.5, 0.5 and step 8, 4, 2, 1 input pixels."""
    return CellGrid((patch_size - 1) / 2 + shifts(expansion, patch_size)[0], patch_size / expansion)


def expand(
    encode: Callable[[Tensor], Tensor], views: Tensor, expansion: int, patch_size: int = 8, chunk: int | None = 64
) -> Tensor:
    """Interleave the maps of all shifts of views (B, 3, H + 8, W + 8) to one map (B, D, expansion * h, expansion * w).

    `encode` takes windows (b, 3, H, W) to maps (b, D, h, w); the shifts of the whole batch go through it together,
    at most `chunk` windows at a time (None: all).
    """
    offsets = [MARGIN + shift for shift in shifts(expansion, patch_size)]
    height, width = views.shape[-2] - 2 * MARGIN, views.shape[-1] - 2 * MARGIN
    windows = torch.cat([views[..., y : y + height, x : x + width] for y in offsets for x in offsets])
    maps = torch.cat([encode(part) for part in ([windows] if chunk is None else windows.split(chunk))])
    grouped: Tensor = maps.unflatten(0, (expansion, expansion, views.shape[0]))
    return grouped.permute(2, 3, 4, 0, 5, 1).flatten(4, 5).flatten(2, 3)
