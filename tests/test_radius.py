"""How far off a landmark may be: `Landmarks.radius`, in files, JSON, pictures and on the command line."""

import json
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from damage import rewrite_header
from made_up_faces import frames_of_people
from planted_errors import plant_held_out

import scemae
from scemae.cli.main import main
from scemae.detector.cascade import CascadeHead
from scemae.detector.error_model import ErrorModel
from scemae.detector.regressor import LEARNING
from scemae.errors import IncompatibleWeightsError, OptionError
from scemae.weights.model_folder import read_file

HEAD = CascadeHead(sigmas=(6, 3, 1.5), samples=2)


def radii_of(model, held_out, coverage=0.9):
    return model.calibration.quantile(coverage) * model.expect(torch.from_numpy(held_out.confidence)).numpy()


@pytest.mark.parametrize("faces", [20, 50, 100])
@pytest.mark.parametrize("coverage", [0.5, 0.9])
def test_planted_errors_are_covered(faces, coverage):
    rng = np.random.default_rng(0)
    new = plant_held_out(rng, 4000)
    covered = np.array(
        [
            (new.errors <= radii_of(ErrorModel.fit(plant_held_out(rng, faces)), new, coverage)).mean(axis=0)
            for _ in range(40)
        ]
    )
    assert abs(covered.mean() - coverage) < 0.025
    assert np.abs(covered.mean(axis=0) - coverage).max() < 0.07  # of each landmark


def test_planted_parameters_are_found():
    model = ErrorModel.fit(plant_held_out(np.random.default_rng(1), 3000))
    assert 0.75 < model.power < 1.05  # small errors count for little
    assert np.allclose(model.lengths / model.lengths[0], [1, 2, 1.5, 1, 0.5], rtol=0.1)
    sure, unsure = model.expect(torch.tensor([[0.9] * 5, [0.5] * 5]))
    assert (unsure / sure).numpy() == pytest.approx(5**model.power)
    assert torch.equal(*model.expect(torch.tensor([[0.0] * 5, [0.2] * 5])))  # further than on any held-out face


@pytest.mark.parametrize("power", [0.0, -1.0])
def test_a_confidence_that_tells_nothing_or_the_contrary_is_hardly_used(power):
    held_out = plant_held_out(np.random.default_rng(2), 300, power=power)
    assert ErrorModel.fit(held_out).power < 0.1


def test_a_head_that_tells_no_confidence_has_one_radius_for_each_landmark():
    rng = np.random.default_rng(3)
    model = ErrorModel.fit(plant_held_out(rng, 200, told=False))
    new = plant_held_out(rng, 4000)
    radii = radii_of(model, new)
    assert (radii == radii[0]).all()
    assert abs((new.errors <= radii).mean() - 0.9) < 0.03


def test_with_few_faces_landmarks_that_differ_by_chance_get_about_the_same():
    held_out = plant_held_out(np.random.default_rng(4), 10, lengths=(1.0,) * 20)
    raw, shrunk = np.nanmean(held_out.errors, axis=0), ErrorModel.fit(held_out).lengths
    assert np.ptp(shrunk) / shrunk.mean() < 0.3 * np.ptp(raw) / raw.mean()


def test_unknown_errors_are_left_out():
    held_out = plant_held_out(np.random.default_rng(5), 40)
    holes = held_out.errors.copy()
    holes[::4, 1], holes[1], holes[:, 4] = np.nan, np.nan, np.nan
    model = ErrorModel.fit(replace(held_out, errors=holes))
    assert model.calibration.count == 39
    assert np.isfinite(model.lengths).all()  # that of a landmark of which nothing is known is the mean
    assert len(model.calibration.ratios) == np.isfinite(holes).sum()
    nothing = ErrorModel.fit(replace(held_out, errors=holes * np.nan))
    assert np.isnan(radii_of(nothing, held_out)).all()
    exact = ErrorModel.fit(replace(held_out, errors=np.zeros_like(holes)))
    assert (radii_of(exact, held_out) == 0).all()


@pytest.fixture(scope="module")
def people(two_block_model):
    """Features of twelve people, one frame each, and their landmarks."""
    pictures, landmarks, _ = frames_of_people(people=12, frames=1)
    return scemae.extract_features(two_block_model, pictures, align=False, expansion=1), landmarks


@pytest.fixture(scope="module")
def fitted(two_block_model, people):
    return scemae.fit_regressor(two_block_model, *people, head=HEAD, normalizer=(0, 1), mirror="off")


def test_a_fit_knows_its_radii(fitted, people):
    features, landmarks = people
    found = fitted.predict(features)
    held_out = fitted.error_model_.held_out
    scales = np.array([[face.crop.scale] for face in features.faces])
    lengths = np.linalg.norm(landmarks[:, 0] - landmarks[:, 1], axis=-1, keepdims=True)
    held_out_px = fitted.held_out_errors_ * lengths / scales  # of fits on four fifths of the faces
    assert np.allclose(held_out.errors, held_out_px * 0.8**LEARNING)
    assert held_out.groups.tolist() == list(range(12))
    assert ((held_out.confidence >= 0) & (held_out.confidence <= 1)).all()
    radii = found.radius(0.9)
    assert radii.shape == found.scores.shape
    assert np.allclose(radii, fitted.error_model_.calibration.quantile(0.9) * found.expected_errors)
    assert (found.radius(0.5) < radii).all()
    assert np.array_equal(found[[2, 0]].radius(), radii[[2, 0]])
    larger = fitted.predict(features).expected_errors / scales
    assert np.allclose(larger, fitted.error_model_.expect(torch.from_numpy(found.scores)).numpy())


def test_too_few_faces_give_nan_and_say_how_many_it_takes(fitted, people):
    found = fitted.predict(people[0])
    with pytest.warns(UserWarning, match=r"covers 0.95: it takes 19 .* fitted on 12"):
        assert np.isnan(found.radius(0.95)).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert found.to_dict(0.95)[0]["landmarks"]["0"]["radius"] is None


def test_faces_of_a_group_count_as_one(two_block_model, people):
    features, landmarks = people
    pairs = scemae.fit_regressor(
        two_block_model, features, landmarks, head=HEAD, mirror="off", groups=np.arange(12) // 2
    )
    assert pairs.error_model_.calibration.count == 6
    with pytest.warns(UserWarning, match=r"it takes 9 .* fitted on 6"):
        pairs.predict(features).radius(0.9)
    assert np.isfinite(pairs.predict(features).radius(0.8)).all()


def test_a_face_that_was_not_found_has_no_radius(fitted, people):
    features = people[0]
    lost = [replace(face, score=0.1 if i == 3 else 0.9) for i, face in enumerate(features.faces)]
    radii = fitted.predict(replace(features, faces=tuple(lost))).radius()
    assert np.isnan(radii[3]).all()
    assert np.isfinite(np.delete(radii, 3, axis=0)).all()


@pytest.mark.parametrize("coverage", [0, 1, 1.5, -0.1, "0.9", True, float("nan"), None])
def test_a_coverage_is_a_share(fitted, people, coverage):
    with pytest.raises(OptionError, match="between 0 and 1"):
        fitted.predict(people[0]).radius(coverage)


def test_files_keep_the_radii(tmp_path, two_block_model, fitted, people):
    path = tmp_path / "detector.safetensors"
    fitted.save(path)
    loaded = scemae.LandmarkRegressor.load(path, two_block_model)
    assert np.array_equal(loaded.predict(people[0]).radius(), fitted.predict(people[0]).radius())


def test_a_file_without_them_says_so(tmp_path, two_block_model, fitted, people):
    path = tmp_path / "detector.safetensors"
    replace_error_model(fitted, None).save(path)
    older = scemae.LandmarkRegressor.load(path, two_block_model)
    found = older.predict(people[0])
    assert np.array_equal(found.xy, fitted.predict(people[0]).xy)
    with pytest.raises(OptionError, match="Fit it again"):
        found.radius()
    with pytest.raises(OptionError, match="Fit it again"):
        found.draw(radius=True)
    assert "coverage" not in found.to_dict()[0]
    older.save(tmp_path / "again.safetensors")


def replace_error_model(regressor, error_model):
    other = scemae.LandmarkRegressor(regressor.model)
    vars(other).update(vars(regressor) | {"error_model_": error_model})
    return other


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("errors", lambda t: t[:, :2].clone()),
        ("errors", lambda t: t / 0),
        ("confidence", lambda t: t.float()),
        ("groups", lambda t: t.double()),
    ],
)
def test_damaged_tensors_are_refused(tmp_path, two_block_model, fitted, name, change):
    path = tmp_path / "detector.safetensors"
    fitted.save(path)
    damaged = {f"radius.{name}": change(read_file(path)[0][f"radius.{name}"])}
    rewrite_header(path, lambda header: None, damaged)
    with pytest.raises(IncompatibleWeightsError, match=r"radius|infinite|damaged"):
        scemae.LandmarkRegressor.load(path, two_block_model)


def test_pictures_show_the_radii(fitted, people):
    found = fitted.predict(people[0])[:2]
    plain, circles, smaller = found.draw(), found.draw(radius=True), found.draw(radius=0.5)
    assert plain.size == circles.size
    assert len({picture.tobytes() for picture in (plain, circles, smaller)}) == 3
    assert found.draw(radius=False).tobytes() == plain.tobytes()


def test_matches_have_no_radius(faces, landmarks):
    matches = scemae.match_landmarks(faces[0], landmarks[0], faces[1])
    for ask in (matches.radius, lambda: matches.draw(radius=True)):
        with pytest.raises(OptionError, match="have no radius"):
            ask()
    assert "radius" not in matches.to_dict()[0]["landmarks"]["0"]


def test_the_command_line_has_them(tmp_path, capsys, two_block_folder, fitted, samples):
    path, picture = tmp_path / "detector.safetensors", tmp_path / "found.png"
    fitted.save(path)
    command = ["predict", str(path), str(samples[0].path), "--model", f"local-dir:{two_block_folder}", "--json"]
    assert main(command) == 0
    face = json.loads(capsys.readouterr().out)["faces"][0]
    assert face["coverage"] == 0.9
    assert face["landmarks"]["0"]["radius"] > 0
    assert main([*command, "--coverage", "0.5", "--out", str(picture)]) == 0
    half = json.loads(capsys.readouterr().out)["faces"][0]
    assert half["coverage"] == 0.5
    assert 0 < half["landmarks"]["0"]["radius"] < face["landmarks"]["0"]["radius"]
    assert picture.exists()
    assert main([*command, "--coverage", "90"]) == 2
    assert "between 0 and 1" in capsys.readouterr().err
