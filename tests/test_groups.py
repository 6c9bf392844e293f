"""What is held out together: one person's faces, and one picture given twice (faults A2)."""

import shutil

import numpy as np
import pytest
from made_up_faces import frames_of_people
from PIL import Image, ImageOps

import scemae
from scemae.detector.augmentation import _draw_blocks
from scemae.detector.cascade import CascadeHead
from scemae.detector.groups import group_pictures, merge_copies, number_pictures
from scemae.detector.heatmap import HeatmapHead
from scemae.errors import OptionError

CASCADE = CascadeHead(sigmas=(8, 4, 2), samples=3)


@pytest.fixture(scope="module")
def frames(two_block_model):
    """Features of three frames of each of five people, their landmarks, and the person of each."""
    pictures, landmarks, person = frames_of_people()
    return scemae.extract_features(two_block_model, pictures, align=False, expansion=1), landmarks, person


def fit_frames(model, frames, chosen, head=CASCADE, **options):
    features, landmarks, _ = frames
    return scemae.fit_regressor(
        model, features[chosen], landmarks[chosen], head=head, normalizer=(0, 1), use="backbone", **options
    )


@pytest.mark.parametrize("count", [1, 2, 10, 11, 57])
@pytest.mark.parametrize("max_folds", [3, 10])
def test_faces_without_groups_are_held_out_as_ever(count, max_folds):
    folds = min(count if count <= 10 else 5, max_folds)
    wanted = np.random.default_rng(0).permutation(count) % folds
    assert np.array_equal(_draw_blocks(np.arange(count), max_folds), wanted)


@pytest.mark.parametrize(("count", "blocks"), [(1, 1), (4, 4), (10, 10), (11, 5)])
def test_a_group_is_held_out_as_a_whole(count, blocks):
    groups = np.repeat(np.arange(count), 3)
    found = _draw_blocks(groups, max_folds=10).reshape(count, 3)
    assert (found == found[:, :1]).all()
    assert len(np.unique(found)) == blocks


def test_labels_become_groups():
    for labels in (list("baabcb"), np.array([7, 1, 1, 7, 0, 7]), ("b", 2.0, 2, "b", None, "b")):
        assert group_pictures(np.arange(6), labels).tolist() == [0, 1, 1, 0, 2, 0]
    for alone in (None, [None, np.nan, "", None, float("nan"), "a"]):
        assert group_pictures(np.arange(6), alone).tolist() == list(range(6))
    pictures = np.array([0, 1, 0, 2, 1])  # of which two are there twice, and the first has two labels
    assert group_pictures(pictures).tolist() == [0, 1, 2]
    assert group_pictures(pictures, ["anna", None, "ben", "ben", None]).tolist() == [0, 1, 0]


def test_the_same_picture_counts_once(tmp_path, two_block_model, samples, landmarks):
    """Faults A2: by another path, or cut out of another photo; another crop is another picture."""
    shutil.copy(samples[0].path, tmp_path / "copy.jpg")
    larger = ImageOps.expand(Image.open(samples[0].path), 100)
    x0, y0, x1, y1 = box = np.array(samples[0].box)
    features = scemae.extract_features(
        two_block_model,
        [samples[0].path, samples[1].path, tmp_path / "copy.jpg", samples[0].path, larger],
        boxes=[box, samples[1].box, box, (x0 + 30, y0 + 30, x1 + 30, y1 + 30), box + 100],
        align=False,
        expansion=1,
    )
    pictures = number_pictures(features.faces)
    assert pictures.tolist() == [0, 1, 0, 2, 0]
    xy = np.stack([landmarks[0], landmarks[1], landmarks[0] + 3, landmarks[0], landmarks[0] + 100])
    xy[[0, 2], 4], xy[1, 5] = np.nan, np.nan
    once, merged = merge_copies(features, xy, pictures)
    assert [face.source for face in once.faces] == [str(samples[0].path), str(samples[1].path), str(samples[0].path)]
    wanted = np.stack([landmarks[0] + 1, landmarks[1], landmarks[0]])
    wanted[0, 4], wanted[1, 5] = landmarks[0, 4], np.nan  # only the larger one has landmark 4
    assert np.allclose(merged, wanted, equal_nan=True)
    assert number_pictures([features.faces[0]] * 1500).tolist() == [0] * 1500


def test_frames_are_different_pictures(frames):
    assert number_pictures(frames[0].faces).tolist() == list(range(15))
    assert merge_copies(frames[0], frames[1], np.arange(15))[0] is frames[0]


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        pytest.param("anna", "groups is 'anna'; wanted one label per face, here 15", id="one word"),
        pytest.param([1, 2], r"groups is of shape \(2,\); wanted one label", id="too few"),
        pytest.param(np.zeros((15, 1)), r"of shape \(15, 1\)", id="a column"),
        pytest.param([{}] * 15, "cannot be compared", id="dicts"),
    ],
)
def test_groups_that_are_not_one_label_per_face_are_refused(two_block_model, frames, groups, message):
    with pytest.raises(OptionError, match=message):
        fit_frames(two_block_model, frames, slice(None), groups=groups)


@pytest.mark.slow
@pytest.mark.parametrize("head", [CASCADE, HeatmapHead(heatmaps=5, steps=20, rate=0.01)], ids=["cascade", "heatmap"])
def test_annotations_given_twice_have_the_error_of_once(two_block_model, head):
    """Faults A2: the same held-out error, ridge and predictions, whatever the number of faces would choose."""
    pictures, landmarks, _ = frames_of_people(people=3, frames=1)

    def fit(rows):
        regressor = scemae.LandmarkRegressor(two_block_model, head=head, align=False, expansion=1, normalizer=(0, 1))
        return regressor.fit([pictures[i] for i in rows], landmarks[rows])

    once, twice = fit([0, 1, 2]), fit([0, 1, 2, 2, 0, 1])
    assert twice.held_out_error_ == pytest.approx(once.held_out_error_, rel=0.01)
    assert (twice.use_, twice.mirrored_) == (once.use_, once.mirrored_)
    assert getattr(twice.head_, "ridge_", None) == getattr(once.head_, "ridge_", None)
    assert np.allclose(twice.held_out_errors_, once.held_out_errors_[[0, 1, 2, 2, 0, 1]], rtol=0.01)
    assert np.isnan(fit([0, 0, 0]).held_out_errors_).all()


@pytest.mark.slow
def test_frames_of_people_are_held_out_by_person(two_block_model, frames):
    """Faults A2: the error is that of the loop over people by hand, and not that of frames among frames."""
    features, landmarks, person = frames
    by_frame = fit_frames(two_block_model, frames, slice(None))
    by_person = fit_frames(two_block_model, frames, slice(None), groups=person)
    errors = []
    for out in range(5):
        regressor = fit_frames(two_block_model, frames, person != out, groups=person[person != out])
        errors.append(-regressor.score(features[person == out], landmarks[person == out]))
    assert by_person.held_out_error_ == pytest.approx(np.mean(errors), rel=0.1)
    assert by_person.held_out_error_ > 1.5 * by_frame.held_out_error_
    one = fit_frames(two_block_model, frames, person == 0, groups=["anna"] * 3)
    assert np.isnan(one.held_out_error_)


@pytest.mark.slow
def test_the_papers_head_holds_out_people_too(two_block_model, frames):
    head = HeatmapHead(heatmaps=5, steps=30, rate=0.01)
    by_frame, by_person = (
        fit_frames(two_block_model, frames, slice(None), head=head, mirror="off", groups=groups)
        for groups in (None, frames[2])
    )
    assert by_person.held_out_error_ > 1.2 * by_frame.held_out_error_
