import argparse
import csv
import json
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scemae.cli.main import build_parser, main
from scemae.errors import OutputError, TableError, WeightsIntegrityError
from scemae.tables import read_annotations, read_boxes, read_groups

INFERENCE = ("models", "info", "boxes", "features", "match", "fit", "predict", "demo", "doctor")


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
    assert "match_landmarks(..., prior=25)" in text
    assert Image.open(out).width > 800
    code, _, err = run(capsys, "demo", "--out", out)
    assert code == 2
    assert "exists already" in err
    code, text, _ = run(capsys, "demo", "--out", out, "--overwrite", "--json")
    assert code == 0
    errors = json.loads(text)["error_percent"]  # of the inter-ocular distance
    assert max(errors.values()) < 15
    assert np.mean(list(errors.values())) < 8
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
        ("match FACE FACE --point nose=1,2 --point nose=3,4", "'nose' is given twice"),
        ("match FACE FACE --points FOLDER/points.csv --point left_eye=3,4", "'left_eye' is given twice"),
        ("match FACE FACE --point nose=1,2 --prior nan", "prior is nan; it must be 0 (off) or a distance"),
        ("match FACE FOLDER --point 1,2 --boxes FOLDER/boxes.csv", "has no box for"),
        ("match FACE FACE --point 266,238 --no-align --out FOLDER/m.txt", "picture format"),
        ("match FACE FACE --point 266,238 --no-align --out FOLDER/m.xbm", "picture format"),
        ("match FOLDER/no.jpg FACE --point 1,2", "no such file"),
        ("predict FOLDER/none FACE --out FOLDER/m.txt", "picture format"),
        ("predict FOLDER/none FACE --out FOLDER/a/m.png", "no folder"),
        ("predict FOLDER/none " + 201 * "FACE " + "--out FOLDER/m.png", "one picture shows at most 200"),
        (f"predict FOLDER/none FACE --out FOLDER/{300 * 'm'}.png", "cannot be written: "),
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


def test_an_option_given_twice_is_refused(capsys):
    """Faults A9: the last one counted, and the others went without a word."""
    for words in (
        ("match", "a", "b", "--prior", "1", "--prior=2"),
        ("match", "a", "b", "--point", "1,2", "--bo", "b.csv", "--boxes", "c.csv"),
        ("eval", "matching", "mtfl", "--data", "a", "--out", "b", "--use", "both", "--use", "backbone"),
        ("train", "stage1", "--data", "a", "--out", "b", "--mean", "0,0,0", "--mean", "1,1,1"),
        ("train", "stage1", "--data", "a", "--out", "b", "--normalise-pixels", "--no-normalise-pixels"),
    ):
        with pytest.raises(SystemExit) as stopped:
            build_parser(words).parse_args(words)
        assert stopped.value.code == 2
        assert "is given twice; wanted it once" in capsys.readouterr().err
    words = ["match", "a", "b", "--point", "a=1,2", "--point", "b=3,4", "--json", "--json"]
    parser = build_parser(words)
    assert parser.parse_args(words).point == parser.parse_args(words).point == ["a=1,2", "b=3,4"]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("", "scemae: the following arguments are required: COMMAND; see scemae --help"),
        ("match a.jpg", "scemae match: the following arguments are required: IMAGE; see scemae match --help"),
        ("match a b --prior x", "scemae match: argument --prior: invalid float value: 'x'; see scemae match --help"),
        ("match a b --bogus x\x1b", r"scemae match: unrecognized arguments: --bogus x\x1b; see scemae match --help"),
        ("--bogus models", "scemae: unrecognized arguments: --bogus; see scemae --help"),
        ("eval matching mtfl --data a", "scemae eval matching: the following arguments are required: --out; see scemae "
         "eval matching --help"),
    ],
)  # fmt: skip
def test_bad_usage_is_one_line(capsys, command, message):
    """The usage came first, of up to thirty lines."""
    with pytest.raises(SystemExit) as stopped:
        main(command.split())
    assert (stopped.value.code, *capsys.readouterr()) == (2, "", message + "\n")


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


@pytest.fixture
def bad_file(tables):
    (tables / "bad.png").write_bytes(b"not a picture")
    return tables / "bad.png"


FAST = ("--no-align", "--expansion", "1")


def test_features_of_the_good_images_are_written(capsys, tables, samples, bad_file):
    """faults B2: one unreadable file among many lost all."""
    out = tables / "f.safetensors"
    images = (samples[0].path, bad_file, samples[1].path)
    with pytest.warns(UserWarning, match=r"bad\.png is not an image .* It is left out\."):
        code, text, err = run(capsys, "features", *images, *FAST, "--out", out, "--json")
    assert code == 2
    assert json.loads(text)["map"] == [2, 192, 12, 12]
    [failed] = json.loads(text)["failed"]
    assert (failed["source"], failed["error"]) == (str(bad_file), "ImageInputError")
    assert json.loads(err)["message"] == f"{bad_file} could not be used; the other images are done."
    assert out.exists()


@pytest.mark.parametrize("as_json", [False, True])
def test_numbers_are_printed_before_the_picture(capsys, tables, samples, bad_file, monkeypatch, as_json):
    """faults B2: numbers were lost with a picture that could not be written."""
    printed = []

    def draw(self, radius):
        printed.append(capsys.readouterr().out)
        raise OutputError("the disk is full")

    monkeypatch.setattr("scemae.landmarks.LandmarkMatches.draw", draw)
    command = ("match", samples[0].path, samples[1].path, bad_file, "--point", "tip=266,238", *FAST)
    with pytest.warns(UserWarning, match="It is left out"):
        code, out, err = run(capsys, *command, "--out", tables / "m.png", *(["--json"] if as_json else []))
    assert (code, out) == (2, "")
    assert "the disk is full" in err
    if as_json:
        assert json.loads(printed[0])["failed"][0]["source"] == str(bad_file)
    else:
        assert re.search(r"\n  tip: [\d.]+ [\d.]+  score [\d.]+\n$", printed[0])
    assert not (tables / "m.png").exists()


def test_nothing_usable_is_an_error_of_one_line(capsys, tables, bad_file):
    code, out, err = run(capsys, "features", bad_file, tables / "no.png", "--out", tables / "f")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "None of the 2 images can be used. The first: " in err


def test_problems_are_lines_on_standard_error(tables, samples, bad_file):
    command = ["features", samples[0].path, bad_file, *FAST, "--out", tables / "f.safetensors"]
    done = subprocess.run([sys.executable, "-m", "scemae", *command], capture_output=True, text=True)
    warning, error = done.stderr.splitlines()
    assert (done.returncode, warning.split(str(bad_file))[0]) == (2, "scemae: warning: ")
    assert error.startswith(f"scemae: {bad_file} could not be used")


def test_gif_is_written(capsys, tables, samples):
    """faults D."""
    out = tables / "m.gif"
    assert run(capsys, "match", samples[0].path, samples[1].path, "--point", "1=266,238", *FAST, "--out", out)[0] == 0
    assert Image.open(out).format == "GIF"


def test_control_characters_are_escaped(capsys, tmp_path, samples):
    """faults C8: escape codes of names reached the terminal, and newlines made two lines of an error."""
    name = "red\x1b[31m\nline\u202e.jpg"
    _, _, err = run(capsys, "features", tmp_path / name, "--out", tmp_path / "f")
    assert err.count("\n") == 1
    assert r"red\x1b[31m\nline\u202e.jpg" in err
    _, _, err = run(capsys, "features", tmp_path / name, "--out", tmp_path / "f", "--json")
    assert str(tmp_path / name) in json.loads(err)["message"]

    face = tmp_path / name
    face.write_bytes(Path(samples[1].path).read_bytes())
    command = ("match", samples[0].path, face, "--point", f"{name}=266,238", *FAST, "--out", tmp_path / "m.png")
    code, out, _ = run(capsys, *command)
    assert (code, out.count("\n")) == (0, 3)
    assert out.count(r"red\x1b[31m\nline\u202e.jpg") == 2
    assert list(json.loads(run(capsys, *command, "--overwrite", "--json")[1])["faces"][0]["landmarks"]) == [name]
    with pytest.raises(SystemExit):
        main(["models", "one", "two\x1b[31m"])
    assert r"two\x1b[31m" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGTERM")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_terminated_command_deletes_its_temporary_files(tmp_path, number):
    """faults B5."""
    code = f"""
import os, pathlib, scemae, signal, sys
from scemae.cli.main import main
from scemae.output import atomic_folder, atomic_write

signal.signal({int(number)}, signal.SIG_DFL)  # nohup and its like have SIGHUP ignored

def write(pattern):
    with atomic_write(pathlib.Path("file.txt")), atomic_folder(pathlib.Path("folder")):
        print(len(os.listdir()), flush=True)
        os.kill(os.getpid(), {int(number)})

scemae.list_models = write
sys.exit(main(["models"]))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "2\n", "")
    assert list(tmp_path.iterdir()) == []


def test_doctor_names_leftovers(capsys, tmp_path, monkeypatch):
    """faults B5: files of killed commands stayed for ever."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".r.safetensors.0123456789abcdef.safetensors").touch()
    assert ".r.safetensors.0123456789abcdef" in run(capsys, "doctor")[1]
