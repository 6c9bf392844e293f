"""A detector on a model that knows the dense shape: fitted, saved, loaded and exported."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import scemae
from scemae.detector.shaped_cascade import ShapedCascadeHead
from scemae.errors import OptionError
from scemae.export.graphs import RegressorGraph
from scemae.model.config import DenseShapeConfig
from scemae.model.dense_shape import DenseShape
from scemae.weights.model_folder import save_model
from scemae.weights.zoo import load_model


@pytest.fixture(scope="module")
def shaped_model(two_block_model, tmp_path_factory):
    """The short model with a dense shape of random weights, which move places by a pixel or two."""
    torch.manual_seed(0)
    config = DenseShapeConfig(components=4, modes=3, global_stages=1, local_stages=1)
    shape = DenseShape(config, two_block_model.config.backbone.width, 96, 8)
    for name, deviation in (("components", 0.1), ("modes", 0.03), ("global_weights", 0.5), ("local_weights", 0.02)):
        getattr(shape, name).normal_(std=deviation)
    tensors = two_block_model.state_dict() | {f"dense_shape.{name}": t for name, t in shape.state_dict().items()}
    folder = tmp_path_factory.mktemp("shaped")
    save_model(folder, tensors, replace(two_block_model.config, dense_shape=config), "")
    return load_model(f"local-dir:{folder}")


@pytest.fixture(scope="module")
def shaped_faces(shaped_model, samples):
    """Three faces: the samples, and one of them seen from a little aside."""
    images, boxes = [s.path for s in samples], [np.array(s.box, dtype=float) for s in samples]
    return scemae.extract_features(shaped_model, [*images, images[0]], boxes=[*boxes, boxes[0] + 9], expansion=1)


@pytest.fixture(scope="module")
def regressor(shaped_model, shaped_faces, samples):
    landmarks = [samples[i].landmarks for i in (0, 1, 0)]
    return scemae.fit_regressor(shaped_model, shaped_faces, landmarks)


def test_the_shape_moves_what_it_reads(shaped_faces):
    still = shaped_faces.to_image(shaped_faces.read_shapes().frame.places.expand(3, -1, -1).numpy())
    moved = np.linalg.norm(shaped_faces.dense_shape.reshape(3, -1, 2) - still, axis=-1)
    assert 0 < moved.mean() / shaped_faces.faces[0].crop.scale < 10


def test_the_default_cascade_uses_the_shape(regressor, shaped_model, shaped_faces, samples):
    assert isinstance(regressor.head_, ShapedCascadeHead)
    assert {name.partition(".")[0] for name in regressor.head_.state()} == {"mean", "own"}
    alone = scemae.fit_regressor(shaped_model, shaped_faces[0], [samples[0].landmarks])
    assert {name.partition(".")[0] for name in alone.head_.state()} == {"mean"}


def test_a_shaped_detector_comes_back_from_its_file(regressor, shaped_model, shaped_faces, tmp_path):
    regressor.save(tmp_path / "detector.safetensors")
    again = scemae.LandmarkRegressor.load(tmp_path / "detector.safetensors", model=shaped_model)
    first, second = (each.predict(shaped_faces) for each in (regressor, again))
    assert (first.xy == second.xy).all()
    assert (first.scores == second.scores).all()


def test_its_head_needs_a_model_that_knows_shapes(two_block_model, samples):
    with pytest.raises(OptionError, match="does not know the dense shape"):
        scemae.fit_regressor(
            two_block_model, samples[0].path, [samples[0].landmarks], boxes=[samples[0].box], head="shaped-cascade"
        )


def test_the_graph_does_what_predict_does(regressor):
    graph = RegressorGraph(regressor).eval()
    patches = torch.randint(0, 255, (2, 3, 200, 200), dtype=torch.uint8)
    boxes = torch.tensor([[50.0, 50.0, 140.0, 140.0]] * 2)
    with torch.inference_mode():
        xy, *_ = graph(patches, boxes)
    features = scemae.extract_features(
        regressor.model, patches.permute(0, 2, 3, 1).numpy(), boxes=boxes.numpy(), search="none", expansion=1
    )
    assert np.abs(xy.numpy() - regressor.predict(features).xy).max() < 0.01


@pytest.mark.slow
def test_a_shaped_detector_is_exported(shaped_model, shaped_faces, samples, tmp_path):
    head = ShapedCascadeHead(sigmas=(4.0,), mean_sigmas=(2.0,))  # a graph is written as fast as it is small
    landmarks = [samples[i].landmarks for i in (0, 1, 0)]
    regressor = scemae.fit_regressor(shaped_model, shaped_faces, landmarks, head=head, mirror="off")
    assert scemae.export_graph(regressor, tmp_path / "detector.onnx", faces=3).difference < 0.01
