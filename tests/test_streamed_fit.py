"""The heat-map head on faces whose maps are made batch by batch: the fit in memory, without the memory."""

import gc

import numpy as np
import pytest
import torch
from made_up_faces import frames_of_people

import scemae
from scemae.detector import streamed_fit
from scemae.detector.map_reader import MapReader
from scemae.evaluation.extractors import Encoder, ExternalExtractor
from scemae.evaluation.heatmap_options import HeatmapOptions
from scemae.extraction import encode_faces, open_batch, stream_faces
from scemae.features import FaceFeatures

OPTIONS = {"align": False, "expansion": 1}


def faces_without_maps(model, pictures):
    return FaceFeatures.concatenate(list(stream_faces(model, open_batch(pictures, None, "raise"), **OPTIONS)))


def fit(model, faces, landmarks, name="heatmap", mirror="auto", **options):
    head = HeatmapOptions(maps=2, **{"steps": 4, **options}).new_head(name)
    return scemae.fit_regressor(model, faces, landmarks, head=head, mirror=mirror)


@pytest.fixture(scope="module")
def people():
    pictures, landmarks, _ = frames_of_people(people=5, frames=1)
    return pictures, landmarks


@pytest.mark.parametrize("mirror", ["auto", "off"])
@pytest.mark.parametrize("held_bytes", [0, 2**31])
def test_it_finds_what_the_fit_in_memory_finds(two_block_model, people, monkeypatch, held_bytes, mirror, tmp_path):
    pictures, landmarks = people
    held = scemae.extract_features(two_block_model, pictures, **OPTIONS)
    monkeypatch.setattr(streamed_fit, "HELD_BYTES", held_bytes)
    in_memory = fit(two_block_model, held, landmarks, mirror=mirror)
    streamed = fit(two_block_model, faces_without_maps(two_block_model, pictures), landmarks, mirror=mirror)
    assert streamed.mirrored_ == in_memory.mirrored_ == (mirror == "auto")
    torch.testing.assert_close(streamed.reader_.std, in_memory.reader_.std, rtol=1e-5, atol=0)
    np.testing.assert_allclose(streamed.predict(held).xy, in_memory.predict(held).xy, atol=0.01)
    assert np.isnan(streamed.held_out_errors_).all()
    assert streamed.held_out_errors_.shape == landmarks.shape[:2]
    streamed.save(tmp_path / "detector.safetensors")
    loaded = scemae.LandmarkRegressor.load(tmp_path / "detector.safetensors", two_block_model)
    np.testing.assert_array_equal(loaded.predict(held).xy, streamed.predict(held).xy)


def test_maps_do_not_pile_up(two_block_model, people, monkeypatch):
    """While maps are made, no more of them are there for eighty faces than for forty."""
    monkeypatch.setattr(streamed_fit, "HELD_BYTES", 0)
    monkeypatch.setattr(streamed_fit, "SAMPLE", 40)
    most, batches = 0, []

    def encode(views):
        nonlocal most
        batches.append(len(views))
        tensors = [thing for thing in gc.get_objects() if type(thing) is torch.Tensor]
        most = max(most, sum(len(tensor) for tensor in tensors if tensor.shape[1:] == (5, 13, 13)))
        return torch.nn.functional.interpolate(views, 13).repeat(1, 2, 1, 1)[:, :5]

    model = ExternalExtractor(Encoder(name="counting", encode=encode), two_block_model)
    found = []
    for copies in (8, 16):
        pictures = [np.roll(picture, 3 * i, axis=1) for i in range(copies) for picture in people[0]]
        most, batches[:] = 0, []
        fit(model, faces_without_maps(model, pictures), np.tile(people[1], (copies, 1, 1)), mirror="off", steps=3)
        found.append(most)
        assert max(batches) == 32
    assert found[0] == found[1] > 0


def test_mean_and_deviation_of_parts_are_those_of_all(two_block_model, people):
    faces = faces_without_maps(two_block_model, people[0])
    parts = [encode_faces(two_block_model, faces[rows]) for rows in ([0, 1], [2, 3, 4])]
    of_parts, of_all = (
        MapReader.fit_parts(parts, "backbone"),
        MapReader.fit(FaceFeatures.concatenate(parts), "backbone"),
    )
    torch.testing.assert_close(of_parts.mean, of_all.mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(of_parts.std, of_all.std, rtol=1e-5, atol=1e-6)
    assert of_parts.std.dtype == torch.float32


def test_of_many_faces_a_sample_is_standardised_by(two_block_model, people, monkeypatch):
    faces = faces_without_maps(two_block_model, people[0])
    monkeypatch.setattr(streamed_fit, "SAMPLE", 3)
    regressor = fit(two_block_model, faces, people[1])
    spread = MapReader.fit(encode_faces(two_block_model, faces[[0, 2, 4]]), regressor.use_)
    torch.testing.assert_close(regressor.reader_.mean, spread.mean, rtol=1e-4, atol=1e-5)
