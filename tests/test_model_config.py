"""config.json of models with the convolutional aligner and the face finder, and with that of 0.1.0."""

import dataclasses
import json

import pytest
import torch
from small_models import ALIGNER, FINDER, TOKEN_ALIGNER, load_small_model, small_config

from scemae.errors import IncompatibleWeightsError, OptionError
from scemae.model.aligner import FaceAligner
from scemae.model.config import MOST_POINTS, ModelConfig
from scemae.model.face_finder import FaceFinder
from scemae.model.sce_mae import SceMae
from scemae.model.token_aligner import TokenAligner
from scemae.weights.model_folder import CONFIG
from scemae.weights.zoo import load_model

pytestmark = pytest.mark.usefixtures("tiny_backbone")


@pytest.mark.parametrize("aligner", [ALIGNER, TOKEN_ALIGNER, None], ids=["convolutions", "tokens", "none"])
@pytest.mark.parametrize("finder", [FINDER, None], ids=["finder", "no finder"])
def test_a_folder_is_read_as_it_was_written(tmp_path, aligner, finder):
    model = load_small_model(tmp_path, aligner=aligner, finder=finder)
    assert model.config == small_config(aligner=aligner, finder=finder)
    assert type(model.aligner) is {ALIGNER: FaceAligner, TOKEN_ALIGNER: TokenAligner, None: type(None)}[aligner]
    assert isinstance(model.finder, FaceFinder) == (finder is not None)
    again = load_model(f"local-dir:{tmp_path}").state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in model.state_dict().items())
    assert any(name.startswith("finder.") for name in again) == (finder is not None)
    assert (tmp_path / CONFIG).read_text() == model.config.to_json()


def test_what_the_model_does_is_what_its_networks_do(tmp_path):
    model = load_small_model(tmp_path, finder=FINDER)
    views = torch.rand(2, 3, 32, 32)
    for found, wanted in zip(model.locate_face(views, 0), model.aligner(views), strict=True):
        assert torch.equal(found, wanted)
    assert not any(isinstance(layer, torch.nn.BatchNorm2d) for layer in model.modules())
    bare = SceMae(small_config())
    with pytest.raises(OptionError, match="Model 'small' has no aligner"):
        bare.locate_face(views, 0)


def test_an_encoder_in_bfloat16_has_its_aligner_in_float32(tmp_path):
    load_small_model(tmp_path, finder=FINDER)
    model = load_model(f"local-dir:{tmp_path}", dtype="bfloat16")
    assert model.dtype == torch.bfloat16
    assert {p.dtype for part in (model.aligner, model.finder) for p in part.parameters()} == {torch.float32}


def refuse(part, change, message):
    fields = json.loads(small_config(aligner=ALIGNER, finder=FINDER).to_json())
    if part == "tokens":
        fields["aligner"], part = dataclasses.asdict(TOKEN_ALIGNER), "aligner"
    fields[part] |= change
    with pytest.raises(IncompatibleWeightsError, match=message):
        ModelConfig.from_json(json.dumps(fields))


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("aligner", {"view_size": 7}),
        ("aligner", {"view_size": 2048}),
        ("aligner", {"points": []}),
        ("aligner", {"points": [[0.0, 0.0]] * (MOST_POINTS + 1)}),
        ("aligner", {"scale": 0.0}),
        ("aligner", {"widths": []}),
        ("aligner", {"widths": [4] * 9}),
        ("aligner", {"widths": [4, 0]}),
        ("aligner", {"widths": [4, 2**15]}),
        ("aligner", {"squeezed": 0}),
        ("aligner", {"hidden": 2**15}),
        ("aligner", {"steps": 0}),
        ("aligner", {"steps": 65}),
        ("aligner", {"similarity_steps": -1}),
        ("aligner", {"settled": -0.1}),
        ("aligner", {"slope": 0.0}),
        ("finder", {"widths": [4, 0, 4]}),
        ("finder", {"sides": [0.0, 40.0]}),
        ("finder", {"sides": [40.0, 16.0]}),
        ("finder", {"sides": [16.0, 1e6]}),
        ("tokens", {"steps": []}),
        ("tokens", {"steps": [64]}),
        ("tokens", {"residual": 0.0}),
        ("tokens", {"projection_dim": 0}),
        ("tokens", {"points": [[0.0, 0.0]] * (MOST_POINTS + 1)}),
    ],
    ids=lambda value: str(value)[:40],
)
def test_values_out_of_range_are_refused(part, change):
    """Also faults C7: the aligner's matrices grow with the square of its points, whatever the weights are."""
    refuse(part, change, r"config\.json does not describe.*: No (model can be aligned|face can be found) by")


@pytest.mark.parametrize(
    ("part", "change"),
    [
        ("aligner", {"depth": 3}),
        ("aligner", {"residual": 0.1}),  # a field of the other kind
        ("aligner", {"widths": [4.5, 8]}),
        ("aligner", {"widths": 4}),
        ("aligner", {"view_size": 32.0}),
        ("aligner", {"steps": [0, 1]}),
        ("aligner", {"threshold": None}),
        ("aligner", {"threshold": float("nan")}),
        ("aligner", {"points": [[0.0]]}),
        ("finder", {"widths": [4, 4]}),
        ("finder", {"sides": "16, 40"}),
        ("finder", {"stride": 8}),
        ("tokens", {"view_size": 32}),
        ("tokens", {"steps": 2}),
    ],
    ids=str,
)
def test_unknown_fields_and_wrong_types_are_refused(part, change):
    refuse(part, change, r"config\.json does not describe a scemae model")


def test_missing_fields_are_refused():
    fields = json.loads(small_config(aligner=ALIGNER, finder=FINDER).to_json())
    for part in ("aligner", "finder"):
        for name in fields[part].keys() - {"scale"}:
            fewer = {key: value for key, value in fields[part].items() if key != name}
            with pytest.raises(IncompatibleWeightsError, match=r"config\.json does not describe"):
                ModelConfig.from_json(json.dumps(fields | {part: fewer}))


@pytest.mark.parametrize(
    ("part", "change", "named"),
    [
        ("aligner", {"hidden": 2**14, "squeezed": 2**14, "widths": [2**14], "view_size": 1024}, r"aligner\.layers"),
        ("finder", {"widths": [2**14] * 3}, r"finder\.layers"),
    ],
)
def test_no_configuration_takes_more_memory_than_the_weights(tmp_path, part, change, named):
    """Faults C7: shapes are compared with the file before anything is made of them."""
    load_small_model(tmp_path, finder=FINDER)
    fields = json.loads((tmp_path / CONFIG).read_text())
    fields[part] |= change
    (tmp_path / CONFIG).write_text(json.dumps(fields))
    with pytest.raises(IncompatibleWeightsError, match=named):
        load_model(f"local-dir:{tmp_path}")
