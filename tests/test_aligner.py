"""Alignment: planted points come back as their affine; a turned, scaled, shifted, brightened copy as the same face."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance
from torch import nn

import scemae
from scemae.geometry import (
    apply_affine,
    apply_affines,
    half_sides_to_pixels,
    invert,
    invert_affines,
    pixels_to_half_sides,
)
from scemae.model.aligner import LOST, FaceAligner, Located, is_plausible
from scemae.model.config import AlignerConfig

CONFIG = AlignerConfig(
    points=((-0.4, -0.4), (0.4, -0.4), (0.0, 0.1), (0.0, 0.8)),
    scale=0.8,
    view_size=32,
    widths=(4, 8),
    squeezed=2,
    hidden=8,
    steps=3,
    similarity_steps=1,
    settled=0.01,
    threshold=-2.0,
    slope=1.5,
)
SURE = -3.0  # log error
TURNED = np.array([[0.9, -0.25, 12.0], [0.25, 0.9, -7.0]])
SLANTED = np.array([[0.9, -0.2, 12.0], [0.25, 1.1, -7.0]])
IDENTITY = np.eye(2, 3)


@pytest.fixture
def aligner():
    return FaceAligner(CONFIG, 96)


def canonical_pixels(aligner):
    """The canonical points (P, 2) in pixels of the canonical view."""
    return half_sides_to_pixels(aligner.canonical.numpy(), aligner.input_size)


def test_canonical_points_are_in_the_canonical_view(aligner):
    assert np.allclose(canonical_pixels(aligner)[0], [(-0.5 + 1) * 48 - 0.5] * 2)


def test_planted_points_give_their_affine(aligner):
    moved = np.stack([apply_affine(affine, canonical_pixels(aligner)) for affine in (SLANTED, TURNED)])
    points = torch.from_numpy(pixels_to_half_sides(moved, 96))
    assert np.allclose(aligner.motion(points, step=1), [SLANTED, TURNED], atol=1e-6)
    nearest, exact = aligner.motion(points, step=0).numpy()  # a rotation, scale and shift
    assert np.allclose(exact, TURNED, atol=1e-6)
    assert np.allclose(nearest[:, 0], [nearest[1, 1], -nearest[0, 1]])
    residuals = [apply_affine(nearest, canonical_pixels(aligner)) - moved[0] for nearest in (nearest, TURNED)]
    assert np.square(residuals[0]).sum() < np.square(residuals[1]).sum()


class Eyes:
    """In the place of a network: it sees in each view exactly where the canonical points of its face are.

    Face number i has its canonical view at `targets[i]`, and is seen with the log error `sureness[i]`.
    """

    def __init__(self, aligner, targets, sureness):
        self.pixels = torch.from_numpy(canonical_pixels(aligner))
        self.targets, self.sureness = torch.from_numpy(np.stack(targets)), torch.tensor(sureness)
        self.looks = []  # rows of each step

    def __call__(self, rows, affines, step):
        assert step == len(self.looks)
        self.looks.append(rows.tolist())
        places = apply_affines(self.targets[rows], self.pixels.expand(len(rows), -1, -1))
        seen = apply_affines(invert_affines(affines), places)
        return Located(torch.from_numpy(pixels_to_half_sides(seen, 96)), self.sureness[rows])


def test_the_steps_lead_each_face_to_where_its_points_are_canonical(aligner):
    starts = torch.from_numpy(np.stack([IDENTITY, TURNED, SLANTED]))
    eyes = Eyes(aligner, [TURNED, SLANTED, SLANTED], [SURE, SURE, SURE])
    found = aligner.align(starts, eyes)
    assert np.allclose(found.affines, [TURNED, SLANTED, SLANTED], atol=1e-5)
    assert found.log_errors.tolist() == [SURE] * 3
    assert found.affines.dtype == torch.float64
    # The first is there after the first step, which turns; the second needs one that slants; each looks once more.
    assert eyes.looks == [[0, 1, 2], [0, 1], [1]]


def test_each_face_stops_where_it_has_settled(aligner):
    """Only where its points are at their places, and it is sure that there is a face."""
    at_place = torch.from_numpy(np.stack([IDENTITY] * 3))
    eyes = Eyes(aligner, [IDENTITY, IDENTITY, TURNED], [SURE, CONFIG.threshold + 0.1, SURE])
    aligner.align(at_place, eyes)
    assert eyes.looks == [[0, 1, 2], [1, 2], [1]]
    points = aligner.canonical[None] + torch.tensor([CONFIG.settled * 0.9, 0])
    settled = [aligner.has_settled(shifted, torch.tensor([SURE])) for shifted in (points, 2 * points)]
    assert [bool(one) for one in settled] == [True, False]


def test_no_further_step_is_taken_where_it_is_hopeless(aligner):
    starts = torch.from_numpy(np.stack([IDENTITY] * 2))
    eyes = Eyes(aligner, [SLANTED] * 2, [-0.5, -1.0])
    found = aligner.align(starts, eyes, hopeless=-0.7)
    assert eyes.looks == [[0, 1], [1], [1]]
    assert np.allclose(found.affines[1], SLANTED, atol=1e-5)
    assert not np.allclose(found.affines[0], SLANTED, atol=1)
    assert found.log_errors.tolist() == [-0.5, -1.0]


def test_a_step_that_is_not_accepted_is_not_taken(aligner):
    starts = torch.from_numpy(np.stack([IDENTITY] * 3))
    asked = []

    def accept(rows, affines):
        asked.append(rows.tolist())
        assert len(affines) == len(rows)
        return (rows == 0) | ((rows == 2) & (len(asked) > 1))

    eyes = Eyes(aligner, [TURNED] * 3, [SURE] * 3)
    found = aligner.align(starts, eyes, accept=accept)
    assert asked == eyes.looks == [[0, 1, 2], [0, 1, 2], [1, 2]]  # a later step may be accepted
    assert np.allclose(found.affines, [TURNED, IDENTITY, TURNED], atol=1e-5)
    assert found.log_errors.tolist() == [SURE, LOST, SURE]


def test_no_step_and_no_face(aligner):
    starts = torch.from_numpy(TURNED)[None]
    eyes = Eyes(aligner, [TURNED], [SURE])
    found = aligner.align(starts, eyes, steps=[])
    assert torch.equal(found.affines, starts)
    assert found.log_errors.tolist() == [LOST]
    assert len(aligner.align(starts[:0], eyes).affines) == 0
    assert eyes.looks == []


def test_the_score_is_a_half_at_the_threshold(aligner):
    apart = math.log(3) / CONFIG.slope  # log odds of 3 to 1
    scores = aligner.face_scores(torch.tensor([-2.0, -2.0 - apart, -2.0 + apart, LOST]))
    assert scores[:3].tolist() == pytest.approx([0.5, 0.75, 0.25])
    assert scores[3] < 0.001


def test_what_the_alignment_did_is_described(aligner):
    done = aligner.describe(np.array([[0, -2.0, 120.0], [2.0, 0, -46.5]]))
    assert (done.rotation, done.scale) == pytest.approx((90, 2))
    assert done.shift == pytest.approx(((120 - 95 - 47.5) / 96, (-46.5 + 95 - 47.5) / 96))


@pytest.mark.parametrize("view_size", [16, 33, 64])
def test_views_of_any_size_are_seen(view_size):
    located = FaceAligner(replace(CONFIG, view_size=view_size), 96)(torch.rand(2, 3, view_size, view_size))
    assert located.points.shape == (2, 4, 2)
    assert located.log_errors.shape == (2,)


def test_log_errors_have_ends(aligner):
    last = aligner.layers[-1]
    for bias, seen in ((1e3, LOST), (-1e3, -2 * LOST)):
        with torch.no_grad():
            last.bias[-1] = bias
        assert aligner(torch.rand(1, 3, 32, 32)).log_errors.tolist() == [seen]


def randomise_norms(module):
    """Statistics and weights of each batch normalisation as after some training."""
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            for tensor in (layer.weight.data, layer.running_var):
                tensor.uniform_(0.5, 2)
            for tensor in (layer.bias.data, layer.running_mean):
                tensor.normal_()


def test_norms_are_folded_into_the_convolutions():
    trained = FaceAligner(CONFIG, 96, norm=True)
    randomise_norms(trained)
    folded = trained.fold_norms()
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in folded.modules())
    assert folded.state_dict().keys() == FaceAligner(CONFIG, 96).state_dict().keys()
    views = torch.rand(3, 3, 32, 32)
    for found, wanted in zip(folded(views), trained.eval()(views), strict=True):
        assert torch.allclose(found, wanted, atol=1e-5)
    assert not torch.allclose(folded(views).points, trained.train()(views).points, atol=1e-2)


@pytest.mark.parametrize(
    ("determinant", "centre", "wanted"),
    [
        pytest.param(1.0, (50.0, 40.0), True, id="inside"),
        pytest.param(-1.0, (50.0, 40.0), False, id="mirrored"),
        pytest.param(0.06, (50.0, 40.0), False, id="too small"),
        pytest.param(16.1, (50.0, 40.0), False, id="too large"),
        pytest.param(1.0, (-0.6, 40.0), False, id="left of the picture"),
        pytest.param(1.0, (50.0, 79.6), False, id="below the picture"),
        pytest.param(np.nan, (50.0, 40.0), False, id="nan"),
    ],
)
def test_plausible_alignments(determinant, centre, wanted):
    assert bool(is_plausible(determinant, np.array(centre), np.array([100, 80]))) is wanted
    batched = is_plausible(torch.tensor([determinant]), torch.tensor([centre]), torch.tensor([100, 80]))
    assert batched.tolist() == [wanted]


def moved_copy(picture, box, degrees, scale, shift):
    """A brightened copy, turned and scaled about the box's centre, shifted by parts of its side; and the affine."""
    centre = np.array([(box[0] + box[2]) / 2 - 0.5, (box[1] + box[3]) / 2 - 0.5])
    angle = np.radians(degrees)
    linear = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    affine = np.column_stack([linear, centre + np.array(shift) * (box[2] - box[0]) - linear @ centre])
    back = invert(affine)
    edges = np.column_stack([back[:, :2], back[:, 2] + 0.5 - back[:, :2] @ [0.5, 0.5]])  # Pillow counts pixel edges
    copy = picture.transform(picture.size, Image.Transform.AFFINE, edges.ravel(), Image.Resampling.BICUBIC)
    return ImageEnhance.Brightness(copy).enhance(1.2), affine


@pytest.mark.slow
def test_points_are_found_again_on_moved_copies(model, samples):
    """100 points of each face, the box left where it was: alignment alone has to find the face again."""
    near = []
    for sample in samples:
        picture = Image.open(sample.path).convert("RGB")
        x0, y0, x1, y1 = sample.box
        points = np.random.default_rng(0).uniform((x0, y0), (x1 - 1, y1 - 1), size=(100, 2))
        reference = scemae.extract_features(model, picture, boxes=sample.box)
        for degrees in (30, -30):
            for scale in (0.8, 1.25):
                for shift in ((0.1, 0.0), (0.0, -0.1)):
                    copy, affine = moved_copy(picture, sample.box, degrees, scale, shift)
                    target = scemae.extract_features(model, copy, boxes=sample.box)
                    truth = target.to_input(apply_affine(affine, points)[None])
                    found = target.to_input(scemae.match_landmarks(reference, points, target, prior=0).xy)
                    near.append((np.linalg.norm(found - truth, axis=-1) <= 2).mean())
    assert np.mean(near) >= 0.9


def test_without_alignment_the_copy_is_lost(model, samples):
    """The test above can fail: the fixed crop does not follow a face that turns by 30 degrees."""
    sample = samples[0]
    picture = Image.open(sample.path).convert("RGB")
    copy, affine = moved_copy(picture, sample.box, 30, 1.25, (0.1, 0))
    points = np.array(list(sample.landmarks.values()))[None, :7]
    fixed = scemae.extract_features(model, [picture, copy], boxes=[sample.box] * 2, align=False)
    found = fixed[1].to_input(scemae.match_landmarks(fixed[0], points, fixed[1]).xy)
    errors = np.linalg.norm(found - fixed[1].to_input(apply_affine(affine, points)), axis=-1)
    assert (errors <= 2).mean() < 0.5


def test_what_alignment_did_is_reported(model, samples):
    sample = samples[1]
    picture = Image.open(sample.path).convert("RGB")
    copy, _ = moved_copy(picture, sample.box, 20, 1.0, (0, 0))
    faces = scemae.extract_features(model, [picture, copy], boxes=[sample.box] * 2, expansion=1).faces
    assert faces[1].alignment.rotation - faces[0].alignment.rotation == pytest.approx(20, abs=4)
    assert faces[1].alignment.scale == pytest.approx(faces[0].alignment.scale, rel=0.06)
    assert all(face.found is not False for face in faces)


def test_a_lost_face_keeps_a_sane_crop(model):
    noise = np.random.default_rng(0).integers(0, 255, (80, 80, 3), dtype=np.uint8)
    for search, most in (("none", 4.0), ("auto", 1.7 * 4)):
        face = scemae.extract_features(model, noise, expansion=1, search=search).faces[0]
        assert 0.6 * 0.25 <= face.alignment.scale <= most
        assert not face.found
        assert face.view().size == (288, 288)
