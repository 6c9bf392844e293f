"""Stage 2: what reaches the loss, what learns, what comes out."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from training_runs import fixed_options, log_of, no_fsync, pack_noise, save_random_model  # noqa: F401

import scemae
from scemae.errors import OptionError, RunError
from scemae.model.backbone import Backbone
from scemae.model.config import BACKBONES, BackboneConfig
from scemae.model.projector import Projector
from scemae.training.carb import Selection
from scemae.training.chosen_tokens import ChosenTokens, choose_tokens, share_in_centre
from scemae.training.discriminant import train_discriminant
from scemae.training.discriminant_config import DiscriminantConfig
from scemae.training.engine import train
from scemae.training.held_out_matching import PLACES, HeldOutFaces
from scemae.training.motions import Moves, render_moved
from scemae.training.stage2 import CorrespondenceLoss, Stage2
from scemae.training.stage2_config import Stage2Config, stage2_preset
from scemae.weights.model_folder import save_model

SMALL = BackboneConfig(width=24, heads=3, depth=4, params=0)


@pytest.fixture
def small(monkeypatch, tmp_path):
    """A model folder of a small random backbone, as `--model` names it."""
    monkeypatch.setitem(BACKBONES, "small", SMALL)
    return save_random_model(tmp_path / "source", "small")


@pytest.fixture
def pack(tmp_path):
    return pack_noise(tmp_path / "pack", 24)


CONFIG = Stage2Config(batch_size=8, steps=4, epochs=None, projector_dim=8, held_out=4, seed=3)
CLOSED_FORM = DiscriminantConfig(projector_dim=6, views=40, held_out=4, batch_size=10)


class NumberedTokens(Backbone):
    """Tokens that carry their own number; the CLS token attends to the last ones most."""

    def __init__(self):
        super().__init__(SMALL)
        self.seen = []

    def embed(self, images):
        return torch.arange(144.0).expand(len(images), -1)[..., None].expand(-1, -1, 24).clone()

    def prepend_cls(self, patch_tokens):
        return torch.cat([torch.full((len(patch_tokens), 1, 24), -1.0), patch_tokens], dim=1)

    def run_blocks(self, tokens, start=0, stop=None):
        self.seen.append((tokens.shape[1], start, stop))
        return tokens

    def cls_similarity(self, tokens, block, mean_heads=True):
        self.block = block
        return tokens[:, 1:, 0]


CELLS = torch.stack([torch.arange(144) % 12, torch.arange(144) // 12], dim=-1)[None].float()


def loss_of(projector, config, places):
    """The loss of faces whose tokens are numbered, and what was chosen; places (B, 144, 2), cells."""
    selection, features = choose_tokens(NumberedTokens(), torch.zeros(len(places), 3, 96, 96), config)
    module = CorrespondenceLoss(projector, config, selection.attentive.shape[1])
    return float(module(features, selection.kept, selection.substitute, places)["loss"].detach()), selection


@pytest.mark.parametrize(("sequence", "last"), [("reduced", 1 + 18), ("full", 145)])
def test_the_kept_tokens_have_their_own_features(sequence, last):
    backbone = NumberedTokens()
    config = dataclasses.replace(CONFIG, sequence=sequence)
    selection, features = choose_tokens(backbone, torch.zeros(2, 3, 96, 96), config)
    assert selection.attentive.tolist() == [list(range(130, 144))] * 2
    assert features.shape == (2, 18, 24)
    assert torch.equal(features[..., 0], selection.kept.float())
    assert backbone.seen == [(145, 0, 1), (145, 1, 2), (145, 2, 3), (last, 3, None)]
    assert backbone.block == 2


@pytest.mark.parametrize(
    ("block", "sequence", "seen"),
    [
        (1, "reduced", [(145, 0, 1), (145, 1, 2), (145, 2, 3), (19, 3, None)]),
        (4, "reduced", [(145, 0, 1), (145, 1, 2), (145, 2, 3), (145, 3, 4), (19, 3, None)]),
        (4, "full", [(145, 0, 1), (145, 1, 2), (145, 2, 3), (145, 3, 4), (145, 4, None)]),
    ],
)
def test_the_attention_is_that_of_its_own_block(block, sequence, seen):
    backbone = NumberedTokens()
    config = dataclasses.replace(CONFIG, attention_block=block, sequence=sequence)
    choose_tokens(backbone, torch.zeros(1, 3, 96, 96), config)
    assert backbone.block == block - 1
    assert backbone.seen == seen


def test_the_least_attended_tokens_can_be_the_attentive_ones():
    config = dataclasses.replace(CONFIG, attend="least")
    selection, _ = choose_tokens(NumberedTokens(), torch.zeros(1, 3, 96, 96), config)
    assert selection.attentive.tolist() == [list(range(14))]


def test_the_loss_of_equal_features_is_that_of_their_places():
    """With one descriptor everywhere p is 1 / T: the loss is the mean over keys of f_loc * lambda, summed."""
    projector = Projector(24, 8)
    torch.nn.init.zeros_(projector.weight)
    for form, unit in (("log-cells", 1), ("log-pixels", 8)):
        loss, selection = loss_of(projector, dataclasses.replace(CONFIG, locality=form), CELLS)
        places = [(int(i) // 12, int(i) % 12) for i in selection.kept[0]]
        kinds = [True] * 14 + [False] * 4
        wanted = sum(
            math.log(unit * math.dist(places[i], places[j]) + 1) * (5 if kinds[i] or kinds[j] else 2) / 18
            for i in range(18)
            for j in range(18)
        )
        assert loss == pytest.approx(wanted, rel=1e-5)


def test_a_spatial_softmax_is_taken_over_the_complete_map():
    """Tokens that stand in for others count as often as they do: the softmax of the map where each has its number."""
    projector = Projector(24, 8, "spatial_softmax")
    selection, features = choose_tokens(NumberedTokens(), torch.zeros(1, 3, 96, 96), CONFIG)
    module = CorrespondenceLoss(projector, CONFIG, 14)
    found = module._project(features, selection.kept, selection.substitute)
    numbers = selection.kept.gather(1, selection.substitute).float()  # at each of the 144 cells
    complete = projector(numbers[:, None].expand(1, 24, 144).unflatten(2, (12, 12)))
    torch.testing.assert_close(found, complete.flatten(2).mT[:, selection.kept[0]])


def test_places_of_moved_faces_are_those_of_the_unmoved_face(small, pack):
    config = dataclasses.replace(CONFIG, amplitude=1.0, faces_together=4, keys="others")
    recipe = Stage2(config, pack, small)
    loaded = recipe.load(5, slice(4, 8))
    places = loaded[3]
    moves = Moves.draw(recipe.batches.rng(5), 8, config, amplitude=1.0, input_size=96, flip=False)
    own_place = moves.motions[6, :2] @ np.array([95.5 - 4, 3.5, 1])  # of the last token of the first row
    np.testing.assert_allclose(places[2, 11], (own_place - 3.5) / 8, atol=1e-4)
    for part, whole in zip(loaded, recipe.load(5, slice(0, 8)), strict=True):
        assert torch.equal(part, whole[4:])
    _, to_square, light, grid_places, _ = Stage2(CONFIG, pack, small).load(5, slice(0, 8))
    assert torch.equal(to_square, torch.tensor([[1.0, 0, 8], [0, 1, 8]]).double().expand(8, 2, 3))
    assert light.tolist() == [[1, 0]] * 8
    assert grid_places[0, [0, 1, 12]].tolist() == [[0, 0], [1, 0], [0, 1]]


def test_faces_together_are_compared_with_each_other():
    """Two faces, equal tokens: p is 1 / 18 over the other's tokens, f_loc that between the faces' places."""
    projector = Projector(24, 8)
    torch.nn.init.zeros_(projector.weight)
    config = dataclasses.replace(CONFIG, faces_together=2, keys="others", batch_size=2)
    places = torch.zeros(2, 144, 2)
    places[1, :, 0] = 3.0
    pairs = 14 * 14 * 5 + 2 * 14 * 4 * 5 + 4 * 4 * 2  # each query of a face with all keys of the other, times lambda
    assert loss_of(projector, config, places)[0] == pytest.approx(2 * pairs * math.log(4) / 18 / 2, rel=1e-5)


def test_the_mean_over_queries_is_the_sum_over_the_tokens_of_a_face(small, pack):
    losses = []
    for reduction in ("sum", "mean_query"):
        config = dataclasses.replace(CONFIG, faces_together=4, reduction=reduction)
        recipe = Stage2(config, pack, small)
        losses.append(float(recipe.module(*recipe.prepare(recipe.load(0, slice(0, 8))))["loss"].detach()))
    assert losses[1] == pytest.approx(losses[0] / 18, rel=1e-5)


@pytest.mark.parametrize("flip", [False, True])
def test_tokens_of_unmoved_faces_are_computed_once(small, pack, flip, monkeypatch):
    """What is kept is what would be computed, to float16; in the second epoch the backbone is not asked again."""
    config = dataclasses.replace(CONFIG, flip=flip)
    recipe, plain = Stage2(config, pack, small), Stage2(config, pack, small)
    recipe.keep_on(torch.device("cpu"), "float32")
    assert recipe.cache is not None
    for step in range(8):
        for kept, computed in zip(
            recipe.prepare(recipe.load(step, slice(0, 8))), plain.prepare(plain.load(step, slice(0, 8))), strict=True
        ):
            torch.testing.assert_close(kept, computed, rtol=1e-3, atol=2e-3)
    assert len(recipe.cache.known) == (40 if flip else 20)
    if not flip:
        assert recipe.cache.known.all()
        monkeypatch.setattr(recipe, "_choose", None)
        recipe.prepare(recipe.load(9, slice(0, 8)))


def test_mirrored_faces_have_tokens_of_their_own(small, pack):
    recipe = Stage2(dataclasses.replace(CONFIG, flip=True), pack, small)
    squares, to_square, _, _, numbers = recipe.load(0, slice(0, 8))
    mirrored = numbers >= len(recipe.faces)
    assert 0 < mirrored.sum() < 8
    assert torch.equal(to_square[:, 0, 0] < 0, mirrored)
    assert torch.equal(squares, torch.from_numpy(pack.squares[recipe.faces[numbers % len(recipe.faces)]]))


def test_tokens_that_take_too_much_memory_are_computed_each_time(small, pack, monkeypatch):
    monkeypatch.setattr("scemae.training.chosen_tokens.CACHE_BYTES", 2 * 20 * (18 * 24 + 18 + 144) - 1)
    assert ChosenTokens.if_it_fits(20, 144, 18, 24, torch.device("cpu")) is None
    recipe = Stage2(CONFIG, pack, small)
    recipe.keep_on(torch.device("cpu"), "float32")
    assert recipe.cache is None
    assert recipe.prepare(recipe.load(0, slice(0, 8)))[0].shape == (8, 18, 24)


def test_the_share_in_the_centre_by_hand():
    """Of a map of 4 x 4 cells 5, 6, 9 and 10 are in the centre."""
    selection = Selection(torch.tensor([[0, 5, 6], [9, 10, 11]]), torch.tensor([[3], [5]]), torch.zeros(2, 16))
    assert share_in_centre(selection, 4) == {"attentive_in_centre": pytest.approx(4 / 6), "centers_in_centre": 0.5}
    none = Selection(torch.arange(16)[None], torch.zeros(1, 0).long(), torch.zeros(1, 16))
    assert share_in_centre(none, 4) == {"attentive_in_centre": 0.25}


@pytest.mark.parametrize(
    ("config", "wrong", "message"),
    [
        pytest.param(CONFIG, {"faces_together": 3}, "is not a multiple of faces_together 3", id="faces-together"),
        pytest.param(CONFIG, {"keys": "others"}, "there is no other face", id="keys"),
        pytest.param(CLOSED_FORM, {"amplitude": 0.0}, "amplitude is 0.0; it must be above 0", id="amplitude"),
        pytest.param(CONFIG, {"temperature": 0.0}, "temperature is .* it must be above 0", id="temperature"),
        pytest.param(CONFIG, {"attentive_ratio": 1.5}, "attentive_ratio is .* it must be above 0", id="ratio"),
        pytest.param(CONFIG, {"cluster_block": 0}, "cluster_block is 0; it must be at least 1", id="block"),
    ],
)
def test_a_wrong_configuration_is_refused(config, wrong, message):
    with pytest.raises(OptionError, match=message):
        dataclasses.replace(config, **wrong)


def test_a_configuration_that_does_not_fit_the_model_or_the_batch(small, pack):
    with pytest.raises(OptionError, match="cluster_block is 5; the model has 4 blocks"):
        Stage2(dataclasses.replace(CONFIG, cluster_block=5), pack, small)
    recipe = Stage2(dataclasses.replace(CONFIG, faces_together=8), pack, small)
    with pytest.raises(RunError, match="has 2 faces at a time"):
        recipe.prepare(recipe.load(0, slice(0, 2)))


def test_only_the_projector_learns_and_a_seeded_step_has_its_loss(small, pack):
    recipe = Stage2(CONFIG, pack, small)
    before = {name: tensor.clone() for name, tensor in recipe.model.backbone.state_dict().items()}
    loss = recipe.module(*recipe.prepare(recipe.load(0, slice(0, 8))))["loss"]
    loss.backward()
    assert all(parameter.grad is None for parameter in recipe.model.backbone.parameters())
    assert recipe.module.projector.weight.grad.abs().sum() > 0
    assert float(loss.detach()) == pytest.approx(57.1829, rel=1e-3)
    assert all(torch.equal(before[name], tensor) for name, tensor in recipe.model.backbone.state_dict().items())


@pytest.mark.slow
def test_eight_images_can_be_learned(small, pack):
    config = dataclasses.replace(CONFIG, held_out=16, batch_size=8, temperature=0.05, projector_dim=24)
    recipe = Stage2(config, pack, small)
    optimizer = torch.optim.Adam(recipe.module.projector.parameters(), lr=0.02)
    inputs = recipe.prepare(recipe.load(0, slice(0, 8)))
    losses = []
    for _ in range(150):
        loss = recipe.module(*inputs)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.3 * losses[0]


def test_a_run_writes_a_model_with_a_projector(small, pack, tmp_path):
    recipe = Stage2(dataclasses.replace(CONFIG, projector_mode="spatial_softmax"), pack, small)
    train(recipe, tmp_path / "run", fixed_options())
    folder = tmp_path / "run" / "model"
    model = scemae.load_model(f"local-dir:{folder}")
    assert (model.config.projector_dim, model.config.projector_mode) == (8, "spatial_softmax")
    assert model.config.matching_use == "projected"
    trained = recipe.module.projector.weight.detach().half().float()
    assert torch.equal(model.projector.weight, trained)
    card = (folder / "README.md").read_text()
    assert "## How it was made: stage 2" in card
    assert "warped projected error" in card
    assert (folder / "1-stage-2-similarity.png").is_file()


@pytest.mark.parametrize("block", [1, 2, 4])
def test_tokens_are_chosen_after_any_block(small, pack, block):
    """With all tokens kept the sequence is whole, so the features are the encoder's own, wherever they were chosen."""
    recipe = Stage2(dataclasses.replace(CONFIG, cluster_block=block, attentive_ratio=1.0, num_clusters=0), pack, small)
    loaded = recipe.load(0, slice(0, 2))
    features, _, _, _ = recipe.prepare(loaded)
    maps = recipe.model.backbone(recipe.model.normalise(render_moved(*loaded[:3], 96)))
    torch.testing.assert_close(features, maps.flatten(2).mT)


def test_the_backbone_goes_where_the_projector_learns(small, pack):
    """The engine moves the recipe's module to the GPU and tells the recipe; here "meta" is one."""
    recipe = Stage2(CONFIG, pack, small)
    recipe.keep_on(torch.device("meta"), "bf16")
    assert {tensor.device.type for tensor in [recipe.model.mean, *recipe.model.state_dict().values()]} == {"meta"}
    assert recipe.cache.features.device.type == "meta"


@pytest.mark.slow
def test_a_run_goes_on_with_its_own_model_only(small, pack, tmp_path):
    train(Stage2(CONFIG, pack, small), tmp_path / "run", fixed_options())
    model = scemae.load_model(small)
    other = {name: tensor + 1 for name, tensor in model.state_dict().items()}
    save_model(tmp_path / "other", other, model.config, "# small\n")
    recipe = Stage2(CONFIG, pack, f"local-dir:{tmp_path / 'other'}")
    with pytest.raises(RunError, match="started from another model; pass the same --model"):
        train(recipe, tmp_path / "run", fixed_options(resume=True))


def test_the_closed_form_writes_a_model_with_a_projector(small, pack, tmp_path):
    measured = train_discriminant(small, pack, CLOSED_FORM, tmp_path / "run")
    kinds = ("backbone", "projected")
    assert set(measured) == {f"{what}_{kind}_error" for what in ("warped", "cycle") for kind in kinds}
    model = scemae.load_model(f"local-dir:{tmp_path / 'run' / 'model'}")
    maps = model.project(model.backbone(torch.randn(20, 3, 96, 96)))
    assert maps.shape == (20, 6, 12, 12)
    assert model.config.projector_mode == "linear"


def test_spatial_softmax_is_a_distribution_over_places():
    maps = Projector(5, 3, "spatial_softmax")(torch.randn(2, 5, 4, 4))
    torch.testing.assert_close(maps.sum((2, 3)), torch.ones(2, 3))


def test_spatial_softmax_of_an_expanded_map_is_that_of_each_pass():
    """Passes of 4 x 4 cells, interleaved as cover-and-stride does, give the interleaved maps of each by itself."""
    projector = Projector(5, 3, "spatial_softmax", grid=4)
    passes = torch.randn(4, 2, 5, 4, 4)
    expanded, wanted = torch.empty(2, 5, 8, 8), torch.empty(2, 3, 8, 8)
    for number, maps in enumerate(passes):
        row, column = divmod(number, 2)
        expanded[..., row::2, column::2], wanted[..., row::2, column::2] = maps, projector(maps)
    torch.testing.assert_close(projector(expanded), wanted)


@pytest.mark.parametrize(("dim", "sharpness"), [(64, 6.5), (128, 7.0), (256, 7.0)])
def test_the_sharpness_is_that_of_contrast_landmark(dim, sharpness):
    projector = Projector(2, dim, "spatial_softmax")
    linear = Projector(2, dim)
    linear.load_state_dict(projector.state_dict())
    maps = torch.randn(1, 2, 4, 4)
    torch.testing.assert_close(projector(maps).flatten(2), (sharpness * linear(maps).flatten(2)).softmax(-1))


def test_matching_finds_what_can_be_told_apart(small, pack, monkeypatch):
    """Features that encode the place in the face: the error is that of the cells; of noise it is that of chance."""
    model = scemae.load_model(small)
    faces = HeldOutFaces(model, pack, np.arange(4))
    axis = 8 * torch.arange(12.0) + 3.5
    own = torch.stack(torch.meshgrid(axis, axis, indexing="xy"))  # (2, 12, 12): x, y of each cell
    anchors = torch.tensor(PLACES)

    def encode(places):  # (2, h, w) -> (25, h, w): one bump for each place
        return (-((places[None] - anchors[:, :, None, None]) ** 2).sum(1) / 200).exp()

    faces.source = encode(own).expand(4, -1, -1, -1)
    origin = faces.warps.source(2 * own.flatten(1).T.double() / 95 - 1)  # where each cell of a copy comes from
    back = ((origin + 1) * 95 / 2).float().transpose(1, 2).unflatten(2, (12, 12))
    faces.target = torch.stack([encode(places) for places in back])
    identity = Projector(25, 25)
    with torch.no_grad():
        identity.weight.copy_(torch.eye(25)[..., None, None])
        identity.bias.zero_()
    errors = faces.measure(identity)
    for kind in ("warped", "cycle"):
        assert errors[f"{kind}_backbone_error"] == errors[f"{kind}_projected_error"]
    assert errors["warped_projected_error"] < 1.5
    assert errors["cycle_projected_error"] < 3  # to the other face and on to the copy: two matches
    # Places of the view instead of the face: the copies are as far off as they were warped.
    faces.target = encode(own).expand(4, -1, -1, -1)
    moved = (faces.warps.landmarks(anchors.double().expand(4, -1, -1), 96) - anchors).norm(dim=-1).nanmean()
    assert faces.measure(identity)["cycle_projected_error"] == pytest.approx(float(moved), abs=1.5)
    faces.target = torch.randn(4, 25, 12, 12)
    assert faces.measure(identity)["warped_projected_error"] > 20
    assert faces.measure(identity)["cycle_projected_error"] > 20


@pytest.mark.slow
def test_sections_of_a_card_follow_the_model_from_run_to_run(small, pack, tmp_path):
    first = Stage2(CONFIG, pack, small)
    train(first, tmp_path / "first", fixed_options())
    train_discriminant(f"local-dir:{tmp_path / 'first' / 'model'}", pack, CLOSED_FORM, tmp_path / "second")
    card = (tmp_path / "second" / "model" / "README.md").read_text()
    assert card.index("made: stage 2\n") < card.index("made: stage 2 by positional discriminant")
    for name in ("1-stage-2-loss-over-steps.png", "2-stage-2-by-positional-discriminant-similarity.png"):
        assert (tmp_path / "second" / "model" / name).is_file()
        assert name in card


# ---- the projector that is kept


class Falling:
    """A watch whose error between different faces falls, then rises."""

    def __init__(self):
        self.errors = iter([3.0, 1.0, 2.0, 4.0, 5.0, 6.0])
        self.seen = []

    def measure(self, projector):
        self.seen.append(projector.weight.detach().clone())
        return {"watched_same_error": 0.5, "watched_different_error": next(self.errors)}


def test_the_projector_of_the_best_measurement_is_kept(small, pack, tmp_path):
    config = dataclasses.replace(CONFIG, report_steps=1, watch="mtfl/lfw_5590", keep="watched", learning_rate=0.1)
    watch = Falling()
    recipe = Stage2(config, pack, small, watch=watch)
    train(recipe, tmp_path / "run", fixed_options())
    model = scemae.load_model(f"local-dir:{tmp_path / 'run' / 'model'}")
    assert torch.equal(model.projector.weight, watch.seen[1].half().float())
    assert not torch.equal(model.projector.weight, watch.seen[3].half().float())
    card = (tmp_path / "run" / "model" / "README.md").read_text()
    assert "| watched different error | 6.000 px of 70 (labelled faces) |" in card
    assert "| attentive in centre |" in card
    assert [line["watched_different_error"] for line in log_of(tmp_path / "run")] == [3.0, 1.0, 2.0, 4.0]


def test_the_best_projector_outlives_a_resume(small, pack, tmp_path):
    config = dataclasses.replace(CONFIG, report_steps=1, watch="a/b", keep="watched")
    first, second = Falling(), Falling()
    train(Stage2(config, pack, small, watch=first), tmp_path / "run", fixed_options(max_hours=0))
    second.errors = iter([9.0] * 5)
    train(Stage2(config, pack, small, watch=second), tmp_path / "run", fixed_options(resume=True))
    model = scemae.load_model(f"local-dir:{tmp_path / 'run' / 'model'}")
    assert torch.equal(model.projector.weight, first.seen[-1].half().float())


def test_keeping_the_watched_best_needs_a_watch(small, pack):
    with pytest.raises(OptionError, match='keep "watched" needs watch: labelled faces'):
        dataclasses.replace(CONFIG, keep="watched")
    with pytest.raises(OptionError, match="watch is 'mtfl/lfw_5590', but no faces are given to watch"):
        Stage2(dataclasses.replace(CONFIG, watch="mtfl/lfw_5590"), pack, small)


def test_the_steps_follow_the_faces():
    """10 epochs of CelebA's 162,770 faces in batches of 256."""
    assert stage2_preset("paper", "deit-base").for_faces(162_770).steps == 6_358
