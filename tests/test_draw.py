import numpy as np
import pytest
from PIL import Image

from scemae import draw
from scemae.errors import OptionError


def test_no_picture_is_too_large_for_a_format(monkeypatch):
    """faults B2: 200 matches were a strip of 79,188 px. At a twelfth of the size, with the widest legends."""
    monkeypatch.setattr(draw, "GAP", 1)
    sheet = draw.columns([Image.new("RGB", (98, 32))] * draw.MOST_FACES)
    assert max(sheet.size) * 12 < 16_383
    assert draw.columns([Image.new("RGB", (98, 32))] * 8).size == (98, 8 * 33 - 1)
    panels = [Image.new("RGB", (32, 34))] * draw.MOST_FACES
    assert max(draw.grid(panels).size) * 12 < 16_383


def test_a_column_after_the_other_shows_every_row():
    colours = [(k, 0, 0) for k in range(1, 21)]
    sheet = np.asarray(draw.columns([Image.new("RGB", (9, 9), colour) for colour in colours]))
    assert [tuple(sheet[y + 4, x + 4]) for x in (0, 21, 42) for y in range(0, 8 * 21, 21)][:20] == colours


def test_names_of_any_length_and_content_fit_a_legend():
    legend = draw.legend(["a name of 300 letters" * 15, "two\nlines"], draw.PANEL, np.array([0.5, 1]))
    assert legend.size == pytest.approx((draw.PANEL, draw.PANEL), abs=30)
    draw.row([legend], ["two\nlines"])


def test_too_many_faces_are_refused(faces):
    with pytest.raises(OptionError, match=r"There are 202 faces; one picture shows at most 200\."):
        faces[np.tile([0, 1], 101)].draw()


def test_cells_are_tinted_and_framed_where_they_are():
    """Of 4 x 4 cells of 10 px number 6 is in the second row, third column; a frame leaves its middle as it was."""
    grey = Image.new("RGB", (40, 40), (100, 100, 100))
    pixels = np.asarray(draw.cells(grey, 4, np.array([6]), np.array([8])))
    changed = (pixels != 100).any(axis=-1)
    assert changed[10:20, 20:30].all()
    assert changed[20:30, 0].all()
    assert not changed[24:26, 4:6].any()
    changed[10:20, 20:30] = changed[20:30, 0:10] = False
    assert not changed.any()
