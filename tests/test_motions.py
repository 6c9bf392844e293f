"""Known motions by coordinate ramps, and the positional discriminant on planted tokens."""

import numpy as np
import pytest
import torch
from training_runs import pack_squares

from scemae.geometry import pixels_to_half_sides
from scemae.training.discriminant import CLASS_REACH, PositionalScatter
from scemae.training.motions import Moves, move_points, random_motions, token_centres
from scemae.training.training_config import MotionConfig

INPUT = 96
CONSTANT_LIGHT = MotionConfig(brightness=0.0, log_contrast=0.0)


@pytest.fixture
def ramps(tmp_path):
    """Three faces whose red is the column and whose green is the row of each pixel, 112 px."""
    rows, columns = np.mgrid[:112, :112]
    ramp = np.stack([columns, rows, 0 * rows], axis=-1).astype(np.uint8)
    return pack_squares(tmp_path / "ramps", [ramp] * 3)


def test_no_motion_is_no_motion():
    motions = random_motions(np.random.default_rng(0), 5, MotionConfig(), amplitude=0, input_size=INPUT)
    np.testing.assert_allclose(motions, np.tile(np.eye(3), (5, 1, 1)), atol=1e-12)


def test_motions_have_the_spread_of_their_settings():
    motions = random_motions(np.random.default_rng(0), 20_000, MotionConfig(), amplitude=0.5, input_size=INPUT)
    linear, centre = motions[:, :2, :2], np.full((1, 2), (INPUT - 1) / 2)
    angles = np.arctan2(linear[:, 1, 0] - linear[:, 0, 1], linear[:, 0, 0] + linear[:, 1, 1])
    scales = np.log(np.linalg.det(linear)) / 2
    shifts = (move_points(motions, centre) - centre)[:, 0] / (INPUT / 2)
    assert angles.std() == pytest.approx(0.15, rel=0.03)
    assert scales.std() == pytest.approx(0.075, rel=0.03)
    assert shifts.std(axis=0) == pytest.approx([0.065, 0.065], rel=0.03)
    assert abs(angles.mean()) < 0.005


def test_points_are_seen_where_the_motion_says(ramps):
    """The colour at the predicted place of a moved view is the place itself, or its mirror image."""
    points = np.array([(40.0, 30.0), (60.0, 64.0), (30.0, 55.0)])
    moves = Moves.draw(np.random.default_rng(1), 12, CONSTANT_LIGHT, amplitude=0.4, input_size=INPUT)
    views = moves.sample(ramps, np.array([0, 1, 2] * 4)).numpy()
    mirrored = 0
    for view, places in zip(views, moves.to_moved(points), strict=True):
        inside = ((places > 1) & (places < INPUT - 2)).all(axis=1)
        for (x, y), wanted in zip(places[inside], points[inside] + 8, strict=True):
            left, top = int(x), int(y)
            square = 255 * view[:2, top : top + 2, left : left + 2]
            across = square[:, :, 0] * (1 - x + left) + square[:, :, 1] * (x - left)
            seen = across[:, 0] * (1 - y + top) + across[:, 1] * (y - top)
            is_mirrored = abs(seen[0] - (111 - wanted[0])) < 0.01
            assert is_mirrored or abs(seen[0] - wanted[0]) < 0.01
            assert abs(seen[1] - wanted[1]) < 0.01
            mirrored += is_mirrored
    assert 5 < mirrored < 30


def test_to_unmoved_undoes_to_moved():
    moves = Moves.draw(np.random.default_rng(1), 3, CONSTANT_LIGHT, amplitude=1, input_size=INPUT)
    points = np.array([(40.0, 30.0), (60.0, 64.0)])
    for k, seen in enumerate(moves.to_moved(points)):
        np.testing.assert_allclose(moves.to_unmoved(seen)[k], points, atol=1e-9)
    assert np.array_equal(moves[1:3].motions, moves.motions[1:])


def test_token_centres_go_row_by_row():
    assert token_centres(12, INPUT)[[0, 1, 12]].tolist() == [[3.5, 3.5], [11.5, 3.5], [3.5, 11.5]]


def planted_tokens(count=4000):
    """Tokens whose first two numbers weakly tell their place, in loud nuisance; (tokens, places) in half-sides."""
    generator = torch.Generator().manual_seed(0)
    places = 2 * torch.rand(1, count, 2, generator=generator, dtype=torch.float64) - 1
    tokens = 20 * torch.randn(1, count, 6, generator=generator)
    tokens[..., :2] = 0.5 * places.float() + 0.05 * torch.randn(1, count, 2, generator=generator)
    return tokens + 3, places


def test_the_projection_keeps_what_tells_the_place():
    tokens, places = planted_tokens()
    scatter = PositionalScatter(6, cells=8)
    for part in range(4):  # streamed
        chosen = slice(part * 1000, (part + 1) * 1000)
        scatter.add(tokens[:, chosen], places[:, chosen])
    mean, projection = scatter.solve(2, shrinkage=1e-6)
    torch.testing.assert_close(mean, tokens[0].mean(0), rtol=1e-4, atol=1e-4)
    projected = (tokens[0] - mean) @ projection
    torch.testing.assert_close(projected.std(0), torch.ones(2), rtol=1e-2, atol=0)
    design = torch.cat([projected.double(), torch.ones(len(projected), 1)], dim=1)
    left = places[0] - design @ torch.linalg.lstsq(design, places[0]).solution
    assert float(left.std()) < 0.15  # of 0.58: the noise of 0.05 / 0.5


def test_scatter_is_that_of_the_definition():
    tokens, places = planted_tokens(500)
    scatter = PositionalScatter(6, cells=3)
    scatter.add(tokens, places)
    _, projection = scatter.solve(6, shrinkage=0.1)
    x = tokens[0].double()
    classes = ((places[0] / CLASS_REACH + 1) * 1.5).floor().long() @ torch.tensor([1, 3])
    means = torch.stack([x[classes == c].mean(0) for c in classes])
    between = (means - x.mean(0)).T @ (means - x.mean(0)) / len(x)
    within = (x - means).T @ (x - means) / len(x)
    within += 0.1 * within.diagonal().mean() * torch.eye(6)
    for direction in projection.T.double():  # eigenvectors of within^-1 between
        image = torch.linalg.solve(within, between @ direction)
        cosine = torch.nn.functional.cosine_similarity(image, direction, dim=0)
        assert float(cosine) == pytest.approx(1, abs=1e-3)


def test_tokens_beyond_reach_do_not_count():
    scatter = PositionalScatter(2, cells=4)
    places = torch.tensor([[[0.0, 0.0], [1.2, 0.0], [0.0, -1.17], [1.16, -1.16]]], dtype=torch.float64)
    scatter.add(torch.ones(1, 4, 2), places)
    assert scatter.counts.sum() == 2
    assert scatter.counts[3] == 1  # the top right cell


def test_half_sides_are_pixel_edges():
    assert pixels_to_half_sides([-0.5, 47.5, 95.5], INPUT).tolist() == [-1, 0, 1]
