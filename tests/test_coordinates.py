"""The coordinate law from end to end: a map made of its own cell centres, sampled at a point, gives the point."""

import io
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image

from scemae.geometry import CellGrid, Crop, apply_affine, compose, sample_at, sample_view
from scemae.images import iter_photos
from scemae.model import cover_and_stride
from scemae.model.cover_and_stride import EXPANSIONS, cell_grid, expand, view_margin
from scemae.patches import cut_patch, validate_box

ORIENTATIONS = range(1, 9)
ORIENTATION_TAG = 0x0112
# What a camera stores for each EXIF orientation: how the upright picture is turned before it is written.
STORED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def stored(upright, orientation):
    """The picture as a file with that EXIF orientation holds it."""
    image = upright.transpose(STORED[orientation]) if orientation in STORED else upright.copy()
    image.getexif()[ORIENTATION_TAG] = orientation
    return image


def saved(upright, orientation, kind, **options):
    image = stored(upright, orientation)
    buffer = io.BytesIO()
    image.save(buffer, kind, exif=image.getexif(), **options)
    return buffer.getvalue()


def shift_by(distance):
    """The affine that adds a distance to both coordinates."""
    return np.array([(1.0, 0.0, distance), (0.0, 1.0, distance)])


def about_the_middle(degrees, scale, shear, x, y):
    """An affine of the 96 x 96 input about its centre."""
    angle = np.radians(degrees)
    turn = np.array([(np.cos(angle), -np.sin(angle)), (np.sin(angle), np.cos(angle))])
    linear = scale * turn @ np.array([(1.0, shear), (0.0, 1.0)])
    return np.column_stack([linear, 47.5 - linear @ (47.5, 47.5) + (x, y)])


refinements = st.one_of(
    st.just(np.eye(3)[:2]),
    st.builds(
        about_the_middle,
        st.floats(-180, 180),
        st.floats(0.4, 1.2),
        st.floats(-0.15, 0.15),
        st.floats(-6, 6),
        st.floats(-6, 6),
    ),
)


@st.composite
def photos_with_boxes(draw):
    """An upright photo of a picture of any EXIF orientation, not square, and a box that lies in it or sticks out."""
    width = draw(st.integers(60, 500))
    height = width + draw(st.sampled_from([-31, -1, 1, 2, 77]))
    upright = Image.new("RGB", (width, height))
    [photo] = iter_photos(stored(upright, draw(st.sampled_from(ORIENTATIONS))))
    assert photo.image.size == (width, height)
    if draw(st.booleans()):
        return photo, validate_box(None, photo)
    side, aspect = draw(st.floats(20, 29)) * min(width, height) / 29, draw(st.floats(0.6, 1))
    x, y = draw(st.floats(0, 1)) * (width - side), draw(st.floats(0, 1)) * (height - side)
    return photo, validate_box((x, y, x + side, y + aspect * side), photo)


def ramp(patch):
    """The patch with pixels that hold their own image coordinates, float64: x in channel 0, y in channel 1."""
    height, width = patch.pixels.shape[:2]
    rows, columns = np.mgrid[:height, :width]
    xy = apply_affine(patch.to_image_affine, np.stack([columns, rows], axis=-1))
    return replace(patch, pixels=np.concatenate([xy, np.zeros((height, width, 1))], axis=-1))


def shown(photo, box, refinement, at_input_scale=False, input_size=96, patch_size=8):
    """The refined crop, and the patch that extraction would show it from."""
    start = Crop.from_box(box, input_size)
    crop = start.refine(refinement)
    patch = cut_patch(photo.image, start, at_input_scale)
    patch = patch if patch.serves(crop.pad(view_margin(patch_size))) else cut_patch(photo.image, crop)
    return crop, patch


def stays_inside(patch, crop):
    """Whether the crop lies between pixel centres of a patch that serves it, where nothing is mirrored."""
    corners = patch.to_patch(crop.to_image(crop.corners))
    inside = (corners >= 0).all() and (corners <= np.array(patch.pixels.shape[1::-1]) - 1).all()
    return patch.serves(crop) and bool(inside)


def centre_of_each_patch(windows, patch_size=8):
    """A map (b, 2, h, w) of the mean of each patch: of a ramp, the image point of the patch's centre."""
    return F.avg_pool2d(windows[:, :2], patch_size)


def map_of_centres(patch, crop, expansion, patch_size=8):
    """The expanded map whose cells hold the image points of their own centres."""
    views = sample_view(ramp(patch), crop.pad(view_margin(patch_size)))[None]
    return expand(partial(centre_of_each_patch, patch_size=patch_size), views, expansion, patch_size)


def read(maps, grid, crop, points):
    """What the map holds at image points (K, 2)."""
    return sample_at(maps, grid, torch.from_numpy(crop.to_input(points))[None])[0].numpy()


@pytest.mark.parametrize("expansion", EXPANSIONS)
@settings(deadline=None, max_examples=25)
@given(photos_with_boxes(), refinements, st.booleans(), st.integers(0, 1000))
def test_a_map_of_centres_sampled_at_a_point_gives_the_point(
    expansion, photo_and_box, refinement, at_input_scale, seed
):
    crop, patch = shown(*photo_and_box, refinement, at_input_scale)
    assume(stays_inside(patch, crop.pad(view_margin())))
    maps, grid = map_of_centres(patch, crop, expansion), cell_grid(expansion)
    first, last = grid.centres(12 * expansion)[[0, -1]].tolist()

    inside = np.random.default_rng(seed).uniform(first, last, (30, 2))
    points = crop.to_image(inside)
    assert np.abs(read(maps, grid, crop, points) - points).max() < 1e-4

    outside = np.random.default_rng(seed).uniform(-40, 136, (30, 2))
    on_the_hull = crop.to_image(outside.clip(first, last))
    assert np.abs(read(maps, grid, crop, crop.to_image(outside)) - on_the_hull).max() < 1e-4


@pytest.mark.parametrize(
    ("input_size", "patch_size", "expansion"),
    [(64, 8, 8), (64, 16, 1), (64, 16, 2), (64, 16, 4), (64, 16, 8), (64, 4, 1), (64, 4, 2), (64, 4, 4), (120, 12, 4)],
)
def test_the_law_holds_for_other_sizes_of_input_and_patch(input_size, patch_size, expansion):
    [photo] = iter_photos(Image.new("RGB", (300, 250)))
    middle = (input_size - 1) / 2
    refinement = compose(about_the_middle(20, 0.9, 0.1, 3 + middle - 47.5, -2 + middle - 47.5), shift_by(47.5 - middle))
    crop, patch = shown(photo, (60, 40, 200, 180), refinement, input_size=input_size, patch_size=patch_size)
    assert stays_inside(patch, crop.pad(view_margin(patch_size)))
    maps, grid = map_of_centres(patch, crop, expansion, patch_size), cell_grid(expansion, patch_size)
    count = input_size // patch_size * expansion
    assert maps.shape[-2:] == (count, count)
    assert grid.extent(count) == input_size
    inside = np.random.default_rng(0).uniform(*grid.centres(count)[[0, -1]].tolist(), (30, 2))
    points = crop.to_image(inside)
    assert np.abs(read(maps, grid, crop, points) - points).max() < 1e-4


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("expansion", EXPANSIONS)
def test_real_pixels_lie_where_the_law_says(expansion, orientation):
    """The photo itself is a ramp (x in red, y in green, whole numbers), so the patch's pixels are judged too."""
    width, height = 213, 178
    rows, columns = np.mgrid[:height, :width]
    upright = Image.fromarray(np.stack([columns, rows, 0 * rows], axis=-1).astype(np.uint8))
    [photo] = iter_photos(saved(upright, orientation, "PNG"))
    crop, patch = shown(photo, (40, 20.5, 171, 150), about_the_middle(20, 0.9, 0.1, 3, -2))
    assert stays_inside(patch, crop.pad(view_margin()))
    maps = expand(centre_of_each_patch, 255 * sample_view(patch, crop.pad(view_margin()))[None], expansion)
    points = crop.to_image(np.random.default_rng(0).uniform(5, 90, (50, 2)))
    errors = read(maps, cell_grid(expansion), crop, points) - points
    assert np.abs(errors).max() < 0.3  # pixels are whole numbers
    assert np.abs(errors.mean(0)).max() < 0.05


def test_the_naive_shifts_would_be_three_pixels_off(monkeypatch):
    """The shifts 0, 2, 4, 6 and the half-pixel grid: what the property above is there to catch."""
    [photo] = iter_photos(Image.new("RGB", (300, 250)))
    crop, patch = shown(photo, (60, 40, 156, 136), np.eye(3)[:2])  # one image pixel an input pixel
    points = crop.to_image(np.random.default_rng(0).uniform(10, 80, (30, 2)))
    grid = cell_grid(4)
    assert grid == CellGrid(0.5, 2.0)
    monkeypatch.setattr(cover_and_stride, "view_margin", lambda patch_size: 8)  # room for a shift of 6
    view = sample_view(ramp(patch), crop.pad(8))[None]
    assert np.abs(read(expand(centre_of_each_patch, view, 4), grid, crop, points) - points).max() < 1e-4
    monkeypatch.setattr(cover_and_stride, "shifts", lambda expansion, patch_size: [0, 2, 4, 6])
    assert np.allclose(read(expand(centre_of_each_patch, view, 4), grid, crop, points) - points, 3)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_dot_is_where_it_is_seen(orientation, kind):
    """A bright dot at (13, 5) of the upright picture, saved as a camera held in each of the 8 ways would."""
    pixels = np.zeros((31, 48, 3), np.uint8)
    pixels[5, 13] = 255
    options = {"quality": 100, "subsampling": 0} if kind == "JPEG" else {}
    [photo] = iter_photos(saved(Image.fromarray(pixels), orientation, kind, **options))
    assert photo.image.size == (48, 31)
    grey = np.asarray(photo.image.convert("L"))
    assert np.unravel_index(grey.argmax(), grey.shape) == (5, 13)
    assert (grey > 128).sum() == 1
