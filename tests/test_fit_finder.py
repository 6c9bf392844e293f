"""The face finder's training on squares whose colours are places: what it must find is known exactly."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from test_fit_aligner import INPUT, SIZE, architecture, easy_run, ramps, source, symmetric_ramp  # noqa: F401
from training_runs import fixed_options, no_fsync  # noqa: F401

import scemae
from scemae.face_boxes import find_faces
from scemae.geometry import invert_affines
from scemae.training.engine import train
from scemae.training.fit_finder import FindRecipe
from scemae.training.perturbation_config import FindConfig
from scemae.training.perturbed_faces import draw_plain_pictures
from scemae.training.perturbed_views import draw_affines

FINDING = FindConfig(
    batch_size=32,
    steps=300,
    learning_rate=4e-3,
    view_size=64,
    finder_widths=(8, 16, 24),
    sides=(16.0, 32.0),
    scales=(1.6, 5.0),
    negatives=0.2,
    grey=0.0,
    hidden_part=0.0,
    background_squares=64,
    held_out=40,
)
QUICK = replace(FINDING, batch_size=4, steps=2, finder_widths=(4, 4, 8), held_out=5, background_squares=16)


def run_of(recipe, folder):
    train(recipe, folder, fixed_options())
    return f"local-dir:{folder / 'model'}"


@pytest.fixture(scope="module")
def trained(easy_run, ramps, tmp_path_factory):  # noqa: F811
    """A model with an aligner and a finder of short trainings, and the recipe of the finder."""
    recipe = FindRecipe(FINDING, ramps, easy_run[1])
    return scemae.load_model(run_of(recipe, tmp_path_factory.mktemp("runs") / "f")), recipe


@pytest.mark.slow
def test_most_held_out_faces_are_seen_where_they_are(trained):
    _, recipe = trained
    measured = recipe.measure()
    assert measured["faces_within_a_third_of_a_side"] > 0.9
    assert measured["median_distance_in_sides"] < 0.15
    assert measured["other_cells_per_million"] < 1e5


@pytest.mark.slow
def test_faces_in_a_photo_are_found(trained):
    """Three squares, of other sides, one turned, on a plain picture; and none on the picture alone."""
    model, _ = trained
    rng = np.random.default_rng(3)
    [plain] = draw_plain_pictures(1, rng)
    photo = np.array(resize(plain, (330, 300)))
    empty = photo.copy()
    boxes = ((40, 30, 100, 90), (200, 40, 285, 125), (120, 180, 190, 250))
    inset = (SIZE - INPUT) // 2
    face = symmetric_ramp()
    for number, (x0, y0, x1, y1) in enumerate(boxes):
        margin = round((x1 - x0) * inset / INPUT)  # the box is the central part of the square
        side = x1 - x0 + 2 * margin
        pasted = np.asarray(resize(np.rot90(face, number % 2), (side, side)))
        photo[y0 - margin : y1 + margin, x0 - margin : x1 + margin] = pasted
    found = find_faces(photo, model=model, min_size=40)
    middles = (found.xyxy[:, :2] + found.xyxy[:, 2:]) / 2
    apart = np.linalg.norm(middles[:, None] - [((x0 + x1) / 2, (y0 + y1) / 2) for x0, y0, x1, y1 in boxes], axis=-1)
    sides = np.array([x1 - x0 for x0, _, x1, _ in boxes])
    assert len(found) == 3
    assert (apart.min(0) < 0.15 * sides).all()
    assert len(find_faces(empty, model=model, min_size=40)) == 0


def resize(pixels, size):
    return Image.fromarray(np.ascontiguousarray(pixels)).resize(size, Image.Resampling.BICUBIC)


def test_what_a_step_sees(source, ramps):  # noqa: F811
    recipe = FindRecipe(QUICK, ramps, source)
    views, affines, is_face = recipe.prepare(recipe.load(0, slice(0, 4)))
    assert views.shape == (4, 3, 64, 64)
    assert affines.shape == (4, 2, 3)
    assert is_face.shape == (4,)
    loss = recipe.module(views, affines, is_face)["loss"]
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in recipe.module.parameters())


def test_faces_are_of_the_sides_that_are_asked_for():
    """The views that training draws: faces of all sides within, and around, those that the finder shall see."""
    affines = torch.from_numpy(draw_affines(np.random.default_rng(0), 4000, FINDING))
    sides = torch.linalg.det(invert_affines(affines)[..., :2]).abs().sqrt() * FINDING.view_size
    smallest, largest = FINDING.sides
    assert ((sides > smallest) & (sides < largest)).double().mean() > 0.5
    assert sides.min() < smallest
    assert sides.max() > largest


def test_a_run_gives_a_model_a_finder(source, ramps, tmp_path):  # noqa: F811
    before = scemae.load_model(source)
    name = run_of(FindRecipe(QUICK, ramps, source), tmp_path / "run")
    model = scemae.load_model(name)
    assert (before.finder, model.config.finder.widths, model.config.finder.sides) == (None, (4, 4, 8), (16.0, 32.0))
    assert not any(isinstance(layer, torch.nn.BatchNorm2d) for layer in model.finder.modules())
    assert np.isfinite(model.config.finder.threshold)
    weights = model.backbone.state_dict()
    assert all(torch.equal(tensor.half(), weights[key].half()) for key, tensor in before.backbone.state_dict().items())
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    section = card.split("## How it was made: face finder")[1]
    assert "faces within a third of a side" in section
    assert FindConfig.from_json(section.split("```json")[1].split("```")[0]) == QUICK
    assert (tmp_path / "run" / "pictures" / "0000002.png").is_file()
