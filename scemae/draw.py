"""Drawing with Pillow: landmarks, matches side by side, similarity heat maps, feature maps as colours.

A panel is one square image of a picture; points are (x, y) in pixels of the panel.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from scemae.errors import OptionError, escape_controls

Array = NDArray[Any]
Colour = tuple[int, int, int]

PANEL = 384  # px, side of a panel with one face
PHOTO = 2400  # px, longer side of a photo on which several faces are shown; as little as a third in pictures of many
GAP = 12  # px between panels
PANELS_PER_ROW = 8  # of a grid, in up to as many rows; then both grow
ROWS = 8  # of wide rows in a column; then there are more columns
MOST_FACES = 200  # of one picture: its sides then stay below 16,383 px, the limit of WebP, which is the smallest
PICTURE_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".pdf")
CAPTION_HEIGHT = 26  # px
CAPTION_SIZE = 14  # px of its letters
BACKGROUND: Colour = (22, 24, 29)
INK: Colour = (222, 226, 232)
ALARM: Colour = (255, 92, 80)
TINT: Colour = (249, 142, 9)
SUPERSAMPLING = 3  # shapes are drawn this much larger, then reduced, for smooth edges
# Dark to bright, so that the map can be read in grey too: violet, red, orange, pale yellow.
HEAT_STOPS = np.array([(13, 8, 35), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)], dtype=np.float64)


def check_count(faces: int) -> None:
    """Raise OptionError for more faces than a picture shows."""
    if faces > MOST_FACES:
        raise OptionError(
            f"There are {faces:,} faces; one picture shows at most {MOST_FACES}. Draw them in parts, [:{MOST_FACES}] "
            "first; on the command line, give fewer images, or no --out."
        )


def palette(count: int) -> list[Colour]:
    """`count` bright colours, neighbours far apart in hue."""
    hues = [(0.53 + index * 0.618034) % 1 for index in range(count)]
    return [_rgb(colorsys.hsv_to_rgb(hue, 0.62, 1.0)) for hue in hues]


def _rgb(colour: Sequence[float]) -> Colour:
    red, green, blue = (round(255 * part) for part in colour)
    return red, green, blue


def _opacities(scores: Array | None, count: int) -> list[float]:
    """Opacity of each landmark, 0.35..1; nan counts as the lowest score."""
    if scores is None:
        return [1.0] * count
    return [float(np.clip(np.nan_to_num(score), 0, 1)) * 0.65 + 0.35 for score in scores]


def write(draw: ImageDraw.ImageDraw, place: tuple[float, float], text: str, size: int, anchor: str = "lm") -> None:
    """Write text of `size` px at (x, y), with an anchor of Pillow's, outlined so that it is readable on any image."""
    draw.text(
        place, text, fill=INK, font=ImageFont.load_default(size), anchor=anchor, stroke_width=2, stroke_fill=BACKGROUND
    )


def _new_layer(image: Image.Image) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """A transparent layer over an image, `SUPERSAMPLING` times its size."""
    layer = Image.new("RGBA", (image.width * SUPERSAMPLING, image.height * SUPERSAMPLING))
    return layer, ImageDraw.Draw(layer)


def _merge_layer(image: Image.Image, layer: Image.Image) -> Image.Image:
    smooth = layer.resize(image.size, Image.Resampling.BOX)
    return Image.alpha_composite(image.convert("RGBA"), smooth).convert("RGB")


def _draw_dot(draw: ImageDraw.ImageDraw, x: float, y: float, colour: Colour, opacity: float, radius: float) -> None:
    """A dot with a dark rim, visible on any skin."""
    x, y = (x + 0.5) * SUPERSAMPLING, (y + 0.5) * SUPERSAMPLING
    for size, fill in ((radius + 1.5, BACKGROUND), (radius, colour)):
        reach = size * SUPERSAMPLING
        draw.ellipse((x - reach, y - reach, x + reach, y + reach), fill=(*fill, round(255 * opacity)))


def _draw_circle(draw: ImageDraw.ImageDraw, x: float, y: float, colour: Colour, radius: float) -> None:
    """A thin circle with a dark rim."""
    x, y, reach = ((value * SUPERSAMPLING) for value in (x + 0.5, y + 0.5, radius))
    for width, outline in ((3, BACKGROUND), (1, colour)):
        grown = reach + width * SUPERSAMPLING / 2
        draw.ellipse((x - grown, y - grown, x + grown, y + grown), outline=(*outline, 200), width=width * SUPERSAMPLING)


def _dot_radius(count: int) -> float:
    return 5.0 if count <= 20 else 3.0


def points(
    image: Image.Image,
    xy: Array,
    scores: Array | None = None,
    radii: Array | None = None,
    dot: float | None = None,
) -> Image.Image:
    """The image with points (K, 2), without the nan ones; a lower of the K scores gives a fainter point.

    `radii`: of circles around the points (K,), px, nan for none; points with a circle are smaller. `dot`: radius of a
    point, px; None: as on a panel of one face.
    """
    layer, draw = _new_layer(image)
    opacities = _opacities(scores, len(xy))
    size = dot or _dot_radius(len(xy))
    circled = np.full(len(xy), False) if radii is None else np.isfinite(radii)
    for k, colour in enumerate(palette(len(xy))):
        if np.isfinite(xy[k]).all():
            _draw_dot(draw, xy[k, 0], xy[k, 1], colour, opacities[k], size / 2 if circled[k] else size)
            if radii is not None and circled[k]:
                _draw_circle(draw, xy[k, 0], xy[k, 1], colour, radii[k])
    return _merge_layer(image, layer)


def mesh(image: Image.Image, xy: Array) -> Image.Image:
    """The image with lines between the neighbours of a lattice of points (n, n, 2); every fourth line stands out."""
    layer, draw = _new_layer(image)
    places = (np.asarray(xy) + 0.5) * SUPERSAMPLING
    for index in range(len(places)):
        colour, opacity = (INK, 110) if index % 4 else (TINT, 220)
        for line in (places[index], places[:, index]):
            draw.line([tuple(point) for point in line.tolist()], fill=(*colour, opacity), width=SUPERSAMPLING)
    return _merge_layer(image, layer)


def points_in_place(photo: Image.Image, corners: Array, xy: Array, scores: Array, radii: Array) -> None:
    """Draw the points (K, 2) of one face, with circles of `radii` (K,) if these are not nan, on a photo of several; its
    square has the corners (4, 2)."""
    reach = np.nan_to_num(radii)[:, None]
    known = np.concatenate([corners, *(ends[np.isfinite(ends).all(axis=1)] for ends in (xy - reach, xy + reach))])
    low = np.maximum(np.floor(known.min(axis=0)) - GAP, 0).astype(int)
    high = np.minimum(np.ceil(known.max(axis=0)) + GAP, photo.size).astype(int)
    if (low < high).all():  # a part of the photo: it is large, and the faces are many
        part = photo.crop((*low.tolist(), *high.tolist()))
        dot = min(max(float(np.linalg.norm(corners[1] - corners[0])) / 40, 1.5), _dot_radius(len(xy)))
        photo.paste(points(part, xy - low, scores, radii, dot), tuple(low.tolist()))


def photo_side(photo: Image.Image, count: int) -> int:
    """The longer side of a photo in a picture of `count` photos; it is enlarged at most twice."""
    return min(PHOTO // min(math.ceil(math.sqrt(count)), 3), 2 * max(photo.size))


def squares(photo: Image.Image, corners: Array, labels: Sequence[str], lost: Sequence[bool]) -> Image.Image:
    """A photo with the outlines of N squares by their corners (N, 4, 2), red for what is lost, and their labels."""
    layer, draw = _new_layer(photo)
    for square, is_lost in zip(corners, lost, strict=True):
        outline = [(float(x), float(y)) for x, y in (square[[0, 1, 2, 3, 0, 1]] + 0.5) * SUPERSAMPLING]
        for width, colour in ((4, BACKGROUND), (2, ALARM if is_lost else INK)):
            draw.line(outline, fill=(*colour, 255), width=width * SUPERSAMPLING, joint="curve")
    merged = _merge_layer(photo, layer)
    writer = ImageDraw.Draw(merged)
    for square, label in zip(corners, labels, strict=True):
        x, y = np.clip(square.min(axis=0), (4, CAPTION_SIZE + 4), np.array(photo.size) - 1)
        write(writer, (float(x), float(y) - 4), label, CAPTION_SIZE, anchor="lb")
    return merged


def matches(left: Image.Image, places: Array, right: Image.Image, found: Array, scores: Array) -> Image.Image:
    """Two images side by side, each of `places` (K, 2) on the left joined to `found` (K, 2) on the right."""
    image = row([left, right])
    across = found + np.array([left.width + GAP, 0])
    layer, draw = _new_layer(image)
    opacities = _opacities(scores, len(places))
    for start, end, colour, opacity in zip(places, across, palette(len(places)), opacities, strict=True):
        if np.isfinite([*start, *end]).all():
            ends = [(float(value) + 0.5) * SUPERSAMPLING for value in (*start, *end)]
            draw.line(ends, fill=(*colour, round(150 * opacity)), width=2 * SUPERSAMPLING)
    joined = _merge_layer(image, layer)
    return points(points(joined, places), across, scores)


def legend(labels: Sequence[str], height: int, values: Array | None = None) -> Image.Image:
    """Landmark names beside their colours, with their values if any, as a panel of that height in px."""
    texts = [
        escape_controls(label) if values is None else f"{escape_controls(label)}  {value:.2f}"
        for label, value in zip(labels, labels if values is None else values, strict=True)
    ]
    step = min(24.0, height / max(len(texts), 1))
    size = round(min(14.0, 0.7 * step))
    font = ImageFont.load_default(size)
    texts = [_shorten(text, font, PANEL - 36) for text in texts]
    panel = Image.new("RGB", (round(max(font.getlength(text) for text in texts)) + 36, height), BACKGROUND)
    writer = ImageDraw.Draw(panel)
    for k, colour in enumerate(palette(len(texts))):
        y = (k + 0.5) * step + 4
        writer.ellipse((6, y - size / 3, 6 + 2 * size / 3, y + size / 3), fill=colour)
        write(writer, (24, y), texts[k], size)
    return panel


def heat(image: Image.Image, similarity: Array) -> Image.Image:
    """A similarity map (h, w) as a heat map over the square image it belongs to, dark at its lowest value."""
    spread = similarity.max() - similarity.min()
    level = (similarity - similarity.min()) / (spread if spread > 0 else 1)
    stops = np.linspace(0, 1, len(HEAT_STOPS))
    colours = np.stack([np.interp(level, stops, HEAT_STOPS[:, channel]) for channel in range(3)], axis=-1)
    layer = Image.fromarray(colours.round().astype(np.uint8)).resize(image.size, Image.Resampling.BICUBIC)
    return Image.blend(image.convert("L").convert("RGB"), layer, 0.6)


def cells(image: Image.Image, side: int, tinted: Array, framed: Array) -> Image.Image:
    """The image under a map of side x side cells: those with the numbers `tinted` tinted, those `framed` framed."""
    layer, draw = _new_layer(image)
    width, height = layer.width / side, layer.height / side
    for numbers, style in ((tinted, {"fill": (*TINT, 130)}), (framed, {"outline": (*INK, 255), "width": 9})):
        for row, column in zip(*np.divmod(numbers, side), strict=True):
            corners = (column * width, row * height, (column + 1) * width - 1, (row + 1) * height - 1)
            draw.rectangle(corners, **style)
    return _merge_layer(image, layer)


def principal_colours(maps: Array, size: tuple[int, int]) -> list[Image.Image]:
    """Maps (B, h, w, C) as images of `size`: the first three principal components of all cells in red, green and blue.

    The maps share the components, so a colour means the same on each. Each colour spans the 2nd to 98th percentile.
    """
    cells = maps.reshape(-1, maps.shape[-1]).astype(np.float64)
    cells = cells - cells.mean(axis=0)
    _, axes = np.linalg.eigh(cells.T @ cells)
    main = axes[:, ::-1][:, :3]
    main = main * np.sign(
        main[np.abs(main).argmax(axis=0), range(3)]
    )  # the sign of an eigenvector is arbitrary: fix it
    parts = cells @ main
    low, high = np.percentile(parts, (2, 98), axis=0)
    levels = ((parts - low) / np.maximum(high - low, 1e-12)).clip(0, 1).reshape(*maps.shape[:3], 3)
    images = [Image.fromarray((level * 255).round().astype(np.uint8)) for level in levels]
    return [image.resize(size, Image.Resampling.BICUBIC) for image in images]


def row(panels: Sequence[Image.Image], captions: Sequence[str] | None = None) -> Image.Image:
    """Panels side by side, with captions below if there are any."""
    width = sum(panel.width for panel in panels) + GAP * (len(panels) - 1)
    height = max(panel.height for panel in panels)
    sheet = Image.new("RGB", (width, height + (CAPTION_HEIGHT if captions else 0)), BACKGROUND)
    writer = ImageDraw.Draw(sheet)
    left = 0
    for index, panel in enumerate(panels):
        sheet.paste(panel, (left, 0))
        if captions:
            text = _shorten(escape_controls(captions[index]), ImageFont.load_default(CAPTION_SIZE), panel.width - 8)
            write(writer, (left + panel.width / 2, height + CAPTION_HEIGHT / 2), text, CAPTION_SIZE, anchor="mm")
        left += panel.width + GAP
    return sheet


def grid(panels: Sequence[Image.Image], captions: Sequence[str] | None = None) -> Image.Image:
    """Panels of one size in rows of `PANELS_PER_ROW` or more, with captions below if there are any."""
    count = max(PANELS_PER_ROW, math.ceil(math.sqrt(len(panels))))
    rows = [slice(start, start + count) for start in range(0, len(panels), count)]
    return stack_rows([row(panels[part], captions[part] if captions else None) for part in rows])


def _shorten(text: str, font: Any, width: int) -> str:
    """The text, or as much of its end as fits into `width` px: the end of a file name tells more than its start."""
    shown = text
    while len(shown) > 1 and font.getlength(shown) > width:
        text = text[1:]
        shown = "…" + text
    return shown


def stack_rows(rows: Sequence[Image.Image]) -> Image.Image:
    """Images one below the other."""
    height = sum(image.height for image in rows) + GAP * (len(rows) - 1)
    sheet = Image.new("RGB", (max(image.width for image in rows), height), BACKGROUND)
    top = 0
    for image in rows:
        sheet.paste(image, (0, top))
        top += image.height + GAP
    return sheet


def columns(rows: Sequence[Image.Image]) -> Image.Image:
    """Images one below the other, in as many columns side by side as make a sheet of more than `ROWS` about square."""
    area = sum(image.width * image.height for image in rows)
    wanted = math.sqrt(area) / max(image.height for image in rows)  # rows of a square sheet
    count = max(ROWS, math.ceil(wanted))
    return row([stack_rows(rows[start : start + count]) for start in range(0, len(rows), count)])
