"""The aligner's training on pictures whose colours are places: what it must find is known exactly."""

import copy
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from training_runs import no_fsync, pack_squares, save_random_model  # noqa: F401

import scemae
from scemae.errors import DataError, OptionError, RunError
from scemae.geometry import sample_views
from scemae.training.fit_aligner import align_pack, align_views, fit_aligner, train_align
from scemae.training.motions import random_motions
from scemae.training.perturbation_config import AlignConfig
from scemae.training.run_folder import lock_folder
from scemae.weights.card import linked_files

FEW = AlignConfig(
    brightness=0.0,
    log_contrast=0.0,
    amplitudes=(0.6, 0.2),
    steps=(0, 1, 1),
    similarity_steps=0,
    projection_dim=2,
    projection_views=200,
    views=1500,
    ridges=(1e-4, 1e-2),
    held_out=20,
    batch_size=50,
)


def symmetric_ramp(size=136):
    """Red is the distance from the middle column, green the row: as symmetric as a face."""
    rows, columns = np.mgrid[:size, :size]
    return np.stack([3 * np.abs(columns - (size - 1) / 2), 1.8 * rows, 0 * rows], axis=-1).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def ramps(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packs") / "ramps"
    return pack_squares(folder, [symmetric_ramp()] * 80)


@pytest.fixture(scope="module")
def reader():
    """In the place of a model: a patch's token is its mean colour."""

    def patch_tokens(views):
        return torch.nn.functional.avg_pool2d(views, 8).flatten(2).transpose(1, 2)

    return SimpleNamespace(
        backbone=SimpleNamespace(grid=12),
        config=SimpleNamespace(backbone=SimpleNamespace(width=3), name="reader", input_size=96),
        device=torch.device("cpu"),
        normalise=lambda views: views,
        patch_tokens=patch_tokens,
        aligner=None,
    )


@pytest.fixture(scope="module")
def fitted(reader, ramps):
    return fit_aligner(reader, ramps, FEW)


def encode(views):
    return torch.nn.functional.avg_pool2d(views, 8).flatten(2).transpose(1, 2)


def test_each_stage_reads_the_motion(fitted):
    _, errors = fitted
    assert [error.amplitude for error in errors] == [0.6, 0.2]
    for error in errors:
        assert error.predicted < 0.15 * error.unmoved
    assert errors[0].unmoved == pytest.approx(3 * errors[1].unmoved, rel=0.35)


def test_steps_lead_back_to_the_unmoved_view(fitted, ramps):
    aligner, _ = fitted
    motions = random_motions(np.random.default_rng(7), 30, FEW, amplitude=0.5, input_size=96)
    starts = ramps.central_affine @ motions
    ends, confidences = align_views(aligner, encode, ramps.read_squares(np.arange(30)), starts, range(3))
    corners = np.array([[-0.5, -0.5, 1], [95.5, -0.5, 1], [95.5, 95.5, 1], [-0.5, 95.5, 1]]).T
    before, after = (
        np.linalg.norm(((m - ramps.central_affine) @ corners)[:, :2], axis=1).mean() for m in (starts, ends)
    )
    assert before > 5
    assert after < 0.5
    assert (confidences > 0.9).all()


def test_tokens_go_to_where_the_aligner_is(fitted, ramps, monkeypatch):
    aligner = copy.deepcopy(fitted[0]).to("meta")  # in the place of a GPU; the tokens come from the CPU
    seen = []

    def affines(points, _step):
        seen.append(points.device.type)
        return [(np.eye(3)[:2], 0.0)]

    monkeypatch.setattr(aligner, "affines", affines)
    align_views(aligner, encode, ramps.read_squares(np.arange(1)), ramps.central_affine[None], [0])
    assert seen == ["meta"]


def test_a_pack_is_aligned(fitted, reader, ramps, tmp_path):
    aligner, _ = fitted
    model = SimpleNamespace(**{**vars(reader), "aligner": aligner})
    motions = random_motions(np.random.default_rng(3), 40, FEW, amplitude=0.15, input_size=96)
    whole = ramps.central_affine @ motions @ np.linalg.inv(ramps.central_affine)
    squares = sample_views(ramps.read_squares(np.arange(40)), torch.from_numpy(whole[:, :2]), 136)
    squares = (squares * 255).round().byte().permute(0, 2, 3, 1).numpy()
    askew = pack_squares(tmp_path / "askew", squares)
    upright = align_pack(model, askew, tmp_path / "upright", steps=2)
    assert upright.names == askew.names
    assert upright.source == "askew, aligned"
    middle = slice(20, 116)
    wanted = symmetric_ramp()[middle, middle].astype(float)
    before, after = (np.abs(pack.squares[:, middle, middle] - wanted).mean() for pack in (askew, upright))
    assert after < 0.35 * before
    assert after < 2.5


def test_faces_that_cannot_be_aligned_are_left_out_and_named(fitted, reader, ramps, tmp_path):
    aligner, _ = fitted
    model = SimpleNamespace(**{**vars(reader), "aligner": aligner})
    squares = [symmetric_ramp()] * 19 + [np.full((136, 136, 3), 90, np.uint8)]
    mixed = pack_squares(tmp_path / "mixed", squares)
    upright = align_pack(model, mixed, tmp_path / "upright")
    assert upright.names == tuple(map(str, range(19)))
    assert "the alignment failed" in upright.skipped["19"]


def test_bad_input_is_refused(reader, ramps, tmp_path):
    with pytest.raises(OptionError, match="reader' has no aligner; make one: scemae train align"):
        align_pack(reader, ramps, tmp_path / "out")
    with pytest.raises(DataError, match="has 80 faces; 80 cannot be held out"):
        fit_aligner(reader, ramps, AlignConfig(held_out=80))
    with pytest.raises(OptionError, match="must use each of the 3 stages"):
        AlignConfig(steps=(0, 1))


def test_train_align_replaces_the_aligner_of_a_model(ramps, tiny_backbone, tmp_path):
    config = AlignConfig(projection_dim=4, projection_views=40, views=60, held_out=10, batch_size=20)
    first = save_random_model(tmp_path / "first", tiny_backbone)
    train_align(first, ramps, replace(config, seed=1), tmp_path / "second")
    second = f"local-dir:{tmp_path / 'second' / 'model'}"
    errors = train_align(second, ramps, config, tmp_path / "run")
    assert len(errors) == 3
    before, model = scemae.load_model(second), scemae.load_model(f"local-dir:{tmp_path / 'run' / 'model'}")
    assert model.config.aligner == config.aligner
    weights = model.backbone.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in before.backbone.state_dict().items())
    assert not torch.equal(model.aligner.stages[0].weight, before.aligner.stages[0].weight)
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    assert "## How it was made: alignment" in card
    section = card.split("## How it was made: alignment")[-1]
    assert json.loads(section.split("```json")[1].split("```")[0])["views"] == 60
    [picture] = linked_files(section, tmp_path / "run" / "model")
    assert picture.endswith("-alignment-before-and-after.png")


def test_a_run_folder_has_one_writer(ramps, tmp_path):
    with lock_folder(tmp_path), pytest.raises(RunError, match="Another process"):
        train_align("scemae-tiny", ramps, FEW, tmp_path)


def test_the_view_is_the_central_part(ramps):
    views = ramps.central_views(torch.from_numpy(ramps.squares[:1]))
    wanted = torch.from_numpy(symmetric_ramp()[20:116, 20:116]).permute(2, 0, 1) / 255
    torch.testing.assert_close(views[0], wanted, atol=1e-5, rtol=0)
    assert views.shape[-1] == 96
