import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from scemae.geometry import (
    Alignment,
    CellGrid,
    Crop,
    Patch,
    apply_affine,
    apply_affines,
    build_pyramid,
    central_box,
    central_part,
    compose,
    compose_affines,
    crops_from_boxes,
    determinants,
    fit_affine,
    half_side_to_pixel_affines,
    half_sides_to_pixels,
    invert,
    invert_affines,
    pad_crops,
    pixels_to_unit,
    resample_crops,
    sample_at,
    sample_crops,
    sample_pyramid,
    sample_view,
    sample_views,
    similarity,
    soft_argmax,
    unit_to_pixels,
)
from scemae.model.cover_and_stride import cell_grid

quick = settings(deadline=None, max_examples=25)
POINTS = np.array([(0.0, 0.0), (95.0, 0.0), (13.25, 71.5), (-20.0, 120.0)])


def linear_part(degrees, scale, shear):
    angle = np.radians(degrees)
    turn = np.array([(np.cos(angle), -np.sin(angle)), (np.sin(angle), np.cos(angle))])
    return scale * turn @ np.array([(1.0, shear), (0.0, 1.0)])


def about(centre, linear, shift):
    """The affine that applies `linear` about a centre, then shifts."""
    centre = np.asarray(centre, dtype=float)
    return np.column_stack([linear, centre - linear @ centre + shift])


def affines(scales=(0.5, 2.0), shift=10.0):
    """Affines of the 96 x 96 input about its centre: rotation, scale, shear, shift."""
    return st.builds(
        lambda degrees, scale, shear, x, y: about((47.5, 47.5), linear_part(degrees, scale, shear), (x, y)),
        st.floats(-180, 180),
        st.floats(*scales),
        st.floats(-0.3, 0.3),
        st.floats(-shift, shift),
        st.floats(-shift, shift),
    )


def boxes():
    """Boxes of any shape, from 10 to 500 px, not on whole pixels."""
    return st.builds(
        lambda x, y, width, height: (x, y, x + width, y + height),
        st.floats(-50, 500),
        st.floats(-50, 500),
        st.floats(10, 500),
        st.floats(10, 500),
    )


def ramp_patch(affine, height, width, dtype=np.float64):
    """A patch whose pixels hold their own image coordinates: x in channel 0, y in channel 1."""
    rows, columns = np.mgrid[:height, :width]
    xy = apply_affine(affine, np.stack([columns, rows], axis=-1))
    return Patch(np.concatenate([xy, np.zeros((height, width, 1))], axis=-1).astype(dtype), affine)


def pixel_lattice(size):
    """The pixel centres of a square, (size, size, 2) as (x, y)."""
    rows, columns = np.mgrid[:size, :size]
    return np.stack([columns, rows], axis=-1).astype(float)


def test_compose_applies_the_inner_affine_first():
    double, right = np.array([(2.0, 0, 0), (0, 2.0, 0)]), np.array([(1.0, 0, 3), (0, 1.0, 0)])
    assert np.allclose(apply_affine(compose(double, right), (1, 1)), (8, 2))
    assert np.allclose(apply_affine(compose(right, double), (1, 1)), (5, 2))


@quick
@given(affines())
def test_invert_undoes(affine):
    assert np.allclose(apply_affine(invert(affine), apply_affine(affine, POINTS)), POINTS)


@quick
@given(affines(), st.integers(3, 12))
def test_fit_affine_recovers_a_planted_affine(affine, count):
    source = np.random.default_rng(count).uniform(0, 96, (count, 2))
    assert np.allclose(fit_affine(source, apply_affine(affine, source)), affine, atol=1e-8)


def test_fit_affine_is_the_least_squares_one():
    source = np.array([(0, 0), (10, 0), (0, 10), (10, 10)])
    target = source + np.array([(1, 0), (-1, 0), (-1, 0), (1, 0)])  # no affine can do this, so the identity is best
    assert np.allclose(fit_affine(source, target), np.eye(3)[:2])


@pytest.mark.parametrize(("width", "height"), [(136, 136), (178, 218), (1000, 700), (33, 500)])
def test_central_box_is_the_central_96_of_136(width, height):
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    margin = 20 * side / 136
    wanted = (left + margin, top + margin, left + side - margin, top + side - margin)
    assert np.allclose(central_box(width, height), wanted)


def test_central_box_and_central_part_agree():
    assert central_part(0, 0, 136) == central_box(136, 136) == (20, 20, 116, 116)
    assert central_box(112, 112, frame=112) == (8, 8, 104, 104)  # squares of another frame: their central 96 px
    assert np.allclose(central_part(10, -5, 68), (20, 5, 68, 53))


def test_unit_coordinates_run_between_the_centres_of_the_outermost_pixels():
    pixels = torch.tensor([0.0, 31.5, 63.0])
    assert pixels_to_unit(pixels, 64).tolist() == [-1, 0, 1]
    assert torch.equal(unit_to_pixels(pixels_to_unit(pixels, 64), 64), pixels)


def test_similarity_turns_and_scales_about_its_centre():
    found = similarity(np.radians(30), 1.5, np.array([10.0, 20.0]), np.array([3.0, -4.0]))
    assert np.allclose(found, about((10, 20), linear_part(30, 1.5, 0), (3, -4)))


@quick
@given(boxes(), affines(), affines())
def test_the_batched_affines_of_torch_are_those_of_numpy(box, first, second):
    outer, inner = (torch.from_numpy(affine)[None] for affine in (first, second))
    points = torch.from_numpy(POINTS)[None]
    assert np.allclose(apply_affines(outer, points)[0], apply_affine(first, POINTS))
    assert np.allclose(compose_affines(outer, inner)[0], compose(first, second))
    assert np.allclose(determinants(outer)[0], np.linalg.det(first[:, :2]))
    crops = crops_from_boxes(torch.tensor([box], dtype=torch.float64), 64)
    assert np.allclose(crops[0], Crop.from_box(box, 64).to_image_affine)
    assert np.allclose(pad_crops(crops, 5)[0], Crop.from_box(box, 64).pad(5).to_image_affine)


def test_sample_crops_sees_what_sample_view_sees():
    pixels = np.random.default_rng(0).random((150, 160, 3)).astype(np.float32)
    crop = Crop.from_box((20, 10, 130, 120), 64)
    wanted = sample_view(Patch(pixels, np.eye(3)[:2]), crop)
    channels_first = torch.from_numpy(pixels).permute(2, 0, 1)[None]
    found = sample_crops(channels_first, torch.from_numpy(crop.to_image_affine)[None], 64)[0]
    assert torch.allclose(found, wanted, atol=1e-5)


def test_the_whole_image_covers_the_centres_from_minus_a_half():
    crop = Crop.from_box((0, 0, 192, 192))
    assert np.allclose(crop.to_image(crop.corners), [(-0.5, -0.5), (191.5, -0.5), (191.5, 191.5), (-0.5, 191.5)])
    assert np.allclose(crop.to_image((0, 0)), 0.5)  # x = (x' + 0.5) * 2 - 0.5
    assert crop.scale == pytest.approx(2)


def test_a_box_of_the_inputs_size_is_a_shift():
    assert np.allclose(Crop.from_box((10, 20, 106, 116)).to_image(POINTS), POINTS + np.array([10, 20]))


@quick
@given(boxes())
def test_a_box_grows_to_a_square_about_its_centre(box):
    crop = Crop.from_box(box)
    x0, y0, x1, y1 = box
    corners = crop.to_image(crop.corners) + 0.5  # pixel edges
    assert np.allclose(corners.mean(0), ((x0 + x1) / 2, (y0 + y1) / 2))
    assert np.allclose(corners[2] - corners[0], max(x1 - x0, y1 - y0))
    assert crop.scale == pytest.approx(max(x1 - x0, y1 - y0) / 96)


@quick
@given(boxes(), affines())
def test_to_input_undoes_to_image(box, affine):
    for crop in (Crop.from_box(box), Crop.from_box(box).refine(affine), Crop.from_box(box, 160).mirror().pad(4)):
        assert np.allclose(crop.to_input(crop.to_image(POINTS)), POINTS, atol=1e-6)


@quick
@given(boxes(), affines(), affines())
def test_refined_maps_through_the_affine(box, first, second):
    crop = Crop.from_box(box)
    assert np.allclose(crop.refine(first).to_image(POINTS), crop.to_image(apply_affine(first, POINTS)))
    twice = crop.refine(first).refine(second)
    assert np.allclose(twice.to_image(POINTS), crop.refine(compose(first, second)).to_image(POINTS))
    linear = (first[:, :2], second[:, :2])
    assert twice.scale == pytest.approx(crop.scale * np.sqrt(np.linalg.det(linear[0]) * np.linalg.det(linear[1])))


@quick
@given(boxes(), affines())
def test_mirrored_exchanges_left_and_right(box, affine):
    crop = Crop.from_box(box).refine(affine)
    flipped = POINTS * (-1, 1) + (95, 0)
    assert np.allclose(crop.mirror().to_image(flipped), crop.to_image(POINTS))
    assert np.allclose(crop.mirror().mirror().to_image_affine, crop.to_image_affine)
    assert crop.mirror().scale == pytest.approx(crop.scale)


@quick
@given(boxes(), affines(), st.integers(0, 20))
def test_padded_moves_the_pixels_by_the_margin(box, affine, margin):
    crop = Crop.from_box(box).refine(affine)
    padded = crop.pad(margin)
    assert padded.size == 96 + 2 * margin
    assert np.allclose(padded.to_image(POINTS + margin), crop.to_image(POINTS))
    assert np.allclose(padded.pad(-margin).to_image_affine, crop.to_image_affine)


@quick
@given(st.floats(-179, 179), st.floats(0.3, 3), st.floats(-0.4, 0.4), st.floats(-0.4, 0.4))
def test_alignment_recovers_rotation_scale_and_shift(degrees, scale, x, y):
    affine = about((47.5, 47.5), linear_part(degrees, scale, 0), (96 * x, 96 * y))
    found = Alignment.of(affine, 96)
    assert found.rotation == pytest.approx(degrees, abs=1e-6)
    assert found.scale == pytest.approx(scale)
    assert found.shift == pytest.approx((x, y))


def test_alignment_counts_a_face_turned_clockwise_as_positive():
    """The aligned crop's upward axis points to the upper right of the picture, as the head of such a face does."""
    affine = about((47.5, 47.5), linear_part(30, 1, 0), (0, 0))
    up = affine[:, :2] @ (0, -1)
    assert up[0] > 0
    assert up[1] < 0
    assert Alignment.of(affine, 96).rotation == pytest.approx(30)


def test_alignment_does_not_take_aspect_for_turning():
    stretched = np.array([(1.2, 0, 0), (0, 0.8, 0)])
    assert Alignment.of(about((47.5, 47.5), stretched[:, :2], (0, 0)), 96).rotation == pytest.approx(0)


@pytest.mark.parametrize("expansion", [1, 2, 4, 8])
def test_soft_argmax_of_one_hot_is_the_cells_centre(expansion):
    grid, count = cell_grid(expansion), 12 * expansion
    heatmaps = torch.zeros(1, 3, count, count, dtype=torch.float64)
    cells = [(0, 0), (count - 1, 0), (5, 7)]  # (column, row)
    for k, (column, row) in enumerate(cells):
        heatmaps[0, k, row, column] = 1
    assert torch.allclose(soft_argmax(heatmaps, grid)[0], grid.to_input(torch.tensor(cells, dtype=torch.float64)))


def test_soft_argmax_of_two_places_is_between_them():
    heatmaps = torch.zeros(1, 1, 12, 10)  # not square
    heatmaps[0, 0, 2, 3], heatmaps[0, 0, 10, 9] = 0.75, 0.25
    assert soft_argmax(heatmaps, CellGrid(3.5, 8.0))[0, 0].tolist() == pytest.approx([4.5 * 8 + 3.5, 4 * 8 + 3.5])


@pytest.mark.parametrize("expansion", [1, 2, 4])
def test_interpolation_is_the_half_pixel_resize(expansion):
    count = 12 * expansion
    maps = torch.randn(2, 5, count, count)
    weights = cell_grid(expansion).interpolation(count, 96)
    found = torch.einsum("yh,xw,bchw->bcyx", weights, weights, maps)
    assert torch.allclose(found, F.interpolate(maps, (96, 96), mode="bilinear", align_corners=False), atol=1e-5)


@pytest.mark.parametrize("expansion", [1, 2, 4, 8])
def test_interpolation_equals_sample_at(expansion):
    grid, count = cell_grid(expansion), 12 * expansion
    maps = torch.randn(1, 4, count, count)
    weights = grid.interpolation(count, 96)
    assert torch.allclose(weights.sum(1), torch.ones(96))
    everywhere = torch.from_numpy(pixel_lattice(96)).flatten(0, 1)[None]
    found = torch.einsum("yh,xw,chw->yxc", weights, weights, maps[0])
    assert torch.allclose(found.flatten(0, 1), sample_at(maps, grid, everywhere)[0], atol=1e-4)


def test_sample_at_reads_a_map_that_is_not_square():
    grid = CellGrid(1.5, 4.0)
    columns, rows = torch.meshgrid(grid.centres(7), grid.centres(5), indexing="xy")
    maps = torch.stack([columns, rows])[None]
    places = torch.tensor([[(1.5, 1.5), (25.5, 17.5), (10.0, 3.25)]], dtype=torch.float64)
    assert torch.allclose(sample_at(maps, grid, places), places)


def test_a_patch_serves_crops_within_it():
    patch = Patch(np.zeros((192, 192, 3), np.uint8), np.array([(1.0, 0, 10), (0, 1.0, 20)]))  # photo pixels
    assert patch.serves(Crop.from_box((10, 20, 202, 212)))
    assert not patch.serves(Crop.from_box((9, 20, 201, 212)))
    assert not patch.serves(Crop.from_box((10, 21, 202, 213)))
    inner = Crop.from_box((60, 70, 150, 160))
    assert patch.serves(inner)
    turned = inner.refine(about((47.5, 47.5), linear_part(45, 1, 0), (0, 0)))
    assert patch.serves(turned)
    assert not patch.serves(turned.pad(60))


def test_a_patch_serves_no_finer_crop_unless_the_photo_is_as_coarse():
    coarse = Patch(np.zeros((192, 192, 3), np.uint8), np.array([(2.0, 0, 0.5), (0, 2.0, 0.5)]))
    assert coarse.serves(Crop.from_box((0, 0, 192, 192)))  # 2 photo pixels per input pixel
    assert not coarse.serves(Crop.from_box((0, 0, 180, 180)))
    photo = Patch(np.zeros((384, 384, 3), np.uint8), np.eye(3)[:2])
    assert photo.serves(Crop.from_box((10, 10, 50, 50)))


@quick
@given(affines(scales=(0.3, 1.2), shift=20), st.floats(0.5, 4), st.sampled_from([96, 104]))
def test_a_ramps_view_holds_its_image_coordinates(affine, step, size):
    patch = ramp_patch(np.array([(step, 0, -7.3), (0, step, 11.8)]), 192, 200)
    start = Crop.from_box((0, 0, 96 * step, 96 * step)).refine(np.array([(1.0, 0, 48), (0, 1.0, 60)]))
    crop = start.refine(affine).pad((size - 96) // 2)
    corners = patch.to_patch(crop.to_image(crop.corners))
    assume((corners >= 0).all() and (corners <= (199, 191)).all())
    seen = sample_view(patch, crop)[:2].permute(1, 2, 0).numpy()
    assert np.abs(seen - crop.to_image(pixel_lattice(size))).max() < 1e-4


def test_a_view_of_the_patchs_own_pixels_is_a_slice_of_it():
    pixels = np.random.default_rng(0).integers(0, 256, (150, 160, 3), dtype=np.uint8)
    patch = Patch(pixels, np.array([(1.0, 0, 5), (0, 1.0, 9)]))
    view = sample_view(patch, Crop.from_box((15, 29, 111, 125)))
    assert view.dtype == torch.float32
    assert torch.allclose(view, torch.from_numpy(pixels[20:116, 10:106]).permute(2, 0, 1) / 255, atol=1e-4)


@pytest.mark.parametrize("scale", [1.5, 2.0, 3.0, 5.0])
def test_a_view_of_a_finer_patch_keeps_what_it_can_show_and_nothing_else(scale):
    """Waves along x: of 16 view pixels, which are to stay, and of 1.1, which no view can show."""
    side, crop = 500, Crop.from_box((5, 5, 5 + 96 * scale, 5 + 96 * scale))

    def contrast(period):
        wave = np.sin(2 * np.pi * np.arange(side) / (period * scale))
        view = sample_view(Patch(np.tile(wave[None, :, None], (side, 1, 3)), np.eye(3)[:2]), crop)
        return float(view.std() / wave.std())

    assert contrast(16) > 0.94
    assert contrast(1.1) < 0.2


@pytest.mark.parametrize("scale", [1.0, 1.5, 2.0])
def test_nothing_jumps_where_the_scale_grows(scale):
    patch = Patch(np.random.default_rng(0).random((220, 220, 3)), np.eye(3)[:2])
    views = [sample_view(patch, Crop.from_box((9, 9, 9 + 96 * s, 9 + 96 * s))) for s in (scale, scale + 1e-9)]
    assert (views[1] - views[0]).abs().max() < 2e-4


def test_beyond_the_patch_its_pixels_are_mirrored():
    patch = ramp_patch(np.eye(3)[:2], 120, 120)
    view = sample_view(patch, Crop.from_box((-3, 0, 93, 96)))
    assert np.allclose(view[0, 50, :6].numpy(), (2, 1, 0, 0, 1, 2))


@quick
@given(affines(), affines(), st.integers(8, 200))
def test_affines_in_torch_do_as_those_in_numpy(first, second, size):
    pair = torch.from_numpy(np.stack([first, second]))
    assert np.allclose(invert_affines(pair), [invert(first), invert(second)])
    assert np.allclose(compose_affines(pair, invert_affines(pair)), np.eye(2, 3), atol=1e-9)
    crops = [Crop(affine, 96).resample(size) for affine in (first, second)]
    assert np.allclose(resample_crops(pair, 96, size), [crop.to_image_affine for crop in crops])


@quick
@given(affines(shift=1.0), st.integers(8, 200), st.integers(8, 200))
def test_affines_of_half_sides_are_those_of_pixels(affine, size, new_size):
    half_sides = np.random.default_rng(0).uniform(-2, 2, (5, 2))
    [found] = half_side_to_pixel_affines(torch.from_numpy(affine)[None], size, new_size).numpy()
    wanted = half_sides_to_pixels(apply_affine(affine, half_sides), new_size)
    assert np.allclose(apply_affine(found, half_sides_to_pixels(half_sides, size)), wanted)


def test_half_sides_by_hand():
    """The same square at twice the resolution: its first pixel is the middle of four."""
    [found] = half_side_to_pixel_affines(torch.eye(2, 3, dtype=torch.float64)[None], 10, 20)
    assert np.allclose(found, [[2, 0, 0.5], [0, 2, 0.5]])


def test_a_pyramid_halves_a_picture():
    levels = build_pyramid(torch.rand(1, 3, 300, 401), smallest=64)
    assert [tuple(level.shape[-2:]) for level in levels] == [(300, 401), (150, 200), (75, 100)]
    assert torch.allclose(levels[1][0, :, 4, 7], levels[0][0, :, 8:10, 14:16].mean((1, 2)))
    assert len(build_pyramid(torch.rand(1, 3, 127, 500))) == 1


@pytest.mark.parametrize("shape", [(512, 640), (403, 517)])
def test_each_level_of_a_pyramid_shows_the_same_places(shape):
    """On a ramp, where a bilinear sample is exact, crops of any size and roll see what the picture itself shows."""
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    ramp = torch.from_numpy(np.stack([columns, rows])[None] / 640).float()
    levels = build_pyramid(ramp)
    centre = np.array(shape[::-1]) / 2
    crops = np.stack(
        [
            Crop(np.column_stack([linear, centre - linear @ (15.5, 15.5) + shift]), 32).to_image_affine
            for scale in (0.5, 1, 1.5, 1.7, 2.5, 4, 6.5)
            for linear, shift in ((linear_part(40, scale, 0.2), (3.3, -8)), (linear_part(-170, scale, 0), (-9, 2.5)))
        ]
    )
    views = sample_pyramid(levels, torch.from_numpy(crops), 32)
    wanted = sample_views(ramp.expand(len(crops), -1, -1, -1), torch.from_numpy(crops), 32)
    assert len(levels) >= 3
    assert (views - wanted).abs().max() < 1e-4


def test_crops_read_the_level_of_about_their_pixels():
    levels = [torch.full((1, 1, 64 // 2**number, 64 // 2**number), float(number)) for number in range(3)]
    scales = torch.tensor([0.5, 1, 1.6, 1.7, 3.2, 3.4, 50.0])
    crops = torch.eye(2, 3, dtype=torch.float64) * scales[:, None, None]
    assert sample_pyramid(levels, crops, 1).flatten().tolist() == [0, 0, 0, 1, 1, 2, 2]
