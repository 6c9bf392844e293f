"""Several faces of one photo: found or from a table, fitted on, in all outputs, and in place on the photo.

What is found is planted: that faces are found is tested elsewhere.
"""

import json
import re
import warnings
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

import scemae
from scemae import draw
from scemae.cli.main import main
from scemae.errors import ImageInputError, LandmarkInputError, TableError
from scemae.face_boxes import FaceBoxes
from scemae.features import name_faces
from scemae.geometry import holding_box
from scemae.images import ImageBatch
from scemae.tables import read_boxes
from scemae.training.pack import pack_faces

FAST = ("--no-align", "--expansion", "1")
ORDER = [2, 0, 1]  # the faces of the group from left to right, as found: the surest is the last one


@pytest.fixture
def group(tmp_path, samples, monkeypatch):
    """A folder, made the current one, with group.png, on which three faces are found, and none.png without a face."""
    pictures = [Image.open(samples[i].path).convert("RGB") for i in (0, 1, 0)]
    sheet, left = Image.new("RGB", (sum(p.width for p in pictures), 600), (90, 110, 130)), 0
    boxes, landmarks = [], []
    for i, picture in zip((0, 1, 0), pictures, strict=True):
        sheet.paste(picture, (left, 0))
        boxes.append(np.add(samples[i].box, (left, 0, left, 0)))
        landmarks.append({name: (x + left, y) for name, (x, y) in samples[i].landmarks.items()})
        left += picture.width
    sheet.save(tmp_path / "group.png")
    Image.new("RGB", (300, 200), (200, 30, 30)).save(tmp_path / "none.png")

    def find(photo, model, min_size=None, max_faces=None):
        rows = ORDER[:max_faces] if photo.image.size == sheet.size else []
        return FaceBoxes(
            xyxy=np.array([boxes[row] for row in rows]).reshape(-1, 4),
            scores=np.linspace(0.99, 0.9, len(rows)),
            rolls=np.linspace(-90, 20, len(rows)),
            image_size=photo.image.size,
            source=photo.source,
        )

    for module in ("extraction", "face_boxes"):
        monkeypatch.setattr(f"scemae.{module}.find_faces_on", find)
    monkeypatch.chdir(tmp_path)
    return {"boxes": [boxes[row] for row in ORDER], "landmarks": [landmarks[row] for row in ORDER]}


@pytest.fixture
def tables(group):
    """Tables of the group: annotations of faces 0 and 2, and boxes of all."""
    write("points.csv", "path,face,name,x,y", ((k, *row) for k in (0, 2) for row in points_of(group, k)))
    write("boxes.csv", "path,face,x0,y0,x1,y1", ((k, *box) for k, box in enumerate(group["boxes"])))


def points_of(group, k):
    return [(name, x, y) for name, (x, y) in group["landmarks"][k].items()]


def write(name, header, rows):
    lines = [",".join(map(str, ("group.png", *row))) for row in rows]
    with open(name, "w") as file:
        file.write("\n".join([header, *lines, ""]))


def run(capsys, *words):
    code = main([str(word) for word in words])
    return code, *capsys.readouterr()


@pytest.fixture
def tiny(two_block_folder):
    return ("--model", f"local-dir:{two_block_folder}")


def test_boxes_are_written_as_they_are_read(capsys, group, tiny, tmp_path):
    (tmp_path / "photos" / "deep").mkdir(parents=True)
    (tmp_path / "group.png").rename(tmp_path / "photos" / "deep" / "group.png")
    (tmp_path / "photos" / "text.txt").write_text("no picture")
    (tmp_path / "tables").mkdir()
    command = ("boxes", "photos", "photos/deep/group.png", *tiny)
    code, out, err = run(capsys, *command, "--out", "tables/boxes.csv", "--max-faces", "2")
    assert (code, err) == (0, "")
    assert out.splitlines()[0] == "photos/deep/group.png: 2 faces"
    assert out.splitlines()[1].endswith("score 0.99, turned -90°")
    assert out.splitlines()[-1] == "tables/boxes.csv: 2 faces"
    header, first, _ = (tmp_path / "tables" / "boxes.csv").read_text().splitlines()
    assert header == "path,face,x0,y0,x1,y1,score,roll"
    assert first.startswith("../photos/deep/group.png,0,")
    assert first.endswith(",0.9900,-90.0")
    found = read_boxes(tmp_path / "tables" / "boxes.csv")
    assert [key.face for key in found] == [0, 1]
    assert all(key.path.is_file() for key in found)
    assert np.allclose(list(found.values()), group["boxes"][:2])
    result = json.loads(run(capsys, *command, "--json")[1])
    assert [(face["source"], face["face"]) for face in result["faces"]] == [
        ("photos/deep/group.png", k) for k in range(3)
    ]
    assert np.allclose([face["box"] for face in result["faces"]], group["boxes"])


def test_a_photo_without_a_face_is_named_and_the_others_are_done(capsys, group, tiny):
    with pytest.warns(UserWarning, match=r"none\.png: no face was found on it; if there is one, pass its box"):
        code, _, err = run(capsys, "boxes", ".", *tiny, "--out", "boxes.csv")
    assert (code, err) == (2, "scemae: none.png could not be used; the other images are done.\n")
    assert len(read_boxes("boxes.csv")) == 3
    for words, said in (
        (("none.png", "--out", "new.csv"), "no face was found on it"),
        (("group.png", "--out", "boxes.csv"), "exists already"),
        (("missing.png",), "there is no such file"),
    ):
        code, out, err = run(capsys, "boxes", *words, *tiny)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert said in err
    assert read_boxes("boxes.csv")


def test_a_folder_without_pictures_is_refused(capsys, tmp_path, tiny):
    code, _, err = run(capsys, "boxes", tmp_path, *tiny)
    assert (code, err) == (2, f"scemae: {tmp_path} holds no pictures; wanted photos, or a folder of photos.\n")


def test_limits_of_finding_are_checked(capsys, samples, two_block_folder):
    for words, said in ((("--max-faces", "0"), "max_faces is 0"), (("--min-size", "8"), "min_size is 8.0")):
        code, _, err = run(capsys, "boxes", samples[0].path, *words, "--model", f"local-dir:{two_block_folder}")
        assert (code, err.count("\n")) == (2, 1)
        assert said in err


@pytest.mark.slow
@pytest.mark.parametrize("boxes", ["auto", "boxes.csv"])
def test_one_command_finds_the_landmarks_of_all_faces(capsys, group, tables, tiny, boxes):
    code, _, err = run(capsys, "fit", "points.csv", "--boxes", boxes, *tiny, *FAST, "--out", "detector")
    assert (code, err) == (0, "")
    command = ("predict", "detector", "group.png", "--boxes", boxes, *tiny)
    code, out, err = run(capsys, *command, "--out", "found.png")
    assert (code, err) == (0, "")
    assert [line for line in out.splitlines() if not line.startswith(" ")][:3] == [
        f"group.png, face {k}" for k in range(3)
    ]
    faces = json.loads(run(capsys, *command, "--json")[1])["faces"]
    assert [(face["source"], face["face"]) for face in faces] == [("group.png", k) for k in range(3)]
    for face, landmarks in zip(faces, group["landmarks"], strict=True):
        places = [(place["x"], place["y"]) for place in face["landmarks"].values()]
        off = np.linalg.norm(np.array(places) - list(landmarks.values()), axis=1)
        assert off.mean() < 12  # px of faces of 91 and 175 px, whose centres are hundreds of px apart
    assert Image.open("found.png").width > 2 * draw.PANEL  # the photo, not panels


def test_a_table_says_which_faces_there_are(capsys, group, tiny):
    """Numbers are those of the table, though one is left out; a bad box of one face leaves the others."""
    write("boxes.csv", "path,face,x0,y0,x1,y1", [(2, *group["boxes"][2]), (5, 0, 0, 2, 2), (7, *group["boxes"][0])])
    command = ("features", "group.png", "--boxes", "boxes.csv", *tiny, *FAST, "--out", "f.safetensors", "--json")
    with pytest.warns(UserWarning, match=r"group\.png .* is smaller than 8 px.* It is left out"):
        code, out, err = run(capsys, *command)
    assert code == 2
    assert json.loads(err)["message"] == "group.png, face 5 could not be used; the other images are done."
    [failed] = json.loads(out)["failed"]
    assert (failed["source"], failed["face"]) == ("group.png", 5)
    from safetensors import safe_open

    with safe_open("f.safetensors", "pt") as file:
        assert json.loads(file.metadata()["faces"]) == [2, 7]
        assert json.loads(file.metadata()["sources"]) == ["group.png"] * 2


def test_widths_of_several_faces_are_warned_of(group):
    with pytest.warns(UserWarning, match="All boxes are squares if they are"):
        ImageBatch(["group.png"], [{0: (200, 90, 60, 60), 1: (90, 200, 50, 50)}])


@pytest.mark.parametrize("boxes", ["auto", "boxes.csv"])
def test_points_are_matched_from_the_face_that_holds_them(capsys, group, tables, tiny, samples, boxes):
    x, y = group["landmarks"][2]["nose_tip"]
    command = ("match", "group.png", "group.png", "--boxes", boxes, *tiny, *FAST, "--prior", "0")
    code, out, err = run(capsys, *command, "--point", f"tip={x},{y}", "--json")
    assert (code, err) == (0, "")
    faces = json.loads(out)["faces"]
    assert [face["face"] for face in faces] == [0, 1, 2]
    assert faces[2]["landmarks"]["tip"]["score"] > 0.999  # itself
    code, _, err = run(capsys, *command, "--point", "tip=5,5")
    assert (code, err.count("\n")) == (2, 1)
    assert "holds its landmarks" in err
    code, _, err = run(capsys, *command, "--points", "points.csv")
    assert (code, err) == (2, "scemae: points.csv has landmarks of 2 faces of group.png; wanted one face.\n")


@pytest.mark.slow
def test_the_found_face_that_holds_the_landmarks_is_fitted_on(group, two_block_model):
    fixed = {"align": False, "expansion": 1, "mirror": "off", "boxes": "auto"}
    images, landmarks = ["group.png"] * 2, [group["landmarks"][k] for k in (2, 1)]
    regressor = scemae.fit_regressor(two_block_model, images, landmarks, **fixed)
    boxed = fixed | {"boxes": [group["boxes"][k] for k in (2, 1)]}
    by_hand = scemae.fit_regressor(two_block_model, images, landmarks, **boxed)
    assert np.array_equal(regressor.held_out_errors_, by_hand.held_out_errors_)
    assert regressor.boxed_
    assert regressor.score(images, landmarks, boxes="auto") == by_hand.score(images, landmarks, boxes=boxed["boxes"])
    assert [face.number for face in regressor.predict("group.png", boxes="auto").faces] == [0, 1, 2]
    alone = scemae.fit_regressor(two_block_model, "group.png", list(landmarks[0].values()), **fixed)
    assert alone.faces_ == 1
    with pytest.raises(ImageInputError, match=r"group\.png: none of the 3 faces found on it holds its landmarks"):
        scemae.fit_regressor(two_block_model, images, [landmarks[0], {"nose_tip": (5, 5)}], **fixed)
    with pytest.raises(ImageInputError, match=r"none\.png: no face was found on it"):
        scemae.fit_regressor(two_block_model, ["group.png", "none.png"], landmarks, **fixed)
    with pytest.raises(LandmarkInputError, match="landmarks are for 2 faces, but there are 3 faces"):
        scemae.fit_regressor(two_block_model, ["group.png"] * 3, landmarks, **fixed)


def test_annotations_without_a_box_are_named(capsys, group, tables, tiny):
    write("boxes.csv", "path,face,x0,y0,x1,y1", [(0, *group["boxes"][0])])
    code, _, err = run(capsys, "fit", "points.csv", "--boxes", "boxes.csv", *tiny, "--out", "detector")
    assert (code, err) == (2, "scemae: The table of boxes has no box for group.png, face 2.\n")


def test_a_square_holds_landmarks():
    boxes = [(0, 0, 100, 100), (60, 0, 160, 80)]
    assert holding_box(boxes, [(30, 40), (70, 40), (np.nan, np.nan)]) == 0
    assert holding_box(boxes, [(70, 40), (130, 40)]) == 1
    assert holding_box(boxes, [(20, -10), (80, -12)]) == 0  # brows
    assert holding_box(boxes, [(20, -40), (80, -42)]) is None
    assert holding_box(boxes, [(30, 40), (300, 40), (300, 50)]) is None
    assert holding_box(np.empty((0, 4)), [(30, 40)]) is None


def test_faces_of_a_photo_are_drawn_on_it(group, two_block_model, samples, monkeypatch):
    faces = scemae.extract_features(two_block_model, "group.png", boxes="auto", align=False, expansion=1)
    alone = scemae.extract_features(two_block_model, samples[0].path, boxes=samples[0].box, align=False, expansion=1)
    assert name_faces([*alone.faces, *faces.faces]) == [
        str(samples[0].path), *(f"group.png, face {k}" for k in range(3))
    ]  # fmt: skip
    xy = np.array([list(landmarks.values()) for landmarks in group["landmarks"]])
    found = scemae.Landmarks(xy=xy, scores=np.ones(xy.shape[:2]), names=None, faces=faces.faces)
    picture = found.draw()
    photo = Image.open("group.png")
    scale = draw.PHOTO / photo.width
    assert picture.size == (draw.PHOTO, round(photo.height * scale) + draw.CAPTION_HEIGHT)
    colours = draw.palette(xy.shape[1])
    for place, colour in zip(xy[1], colours, strict=True):
        x, y = ((place + 0.5) * scale - 0.5).round().astype(int).tolist()
        assert np.abs(np.subtract(picture.getpixel((x, y)), colour)).max() < 60
    middle = [round(float(edge) * scale) for edge in group["boxes"][1]]
    assert min(picture.getpixel((middle[0], (middle[1] + middle[3]) // 2))) > 200  # the outline
    assert found[1].draw().size == (draw.PANEL, draw.PANEL + draw.CAPTION_HEIGHT)  # one face alone
    Image.new("RGB", (20, 20)).save("group.png")  # another picture now
    assert found.draw().width == 3 * draw.PANEL + 2 * draw.GAP


def test_matches_of_a_photo_are_drawn_on_it(group, two_block_model):
    faces = scemae.extract_features(two_block_model, "group.png", boxes="auto", align=False, expansion=1)
    matches = scemae.match_landmarks(faces[0], group["landmarks"][0], faces)
    assert matches.draw().width > draw.PHOTO + draw.PANEL
    assert matches[1].draw().width < draw.PHOTO


def test_a_picture_of_many_photos_fits_every_format():
    side = draw.photo_side(Image.new("RGB", (4000, 4000)), 100)
    panels = [Image.new("RGB", (side // 10, (side + draw.CAPTION_HEIGHT) // 10))] * 100
    assert max(draw.columns(panels).size) * 10 < 16_383
    assert draw.photo_side(Image.new("RGB", (300, 400)), 1) == 800


def test_packs_have_every_face(group, tmp_path):
    here = tmp_path.resolve()
    boxes = {here / "group.png": dict(enumerate(group["boxes"])), here / "none.png": (0, 0, 100, 100)}
    pack = pack_faces(tmp_path, tmp_path / "pack", boxes=boxes)
    assert pack.names == ("group.png, face 0", "group.png, face 1", "group.png, face 2", "none.png")
    assert np.abs(pack.squares[1].astype(int) - pack.squares[0]).max() <= 2  # the same sample face


def test_a_table_of_boxes_without_the_column_is_refused_for_two_faces(capsys, group, tiny):
    write("boxes.csv", "path,x0,y0,x1,y1", group["boxes"])
    with pytest.raises(TableError, match="number them from 0 in a column 'face'"):
        read_boxes("boxes.csv")


def test_a_large_photo_without_a_box_is_warned_of_in_one_line(capsys, group, two_block_model, tiny, monkeypatch):
    """Where no face was found, once, and with what to do: not also that there are no boxes."""
    options = {"boxes": [group["boxes"][1]], "expansion": 1, "mirror": "off"}
    regressor = scemae.fit_regressor(two_block_model, ["group.png"], [group["landmarks"][1]], **options)
    regressor.save("detector")

    def lose(model, aligner, photos, faces, search):
        return [replace(face, score=0.1) for face in faces]

    monkeypatch.setattr("scemae.extraction._align_faces", lose)
    with warnings.catch_warnings(record=True) as warned:
        code, out, _ = run(capsys, "predict", "detector", "group.png", *tiny, "--json")
    assert (code, json.loads(out)["faces"][0]["found"]) == (0, False)
    [warning] = warned
    said = "No face was found in the box of group.png: .* middle of the image .* boxes='auto' .--boxes auto. "
    assert re.match(said, str(warning.message))
