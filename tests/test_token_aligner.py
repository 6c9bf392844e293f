"""The aligner of folders of 0.1.0, on patch tokens: it still runs, and cannot tell whether there is a face."""

import json
import math
from dataclasses import asdict

import numpy as np
import pytest
import torch
from small_models import TOKEN_ALIGNER, load_small_model, small_config

import scemae
from scemae.geometry import apply_affine, apply_affines, half_sides_to_pixels, invert_affines, pixels_to_half_sides
from scemae.model.aligner import LOST, Located
from scemae.model.config import ModelConfig, TokenAlignerConfig
from scemae.model.token_aligner import TokenAligner

CONFIG = TokenAlignerConfig(
    points=((-0.4, -0.4), (0.4, -0.4), (0.0, 0.1), (0.0, 0.8)),
    scale=0.8,
    steps=(0, 1, 1),
    similarity_steps=1,
    projection_dim=4,
    residual=0.05,
)
CANONICAL = half_sides_to_pixels(np.asarray(CONFIG.points) / CONFIG.scale, 96)


@pytest.fixture
def aligner():
    aligner = TokenAligner(CONFIG, tokens=144, width=8, input_size=96)
    for name, buffer in aligner.named_buffers():
        buffer.copy_(torch.randn(buffer.shape, generator=torch.Generator().manual_seed(len(name))))
    return aligner


def test_a_stage_is_the_regression_that_it_says(aligner):
    tokens = torch.randn(2, 144, 8)
    for step, stage in enumerate(aligner.stages[number] for number in CONFIG.steps):
        expected = [
            ((t - stage.token_mean) @ stage.token_projection).reshape(-1).sub(stage.feature_mean) @ stage.weight
            + stage.bias
            for t in tokens
        ]
        assert torch.allclose(aligner(tokens, step), torch.stack(expected).reshape(2, 4, 2), atol=1e-4)


def test_every_step_is_taken_and_no_verdict_given(aligner):
    """Views that report exactly where the canonical points are: from any start the steps lead there."""
    affine = np.array([[0.9, -0.2, 12.0], [0.25, 1.1, -7.0]])
    target, looks = torch.from_numpy(apply_affine(affine, CANONICAL)), []

    def locate(rows, affines, step):
        looks.append((step, rows.tolist()))
        seen = apply_affines(invert_affines(affines), target.expand(len(rows), -1, -1))
        return Located(torch.from_numpy(pixels_to_half_sides(seen, 96)), torch.full((len(rows),), torch.nan))

    starts = torch.from_numpy(np.stack([np.eye(2, 3), affine]))
    found = aligner.align(starts, locate)
    assert looks == [(0, [0, 1]), (1, [0, 1]), (2, [0, 1])]  # also by that which was there from the start
    assert np.allclose(found.affines, [affine] * 2)
    assert found.log_errors.isnan().all()
    refused = aligner.align(starts, lambda *view: (looks.pop(), locate(*view))[1], lambda rows, _affines: rows == 0)
    assert torch.equal(refused.affines[1], starts[1])
    assert torch.isnan(aligner.face_scores(torch.tensor([math.nan, LOST, -3.0]))).all()


@pytest.fixture
def model(tiny_backbone, tmp_path):
    return load_small_model(tmp_path / "model", aligner=TOKEN_ALIGNER)


def test_whether_there_is_a_face_is_not_known(model, samples, monkeypatch):
    views = []
    locate = model.locate_face
    monkeypatch.setattr(model, "locate_face", lambda seen, step: (views.append(len(seen)), locate(seen, step))[1])
    noise = np.random.default_rng(0).integers(0, 255, (200, 200, 3), dtype=np.uint8)
    features = scemae.extract_features(model, [samples[1].path, noise], boxes=[samples[1].box, None], expansion=1)
    assert views == [2, 2]  # nothing is tried again
    assert [face.found for face in features.faces] == [None, None]
    assert all(face.alignment is not None for face in features.faces)
    assert np.isnan(features.scores).all()
    assert features.found.tolist() == [True, True]
    features.draw()
    points = scemae.match_landmarks(features[0], samples[1].landmarks, features)
    assert points.ok.tolist() == [True, True]
    assert [(face["found"], face["face_score"]) for face in points.to_dict()] == [(None, None)] * 2


@pytest.mark.usefixtures("tiny_backbone")
def test_a_configuration_of_0_1_0_is_one_of_a_token_aligner():
    config = small_config(aligner=CONFIG)
    fields = json.loads(config.to_json())
    assert fields["aligner"].keys() == asdict(CONFIG).keys()
    assert ModelConfig.from_json(json.dumps(fields)).aligner == CONFIG
    assert "finder" not in fields  # which 0.1.0 did not write
    fields["interpolation"] = "bilinear"  # which it did
    read = ModelConfig.from_json(json.dumps(fields))
    assert read == config
    assert CONFIG.stages == 2
