import json

import numpy as np
import pytest
import torch
from damage import rewrite_header
from safetensors.torch import save_file
from sklearn.base import clone
from sklearn.model_selection import cross_val_score

import scemae
from scemae.detector.augmentation import _copy_count, augment_faces
from scemae.detector.cascade import CascadeHead
from scemae.detector.detector_file import FIRST_FORMAT
from scemae.detector.heatmap import HeatmapHead
from scemae.detector.map_reader import MapReader
from scemae.errors import (
    IncompatibleFeaturesError,
    IncompatibleWeightsError,
    LandmarkInputError,
    ModelNotFoundError,
    NotFittedError,
    OptionError,
    OutputError,
    WeightsIntegrityError,
)
from scemae.geometry import CellGrid, sample_at
from scemae.weights.model_folder import REGRESSOR_FORMAT, read_file, write_file


@pytest.fixture(scope="session")
def regressor(model, faces, samples):
    return scemae.fit_regressor(model, faces, [s.landmarks for s in samples], normalizer=(0, 1))


@pytest.fixture(scope="module")
def two_blocks(two_block_model, samples):
    """A quick model and its features of the two sample faces, for fits that need not be good."""
    paths, boxes = [s.path for s in samples], [s.box for s in samples]
    return two_block_model, scemae.extract_features(two_block_model, paths, boxes=boxes)


def test_it_finds_what_it_was_fitted_on(regressor, faces, landmarks):
    found = regressor.predict(faces)
    errors = np.linalg.norm(found.xy - landmarks, axis=-1) / [[f.crop.scale] for f in faces.faces]
    assert errors.mean() < 2
    assert found.scores.shape == (2, 8)
    assert ((found.scores >= 0) & (found.scores <= 1)).all()
    assert found.names[0] == "left_eye"


def test_images_and_features_give_the_same(regressor, faces, samples):
    found = regressor.predict([s.path for s in samples], boxes=[s.box for s in samples])
    assert np.allclose(found.xy, regressor.predict(faces).xy, atol=1e-6)


def test_batches_change_nothing(regressor, faces, monkeypatch):
    whole = regressor.predict(faces)
    monkeypatch.setattr("scemae.detector.regressor.BATCH", 1)
    parts = regressor.predict([faces[0], faces[1]])
    assert np.allclose(parts.xy, whole.xy, atol=1e-3)
    assert parts.faces == whole.faces


@pytest.mark.slow
def test_one_face_is_enough_and_claims_no_error(model, faces, samples, landmarks):
    one = scemae.fit_regressor(model, faces[0], samples[0].landmarks)
    assert np.isnan(one.held_out_error_)
    assert "no held-out error" in repr(one)
    assert one.use_ == model.config.few_shot_use
    errors = np.linalg.norm(one.predict(faces[1]).xy[0] - landmarks[1], axis=1)
    assert np.median(errors) < 0.12 * np.linalg.norm(landmarks[1, 0] - landmarks[1, 1])


@pytest.mark.slow
def test_the_held_out_error_is_of_faces_that_were_not_seen(model, faces, landmarks, regressor):
    """With two faces and a fixed ridge it is what fitting on one and testing on the other gives."""
    head = CascadeHead(ridge=4.0, samples=20)
    both = scemae.fit_regressor(model, faces, landmarks, head=head, mirror="off", normalizer=(0, 1), use="backbone")
    # The jitter is drawn for all faces at once, so a lone fit draws other noise: close, not equal.
    errors = [
        -scemae.fit_regressor(
            model, faces[1 - i], landmarks[[1 - i]], head=head, mirror="off", normalizer=(0, 1), use="backbone"
        ).score(faces[i], landmarks[[i]])
        for i in (0, 1)
    ]
    assert both.held_out_error_ == pytest.approx(np.mean(errors), rel=0.15)
    assert both.held_out_error_ > 3 * -both.score(faces, landmarks)
    assert "held-out error" in repr(regressor)


@pytest.mark.slow
def test_missing_landmarks_are_left_out(two_blocks, landmarks):
    model, faces = two_blocks
    partial = landmarks.copy()
    partial[0, 3] = np.nan
    fitted = scemae.fit_regressor(model, faces, partial)
    assert np.isfinite(fitted.predict(faces).xy).all()
    assert np.isnan(fitted.held_out_errors_[0, 3])
    assert np.isfinite(fitted.score(faces, partial))
    partial[1, 3] = np.nan
    with pytest.raises(LandmarkInputError, match="Landmark 3 is not annotated on any of the 2 faces"):
        scemae.fit_regressor(model, faces, partial)


@pytest.mark.slow
def test_a_face_that_cannot_be_normalised_is_learned_from_and_has_no_error(two_blocks, landmarks):
    model, faces = two_blocks
    partial = landmarks.copy()
    partial[1, 0, 1] = np.nan  # half an eye
    fitted = scemae.fit_regressor(model, faces, partial, normalizer=(0, 1), mirror="off")
    assert np.isfinite(fitted.predict(faces).xy).all()
    assert np.isnan(fitted.held_out_errors_[1]).all()
    known = fitted.held_out_errors_[0, 1:]  # nobody else shows landmark 0
    assert fitted.held_out_error_ == pytest.approx(np.mean(known))
    assert np.isfinite(fitted.score(faces, partial))
    partial[0, 1] = np.nan
    with pytest.raises(LandmarkInputError, match="landmarks 0 and 1 of the normalizer"):
        scemae.fit_regressor(model, faces, partial, normalizer=(0, 1))
    partial[0], partial[1] = landmarks[0], np.nan
    with pytest.raises(LandmarkInputError, match=r"astronaut\.jpg has no annotated landmark"):
        scemae.fit_regressor(model, faces, partial)


@pytest.mark.slow
def test_a_single_landmark_is_measured_by_the_square(tmp_path, two_blocks, landmarks):
    model, faces = two_blocks
    fitted = scemae.fit_regressor(model, faces, landmarks[:, 2:3])
    off = fitted.predict(faces).xy[:, 0] - landmarks[:, 2]
    sides = [face.crop.size * face.crop.scale for face in faces.faces]
    error = np.mean(np.linalg.norm(off, axis=1) / sides)
    assert fitted.score(faces, landmarks[:, 2:3]) == pytest.approx(-error)
    assert 0 < fitted.held_out_error_ < 0.2
    assert "of the side of the square" in repr(fitted)


@pytest.mark.slow
def test_landmarks_of_another_face_are_warned_of(two_blocks, landmarks):
    model, faces = two_blocks
    hidden = landmarks.copy()
    hidden[0, 2] = 0  # what some annotations have for a landmark that is hidden
    with pytest.warns(UserWarning, match=r"1 of 16 landmarks lie far from the face .*: 2 at \(0, 0\)") as warned:
        scemae.fit_regressor(model, faces, hidden, mirror="off")
    assert warned[0].filename == __file__  # where the user called


@pytest.mark.slow
def test_names_and_numbers_of_any_kind(tmp_path, two_blocks, samples, landmarks):
    model, faces = two_blocks
    landmark_index = [dict(enumerate(xy)) for xy in landmarks]
    fitted = scemae.fit_regressor(
        model, faces, landmark_index, mirror=np.array([(0, 1)]), normalizer=tuple(np.array([0, 1]))
    )
    assert fitted.names_ == tuple("01234567")
    fitted.save(tmp_path / "r.safetensors")
    assert scemae.LandmarkRegressor.load(tmp_path / "r.safetensors", model).mirror == [[0, 1]]
    eyes = list(samples[0].landmarks)[:2]
    named = scemae.fit_regressor(model, faces, [s.landmarks for s in samples], normalizer=tuple(eyes), mirror="off")
    assert f"distance of landmarks {eyes[0]}, {eyes[1]}" in repr(named)
    for normalizer in (("left_eye", "third_eye"), (0, 99)):
        with pytest.raises(OptionError, match="normalizer names"):
            scemae.fit_regressor(model, faces, [s.landmarks for s in samples], normalizer=normalizer)


@pytest.mark.slow
def test_a_loaded_regressor_is_fitted_again_as_if_it_had_not_been_saved(tmp_path, two_blocks, landmarks):
    model, faces = two_blocks
    one = scemae.fit_regressor(model, faces[0], landmarks[:1])
    one.save(tmp_path / "one.safetensors")
    loaded = scemae.LandmarkRegressor.load(tmp_path / "one.safetensors", model)
    assert loaded.get_params() == one.get_params()
    assert (loaded.use, loaded.head) == (None, "cascade")
    assert loaded.fit(faces, landmarks).head_.ridge_ == one.fit(faces, landmarks).head_.ridge_


@pytest.mark.slow
def test_mirror_pairs_by_name_equal_those_that_are_found(two_blocks, samples):
    model, faces = two_blocks
    named = [s.landmarks for s in samples]
    pairs = [("left_eye", "right_eye"), ("left_mouth", "right_mouth")]
    given = scemae.fit_regressor(model, faces, named, mirror=pairs).predict(faces).xy
    assert np.allclose(given, scemae.fit_regressor(model, faces, named).predict(faces).xy)
    with pytest.raises(OptionError, match="'left_ear'"):
        scemae.fit_regressor(model, faces, named, mirror=[("left_ear", "right_eye")])
    with pytest.raises(OptionError, match="mirror is 'on'"):
        scemae.fit_regressor(model, faces, named, mirror="on")


class PixelModel:
    """A model whose maps hold the pixels of the view, at the centres of the cells."""

    def __init__(self, model):
        self.model = model

    def __getattr__(self, name):
        return getattr(self.model, name)

    def normalise(self, views):
        return views

    def __call__(self, views, expansion):
        axis = self.grid(expansion).centres(12 * expansion).double() + self.view_margin
        centres = torch.stack(torch.meshgrid(axis, axis, indexing="xy"), dim=-1).flatten(0, 1)
        read = sample_at(views, CellGrid(0.0, 1.0), centres.expand(len(views), -1, -1))
        return read.transpose(1, 2).unflatten(2, (len(axis), len(axis)))


@pytest.mark.parametrize("swap", [None, [1, 0, 2]])
def test_the_copies_of_a_face_show_each_landmark_where_they_say(model, swap):
    """In a picture whose red says x and whose green says y: a landmark of each copy lies on the pixel of its name."""
    ramp = np.arange(256, dtype=np.uint8)
    picture = np.stack([*np.meshgrid(ramp, ramp), np.zeros((256, 256), dtype=np.uint8)], axis=-1)
    landmarks = np.array([[(110.0, 115.0), (150.0, 112.0), (131.0, 140.0)]])
    pixels = PixelModel(model)
    features = scemae.extract_features(pixels, picture, boxes=(70, 70, 190, 190), align=False)
    reader = MapReader("backbone", torch.zeros(3), torch.ones(3))
    data = augment_faces(
        pixels, features, landmarks, swap=swap, groups=np.zeros(1, dtype=int), head=CascadeHead(), reader=reader
    )
    sides = 1 if swap is None else 2
    assert (len(data.maps), data.originals.sum(), data.mirrored.sum()) == (10 + sides, 1, 0 if swap is None else 6)
    read = 255 * sample_at(data.maps, data.grid, data.landmarks)[..., :2]
    named = np.stack([landmarks[0][swap] if mirrored else landmarks[0] for mirrored in data.mirrored])
    assert np.abs(read.numpy() - named).max() < 0.3
    distinct = np.unique(data.landmarks.flatten(1).numpy().round(3), axis=0)
    assert len(distinct) == len(data.maps)


@pytest.mark.parametrize(("faces", "copies"), [(1, 10), (2, 5), (3, 4), (100, 4), (150, 2), (400, 1), (401, 0)])
def test_few_faces_have_many_copies(faces, copies):
    assert _copy_count(faces) == copies


def test_the_fixed_crop_works_too(model, samples, landmarks):
    paths, boxes = [s.path for s in samples], [s.box for s in samples]
    fixed = scemae.fit_regressor(model, paths, landmarks, boxes=boxes, align=False, expansion=1)
    found = fixed.predict(paths, boxes=boxes)
    assert found.faces[0].alignment is None
    assert np.abs(found.xy - landmarks).max() < 12


@pytest.mark.slow
def test_the_papers_head(two_blocks, landmarks):
    model, faces = two_blocks
    head = HeatmapHead(heatmaps=5, steps=60, rate=0.01)
    fitted = scemae.fit_regressor(model, faces, landmarks, head=head)
    assert fitted.head_ is not head
    assert -fitted.score(faces, landmarks) < 0.1
    assert np.isfinite(fitted.held_out_error_)


@pytest.mark.slow
def test_scikit_learn_can_clone_and_cross_validate(two_blocks, landmarks):
    model, faces = two_blocks
    regressor = scemae.LandmarkRegressor(model, mirror="off")
    copied = clone(regressor)
    assert copied is not regressor
    assert copied.model is model
    assert copied.get_params() == regressor.get_params()
    many, shapes = scemae.FaceFeatures.concatenate([faces, faces]), np.concatenate([landmarks, landmarks])
    scores = cross_val_score(regressor, many, shapes, cv=2)
    assert scores.shape == (2,)
    assert (scores < 0).all()
    assert regressor.set_params(use="both").use == "both"
    with pytest.raises(OptionError, match="no parameter 'alpha'"):
        regressor.set_params(alpha=1)


@pytest.mark.slow
def test_a_second_fit_heeds_its_own_settings(two_blocks, samples, landmarks):
    model, _ = two_blocks
    paths, boxes = [s.path for s in samples], [s.box for s in samples]
    regressor = scemae.LandmarkRegressor(model, expansion=2).fit(paths, landmarks, boxes=boxes)
    regressor.set_params(expansion=1, align=False).fit(paths, landmarks, boxes=boxes)
    assert (regressor.kind_.expansion, regressor.kind_.aligned) == (1, False)
    assert regressor.predict(paths, boxes=boxes).faces[0].alignment is None


@pytest.mark.slow
def test_images_are_seen_with_the_margin_of_the_features_that_were_fitted(two_blocks, samples, landmarks):
    model, _ = two_blocks
    paths, boxes = [s.path for s in samples], [s.box for s in samples]
    reflected = scemae.extract_features(model, paths, boxes=boxes, margin="reflect")
    regressor = scemae.fit_regressor(model, reflected, landmarks)
    assert np.allclose(regressor.predict(paths, boxes=boxes).xy, regressor.predict(reflected).xy, atol=1e-6)


@pytest.mark.parametrize("head", ["cascade", HeatmapHead(heatmaps=3, steps=2), HeatmapHead(3, block=True, steps=2)])
@pytest.mark.slow
def test_save_and_load_give_identical_predictions(tmp_path, model, faces, samples, head):
    fitted = scemae.fit_regressor(model, faces, [s.landmarks for s in samples], head=head)
    path = tmp_path / "lips.safetensors"
    fitted.save(path)
    again = scemae.LandmarkRegressor.load(path)
    assert np.array_equal(again.predict(faces).xy, fitted.predict(faces).xy)
    assert repr(again) == repr(fitted)
    assert again.names_ == fitted.names_
    refitted = clone(again).fit(faces, [s.landmarks for s in samples])
    assert np.array_equal(refitted.predict(faces).xy, fitted.predict(faces).xy)
    with pytest.raises(OutputError, match="exists already"):
        fitted.save(path)
    fitted.save(path, overwrite=True)


def test_a_file_that_cannot_be_loaded_says_why(tmp_path, model, regressor):
    path = tmp_path / "r.safetensors"
    with pytest.raises(ModelNotFoundError, match="no such file"):
        scemae.LandmarkRegressor.load(path)
    regressor.save(path)
    whole = path.read_bytes()
    for cut in (0, 5, 100, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(WeightsIntegrityError, match="truncated"):
            scemae.LandmarkRegressor.load(path)
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(IncompatibleWeightsError, match="not a landmark regressor"):
        scemae.LandmarkRegressor.load(path)


def test_another_model_is_refused(tmp_path, model, regressor, faces):
    from dataclasses import replace

    path = tmp_path / "r.safetensors"
    regressor.save(path)
    rewrite_header(path, lambda header: header["kind"].update(model=["scemae-tiny", "0" * 64]))
    with pytest.raises(IncompatibleWeightsError, match="was fitted on scemae-tiny"):
        scemae.LandmarkRegressor.load(path, model)
    rewrite_header(path, lambda header: header["kind"].update(model=["my_own_tiny", "0" * 64]))
    with pytest.raises(ModelNotFoundError, match=r"on a model of your own, my_own_tiny .*pass model="):
        scemae.LandmarkRegressor.load(path)
    other = replace(faces, model=model.id._replace(sha256="0" * 64))
    with pytest.raises(IncompatibleFeaturesError, match="Extract both"):
        regressor.predict(other)
    for change in ({"expansion": 4}, {"aligned": False}, {"margin": "reflect"}):
        with pytest.raises(IncompatibleFeaturesError, match="These features were made with"):
            regressor.predict(replace(faces, **change))


@pytest.mark.parametrize(
    ("faces_given", "options", "error", "message"),
    [
        pytest.param(1, {}, LandmarkInputError, "for 1 faces, but there are 2", id="landmarks of fewer faces"),
        pytest.param(2, {"names": ["a", "b"]}, LandmarkInputError, "2 names for 8", id="fewer names"),
        pytest.param(2, {"names": ["a", *"aceghij"]}, LandmarkInputError, "same name", id="a name twice"),
        pytest.param(2, {"head": "mlp"}, OptionError, "head is 'mlp'", id="unknown head"),
        pytest.param(
            2,
            {"mirror": False},
            OptionError,
            "mirror is False; it must be 'auto', 'off' or a list",
            id="mirror is not one of its values",
        ),
    ],
)
def test_bad_input_of_fit_is_refused(model, faces, landmarks, faces_given, options, error, message):
    with pytest.raises(error, match=message):
        scemae.fit_regressor(model, faces, landmarks[:faces_given], **options)


def test_a_regressor_that_is_not_fitted_says_so(tmp_path, model, faces):
    regressor = scemae.LandmarkRegressor(model)
    with pytest.raises(NotFittedError, match="call fit"):
        regressor.predict(faces)
    with pytest.raises(NotFittedError, match="call fit"):
        regressor.save(tmp_path / "r.safetensors")


@pytest.mark.slow
def test_landmarks_that_cannot_be_scored_are_refused(model, faces, landmarks, regressor):
    with pytest.raises(LandmarkInputError, match="8 names for 5 landmarks"):
        regressor.score(faces, landmarks[:, :5].tolist())
    nameless = scemae.LandmarkRegressor(model, head=CascadeHead(ridge=1.0), mirror="off").fit(faces, landmarks)
    with pytest.raises(LandmarkInputError, match="landmarks have names, those of the regressor have none"):
        nameless.score(faces, [{str(k): xy for k, xy in enumerate(face)} for face in landmarks])


def test_a_folder_that_is_missing_is_not_made(tmp_path, regressor):
    with pytest.raises(OutputError, match="no folder"):
        regressor.save(tmp_path / "nowhere" / "r.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_the_header_is_json(tmp_path, regressor):
    regressor.save(tmp_path / "r.safetensors")
    _, metadata = read_file(tmp_path / "r.safetensors")
    assert json.loads(metadata[REGRESSOR_FORMAT])["kind"]["model"] == list(regressor.model.id)


def test_a_loaded_regressor_is_saved_as_the_same_file(tmp_path, model, regressor):
    regressor.save(tmp_path / "first.safetensors")
    scemae.LandmarkRegressor.load(tmp_path / "first.safetensors", model).save(tmp_path / "second.safetensors")
    assert (tmp_path / "first.safetensors").read_bytes() == (tmp_path / "second.safetensors").read_bytes()


def test_a_file_of_the_first_format_still_loads(regressor, faces, tmp_path):
    """Its header had `settings`, the chosen ridge among them, where params are now, and heads as [name, settings]."""
    path, old = tmp_path / "new.safetensors", tmp_path / "old.safetensors"
    regressor.save(path)
    tensors, metadata = read_file(path)
    header = json.loads(metadata[REGRESSOR_FORMAT])
    del header["sha256"], header["boxed"]
    settings = header.pop("params") | {"ridge": float(tensors.pop("head.ridge"))}
    header |= {"settings": settings, "asked": header["asked"] | {"head": ["cascade", settings]}}
    write_file(old, tensors, {FIRST_FORMAT: json.dumps(header)})
    with pytest.warns(UserWarning, match="carries no checksum") as warned:
        loaded = scemae.LandmarkRegressor.load(old, regressor.model)
    assert warned[0].filename == __file__
    assert loaded.head_.ridge_ == regressor.head_.ridge_
    assert loaded.head.params() == loaded.head_.params()
    assert np.array_equal(loaded.predict(faces).xy, regressor.predict(faces).xy)
