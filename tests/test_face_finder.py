"""The first look: where its cells are, what it says of them, and what it learns from."""

import math

import numpy as np
import pytest
import torch
from small_models import FINDER
from test_aligner import randomise_norms
from torch import nn

from scemae.geometry import apply_affine, half_sides_to_pixels
from scemae.model.aligner import MEAN, STD
from scemae.model.face_finder import FaceFinder, cell_centres
from scemae.training.fit_finder import INSIDE, NEAR, FinderLoss
from scemae.training.perturbation_config import FindConfig

SIZE = 96
CONFIG = FindConfig(sides=(16.0, 40.0))
SHAPE = torch.Size((12, 12))


@pytest.fixture
def finder():
    return FaceFinder(FINDER)


@pytest.fixture
def loss(finder):
    return FinderLoss(finder, CONFIG)


def view_to_face(middle, side, degrees):
    """The affine (2, 3), half-sides, from a view of `SIZE` px to a face with this middle (px) and side, and roll."""
    angle, scale = math.radians(degrees), side / SIZE
    linear = scale * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    back = np.linalg.inv(linear)
    shift = (np.array(middle) + 0.5) * 2 / SIZE - 1
    return np.column_stack([back, -back @ shift]).astype(np.float32)


def affines_of(*faces):
    return torch.from_numpy(np.stack([view_to_face(*face) for face in faces]))


FACES = (((40.0, 52.0), 24.0, 0.0), ((61.5, 33.0), 37.0, 120.0), ((16.0, 80.0), 17.0, -75.0))


def test_a_cell_lies_on_the_pixel_that_it_sees_first(finder):
    """Convolutions that pass their middle on: the map is every eighth pixel."""
    with torch.no_grad():
        for layer in finder.layers:
            if isinstance(layer, nn.Conv2d):
                nn.init.zeros_(layer.weight)
                nn.init.zeros_(layer.bias)
                layer.weight[:, 0, layer.weight.shape[2] // 2, layer.weight.shape[3] // 2] = 1
        pictures = torch.rand(1, 3, 41, 64)
        outputs = finder.outputs(pictures)
    x, y = cell_centres(outputs.shape[-2:], outputs.device).long()
    assert outputs.shape == (1, 6, 6, 8)
    wanted = ((pictures[0, 0] - MEAN) / STD).relu()[y, x]
    assert torch.allclose(outputs[0], wanted.expand(6, -1, -1), atol=1e-5)
    assert torch.equal(finder(pictures).logits, outputs[:, 0])


def test_cell_centres_by_hand():
    x, y = cell_centres(torch.Size((2, 3)), torch.device("cpu"))
    assert x.tolist() == [[0, 8, 16]] * 2
    assert y.tolist() == [[0, 0, 0], [8, 8, 8]]


def test_norms_are_folded_into_the_convolutions():
    trained = FaceFinder(FINDER, norm=True)
    randomise_norms(trained)
    folded = trained.fold_norms()
    assert folded.state_dict().keys() == FaceFinder(FINDER).state_dict().keys()
    pictures = torch.rand(2, 3, 40, 56)
    for found, wanted in zip(folded(pictures), trained.eval()(pictures), strict=True):
        assert torch.allclose(found, wanted, atol=1e-4, rtol=1e-4)


def test_the_sides_it_sees_have_a_middle():
    assert FINDER.typical_side == pytest.approx(math.sqrt(16 * 40))


def test_targets_by_hand(loss):
    """A face of 24 px, its middle at (44, 52), turned clockwise by 30 degrees."""
    sides, [target] = loss.describe(affines_of(((44.0, 52.0), 24.0, 30.0)), SHAPE, SIZE)
    assert sides.tolist() == pytest.approx([24.0], rel=1e-5)
    assert target[1:3, 6, 5].tolist() == pytest.approx([0.5, 0.5], abs=1e-4)  # the cell at (40, 48)
    assert target[1:3, 0, 0].tolist() == pytest.approx([5.5, 6.5], abs=1e-4)
    for row, wanted in ((0, 0.0), (3, math.log(24 / FINDER.typical_side)), (4, math.sqrt(0.75)), (5, 0.5)):
        assert torch.allclose(target[row], torch.tensor(float(wanted)), atol=1e-5)


def test_a_face_turned_clockwise_has_its_top_to_the_right():
    """What the roll of an affine means: the forehead of the face lies up and to the right of its chin."""
    affine = view_to_face((48, 48), 40, 30)
    back = np.linalg.inv(np.vstack([affine, [0, 0, 1]]))[:2]
    (x, y), (below_x, below_y) = half_sides_to_pixels(apply_affine(back, [(0, -0.8), (0, 0.8)]), SIZE)
    assert x > below_x
    assert y < below_y


def test_what_is_said_of_cells_is_read_again(finder, loss, monkeypatch):
    """Outputs that are the targets give, in every cell, middle, side and roll of the face."""
    _, targets = loss.describe(affines_of(*FACES), SHAPE, SIZE)
    monkeypatch.setattr(finder, "outputs", lambda pictures: targets)
    seen = finder(torch.zeros(len(FACES), 3, SIZE, SIZE))
    for row, (middle, side, degrees) in enumerate(FACES):
        wanted = torch.tensor(middle)[:, None, None].expand(2, *SHAPE)
        assert torch.allclose(seen.centres[row], wanted, atol=1e-3)
        assert torch.allclose(seen.sides[row], torch.tensor(side), rtol=1e-4)
        assert torch.allclose(seen.rolls[row], torch.tensor(math.radians(degrees)), atol=1e-4)


def cells_near(middle, side, within):
    """Which cells (12, 12) lie within so many sides of the middle."""
    offsets = cell_centres(SHAPE, torch.device("cpu")) - torch.tensor(middle)[:, None, None]
    return offsets.norm(dim=0) <= within * side


def loss_of(loss, logits, targets, affines, is_face=True):
    outputs = torch.cat([logits[:, None], targets[:, 1:]], dim=1)
    loss.finder.outputs = lambda views: outputs
    is_face = torch.full((len(affines),), is_face)
    return float(loss(torch.zeros(len(affines), 3, SIZE, SIZE), affines, is_face)["loss"])


def test_nothing_is_lost_where_all_is_said_rightly(loss):
    affines = affines_of(*FACES)
    _, targets = loss.describe(affines, SHAPE, SIZE)
    here = torch.stack([cells_near(middle, side, INSIDE) for middle, side, _ in FACES])
    right = torch.where(here, 20.0, -20.0)
    assert here.any((1, 2)).tolist() == [True] * 3
    assert loss_of(loss, right, targets, affines) < 1e-6
    assert loss_of(loss, -right, targets, affines) > 10
    between = torch.stack([cells_near(middle, side, NEAR) for middle, side, _ in FACES]) & ~here
    assert loss_of(loss, torch.where(between, 20.0, right), targets, affines) < 1e-6  # neither face nor not
    moved = targets.clone()
    moved[:, 1:3] += 0.1
    assert loss_of(loss, right, moved, affines) == pytest.approx(0.2 * 0.2, rel=1e-3)
    moved[:, 1:3] = torch.where(here[:, None], targets[:, 1:3], moved[:, 1:3])  # elsewhere places mean nothing
    assert loss_of(loss, right, moved, affines) < 1e-6


@pytest.mark.parametrize(
    ("side", "is_face", "right", "free"),
    [
        pytest.param(24.0, True, True, False, id="a face"),
        pytest.param(24.0, False, False, False, id="no face"),
        pytest.param(15.0, True, False, True, id="a little too small"),
        pytest.param(48.0, True, False, True, id="a little too large"),
        pytest.param(12.0, True, False, False, id="too small"),
        pytest.param(52.0, True, False, False, id="too large"),
    ],
)
def test_which_faces_count(loss, side, is_face, right, free):
    """`free`: whether it costs nothing to see a face there, nor not to."""
    affines = affines_of(((48.0, 48.0), side, 10.0))
    _, targets = loss.describe(affines, SHAPE, SIZE)
    here = cells_near((48.0, 48.0), side, INSIDE)[None]
    seen, unseen = (
        loss_of(loss, torch.where(here & saw, 20.0, -20.0), targets, affines, is_face)
        for saw in (torch.tensor(True), torch.tensor(False))
    )
    assert (seen < 1e-6) == (right or free)
    assert (unseen < 1e-6) == (not right or free)
