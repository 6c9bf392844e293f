import argparse
import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from scemae.cli.main import build_parser, main
from scemae.errors import TableError, WeightsIntegrityError
from scemae.tables import read_annotations, read_boxes, read_groups

INFERENCE = ("models", "info", "features", "match", "fit", "predict", "demo", "doctor")


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


def test_demo_points_are_where_they_belong(capsys, tmp_path):
    out = tmp_path / "demo.png"
    code, text, _ = run(capsys, "demo", "--out", out)
    assert code == 0
    assert "left_eye" in text
    assert 'match_landmarks(..., use="both", subpixel=True)' in text
    assert Image.open(out).width > 800
    code, _, err = run(capsys, "demo", "--out", out)
    assert code == 2
    assert "exists already" in err
    code, text, _ = run(capsys, "demo", "--out", out, "--overwrite", "--json")
    assert code == 0
    errors = json.loads(text)["error_percent"]  # of the inter-ocular distance
    assert max(errors.values()) < 10
    assert max(errors[name] for name in ("left_eye", "right_eye", "nose_tip")) < 6.5


def test_fit_then_predict(capsys, tables, samples):
    regressor, boxes = tables / "r.safetensors", tables / "boxes.csv"
    fast = ("--no-align", "--expansion", "1")
    code, out, _ = run(capsys, "fit", tables / "points.csv", "--boxes", boxes, *fast, "--out", regressor, "--json")
    assert code == 0
    assert json.loads(out)["faces"] == 2
    assert json.loads(out)["held_out_error"] > 0
    code, out, _ = run(capsys, "predict", regressor, samples[1].path, "--boxes", boxes, "--json")
    place = json.loads(out)["faces"][0]["landmarks"]["nose_tip"]
    assert abs(place["x"] - samples[1].landmarks["nose_tip"][0]) < 3


def test_the_groups_of_a_table_are_held_out_together(capsys, tables, samples):
    """Faults A2: both faces are of one group, so none can be held out."""
    table, text = tables / "groups.csv", (tables / "points.csv").read_text().splitlines()
    table.write_text("\n".join([f"{text[0]},group", f"{text[1]},", *(f"{line},anna" for line in text[2:])]))
    assert list(read_groups(table).items()) == [(path, "anna") for path in read_annotations(table)]
    assert set(read_groups(tables / "points.csv").values()) == {None}
    fast = ("--boxes", tables / "boxes.csv", "--no-align", "--expansion", "1", "--json")
    code, out, _ = run(capsys, "fit", table, *fast, "--out", tables / "r.safetensors")
    assert code == 0
    assert json.loads(out)["held_out_error"] is None
    table.write_text(table.read_text() + f"\n{samples[1].path},chin,1,2,ben\n")
    with pytest.raises(TableError, match=r"line 18: .* is in group 'ben', and in 'anna' above"):
        read_groups(table)


def test_match_and_features(capsys, tables, samples):
    reference, target = (s.path for s in samples)
    boxes, picture = tables / "boxes.csv", tables / "m.png"
    points = ("--points", tables / "points.csv")
    code, out, _ = run(capsys, "match", reference, target, "--boxes", boxes, *points, "--out", picture, "--json")
    assert code == 0
    assert len(json.loads(out)["faces"][0]["landmarks"]) == 8
    assert picture.exists()
    fast = ("--no-align", "--expansion", "1")
    code, out, _ = run(
        capsys, "match", reference, target, "--boxes", boxes, "--point", "tip=266,238", "--prior", "0", *fast
    )
    assert "tip:" in out
    features = tables / "f.safetensors"
    code, out, _ = run(capsys, "features", target, "--boxes", boxes, *fast, "--out", features, "--json")
    assert json.loads(out)["map"] == [1, 192, 12, 12]
    assert features.exists()


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("info scemae-tyni", "Did you mean 'scemae-tiny'"),
        ("features FACE", "pass --out"),
        ("features FOLDER/no.jpg --out FOLDER/f", "no such file"),
        ("features FACE --out FOLDER/a/f", "no folder"),
        ("match FACE FACE", "pass --points"),
        ("match FACE FACE --point nose:3,4", "wanted NAME=X,Y"),
        ("match FACE FOLDER --point 1,2 --boxes FOLDER/boxes.csv", "has no box for"),
        ("match FACE FACE --point 266,238 --no-align --out FOLDER/m.txt", "picture format"),
        ("fit FOLDER/boxes.csv --out FOLDER/r", "lacks the column 'name'"),
        ("fit FOLDER/none.csv --out FOLDER/r", "cannot be read as CSV"),
        ("predict FACE FACE", "cannot be read as safetensors"),
    ],
)
def test_an_error_is_one_clear_line(capsys, tables, samples, command, message):
    places = {"FACE": str(samples[0].path), "FOLDER": str(tables)}
    words = [re.sub("FACE|FOLDER", lambda found: places[found[0]], word) for word in command.split()]
    code, out, err = run(capsys, *words)
    assert (code, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    assert sorted(path.name for path in tables.iterdir()) == ["boxes.csv", "points.csv"]


def test_an_error_is_json_if_asked_for(capsys):
    _, _, err = run(capsys, "info", "nothing", "--json")
    assert json.loads(err)["error"] == "ModelNotFoundError"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has /dev/full")
def test_a_result_that_cannot_be_printed_is_an_error():
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "scemae", "models"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("scemae: the result cannot be printed: ")


def test_a_reader_that_stops_early_is_no_error():
    command = [sys.executable, "-m", "scemae", "info"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert (process.stderr.read(), process.wait()) == (b"", 0)


@pytest.mark.parametrize("command", [None, *INFERENCE])
def test_help_texts_are_sentences(command):
    parser = build_parser([])
    [commands] = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    for action in (parser if command is None else commands.choices[command])._actions:
        if action.dest != "help" and not isinstance(action, argparse._SubParsersAction):
            assert re.fullmatch(r"[A-Z].*\.", action.help), action
    assert command is None or re.fullmatch(r"[A-Z].*\.", commands.choices[command].description)


@pytest.mark.parametrize("row", ["a.jpg,eye,1", "a.jpg,eye,one,2", "a.jpg,eye,1,2\na.jpg,eye,1,2"])
def test_a_bad_line_is_named(capsys, tmp_path, row):
    (tmp_path / "p.csv").write_text(f"path,name,x,y\n{row}\n")
    code, _, err = run(capsys, "fit", tmp_path / "p.csv", "--out", tmp_path / "r")
    assert code == 2
    assert "line 2" in err or "line 3" in err


def test_two_boxes_of_one_image_are_refused(tmp_path):
    table = tmp_path / "boxes.csv"
    table.write_text("path,x0,y0,x1,y1\na.jpg,0,0,9,9\nb.jpg,0,0,9,9\na.jpg,20,0,29,9\n")
    with pytest.raises(TableError, match=r"line 4: a\.jpg has a box already"):
        read_boxes(str(table))


def test_doctor_reports_versions_and_models(capsys):
    report = json.loads(run(capsys, "doctor", "--json")[1])
    assert report["models"] == ["scemae-tiny"]
    assert report["default model"].startswith("scemae-tiny")
    assert report["torch"]


def test_doctor_reports_what_is_wrong_with_the_model(capsys, monkeypatch):
    def broken():
        raise WeightsIntegrityError("its SHA-256 is another")

    monkeypatch.setattr("scemae.load_model", broken)
    code, text, _ = run(capsys, "doctor")
    assert code == 0
    assert "default model: WeightsIntegrityError: its SHA-256 is another" in text
