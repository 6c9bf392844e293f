"""Landmarks as people have them: masked, named, outside their picture, or in another convention."""

import re
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

import scemae
from scemae.detector.mirror import mirror_permutation
from scemae.errors import BoxInputError, LandmarkInputError, OptionError
from scemae.landmark_input import check_annotated, landmark_pair, validate_landmarks

NAMES = ("left_eye", "right_eye", "nose", "left_mouth", "right_mouth")


def read(landmarks, faces, names=None):
    return validate_landmarks(landmarks, faces.faces, names, allow_missing=True, allow_outside=True)


# ---- forms


def test_masked_is_not_annotated(faces, landmarks):
    """Faults A5: numpy drops the mask without a word, and what lies under it was taken for a landmark."""
    masked = np.ma.array(landmarks)
    masked[0, 2] = np.ma.masked
    wanted = landmarks.copy()
    wanted[0, 2] = np.nan
    named = [{str(k): xy for k, xy in enumerate(face)} for face in masked]
    rows = np.array([{"nose": 0}, {}], dtype=object)
    rows[:] = named  # as a pandas Series of dicts
    for given in (masked, list(masked), tuple(masked), [list(face) for face in masked], named, rows):
        np.testing.assert_array_equal(read(given, faces)[0], wanted)


def test_masked_is_not_annotated_in_a_match_and_in_a_score(faces, landmarks, fitted):
    """Faults A5."""
    masked, wanted = np.ma.array(landmarks[:, :7]), landmarks[:, :7].copy()
    masked[0, 2], wanted[0, 2] = np.ma.masked, np.nan
    found, right = (scemae.match_landmarks(faces, given, faces, prior=0) for given in (masked, wanted))
    assert np.array_equal(found.xy, right.xy)
    masked, wanted = np.ma.array(landmarks), landmarks.copy()
    masked[0, 2], wanted[0, 2] = np.ma.masked, np.nan
    assert fitted.score(faces, masked) == fitted.score(faces, wanted) != fitted.score(faces, landmarks)
    with pytest.raises(LandmarkInputError, match="Landmark 2"):
        scemae.match_landmarks(faces[0], masked[0], faces[1])


@pytest.fixture(scope="module")
def fitted(model, faces, landmarks):
    return scemae.fit_regressor(model, faces, landmarks, mirror="off", use="backbone")


def test_tensors_and_a_series_of_dicts(faces, landmarks):
    """Faults D: a tensor that requires grad was a RuntimeError."""
    tensor = torch.tensor(landmarks, requires_grad=True)
    for given in (tensor, list(tensor), tensor.to(torch.float64).to_dense()):
        np.testing.assert_array_equal(read(given, faces)[0], landmarks)
    series = pytest.importorskip("pandas").Series([dict(zip("abcdefgh", xy, strict=True)) for xy in landmarks])
    array, names = read(series, faces)
    np.testing.assert_array_equal(array, landmarks)
    assert names == tuple("abcdefgh")


@pytest.mark.parametrize(
    ("landmarks", "message"),
    [
        pytest.param(torch.zeros(2, 8, 2, device="meta"), "cannot be read from a tensor", id="meta"),
        pytest.param(torch.zeros(2, 8, 2).to_sparse(), "cannot be read from a tensor", id="sparse"),
        pytest.param([{"nose": {"X": 1}}] * 2, "a dict without 'x'", id="no x"),
        pytest.param([{"nose": "here"}] * 2, "cannot be read as numbers", id="a word"),
        pytest.param([{0: (9, 9), "0": (300, 300)}] * 2, "same name", id="equal as text"),
        pytest.param([{"nose": (9, 9), "nose ": (300, 300)}] * 2, "same name", id="equal but for a space"),
    ],
)
def test_what_are_no_landmarks_is_refused(faces, landmarks, message):
    with pytest.raises(LandmarkInputError, match=message):
        read(landmarks, faces)


# ---- names


def test_names_are_text_without_spaces_around(faces, landmarks):
    """Faults A7, D: names=range(68) was an AttributeError."""
    assert read(landmarks, faces, range(8))[1] == tuple("01234567")
    named = [{f" {name} ": xy for name, xy in zip("abcdefgh", face, strict=True)} for face in landmarks]
    assert read(named, faces)[1] == tuple("abcdefgh")
    assert read(landmarks, faces, np.array(list("abcdefgh ")[:8]))[1] == tuple("abcdefgh")


@pytest.mark.parametrize("other", ["Nose", "NOSE ", "nose\u200a", "\uff4eose"])
def test_names_that_differ_by_case_and_space_are_refused(faces, other):
    """Faults A7: `Nose`, `nose ` and `nose` were three landmarks."""
    given = [{"nose": (200, 200)}, {other: (200, 200)}]
    if other.strip() == "nose":
        assert read(given, faces)[1] == ("nose",)
        return
    with pytest.raises(LandmarkInputError, match=r"'nose' and .* have almost the same name"):
        read(given, faces)


@pytest.mark.parametrize("names", ["abcdefgh", 8])
def test_names_that_are_no_list_are_refused(faces, landmarks, names):
    with pytest.raises(LandmarkInputError, match="wanted a list with a name for each landmark"):
        read(landmarks, faces, names)


def test_a_landmark_on_very_few_faces_is_warned_of(faces, landmarks):
    """Faults A7: a slip of the pen is a landmark of its own."""
    many = faces[[0, 1] * 5]
    xy = np.tile(landmarks, (5, 1, 1))
    xy[1:, 3] = np.nan
    with pytest.warns(UserWarning, match="Only 1 of 10 faces show the landmark 3. Is its name spelled the same"):
        check_annotated(xy, None, many)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_annotated(xy[:3], None, many[:3])


# ---- places


def test_labels_outside_the_picture_but_beside_the_face(model, samples, landmarks):
    """Faults D: truths like those of AFLW2000 stopped fit and score."""
    x0, y0, x1, y1 = samples[0].box
    beside = Image.open(samples[0].path).crop((x0 + 20, y0 - 20, x1 + 20, y1 + 20))
    face = scemae.extract_features(model, beside, boxes=(0, 20, x1 - x0 - 20, y1 - y0 + 20))
    outside = landmarks[:1] - (x0 + 20, y0 - 20)
    outside[0, 0] = (-4, 70)
    assert np.array_equal(read(outside, face)[0], outside)
    with pytest.raises(LandmarkInputError, match="outside"):
        validate_landmarks(outside, face.faces)
    for wrong in ((-1, -1), (5000, 200), (np.inf, 3)):
        outside[0, 0] = wrong
        with pytest.raises(LandmarkInputError, match=r"outside its .*nan where it is not annotated"):
            read(outside, face)


def test_exactly_nought_on_several_faces_is_warned_of(faces, landmarks):
    """Faults A8: (0, 0) for hidden."""
    xy = landmarks.copy()
    xy[0, 2] = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        read(xy, faces)
    xy[1, 3] = 0
    with pytest.warns(UserWarning, match=r"2 landmarks on 2 faces are at exactly \(0, 0\)") as warned:
        read(xy, faces)
    assert warned[0].filename == __file__


@pytest.fixture(scope="module")
def crops(model, samples):
    """Two pictures of 150 px that the face fills, as in the datasets, with five landmarks in them."""
    from made_up_faces import FIVE_NAMES

    from scemae.geometry import Crop, central_part
    from scemae.images import iter_photos
    from scemae.patches import cut_square

    pictures, xy = [], []
    for sample in samples:
        x0, y0, x1, y1 = sample.box
        half = (x1 - x0) * 136 / 96 / 2
        x, y = (x0 + x1) / 2, (y0 + y1) / 2
        crop = Crop.from_box((x - half, y - half, x + half, y + half), 150)
        pictures.append(cut_square(next(iter_photos(sample.path)).image, crop, 150))
        xy.append(crop.to_input([sample.landmarks[name] for name in FIVE_NAMES]))
    assert central_part(0, 0, 150) == pytest.approx((150 * 20 / 136,) * 2 + (150 * 116 / 136,) * 2)
    return scemae.extract_features(model, pictures), np.array(xy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        pytest.param(lambda xy: xy, None, id="pixels"),
        pytest.param(lambda xy: xy / 1.5, "square that the model sees from its middle", id="percent"),
        pytest.param(lambda xy: xy / 150, "landmarks lie far|from its middle", id="fractions"),
        pytest.param(lambda xy: 75 + (xy - 75) / 20, "box has a diagonal of 3%", id="tiny"),
        pytest.param(lambda xy: xy[..., ::-1], r"lie on their side.*not \(y, x\)", id="y first"),
    ],
)
@pytest.mark.parametrize("names", [("a", "b", "c", "d", "e"), NAMES])
def test_coordinates_of_another_convention_are_warned_of(crops, change, message, names):
    """Faults A8: percent and (y, x) stay inside the picture, and made errors of 65 to 90 % without a word."""
    features, xy = crops
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        given, _ = read(change(xy), features, names)
        check_annotated(given, names, features)
        mirror_permutation("auto", np.nanmean(features.to_input(given), axis=0), names, 96)
    said = " ".join(str(warning.message) for warning in warned)
    if message is None or ("(y, x)" in message.replace("\\", "") and names != NAMES):  # only names tell a side
        assert said == ""
    else:
        assert re.search(message, said)


def test_parts_of_a_face_are_not_warned_of(crops):
    features, xy = crops
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for part in ([0, 1], [3, 4], [2], [0, 1, 2]):
            check_annotated(xy[:, part], None, features)
            mirror_permutation("auto", np.nanmean(features.to_input(xy[:, part]), axis=0), None, 96)


def test_boxes_of_width_and_height_are_warned_of(model, crops, samples):
    """Faults A8: boxes (x, y, width, height)."""
    paths = [s.path for s in samples]
    with pytest.warns(UserWarning, match="All boxes are squares if they are"):
        scemae.iter_features(model, paths, boxes=[(180, 100, 230, 230), None])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scemae.iter_features(model, paths, boxes=[(100, 100, 230, 230), (90, 100, 230, 230)])
        scemae.iter_features(model, paths, boxes=[(90, 100, 230, 230), (90, 100, 230, 231)])


# ---- options that contradict, or say what nothing heeds


@pytest.mark.parametrize("pair", ["left_eye", ("a",), (0, 1, 2), 5, (0, 0.5), (True, 0), [None, 1]])
def test_what_is_no_pair_is_refused(pair):
    """Faults D: mirror= and normalizer= of the wrong shape."""
    with pytest.raises(OptionError, match=r"normalizer (has|names)"):
        landmark_pair(pair, None, 5, "normalizer")


@pytest.mark.parametrize(
    "mirror", [("left_eye", "right_eye"), [0, 1], [("left_eye", "right_eye"), ("right_eye", "nose")], [(0, 1), (1, 0)]]
)
def test_mirror_pairs_that_are_none_or_overlap_are_refused(mirror):
    """Faults A9, D."""
    with pytest.raises(OptionError, match="mirror has"):
        mirror_permutation(mirror, np.arange(10.0).reshape(5, 2), NAMES, 96)


def test_boxes_beside_features_are_refused(model, faces, landmarks, samples, fitted):
    """Faults A9: they were ignored."""
    boxes = [s.box for s in samples]
    calls = (
        lambda: scemae.fit_regressor(model, faces, landmarks, boxes=boxes),
        lambda: fitted.predict(faces, boxes=boxes),
        lambda: fitted.score([faces], landmarks, boxes=boxes),
    )
    for call in calls:
        with pytest.raises(BoxInputError, match=r"images are FaceFeatures.*leave out boxes="):
            call()


@pytest.mark.parametrize("options", [{"expansion": 4}, {"align": False}, {"align": "no"}])
def test_options_that_contradict_the_features_are_refused(model, faces, landmarks, options):
    """Faults A9: the kind."""
    with pytest.raises(OptionError, match="but these FaceFeatures were made with"):
        scemae.fit_regressor(model, faces, landmarks, **options)


@pytest.mark.parametrize("align", ["no", "False", 0, 1, []])
def test_align_is_true_or_false(model, samples, align):
    """Faults A9: align="no" meant yes."""
    with pytest.raises(OptionError, match=r"align is .*; it must be True or False"):
        scemae.extract_features(model, samples[0].path, align=align)
    assert scemae.iter_features(model, samples[0].path, align=np.True_)


@pytest.mark.parametrize(
    "options",
    [{"prior": np.nan}, {"prior": np.inf}, {"prior": "5"}, {"prior": True}, {"subpixel": "no"},
     {"keep_similarity": "no"}],
)  # fmt: skip
def test_options_of_a_match_are_what_they_should_be(faces, landmarks, options):
    """Faults A9: prior=nan."""
    [name] = options
    with pytest.raises(OptionError, match=f"{name} is .*; it must be"):
        scemae.match_landmarks(faces[0], landmarks[0], faces[1], **options)


def test_a_warning_points_to_the_caller(faces, landmarks):
    """Whatever lies between: a decorated function of the library too."""
    xy = np.zeros_like(landmarks)
    with pytest.warns(UserWarning, match="exactly") as warned, pytest.raises(LandmarkInputError):
        scemae.match_landmarks(faces, xy, faces)
    assert warned[0].filename == __file__
