"""What people type, of the faults that bad inputs found: each command ends with code 2 and one line that says why."""

import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scemae.cli.main import main
from scemae.weights.model_folder import CARD, CONFIG
from scemae.weights.zoo import packaged_folder

LONG = 300 * "n"
FAST = "--no-align --expansion 1"
# The words FACE, OTHER and HERE stand for the sample pictures and a folder of bad inputs.
IMAGES = {  # a picture that cannot be used -> what is said of it
    "loop.jpg": "Too many levels of symbolic links",
    "loop/a.jpg": "Too many levels of symbolic links",
    "folder": "is a folder",
    "pipe": "is a pipe, socket or device",
    "none.jpg": "there is no such file",
    f"{LONG}.jpg": "File name too long",
    "dark.png": "all would be black",
    "clear.png": "is transparent everywhere",
    "program.jpg": "is not an image of a kind that is read here",
    "cut.jpg": "may be truncated",
    "small.png": "too small to show a face",
}
TABLES = {  # a table of annotations -> what is said of it
    "loop": "Too many levels of symbolic links",
    "folder": "is a folder, pipe or device",
    "pipe": "is a folder, pipe or device",
    LONG: "File name too long",
    "decimals.csv": "Are decimals written with a comma",
    "semicolons.csv": "separated by ';'",
    "capitals.csv": "column names are in lower case",
    "twice.csv": "has the column 'x' twice",
    "bytes.csv": "cannot be read as CSV",
}
MODELS = {  # a model -> what is said of it
    "hf-hub:me/m.git": "does not name a repository",
    "hf-hub:me/m@../../x": "does not name a repository",
    f"hf-hub:me/{LONG}": "does not name a repository",
    "../x": "There is no model '../x'",
    LONG: "There is no model",
    "local-dir:HERE/loop": "is not a folder",
    f"local-dir:{LONG}": "is not a folder",
    "local-dir:HERE/deep": "does not describe a scemae model (RecursionError",
    "local-dir:HERE/types": "does not describe a scemae model (TypeError",
    "local-dir:HERE/altered": "is damaged or was altered",
}
CASES = {
    **{f"features HERE/{image} {FAST} --out HERE/new": said for image, said in IMAGES.items()},
    **{f"fit HERE/{table} --out HERE/new": said for table, said in TABLES.items()},
    **{f"match FACE OTHER --points HERE/{table}": said for table, said in TABLES.items()},
    **{f"info {model}": said for model, said in MODELS.items()},
    **{f"features FACE --model {model} --out HERE/new": said for model, said in MODELS.items()},
    f"verify {LONG}": "There is no model",
    f"export {LONG} HERE/new.pt2": "There is no model",
    f"push {LONG} me/m --yes": "is not a folder",
    f"data pack {LONG} HERE/new": "there is no such file or folder",
    f"data check mafl {LONG}": "is not a folder",
    "push FACE m --yes": "does not name a repository",
    "predict HERE/loop FACE": "there is no such file",
    "predict HERE/pipe FACE": "is a folder or device",
    "features FACE --boxes HERE/boxes.csv --out HERE/new": "is inverted or empty",
    "features FACE --boxes HERE/percent.csv --out HERE/new": "is smaller than 8 px",
    "features FACE --boxes HERE/score.csv --out HERE/new": "has 6 cells, its header 5",
    "features FACE --out HERE/folder": "is a folder",
    "features FACE --out HERE/loop --overwrite": "is not a regular file",
    "features FACE --out HERE/pipe --overwrite": "is not a regular file",
    f"features FACE --out HERE/{LONG}": "File name too long",
    "export scemae-tiny HERE/loop/new.pt2": "Too many levels of symbolic links",
    "download scemae-tiny --to HERE/loop": "cannot be made",
    "download local-dir:HERE/deep": "is on this machine already",
    "match FACE OTHER --point nose=nan,1": "Landmark nose of",
    "match FACE OTHER --point nose=1e9,1": "outside its",
    "match FACE OTHER --point 266,238 --prior inf": "prior is inf",
    "features FACE --batch-size 0 --out HERE/new": "batch_size is 0",
    "fit HERE/points.csv --head mlp --out HERE/new": "head is 'mlp'",
}


@pytest.fixture(scope="module")
def places(samples, tmp_path_factory):
    """What the words of `CASES` stand for."""
    here, face = tmp_path_factory.mktemp("bad"), samples[0].path
    for link in ("loop", "loop.jpg"):
        (here / link).symlink_to(link)
    (here / "folder").mkdir()
    os.mkfifo(here / "pipe")
    pixels = np.random.default_rng(0).integers(0, 256, (100, 100), dtype=np.uint8)
    Image.fromarray(pixels.astype(np.uint16)).save(here / "dark.png")
    Image.fromarray(np.dstack([pixels] * 3 + [0 * pixels])).save(here / "clear.png")
    Image.new("RGB", (5, 200)).save(here / "small.png")
    (here / "program.jpg").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n")
    (here / "cut.jpg").write_bytes(face.read_bytes()[:4000])

    (here / "points.csv").write_text(f"path,name,x,y\n{face},nose,266,238\n")
    (here / "decimals.csv").write_text(f"path,name,x,y\n{face},nose,70,5,61,25\n")
    (here / "semicolons.csv").write_text(f"path;name;x;y\n{face};nose;70;61\n")
    (here / "capitals.csv").write_text(f"Path,Name,X,Y\n{face},nose,70,61\n")
    (here / "twice.csv").write_text(f"path,name,x,y,x\n{face},nose,70,61,9\n")
    (here / "bytes.csv").write_bytes(bytes(range(256)))
    for name, box in (("boxes", "300,300,10,10"), ("percent", "0.1,0.1,0.9,0.9"), ("score", "0.9,10,10,300,300")):
        (here / f"{name}.csv").write_text(f"path,x0,y0,x1,y1\n{face},{box}\n")

    for name, text in (("deep", "[" * 100_000), ("types", json.dumps({"name": 3}))):
        shutil.copytree(packaged_folder("scemae-tiny"), here / name)
        (here / name / CARD).unlink()
        (here / name / CONFIG).write_text(text)
    shutil.copytree(packaged_folder("scemae-tiny"), here / "altered")
    (here / "altered" / CONFIG).write_text((here / "altered" / CONFIG).read_text() + " ")
    return {"FACE": str(face), "OTHER": str(samples[1].path), "HERE": str(here)}


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has neither pipes nor links of this kind")
@pytest.mark.filterwarnings("ignore:.*It is left out")
@pytest.mark.parametrize("command", CASES, ids=lambda command: command.replace(LONG, "LONG"))
def test_bad_input_is_one_line(capsys, places, command):
    """Faults A to D, as typed: no traceback, one line with the file or value, code 2, and nothing is written."""
    words = command.split()
    for place, path in places.items():
        words = [word.replace(place, path) for word in words]
    before = sorted(Path(places["HERE"]).iterdir())
    code = main(words)
    out, err = capsys.readouterr()
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("scemae: ")
    assert CASES[command] in err
    assert sorted(Path(places["HERE"]).iterdir()) == before
