import math

import numpy as np
import pytest
import torch

from scemae.warps import MATCHING, Warps, WarpSettings, draw_warps

AFFINE = WarpSettings(all_sd=0.0, subset_sd=0.0)

STRONG = WarpSettings(all_sd=0.001, subset_sd=0.008, shift_sd=0.1, scale_sd=0.1, turn_sd=10)


def ramps(count, size):
    """Images (count, 2, size, size) whose pixels hold their own x and y."""
    axis = torch.arange(size, dtype=torch.float64)
    rows, columns = torch.meshgrid(axis, axis, indexing="ij")
    return torch.stack([columns, rows]).expand(count, 2, size, size)


@pytest.mark.parametrize("settings", [MATCHING, AFFINE, STRONG])
@pytest.mark.parametrize("size", [96, 136])
def test_landmarks_go_where_the_image_goes(settings, size):
    """What a pixel of a warped ramp shows is where it came from; a landmark there must land on that pixel."""
    warps = draw_warps(range(8), settings)
    shown = warps.images(ramps(8, size))
    at = torch.randint(size // 5, 4 * size // 5, (8, 30, 2))
    came_from = torch.stack([shown[b, :, at[b, :, 1], at[b, :, 0]].T for b in range(8)])
    inside = ((came_from > 0) & (came_from < size - 1)).all(-1)
    assert inside.float().mean() > 0.9
    landed = warps.landmarks(came_from, size)
    assert (landed - at)[inside].abs().max() < 1e-4


def test_a_warp_moves_by_pixels():
    shift = torch.zeros(1, 103, 2, dtype=torch.float64)
    shift[0, -2:] = torch.eye(2)
    shift[0, -3] = torch.tensor([2 * 3 / 95, -2 * 5 / 95])  # every pixel comes from 3 to the right and 5 above
    image = torch.rand(1, 3, 96, 96)
    warped = Warps(shift).images(image)
    torch.testing.assert_close(warped[..., 10:90, 10:90], image[..., 5:85, 13:93], atol=1e-4, rtol=0)
    np.testing.assert_allclose(Warps(shift).landmarks([[(40, 50)]], 96), [[(37, 55)]], atol=1e-9)


def test_rounded_landmarks_are_whole_pixels_next_to_the_exact_ones():
    warps = draw_warps(range(20))
    xy = 30 + 70 * torch.rand(20, 5, 2, dtype=torch.float64)
    exact, rounded = warps.landmarks(xy, 136), warps.landmarks(xy, 136, rounded=True)
    assert (rounded == rounded.round()).all()
    assert (exact - rounded).abs().max() < 0.6
    missed = (warps.source(2 * rounded / 135 - 1) - (2 * xy / 135 - 1)).norm(dim=-1)
    for way in ((1, 0), (-1, 0), (0, 1), (0, -1)):  # no neighbour comes from a nearer place
        neighbour = (warps.source(2 * (rounded + torch.tensor(way)) / 135 - 1) - (2 * xy / 135 - 1)).norm(dim=-1)
        assert (neighbour >= missed).all()


def test_a_warp_depends_on_its_seed_alone():
    together, alone = draw_warps([3, 4, 5]), draw_warps([4])
    assert torch.equal(together.weights[1], alone.weights[0])
    assert not torch.equal(together.weights[0], together.weights[1])
    assert together.weights.dtype == torch.float64


def test_sizes_of_random_warps():
    weights = draw_warps(range(400)).weights
    spline, shift, turn = weights[:, :100], weights[:, 100], weights[:, 101:]
    assert spline.std() == pytest.approx(math.sqrt((0.0005**2 + 0.005**2) / 2), rel=0.05)
    assert shift.std() == pytest.approx(0.05, rel=0.1)
    assert torch.linalg.det(turn).sqrt().std() == pytest.approx(0.05, rel=0.15)
    assert torch.atan2(turn[:, 1, 0], turn[:, 0, 0]).rad2deg().std() == pytest.approx(2.5, rel=0.15)
    assert (draw_warps([0], AFFINE).weights[:, :100] == 0).all()


def test_nan_stays_nan_and_far_away_is_nan():
    warps = draw_warps([0])
    xy = torch.tensor([[(torch.nan, torch.nan), (50.0, 50.0), (5000.0, 50.0)]])
    assert warps.landmarks(xy, 96).isnan().all(-1).tolist() == [[True, False, True]]
    assert warps.landmarks(xy, 96, rounded=True).isnan().all(-1).tolist() == [[True, False, False]]
