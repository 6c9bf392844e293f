"""The dense shape: its stages with planted weights, and what matching and the cascade make of planted shapes."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import scemae
from scemae.detector.built_in_heads import HEADS, new_head
from scemae.detector.cascade import CascadeHead
from scemae.detector.head import AnnotatedMaps
from scemae.detector.shaped_cascade import ShapedCascadeHead
from scemae.errors import IncompatibleWeightsError, OptionError
from scemae.geometry import CellGrid, FaceShapes
from scemae.model.config import DenseShapeConfig
from scemae.model.cover_and_stride import cell_grid
from scemae.model.dense_shape import DenseShape

CONFIG = DenseShapeConfig(components=2, modes=1, global_stages=1, local_stages=1)
GRID = cell_grid(2)


def planted_shape(width=2, mode=None, bias=0.0):
    """It reads the first two channels; the local stage moves each place by them, (x, y), as they are there."""
    shape = DenseShape(CONFIG, width, 96, 8)
    shape.components[[0, 1], [0, 1]] = 1.0
    places = shape.frame.count**2
    shape.modes[0] = torch.zeros(2 * places) if mode is None else mode.flatten()
    shape.global_weights[0, -1, 0] = bias
    shape.local_weights[0, :, [0, 1], [0, 1]] = 1.0
    return shape


def test_a_global_stage_moves_all_places_along_a_mode():
    mode = torch.zeros(576, 2)
    mode[:, 1] = torch.linspace(-1, 1, 576)
    shape = planted_shape(mode=mode, bias=3.0)
    found = shape(torch.zeros(2, 2, 24, 24), GRID)
    torch.testing.assert_close(found, (shape.frame.places.float() + 3 * mode).expand(2, -1, -1))


def test_a_local_stage_reads_where_the_global_one_led():
    """All places are moved 4 px right; there the map says how far on: a ramp of x / 10."""
    mode = torch.zeros(576, 2)
    mode[:, 0] = 1.0
    shape = planted_shape(mode=mode, bias=4.0)
    maps = torch.zeros(1, 2, 24, 24)
    maps[0, 0] = shape.frame.grid.centres(24).float() / 10
    found = shape(maps, GRID)[0]
    expected = shape.frame.places.float()
    moved = expected[:, 0] + 4
    expected[:, 0] = moved + moved.clamp(max=93.5) / 10  # beyond the last cell its value goes on
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_what_is_read_has_its_mean_taken_off():
    shape = planted_shape()
    shape.offset.copy_(torch.tensor([2.0, -1.0]))
    found = shape(torch.zeros(1, 2, 24, 24), GRID)[0]
    torch.testing.assert_close(found, shape.frame.places.float() + torch.tensor([-2.0, 1.0]))


def test_the_local_stage_reads_left_right_above_and_below():
    shape = DenseShape(CONFIG, 2, 96, 8)
    shape.components[0, 0] = 1.0
    maps = torch.zeros(1, 2, 24, 24)
    maps[0, 0] = shape.frame.grid.centres(24).float() + 1000 * shape.frame.grid.centres(24).float()[:, None]
    read = shape.describe_locally(shape.reduce(maps), GRID, torch.tensor([[[41.5, 33.5]]]))[0, 0]
    assert read[-1] == 1
    torch.testing.assert_close(read[:-1:2], torch.tensor([33541.5, 33536.5, 33546.5, 28541.5, 38541.5]))


def test_any_expansion_serves():
    shape = planted_shape()
    maps = torch.full((1, 2, 12, 12), 5.0)
    for expansion in (1, 2, 4):
        found = shape(maps.repeat_interleave(expansion, 2).repeat_interleave(expansion, 3), cell_grid(expansion))
        torch.testing.assert_close(found[0], shape.frame.places.float() + 5.0)


@pytest.mark.parametrize("fields", [{"components": 0}, {"modes": 2**20}, {"local_stages": -1}, {"global_stages": 65}])
def test_a_dense_shape_that_nobody_can_have(fields):
    with pytest.raises(IncompatibleWeightsError, match="out of range"):
        replace(CONFIG, **fields)


# Features.


def with_shifts(faces, shifts):
    """The features with planted dense shapes: each face's places are shifted, input px; other channels are noise."""
    maps = torch.randn(faces.backbone_map.shape)
    maps[:, :2] = torch.tensor(shifts)[:, :, None, None]
    return replace(faces, backbone_map=maps, shape_reader=planted_shape(maps.shape[1]))


def test_the_dense_shape_is_in_pixels_of_the_image(faces):
    shifted = with_shifts(faces, [[3.0, -2.0], [0.0, 5.0]])
    found = shifted.dense_shape
    assert found.shape == (2, 24, 24, 2)
    expected = planted_shape().frame.places.numpy() + np.array([3.0, -2.0])
    np.testing.assert_allclose(found[0].reshape(-1, 2), faces.faces[0].crop.to_image(expected), atol=1e-4)
    assert shifted.draw(dense_shape=True).width > 2 * 288


def test_features_without_shapes_say_so(faces):
    assert not faces.has_shapes
    with pytest.raises(OptionError, match="does not know the dense shape"):
        _ = faces.dense_shape
    with pytest.raises(OptionError, match="align=True"):
        _ = replace(with_shifts(faces, [[0.0, 0.0]] * 2), aligned=False).dense_shape


# Matching.


def test_landmarks_follow_the_shape_where_descriptors_say_nothing(faces):
    shifted = with_shifts(faces, [[3.0, -2.0], [-4.0, 6.0]])
    points = faces[0].to_image(np.array([[[40.0, 30.0], [50.0, 70.0]]]))[0]
    found = shifted[1].to_input(scemae.match_landmarks(shifted[0], points, shifted[1]).xy)[0]
    np.testing.assert_allclose(found, [[33.0, 38.0], [43.0, 78.0]], atol=1e-3)


def test_landmarks_follow_descriptors_that_are_sure(faces):
    """The same map, but for a shape that claims to be 5 px further right: the landmarks stay."""
    shifted = with_shifts(faces, [[0.0, 0.0], [5.0, 0.0]])
    same = replace(shifted, backbone_map=torch.stack([shifted.backbone_map[0]] * 2))
    same.backbone_map[:, 2:] *= 100  # of which the shape is no part
    same.backbone_map[1, 0] = 5.0
    points = faces[0].to_image(np.array([[[41.0, 33.0], [55.0, 71.0]]]))[0]
    matches = scemae.match_landmarks(same[0], points, same[1], use="backbone")
    assert matches.scores.min() > 0.99
    assert np.abs(faces[1].to_input(matches.xy)[0] - [[41.0, 33.0], [55.0, 71.0]]).max() <= 1


def test_both_sides_of_the_reference_are_heard(faces):
    """An eye that is annotated 4 px too far out is met half way by the other one."""
    shifted = with_shifts(faces, [[0.0, 0.0], [0.0, 0.0]])
    points = faces[0].to_image(np.array([[[25.0, 35.0], [66.0, 35.0], [47.5, 70.0]]]))[0]
    found = shifted[1].to_input(scemae.match_landmarks(shifted[0], points, shifted[1]).xy)[0]
    np.testing.assert_allclose(found, [[27.0, 35.0], [68.0, 35.0], [47.5, 70.0]], atol=1e-3)


def test_the_papers_way_stays(faces):
    shifted = with_shifts(faces, [[0.0, 0.0], [5.0, 0.0]])
    points = faces[0].to_image(np.array([[[40.0, 30.0]]]))[0]
    plain = scemae.match_landmarks(replace(shifted[0], shape_reader=None), points, shifted[1]).xy
    for options in ({"method": "argmax"}, {"prior": 0}):
        assert (scemae.match_landmarks(shifted[0], points, shifted[1], **options).xy == plain).all()


def test_methods_that_do_not_go(faces):
    points = faces[0].to_image(np.array([[[40.0, 30.0]]]))[0]
    with pytest.raises(OptionError, match="does not know the dense shape"):
        scemae.match_landmarks(faces[0], points, faces[1], method="shape")
    with pytest.raises(OptionError, match="prior is for method='argmax'"):
        scemae.match_landmarks(faces[0], points, faces[1], method="shape", prior=5)
    with pytest.raises(OptionError, match="'shape' or 'argmax'"):
        scemae.match_landmarks(faces[0], points, faces[1], method="best")


# The cascade.


def shaped_maps(count, seed=0):
    """Faces whose shapes are known, with landmarks at the same places of the mean face, on maps of noise."""
    rng = torch.Generator().manual_seed(seed)
    frame = planted_shape().frame
    slopes = 1 + 0.1 * torch.randn(count, 1, 2, generator=rng, dtype=torch.float64)
    shifts = 4 * torch.randn(count, 1, 2, generator=rng, dtype=torch.float64)
    shapes = FaceShapes(frame, (frame.places - 47.5) * slopes + 47.5 + shifts)
    places = torch.tensor([[30.0, 35.0], [65.0, 35.0], [47.5, 60.0]], dtype=torch.float64).expand(count, -1, -1)
    return AnnotatedMaps(
        maps=torch.randn(count, 6, 24, 24, generator=rng),
        grid=GRID,
        landmarks=shapes.to_face(places),
        blocks=np.arange(count) % 5,
        mirrored=np.zeros(count, dtype=bool),
        moved=np.zeros(count, dtype=bool),
        swap=[1, 0, 2],
        shapes=shapes,
    )


@pytest.mark.parametrize("count", [1, 2])
def test_few_faces_are_carried_by_their_shapes_alone(count):
    """On maps that show nothing, from so many jittered shapes that their mean is that of the landmarks."""
    head, data, unseen = ShapedCascadeHead(samples=1000), shaped_maps(count), shaped_maps(20, seed=1)
    head.fit(replace(data, maps=torch.zeros_like(data.maps)))
    found, confidence = head.predict(torch.zeros_like(unseen.maps), GRID, unseen.shapes)
    assert (found - unseen.landmarks).norm(dim=-1).max() < 0.5
    assert confidence.shape == (20, 3)
    assert {name.partition(".")[0] for name in head.state()} == {"mean"}


def test_with_more_faces_both_frames_are_averaged():
    data, unseen = shaped_maps(8), shaped_maps(3, seed=1)
    head = ShapedCascadeHead()
    report = head.fit(data)
    own, mean = CascadeHead(), CascadeHead((4.0, 3.0, 2.0, 1.5, 1.0))
    in_mean = replace(data, maps=data.shapes.resample(data.maps, GRID), landmarks=data.shapes.to_mean(data.landmarks))
    parts = own.fit(data), mean.fit(in_mean)
    torch.testing.assert_close(report.held_out, (parts[0].held_out + data.shapes.to_face(parts[1].held_out)) / 2)
    places = unseen.shapes.to_face(mean.predict(unseen.shapes.resample(unseen.maps, GRID), GRID)[0])
    found, _ = head.predict(unseen.maps, GRID, unseen.shapes)
    torch.testing.assert_close(found, (own.predict(unseen.maps, GRID)[0] + places) / 2)


@pytest.mark.parametrize("count", [2, 6])
def test_a_shaped_cascade_comes_back_from_its_state(count):
    head, unseen = ShapedCascadeHead(samples=2), shaped_maps(3, seed=1)
    head.fit(shaped_maps(count))
    state, again = head.state(), ShapedCascadeHead(**head.params())
    expected = again.expected_state(6, 3, state)
    assert {name: (t.shape, t.dtype) for name, t in expected.items()} == {
        n: (t.shape, t.dtype) for n, t in state.items()
    }
    again.load_state(state)
    assert torch.equal(
        again.predict(unseen.maps, GRID, unseen.shapes)[0], head.predict(unseen.maps, GRID, unseen.shapes)[0]
    )


def test_the_default_head_is_the_shaped_one_where_there_are_shapes():
    assert isinstance(new_head("cascade", aligned=True, shaped=True), ShapedCascadeHead)
    assert isinstance(new_head("cascade", aligned=True), CascadeHead)
    assert HEADS["shaped-cascade"] is ShapedCascadeHead
    assert ShapedCascadeHead(**ShapedCascadeHead(ridge=2.0).params()).params() == ShapedCascadeHead(ridge=2.0).params()


def test_a_cell_grid_of_the_frame_is_that_of_expansion_2():
    assert planted_shape().frame.grid == CellGrid(1.5, 4.0)
