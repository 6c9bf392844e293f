"""The tables of annotations and boxes: what they mean, and that nothing in them is passed over."""

import math
import os
import warnings
from pathlib import Path

import pytest

from scemae.errors import TableError
from scemae.tables import FaceKey, match_boxes, read_annotations, read_boxes, read_groups

POINTS = "path,name,x,y\n"
BOXES = "path,x0,y0,x1,y1\n"
FACE_BOXES = "path,face,x0,y0,x1,y1\n"


@pytest.fixture
def write(tmp_path):
    def write_table(text):
        (tmp_path / "table.csv").write_text(text, encoding="utf-8")
        return tmp_path / "table.csv"

    return write_table


@pytest.mark.parametrize(
    ("read", "text", "message"),
    [
        pytest.param(read_annotations, POINTS + "face.png,left_eye,70,5,61,25\n",
                     "line 2 has 6 cells, its header 4. Are decimals written with a comma", id="decimal commas"),
        pytest.param(read_annotations, POINTS + "a.png,nose,7,5\na.png,eye,7,5,61\n", "line 3 has 5 cells",
                     id="one decimal comma"),
        pytest.param(read_annotations, "path,name,x,y,\na.png,nose,70,5,61\n", "line 2 has 5 cells, its header 4",
                     id="a column without a name"),
        pytest.param(read_boxes, BOXES + "0.98,face.png,1,2,30,40\n", "line 2 has 6 cells", id="a leading score"),
        pytest.param(read_annotations, "path,name,x,x,y\na,b,1,2,3\n", "has the column 'x' twice", id="a column twice"),
        pytest.param(read_boxes, "path,x0,y0,x1,y1,X1\na,1,2,3,4,5\n", "has the column 'x1' twice", id="but for case"),
        pytest.param(read_annotations, "path;name;x;y\na;b;1;2\n", "separated by ';', not by commas", id="semicolons"),
        pytest.param(read_annotations, "path\tname\tx\ty\n", r"separated by '\\t', not by commas", id="tabs"),
        pytest.param(read_annotations, "Path,Name,X,Y\na,b,1,2\n", "lower case, not 'Path'", id="capitals"),
        pytest.param(read_annotations, "", "lacks the column 'path'", id="empty"),
        pytest.param(read_annotations, POINTS + "a.png,nose,7\n", "line 2 has fewer columns", id="fewer columns"),
        pytest.param(read_annotations, POINTS + ",nose,7,5\n", "line 2 has no path", id="no path"),
        pytest.param(read_annotations, POINTS + "a.png, ,7,5\n", "line 2 has no name", id="no name"),
        pytest.param(read_annotations, POINTS + 'a.png,nose,"7,5",3\n', "line 2: could not convert.*'7,5'",
                     id="quoted"),
        pytest.param(read_annotations, "path,name,x,y,note\na,b,1,2,\"c\na,d,3,4,e\n", "cannot be read as CSV",
                     id="a quote that does not end, which hides the lines below it"),
        pytest.param(read_annotations, POINTS + "a\0.png,nose,7,5\n", "line 2 has a zero byte", id="zero byte"),
        pytest.param(read_annotations, POINTS + "a.png,nose,7,5\na.png,nose ,7,5\n", "'nose' of a.png is listed twice",
                     id="a name twice but for a space"),
        pytest.param(read_annotations, POINTS + "a.png,nose,7,5\n./b/../a.png,nose,9,9\n", "is listed twice",
                     id="a landmark twice by two spellings of the path"),
        pytest.param(read_boxes, BOXES + "a.png,0,0,9,9\n./a.png,1,1,9,9\n", "has a box already", id="a box twice"),
        pytest.param(read_boxes, BOXES + "a.png,0,,9,9\n", "line 2: could not convert", id="half a box"),
        pytest.param(read_boxes, BOXES + "a.png,0,0,9,9\na.png,1,1,9,9\n",
                     "If these are several faces of it, number them from 0 in a column 'face'", id="two faces"),
        pytest.param(read_boxes, FACE_BOXES + "a.png,1,0,0,9,9\na.png,1,1,1,9,9\n", "a.png, face 1 has a box already",
                     id="two boxes of one of the faces"),
        pytest.param(read_boxes, FACE_BOXES + "a.png,one,0,0,9,9\n", "line 2: face is 'one'; wanted a whole number",
                     id="a face by a word"),
        pytest.param(read_boxes, FACE_BOXES + "a.png,-1,0,0,9,9\n", "line 2: face is '-1'", id="a face below 0"),
        pytest.param(read_boxes, FACE_BOXES + "a.png,0.5,0,0,9,9\n", "line 2: face is '0.5'", id="half a face"),
        pytest.param(read_boxes, FACE_BOXES + "a.png,0,0,0,9,9\n./a.png,,9,9,19,19\n",
                     "line 3: ./a.png has a number in the column 'face' in one line, and none", id="a number or none"),
    ],
)  # fmt: skip
def test_a_table_that_could_be_misread_is_refused(write, read, text, message):
    """Faults A1, A7: by file, line and cure."""
    with pytest.raises(TableError, match=message) as refused:
        read(write(text))
    assert "table.csv" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_empty_surplus_cells_and_lines_are_no_surplus(write, tmp_path):
    """Faults A1: spreadsheets fill lines up with commas."""
    table = write("path,name,x,y,,\na.png, nose ,70.5,61.25,,,\n,,,\n\n b.png,nose,1,2\n")
    assert read_annotations(table) == {
        FaceKey(tmp_path / "a.png"): {"nose": (70.5, 61.25)},
        FaceKey(tmp_path / "b.png"): {"nose": (1, 2)},
    }


def test_columns_may_be_in_any_order_with_others_between(write, tmp_path):
    table = write(",y,note,x,name,path\n0,2,old,1,nose,a.png\n1,4,,3,chin,a.png\n")
    assert read_annotations(table) == {FaceKey(tmp_path / "a.png"): {"nose": (1, 2), "chin": (3, 4)}}


@pytest.mark.parametrize(("read", "header"), [(read_annotations, POINTS), (read_groups, POINTS), (read_boxes, BOXES)])
def test_a_last_line_that_is_not_ended_is_warned_of(write, read, header):
    """A table that was cut within its last number was read as one with a smaller number."""
    whole = header + ("a.png,1,2,30,40" if read is read_boxes else "a.png,nose,70.5,61.25")
    for end in ("\n", "\r\n", "\r", "\n\n"):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            read(write(whole + end))
    for text in (whole, whole[:-1]):
        with pytest.warns(UserWarning, match=r"table\.csv does not end with a line break: it may be cut") as warned:
            read(write(text))
        assert [warning.filename for warning in warned] == [__file__]


def test_an_empty_cell_is_not_annotated(write, tmp_path):
    """Faults D: what pandas makes of nan."""
    [named] = read_annotations(write(POINTS + "a.png,nose,,\na.png,chin,nan,NaN\na.png,eye,1,2\n")).values()
    assert all(math.isnan(number) for name in ("nose", "chin") for number in named[name])
    assert named["eye"] == (1, 2)


def test_a_picture_by_two_paths_is_one(write, tmp_path):
    """Faults A7: by a relative and an absolute path it was two faces, one on each side of the hold-out."""
    table = write(POINTS + f"b/../a.png,nose,1,2\n{tmp_path / 'a.png'},chin,3,4\nc.png,nose,5,6\n")
    first, second = read_annotations(table).items()
    assert first == ((tmp_path / "b/../a.png", None), {"nose": (1, 2), "chin": (3, 4)})
    assert second == ((tmp_path / "c.png", None), {"nose": (5, 6)})


def test_what_is_no_file_is_refused(tmp_path):
    """Faults C7, of a kind with it: a pipe without a writer was waited for."""
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", Path(os.devnull)):
        with pytest.raises(TableError, match="is a folder, pipe or device; wanted a CSV file"):
            read_boxes(path)


def test_rows_of_a_picture_with_other_numbers_are_other_faces(write, tmp_path):
    table = write("path,face,name,x,y,group\na.png,0,nose,1,2,anna\nb.png,,nose,7,8,\na.png,1.0,nose,3,4,ben\n")
    first, second, alone = FaceKey(tmp_path / "a.png", 0), FaceKey(tmp_path / "a.png", 1), FaceKey(tmp_path / "b.png")
    annotations = read_annotations(table)
    assert annotations == {first: {"nose": (1, 2)}, alone: {"nose": (7, 8)}, second: {"nose": (3, 4)}}
    assert read_groups(table) == {first: "anna", alone: None, second: "ben"}
    assert (str(second), str(alone)) == (f"{tmp_path / 'a.png'}, face 1", str(tmp_path / "b.png"))
    boxes = read_boxes(write(FACE_BOXES + "a.png,1,9,9,19,19\na.png,0,0,0,9,9\nb.png,,1,1,9,9\n"))
    assert boxes == {second: (9, 9, 19, 19), first: (0, 0, 9, 9), alone: (1, 1, 9, 9)}
    assert match_boxes(annotations, boxes) == [(0, 0, 9, 9), (1, 1, 9, 9), (9, 9, 19, 19)]


def test_a_face_without_a_number_has_the_box_that_holds_its_landmarks(tmp_path):
    path = tmp_path / "a.png"
    boxes = {FaceKey(path, 0): (0, 0, 10, 10), FaceKey(path, 1): (20, 0, 30, 10)}
    assert match_boxes({FaceKey(path): {"eye": (23, 4), "nose": (26, 7)}}, boxes) == [(20, 0, 30, 10)]
    assert match_boxes({FaceKey(path): {"eye": (99, 4)}}, {FaceKey(path): (0, 0, 9, 9)}) == [(0, 0, 9, 9)]
    with pytest.raises(TableError, match=r"has no box for .*a\.png that holds its landmarks, of 2"):
        match_boxes({FaceKey(path): {"eye": (50, 4)}}, boxes)
    for key in (FaceKey(path, 2), FaceKey(tmp_path / "b.png")):
        with pytest.raises(TableError, match=r"The table of boxes has no box for .*(a\.png, face 2|b\.png)\.$"):
            match_boxes({key: {"eye": (23, 4)}}, boxes)
