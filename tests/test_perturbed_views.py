"""Perturbed views of squares whose colours are places: what must be seen where is known exactly."""

from dataclasses import fields

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from scemae.training.batches import Squares
from scemae.training.perturbation_config import CANONICAL_POINTS, AlignConfig
from scemae.training.perturbed_views import (
    PIECE,
    Perturbations,
    cut_backgrounds,
    draw_affines,
    draw_fields,
    locate_canonical,
    render_views,
)

CANONICAL = torch.tensor(CANONICAL_POINTS)
FRAME = 96 / 136  # side of the canonical frame over that of the square
NO_LIGHT = (1.0, 0.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0)
GREY = 77  # of the backgrounds


def ramp(size=136):
    """A square (size, size, 3): red is the column, green the row, in half-sides of the square; blue is none."""
    axis = (np.arange(size) + 0.5) * 2 / size - 1
    columns, rows = np.meshgrid(axis, axis)
    return ((np.stack([columns, rows, -np.ones_like(rows)], -1) + 1) * 127.5).round().astype(np.uint8)


def unperturbed(count):
    """The fields of `Perturbations` that show the whole squares as they are."""
    return {
        "affines": torch.eye(2, 3).repeat(count, 1, 1),
        "mirrored": torch.zeros(count, dtype=torch.bool),
        "is_face": torch.ones(count, dtype=torch.bool),
        "replaced": torch.zeros(count, dtype=torch.bool),
        "decoy": torch.zeros(count, 3),
        "mirrored_border": torch.zeros(count, dtype=torch.bool),
        "border": torch.full((count, 4), 9.0),
        "softness": torch.full((count,), 1e-3),
        "rounded": torch.zeros(count, dtype=torch.bool),
        "background": torch.zeros(count, dtype=torch.int64),
        "patch": torch.zeros(count, 4),
        "light": torch.tensor(NO_LIGHT).repeat(count, 1),
        "blur": torch.zeros(count),
    }


def render(drawn, size=64, square=None, backgrounds=None, frame=FRAME):
    count = len(drawn["affines"])
    squares = torch.from_numpy(np.stack([ramp() if square is None else square] * count))
    if backgrounds is None:
        backgrounds = torch.full((count, size, size, 3), GREY, dtype=torch.uint8)
    return render_views(squares, backgrounds, drawn, frame, size)


def places_seen(views):
    """The places (n, 2, size, size), half-sides of the square, that pixels show."""
    return views[:, :2] * 2 - 1


def test_fields_are_those_of_perturbations():
    assert list(unperturbed(1)) == [field.name for field in fields(Perturbations)]


def test_canonical_points_by_hand():
    """A view of twice the frame's side, turned by a quarter, its middle at (0.5, 0): the nose is where it must be."""
    affines = torch.tensor([[[0.0, -2, 0.5], [2, 0, 0]], [[1, 0, 0], [0, 1, 0]]])
    points = locate_canonical(affines, torch.tensor([(0.5, 0.0), (0.0, 0.06)]))
    assert torch.allclose(points[0], torch.tensor([(0.0, 0.0), (0.03, 0.25)]), atol=1e-6)
    assert torch.allclose(points[1], torch.tensor([(0.5, 0.0), (0.0, 0.06)]), atol=1e-6)


@pytest.mark.parametrize("size", [136, 112])
def test_the_canonical_points_show_their_places(size):
    """Views of any roll, scale and shift, some mirrored: at each canonical point the colour of that place is seen."""
    config, count = AlignConfig(scales=(0.4, 3.0)), 200
    drawn = unperturbed(count)
    rng = np.random.default_rng(0)
    drawn["affines"] = torch.from_numpy(draw_affines(rng, count, config))
    drawn["mirrored"] = torch.from_numpy(rng.random(count) < 0.5)
    drawn["blur"] = torch.from_numpy(rng.uniform(0, 2, count).astype(np.float32))
    frame = 96 / size
    views = render(drawn, square=ramp(size), frame=frame)
    points = locate_canonical(drawn["affines"], CANONICAL)
    seen = F.grid_sample(places_seen(views), points[:, None], align_corners=False)[:, :, 0].mT
    mirror = 1 - 2 * drawn["mirrored"][:, None].float()
    wanted = CANONICAL * frame * torch.stack([mirror, torch.ones_like(mirror)], -1)
    inside = (points.abs() < 0.95).all(-1) & (wanted.abs() < 0.7).all(-1)
    assert inside.sum() > 400
    assert inside[drawn["mirrored"]].sum() > 100
    assert (seen - wanted)[inside].abs().max() < 0.01


@pytest.mark.parametrize("blur", [0, 1, 2, 5])
def test_every_level_of_the_pyramid_shows_the_same_places(blur):
    drawn = unperturbed(1)
    drawn["blur"][:] = blur
    views = render(drawn)
    axis = ((torch.arange(64) + 0.5) / 32 - 1) * FRAME
    middle = slice(4, 60)
    assert (places_seen(views)[0, 0] - axis)[middle, middle].abs().max() < 0.01
    assert (places_seen(views)[0, 1] - axis[:, None])[middle, middle].abs().max() < 0.01


def test_blur_skips_levels():
    """A checkerboard of single pixels is grey from the second level on."""
    checks = np.zeros((128, 128, 3), np.uint8)
    checks[::2, ::2] = checks[1::2, 1::2] = 255
    drawn = unperturbed(3)
    drawn["blur"] = torch.tensor([0, 0.9, 1.0])
    views = render(drawn, size=128, square=checks, frame=1.0)
    assert [float(view.std()) > 0.1 for view in views] == [True, True, False]


def test_chunks_change_nothing():
    drawn = unperturbed(70)
    drawn["affines"] = torch.from_numpy(draw_affines(np.random.default_rng(0), 70, AlignConfig()))
    views = render(drawn)
    last = render({name: values[-3:] for name, values in drawn.items()})
    assert torch.equal(views[-3:], last)


def test_the_border_is_where_it_is_said():
    drawn = unperturbed(4)
    drawn["affines"] *= 1.5  # so that the view shows more than the square
    drawn["border"] = torch.tensor([(0.5, 0.75, 0.9, 0.25)]).repeat(4, 1)
    drawn["rounded"][2] = True
    drawn["mirrored_border"][3] = True
    drawn["softness"][1] = 0.4
    views = render(drawn, size=136)
    axis = ((torch.arange(136) + 0.5) / 68 - 1) * 1.5 * FRAME
    x, y = torch.meshgrid(axis, axis, indexing="xy")
    inside = torch.stack([x + 0.5, 0.75 - x, y + 0.9, 0.25 - y]).amin(0)
    background = (views - GREY / 255).abs().amax(1) < 1e-3
    assert torch.equal(background[0], inside < 0)
    assert not background[3].any()
    rounded = torch.minimum(inside, 1 - torch.hypot(2 * x / 1.25, 2 * y / 1.15))
    assert torch.equal(background[2] & (rounded.abs() > 1e-3), rounded < -1e-3)
    shown = (inside / 0.4 + 0.5).clamp(0, 1)
    wanted = torch.lerp(torch.full_like(x, GREY / 255), (x.clamp(-1, 1) + 1) / 2, shown)
    assert (views[1, 0] - wanted).abs()[x.abs() < 0.98].max() < 0.01


def test_something_hides_a_part():
    drawn = unperturbed(2)
    drawn["patch"][0] = torch.tensor([0.25, -0.5, 0.25, 0.125])
    backgrounds = torch.stack([torch.full((64, 64, 3), grey, dtype=torch.uint8) for grey in (10, 200)])
    views = render(drawn, backgrounds=backgrounds)
    plain = render(unperturbed(2))
    axis = (torch.arange(64) + 0.5) / 32 - 1
    beyond = torch.maximum((axis - 0.25).abs() - 0.25, (axis[:, None] + 0.5).abs() - 0.125)
    assert torch.allclose(views[0][:, beyond < -1 / 32], torch.tensor(200 / 255))  # the other background
    assert torch.equal(views[0][:, beyond > 1 / 32], plain[0][:, beyond > 1 / 32])
    assert torch.equal(views[1], plain[1])


@pytest.mark.parametrize(
    ("light", "wanted"),
    [
        pytest.param((2, 0, 1, 1, 1, 1, 0, 0), lambda v: (2 * (v - 0.5) + 0.5).clamp(0, 1), id="contrast"),
        pytest.param((1, 0.3, 1, 1, 1, 1, 0, 0), lambda v: (v + 0.3).clamp(0, 1), id="brightness"),
        pytest.param((1, 0, 2, 1, 1, 1, 0, 0), lambda v: v**2, id="gamma"),
        pytest.param((1, 0, 1, 0.5, 1, 1, 0, 0), lambda v: v * torch.tensor([0.5, 1, 1]).view(3, 1, 1), id="gain"),
        pytest.param((1, 0, 1, 1, 1, 1, 0, 1), lambda v: v.mean(1, keepdim=True).expand(-1, 3, -1, -1), id="grey"),
    ],
)
def test_light_by_hand(light, wanted):
    drawn = unperturbed(1)
    plain = render(drawn)
    drawn["light"][0] = torch.tensor(light)
    assert torch.allclose(render(drawn), wanted(plain), atol=2e-3)


def test_noise_is_bounded():
    drawn = unperturbed(1)
    drawn["light"][0, 6] = 0.2
    apart = (render(drawn) - render(unperturbed(1))).abs()
    assert 0.09 < apart.max() <= 0.1 + 1e-3
    assert apart[:, :2].mean() == pytest.approx(0.05, abs=0.005)


def test_decoys_are_in_the_place_of_faces():
    squares = torch.from_numpy(np.stack([ramp(40)] * 3))
    backgrounds = np.stack([np.full((10, 10, 3), grey, np.uint8) for grey in (10, 20, 30)])
    backgrounds[0, 0, 9] = 99
    drawn = Perturbations.draw(np.random.default_rng(0), 3, 3, AlignConfig())
    drawn.replaced[:] = (False, True, True)
    drawn.decoy[:] = [(0, 0, 0), (0.25, 0.5, 0.4), (0, 0, 0)]
    drawn.background[:] = (0, 1, 2)
    drawn.replace_some(squares, Squares(backgrounds))
    squares = squares.numpy()
    assert np.array_equal(squares[0], ramp(40))
    places = (np.arange(40) / 40 * 0.4 * 40 + 1e-4).astype(int)
    assert np.array_equal(squares[1], ramp(40)[20 + places][:, 10 + places])
    assert (squares[2, :4, -4:] == 99).all()  # the next background, as large as the face
    assert (squares[2] == 10).sum() == 3 * (40**2 - 16)


def test_a_part_of_the_views_shows_no_face():
    config, count = AlignConfig(negatives=0.4), 8000
    drawn = Perturbations.draw(np.random.default_rng(0), count, 50, config)
    other = ~drawn.is_face
    assert other.mean() == pytest.approx(0.4, abs=0.02)
    empty = (drawn.border == -9).all(1)
    scales = np.sqrt(np.abs(np.linalg.det(drawn.affines[:, :, :2])))
    piece = other & (scales <= PIECE[1] * 1.001) & drawn.mirrored_border
    assert not (empty | drawn.replaced)[drawn.is_face].any()
    for share, wanted in ((empty, 0.25), (piece, 0.25), (drawn.replaced, 0.5)):
        assert share[other].mean() == pytest.approx(wanted, abs=0.03)
    assert (empty.astype(int) + piece + drawn.replaced)[other].tolist() == [1] * other.sum()
    assert (scales[piece] >= PIECE[0] * 0.999).all()
    decoy = drawn.decoy[:, 2] > 0
    assert not decoy[~drawn.replaced].any()
    assert decoy[drawn.replaced].mean() == pytest.approx(0.5, abs=0.03)
    assert (drawn.decoy[:, :2].max(1) + drawn.decoy[:, 2]).max() <= 1
    assert 0 < drawn.background.max() < 50
    none = Perturbations.draw(np.random.default_rng(0), 500, 50, AlignConfig(negatives=0.0))
    assert none.is_face.all()


def test_an_empty_view_is_its_background():
    config = AlignConfig(negatives=1.0, hidden_part=0.0)
    drawn = draw_fields(np.random.default_rng(0), 40, 40, config)
    drawn["light"][:] = torch.tensor(NO_LIGHT)
    views = render(drawn)
    empty = (drawn["border"] == -9).all(1)
    assert 4 < empty.sum() < 20
    assert (views[empty] - GREY / 255).abs().max() < 1e-3
    piece = drawn["mirrored_border"] & ~drawn["replaced"]
    spread = places_seen(views[piece]).flatten(2)
    assert (spread.amax(2) - spread.amin(2)).max() < 2 * 2**0.5 * PIECE[1]  # a small part of the face fills the view
    assert (views[piece, 2] < 0.01).all()


def test_wide_and_near_affines():
    count = 4000
    affines = draw_affines(np.random.default_rng(0), count, AlignConfig(wide=1.0, shear=0.0, scales=(0.4, 2.5)))
    scales = np.sqrt(np.linalg.det(affines[:, :, :2]))
    assert scales.min() == pytest.approx(0.4, rel=0.02)
    assert scales.max() == pytest.approx(2.5, rel=0.02)
    angles = np.degrees(np.arctan2(affines[:, 1, 0], affines[:, 0, 0]))
    assert np.histogram(angles, 8, (-180, 180))[0].min() > 0.8 * count / 8
    shifts = np.abs(affines[:, :, 2]) / scales.clip(0.6, 1.8)[:, None]
    assert 0.99 < shifts.max() <= 1.0001
    near = draw_affines(np.random.default_rng(0), count, AlignConfig(wide=0.0))
    assert np.abs(near - np.eye(2, 3)).mean() < 0.2
    assert near.dtype == np.float32


def test_the_same_seed_draws_the_same():
    first, second = (draw_fields(np.random.default_rng(3), 9, 4, AlignConfig()) for _ in range(2))
    assert all(torch.equal(values, second[name]) for name, values in first.items())
    drawn = Perturbations.draw(np.random.default_rng(3), 9, 4, AlignConfig())
    assert np.array_equal(drawn[2:5].affines, drawn.affines[2:5])
    assert first.keys() == vars(drawn).keys()


def test_backgrounds_are_parts_of_pictures():
    """On ramps the side of each part, and where it was cut, can be read."""
    wide = np.repeat((np.arange(240) / 2).astype(np.uint8)[None, :, None], 120, 0).repeat(3, 2)
    grey = np.full((60, 20, 3), 200, np.uint8)
    squares = cut_backgrounds([wide, grey], 400, 16, np.random.default_rng(0))
    assert squares.shape == (400, 16, 16, 3)
    assert squares.dtype == np.uint8
    assert (squares[1::2] == 200).all()
    steps = squares[::2, 8, :, 0].astype(float)
    sides = np.abs(steps[:, -1] - steps[:, 0]) * 2 * 16 / 15
    assert sides.min() == pytest.approx(20, abs=5)
    assert sides.max() == pytest.approx(120, abs=5)
    assert (steps[:, -1] < steps[:, 0]).mean() == pytest.approx(0.5, abs=0.12)  # half of them mirrored
