"""download, verify and push, in Python and as commands, against a Hub on the loopback interface."""

import json
import os
import socket
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fakehub import untouched
from huggingface_hub import ModelCard

import scemae
from scemae import weights
from scemae.cli.main import main
from scemae.errors import (
    GatedWeightsError,
    IncompatibleWeightsError,
    ModelNotFoundError,
    OptionError,
    OutputError,
    WeightsIntegrityError,
    WeightsUnavailableError,
)
from scemae.model.sce_mae import SceMae
from scemae.weights import zoo
from scemae.weights.card import RUN_HEADING, copy_earlier_sections, find_card_hashes, model_card, regressor_card
from scemae.weights.hub import repository_url
from scemae.weights.model_folder import (
    CARD,
    CONFIG,
    REGRESSOR,
    WEIGHTS,
    file_sha256,
    read_config,
    read_file,
    save_model,
    write_file,
)
from scemae.weights.upload import collect_files

TINY = zoo.packaged_folder("scemae-tiny")
NAMES = (CONFIG, WEIGHTS, CARD)


@pytest.fixture
def access(hub):
    """How to push to the Hub."""
    return {"endpoint": hub.url, "token": hub.token}


@pytest.fixture
def own(tmp_path, tiny_backbone):
    """A model folder as training writes it: a small model of another name, with a picture in its card."""
    folder = tmp_path / "run" / "model"
    config = replace(read_config(TINY), name="mine", architecture=tiny_backbone, license="other", license_link="")
    config = replace(config, aligner=None, projector_dim=None)
    save_model(folder, SceMae(config).state_dict(), config, card="")
    weights = folder / WEIGHTS
    card = model_card(config, file_sha256(weights), weights.stat().st_size)
    (folder / CARD).write_text(card + "\n![loss over steps](loss.png)\n![none](none.png)\n")
    (folder / "loss.png").write_bytes(b"a picture")
    (folder / "decoder.safetensors").write_bytes(b"not for others")
    return folder


@pytest.fixture(scope="session")
def detector(model, faces, landmarks):
    return scemae.fit_regressor(model, faces, landmarks, names=[f"point {k}" for k in range(8)])


@pytest.fixture
def saved(detector, tmp_path):
    detector.save(tmp_path / "detector.safetensors")
    return tmp_path / "detector.safetensors"


def run(capsys, *arguments):
    code = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return code, out, err


# ---- push, then pull


@pytest.mark.slow
def test_a_model_comes_back_as_it_was_pushed(hub, access, reach, model):
    source = weights.push(TINY, "me/tiny", **access, tag="v1")
    assert source == f"hf-hub:me/tiny@{hub.repos['me/tiny'].tags['v1']}"
    pulled = zoo.locate_model("hf-hub:me/tiny@v1", **reach).folder
    assert source == f"hf-hub:me/tiny@{pulled.name}"
    assert all((pulled / name).read_bytes() == (TINY / name).read_bytes() for name in NAMES)
    assert scemae.load_model(source, **reach).id == model.id


def test_a_model_of_ones_own_is_pushed_with_its_pictures_and_a_card_that_says_how_to_load_it(hub, access, reach, own):
    weights.push(own, "me/mine", **access, private=True)
    repo = hub.repos["me/mine"]
    files = repo.commits[repo.branches["main"]]
    assert files.keys() == {".gitattributes", CONFIG, WEIGHTS, CARD, "loss.png"}
    assert 'load_model("hf-hub:me/mine")' in files[CARD].decode()
    assert repo.private
    with pytest.raises(GatedWeightsError):
        scemae.load_model("hf-hub:me/mine", **reach)
    assert scemae.load_model("hf-hub:me/mine", **reach, token=hub.token).config.name == "mine"


def test_a_regressor_comes_back_as_it_was_pushed(hub, access, reach, saved, detector, faces):
    weights.push(saved, "me/lips", **access)
    pulled = scemae.LandmarkRegressor.load("hf-hub:me/lips", **reach)
    assert np.array_equal(pulled.predict(faces).xy, detector.predict(faces).xy)
    with pytest.raises(IncompatibleWeightsError, match=f"has no {CONFIG} and {WEIGHTS}.* of {REGRESSOR}"):
        scemae.load_model("hf-hub:me/lips", **reach)
    repo = hub.repos["me/lips"]
    *sound, last = repo.commits[repo.branches["main"]][REGRESSOR]
    hub.add("me/lips", {REGRESSOR: bytes([*sound, last ^ 1])})
    with pytest.raises(WeightsIntegrityError):
        scemae.LandmarkRegressor.load("hf-hub:me/lips", **reach)


def test_the_same_again_is_the_same_commit_and_a_tag_is_not_moved(hub, access, saved):
    source = weights.push(saved, "me/lips", **access, tag="v1")
    with pytest.raises(OptionError, match="has a tag 'v1' already, and nothing was uploaded"):
        weights.push(saved, "me/lips", **access, tag="v1")
    assert source == f"hf-hub:me/lips@{hub.repos['me/lips'].branches['main']}"


def test_push_without_the_right_to(hub, saved):
    with pytest.raises(GatedWeightsError, match=r"may not write to me/lips on http.*hf auth login"):
        weights.push(saved, "me/lips", endpoint=hub.url, token="hf_wrong")
    with pytest.raises(GatedWeightsError, match="hf auth login"):
        weights.push(saved, "me/lips", endpoint=hub.url)
    assert hub.repos == {}


def test_a_public_repository_is_none_for_private_files(hub, access, saved):
    weights.push(saved, "me/lips", **access)
    commits = dict(hub.repos["me/lips"].commits)
    with pytest.raises(OptionError, match="me/lips is public, and nothing was uploaded"):
        weights.push(saved, "me/lips", **access, private=True)
    assert hub.repos["me/lips"].commits == commits


def test_push_where_nobody_answers(hub, access, saved):
    hub.close()
    with pytest.raises(OutputError, match=r"me/lips on http.* could not be written"):
        weights.push(saved, "me/lips", **access)


def test_push_to_a_server_that_says_nothing(hub, saved, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_ETAG_TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        endpoint = f"http://127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(OutputError, match=r"no answer within 0\.2 s"):
            weights.push(saved, "me/lips", endpoint=endpoint, token="hf_test")


@pytest.mark.parametrize(
    ("path", "repo", "error", "words"),
    [
        pytest.param("model", "mine", OptionError, "wanted ORG/REPO", id="not a repository"),
        pytest.param("none", "me/mine", ModelNotFoundError, "is not a folder", id="no folder"),
        pytest.param(f"model/{WEIGHTS}", "me/mine", IncompatibleWeightsError, "not a detector", id="other weights"),
        pytest.param(f"model/{CARD}", "me/mine", WeightsIntegrityError, "cannot be read as safetensors", id="text"),
    ],
)
def test_bad_input_is_not_pushed(access, own, path, repo, error, words):
    with pytest.raises(error, match=words):
        weights.push(own.parent / path, repo, **access)


def test_a_changed_folder_is_not_pushed(access, own):
    (own / CONFIG).write_text((own / CONFIG).read_text().replace("mine", "mnie"))
    with pytest.raises(WeightsIntegrityError, match="states that"):
        weights.push(own, "me/mine", **access)
    (own / CARD).unlink()
    with pytest.raises(IncompatibleWeightsError, match="does not state the SHA-256"):
        weights.push(own, "me/mine", **access)


@pytest.mark.parametrize("repo", ["me/m.git", "../x", "-m", "-m/x", "me/m--m", "me/" + 97 * "m"])
def test_names_that_no_repository_can_have(saved, access, hub, repo):
    """Faults D: they were errors of the client."""
    with pytest.raises(OptionError, match="does not name a repository; wanted ORG/REPO"):
        weights.push(saved, repo, **access)
    assert hub.requests == []


@pytest.mark.parametrize("tag", ["../x", "/x", "a b", "-t", "\x1b[31m"])
def test_names_that_no_tag_can_have(saved, access, hub, tag):
    """Faults C2."""
    with pytest.raises(OptionError, match="cannot be a tag"):
        weights.push(saved, "me/lips", **access, tag=tag)
    assert hub.requests == []


@pytest.mark.parametrize("name", ["loss.png", WEIGHTS, CONFIG, CARD], ids="C4 {}".format)
def test_links_that_leave_the_folder_are_not_pushed(hub, access, own, tmp_path, name):
    """Faults C4."""
    (own / name).rename(tmp_path / "private")
    (own / name).symlink_to(tmp_path / "private")
    refused = pytest.raises(
        OptionError, match=r"is a link to .*private, outside of the folder, and nothing was uploaded"
    )
    with untouched(tmp_path), refused:
        weights.push(own, "me/mine", **access)
    assert hub.requests == []


def test_links_inside_of_the_folder_are_pushed_and_pipes_are_not(own):
    (own / "loss.png").rename(own / "other.png")
    (own / "loss.png").symlink_to("other.png")
    os.mkfifo(own / "none.png")
    assert collect_files(own, "me/mine").keys() == {CARD, CONFIG, WEIGHTS, "loss.png"}


def test_links_in_a_card_of_the_model_before_are_not_followed(own, tmp_path):
    """Faults C4: the pictures of an earlier run are copied, and pushed later."""
    (tmp_path / "key").write_bytes(b"private")
    (own / "loss.png").unlink()
    (own / "loss.png").symlink_to(tmp_path / "key")
    (own / CARD).write_text((own / CARD).read_text() + f"\n{RUN_HEADING}before\n\n![loss](loss.png)\n")
    (tmp_path / "next").mkdir()
    assert "loss.png" in copy_earlier_sections(own, tmp_path / "next")
    assert (tmp_path / "next" / "loss.png").is_symlink()


def test_push_does_not_show_a_password_or_a_token(hub, saved):
    """Faults C5."""
    endpoint = hub.url.replace("//", "//me:secret@")
    with pytest.raises(GatedWeightsError, match="may not write") as caught:
        weights.push(saved, "me/lips", endpoint=endpoint, token=hub.token)
    assert "secret" not in str(caught.value) + str(caught.value.__cause__)
    with pytest.raises(OptionError, match="token has a space") as caught:
        weights.push(saved, "me/lips", endpoint=hub.url, token="secret\n")
    assert "secret" not in str(caught.value)
    assert repository_url("me/lips", endpoint) == f"{hub.url}/me/lips"


# ---- cards


def test_cards_are_those_of_the_hub(saved, own):
    for path in (own, TINY, saved):
        card = ModelCard(collect_files(path, "me/mine")[CARD].decode())
        data = card.data.to_dict()
        assert (data["library_name"], data["pipeline_tag"]) == ("scemae", "keypoint-detection")
        assert {"face", "landmarks"} <= set(data["tags"])
        assert "not for identification" in card.text
    assert ModelCard.load(TINY / CARD).data.license == "cc-by-4.0"


def test_a_card_states_the_hashes_of_its_files(own):
    assert find_card_hashes((own / CARD).read_text()) == {name: file_sha256(own / name) for name in (CONFIG, WEIGHTS)}
    assert find_card_hashes("| ../a.json | 1 bytes, SHA-256 `" + 64 * "0" + "` |") == {}


def test_a_damaged_row_of_a_card_does_not_switch_its_check_off(own):
    """Faults A9: any flipped bit, any lost line, any place where the card is cut."""
    card = (own / CARD).read_bytes()
    hashes = find_card_hashes(card.decode())
    first, last = card.index(b"| model.safetensors"), card.index(b"\n\n```python")
    damaged = [card[:k] + bytes([card[k] ^ 1 << bit]) + card[k + 1 :] for k in range(first, last) for bit in range(8)]
    damaged += [card[:k] for k in range(card.index(b"\n---"), last)]
    damaged += [card.replace(row + b"\n", b"") for row in card[first:last].split(b"\n")]
    noticed = 0
    for text in damaged:
        try:
            assert find_card_hashes(text.decode(errors="replace")).keys() == hashes.keys()
        except WeightsIntegrityError:
            noticed += 1
    assert noticed > len(damaged) / 2  # the others are in a hash or a size
    with pytest.raises(WeightsIntegrityError, match="wanted one each"):
        find_card_hashes(card.decode() + card[first:last].decode())


def test_a_damaged_card_of_a_folder_is_named(own):
    (own / CARD).write_text((own / CARD).read_text().replace("SHA-256 `", "SHA-256 "))
    for call in (scemae.load_model, lambda folder: weights.verify(str(folder))):
        with pytest.raises(WeightsIntegrityError, match=rf"{CARD} is damaged .* are for none; .* remove the card"):
            call(own)
    (own / CARD).write_bytes(bytes(2 << 20))
    with pytest.raises(WeightsIntegrityError, match="a card has at most 1,048,576"):
        scemae.load_model(own)


def test_the_card_of_a_regressor(detector, saved):
    card = collect_files(saved, "me/lips")[CARD].decode()
    assert f"{100 * detector.held_out_error_:.2f} % of the landmarks' diagonal" in card
    assert 'LandmarkRegressor.load("hf-hub:me/lips")' in card
    assert "point 7" in card
    header = {"kind": {"model": ["m", "0"], "expansion": 2}, "head": "cascade", "use": "both", "faces": 1}
    header |= {"names": None, "landmarks": 3, "asked": {"normalizer": [0, 1]}}
    card = regressor_card(header, float("nan"), "me/x", "0" * 64, 1)
    assert "fitted on 1 annotated face." in card
    assert "| error on held-out faces | not known |" in card
    assert "of the distance of landmarks 0, 1" in regressor_card(header, 0.05, "me/x", "0" * 64, 1)
    card = regressor_card(header | {"names": ["a\nb", "c", "d"]}, 0.05, "me/x", "0" * 64, 1)
    assert "| landmarks | a\\nb, c, d |" in card  # faults C8: the table ended there
    header |= {"landmarks": 1, "asked": {"normalizer": None}}
    assert "of the side of the square that the model saw" in regressor_card(header, 0.05, "me/x", "0" * 64, 1)


@pytest.mark.parametrize("damage", [{"asked": None}, {"names": 5}, {"kind": {}}])
def test_the_card_of_a_damaged_regressor(saved, tmp_path, damage):
    """Faults D: of a file without a checksum, as 0.1.0 wrote it, these were KeyErrors and TypeErrors."""
    tensors, metadata = read_file(saved)
    [(key, text)] = metadata.items()
    header = json.loads(text) | damage
    del header["sha256"]
    write_file(tmp_path / "older", tensors, {key: json.dumps(header)})
    with pytest.raises(IncompatibleWeightsError, match="older is damaged: "):
        collect_files(tmp_path / "older", "me/lips")


def test_earlier_sections_of_a_card_that_is_not_utf8(own, tmp_path):
    """Faults D: a UnicodeDecodeError."""
    (own / CARD).write_bytes(b"caf\xe9\n" + RUN_HEADING.encode() + b"once\n")
    assert copy_earlier_sections(own, tmp_path) == f"\n{RUN_HEADING}once\n"


# ---- download and verify


@pytest.mark.slow
def test_download_for_a_machine_without_network(hub, access, reach, tmp_path, monkeypatch):
    weights.push(TINY, "me/other", **access)
    monkeypatch.setitem(zoo.RELEASED, "other", replace(zoo.RELEASED["scemae-tiny"], bundled=False))
    folder, _ = weights.download("hf-hub:me/other", tmp_path / "usb", **reach)
    assert folder == tmp_path / "usb" / "other"
    assert sorted(path.name for path in folder.iterdir()) == sorted(NAMES)
    monkeypatch.setenv("SCEMAE_WEIGHTS_DIR", str(tmp_path / "usb"))
    assert scemae.load_model("other").id == scemae.load_model(f"local-dir:{folder}").id
    assert weights.verify(str(tmp_path / "usb"))[0].folder == folder
    (folder / WEIGHTS).write_bytes(b"")
    with pytest.raises(OutputError, match="exists already"):
        weights.download("hf-hub:me/other", tmp_path / "usb", **reach)
    weights.download("hf-hub:me/other", tmp_path / "usb", **reach, overwrite=True)
    weights.download("hf-hub:me/other", tmp_path / "usb", **reach)


def test_download_of_a_bundled_model_and_of_a_regressor(access, reach, saved, tmp_path, faces):
    folder, sha256 = weights.download("scemae-tiny", tmp_path / "usb")
    assert (folder, set(sha256)) == (tmp_path / "usb" / "scemae-tiny", {WEIGHTS, CONFIG})
    assert (folder / CARD).read_bytes() == (TINY / CARD).read_bytes()
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be made"):
        weights.download("scemae-tiny", tmp_path / "file")
    weights.push(saved, "me/lips", **access)
    folder, sha256 = weights.download("hf-hub:me/lips@main", tmp_path / "usb", **reach)
    assert (folder, set(sha256)) == (tmp_path / "usb" / "lips", {REGRESSOR})
    assert scemae.LandmarkRegressor.load(folder / REGRESSOR).predict(faces).xy.shape == (2, 8, 2)
    assert len(weights.verify(str(tmp_path / "usb"))) == 2


def test_verify(hub, access, reach, own, tmp_path, monkeypatch):
    cache = {"cache_dir": reach["cache_dir"]}
    weights.push(own, "me/mine", **access)
    with pytest.raises(WeightsUnavailableError, match="offline"):
        weights.verify("hf-hub:me/mine", **cache)
    weights.download("hf-hub:me/mine", **reach)
    hub.requests.clear()
    assert set(weights.verify("hf-hub:me/mine", **cache)[0].sha256) == {CONFIG, WEIGHTS}
    assert weights.verify(str(own)) == weights.verify(f"local-dir:{own}")
    assert weights.verify("scemae-tiny", **cache) == [zoo.locate_model("scemae-tiny")]
    monkeypatch.setitem(zoo.RELEASED, "other", replace(zoo.RELEASED["scemae-tiny"], bundled=False))
    with pytest.raises(WeightsUnavailableError, match="not published yet"):
        weights.verify("other", **cache)
    assert hub.requests == []
    with pytest.raises(ModelNotFoundError, match="Did you mean"):
        weights.verify("scemae-tyni")
    with pytest.raises(ModelNotFoundError, match="has no model or detector"):
        weights.verify(str(tmp_path))
    (own / WEIGHTS).write_bytes((own / WEIGHTS).read_bytes()[:-1])
    with pytest.raises(WeightsIntegrityError, match="expected"):
        weights.verify(str(own))
    (own / WEIGHTS).unlink()
    with pytest.raises(ModelNotFoundError, match="missing"):
        weights.verify(str(own))


# ---- commands


def test_commands(capsys, hub, reach, saved, tmp_path, monkeypatch, samples):
    monkeypatch.setenv("HF_TOKEN", hub.token)
    reached = ("--endpoint", hub.url)
    code, out, err = run(capsys, "push", saved, "me/lips", *reached, "--tag", "v1", "--json")
    assert (code, out, hub.repos) == (2, "", {})
    assert "pass --yes" in json.loads(err.splitlines()[-1])["message"].lower()
    code, out, err = run(capsys, "push", saved, "me/lips", *reached, "--tag", "v1", "--yes", "--json")
    assert code == 0
    for shown in ("For me/lips, tagged v1", REGRESSOR, file_sha256(saved), "pipeline_tag: keypoint-detection"):
        assert shown in err
    assert json.loads(out)["url"] == f"{hub.url}/me/lips"
    source = json.loads(out)["source"]
    assert source == f"hf-hub:me/lips@{hub.repos['me/lips'].tags['v1']}"
    cached = ("--cache-dir", reach["cache_dir"])
    code, out, _ = run(capsys, "download", source, *reached, *cached, "--to", tmp_path / "usb", "--json")
    folder = Path(json.loads(out)["folder"])
    assert (code, folder) == (0, tmp_path / "usb" / "lips")
    assert run(capsys, "verify", source, *cached)[0] == 0
    assert run(capsys, "verify", folder)[1] == f"OK: {REGRESSOR} in {folder}\n"
    assert run(capsys, "verify")[1] == f"OK: {WEIGHTS}, {CONFIG} in {TINY}\n"
    (row,) = json.loads(run(capsys, "verify", "--json")[1])
    assert row["sha256"].keys() == {WEIGHTS, CONFIG}
    assert run(capsys, "predict", folder / REGRESSOR, samples[0].path)[0] == 0
    code, _, err = run(capsys, "download", "hf-hub:me/none", *reached, *cached)
    assert (code, err.count("\n")) == (2, 1)


@pytest.mark.parametrize(("answer", "uploaded"), [("y\n", True), ("n\n", False), ("\n", False)])
def test_push_asks(capsys, hub, saved, monkeypatch, answer, uploaded):
    monkeypatch.setenv("HF_TOKEN", hub.token)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("sys.stdin.readline", lambda: answer, raising=False)
    code, _, err = run(capsys, "push", saved, "me/lips", "--endpoint", hub.url)
    assert "Upload this? [y/N]" in err
    assert (code == 0, "me/lips" in hub.repos) == (uploaded, uploaded)
