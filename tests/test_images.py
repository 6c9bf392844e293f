import io
import os
import re
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

from scemae.errors import BoxInputError, ImageInputError, ScemaeError
from scemae.geometry import Crop, central_box, sample_view
from scemae.images import ImageBatch, is_single, iter_photos
from scemae.patches import cut_patch, validate_box
from scemae.photo import Photo

quick = settings(deadline=None, max_examples=25)
PIXELS = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
PICTURE = Image.fromarray(PIXELS)
GREY = PIXELS[..., 0]
CHANNELS_FIRST = torch.from_numpy(PIXELS.transpose(2, 0, 1).copy())


def noise(width, height, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def file_bytes(image, kind="PNG", **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def pixels_of(images):
    """The pixels of the only photo among `images`."""
    [photo] = iter_photos(images)
    assert photo.image.mode == "RGB"
    return np.asarray(photo.image)


def grey(values):
    return np.repeat(np.asarray(values, np.uint8)[..., None], 3, axis=-1)


def as_view(pixels):
    """Pixels (H, W, 3), uint8, as the view (3, H, W), 0..1, that shows them."""
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1) / 255


def filled(mode, colour):
    return Image.new(mode, (4, 3), colour)


def palette(transparency=None):
    """A picture of the colours 0 (red) and 1 (blue), side by side."""
    image = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    image.putpalette([255, 0, 0, 0, 0, 255])
    if transparency is not None:
        image.info["transparency"] = transparency
    return image


# What it is, and how it comes.


@pytest.mark.parametrize(
    "wrap", [str, Path, lambda path: path.read_bytes(), lambda path: io.BytesIO(path.read_bytes())]
)
def test_files(tmp_path, wrap):
    path = tmp_path / "face.png"
    path.write_bytes(file_bytes(PICTURE))
    assert np.array_equal(pixels_of(wrap(path)), PIXELS)


def test_open_files_and_pictures_keep_their_names(tmp_path):
    path = tmp_path / "face.png"
    path.write_bytes(file_bytes(PICTURE))
    with path.open("rb") as file, Image.open(path) as opened:
        assert [photo.source for photo in iter_photos([path, str(path), file, opened])] == [str(path)] * 4
    assert [photo.source for photo in iter_photos([PICTURE, PIXELS, file_bytes(PICTURE)])] == [
        "image 0",
        "image 1",
        "image 2",
    ]


@pytest.mark.parametrize(
    ("image", "colour"),
    [
        (filled("L", 77), (77, 77, 77)),
        (filled("LA", (77, 255)), (77, 77, 77)),
        (filled("La", (77, 255)), (77, 77, 77)),  # faults D: a raw ValueError
        (filled("RGB", (10, 20, 30)), (10, 20, 30)),
        (filled("RGBA", (10, 20, 30, 255)), (10, 20, 30)),
        (filled("RGBA", (0, 100, 200, 51)), (204, 224, 244)),  # a fifth of it on white
        (filled("1", 1), (255, 255, 255)),
        (filled("1", 0), (0, 0, 0)),
        (filled("I;16", 65535), (255, 255, 255)),
        (filled("I;16", 257 * 77), (77, 77, 77)),
        (filled("I;16B", 257 * 77), (77, 77, 77)),
        (filled("I", 257 * 77 + 100), (77, 77, 77)),
        (filled("I", 257 * 77 + 200), (78, 78, 78)),
        (filled("F", 0.5), (128, 128, 128)),
        (filled("F", 1.0), (255, 255, 255)),
        (filled("CMYK", (0, 0, 0, 0)), (255, 255, 255)),
        (filled("CMYK", (0, 255, 255, 0)), (255, 0, 0)),
        (filled("HSV", (0, 0, 90)), (90, 90, 90)),
    ],
    ids=lambda value: getattr(value, "mode", None),
)
def test_pil_modes(image, colour):
    assert (pixels_of(image) == colour).all()


def test_palettes():
    red, blue, white = (255, 0, 0), (0, 0, 255), (255, 255, 255)
    assert pixels_of(palette()).tolist() == [[[*red], [*blue]]]
    assert pixels_of(palette(transparency=1)).tolist() == [[[*red], [*white]]]
    assert pixels_of(palette(transparency=b"\x00\xff")).tolist() == [[[*white], [*blue]]]
    assert pixels_of(file_bytes(palette(transparency=1))).tolist() == [[[*red], [*white]]]


def test_a_transparent_colour_is_laid_on_white():
    image = filled("RGB", (10, 20, 30))
    image.putpixel((0, 0), (1, 2, 3))
    image.info["transparency"] = (10, 20, 30)
    pixels = pixels_of(file_bytes(image))
    assert pixels[0, 0].tolist() == [1, 2, 3]
    assert (pixels[0, 1:] == 255).all()
    assert (pixels[1:] == 255).all()


def test_what_is_transparent_everywhere_is_refused():
    """Faults A4: it became white."""
    for image in (filled("LA", (77, 0)), filled("RGBA", (10, 20, 30, 0)), np.dstack([PIXELS, np.zeros_like(GREY)])):
        refused(image, "image 0 is transparent everywhere", "pass the others only")
    seen = filled("RGBA", (10, 20, 30, 0))
    seen.putpixel((1, 0), (10, 20, 30, 255))
    assert pixels_of(seen)[0, :2].tolist() == [[255] * 3, [10, 20, 30]]


def test_the_callers_picture_is_left_as_it_was():
    image = filled("RGBA", (10, 20, 30, 51))
    pixels_of(image)
    assert image.mode == "RGBA"
    assert image.getpixel((0, 0)) == (10, 20, 30, 51)


@pytest.mark.parametrize(
    ("image", "wanted"),
    [
        (GREY, grey(GREY)),
        (GREY[..., None], grey(GREY)),
        (PIXELS, PIXELS),
        (PIXELS[None], PIXELS),
        (np.asfortranarray(PIXELS)[:, ::-1], PIXELS[:, ::-1]),
        (np.dstack([PIXELS, np.full((20, 30), 255, np.uint8)]), PIXELS),
        (
            np.dstack([PIXELS, np.where(GREY > 99, 255, 0).astype(np.uint8)]),
            np.where(GREY[..., None] > 99, PIXELS, 255),
        ),
        (PIXELS.astype(np.uint16) * 257, PIXELS),
        (GREY.astype(np.uint16) * 257, grey(GREY)),
        (PIXELS / 255, PIXELS),
        ((PIXELS / 255).astype(np.float32), PIXELS),
        ((PIXELS / 255).astype(np.float16), PIXELS),
        (GREY / 255, grey(GREY)),
        ((PIXELS / 255)[None], PIXELS),
        (CHANNELS_FIRST, PIXELS),
        (CHANNELS_FIRST[None], PIXELS),
        (CHANNELS_FIRST[:1], grey(GREY)),
        (CHANNELS_FIRST[0], grey(GREY)),
        (CHANNELS_FIRST[None, :1], grey(GREY)),
        (torch.cat([CHANNELS_FIRST, torch.full((1, 20, 30), 255, dtype=torch.uint8)]), PIXELS),
        (CHANNELS_FIRST / 255, PIXELS),
        ((CHANNELS_FIRST / 255).double()[None], PIXELS),
        ((CHANNELS_FIRST / 255).half(), PIXELS),
        ((CHANNELS_FIRST / 255).requires_grad_(), PIXELS),
        (CHANNELS_FIRST.int().mul(257).to(torch.uint16), PIXELS),
        (PIXELS.astype(">u2") * 257, PIXELS),  # faults D
        (PIXELS.astype(np.int32) * 257, PIXELS),  # faults A4: as Pillow's mode I
        (CHANNELS_FIRST.long() * 257, PIXELS),
    ],
)
def test_arrays_and_tensors(image, wanted):
    assert np.array_equal(pixels_of(image), wanted)


def test_16_bits_are_rounded_to_the_nearest_of_8():
    deep = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    wanted = grey(np.round(deep / 257))
    assert np.array_equal(pixels_of(deep), wanted)
    assert np.array_equal(pixels_of(file_bytes(Image.fromarray(deep))), wanted)
    assert np.array_equal(pixels_of(Image.fromarray(deep.astype(np.int32))), wanted)


DEEP = [  # a picture of pixels 0..brightest, of more than 8 bits
    pytest.param(lambda pixels: pixels.astype(np.uint16), id="uint16"),
    pytest.param(lambda pixels: pixels.astype(">u2"), id="big-endian"),
    pytest.param(lambda pixels: pixels.astype(np.int32), id="int32"),
    pytest.param(lambda pixels: pixels / 65535, id="float"),
    pytest.param(lambda pixels: torch.from_numpy(pixels)[None], id="int64 tensor"),
    pytest.param(lambda pixels: Image.fromarray(pixels.astype(np.uint16)), id="I;16"),
    pytest.param(lambda pixels: Image.fromarray(pixels.astype(np.int32)), id="I"),
    pytest.param(lambda pixels: Image.fromarray((pixels / 65535).astype(np.float32)), id="F"),
    pytest.param(lambda pixels: file_bytes(Image.fromarray(pixels.astype(np.uint16))), id="PNG"),
    pytest.param(lambda pixels: file_bytes(Image.fromarray(pixels.astype(np.int32)), "TIFF"), id="TIFF"),
]


@pytest.mark.parametrize("deepen", DEEP)
def test_deep_pictures_that_would_turn_black_are_refused(deepen):
    """Faults A4: 8 or 12 bits in 16. A sixteenth of full scale is the limit."""
    for brightest in (1, 255, 1023, 4095):
        refused(deepen(np.linspace(0, brightest, 600).astype(int).reshape(20, 30)), "image 0", "would be\\s+black")
    assert pixels_of(deepen(np.linspace(0, 4100, 600).astype(int).reshape(20, 30))).max() == 16


def test_opacity_does_not_count_as_bright():
    """Faults A4."""
    for full, kind in ((65535, np.uint16), (1, np.float32)):
        array = np.dstack([PIXELS * kind(full / 65535), np.full_like(GREY, full, kind)])
        refused(array.astype(kind), "would be\\s+black")


def test_deep_pictures_that_would_turn_white_are_refused():
    """Faults A4: Pillow's mode I was cut off at 65535."""
    for brightest in (65536, 2**31 - 1):
        pixels = np.array([[0, brightest]], np.int32)
        for image in (pixels, Image.fromarray(pixels), file_bytes(Image.fromarray(pixels), "TIFF")):
            refused(image, "int32 pixels from 0 to", "0..65535")
    refused(Image.fromarray(np.array([[-1, 60000]], np.int32)), "from -1 to 60000")


def test_what_rounding_leaves_beyond_0_and_1_is_cut_off():
    pixels = np.tile(np.array([-1e-7, 0.5, 1 + 1e-7]), (4, 4, 1))
    [photo] = iter_photos(pixels)
    assert photo.image.getpixel((0, 0)) == (0, 128, 255)


def test_bfloat16_is_as_good_as_it_can_be():
    found = pixels_of((CHANNELS_FIRST / 255).bfloat16())
    assert np.abs(found.astype(int) - PIXELS).max() <= 1


def test_batches_come_in_their_order():
    batch = np.stack([PIXELS, 255 - PIXELS])
    for images in (batch, torch.from_numpy(batch).permute(0, 3, 1, 2), list(batch), iter(batch), np.array(batch)):
        first, second = iter_photos(images)
        assert np.array_equal(np.asarray(first.image), PIXELS)
        assert np.array_equal(np.asarray(second.image), 255 - PIXELS)
        assert second.source == "image 1"


def test_images_of_all_kinds_mix(tmp_path):
    path = tmp_path / "face.png"
    path.write_bytes(file_bytes(noise(9, 7)))
    images = [path, PIXELS, CHANNELS_FIRST / 255, file_bytes(PICTURE), filled("1", 1), GREY]
    sizes = [(9, 7), (30, 20), (30, 20), (30, 20), (4, 3), (30, 20)]
    assert [photo.image.size for photo in iter_photos(images)] == sizes
    assert [photo.image.size for photo in iter_photos(image for image in images)] == sizes
    assert [photo.image.size for photo in iter_photos(np.array([str(path)] * 2))] == [(9, 7)] * 2
    assert list(iter_photos([])) == []


def test_a_generator_is_read_one_image_at_a_time():
    def images():
        yield PIXELS
        raise AssertionError("read too far")

    assert isinstance(next(iter_photos(images())), Photo)


def test_is_single():
    for one in ("a.jpg", Path("a.jpg"), b"", io.BytesIO(), PICTURE, PIXELS, GREY, CHANNELS_FIRST, CHANNELS_FIRST[0]):
        assert is_single(one)
    for many in ([], ["a.jpg"], (PIXELS,), PIXELS[None], CHANNELS_FIRST[None], iter([PIXELS]), np.array(["a.jpg"])):
        assert not is_single(many)


@pytest.mark.parametrize(
    ("images", "count"),
    [
        pytest.param(PIXELS, 1, id="one array"),
        pytest.param("a.jpg", 1, id="one path"),
        pytest.param([PIXELS] * 3, 3, id="list"),
        pytest.param(np.stack([PIXELS] * 2), 2, id="batch"),
        pytest.param(iter([PIXELS]), None, id="stream"),
        pytest.param([], 0, id="empty"),
    ],
)
def test_a_batch_counts_its_images_without_reading_them(images, count):
    assert ImageBatch(images).count == count


BOXES = [(0, 0, 20, 20), None, (1, 2, 30, 20)]


@pytest.mark.parametrize("boxes", [BOXES, tuple(BOXES), iter(BOXES), None], ids=["list", "tuple", "stream", "none"])
@pytest.mark.parametrize("wrap", [list, iter])
def test_a_batch_gives_each_photo_with_its_box(wrap, boxes):
    middle = central_box(30, 20)
    wanted = [middle] * 3 if boxes is None else [box or middle for box in BOXES]
    boxes = iter(BOXES) if boxes is not None and not hasattr(boxes, "__len__") else boxes
    pairs = list(ImageBatch(wrap([PIXELS, GREY, PICTURE]), boxes))
    assert [face.box for face in pairs] == wanted
    assert [face.photo.image.size for face in pairs] == [(30, 20)] * 3


@pytest.mark.parametrize(
    "boxes", [(0, 0, 20, 20), [0, 0, 20, 20], np.array([0, 0, 20, 20]), [(0, 0, 20, 20)], np.array([[0, 0, 20, 20]])]
)
def test_one_image_takes_a_box_or_a_list_of_one(boxes):
    [face] = ImageBatch(PICTURE, boxes)
    assert list(face.box) == [0, 0, 20, 20]


# What it cannot be.


def refused(images, *words, error=ImageInputError):
    """Reading `images` raises an error that is a ValueError too and says all the words."""
    with pytest.raises(error) as caught:
        list(iter_photos(images))
    assert isinstance(caught.value, ScemaeError)
    assert isinstance(caught.value, ValueError)
    for word in words:
        assert re.search(word, str(caught.value)), str(caught.value)


def test_files_that_cannot_be_read(tmp_path):
    missing, text, cut = (tmp_path / name for name in ("missing.jpg", "text.jpg", "cut.jpg"))
    text.write_text("not a face")
    cut.write_bytes(file_bytes(noise(200, 200), "JPEG")[:5000])
    refused(missing, "missing.jpg", "no such file")
    refused([PICTURE, str(missing)], "missing.jpg")
    refused(text, "text.jpg", "not an image")
    refused(str(cut), "cut.jpg", "truncated")
    refused([PICTURE, cut.read_bytes()], "image 1", "truncated")
    refused(Image.open(cut), "cut.jpg", "truncated")
    refused(tmp_path, re.escape(str(tmp_path)), "is a folder")  # faults D: "may be truncated"
    refused("https://example.org/face.jpg", "https://example.org/face.jpg", "download")
    refused(b"", "image 0")
    refused(io.StringIO("text"), "image 0")


class Stream(io.RawIOBase):
    """Bytes that come once."""

    def __init__(self, content):
        self.content = io.BytesIO(content)

    def read(self, size=-1):
        return self.content.read(size)


@pytest.mark.parametrize("wrap", [bytes, io.BytesIO, Stream])
def test_a_png_with_a_wrong_checksum_is_refused(wrap, monkeypatch):
    """The last one of the pixels is not read with them, so that the last rows could differ without a word."""
    content = file_bytes(noise(40, 40), compress_level=1)
    end = content.rindex(b"IEND") - 4
    assert np.array_equal(pixels_of(wrap(content)), np.asarray(noise(40, 40)))
    for place in (*range(end - 40, end), end + 5):
        damaged = wrap(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        refused(damaged, "image 0 cannot be read, it may be truncated")
    refused(wrap(content[:end]), "image 0 cannot be read, it may be truncated")
    monkeypatch.setattr("PIL.ImageFile.LOAD_TRUNCATED_IMAGES", True)
    assert pixels_of(wrap(content[: end - 1000])).shape == (40, 40, 3)  # as the caller wants it


def test_what_the_system_does_not_open_is_not_called_truncated(tmp_path, monkeypatch):
    """Faults D."""

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    path = tmp_path / "face.png"
    path.write_bytes(file_bytes(PICTURE))
    monkeypatch.setattr(Image, "open", lambda *_, **__: refuse())
    refused(path, r"face\.png cannot be opened: Permission denied\.$")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_only_regular_files_are_opened(tmp_path):
    """Faults C7: a FIFO without a writer hung."""
    os.mkfifo(tmp_path / "pipe.jpg")
    refused(tmp_path / "pipe.jpg", r"pipe\.jpg is a pipe, socket or device")
    refused("/dev/zero", "/dev/zero is a pipe, socket or device")


@pytest.mark.parametrize("kind", ["EPS", "PDF", "SPIDER", "MSP"])
def test_files_of_other_formats_are_refused(kind, tmp_path, monkeypatch):
    """Faults C6: a .jpg that is EPS goes to Ghostscript."""
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_, **__: pytest.fail("Ghostscript was called"))
    path = tmp_path / "face.jpg"
    image = {"SPIDER": PICTURE.convert("F"), "MSP": PICTURE.convert("1")}.get(kind, PICTURE)
    path.write_bytes(file_bytes(image, kind))
    for file in (path, str(path), path.read_bytes(), io.BytesIO(path.read_bytes())):
        refused(file, "is not an image of a kind that is read here")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "TGA", "MPO", "JPEG2000", "ICO"])
def test_files_of_these_formats_are_read(kind):
    """Faults C6."""
    assert pixels_of(file_bytes(noise(64, 64), kind)).shape == (64, 64, 3)


def test_formats_of_plugins_are_read(monkeypatch):
    """Faults C6: HEIF, say, once pillow-heif has registered it."""
    Image.init()
    monkeypatch.setitem(Image.OPEN, "HEIF", (lambda *_: PICTURE.copy(), lambda prefix: prefix.startswith(b"made-up")))
    assert np.array_equal(pixels_of(b"made-up heif"), PIXELS)


def test_paths_of_bytes(tmp_path):
    """Faults D: bytes are the contents of a file, unless a path-like gives them."""

    class BytesPath:
        def __fspath__(self):
            return os.fsencode(tmp_path / "face.png")

    (tmp_path / "face.png").write_bytes(file_bytes(PICTURE))
    assert np.array_equal(pixels_of(BytesPath()), PIXELS)
    refused(os.fsencode(tmp_path / "face.png"), "image 0 is not an image", "a path has to be text or a Path")


def test_a_decompression_bomb(monkeypatch, tmp_path):
    path = tmp_path / "bomb.png"
    path.write_bytes(file_bytes(PICTURE))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    refused(path, "bomb.png", "MAX_IMAGE_PIXELS")
    refused([path.read_bytes()], "image 0", "MAX_IMAGE_PIXELS")


@pytest.mark.parametrize(
    ("image", "word"),
    [
        (np.zeros((0, 10, 3), np.uint8), "shape"),
        (np.zeros((10, 0), np.uint8), "shape"),
        (Image.new("RGB", (0, 5)), "is empty"),
        (np.zeros((10, 10, 2), np.uint8), "shape"),
        (np.zeros((3, 10, 10), np.uint8), "shape"),
        (np.zeros(10, np.uint8), "shape"),
        (np.array(5, np.uint8), "shape"),
        (torch.zeros(10, 10, 3), r"\(3, H, W\)"),
        (torch.zeros(2, 10, 10), "shape"),
        (np.zeros((10, 10, 3), np.int64), "int64"),
        (torch.zeros(3, 10, 10, dtype=torch.int64), "int64"),
        (np.zeros((10, 10), bool), "bool"),
        (torch.zeros(3, 10, 10, device="meta"), "meta"),  # faults D
        (torch.zeros(3, 10, 10).to_sparse(), "sparse"),
        (torch.full((3, 10, 10), 2.0).to(torch.float8_e4m3fn), "0..1"),
        (torch.zeros(3, 10, 10, dtype=torch.complex64), "complex64"),
        (np.full((10, 10, 3), 200.0), "0..1"),
        (np.full((10, 10, 3), -0.1), "0..1"),
        (torch.randn(3, 10, 10) * 2 - 5, "0..1"),
        (Image.new("F", (5, 5), 2.0), "0..1"),
        (np.full((10, 10, 3), np.nan), "nan"),
        (np.full((10, 10, 3), np.inf), "nan"),
        (torch.full((3, 10, 10), torch.nan), "nan"),
        (None, "NoneType"),
        (5, "int"),
        ([[1, 2, 3]], "list"),
    ],
)
def test_other_things_are_refused_by_name(image, word):
    # Second in a list the message names it; what is no image at all is also refused alone.
    refused([PICTURE, image], "image 1", word)
    refused(image, word)


def test_a_batch_within_a_list_is_named():
    """Faults D."""
    for batch in (np.stack([PIXELS] * 2), torch.stack([CHANNELS_FIRST] * 2)):
        refused([batch], "image 0 is a batch of shape", "pass the batch itself")


def test_batches_of_tensors_that_hold_no_pixels():
    """Faults D."""
    refused(torch.zeros(2, 3, 10, 10, device="meta"), "image 0", "meta")
    refused(torch.zeros(2, 3, 10, 10).to_sparse(), "sparse")


class Table:
    """What a DataFrame of pandas or polars does here: it iterates over its columns."""

    def __init__(self, **columns):
        self.values, self.columns = columns, list(columns)

    def __len__(self):
        return len(self.values[self.columns[0]])

    def __iter__(self):
        return iter(self.columns)

    def __getitem__(self, names):
        return Table(**{name: self.values[name] for name in names})

    def to_numpy(self):
        return np.column_stack(list(self.values.values()))


def test_boxes_in_a_data_frame():
    """Faults D: "no box for" the fifth image, as there are four columns."""
    columns = {"y0": [1, 2], "x0": [3, 4], "x1": [20, 21], "y1": [18, 19], "path": ["a", "b"]}
    boxes = [list(face.box) for face in ImageBatch([PICTURE] * 2, Table(**columns))]
    assert boxes == [[3, 1, 20, 18], [4, 2, 21, 19]]
    with pytest.raises(BoxInputError, match="boxes has the columns x, y; wanted x0, y0, x1, y1"):
        ImageBatch([PICTURE] * 2, Table(x=[1, 2], y=[1, 2]))
    with pytest.raises(BoxInputError, match="2 boxes for 3 images"):
        ImageBatch([PICTURE] * 3, Table(**columns))


@pytest.mark.parametrize("images", [PICTURE, [PICTURE] * 2, iter([PICTURE])])
@pytest.mark.parametrize("boxes", [5, np.array(5.0), torch.tensor(5.0)])
def test_a_number_is_no_box(images, boxes):
    """Faults D: these were TypeErrors of Python, numpy and torch."""
    with pytest.raises(BoxInputError, match=r"boxes is .*5.*; wanted one \(x0, y0, x1, y1\) per image"):
        ImageBatch(images, boxes)


def test_photos_that_are_skipped_leave_memory():
    """Faults B3: the traceback of the error about its box kept each of them."""
    batch = ImageBatch([PICTURE] * 3, [(0, 0, 20, 20), (0, 0, 1, 1), (0, 0, 20, 20)], on_error="skip")
    with pytest.warns(UserWarning, match="smaller than 8 px"):
        list(batch)
    [(source, error, _)] = batch.failed
    assert (source, type(error), error.__traceback__, error.__context__) == ("image 1", BoxInputError, None, None)


def test_one_pixel_is_an_image_but_too_small_for_a_face():
    [photo] = iter_photos(np.zeros((1, 1, 3), np.uint8))
    with pytest.raises(ImageInputError, match=r"image 0 is 1 x 1 pixels: too small"):
        validate_box(None, photo)


# Boxes.


PHOTO = Photo("face.jpg", Image.new("RGB", (200, 100)))


@pytest.mark.parametrize(
    "box",
    [
        (10, 20, 60, 90),
        [0, 0, 200, 100],
        np.array([10, 20, 60, 90]),
        torch.tensor([10, 20, 60, 90]),
        torch.tensor([10.0, 20, 60, 90], requires_grad=True),  # faults D
        torch.tensor([10, 20, 60, 90], dtype=torch.bfloat16),
        (-20, 0, 60, 80),
    ],
)
def test_good_boxes_are_taken_as_they_are(box):
    found = validate_box(box, PHOTO)
    assert found == tuple(map(float, box))
    assert all(type(number) is float for number in found)


def test_no_box_is_the_central_one():
    assert validate_box(None, PHOTO) == central_box(200, 100)


@pytest.mark.parametrize(
    ("box", "word"),
    [
        ((60, 20, 10, 90), "inverted"),
        ((10, 90, 60, 20), "inverted"),
        ((10, 20, 10, 90), "inverted or empty"),
        ((300, 20, 400, 90), "outside"),
        ((-80, 20, 20, 90), "outside"),
        ((150, 50, 260, 150), "outside"),
        ((10, 20, 15, 25), "smaller"),
        ((0.1, 0.2, 0.6, 0.9), "smaller"),
        ((np.nan, 20, 60, 90), "four numbers"),
        ((10, 20, np.inf, 90), "four numbers"),
        ((10, 20, 60), "four numbers"),
        ((10, 20, 60, 90, 1), "four numbers"),
        ([(10, 20, 60, 90)], "four numbers"),
        (7, "four numbers"),
        (torch.zeros(4, device="meta"), "four numbers"),  # faults D
        ([torch.zeros((), device="meta")] * 4, "four numbers"),
    ],
)
def test_bad_boxes_are_refused(box, word):
    with pytest.raises(BoxInputError, match=rf"face\.jpg.*{word}"):
        validate_box(box, PHOTO)


# Patches.


@pytest.mark.parametrize(("width", "height"), [(150, 150), (178, 218), (1000, 700), (136, 136), (101, 97)])
def test_the_protocol_is_resize_to_136_and_crop_to_96(width, height):
    image = noise(width, height)
    crop = Crop.from_box(central_box(width, height))
    view = sample_view(cut_patch(image, crop, at_input_scale=True), crop)

    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    resized = image.resize((136, 136), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))
    wanted = as_view(np.asarray(resized)[20:116, 20:116])
    assert (view - wanted).abs().max() <= 1 / 255 + 1e-5


def square_crop(side, x, y, size=96):
    """A square box on a 200 x 170 image, at least half of it inside."""
    x0, y0 = x * (200 - side / 2) - side / 4, y * (170 - side / 2) - side / 4
    return Crop.from_box((x0, y0, x0 + side, y0 + side), size)


places = (st.floats(8, 260), st.floats(0, 1), st.floats(0, 1))


@quick
@given(st.builds(square_crop, *places))
def test_a_patch_spans_twice_the_crop_and_is_never_finer_than_the_photo(crop):
    patch = cut_patch(noise(200, 170), crop)
    step = patch.to_image_affine[0, 0]
    assert step == patch.to_image_affine[1, 1] == max(crop.scale / 2, 1)
    assert patch.serves(crop)
    count = len(patch.pixels)
    assert patch.pixels.shape == (count, count, 3)
    assert 0 <= count * step - 192 * crop.scale <= 2 * step
    middle_of_patch = patch.to_image_affine @ ((count - 1) / 2, (count - 1) / 2, 1)
    assert np.abs(middle_of_patch - crop.to_image((47.5, 47.5))).max() <= (0.5 if step == 1 else 1e-6)


@quick
@given(st.builds(square_crop, *places, st.sampled_from([96, 97])))
def test_at_input_scale_the_view_is_a_slice_of_the_patch(crop):
    patch = cut_patch(noise(200, 170), crop, at_input_scale=True)
    assert patch.to_image_affine[0, 0] == pytest.approx(crop.scale)
    first = patch.to_patch(crop.to_image((0, 0)))
    assert np.abs(first - first.round()).max() < 1e-6
    column, row = first.round().astype(int)
    wanted = as_view(patch.pixels[row : row + crop.size, column : column + crop.size])
    assert (sample_view(patch, crop) - wanted).abs().max() < 1e-3


@quick
@given(st.floats(0, 60), st.floats(0, 30), st.floats(20, 180))
def test_a_patch_at_the_photos_resolution_holds_its_own_pixels(x, y, side):
    image = noise(200, 170)
    patch = cut_patch(image, Crop.from_box((x, y, x + side, y + side)))
    assert patch.to_image_affine[0, 0] == 1
    left, top = patch.to_image_affine[:, 2].astype(int)
    assert np.array_equal(patch.to_image_affine[:, 2], (left, top))
    rows, columns = (np.arange(len(patch.pixels)) + start for start in (top, left))
    inside = (rows >= 0) & (rows < 170), (columns >= 0) & (columns < 200)
    found = patch.pixels[inside[0]][:, inside[1]]
    assert np.array_equal(found, np.asarray(image)[rows[inside[0]]][:, columns[inside[1]]])


def test_beyond_the_image_its_pixels_are_mirrored():
    image = noise(100, 80)
    patch = cut_patch(image, Crop.from_box((0, 0, 40, 40)))
    left, top = -patch.to_image_affine[:, 2].astype(int)
    assert left > 10
    assert np.array_equal(patch.pixels[:, left - 10 : left], patch.pixels[:, left : left + 10][:, ::-1])
    assert np.array_equal(patch.pixels[top - 10 : top], patch.pixels[top : top + 10][::-1])


def test_a_patch_of_a_large_photo_is_anti_aliased():
    """A fine checkerboard, seen from afar, is an even grey."""
    rows, columns = np.mgrid[:960, :960]
    image = Image.fromarray(np.uint8(255 * ((rows + columns) % 2))).convert("RGB")
    pixels = cut_patch(image, Crop.from_box((100, 100, 868, 868))).pixels
    assert np.abs(pixels.astype(int) - 127.5).max() < 3


def test_broken_exif_is_as_good_as_none():
    assert np.array_equal(pixels_of(file_bytes(PICTURE, exif=b"Exif\0\0no orientation here")), PIXELS)


def test_another_tag_of_exif_that_is_wrong_does_not_keep_a_photo_from_being_turned():
    """XResolution as text: Pillow cannot write such EXIF, as `ImageOps.exif_transpose` would."""
    entries = struct.pack(">HHHIHHHHI4s", 2, 0x0112, 3, 1, 6, 0, 0x011A, 2, 3, b"72\0\0")
    exif = b"Exif\0\0MM\0*" + struct.pack(">I", 8) + entries + bytes(4)
    assert np.array_equal(pixels_of(file_bytes(PICTURE, exif=exif)), np.rot90(PIXELS, -1))


def test_a_photo_that_is_passed_on_is_not_turned_again():
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    for kind in ("PNG", "JPEG"):
        [photo] = iter_photos(file_bytes(PICTURE, kind, exif=exif))
        assert photo.image.size == (20, 30)
        assert np.array_equal(pixels_of(photo.image), np.asarray(photo.image))


def test_an_error_of_a_reader_names_the_file(monkeypatch, tmp_path):
    def load(self):
        raise RuntimeError("decoder says no")

    path = tmp_path / "face.png"
    path.write_bytes(file_bytes(PICTURE))
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", load)
    for image in (path, Image.open(path)):
        refused(image, "face.png", "decoder says no")


@pytest.mark.parametrize("box", [("a", "b", "c", "d"), [(1, 2), (3,)], {"x0": 1}, "10,20,60,90"])
def test_boxes_that_are_no_numbers_are_named(box):
    with pytest.raises(BoxInputError, match=r"face\.jpg"):
        validate_box(box, PHOTO)


@pytest.mark.parametrize(("width", "height"), [(3, 400), (400, 3), (5, 1000)])
def test_a_sliver_of_an_image_makes_a_patch(width, height):
    [photo] = iter_photos(Image.new("RGB", (width, height), (10, 20, 30)))
    patch = cut_patch(photo.image, Crop.from_box(validate_box((0, 0, width, height), photo)))
    assert (patch.pixels == (10, 20, 30)).all()
    assert patch.pixels.shape[0] == patch.pixels.shape[1]
