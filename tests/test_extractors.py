"""Anybody's features: the same geometry for them, and clear words where they are not what they should be."""

import sys
import types
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch

import scemae
from scemae.errors import IncompatibleFeaturesError, IncompatibleWeightsError, OptionError
from scemae.evaluation import baseline_features
from scemae.evaluation.extractors import Encoder, ExternalExtractor, build_extractor, load_extractor
from scemae.evaluation.setup import EvaluationSetup
from scemae.model.backbone import Backbone, initialise_backbone


@pytest.fixture
def same(two_block_model):
    """Our own model as an external extractor."""
    grid = two_block_model.grid(2)
    encode = lambda views: two_block_model(two_block_model.normalise(views), 2)  # noqa: E731
    encoder = Encoder(name="same", encode=encode, view_margin=4, origin=grid.origin, step=grid.step)
    return ExternalExtractor(encoder, two_block_model)


@pytest.mark.parametrize("align", [True, False])
@pytest.mark.parametrize("margin", ["context", "reflect"])
def test_our_model_as_an_external_extractor_gives_the_same(two_block_model, same, samples, landmarks, align, margin):
    arguments = [s.path for s in samples], {"boxes": [s.box for s in samples], "align": align, "margin": margin}
    ours = scemae.extract_features(two_block_model, arguments[0], expansion=2, **arguments[1])
    theirs = scemae.extract_features(same, arguments[0], **arguments[1])
    assert torch.equal(ours.backbone_map, theirs.backbone_map)
    assert ours.grid == theirs.grid
    expected = scemae.match_landmarks(ours[0], landmarks[0], ours[1], use="backbone", prior=0)
    np.testing.assert_array_equal(scemae.match_landmarks(theirs[0], landmarks[0], theirs[1]).xy, expected.xy)
    detector = scemae.fit_regressor(same, theirs[0], landmarks[:1])
    reference = scemae.fit_regressor(two_block_model, ours[0], landmarks[:1], use="backbone")
    assert detector.mirrored_
    assert reference.mirrored_
    np.testing.assert_array_equal(detector.predict(theirs).xy, reference.predict(ours).xy)


@pytest.mark.parametrize("size", [48, 96, 192])
def test_cells_are_where_the_grid_says_whatever_the_size_of_the_views(two_block_model, size):
    """A picture of its own coordinates, read at a point of the picture, gives that point."""
    columns, rows = np.meshgrid(np.arange(256), np.arange(256))
    ramp = np.stack([columns, rows, rows], axis=-1).astype(np.uint8)
    extractor = ExternalExtractor(
        Encoder(name="colours", encode=lambda views: 255 * views, view_size=size), two_block_model
    )
    faces = scemae.extract_features(extractor, ramp, boxes=(40, 60, 200, 220), align=False)
    points = np.random.default_rng(0).uniform((45, 65), (195, 215), (1, 30, 2))
    np.testing.assert_allclose(faces.descriptors(points)[..., :2], points, atol=0.6)  # 8 bits
    assert abs((faces.descriptors(points)[..., :2].numpy() - points).mean()) < 0.1


@pytest.mark.parametrize("encode", [baseline_features.pixel_patches, baseline_features.gradient_histograms])
def test_baselines_are_centred_on_their_cells(encode):
    """What a mirrored view gives is the mirror image of what the view gives, which needs cells that tile it."""
    views = torch.rand(2, 3, 96, 96)
    strength = encode(views).norm(dim=1)
    torch.testing.assert_close(encode(views.flip(-1)).norm(dim=1), strength.flip(-1), atol=1e-4, rtol=0)
    torch.testing.assert_close(encode(views.flip(-2)).norm(dim=1), strength.flip(-2), atol=1e-4, rtol=0)


def test_pixels_see_what_is_there():
    views = torch.zeros(1, 3, 96, 96)
    views[..., 30, 51] = 1
    strongest = baseline_features.pixel_patches(views)[0].unflatten(0, (3, 9, 9))[0, 4, 4].flatten().argmax()
    assert divmod(int(strongest), 48) == (15, 25)  # cells at 30.5 and 50.5


def test_gradients_tell_directions_apart():
    across = torch.linspace(0, 1, 96).expand(1, 3, 96, 96)
    descriptors = torch.cat(
        [baseline_features.gradient_histograms(view)[0, :, 12, 12][None] for view in (across, across.mT)]
    )
    assert descriptors.shape == (2, 36)
    assert float(descriptors[0] @ descriptors[1]) < 0.6
    torch.testing.assert_close(descriptors.norm(dim=1), torch.ones(2))


@pytest.mark.parametrize(
    ("spelling", "channels", "step"), [("pixels", 243, 2), ("gradients", 36, 4), ("random-vit", 192, 4)]
)
def test_features_without_weights(two_block_model, samples, landmarks, spelling, channels, step):
    extractor = build_extractor(spelling, two_block_model, None)
    faces = scemae.extract_features(extractor, [s.path for s in samples], boxes=[s.box for s in samples])
    assert faces.backbone_map.shape[1] == channels
    assert faces.grid.step == step
    assert faces.aligned
    assert scemae.match_landmarks(faces[0], landmarks[0], faces[1]).xy.shape == (1, 8, 2)


def test_random_vit_is_the_same_every_time_and_not_ours(model):
    first, second = build_extractor("random-vit", model, 1), build_extractor("random-vit", model, 1)
    assert first.id == second.id
    assert first.id != build_extractor("random-vit", model, 2).id
    views = torch.rand(1, 3, 104, 104)
    assert not torch.allclose(first(views), model(model.normalise(views)), atol=0.1)


def test_random_vit_has_the_numbers_that_training_starts_from(model, tmp_path):
    torch.manual_seed(0)
    backbone = Backbone(model.config.backbone, 96, 8)
    initialise_backbone(backbone)
    views = torch.rand(1, 3, 104, 104)
    wanted = backbone(model.normalise(views)[..., 4:-4, 4:-4])
    torch.testing.assert_close(build_extractor("random-vit", model, 1)(views), wanted)


def test_a_callable_of_the_users(two_block_model, monkeypatch):
    module = types.ModuleType("their_features")
    module.colours = lambda views: views[..., ::4, ::4]
    module.colours.view_size, module.colours.origin, module.colours.step = 48, 0.0, 4.0
    monkeypatch.setitem(sys.modules, "their_features", module)
    extractor = build_extractor("python:their_features:colours", two_block_model, None)
    assert extractor.channels == 3
    assert extractor.grid(1).step == 8
    assert extractor.grid(1).origin == 0.5  # the centre of pixel 0 of 48 is between pixels 0 and 1 of 96
    with pytest.raises(OptionError, match="python:MODULE:NAME"):
        build_extractor("python:their_features:nothing", two_block_model, None)
    with pytest.raises(OptionError, match="cannot be found"):
        build_extractor("python:no_such_module:f", two_block_model, None)


@pytest.mark.parametrize(
    ("encode", "words"),
    [
        (lambda views: views.mean((2, 3)), r"shape \(1, 3\) for 1 views; wanted \(1, C, h, w\)"),
        (lambda views: views[..., :48], r"h and w the same"),
        (lambda views: views.repeat(2, 1, 1, 1), r"shape \(2, 3, 96, 96\) for 1 views"),
        (lambda views: views.numpy(), "returned a ndarray; wanted a tensor"),
        (lambda views: views.to("meta"), "on meta for views on cpu; move it back"),
        (lambda views: views / 0, "nan or infinite"),
    ],
)
def test_maps_of_another_kind_are_refused(two_block_model, encode, words):
    with pytest.raises(IncompatibleFeaturesError, match=words):
        ExternalExtractor(Encoder(name="theirs", encode=encode), two_block_model)


def test_maps_that_change_their_shape_are_refused(two_block_model, samples):
    sizes = iter([1, 2])
    extractor = ExternalExtractor(
        Encoder(name="theirs", encode=lambda views: views[..., :: next(sizes), :]), two_block_model
    )
    with pytest.raises(IncompatibleFeaturesError, match=r"wanted \(1, 3, 96, 96\)"):
        scemae.extract_features(extractor, samples[0].path, boxes=samples[0].box, align=False)


@pytest.mark.parametrize(
    ("spelling", "expansion", "words"),
    [
        *(pytest.param(spelling, None, "wanted one of pixels") for spelling in ("resnet50", "timm:", "pixels:3")),
        pytest.param("random-vit:2", None, "wanted one of pixels"),
        pytest.param("pixels", 2, "--expansion", id="expansion"),
        pytest.param("timm:resnet18", None, "cannot be loaded", id="no network"),
    ],
)
def test_wrong_spellings_are_refused(two_block_model, spelling, expansion, words):
    with pytest.raises(OptionError, match=words):
        build_extractor(spelling, two_block_model, expansion)


def test_without_a_spelling_the_model_is_the_extractor(model):
    assert load_extractor("scemae-tiny", None, 2).id == model.id


def test_the_dtype_is_that_of_the_encoder_and_part_of_what_was_measured():
    for spelling in (None, "pixels"):
        half = load_extractor("scemae-tiny", spelling, None, "bfloat16")
        assert half.dtype == torch.bfloat16
        assert EvaluationSetup.of(half).settings()["dtype"] == "bfloat16"


@pytest.fixture
def untrained(monkeypatch):
    """timm's models with the numbers they start from: the tests have no network."""
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained, **rest: create(name, pretrained=False, **rest))


def test_models_of_timm(two_block_model, untrained):
    extractor = build_extractor("timm:resnet18:2,3", two_block_model, None)
    assert extractor.view_size == 224
    assert extractor.channels == 128 + 256
    assert extractor.grid(1).step == 96 / 28
    assert build_extractor("timm:resnet18", two_block_model, None).channels == 512


def test_hypercolumns_with_anybodys_checkpoint(two_block_model, untrained, tmp_path):
    network = timm.create_model("resnet18", pretrained=False)
    state = {f"module.encoder.{name}": tensor for name, tensor in network.state_dict().items()}
    torch.save({"model": state, "epoch": 3}, tmp_path / "checkpoint.pth")
    extractor = build_extractor(f"hypercolumn:resnet18:{tmp_path / 'checkpoint.pth'}", two_block_model, None)
    assert extractor.shape == (64 + 128 + 256 + 512, 48, 48)
    views = torch.rand(1, 3, 96, 96)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in baseline_features.CELEBA)
    network.eval()
    with torch.no_grad():
        first = network.layer1(network.maxpool(network.act1(network.bn1(network.conv1((views - mean) / std)))))
        expected = torch.nn.functional.interpolate(first, (48, 48), mode="bilinear")
    torch.testing.assert_close(extractor(views)[:, :64], expected)
    state.pop("module.encoder.layer4.1.bn2.weight")
    torch.save(state, tmp_path / "less.pth")
    with pytest.raises(IncompatibleWeightsError, match=r"lacks 1 of the .*layer4.1.bn2.weight"):
        build_extractor(f"hypercolumn:resnet18:{tmp_path / 'less.pth'}", two_block_model, None)
    (tmp_path / "no.pth").write_text("no checkpoint")
    with pytest.raises(IncompatibleWeightsError, match="cannot be read"):
        build_extractor(f"hypercolumn:resnet18:{tmp_path / 'no.pth'}", two_block_model, None)


def test_setups_describe_themselves(model, same):
    assert str(EvaluationSetup.of(model, use="projected")) == "scemae-tiny, projected, aligned, expansion 2"
    assert EvaluationSetup.of(model).descriptor_size("both") == 192 + model.config.projector_dim
    assert str(EvaluationSetup.of(same, align=False)) == "same, not aligned"
    with pytest.raises(OptionError, match="no projector"):
        EvaluationSetup.of(same, use="projected")
    with pytest.raises(OptionError, match="use is"):
        EvaluationSetup.of(model, use="raw")
    assert replace(EvaluationSetup.of(model), align=False).settings() != EvaluationSetup.of(model).settings()
