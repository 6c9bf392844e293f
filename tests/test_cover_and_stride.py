import numpy as np
import pytest
import torch
import torch.nn.functional as F

from scemae.errors import OptionError
from scemae.model.cover_and_stride import EXPANSIONS, cell_grid, expand, shifts, view_margin


@pytest.mark.parametrize(
    ("expansion", "wanted"),
    [(1, [0]), (2, [-2, 2]), (4, [-3, -1, 1, 3]), (8, [-3, -2, -1, 0, 1, 2, 3, 4])],
)
def test_shifts(expansion, wanted):
    assert shifts(expansion) == wanted
    assert max(abs(shift) for shift in wanted) <= view_margin()


@pytest.mark.parametrize(("expansion", "origin", "step"), [(1, 3.5, 8), (2, 1.5, 4), (4, 0.5, 2), (8, 0.5, 1)])
def test_cell_grid(expansion, origin, step):
    grid = cell_grid(expansion)
    assert (grid.origin, grid.step) == (origin, step)


@pytest.mark.parametrize("expansion", [0, 3, 16, -1, None, "4"])
def test_other_expansions_are_refused(expansion):
    for call in (shifts, cell_grid, lambda s: expand(lambda w: w, torch.zeros(1, 3, 104, 104), s)):
        with pytest.raises(OptionError, match=r"expansion is .*; it must be one of \(1, 2, 4, 8\)"):
            call(expansion)


@pytest.mark.parametrize(("patch_size", "margin"), [(4, 2), (7, 3), (8, 4), (12, 6), (16, 8), (32, 16)])
def test_the_margin_is_what_the_shifts_need(patch_size, margin):
    assert view_margin(patch_size) == margin
    for expansion in (e for e in EXPANSIONS if patch_size % e == 0):
        found = shifts(expansion, patch_size)
        assert np.diff(found).tolist() == [patch_size / expansion] * (expansion - 1)
        assert sum(found) in (0, expansion / 2)  # symmetric, or half a pixel to the right and below
        assert max(abs(shift) for shift in found) <= margin


@pytest.mark.parametrize(("patch_size", "expansion"), [(6, 4), (4, 8), (12, 8), (7, 2), (20, 8)])
def test_patches_that_an_expansion_does_not_divide_are_refused(patch_size, expansion):
    with pytest.raises(OptionError, match=f"patches of {patch_size} px do not allow"):
        cell_grid(expansion, patch_size)
    assert shifts(1, patch_size) == [0]


def encode(windows):
    """A map that knows its batch row, its pixels and its place in the window."""
    maps = F.avg_pool2d(windows, 8)
    return torch.cat([maps, maps.square(), torch.arange(144.0).view(1, 1, 12, 12).expand(len(windows), -1, -1, -1)], 1)


@pytest.mark.parametrize("expansion", EXPANSIONS)
def test_each_cell_comes_from_the_pass_of_its_shift(expansion):
    views = torch.rand(2, 3, 104, 104)
    found = expand(encode, views, expansion)
    assert found.shape == (2, 7, 12 * expansion, 12 * expansion)
    for row, dy in enumerate(shifts(expansion)):
        for column, dx in enumerate(shifts(expansion)):
            window = views[..., 4 + dy : 100 + dy, 4 + dx : 100 + dx]
            assert torch.equal(found[..., row::expansion, column::expansion], encode(window))


@pytest.mark.parametrize("expansion", EXPANSIONS)
def test_the_chunk_does_not_matter(expansion):
    views = torch.rand(3, 3, 104, 104)
    sizes = []

    def counting(windows):
        sizes.append(len(windows))
        return encode(windows)

    wanted = expand(encode, views, expansion, chunk=10_000)
    for chunk in (1, 5, 64):
        sizes.clear()
        assert torch.equal(expand(counting, views, expansion, chunk=chunk), wanted)
        assert sum(sizes) == 3 * expansion**2
        assert max(sizes) <= chunk


def test_views_need_not_be_square():
    found = expand(lambda windows: F.avg_pool2d(windows, 8), torch.rand(2, 3, 72, 104), 4)
    assert found.shape == (2, 3, 32, 48)
