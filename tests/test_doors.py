"""Slips that can be made at many doors are refused at each in the same words: models, switches, links, masks."""

import logging
from functools import partial

import numpy as np
import pytest

import scemae
from scemae import weights
from scemae.cli.main import main
from scemae.errors import BoxInputError, ImageInputError, OptionError, OutputError, TableError
from scemae.images import iter_photos
from scemae.output import new_path, real_path
from scemae.tables import FaceKey, read_annotations, read_boxes, read_groups
from scemae.training.run_config import RunOptions
from scemae.weights.upload import push_files


@pytest.fixture(scope="module")
def faces(two_block_model, samples):
    paths, boxes = [s.path for s in samples], [s.box for s in samples]
    return scemae.extract_features(two_block_model, paths, boxes=boxes, align=False, expansion=1)


@pytest.fixture(scope="module")
def fitted(two_block_model, faces, landmarks):
    return scemae.fit_regressor(two_block_model, faces, landmarks, mirror="off")


@pytest.mark.parametrize("given", ["scemae-tiny", scemae.FaceFeatures, [1], None], ids=str)
def test_what_is_no_model_is_refused_at_every_door(given, faces, landmarks, fitted, samples, tmp_path):
    """Faults D: 'str' object has no attribute 'aligner', the beginner's slip."""
    fitted.save(tmp_path / "r.safetensors")
    changed = scemae.LandmarkRegressor(fitted.model).set_params(model=given)
    photo = samples[0].path
    doors = {
        "extract": lambda: scemae.extract_features(given, photo),
        "iterate": lambda: scemae.iter_features(given, photo),
        "fit features": lambda: scemae.fit_regressor(given, faces, landmarks),
        "fit photos": lambda: scemae.fit_regressor(given, photo, landmarks[:1]),
        "make": lambda: scemae.LandmarkRegressor(given),
        "changed": lambda: changed.fit(faces, landmarks),
        "export": lambda: scemae.export_graph(given, tmp_path / "e.pt2"),
    }
    if given is not None:  # which stands for the released model that the file names
        doors["load"] = lambda: scemae.LandmarkRegressor.load(tmp_path / "r.safetensors", given)
    for door in doors.values():
        with pytest.raises(OptionError, match=r"^model is .*scemae\.load_model"):
            door()
    assert [path.name for path in tmp_path.iterdir()] == ["r.safetensors"]


@pytest.mark.parametrize("value", ["no", 1, None])
def test_a_switch_is_true_or_false(value, fitted, two_block_model, tmp_path):
    """Faults A9: "no" counted as yes."""
    for name, door in (
        ("overwrite", partial(fitted.save, tmp_path / "r.safetensors")),
        ("overwrite", partial(scemae.export_graph, two_block_model, tmp_path / "e.pt2")),
        ("overwrite", partial(weights.download, "scemae-tiny", tmp_path)),
        ("private", partial(push_files, "me/m", {})),
        ("local_files_only", scemae.load_model),
        ("resume", RunOptions),
        ("overwrite", RunOptions),
    ):
        with pytest.raises(OptionError, match=f"{name} is {value!r}; it must be True or False"):
            door(**{name: value})
    assert not list(tmp_path.iterdir())


@pytest.fixture
def loop(tmp_path):
    """A path that cannot be followed: links that lead round in a loop."""
    (tmp_path / "other").symlink_to("loop")
    (tmp_path / "loop").symlink_to("other")
    return tmp_path / "loop"


def test_links_in_a_loop_are_refused(loop, tmp_path):
    """Path.resolve raises RuntimeError for them."""
    with pytest.raises(ImageInputError, match="loop cannot be opened: Too many levels"):
        list(iter_photos(loop))
    for read in (read_annotations, read_groups, read_boxes):
        with pytest.raises(TableError, match="loop cannot be read as CSV"):
            read(loop)
    for path in (loop, loop / "file.txt"):
        with pytest.raises(OutputError, match=r"is not a regular file|Too many levels"):
            new_path(path, overwrite=True)
    (tmp_path / "points.csv").write_text("path,name,x,y\nloop,nose,1,2\n")
    (tmp_path / "boxes.csv").write_text("path,x0,y0,x1,y1\nloop,0,0,9,9\n")
    found = [read_annotations(tmp_path / "points.csv"), read_boxes(tmp_path / "boxes.csv")]
    assert [list(faces) for faces in found] == [[FaceKey(loop)]] * 2
    assert real_path(loop) == loop


@pytest.mark.parametrize("with_boxes", [False, True])
def test_links_in_a_loop_are_left_out(capsys, loop, tmp_path, samples, with_boxes):
    (tmp_path / "boxes.csv").write_text(f"path,x0,y0,x1,y1\nloop,0,0,9,9\n{samples[1].path},80,60,180,160\n")
    options = ["--no-align", "--expansion", "1", "--out", str(tmp_path / "f")]
    options += ["--boxes", str(tmp_path / "boxes.csv")] if with_boxes else []
    with pytest.warns(UserWarning, match="loop cannot be opened: Too many levels"):
        assert main(["features", str(samples[1].path), str(loop), *options]) == 2
    assert capsys.readouterr().err == f"scemae: {loop} could not be used; the other images are done.\n"


def test_masked_pixels_are_refused():
    """Faults A5: the mask was dropped."""
    pixels = np.ma.array(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8))
    assert np.array_equal(np.asarray(next(iter_photos(pixels)).image), pixels.data)
    pixels[3, 4] = np.ma.masked
    for given in (pixels, [pixels], pixels[None], pixels / 255):
        with pytest.raises(ImageInputError, match=r"image 0 is a masked array.*filled"):
            list(iter_photos(given))


@pytest.mark.filterwarnings("error")
def test_masked_boxes_are_refused(two_block_model, samples):
    """Faults A5."""
    boxes = np.ma.array([samples[0].box], dtype=float)
    extract = partial(scemae.extract_features, two_block_model, align=False, expansion=1)
    assert len(extract([samples[0].path], boxes=boxes)) == 1
    boxes[0, 2] = np.ma.masked
    for photo, given in (([samples[0].path], boxes), ([samples[0].path], list(boxes)), (samples[0].path, boxes[0])):
        with pytest.raises(BoxInputError, match=r"grace_hopper\.jpg is .*nan.*wanted four numbers"):
            extract(photo, boxes=given)


def test_masked_landmarks_have_no_descriptor(faces, landmarks):
    """Faults A5."""
    masked, missing = np.ma.array(landmarks), landmarks.copy()
    masked[0, 2, 0], missing[0, 2] = np.ma.masked, np.nan
    for given in (masked, list(masked)):
        found = faces.descriptors(given).numpy()
        np.testing.assert_array_equal(found, faces.descriptors(missing).numpy())
    assert np.isnan(found[0, 2]).all()
    assert np.isfinite(found).all(axis=-1).sum() == landmarks[..., 0].size - 1


def test_what_a_server_says_is_escaped(capsys, monkeypatch):
    """Faults C8: the client logs what a header of the Hub says."""
    handler = logging.StreamHandler()
    monkeypatch.setattr(logging.getLogger("huggingface_hub"), "handlers", [handler])

    def list_models(pattern):
        logging.getLogger("huggingface_hub.utils").warning("%s", "pay here\x1b[31m\nor there")
        return []

    monkeypatch.setattr(scemae, "list_models", list_models, raising=False)
    assert main(["models"]) == 0
    assert capsys.readouterr().err == "pay here\\x1b[31m\\nor there\n"
