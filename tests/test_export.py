"""Exported files do what the verbs do; each graph is written as few times as possible, for it takes seconds."""

import copy
import importlib.util
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from planted_errors import plant_held_out
from small_models import ALIGNER, TOKEN_ALIGNER, load_small_model

import scemae
from scemae.cli.main import main
from scemae.detector.cascade import CascadeHead
from scemae.detector.error_model import ErrorModel
from scemae.detector.heatmap import HeatmapHead
from scemae.errors import ExportError, MissingExtraError, NotFittedError, OptionError, OutputError
from scemae.export import graphs
from scemae.export.graphs import RegressorGraph
from scemae.export.trial_faces import trial_faces
from scemae.model import aligner
from scemae.weights.model_folder import save_model
from scemae.weights.zoo import load_model

EXAMPLE = Path(__file__).parent.parent / "examples" / "onnx_landmarks.py"


@pytest.fixture(scope="module")
def short_model(aligning_in, two_block_folder):
    """Two blocks and two steps of alignment: an export takes as long as its graph is large."""
    return load_model(aligning_in(2, architecture="test-two-blocks"))


@pytest.fixture(scope="module")
def regressor(short_model, samples):
    return give_radii(fit(short_model, samples))


def fit(model, samples, **options):
    paths, boxes = [s.path for s in samples], [s.box for s in samples]
    landmarks = [s.landmarks for s in samples]
    options = {"expansion": 1, "mirror": "off", "head": CascadeHead(sigmas=(6.0, 1.0))} | options
    return scemae.fit_regressor(model, paths, landmarks, boxes=boxes, **options)


def give_radii(regressor):
    """As if it had been fitted on more faces than two."""
    regressor.error_model_ = ErrorModel.fit(plant_held_out(np.random.default_rng(0), 20, lengths=(1.0,) * 8))
    return regressor


@pytest.fixture(scope="module")
def exported(model, faces, samples):
    """The regressor that `detector` is a file of, whole: all blocks, all steps of the alignment, all stages."""
    return give_radii(scemae.fit_regressor(model, faces, [s.landmarks for s in samples], mirror="off"))


@pytest.fixture(scope="module")
def detector(exported, tmp_path_factory):
    """An ONNX file of a regressor, and the report of its export."""
    path = tmp_path_factory.mktemp("detector") / "detector.onnx"
    return path, scemae.export_graph(exported, path, faces=9)


def predict_at_once(regressor, patches, boxes):
    """What `predict` finds on patches (B, 3, H, W) without second tries, which a graph does not have."""
    kind = regressor.kind_
    settings = {"align": kind.aligned, "expansion": kind.expansion, "margin": kind.margin, "search": "none"}
    images = patches.transpose(0, 2, 3, 1)
    return regressor.predict(scemae.extract_features(regressor.model, images, boxes=boxes, **settings))


def known_radii(found):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Not enough faces")
        return found.radius()


def difference(regressor, patches, boxes):
    """The largest distance, px, between the landmarks of the graph and of `predict`, on patches (B, 3, H, W)."""
    with torch.inference_mode():
        graph = RegressorGraph(regressor).eval()
        xy, scores, face_scores, radii = graph(torch.from_numpy(patches), torch.tensor(boxes).float())
    found = predict_at_once(regressor, patches, boxes)
    assert np.abs(scores.numpy() - found.scores).max() < 0.01
    assert np.allclose(face_scores, [face.score for face in found.faces], atol=0.01, equal_nan=True)
    assert np.allclose(radii, known_radii(found), rtol=0.01, equal_nan=True)
    return np.linalg.norm(xy.numpy() - found.xy, axis=-1).max()


@pytest.mark.slow
def test_the_detector_agrees_with_predict(detector, exported):
    (path, report), regressor = detector, exported
    assert report.faces == 9
    assert report.difference < 0.01
    assert "px from torch" in str(report)
    assert [file.name for file in path.parent.iterdir()] == [path.name]  # no weights beside it
    session = onnxruntime.InferenceSession(path)
    about = json.loads(session.get_modelmeta().custom_metadata_map["scemae"])
    assert about["landmarks"] == list(regressor.names_)
    assert about["model"]["sha256"] == regressor.model.id.sha256
    patches = np.ascontiguousarray(trial_faces(3, 120, 60)[:, :, 20:, :-5])
    boxes = np.array([(60, 40, 180, 160), (66, 50, 171, 150), (55, 44, 155, 159)], dtype=np.float32)
    xy, scores, face_scores, radii = session.run(None, {"patches": patches, "boxes": boxes})
    found = predict_at_once(regressor, patches, boxes)
    assert np.linalg.norm(xy - found.xy, axis=-1).max() < 0.01
    assert np.allclose(face_scores, [face.score for face in found.faces], atol=0.01, equal_nan=True)
    assert np.abs(scores - found.scores).max() < 1e-3
    assert np.allclose(radii, known_radii(found), rtol=1e-3)
    assert np.ptp(scores) > 0.01


@pytest.mark.slow
def test_the_detector_runs_without_torch(detector, exported, samples):
    """The example, in a Python where torch and all that needs it cannot be imported, or (.ci/run) is not installed."""
    python = os.environ.get("PYTHON_WITHOUT_TORCH", sys.executable)
    small = samples[1]  # its box has less than 128 px: the example passes on the photo's own pixels
    code = f"""
import runpy, sys
sys.modules |= dict.fromkeys(["torch", "timm", "scemae", "safetensors", "onnx", "onnxscript"])
sys.argv = {["example", str(detector[0]), str(small.path), *map(str, small.box)]!r}
runpy.run_path({str(EXAMPLE)!r})
"""
    done = subprocess.run([python, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [line.rsplit(maxsplit=3) for line in done.stdout.splitlines()]
    found = exported.predict(small.path, boxes=small.box)
    assert tuple(name for name, *_ in lines) == found.names
    assert np.abs(np.array([line[1:3] for line in lines], dtype=float) - found.xy[0]).max() < 0.02


@pytest.mark.slow
def test_large_faces_go_through_the_example_nearly_as_through_predict(detector, exported, samples):
    large = samples[0]
    command = [sys.executable, EXAMPLE, detector[0], large.path, *map(str, large.box)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    places = np.array([line.split()[-3:-1] for line in done.stdout.splitlines()], dtype=float)
    apart = np.abs(places - exported.predict(large.path, boxes=large.box).xy[0]).max()
    assert apart < 0.01 * (large.box[2] - large.box[0])  # the patch is half as fine as the photo


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"use": "both"},
        {"use": "projected", "align": False},
        {"head": HeatmapHead(heatmaps=4, steps=3), "expansion": 2},
    ],
    ids=["both", "fixed crop", "heat maps"],
)
def test_every_kind_of_regressor_agrees(short_model, samples, options):
    regressor = fit(short_model, samples, **options)
    side = RegressorGraph(regressor).box_side
    box = np.array([side / 2, side / 2, 1.5 * side, 1.5 * side])
    assert difference(regressor, trial_faces(3, side, side // 2), np.tile(box, (3, 1))) < 0.01


@pytest.mark.usefixtures("tiny_backbone")
def test_a_model_of_another_size_is_exported_and_agrees(samples, tmp_path):
    model = load_small_model(tmp_path / "model", 64, 16)
    assert (
        difference(fit(model, samples, expansion=2), trial_faces(3, 128, 64), np.tile([64, 64, 192, 192], (3, 1)))
        < 0.01
    )
    report = scemae.export_graph(model, tmp_path / "maps.pt2", faces=2, expansion=1)
    assert report.inputs == {"views": ["batch", 3, 80, 80]}


@pytest.mark.slow
@pytest.mark.usefixtures("tiny_backbone")
@pytest.mark.parametrize(
    ("aligner", "head"),
    [(ALIGNER, CascadeHead(sigmas=(1.0,))), (TOKEN_ALIGNER, HeatmapHead(heatmaps=4, steps=3))],
    ids=["convolutions", "tokens"],
)
def test_regressors_of_both_aligners_as_torch_programs(samples, tmp_path, aligner, head):
    """They take any number of faces, in patches of any size."""
    path, extra = tmp_path / "r.pt2", {"scemae": ""}
    regressor = fit(load_small_model(tmp_path / "model", aligner=aligner), samples, head=head)
    assert scemae.export_graph(regressor, path, faces=4).difference < 0.01
    program = torch.export.load(path, extra_files=extra).module()
    assert json.loads(extra["scemae"])["box_side"] == 128
    patches, box = trial_faces(3, 128, 64), [64.0, 64, 192, 192]
    for count in (1, 3):
        found = program(torch.from_numpy(patches[:count]), torch.tensor([box] * count))
        assert {len(part) for part in found} == {count}
        known = aligner is ALIGNER
        assert torch.isfinite(found[2]).all() == known
        wanted = [face.score for face in predict_at_once(regressor, patches[:count], [box] * count).faces]
        assert np.allclose(found[2], wanted, atol=1e-3, equal_nan=True)
    xy, _, face_scores, radii = program(
        torch.zeros(1, 3, 200, 300, dtype=torch.uint8), torch.tensor([[60.0, 60.0, 150.0, 150.0]])
    )
    assert xy.shape == (1, 8, 2)
    assert face_scores.shape == (1,)
    assert radii.isnan().all()  # too few faces to tell
    assert radii.shape == (1, 8)


@pytest.mark.slow
def test_a_regressor_on_mirrored_margins_agrees(short_model, samples):
    features = scemae.extract_features(
        short_model, [s.path for s in samples], boxes=[s.box for s in samples], expansion=2, margin="reflect"
    )
    regressor = scemae.fit_regressor(short_model, features, [s.landmarks for s in samples], mirror="off")
    assert difference(regressor, trial_faces(3, 128, 64), np.tile([64, 64, 192, 192], (3, 1))) < 0.01


@pytest.mark.slow
def test_all_steps_of_the_released_model_agree(model, samples):
    """Each step amplifies the rounding of those before: the graphs above have one or two, this has nine."""
    assert difference(fit(model, samples), trial_faces(5, 128, 64), np.tile([64, 64, 192, 192], (5, 1))) < 0.01


@pytest.mark.slow
def test_boxes_of_any_shape_and_place_agree(regressor):
    """Small, wide, far off the face, half outside the patch: views that leave the patch, and what is beyond it."""
    boxes = np.array(
        [(64, 64, 192, 192), (90, 64, 160, 192), (70, 80, 110, 120), (100, 100, 228, 228), (-40, 10, 60, 120)], float
    )
    assert difference(regressor, trial_faces(5, 128, 64), boxes) < 0.01


@pytest.mark.slow
def test_steps_that_lose_the_face_are_not_taken(regressor, monkeypatch):
    patches, boxes = trial_faces(3, 128, 64), np.tile([64, 64, 192, 192], (3, 1))
    free = regressor.predict(patches.transpose(0, 2, 3, 1), boxes=boxes).xy
    monkeypatch.setattr(aligner, "ZOOM", (0.98, 1.02))
    assert difference(regressor, patches, boxes) < 0.01
    bound = regressor.predict(patches.transpose(0, 2, 3, 1), boxes=boxes).xy
    assert (np.abs(bound - free).max((1, 2)) > 0.1).any()  # some steps were refused


def test_a_face_that_moves_out_of_the_patch_is_left_alone(regressor):
    """The centre of the square may not leave the patch: boxes at its corners, where there is no face."""
    patches = trial_faces(4, 128, 64)
    boxes = np.array([(-15, -15, 65, 65), (186, -15, 271, 65), (-15, 186, 65, 271), (188, 188, 270, 270)], float)
    assert difference(regressor, patches, boxes) < 0.01


@pytest.mark.slow
def test_a_model_as_onnx(capsys, two_block_folder, two_block_model, tmp_path):
    path, model = tmp_path / "maps.onnx", two_block_model
    code = main(["export", f"local-dir:{two_block_folder}", str(path), "--expansion", "2", "--faces", "4", "--json"])
    report = json.loads(capsys.readouterr().out)
    assert code == 0
    assert report["inputs"] == {"views": ["batch", 3, 104, 104]}
    assert report["difference"] < 1e-3
    session = onnxruntime.InferenceSession(path)
    about = json.loads(session.get_modelmeta().custom_metadata_map["scemae"])
    assert about["grid"] == {"origin": 1.5, "step": 4.0}
    views = torch.rand(3, 3, 104, 104)
    backbone_map, projected_map = session.run(None, {"views": views.numpy()})
    with torch.inference_mode():
        truth = model(model.normalise(views), 2)
        assert np.abs(backbone_map - truth.numpy()).max() < 1e-3
        assert np.abs(projected_map - model.project(truth).numpy()).max() < 1e-3


@pytest.mark.slow
def test_a_model_without_projector_gives_one_map(two_block_model, tmp_path):
    unprojected = copy.deepcopy(two_block_model)
    unprojected.projector = None
    report = scemae.export_graph(unprojected, tmp_path / "maps.pt2", expansion=1, faces=2)
    assert report.outputs == ("backbone_map",)


@pytest.mark.slow
def test_a_graph_that_differs_is_not_left_on_disk(two_block_model, tmp_path, monkeypatch):
    path = tmp_path / "maps.pt2"
    path.write_bytes(b"what was there")
    forward = graphs.MapsGraph.forward
    monkeypatch.setattr(graphs.MapsGraph, "forward", lambda self, views: [m * 1.01 for m in forward(self, views)])
    with pytest.raises(ExportError, match=r"maps.pt2 was not written.*--tolerance"):
        scemae.export_graph(two_block_model, path, expansion=1, faces=2, overwrite=True)
    assert path.read_bytes() == b"what was there"
    assert [file.name for file in tmp_path.iterdir()] == ["maps.pt2"]
    scemae.export_graph(two_block_model, path, expansion=1, faces=2, overwrite=True, tolerance=0.1)
    assert path.stat().st_size > 1e6


def test_the_command_takes_the_file_of_a_detector(capsys, regressor, tmp_path):
    saved, model = tmp_path / "r.safetensors", tmp_path / "model"
    regressor.save(saved)
    save_model(model, regressor.model.state_dict(), regressor.model.config, "")
    arguments = ["export", saved, tmp_path / "r.onnx", "--model", f"local-dir:{model}", "--expansion", "2"]
    assert main(list(map(str, arguments))) == 2
    assert "keeps the expansion" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("source", "file", "options", "error", "message"),
    [
        pytest.param("model", "maps.tflite", {}, OptionError, r"ends in none of \.onnx, \.pt2", id="suffix"),
        pytest.param("regressor", "r.onnx", {"expansion": 2}, OptionError, "keeps the expansion", id="regressor"),
        pytest.param("model", "maps.onnx", {"expansion": 3}, OptionError, "expansion is 3", id="expansion"),
        pytest.param("model", "maps.onnx", {"faces": 0}, OptionError, "faces is 0", id="faces"),
        pytest.param("bfloat16", "maps.onnx", {}, OptionError, "float32", id="dtype"),
        pytest.param("not fitted", "r.onnx", {}, NotFittedError, "not fitted", id="not fitted"),
        pytest.param("model", "nowhere/maps.onnx", {}, OutputError, "no folder", id="no folder"),
    ],
)
def test_bad_arguments_are_refused_before_the_work(model, regressor, tmp_path, source, file, options, error, message):
    sources = {
        "model": lambda: model,
        "regressor": lambda: regressor,
        "bfloat16": lambda: load_model(dtype="bfloat16"),
        "not fitted": lambda: scemae.LandmarkRegressor(model),
    }
    with pytest.raises(error, match=message):
        scemae.export_graph(sources[source](), tmp_path / file, **options)
    assert not list(tmp_path.iterdir())


def test_without_the_packages_for_onnx_the_extra_is_named(model, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r'onnx, onnxscript, onnxruntime: pip install "scemae\[onnx\]"'):
        scemae.export_graph(model, tmp_path / "maps.onnx")
    assert not list(tmp_path.iterdir())


def test_trial_faces_are_many():
    faces = trial_faces(4, 32, 16)
    assert faces.shape == (4, 3, 64, 64)
    assert len({face.tobytes() for face in faces}) == 4
    assert np.array_equal(faces, trial_faces(4, 32, 16))
    assert Image.fromarray(faces[0].transpose(1, 2, 0)).convert("L").getextrema()[1] > 100
