"""The file of a detector is whole or refused: its checksum, and its tensors beside its header (faults A10, C3)."""

import json
import os
import random
import warnings

import numpy as np
import pytest
import torch
from damage import flip_bit, rewrite_header
from fakehub import untouched

import scemae
from scemae.detector.cascade import CascadeHead
from scemae.detector.heatmap import HeatmapHead
from scemae.errors import (
    BoxInputError,
    IncompatibleWeightsError,
    ModelNotFoundError,
    ScemaeError,
    WeightsIntegrityError,
)
from scemae.images import ImageBatch
from scemae.weights.model_folder import HEADER_LIMIT, REGRESSOR_FORMAT, TENSOR_LIMIT, read_file, write_file

load = scemae.LandmarkRegressor.load


def fit(model, samples, head):
    paths, boxes, landmarks = zip(*((s.path, s.box, s.landmarks) for s in samples), strict=True)
    options = {"expansion": 1, "align": False, "mirror": "off", "head": head}
    return scemae.fit_regressor(model, paths, landmarks, boxes=boxes, **options)


@pytest.fixture(scope="module")
def fitted(two_block_model, samples):
    return fit(two_block_model, samples, CascadeHead(sigmas=(4.0, 2.0), samples=2))


@pytest.fixture
def path(tmp_path, fitted):
    fitted.save(tmp_path / "detector.safetensors")
    return tmp_path / "detector.safetensors"


def keep(header):
    """No change."""


@pytest.mark.slow
def test_every_bit_counts(path, two_block_model):
    """Faults A10: 300 of 300 single bit flips anywhere, and each of the header's bits in every eighth byte."""
    content, rng = path.read_bytes(), random.Random(0)
    start = 8 + int.from_bytes(content[:8], "little")
    flips = [rng.randrange(8 * len(content)) for _ in range(300)] + [8 * n + n // 8 % 8 for n in range(start)]
    for flip in flips:
        path.write_bytes(flip_bit(content, flip))
        with pytest.raises(ScemaeError):
            load(path, two_block_model)
    path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(path, two_block_model)


def test_the_checksum_is_in_the_header(path, two_block_model):
    tensors, metadata = read_file(path)
    assert re_seal(path, tensors, metadata) == metadata
    tensors["mean"][0] += 1
    write_file(path, tensors, metadata, overwrite=True)
    with pytest.raises(WeightsIntegrityError, match="does not have the SHA-256 that it states"):
        load(path, two_block_model)


def re_seal(path, tensors, metadata):
    rewrite_header(path, keep)
    return read_file(path)[1]


@pytest.mark.parametrize("sealed", [True, False], ids=["sealed", "as 0.1.0"])
@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("head.weights", lambda t: t[:1], r"head.weights is \(1, "),
        ("head.weights", lambda t: t.double(), "head.weights is torch.float64, wanted torch.float32"),
        ("head.mean_shape", lambda t: t[:3], r"head.mean_shape is \(3, 2\), wanted \(8, 2\)"),
        ("head.components", lambda t: t[:, :1], r"head.components is .*, wanted .*224\)"),
        ("head.components", lambda t: t[0, 0], "damaged"),
        ("head.ridge", lambda t: t[None], r"head.ridge is \(1,\), wanted \(\)"),
        ("mean", lambda t: t[:1], r"mean is \(1,\), wanted \(224,\)"),
        ("std", lambda t: t * 0, "a deviation not above 0"),
        ("mean", lambda t: t * torch.nan, "not finite. mean"),
        ("head.weights", lambda t: t / 0, "not finite. head.weights"),
        ("held_out_errors", lambda t: t[:, :2], r"held_out_errors is \(2, 2\), wanted \(2, 8\)"),
        ("held_out_errors", lambda t: t / 0, "held-out error is infinite"),
        ("head.more", None, "unexpected: head.more"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*carries no checksum")
def test_tensors_that_the_header_does_not_describe(path, two_block_model, sealed, name, change, message):
    """Faults A10: shapes, types, nan; "a cascade short of a stage loads"."""
    changed = torch.zeros(1) if change is None else change(read_file(path)[0][name])
    rewrite_header(path, keep, {name: changed}, sealed)
    with pytest.raises(IncompatibleWeightsError, match=message):
        load(path, two_block_model)


@pytest.mark.parametrize(
    "change",
    [
        {"names": ["a"] * 8},
        {"names": list("abc")},
        {"names": 8},
        {"names": "abcdefgh" * 9},
        {"landmarks": "8"},
        {"faces": 3},
        {"use": "all"},
        {"use": "backbone"},
        {"mirrored": "no"},
        {"boxed": "no"},
        {"kind": []},
        {"kind": {"model": None}},
        {"params": {"sigmas": [1.0]}},
        {"params": {"sigmas": 3}},
        {"params": {"colour": 1}},
        {"params": []},
        {"head": ["cascade"]},
        {"asked": {}},
        {"asked": None},
        {"head": None},
    ],
    ids=str,
)
def test_headers_of_wrong_values(path, two_block_model, change):
    """Faults A10 and D: whatever the header says, a ScemaeError says that it is not right."""
    rewrite_header(path, lambda header: header.update(change))
    with pytest.raises(IncompatibleWeightsError):
        load(path, two_block_model)


def test_a_file_of_version_0_1_0_loads_with_a_warning(path, fitted, two_block_model, samples):
    """Faults A10: its key is the same and its header has no checksum."""
    rewrite_header(path, keep, sealed=False)
    with pytest.warns(UserWarning, match="carries no checksum") as warned:
        loaded = load(path, two_block_model)
    assert warned[0].filename == __file__
    picture, box = samples[0].path, samples[0].box
    assert np.array_equal(loaded.predict(picture, boxes=box).xy, fitted.predict(picture, boxes=box).xy)


def test_a_loaded_detector_knows_whether_its_fit_had_boxes(path, two_block_model, samples):
    """Faults A3: it predicted and scored the middles of photos without a word; older files do not say."""
    photo, landmarks = samples[0].path, samples[0].landmarks
    loaded = load(path, two_block_model)
    with pytest.warns(UserWarning, match="fitted with boxes=.*middle of each image") as warned:
        found = loaded.predict(photo)
    assert warned[0].filename == __file__
    with pytest.raises(BoxInputError, match="score: The regressor was fitted with boxes="):
        loaded.score(photo, landmarks)
    rewrite_header(path, lambda header: header.pop("boxed"))
    older = load(path, two_block_model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded.predict(ImageBatch(photo, samples[0].box))  # as the command line has them
        assert np.array_equal(older.predict(photo).xy, found.xy)
        older.score(photo, landmarks)


@pytest.mark.slow
def test_the_heatmap_head_is_checked_too(path, two_block_model, samples):
    fit(two_block_model, samples, HeatmapHead(heatmaps=2, steps=1, block=True)).save(path, overwrite=True)
    load(path, two_block_model)
    rewrite_header(path, lambda header: header["params"].update(heatmaps=3))
    with pytest.raises(IncompatibleWeightsError, match=r"do not match its header.*head\.activations.weight is"):
        load(path, two_block_model)


@pytest.mark.parametrize(
    "name", ["hf-hub:me/m", "local-dir:{}", "{}", "hf-hub:me/m@../../x", "scemae-small"], ids="C3 {}".format
)
def test_a_file_does_not_choose_what_is_loaded(path, hub, reach, two_block_folder, tmp_path, name):
    """Faults C3: what is not a released model is neither opened nor asked for."""
    rewrite_header(path, lambda header: header["kind"]["model"].__setitem__(0, name.format(two_block_folder)))
    with untouched(tmp_path), pytest.raises(ModelNotFoundError, match=r"a model of your own.*pass model="):
        load(path, **reach, token="secret")
    assert hub.requests == []


def test_files_without_end_and_headers_without_measure(tmp_path, path):
    """Faults C7: a FIFO without a writer, a device, a header of very many tensors."""
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "fifo")
        with pytest.raises(WeightsIntegrityError, match="is a folder or device"):
            load(tmp_path / "fifo")
    with pytest.raises(WeightsIntegrityError, match="is a folder or device"):
        load(tmp_path)
    write_file(path, {str(n): torch.zeros(0) for n in range(TENSOR_LIMIT + 1)}, {}, overwrite=True)
    with pytest.raises(WeightsIntegrityError, match="has 10,001 tensors; wanted at most 10,000"):
        load(path)
    header = json.dumps({"__metadata__": {REGRESSOR_FORMAT: " " * HEADER_LIMIT}}).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(WeightsIntegrityError, match="has a header of 8,388,"):
        load(path)
    path.write_bytes(b"\xff" * 8)
    with pytest.raises(WeightsIntegrityError, match="may be truncated"):
        load(path)
