"""Pictures from arrays, with Pillow only: landmarks, matches side by side, similarity heat maps, maps as colours."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Array = NDArray[Any]
Colour = tuple[int, int, int]

PANEL = 384  # px, side of one face
GAP = 12
ACROSS = 8  # faces in a row of a grid
CAPTION = 26
BACKGROUND: Colour = (22, 24, 29)
INK: Colour = (222, 226, 232)
SMOOTH = 3  # shapes are drawn this much larger and reduced, for smooth edges
# Dark to bright, so that the map reads in grey too: violet, red, orange, pale yellow.
HEAT_STOPS = np.array([(13, 8, 35), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)], dtype=np.float64)


def palette(count: int) -> list[Colour]:
    """`count` bright colours, neighbours far apart in hue."""
    hues = [(0.53 + index * 0.618034) % 1 for index in range(count)]
    return [_rgb(colorsys.hsv_to_rgb(hue, 0.62, 1.0)) for hue in hues]


def _rgb(colour: Sequence[float]) -> Colour:
    red, green, blue = (round(255 * part) for part in colour)
    return red, green, blue


def _strengths(scores: Array | None, count: int) -> list[float]:
    """How opaque each landmark is drawn, 0.35..1; a score that is no number counts as the lowest."""
    if scores is None:
        return [1.0] * count
    return [float(np.clip(np.nan_to_num(score), 0, 1)) * 0.65 + 0.35 for score in scores]


def write(draw: ImageDraw.ImageDraw, place: tuple[float, float], text: str, size: int, anchor: str = "lm") -> None:
    """Write text of a size in px at (x, y), its anchor as Pillow names it, readable on any ground."""
    draw.text(
        place, text, fill=INK, font=ImageFont.load_default(size), anchor=anchor, stroke_width=2, stroke_fill=BACKGROUND
    )


def _overlay(picture: Image.Image) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    layer = Image.new("RGBA", (picture.width * SMOOTH, picture.height * SMOOTH))
    return layer, ImageDraw.Draw(layer)


def _merged(picture: Image.Image, layer: Image.Image) -> Image.Image:
    smooth = layer.resize(picture.size, Image.Resampling.BOX)
    return Image.alpha_composite(picture.convert("RGBA"), smooth).convert("RGB")


def _ring(draw: ImageDraw.ImageDraw, x: float, y: float, colour: Colour, strength: float, radius: float) -> None:
    """A dot in a dark rim, so that it shows on any skin."""
    x, y = (x + 0.5) * SMOOTH, (y + 0.5) * SMOOTH
    for size, fill in ((radius + 1.5, BACKGROUND), (radius, colour)):
        reach = size * SMOOTH
        draw.ellipse((x - reach, y - reach, x + reach, y + reach), fill=(*fill, round(255 * strength)))


def _radius(count: int) -> float:
    return 5.0 if count <= 20 else 3.0


def points(picture: Image.Image, xy: Array, scores: Array | None = None) -> Image.Image:
    """`picture` with points (K, 2), px of the picture; nan ones are left out."""
    layer, draw = _overlay(picture)
    strengths = _strengths(scores, len(xy))
    for k, colour in enumerate(palette(len(xy))):
        if np.isfinite(xy[k]).all():
            _ring(draw, xy[k, 0], xy[k, 1], colour, strengths[k], _radius(len(xy)))
    return _merged(picture, layer)


def matches(left: Image.Image, places: Array, right: Image.Image, found: Array, scores: Array) -> Image.Image:
    """Two pictures side by side, each of `places` (K, 2) on the left joined to `found` (K, 2) on the right."""
    picture = row([left, right])
    across = found + np.array([left.width + GAP, 0])
    layer, draw = _overlay(picture)
    strengths = _strengths(scores, len(places))
    for start, end, colour, strength in zip(places, across, palette(len(places)), strengths, strict=True):
        if np.isfinite([*start, *end]).all():
            ends = [(float(value) + 0.5) * SMOOTH for value in (*start, *end)]
            draw.line(ends, fill=(*colour, round(150 * strength)), width=2 * SMOOTH)
    joined = _merged(picture, layer)
    return points(points(joined, places), across, scores)


def legend(labels: Sequence[str], height: int, values: Array | None = None) -> Image.Image:
    """The names of the landmarks beside their colours, and their values, as a panel of that height."""
    texts = [
        label if values is None else f"{label}  {value:.2f}"
        for label, value in zip(labels, labels if values is None else values, strict=True)
    ]
    step = min(24.0, height / max(len(texts), 1))
    size = round(min(14.0, 0.7 * step))
    font = ImageFont.load_default(size)
    panel = Image.new("RGB", (round(max(font.getlength(text) for text in texts)) + 36, height), BACKGROUND)
    writer = ImageDraw.Draw(panel)
    for k, colour in enumerate(palette(len(texts))):
        y = (k + 0.5) * step + 4
        writer.ellipse((6, y - size / 3, 6 + 2 * size / 3, y + size / 3), fill=colour)
        write(writer, (24, y), texts[k], size)
    return panel


def heat(picture: Image.Image, similarity: Array) -> Image.Image:
    """A similarity map (h, w) over the square picture it belongs to, from its lowest value (dark) to its highest."""
    spread = similarity.max() - similarity.min()
    level = (similarity - similarity.min()) / (spread if spread > 0 else 1)
    stops = np.linspace(0, 1, len(HEAT_STOPS))
    colours = np.stack([np.interp(level, stops, HEAT_STOPS[:, channel]) for channel in range(3)], axis=-1)
    layer = Image.fromarray(colours.round().astype(np.uint8)).resize(picture.size, Image.Resampling.BICUBIC)
    return Image.blend(picture.convert("L").convert("RGB"), layer, 0.6)


def principal_colours(maps: Array, size: tuple[int, int]) -> list[Image.Image]:
    """Maps (B, h, w, C) as pictures: the first three principal components of all cells, as red, green and blue.

    The components are common to the maps, so a colour means the same on each. Each spans its 2nd to 98th percentile.
    """
    cells = maps.reshape(-1, maps.shape[-1]).astype(np.float64)
    cells = cells - cells.mean(axis=0)
    _, axes = np.linalg.eigh(cells.T @ cells)
    main = axes[:, ::-1][:, :3]
    main = main * np.sign(main[np.abs(main).argmax(axis=0), range(3)])  # an eigenvector's sign is arbitrary: fix it
    parts = cells @ main
    low, high = np.percentile(parts, (2, 98), axis=0)
    levels = ((parts - low) / np.maximum(high - low, 1e-12)).clip(0, 1).reshape(*maps.shape[:3], 3)
    pictures = [Image.fromarray((level * 255).round().astype(np.uint8)) for level in levels]
    return [picture.resize(size, Image.Resampling.BICUBIC) for picture in pictures]


def row(panels: Sequence[Image.Image], captions: Sequence[str] | None = None) -> Image.Image:
    """Pictures side by side on the background, each with a caption below if there are any."""
    width = sum(panel.width for panel in panels) + GAP * (len(panels) - 1)
    height = max(panel.height for panel in panels)
    sheet = Image.new("RGB", (width, height + (CAPTION if captions else 0)), BACKGROUND)
    writer = ImageDraw.Draw(sheet)
    left = 0
    for index, panel in enumerate(panels):
        sheet.paste(panel, (left, 0))
        if captions:
            text = _fitted(writer, captions[index], panel.width)
            write(writer, (left + panel.width / 2, height + CAPTION / 2), text, 14, anchor="mm")
        left += panel.width + GAP
    return sheet


def grid(panels: Sequence[Image.Image], captions: Sequence[str] | None = None) -> Image.Image:
    """Pictures of one size in rows of `ACROSS`, each with a caption below if there are any."""
    rows = [slice(start, start + ACROSS) for start in range(0, len(panels), ACROSS)]
    return stack_rows([row(panels[part], captions[part] if captions else None) for part in rows])


def _fitted(writer: ImageDraw.ImageDraw, text: str, width: int) -> str:
    """The end of `text` (a path's end tells more than its beginning) that fits into `width` px."""
    font = ImageFont.load_default(14)
    shown = text
    while len(shown) > 1 and writer.textlength(shown, font=font) > width - 8:
        text = text[1:]
        shown = "…" + text
    return shown


def stack_rows(rows: Sequence[Image.Image]) -> Image.Image:
    """Pictures one below the other on the background."""
    height = sum(picture.height for picture in rows) + GAP * (len(rows) - 1)
    sheet = Image.new("RGB", (max(picture.width for picture in rows), height), BACKGROUND)
    top = 0
    for picture in rows:
        sheet.paste(picture, (0, top))
        top += picture.height + GAP
    return sheet
