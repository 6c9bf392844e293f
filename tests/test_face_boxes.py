"""find_faces: where the faces are whose places are known exactly."""

import numpy as np
import pytest
import torch
from coloured_places import PlaceAligner, draw_face, read_places
from small_models import FINDER, load_small_model

import scemae
from scemae.errors import BoxInputError, ImageInputError, OptionError
from scemae.face_boxes import find_faces
from scemae.geometry import Crop
from scemae.model.aligner import Aligned

FACES = (  # centre, side, roll, blue: the surest first
    ((80, 90), 64, 0, 1.0),
    ((300, 120), 110, 140, 0.9),
    ((200, 320), 41, -35, 0.7),
)


@pytest.fixture
def model(tiny_backbone, tmp_path):
    return read_places(load_small_model(tmp_path / "model"))


@pytest.fixture
def photo():
    pixels = np.zeros((400, 420, 3), np.uint8)
    for face in FACES:
        draw_face(pixels, *face)
    return pixels


@pytest.mark.filterwarnings("error")
def test_all_faces_are_found_the_surest_first(model, photo):
    found = find_faces(photo, model=model)
    assert len(found) == 3
    for box, roll, (centre, side, turned, _) in zip(found, found.rolls, FACES, strict=True):
        assert np.allclose((box[:2] + box[2:]) / 2 - 0.5, centre, atol=0.6)
        assert np.allclose(box[2:] - box[:2], side, rtol=0.03)
        assert roll == pytest.approx(turned, abs=1)
    assert np.all(np.diff(found.scores) < 0)
    assert ((found.scores > 0.5) & (found.scores < 1)).all()
    assert (found.image_size, found.source) == ((420, 400), "image 0")
    assert np.array_equal(np.stack(list(found)), found.xyxy)


def test_the_surest_are_kept(model, photo):
    whole = find_faces(photo, model=model)
    for count in (1, 2, 9):
        part = find_faces(photo, model=model, max_faces=count)
        assert np.array_equal(part.xyxy, whole.xyxy[:count])
        assert np.array_equal(part.scores, whole.scores[:count])


def test_smaller_faces_than_asked_for_are_not_found(model, photo):
    assert len(find_faces(photo, model=model, min_size=41 / 0.62)) == 3  # the smallest has 41 px, and 0.6 is enough
    assert len(find_faces(photo, model=model, min_size=41 / 0.58)) == 2
    [box] = find_faces(photo, model=model, min_size=110)
    assert np.allclose(box, (245.5, 65.5, 355.5, 175.5), atol=4)


def test_faces_of_a_large_photo(model):
    """It is reduced before the aligner looks: the places have to be those of the photo."""
    pixels = np.zeros((2101, 3003, 3), np.uint8)
    draw_face(pixels, (700, 801), 600, 30)
    draw_face(pixels, (2203, 1300), 333, -100, 0.8)
    found = find_faces(pixels, model=model, min_size=300)
    assert np.allclose(found.xyxy, [(400.5, 501.5, 1000.5, 1101.5), (2037, 1134, 2370, 1467)], atol=4)
    assert found.rolls == pytest.approx([30, -100], abs=1)


def test_faces_that_overlap_are_one(model):
    for apart, count in ((44, 1), (110, 2)):
        pixels = np.zeros((200, 300, 3), np.uint8)
        draw_face(pixels, (100 + apart, 100), 100, blue=0.8)
        draw_face(pixels, (100, 100), 100)
        found = find_faces(pixels, model=model)
        assert len(found) == count
        assert np.allclose(found.xyxy[0], (50.5, 50.5, 150.5, 150.5), atol=2)


@pytest.mark.parametrize(("apart", "kept"), [(39, [0, 2]), (41, [0, 1, 2])])
def test_finds_closer_than_half_a_side_are_one(model, monkeypatch, photo, apart, kept):
    """Half of the larger side, 80 px; the surer of the two is kept, and a third further off."""
    middles, sides, log_errors = np.array([[100, 100], [100 + apart, 100], [300, 300]]), [50, 80, 60], [-4, -3, -2.5]
    crops = [Crop.from_box((*(m + 0.5 - s / 2), *(m + 0.5 + s / 2)), 64) for m, s in zip(middles, sides, strict=True)]
    affines = torch.from_numpy(np.stack([crop.to_image_affine for crop in crops]))
    monkeypatch.setattr(
        "scemae.face_boxes._look_closer", lambda *_arguments: Aligned(affines, torch.tensor(log_errors).double())
    )
    found = find_faces(photo, model=model)
    assert np.allclose((found.xyxy[:, :2] + found.xyxy[:, 2:]) / 2 - 0.5, middles[kept])
    assert np.allclose(found.xyxy[:, 2] - found.xyxy[:, 0], np.array(sides)[kept])


def test_a_picture_without_faces(model):
    for pixels in (np.zeros((100, 140, 3), np.uint8), np.zeros((20, 20, 3), np.uint8)):
        found = find_faces(pixels, model=model, min_size=16)
        assert len(found) == 0
        assert found.xyxy.shape == (0, 4)
        assert found.scores.shape == found.rolls.shape == (0,)


def test_what_the_aligner_is_not_sure_of_is_no_face(model, monkeypatch, photo):
    monkeypatch.setattr(PlaceAligner, "face_scores", lambda self, log_errors: torch.sigmoid(-50 - 10 * log_errors))
    found = find_faces(photo, model=model)
    assert len(found) == 2  # log errors of -6 and -5.4; -4.2 is not enough
    assert (found.scores > 0.5).all()


def test_hopeless_places_are_looked_at_once(model):
    """The finder sees something blue everywhere, the aligner no face in it."""
    blue = np.zeros((160, 160, 3), np.uint8)
    blue[..., 2] = 40
    views = []
    forward = model.aligner.forward
    model.aligner.forward = lambda seen: (views.append(len(seen)), forward(torch.zeros_like(seen)))[1]
    assert len(find_faces(blue, model=model)) == 0
    assert views[0] > 1
    assert views[1:] == [10]  # second tries, about the middle


@pytest.mark.parametrize(
    ("centre", "side", "looks", "count"),
    [((100, 100), 60, [1], 1), ((182, 100), 34, [1, 10], 1), ((100, 100), 0, [1, 10], 0)],
)
def test_where_the_finder_sees_nothing_the_middle_is_looked_at(model, monkeypatch, centre, side, looks, count):
    """And then around it."""
    monkeypatch.setattr("scemae.face_boxes._first_look", lambda *_arguments: torch.zeros(0, 2, 3).double())
    seen, align = [], model.aligner.align
    monkeypatch.setattr(
        model.aligner,
        "align",
        lambda starts, *args, **options: (seen.append(len(starts)), align(starts, *args, **options))[1],
    )
    pixels = np.zeros((200, 200, 3), np.uint8)
    if side:
        draw_face(pixels, centre, side)
    assert len(find_faces(pixels, model=model, min_size=16)) == count
    assert seen == looks


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_size": 15}, "min_size is 15; it must be at least 16 px"),
        ({"min_size": np.nan}, "min_size is nan"),
        ({"min_size": np.inf}, "min_size is inf"),
        ({"max_faces": 0}, "max_faces is 0; it must be a whole number of at least 1, or None for all"),
        ({"max_faces": 2.5}, "max_faces is 2.5; it must be a whole number"),
        ({"min_size": "40"}, "min_size is '40'; it must be at least 16 px"),
    ],
)
def test_bad_options_are_refused(model, options, message):
    with pytest.raises(OptionError, match=message):
        find_faces(np.zeros((100, 100, 3), np.uint8), model=model, **options)


def test_models_that_cannot_find_faces(tiny_backbone, tmp_path, photo):
    bare = {"aligner": None, "finder": FINDER}, {"finder": None}
    for number, fields in enumerate(bare):
        with pytest.raises(OptionError, match="Model 'small' cannot find faces; train one: scemae train find"):
            find_faces(photo, model=load_small_model(tmp_path / str(number), **fields))


def test_what_is_no_image_is_refused(model):
    with pytest.raises(ImageInputError):
        find_faces(b"not an image", model=model)


@pytest.mark.slow
def test_a_random_finder_and_aligner_run(tiny_backbone, tmp_path, photo):
    """The networks themselves, from photo to boxes: whatever they find is sorted, sure, and in the photo."""
    model = load_small_model(tmp_path / "model", finder=FINDER)
    with torch.no_grad():
        model.finder.layers[-1].weight.normal_()
    found = find_faces(photo, model=model)
    assert np.all(np.diff(found.scores) <= 0)
    assert (found.scores >= 0.5).all()
    middles = (found.xyxy[:, :2] + found.xyxy[:, 2:]) / 2
    assert ((middles >= 0) & (middles <= found.image_size)).all()


def test_boxes_auto_gives_all_faces_of_each_photo(model, photo):
    other = draw_face(np.zeros((300, 300, 3), np.uint8), (150, 140), 80, 10)
    features = scemae.extract_features(model, [photo, other], boxes="auto", expansion=1)
    assert [(face.source, face.number) for face in features.faces] == [
        ("image 0", 0),
        ("image 0", 1),
        ("image 0", 2),
        ("image 1", 0),
    ]
    assert features.found.all()
    for face, (centre, side, roll, _) in zip(features.faces, [*FACES, ((150, 140), 80, 10, 1)], strict=True):
        assert np.allclose(face.crop.centre, centre, atol=0.6)
        assert face.crop.scale * face.crop.size == pytest.approx(side, rel=0.03)
        assert face.alignment.rotation == pytest.approx(roll, abs=1)


def test_boxes_auto_where_there_is_no_face(model, photo):
    empty = np.zeros((300, 300, 3), np.uint8)
    with pytest.raises(ImageInputError, match="image 1: no face was found on it; if there is one, pass its box"):
        scemae.extract_features(model, [photo, empty], boxes="auto", expansion=1)
    with pytest.warns(UserWarning, match=r"image 0: no face was found on it.* It is left out\."):
        features = scemae.extract_features(model, [empty, photo], boxes="auto", expansion=1, on_error="skip")
    assert [face.source for face in features.faces] == ["image 1"] * 3
    with pytest.raises(BoxInputError, match="boxes is 'automatic'; wanted one"):
        scemae.extract_features(model, photo, boxes="automatic", expansion=1)


def test_a_find_is_the_box_to_pass(model, photo):
    """xyxy are boxes as every verb takes them: pixel edges, brow to chin."""
    found = find_faces(photo, model=model)
    passed = scemae.extract_features(model, [photo] * 3, boxes=found.xyxy, align=False, expansion=1)
    for face, box in zip(passed.faces, found, strict=True):
        assert np.allclose(face.crop.to_image_affine, Crop.from_box(tuple(box), 64).to_image_affine)


def test_one_image_at_a_time(model, photo):
    with pytest.raises(ImageInputError, match="find_faces takes one image"):
        find_faces([photo, photo], model=model)
