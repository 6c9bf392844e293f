"""The aligner's training on pictures whose colours are places: what it must find is known exactly."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from small_models import ALIGNER
from training_runs import fixed_options, no_fsync, pack_squares, save_random_model  # noqa: F401

import scemae
from scemae.errors import DataError, OptionError, RunError
from scemae.geometry import apply_affines, sample_views
from scemae.model.aligner import LOST, FaceAligner, Located
from scemae.model.config import BACKBONES, BackboneConfig
from scemae.training.align_pack import align_pack, align_squares
from scemae.training.engine import train
from scemae.training.fit_aligner import (
    LOST_ERROR,
    AlignerLoss,
    AlignRecipe,
    fit_logistic,
    mean_distance,
)
from scemae.training.motions import random_motions
from scemae.training.perturbation_config import AlignConfig, FindConfig
from scemae.training.perturbed_faces import read_pictures
from scemae.training.perturbed_views import locate_canonical
from scemae.training.run_folder import lock_folder
from scemae.weights.card import linked_files

SIZE, INPUT = 48, 32  # of the squares and of the model, px
EASY = AlignConfig(
    batch_size=64,
    steps=500,
    learning_rate=4e-3,
    view_size=32,
    widths=(12, 24, 32),
    squeezed=12,
    hidden=64,
    wide=0.5,
    scales=(0.6, 1.8),
    farthest=0.5,
    negatives=0.25,
    grey=0.0,
    hidden_part=0.0,
    background_squares=64,
    alignment_steps=4,
    held_out=40,
)
QUICK = replace(EASY, batch_size=4, steps=2, widths=(4, 8), squeezed=4, hidden=8, held_out=5, background_squares=16)


def symmetric_ramp(size=SIZE):
    """Red is the distance from the middle column, green the row: as symmetric as a face. Four blue discs are on it."""
    rows, columns = np.mgrid[:size, :size] * (255 / size)
    red = 2 * np.abs(columns - columns.mean())
    pixels = np.stack([red, rows, np.zeros_like(red)], axis=-1)
    for x, y in ((0.34, 0.36), (0.66, 0.36), (0.5, 0.52), (0.5, 0.72)):
        pixels[np.hypot(columns / 255 - x, rows / 255 - y) < 0.07] = (0, 0, 255)
    return pixels.clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def architecture():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKBONES, "test-tiny", BackboneConfig(width=32, heads=2, depth=2, params=0))
        yield "test-tiny"


@pytest.fixture(scope="module")
def ramps(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packs") / "ramps"
    return pack_squares(folder, [symmetric_ramp()] * 80, input_size=INPUT)


@pytest.fixture(scope="module")
def source(architecture, tmp_path_factory):
    return save_random_model(tmp_path_factory.mktemp("source"), architecture, input_size=INPUT, patch_size=16)


@pytest.fixture(scope="module")
def easy_run(source, ramps, tmp_path_factory):
    """The recipe and, as `--model` names it, the model of a short training; test_fit_finder.py finds it done."""
    recipe, run = AlignRecipe(EASY, ramps, source), tmp_path_factory.getbasetemp() / "easy"
    train(recipe, run, fixed_options(resume=run.exists()))
    return recipe, f"local-dir:{run / 'model'}"


@pytest.fixture(scope="module")
def trained(easy_run):
    recipe, name = easy_run
    return recipe, scemae.load_model(name)


# ---- what it learns


@pytest.mark.slow
def test_it_reads_the_motion(trained, ramps):
    recipe, model = trained
    config = replace(EASY, wide=0.0, negatives=0.0)
    _, fields = recipe.held_out_views(config)
    points = locate_canonical(fields["affines"], model.aligner.canonical)
    moved = mean_distance(points, model.aligner.canonical)
    assert recipe.measure()["near_error"] < 0.35 * float(moved.mean()) * 48


@pytest.mark.slow
def test_steps_lead_back_to_the_unmoved_view(trained, ramps):
    _, model = trained
    motions = random_motions(np.random.default_rng(7), 30, EASY, amplitude=0.7, input_size=INPUT)
    starts = torch.from_numpy((ramps.central_affine @ motions)[:, :2])
    ends = align_squares(model.aligner, model.locate_face, ramps.read_squares(np.arange(30)), starts)
    corners = torch.tensor([[-0.5, -0.5], [INPUT - 0.5, -0.5], [INPUT - 0.5] * 2, [-0.5, INPUT - 0.5]]).double()
    central = torch.from_numpy(ramps.central_affine[:2]).expand(30, 2, 3)
    wanted = apply_affines(central, corners.expand(30, -1, -1))
    before, after = (
        float((apply_affines(affines, corners.expand(30, -1, -1)) - wanted).norm(dim=-1).mean())
        for affines in (starts, ends.affines)
    )
    assert before > 3
    assert after < 0.3 * before
    assert (model.aligner.face_scores(ends.log_errors) > 0.5).double().mean() > 0.9


@pytest.mark.slow
def test_it_knows_a_face_from_none(trained):
    recipe, model = trained
    scores = []
    for faces in (True, False):
        views, _ = recipe.held_out_views(replace(EASY, wide=0.0, negatives=0.0), faces=faces)
        scores.append(model.aligner.face_scores(model.aligner(views).log_errors))
    assert (scores[0] > 0.5).double().mean() > 0.9
    assert (scores[1] < 0.5).double().mean() > 0.9


@pytest.mark.slow
def test_a_pack_is_aligned(trained, ramps, tmp_path):
    _, model = trained
    motions = random_motions(np.random.default_rng(3), 30, EASY, amplitude=0.4, input_size=INPUT)
    whole = ramps.central_affine @ motions @ np.linalg.inv(ramps.central_affine)
    squares = sample_views(ramps.read_squares(np.arange(30)), torch.from_numpy(whole[:, :2]), SIZE)
    squares = (squares * 255).round().byte().permute(0, 2, 3, 1).numpy()
    plain = np.full((SIZE, SIZE, 3), 90, np.uint8)
    askew = pack_squares(tmp_path / "askew", [*squares, plain], input_size=INPUT)
    upright = align_pack(model, askew, tmp_path / "upright", steps=3)
    assert upright.names == askew.names[:-1]
    assert upright.source == "askew, aligned"
    assert "no face was found (score 0." in upright.skipped["30"]
    middle = slice(12, SIZE - 12)
    wanted = symmetric_ramp()[middle, middle].astype(float)
    before, after = (np.abs(pack.squares[:30, middle, middle] - wanted).mean() for pack in (askew, upright))
    assert after < 0.5 * before


@pytest.mark.slow
def test_the_model_of_a_run(trained, source):
    _, model = trained
    before = scemae.load_model(source)
    weights = before.backbone.state_dict()
    assert all(torch.equal(tensor.half(), weights[name].half()) for name, tensor in model.backbone.state_dict().items())
    config = model.config.aligner
    assert (config.view_size, config.widths, config.steps) == (32, (12, 24, 32), 4)
    assert -8 < config.threshold < 0
    assert config.slope > 0


# ---- parts of it


def test_the_loss_by_hand():
    """The negative log-likelihood of Laplace-distributed distances; a view without a face counts as far off."""
    aligner = FaceAligner(ALIGNER, 64)
    points = torch.tensor(ALIGNER.points)[None].repeat(2, 1, 1)
    log_errors = torch.tensor([-1.0, 0.5])
    aligner.forward = lambda views: Located(points + torch.tensor([0.3, 0.4]), log_errors)
    loss = AlignerLoss(aligner)(torch.zeros(2, 3, 32, 32), points, torch.tensor([True, False]))["loss"]
    wanted = 0.5 * (0.5 * math.exp(1) - 1 + LOST_ERROR * math.exp(-0.5) + 0.5)
    assert float(loss) == pytest.approx(wanted, rel=1e-5)


def test_each_process_sees_its_part_of_a_batch(source, ramps):
    recipe = AlignRecipe(QUICK, ramps, source)
    whole, first, second = (recipe.load(3, slice(*part)) for part in ((0, 4), (0, 1), (1, 4)))
    for all_of, *parts in zip(whole, first, second, strict=True):
        assert torch.equal(all_of, torch.cat(parts))
    assert not all(torch.equal(a, b) for a, b in zip(whole, recipe.load(4, slice(0, 4)), strict=True))
    views, points, is_face = recipe.prepare(whole)
    assert views.shape == (4, 3, 32, 32)
    assert points.shape == (4, 7, 2)
    assert is_face.dtype == torch.bool


def test_held_out_faces_are_not_learned_from(source, ramps):
    recipe = AlignRecipe(QUICK, ramps, source)
    assert sorted([*recipe.faces, *recipe.held_out]) == list(range(80))
    assert len(recipe.held_out) == 5
    views, fields = recipe.held_out_views(replace(QUICK, negatives=0.0), faces=False)
    assert views.shape == (5, 3, 32, 32)
    assert (fields["border"] == -9).all()


@pytest.mark.parametrize(("threshold", "slope"), [(-2.0, 1.5), (-1.0, 6.0)])
def test_the_verdicts_threshold_and_slope_are_found(threshold, slope):
    rng = np.random.default_rng(0)
    log_errors = torch.from_numpy(rng.uniform(-4, 1, 20_000))
    found = torch.from_numpy(rng.random(20_000)) < torch.sigmoid(slope * (threshold - log_errors))
    assert fit_logistic(log_errors, found) == pytest.approx((threshold, slope), rel=0.06)


def test_a_verdict_without_errors_stays_finite():
    log_errors = torch.linspace(-4, 0, 41)
    threshold, slope = fit_logistic(log_errors, log_errors < -1.95)
    assert threshold == pytest.approx(-1.95, abs=0.1)
    assert 3 < slope < 100


@pytest.mark.parametrize("found", [False, True])
def test_a_verdict_of_faces_that_are_all_alike(found):
    """After a few steps of training no face is found: that is no reason to fail where the model is written."""
    log_errors = torch.from_numpy(np.random.default_rng(0).normal(-1, 0.3, 60))
    threshold, slope = fit_logistic(log_errors, torch.full((60,), found))
    assert math.isfinite(threshold)
    assert slope > 0
    scores = torch.sigmoid(slope * (threshold - log_errors))
    assert ((scores > 0.5) == found).all()


def test_pictures_without_faces(tmp_path):
    plain = read_pictures(None, 0)
    assert len(plain) == 64
    assert {picture.shape for picture in plain} == {(96, 96, 3)}
    assert np.ptp(plain[0]) > 50
    for number in range(8):
        with pytest.raises(DataError, match=f"holds {number} pictures; wanted at least 8 without faces"):
            read_pictures(tmp_path, 0)
        Image.new("RGB", (20 + number, 9), (number, 0, 0)).save(tmp_path / f"{number}.png")
    (tmp_path / "about.txt").write_text("none")
    assert [picture.shape for picture in read_pictures(tmp_path, 0)] == [(9, 20 + n, 3) for n in range(8)]


def test_the_view_is_the_central_part(ramps):
    views = ramps.central_views(torch.from_numpy(ramps.squares[:1]))
    wanted = torch.from_numpy(symmetric_ramp()[8:40, 8:40]).permute(2, 0, 1) / 255
    torch.testing.assert_close(views[0], wanted, atol=1e-5, rtol=0)
    assert views.shape[-1] == INPUT


class SquareAligner:
    """In the place of a network: sees a face only in views with red, and each 2 px to the right of where it is."""

    def __init__(self):
        self.aligner = FaceAligner(replace(ALIGNER, view_size=16, similarity_steps=0), INPUT)
        self.steps = []

    def __call__(self, views, step):
        self.steps.append(step)
        points = self.aligner.canonical.expand(len(views), -1, -1).clone()
        points[..., 0] += 2 * 2 / INPUT
        red = views[:, 0].amax((1, 2)) > 0.5
        return Located(points, torch.where(red, -4.0, 0.0))


def test_squares_are_aligned_by_the_steps_that_are_asked_for(ramps):
    eyes, squares = SquareAligner(), ramps.read_squares(np.arange(2))
    squares[1] = 0
    central = torch.from_numpy(ramps.central_affine[:2]).expand(2, 2, 3)
    ends = align_squares(eyes.aligner, eyes, squares, central)
    assert eyes.steps == [0, 1]
    assert torch.allclose(ends.affines - central, torch.tensor([[0, 0, 4.0], [0, 0, 0]]).double(), atol=1e-5)
    assert ends.log_errors.tolist() == [-4, 0]
    ends = align_squares(eyes.aligner, eyes, squares, central, [1])
    assert eyes.steps == [0, 1, 1]
    assert torch.allclose((ends.affines - central)[:, 0, 2], torch.tensor([2.0]).double(), atol=1e-5)
    none = align_squares(eyes.aligner, eyes, squares, central, [])
    assert torch.equal(none.affines, central)
    assert none.log_errors.tolist() == [LOST] * 2


# ---- what it refuses, and what it writes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"view_size": 0}, "view_size is 0; it must be at least 1"),
        ({"widths": ()}, r"widths is \(\); it must be one number at least"),
        ({"widths": (4, 0)}, r"widths is \(4, 0\)"),
        ({"squeezed": 0}, "squeezed is 0"),
        ({"hidden": -1}, "hidden is -1"),
        ({"alignment_steps": 0}, "alignment_steps is 0"),
        ({"scales": (2.0, 1.0)}, "two rising numbers above 0"),
        ({"scales": (0.0, 1.0)}, "two rising numbers above 0"),
        ({"wide": 1.5}, r"wide is 1.5; it must be in 0\.\.1"),
        ({"negatives": -0.1}, "negatives is -0.1"),
        ({"grey": 2}, "grey is 2"),
        ({"hidden_part": 2}, "hidden_part is 2"),
        ({"background_squares": 0}, "background_squares is 0"),
        ({"held_out": 0}, "held_out is 0"),
        ({"steps": 0}, "steps is 0"),
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", [AlignConfig, FindConfig])
def test_configurations_out_of_range_are_refused(kind, change, message):
    with pytest.raises(OptionError, match=message):
        kind(**change)


def test_bad_input_is_refused(source, ramps, tmp_path):
    model = scemae.load_model(source)
    with pytest.raises(OptionError, match="test-tiny' has no aligner; make one: scemae train align"):
        align_pack(model, ramps, tmp_path / "out")
    with pytest.raises(DataError, match="has 80 faces; 80 cannot be held out"):
        AlignRecipe(replace(QUICK, held_out=80), ramps, source)
    with pytest.raises(DataError, match=r"framed for inputs of 32 px, the model sees 96 px"):
        AlignRecipe(QUICK, ramps, "scemae-tiny")


def test_where_faces_are_rare_the_verdict_is_stricter(source, ramps):
    recipe = AlignRecipe(replace(QUICK, face_share=0.5), ramps, source)
    aligner = recipe._trained()
    even, slope, _ = recipe._set_threshold(aligner)
    recipe.config = replace(QUICK, face_share=0.2)
    assert recipe._set_threshold(aligner)[:2] == pytest.approx((even - np.log(4) / slope, slope))


def test_a_run_replaces_the_aligner_of_a_model(source, ramps, tmp_path):
    for name, seed in (("first", 1), ("second", 0)):
        run = tmp_path / name
        train(AlignRecipe(replace(QUICK, seed=seed), ramps, source), run, fixed_options())
        before, source = scemae.load_model(source), f"local-dir:{run / 'model'}"
    model = scemae.load_model(source)
    weights = model.backbone.state_dict()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in before.backbone.state_dict().items())
    assert not torch.equal(model.aligner.layers[0].weight, before.aligner.layers[0].weight)
    assert not any(isinstance(layer, torch.nn.BatchNorm2d) for layer in model.aligner.modules())
    assert model.config.aligner.widths == QUICK.widths
    card = (run / "model" / "README.md").read_text()
    assert card.count("## How it was made: alignment") == 2
    section = card.split("## How it was made: alignment")[-1]
    assert AlignConfig.from_json(section.split("```json")[1].split("```")[0]) == QUICK
    assert json.loads(section.split("```json")[1].split("```")[0])["background_squares"] == 16
    for row in ("near error", "wide error", "| found |", "| verdict |"):
        assert row in section
    assert any(name.endswith("-alignment-before-and-after.png") for name in linked_files(section, run / "model"))


def test_a_run_folder_has_one_writer(source, ramps, tmp_path):
    with lock_folder(tmp_path), pytest.raises(RunError, match="Another process"):
        train(AlignRecipe(QUICK, ramps, source), tmp_path, fixed_options())
