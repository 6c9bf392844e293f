import csv
import json
import subprocess
import sys

import pytest
from PIL import Image

from scemae.cli.main import main
from scemae.errors import TableError, WeightsIntegrityError
from scemae.tables import read_boxes


@pytest.fixture
def tables(tmp_path, samples):
    """Annotation and box files of the two sample faces."""
    with (tmp_path / "points.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "name", "x", "y"])
        writer.writerows([s.path, name, x, y] for s in samples for name, (x, y) in s.landmarks.items())
    with (tmp_path / "boxes.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "x0", "y0", "x1", "y1"])
        writer.writerows([s.path, *s.box] for s in samples)
    return tmp_path


def run(capsys, *arguments):
    code = main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_models_and_info(capsys):
    code, out, _ = run(capsys, "models", "--json")
    assert code == 0
    assert json.loads(out)[0]["name"] == "scemae-tiny"
    assert "CC-BY-4.0" in run(capsys, "models")[1]
    assert "FairFace" in run(capsys, "info")[1]
    assert json.loads(run(capsys, "info", "scemae-tiny", "--json")[1])["params"] == 5_403_840


def test_models_answers_without_torch():
    code = "import sys; from scemae.cli.main import main; main(['models']); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_demo_writes_its_picture(capsys, tmp_path):
    out = tmp_path / "demo.png"
    code, text, _ = run(capsys, "demo", "--out", out)
    assert code == 0
    assert "left_eye" in text
    assert Image.open(out).width > 800
    code, _, err = run(capsys, "demo", "--out", out)
    assert code == 2
    assert "exists already" in err
    assert run(capsys, "demo", "--out", out, "--overwrite")[0] == 0


def test_fit_then_predict(capsys, tables, samples):
    regressor, boxes = tables / "r.safetensors", tables / "boxes.csv"
    code, out, _ = run(capsys, "fit", tables / "points.csv", "--boxes", boxes, "--out", regressor, "--json")
    assert code == 0
    assert json.loads(out)["faces"] == 2
    assert json.loads(out)["held_out_error"] > 0
    code, out, _ = run(capsys, "predict", regressor, samples[1].path, "--boxes", boxes, "--json")
    place = json.loads(out)["faces"][0]["landmarks"]["nose_tip"]
    assert abs(place["x"] - samples[1].landmarks["nose_tip"][0]) < 3


def test_match_and_features(capsys, tables, samples):
    reference, target = (s.path for s in samples)
    boxes, picture = tables / "boxes.csv", tables / "m.png"
    code, out, _ = run(
        capsys,
        "match",
        reference,
        target,
        "--boxes",
        boxes,
        "--points",
        tables / "points.csv",
        "--out",
        picture,
        "--json",
    )
    assert code == 0
    assert len(json.loads(out)["faces"][0]["landmarks"]) == 8
    assert picture.exists()
    code, out, _ = run(capsys, "match", reference, target, "--boxes", boxes, "--point", "tip=266,238", "--prior", "0")
    assert "tip:" in out
    features = tables / "f.safetensors"
    code, out, _ = run(capsys, "features", target, "--boxes", boxes, "--out", features, "--expansion", "1", "--json")
    assert json.loads(out)["map"] == [1, 192, 12, 12]
    assert features.exists()


def test_errors_are_one_clear_line(capsys, tables, samples, tmp_path):
    face = samples[0].path
    cases = [
        (("info", "scemae-tyni"), "Did you mean 'scemae-tiny'"),
        (("features", face), "pass --out"),
        (("features", tmp_path / "no.jpg", "--out", tmp_path / "f"), "no such file"),
        (("features", face, "--out", tmp_path / "a" / "f"), "no folder"),
        (("match", face, face), "pass --points"),
        (("match", face, face, "--point", "nose:3,4"), "wanted NAME=X,Y"),
        (("match", face, tmp_path, "--point", "1,2", "--boxes", tables / "boxes.csv"), "has no box for"),
        (("match", face, face, "--point", "266,238", "--out", tmp_path / "m.txt"), "picture format"),
        (("fit", tables / "boxes.csv", "--out", tmp_path / "r"), "lacks the column 'name'"),
        (("fit", tmp_path / "none.csv", "--out", tmp_path / "r"), "cannot be read as CSV"),
        (("predict", face, face), "cannot be read as safetensors"),
    ]
    for arguments, words in cases:
        code, out, err = run(capsys, *arguments)
        assert (code, out) == (2, ""), arguments
        assert words in err
        assert err.count("\n") == 1
    assert not (tmp_path / "m.txt").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["boxes.csv", "points.csv"]
    _, _, err = run(capsys, "info", "nothing", "--json")
    assert json.loads(err)["error"] == "ModelNotFoundError"


@pytest.mark.parametrize("row", ["a.jpg,eye,1", "a.jpg,eye,one,2", "a.jpg,eye,1,2\na.jpg,eye,1,2"])
def test_a_bad_line_is_named(capsys, tmp_path, row):
    (tmp_path / "p.csv").write_text(f"path,name,x,y\n{row}\n")
    code, _, err = run(capsys, "fit", tmp_path / "p.csv", "--out", tmp_path / "r")
    assert code == 2
    assert "line 2" in err or "line 3" in err


def test_two_boxes_of_one_picture_are_refused(tmp_path):
    table = tmp_path / "boxes.csv"
    table.write_text("path,x0,y0,x1,y1\na.jpg,0,0,9,9\nb.jpg,0,0,9,9\na.jpg,20,0,29,9\n")
    with pytest.raises(TableError, match=r"line 4: a\.jpg has a box already"):
        read_boxes(str(table))


def test_doctor(capsys):
    report = json.loads(run(capsys, "doctor", "--json")[1])
    assert report["models"] == ["scemae-tiny"]
    assert report["default model"].startswith("scemae-tiny")
    assert report["torch"]


def test_doctor_tells_what_is_wrong_with_the_model(capsys, monkeypatch):
    def broken():
        raise WeightsIntegrityError("its SHA-256 is another")

    monkeypatch.setattr("scemae.load_model", broken)
    code, text, _ = run(capsys, "doctor")
    assert code == 0
    assert "default model: WeightsIntegrityError: its SHA-256 is another" in text
