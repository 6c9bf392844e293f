"""Cover-and-stride: a finer map from shifted copies of a view, without retraining (paper Sec. 3.3)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from scemae.errors import OptionError
from scemae.geometry import CellGrid

EXPANSIONS = (1, 2, 4, 8)


def view_margin(patch_size: int = 8) -> int:
    """How far the shifts look beyond the input, px: half a patch, which is as far as any expansion needs."""
    return patch_size // 2


def shifts(expansion: int, patch_size: int = 8) -> list[int]:
    """Pixel shifts of the passes along one axis; for patches of 8 px {0}, {-2, 2}, {-3, -1, 1, 3}, -3..4.

    They are symmetric wherever whole pixels allow it. Where the exact ones are half pixels (expansion 8 of patches of
    8 px), all are half a pixel to the right and below: `cell_grid` accounts for it.
    """
    if expansion not in EXPANSIONS:
        raise OptionError(f"expansion is {expansion!r}; it must be one of {EXPANSIONS}.")
    if patch_size % expansion:
        raise OptionError(f"expansion is {expansion}, which patches of {patch_size} px do not allow; 1 always is.")
    stride = patch_size // expansion
    first = -((patch_size - stride) // 2)
    return [first + stride * index for index in range(expansion)]


def cell_grid(expansion: int, patch_size: int = 8) -> CellGrid:
    """Where the cells of an expanded map are; for patches of 8 px: origin 3.5, 1.5, 0.5, 0.5, step 8, 4, 2, 1 px."""
    return CellGrid((patch_size - 1) / 2 + shifts(expansion, patch_size)[0], patch_size / expansion)


def expand(
    encode: Callable[[Tensor], Tensor], views: Tensor, expansion: int, patch_size: int = 8, chunk: int | None = 64
) -> Tensor:
    """Interleave the maps of all shifts of views (B, 3, H, W) into one map (B, D, expansion * h, expansion * w).

    The views have `view_margin(patch_size)` px of margin on each side. `encode` takes windows without margin to maps
    (b, D, h, w); the shifts of the whole batch go through it together, at most `chunk` windows at a time (None: all).
    """
    margin = view_margin(patch_size)
    offsets = [margin + shift for shift in shifts(expansion, patch_size)]
    height, width = views.shape[-2] - 2 * margin, views.shape[-1] - 2 * margin
    windows = torch.cat([views[..., y : y + height, x : x + width] for y in offsets for x in offsets])
    maps = torch.cat([encode(part) for part in ([windows] if chunk is None else windows.split(chunk))])
    grouped = maps.unflatten(0, (expansion, expansion, views.shape[0]))
    return grouped.permute(2, 3, 4, 0, 5, 1).flatten(4, 5).flatten(2, 3)
