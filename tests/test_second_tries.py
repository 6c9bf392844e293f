"""A face that is not found from its box is looked for around it; what that costs, and what is said of it."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
from coloured_places import draw_face, read_places
from small_models import load_small_model

import scemae
from scemae.errors import OptionError
from scemae.geometry import Crop
from scemae.model.aligner import OTHER_STARTS

STARTS = sum(len(shifts) for shifts in OTHER_STARTS.values())
CENTRE, SIDE, ROLL = (160, 150), 60, 25


@pytest.fixture
def model(tiny_backbone, tmp_path):
    return read_places(load_small_model(tmp_path / "model"))


@pytest.fixture
def photo():
    pixels = np.zeros((320, 340, 3), np.uint8)
    pixels[:20, :20] = 60  # so that no square is of one colour only
    return draw_face(pixels, CENTRE, SIDE, ROLL)


def box_at(x, y, side=SIDE):
    return (x + 0.5 - side / 2, y + 0.5 - side / 2, x + 0.5 + side / 2, y + 0.5 + side / 2)


BESIDE = box_at(CENTRE[0] + 66, CENTRE[1])  # from there the face is not seen


def extract(model, photo, boxes, **options):
    model.aligner.views = 0
    return scemae.extract_features(model, [photo] * len(boxes), boxes=boxes, expansion=1, **options)


@pytest.mark.filterwarnings("ignore:.*one colour", "ignore:No face was found")
def test_a_lost_face_is_found_from_another_start(model, photo):
    lost = extract(model, photo, [BESIDE], search="none")
    assert lost.found.tolist() == [False]
    assert lost.scores[0] < 0.5
    assert model.aligner.views == model.aligner.steps

    face = extract(model, photo, [BESIDE]).faces[0]
    assert face.found
    assert np.allclose(face.crop.centre, CENTRE, atol=0.6)
    assert face.crop.scale * face.crop.size == pytest.approx(SIDE, rel=0.03)
    # Relative to the box that was passed, not to the start from which it was found.
    assert face.alignment.rotation == pytest.approx(ROLL, abs=1)
    assert face.alignment.scale == pytest.approx(1, rel=0.03)
    assert face.alignment.shift == pytest.approx((-1.1, 0), abs=0.02)
    assert face.patch.serves(face.crop.pad(model.view_margin))


def test_nothing_is_spent_where_the_first_start_is_sure(model, photo):
    boxes = [box_at(*CENTRE), box_at(CENTRE[0] + 20, CENTRE[1] - 10, 80)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plain = extract(model, photo, boxes, search="none")
        spent = model.aligner.views
        searched = extract(model, photo, boxes)
    assert model.aligner.views == spent
    assert searched.found.all()
    assert np.array_equal(searched.backbone_map, plain.backbone_map)
    for first, second in zip(plain.faces, searched.faces, strict=True):
        assert np.array_equal(first.crop.to_image_affine, second.crop.to_image_affine)


@pytest.mark.filterwarnings("ignore:.*one colour", "ignore:No face was found")
def test_only_what_is_lost_is_tried_again(model, photo):
    boxes = [box_at(*CENTRE), BESIDE, box_at(40, 280)]  # found, lost, and nowhere near
    features = extract(model, photo, boxes)
    assert features.found.tolist() == [True, True, False]
    plain = extract(model, photo, boxes, search="none")
    spent = model.aligner.views
    extract(model, photo, boxes)
    assert spent < model.aligner.views <= spent + 2 * STARTS * model.aligner.steps
    assert np.array_equal(features.faces[0].crop.to_image_affine, plain.faces[0].crop.to_image_affine)
    assert features.scores[2] == plain.scores[2]
    assert np.array_equal(features.faces[2].crop.to_image_affine, plain.faces[2].crop.to_image_affine)


@pytest.mark.filterwarnings("ignore:.*one colour", "ignore:No face was found")
def test_the_surest_start_is_kept(model, photo):
    """Two faces around the box: the surer one is taken."""
    draw_face(photo, (CENTRE[0] + 132, CENTRE[1]), SIDE, -ROLL, blue=0.8)
    face = extract(model, photo, [BESIDE]).faces[0]
    assert np.allclose(face.crop.centre, CENTRE, atol=0.6)


@pytest.mark.filterwarnings("ignore:.*one colour")
def test_what_was_not_found_is_warned_of(model, photo):
    with pytest.warns(UserWarning, match=r"No face was found in the box of image 0: .*boxes='auto'") as caught:
        features = extract(model, photo, [box_at(40, 280)])
    assert sum("No face was found" in str(warning.message) for warning in caught) == 1
    [said] = scemae.match_landmarks(features, [(40.0, 280.0)], features).to_dict()
    assert said["found"] is False
    assert 0 <= said["face_score"] < 0.5
    features.draw()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fixed = extract(model, photo, [box_at(*CENTRE)], align=False)
    assert fixed.faces[0].found is None  # not aligned: not known


def test_found_faces_say_so(model, photo):
    features = extract(model, photo, [box_at(*CENTRE)])
    found = scemae.match_landmarks(features, [(160.0, 150.0)], features)
    assert found.ok.tolist() == [True]
    [said] = found.to_dict()
    assert said["found"] is True
    assert said["face_score"] == features.scores[0] == features.faces[0].score > 0.9


def test_an_unknown_search_is_refused(model, photo):
    for verb in (scemae.extract_features, scemae.iter_features):
        with pytest.raises(OptionError, match="search is 'deep'; it must be 'auto' or 'none'"):
            verb(model, photo, search="deep")


@pytest.mark.filterwarnings("ignore:.*one colour", "ignore:No face was found")
def test_other_starts_are_where_they_say(model, monkeypatch):
    """Each shows, with `align` off, the square of that scale and shift, in sides of the box."""
    starts = []

    def take(_model, _aligner, _photos, faces):
        starts.append([face.crop for face in faces])
        return [replace(face, score=0.1) for face in faces]

    monkeypatch.setattr("scemae.extraction._take_steps", take)
    extract(model, np.random.default_rng(0).integers(0, 255, (200, 200, 3), dtype=np.uint8), [(60, 60, 100, 100)])
    [first], others = starts
    assert np.allclose(first.to_image_affine, Crop.from_box((60, 60, 100, 100), 64).to_image_affine)
    wanted = [(scale, *shift) for scale, shifts in OTHER_STARTS.items() for shift in shifts]
    found = [(crop.scale / first.scale, *(crop.centre - first.centre) / 40) for crop in others]
    assert np.allclose(found, wanted)
