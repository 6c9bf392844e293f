"""Released models and model folders: loading by name, and what a damaged folder does."""

import json
import os
import random
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from damage import flip_bit
from safetensors.torch import load_file, save_file

import scemae
from scemae.errors import (
    IncompatibleWeightsError,
    ModelNotFoundError,
    OptionError,
    ScemaeError,
    WeightsIntegrityError,
)
from scemae.model.backbone import Backbone, sincos_positions
from scemae.model.config import BACKBONES, ModelConfig
from scemae.weights import zoo
from scemae.weights.card import model_card, read_card_hashes
from scemae.weights.model_folder import CARD, CONFIG, TEXT_LIMIT, WEIGHTS, file_sha256, read_config

TINY = zoo.packaged_folder("scemae-tiny")


@pytest.fixture
def folder(tmp_path):
    """The bundled model as one of the user's own, without a card that states the hashes of its files."""
    ignored = shutil.ignore_patterns("README.md")
    folder = Path(shutil.copytree(TINY, tmp_path / "copy", ignore=ignored))
    text = (folder / CONFIG).read_text()
    (folder / CONFIG).write_text(text.replace('"name": "scemae-tiny"', '"name": "mine"'))
    return folder


@pytest.mark.parametrize(("name", "params"), [("tiny", 5_403_840), ("small", 21_424_512), ("base", 85_316_352)])
def test_parameter_counts_are_the_papers(name, params):
    config = BACKBONES[f"deit-{name}"]
    with torch.device("meta"):
        backbone = Backbone(config)
    assert sum(parameter.numel() for parameter in backbone.parameters()) == params == config.params


def test_positions_are_sines_then_cosines_of_the_column_then_of_the_row():
    positions = sincos_positions(8, 3)[0]
    assert torch.equal(positions[0], torch.zeros(8))
    row, column = 2, 1
    expected = [np.sin(column), np.sin(column / 100), np.cos(column), np.cos(column / 100)]
    expected += [np.sin(row), np.sin(row / 100), np.cos(row), np.cos(row / 100)]
    assert torch.allclose(positions[1 + 3 * row + column], torch.tensor(expected, dtype=torch.float32))


def test_the_bundled_models_positions_are_these(model):
    assert (model.backbone.positions - sincos_positions(192, 12)).abs().max() < 1e-3


def test_encoding_in_two_parts_is_encoding_at_once(model):
    tokens = model.backbone.embed(torch.randn(2, 3, 96, 96))
    parts = model.backbone.run_blocks(model.backbone.run_blocks(model.backbone.prepend_cls(tokens), 0, 3), 3)
    assert torch.equal(parts, model.backbone.encode(tokens))
    assert parts.shape == (2, 145, 192)


def test_listing():
    (info,) = scemae.list_models("scemae-t*")
    assert info.bundled
    assert info.to_dict()["params"] == 5_403_840
    assert scemae.list_models("x*") == []
    assert scemae.model_info().name == "scemae-tiny"


@pytest.mark.parametrize("name", zoo.RELEASED)
def test_the_card_and_the_table_are_those_of_the_files(name):
    release, folder = zoo.RELEASED[name], zoo.packaged_folder(name)
    assert release.revision is None or re.fullmatch("[0-9a-f]{40}", release.revision)
    assert release.sha256.keys() == {WEIGHTS, CONFIG}
    assert read_card_hashes(folder) == release.sha256
    present = [path for path in (folder / WEIGHTS, folder / CONFIG) if release.bundled or path.name == CONFIG]
    assert all(release.sha256[path.name] == file_sha256(path) for path in present)
    assert not release.bundled or release.weights_bytes == (folder / WEIGHTS).stat().st_size
    config = read_config(folder)
    assert (folder / CONFIG).read_text() == config.to_json()
    assert (folder / CARD).read_text().startswith(model_card(config, release.sha256[WEIGHTS], release.weights_bytes))
    assert ModelConfig.from_json(config.to_json()) == config


def test_a_folder_loads_like_the_name(folder, model):
    for source in (folder, f"local-dir:{folder}"):
        assert scemae.load_model(source).id == ("mine", model.id.sha256)


def test_bfloat16_features_are_close(model, samples, faces):
    half = scemae.load_model(dtype="bfloat16")
    found = scemae.extract_features(half, samples[0].path, boxes=samples[0].box, align=False)
    full = scemae.extract_features(model, samples[0].path, boxes=samples[0].box, align=False)
    assert found.backbone_map.dtype == torch.float32
    relative = (found.backbone_map - full.backbone_map).norm() / full.backbone_map.norm()
    assert 0 < relative < 0.05


def test_unknown_names(folder):
    with pytest.raises(ModelNotFoundError, match="Did you mean 'scemae-tiny'"):
        scemae.load_model("scemae-tyni")
    with pytest.raises(ModelNotFoundError, match="say 'local-dir:"):
        scemae.load_model(str(folder))
    with pytest.raises(ModelNotFoundError, match="is not a folder"):
        scemae.load_model(folder / "deeper")
    (folder / "config.json").unlink()
    with pytest.raises(ModelNotFoundError, match=r"not a model folder: config\.json missing"):
        scemae.load_model(folder)
    with pytest.raises(OptionError, match="dtype is 'float8'"):
        scemae.load_model(dtype="float8")


@pytest.mark.parametrize("source", [None, 5, b"scemae-tiny", ["scemae-tiny"]])
def test_a_name_is_text_or_a_path(source):
    """Faults D: these were AttributeErrors and TypeErrors."""
    for call in (scemae.load_model, scemae.model_info):
        with pytest.raises(OptionError, match=f"source is a {type(source).__name__}; wanted the name of a model"):
            call(source)


def test_a_file_that_cannot_be_read_says_so(tmp_path):
    """Faults D: a PermissionError; a folder stands in for a file without rights, which root may read."""
    with pytest.raises(WeightsIntegrityError, match=r"cannot be read: .*directory"):
        file_sha256(tmp_path)


def test_a_device_that_is_not_there():
    with pytest.raises(OptionError, match="device is 'gpu', which cannot be used here"):
        scemae.load_model(device="gpu")


def test_loading_leaves_the_random_numbers_alone():
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    scemae.load_model()
    assert torch.equal(torch.rand(3), wanted)


def test_a_released_file_with_one_byte_changed_never_loads(folder, monkeypatch):
    monkeypatch.setattr(zoo, "packaged_folder", lambda name: folder)
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(WeightsIntegrityError, match="SHA-256 is"):
        scemae.load_model()


def test_a_truncated_file(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(WeightsIntegrityError, match="truncated"):
        scemae.load_model(folder)


def test_missing_extra_and_misshapen_tensors_are_named(folder):
    weights = folder / "model.safetensors"
    tensors = load_file(weights)
    del tensors["projector.bias"]
    tensors["decoder.weight"] = torch.zeros(1)
    tensors["backbone.vit.cls_token"] = torch.zeros(1, 1, 100)
    save_file(tensors, weights)
    with pytest.raises(IncompatibleWeightsError) as caught:
        scemae.load_model(folder)
    for part in (
        "missing: projector.bias",
        "unexpected: decoder.weight",
        "cls_token is (1, 1, 100), wanted (1, 1, 192)",
    ):
        assert part in str(caught.value)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"name": 1}', "null"])
def test_a_broken_configuration(folder, text):
    (folder / "config.json").write_text(text)
    with pytest.raises(IncompatibleWeightsError, match=r"config\.json does not describe"):
        scemae.load_model(folder)


CONFIGURATION = (TINY / CONFIG).read_text()


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        '{"a":' * 9000 + "1" + "}" * 9000,
        *(
            json.dumps(json.loads(CONFIGURATION) | change)
            for change in (
                {"name": ["x"]},
                {"mean": 0.5},
                {"mean": [0.5, 0.5]},
                {"std": [0.0, 1.0, 1.0]},
                {"std": [1e400, 1.0, 1.0]},
                {"input_size": "96"},
                {"input_size": 96.0},
                {"input_size": True},
                {"input_size": 2**20},
                {"patch_size": 0},
                {"projector_dim": 10**12},
                {"aligner": []},
                {"aligner": {}},
                {"aligner": json.loads(CONFIGURATION)["aligner"] | {"steps": [10**9]}},
                {"aligner": json.loads(CONFIGURATION)["aligner"] | {"points": [[1, 2, 3]]}},
                {"matching_use": "all"},
                {"architecture": []},
            )
        ),
    ],
    ids=lambda text: f"{len(text)}",
)
def test_configurations_of_wrong_types(folder, text):
    """Faults D: deep nesting and wrong types were RecursionError, TypeError and worse."""
    (folder / CONFIG).write_text(text)
    with pytest.raises(IncompatibleWeightsError, match=r"config\.json does not describe"):
        scemae.load_model(folder)


def test_no_configuration_takes_more_memory_than_the_weights(folder):
    """Faults C7: one that describes 800 GB is compared with the file first; an endless one is not read to its end."""
    fields = json.loads(CONFIGURATION) | {"input_size": 16_384, "patch_size": 8}
    (folder / CONFIG).write_text(json.dumps(fields))
    with pytest.raises(IncompatibleWeightsError, match=r"pos_embed is \(1, 145, 192\), wanted \(1, 4194305, 192\)"):
        scemae.load_model(folder)
    (folder / CONFIG).write_bytes(b" " * (TEXT_LIMIT + 1))
    with pytest.raises(IncompatibleWeightsError, match="longer than 1,048,576 bytes"):
        scemae.load_model(folder)


@pytest.mark.parametrize("name", [WEIGHTS, CONFIG])
def test_a_model_of_pipes(folder, name):
    """Faults C7: a FIFO without a writer was waited for."""
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(ModelNotFoundError, match=f"{name} missing"):
        scemae.load_model(folder)


@pytest.mark.parametrize("name", ["../x", "-m", "", "m.git", "x" * 97, "x" * 5000, "a\0b", "/", "."])
@pytest.mark.parametrize("kind", ["", "local-dir:"])
def test_names_that_nothing_can_have(kind, name):
    """Faults D."""
    with pytest.raises(ModelNotFoundError):
        scemae.load_model(kind + name)


@pytest.mark.parametrize("change", [torch.nan, torch.inf, "int32"])
def test_weights_that_are_no_numbers(folder, change):
    """Faults A10: a model without a card loaded with nan."""
    tensors = load_file(folder / WEIGHTS)
    if change == "int32":
        tensors["projector.bias"] = tensors["projector.bias"].to(torch.int32)
    else:
        tensors["projector.bias"][3] = change
    save_file(tensors, folder / WEIGHTS)
    message = "projector.bias is torch.int32" if change == "int32" else r"not finite\. projector.bias"
    with pytest.raises(IncompatibleWeightsError, match=message):
        scemae.load_model(folder)


def test_weights_without_a_card_are_known_by_their_checksum(tmp_path, two_block_folder):
    """Faults A10: what scemae writes carries one; released weights, which do not, are those of their configuration."""
    own = shutil.copytree(two_block_folder, tmp_path / "own", ignore=shutil.ignore_patterns(CARD))
    released = shutil.copytree(TINY, tmp_path / "released", ignore=shutil.ignore_patterns(CARD))
    for folder, message in ((own, "the SHA-256 that it states"), (released, "that of scemae-tiny; if")):
        scemae.load_model(folder)
        content = (folder / WEIGHTS).read_bytes()
        (folder / WEIGHTS).write_bytes(flip_bit(content, 8 * len(content) - 8))  # of the last number, the least
        with pytest.raises(WeightsIntegrityError, match=message):
            scemae.load_model(folder)


def test_a_configuration_of_an_older_folder(folder):
    text = (folder / "config.json").read_text()
    older = text.replace('"patch_size": 8', '"patch_size": 8,\n  "interpolation": "bilinear"')
    assert ModelConfig.from_json(older) == ModelConfig.from_json(text)
    with pytest.raises(IncompatibleWeightsError, match="extrapolation"):
        ModelConfig.from_json(older.replace("interpolation", "extrapolation"))


def test_a_model_without_projector_or_aligner_says_so(folder, samples):
    config = ModelConfig.from_json((folder / "config.json").read_text())
    bare = replace(config, projector_dim=None, aligner=None, finder=None, matching_use="backbone")
    (folder / "config.json").write_text(bare.to_json())
    tensors = load_file(folder / "model.safetensors")
    save_file({k: v for k, v in tensors.items() if k.startswith("backbone.")}, folder / "model.safetensors")
    model = scemae.load_model(folder)
    features = scemae.extract_features(model, samples[0].path, boxes=samples[0].box, expansion=1)
    assert not features.aligned
    with pytest.raises(OptionError, match="no projector"):
        features.map("both")
    with pytest.raises(OptionError, match="no aligner"):
        scemae.extract_features(model, samples[0].path, align=True)


def corrupt(path, rng):
    """Damage a file in one of many ways; returns what it was."""
    content = path.read_bytes()
    place = rng.randrange(len(content))
    length = min(rng.choice((1, 16, 4096)), len(content) - place)
    damaged = {
        "flip a bit": lambda: content[:place] + bytes([content[place] ^ 1 << rng.randrange(8)]) + content[place + 1 :],
        "truncate": lambda: content[:place],
        "lose some": lambda: content[:place] + content[place + length :],
        "zero some": lambda: content[:place] + bytes(length) + content[place + length :],
        "noise": lambda: content[:place] + rng.randbytes(length) + content[place + length :],
        "append": lambda: content + rng.randbytes(length),
        "another file": lambda: rng.randbytes(len(content)),
    }
    result = content
    while result == content:
        result = damaged[rng.choice(list(damaged))]()
    path.write_bytes(result)
    return content


@pytest.mark.slow
@pytest.mark.parametrize("place", ["folder", "mirror", "cache"])
def test_no_corruption_loads(hub, reach, place, monkeypatch, tmp_path):
    source = "scemae-other"
    folder = Path(shutil.copytree(TINY, tmp_path / source))
    revision = hub.add("me/other", {path.name: path.read_bytes() for path in TINY.iterdir()})
    release = replace(zoo.RELEASED["scemae-tiny"], repo="me/other", revision=revision, bundled=False)
    monkeypatch.setitem(zoo.RELEASED, source, release)
    if place == "mirror":
        monkeypatch.setenv("SCEMAE_WEIGHTS_DIR", str(tmp_path))
    elif place == "cache":
        folder = zoo.locate_model(source, **reach).folder
    else:
        source = f"local-dir:{folder}"
    rng = random.Random(0)
    for number in range(100):
        path = folder / (WEIGHTS, CONFIG)[number % 2]
        content = corrupt(path, rng)
        with pytest.raises(ScemaeError):
            scemae.load_model(source, **reach, local_files_only=True)
        path.write_bytes(content)
    scemae.load_model(source, **reach, local_files_only=True)
