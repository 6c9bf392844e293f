import os
import threading

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from training_runs import (
    TrainingProcess,
    assert_same_run,
    drawn_faces,
    fixed_options,
    log_of,
    no_fsync,  # noqa: F401
    spawn_ranks,
)

from scemae.errors import OptionError
from scemae.model.backbone import Backbone, initialise_backbone
from scemae.model.config import BACKBONES, BackboneConfig
from scemae.training import engine
from scemae.training.engine import train
from scemae.training.masked_autoencoder import MaskedAutoencoder, to_images, to_patches
from scemae.training.pack import Pack
from scemae.training.run_config import CardFields, Stage1Config
from scemae.training.stage1 import Stage1

PATCH, CELLS = 16, 36  # px; patches of an image
CARD_FIELDS = CardFields(name="drawn", training_data="pictures drawn by a test")


@pytest.fixture
def settings(tiny_backbone):
    return {
        "architecture": tiny_backbone,
        "patch_size": PATCH,
        "decoder_width": 16,
        "decoder_depth": 1,
        "decoder_heads": 4,
        "batch_size": 8,
    }


def autoencoder(settings, **changes):
    config = Stage1Config(**settings | changes)
    backbone = Backbone(config.backbone, config.input_size, config.patch_size)
    initialise_backbone(backbone)
    return MaskedAutoencoder(backbone, config).eval()


def orders(count=4):
    return torch.from_numpy(np.random.default_rng(0).random((count, CELLS)).argsort(axis=1))


def seen_by(layer, *, outputs=False):
    """Where the inputs or the outputs of a layer are kept as they pass."""
    kept = []
    if outputs:
        layer.register_forward_hook(lambda _layer, _given, found: kept.append(found.detach()))
    else:
        layer.register_forward_pre_hook(lambda _layer, given: kept.append(given[0].detach()))
    return kept


def images_of(values):
    """Images (B, 3, 96, 96) whose patches (B, 36) are each of one colour."""
    return to_images(values.float()[..., None].expand(-1, -1, 3 * PATCH**2), PATCH)


# ---- patches


def test_patches_are_the_cells_row_by_row_and_become_the_image_again():
    images = torch.randn(2, 3, 96, 96)
    patches = to_patches(images, PATCH)
    assert patches.shape == (2, CELLS, 3 * PATCH**2)
    assert torch.equal(to_images(patches, PATCH), images)
    cell = images[1, :, 2 * PATCH : 3 * PATCH, 5 * PATCH : 6 * PATCH]
    assert torch.equal(patches[1, 2 * 6 + 5].sort().values, cell.flatten().sort().values)


# ---- the encoder


def test_with_nothing_masked_it_is_the_librarys_encoder(settings):
    module, images, order = autoencoder(settings, mask_ratio=0.0), torch.randn(4, 3, 96, 96), orders()
    encoded = seen_by(module.backbone.vit.norm, outputs=True)
    with torch.no_grad():
        module(images, order)
        restored = torch.empty(4, CELLS, 32).scatter(1, order[..., None].expand(-1, -1, 32), encoded[0][:, 1:])
        tokens = module.backbone.encode(module.backbone.embed(images))
        torch.testing.assert_close(encoded[0][:, 0], tokens[:, 0], rtol=1e-4, atol=1e-5)
        feature_map = restored.transpose(1, 2).unflatten(2, (6, 6))
        torch.testing.assert_close(feature_map, module.backbone(images), rtol=1e-4, atol=1e-5)


def test_each_visible_token_is_its_patch_at_its_place(settings):
    module, order = autoencoder(settings), orders()
    embedding = module.backbone.vit.patch_embed.proj
    with torch.no_grad():  # channel 0 tells the patch, channel 1 the place
        embedding.weight.zero_()
        embedding.bias.zero_()
        embedding.weight[0] = 1 / (3 * PATCH**2)
        module.backbone.positions.zero_()
        module.backbone.positions[0, 1:, 1] = torch.arange(CELLS).float()
    tokens = seen_by(module.backbone.vit.blocks[0])
    module(images_of(torch.arange(CELLS).expand(4, -1)), order)
    visible = order[:, :9].float()
    assert tokens[0].shape == (4, 10, 32)
    torch.testing.assert_close(tokens[0][:, 1:, 0], visible, rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(tokens[0][:, 1:, 1], visible, rtol=1e-4, atol=1e-3)
    assert torch.equal(tokens[0][:, 0], module.backbone.cls_token[0].expand(4, -1))


def test_hidden_patches_are_not_seen(settings):
    module, order, images = autoencoder(settings), orders(), torch.randn(4, 3, 96, 96)
    encoded = seen_by(module.backbone.vit.norm, outputs=True)
    hidden = order[:, 9:]
    patches = to_patches(images, PATCH).scatter(1, hidden[..., None].expand(-1, -1, 3 * PATCH**2), 7.0)
    module(images, order)
    module(to_images(patches, PATCH), order)
    assert torch.equal(encoded[0], encoded[1])


# ---- the decoder and the loss


def test_the_decoder_gets_each_token_at_its_place(settings):
    module, order = autoencoder(settings, decoded_ratio=0.5), orders()
    with torch.no_grad():
        module.decoder["embed"].weight.zero_()
        module.decoder["embed"].bias.fill_(3.0)
        module.decoder_positions.zero_()
        module.decoder_positions[0, 1:, 0] = torch.arange(CELLS).float()
        module.mask_token.fill_(-2.0)
    tokens = seen_by(module.decoder["blocks"][0])
    module(torch.randn(4, 3, 96, 96), order)
    decoded = round(27 * 0.5)
    assert tokens[0].shape == (4, 1 + 9 + decoded, 16)
    assert torch.equal(tokens[0][:, 0, 0], torch.full((4,), 3.0))
    assert torch.equal(tokens[0][:, 1:10, 0], order[:, :9] + 3.0)
    assert torch.equal(tokens[0][:, 10:, 0], order[:, 9 : 9 + decoded] - 2.0)


def guessing(module, guess):
    """The decoder says `guess` for every pixel."""
    nn.init.zeros_(module.decoder["head"].weight)
    nn.init.constant_(module.decoder["head"].bias, guess)
    return module


@pytest.mark.parametrize(("ratio", "decoded"), [(1.0, 27), (0.5, 14), (0.2, 5)])
def test_the_loss_is_that_of_the_decoded_hidden_patches(settings, ratio, decoded):
    module = guessing(autoencoder(settings, normalise_pixels=False, decoded_ratio=ratio), 0.5)
    order, values = orders(), torch.randn(4, CELLS)
    wanted = values.gather(1, order[:, 9 : 9 + decoded])
    loss = module(images_of(values), order)["loss"]
    assert loss.item() == pytest.approx(((wanted - 0.5) ** 2).mean().item(), rel=1e-5)
    others = torch.cat([order[:, :9], order[:, 9 + decoded :]], dim=1)
    assert module(images_of(values.scatter(1, others, 9.0)), order)["loss"].item() == pytest.approx(loss.item())


def test_normalised_pixels_have_their_mean_and_contrast_taken_out(settings):
    module, order = guessing(autoencoder(settings), 0.5), orders()
    count = 3 * PATCH**2
    signs = torch.ones(count)
    signs[::2] = -1.0
    patches = 5.0 + 3.0 * signs.expand(4, CELLS, -1)
    loss = module(to_images(patches, PATCH), order)["loss"].item()
    assert loss == pytest.approx(0.5**2 + (count - 1) / count, rel=1e-4)  # the variance is the unbiased one
    assert module(images_of(torch.full((4, CELLS), 5.0)), order)["loss"].item() == pytest.approx(0.25)


@pytest.mark.parametrize("normalise", [True, False])
def test_a_reconstruction_is_in_the_images_own_pixels(settings, normalise):
    module, order = guessing(autoencoder(settings, normalise_pixels=normalise), 0.5), orders()
    images = torch.randn(4, 3, 96, 96)
    masked, filled = module.reconstruct(images, order)
    whole, left, found = (to_patches(pictures, PATCH) for pictures in (images, masked, filled))
    for row in range(4):
        visible, hidden = order[row, :9], order[row, 9:]
        assert torch.equal(left[row, visible], whole[row, visible])
        assert torch.equal(found[row, visible], whole[row, visible])
        assert (left[row, hidden] == 0).all()
        mean, deviation = whole[row, hidden].mean(1), whole[row, hidden].std(1)
        guessed = mean + 0.5 * deviation if normalise else torch.full((27,), 0.5)
        torch.testing.assert_close(found[row, hidden], guessed[:, None].expand(-1, 3 * PATCH**2), rtol=1e-4, atol=1e-4)


# ---- the recipe


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    return drawn_faces(tmp_path_factory.mktemp("drawn"))


def quiet(settings, pack, **changes):
    """Stage 1 without pictures on the way."""
    recipe = Stage1(Stage1Config(**settings | changes), pack, CARD_FIELDS)
    recipe.report_every = 10_000
    return recipe


def test_a_seeded_run_has_these_losses(settings, pack, tmp_path):
    """What changes them changes every training: have a reason."""
    recipe = quiet(settings, pack, steps=12, warmup=0.1, learning_rate=0.01)
    train(guessing_recipe(recipe), tmp_path / "run", fixed_options())
    losses = [line["loss"] for line in log_of(tmp_path / "run")]
    assert losses[::4] + losses[-1:] == pytest.approx([0.998683, 0.884754, 0.910655, 0.752057], rel=2e-4)


def guessing_recipe(recipe):
    guessing(recipe.module, 0.0)
    return recipe


@pytest.mark.slow
def test_eight_images_are_learned_by_heart(settings, pack, tmp_path):
    whole = {"crop_area": (1.0, 1.0), "crop_ratio": (1.0, 1.0), "normalise_pixels": False}
    recipe = quiet(settings, pack, steps=250, learning_rate=8e-3, decoder_width=64, **whole)
    train(recipe, tmp_path / "run", fixed_options())
    losses = [line["loss"] for line in log_of(tmp_path / "run")]
    assert losses[0] > 0.6
    assert losses[-1] < 0.3 * losses[0]


def test_a_batch_is_drawn_once_and_shared_out(settings, pack):
    recipe = quiet(settings, pack)
    whole = recipe.load(5, slice(None))
    parts = [recipe.load(5, slice(start, start + 2)) for start in range(0, 8, 2)]
    assert all(torch.equal(together, torch.cat(pieces)) for together, *pieces in zip(whole, *parts, strict=True))
    order = whole[-1]
    assert (order.sort(dim=1).values == torch.arange(CELLS)).all()
    assert len({tuple(row) for row in order.tolist()}) == 8
    images, _ = recipe.prepare(whole)
    assert images.shape == (8, 3, 96, 96)
    plainly = quiet(settings, pack, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    pixels, _ = plainly.prepare(whole)
    torch.testing.assert_close(images, (pixels - 0.5) / 0.25, rtol=1e-4, atol=1e-5)
    assert 0 <= pixels.min() < 0.1
    assert 0.9 < pixels.max() <= 1


def train_recorded(pack_folder, out):
    """Train, as one of the processes, and save what it loads for each step."""
    BACKBONES["test-tiny"] = BackboneConfig(width=32, heads=2, depth=2, params=0)
    decoder = {"decoder_width": 16, "decoder_depth": 1, "decoder_heads": 4}
    settings = {"architecture": "test-tiny", "patch_size": PATCH, "batch_size": 8, "steps": 6, **decoder}
    recipe = quiet(settings, Pack.open(pack_folder))
    loaded, load = {}, recipe.load

    def record(step, part):
        found = load(step, part)
        if part.stop - part.start > 1:  # not for its hash
            loaded[step] = found
        return found

    recipe.load = record
    train(recipe, out, fixed_options())
    torch.save(loaded, f"{out}-{os.environ.get('RANK', 0)}.pt")


@pytest.mark.slow
def test_two_processes_see_what_one_sees(pack, tmp_path):
    processes = spawn_ranks(tmp_path, 2, train_recorded, pack.folder, tmp_path / "two")
    alone = TrainingProcess(tmp_path / "note", train_recorded, pack.folder, tmp_path / "one")
    assert [process.wait() for process in (*processes, alone)] == [0, 0, 0]
    one, *parts = (torch.load(tmp_path / f"{name}.pt") for name in ("one-0", "two-0", "two-1"))
    for step in range(6):
        for whole, first, second in zip(one[step], parts[0][step], parts[1][step], strict=True):
            assert len(first) == len(second) == 4
            assert torch.equal(torch.cat([first, second]), whole)
    assert [line["loss"] for line in log_of(tmp_path / "two")] == pytest.approx(
        [line["loss"] for line in log_of(tmp_path / "one")], rel=1e-5
    )


class Waits(TorchDispatchMode):
    """Notes what would make the host wait for a GPU: numbers that are read, shapes that depend on values."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if any(name in str(function) for name in ("_local_scalar_dense", "nonzero", "masked_select", "unique")):
            self.found.append(str(function))
        return function(*args, **(kwargs or {}))


def test_a_step_on_a_gpu_makes_the_host_wait_for_nothing(settings, pack, tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "_is_asynchronous", lambda device: True)
    recipe = quiet(settings, pack, steps=1000, clip_norm=1.0)  # 10 steps between two lines
    recipe.keep_on = lambda device, precision: True
    waits, threads, load = Waits(), set(), recipe.load

    def note_thread(step, part):
        threads.add(threading.current_thread())
        return load(step, part)

    recipe.load = note_thread
    with waits:
        train(recipe, tmp_path / "run", fixed_options(max_hours=0))
        assert waits.found == []
        torch.ones(1).item()
    assert waits.found != []
    assert threads == {threading.current_thread()}


@pytest.mark.slow
def test_stage_1_is_resumed_exactly(settings, pack, tmp_path):
    train(quiet(settings, pack, steps=8), tmp_path / "whole", fixed_options())
    train(quiet(settings, pack, steps=8), tmp_path / "run", fixed_options(max_hours=0))
    train(quiet(settings, pack, steps=8), tmp_path / "run", fixed_options(resume=True))
    assert_same_run(tmp_path / "whole", tmp_path / "run")


@pytest.mark.parametrize(("steps", "pictures"), [(3, 3), (20, 20), (45, 15), (9000, 20)])
def test_a_run_shows_some_pictures(settings, pack, steps, pictures):
    recipe = Stage1(Stage1Config(**settings, steps=steps), pack, CARD_FIELDS)
    assert steps // recipe.report_every == pictures


def test_a_picture_shows_faces_masks_and_reconstructions(settings, pack):
    picture = np.asarray(guessing_recipe(quiet(settings, pack)).draw_report()).astype(int)
    face = pack.squares[0, 8:-8, 8:-8].astype(int)
    assert np.abs(picture[:192:2, :192:2] - face).max() <= 1
    middle = picture[len(picture) // 2 - 96 : len(picture) // 2 + 96, :192]
    hidden = (np.abs(middle - 127.5) < 1).all(axis=-1)
    assert 0.7 < hidden.mean() < 0.8
    below = picture[-192:, :192]
    assert np.abs(below - middle)[~hidden].max() == 0
    brightness = np.abs(below.mean(axis=-1) - picture[:192, :192].mean(axis=-1))
    assert brightness[hidden].mean() < 8  # each patch has its own
    assert picture.shape[1] > 6 * 192


def test_masks_that_leave_nothing_to_learn(settings, pack):
    with pytest.raises(OptionError, match="leave nothing"):
        Stage1(Stage1Config(**settings, mask_ratio=0.0), pack, CARD_FIELDS)
