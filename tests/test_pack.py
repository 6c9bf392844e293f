import io
import json
import os
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image
from training_runs import pack_noise

from scemae.errors import DataError, OptionError, OutputError
from scemae.geometry import sample_views
from scemae.output import find_leftovers
from scemae.training.batches import Batches, Draws, random_crops
from scemae.training.pack import Pack, default_size, is_pack, pack_faces

INPUT = 96
BLUE, RED = (20, 40, 200), (220, 30, 10)


def encode(colour, size=(120, 100), form="PNG"):
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, form)
    return file.getvalue()


@pytest.fixture
def folder(tmp_path):
    """Four images in two folders, and files that are none."""
    images = tmp_path / "images"
    (images / "below").mkdir(parents=True)
    for number in range(3):
        (images / f"{number}.png").write_bytes(encode((50 * number, 100, 100)))
    (images / "below" / "deep.JPG").write_bytes(encode(BLUE, form="JPEG"))
    (images / "notes.txt").write_text("no image")
    (images / "labels.csv").write_text("path,x")
    (images / "._0.png").write_bytes(b"what macOS leaves")
    return images


def tar_of(path, files, mode="w"):
    with tarfile.open(path, mode) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def parquet_of(path, **columns):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table(columns), path)
    return path


def colours(pack):
    return [tuple(int(value) for value in square[5, 5]) for square in pack.squares]


# ---- packs


def test_a_folder_becomes_squares(folder, tmp_path):
    pack = pack_faces(folder, tmp_path / "pack", size=112)
    assert pack.names == ("0.png", "1.png", "2.png", "below/deep.JPG")
    assert pack.squares.shape == (4, 112, 112, 3)
    assert pack.squares.dtype == np.uint8
    assert (len(pack), pack.size, dict(pack.skipped)) == (4, 112, {})
    assert colours(pack)[:3] == [(0, 100, 100), (50, 100, 100), (100, 100, 100)]
    assert pack.source == str(folder.resolve())
    assert isinstance(pack.squares, np.memmap)
    again = Pack.open(tmp_path / "pack")
    assert again.names == pack.names
    assert np.array_equal(again.squares, pack.squares)
    assert [path.name for path in tmp_path.iterdir() if path != folder] == ["pack"]


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_tar_is_read_as_it_is(tmp_path, mode):
    files = {"b/2.png": encode(RED), "b/1.png": encode(BLUE), "readme.md": b"text", "b/._1.png": b"macOS"}
    pack = pack_faces(tar_of(tmp_path / "faces.tar", files, mode), tmp_path / "pack")
    assert pack.names == ("b/2.png", "b/1.png")
    assert colours(pack) == [RED, BLUE]
    assert pack.size == 136


def test_a_parquet_of_bytes_with_and_without_their_paths(tmp_path):
    bare = parquet_of(tmp_path / "bare.parquet", image=[encode(RED), encode(BLUE)], label=[1, 2])
    pack = pack_faces(bare, tmp_path / "pack")
    assert pack.names == ("bare.parquet:0", "bare.parquet:1")
    assert colours(pack) == [RED, BLUE]
    items = [{"bytes": encode(BLUE), "path": "a.png"}, {"bytes": None, "path": "b.png"}, None]
    pack = pack_faces(
        parquet_of(tmp_path / "hub.parquet", image=items), tmp_path / "pack", overwrite=True, skip_at_most=0.7
    )
    assert colours(pack) == [BLUE]
    assert set(pack.skipped) == {"hub.parquet:1", "hub.parquet:2"}


def test_a_path_in_a_parquet_is_not_followed(tmp_path):
    """Faults C4: a file that came from elsewhere chose which pictures of this machine were packed."""
    (tmp_path / "private.png").write_bytes(encode(RED))
    paths = parquet_of(tmp_path / "faces.parquet", image=[str(tmp_path / "private.png")])
    with pytest.raises(DataError, match=r"faces\.parquet:0 is a str; wanted the bytes of an image file"):
        pack_faces(paths, tmp_path / "pack")


def test_without_boxes_a_square_is_the_largest_in_the_middle(tmp_path):
    image = np.zeros((100, 200, 3), np.uint8)
    image[:, 50:150] = 255  # the largest centred square is white to its edges
    (tmp_path / "images").mkdir()
    Image.fromarray(image).save(tmp_path / "images" / "wide.png")
    square = pack_faces(tmp_path / "images", tmp_path / "pack", size=100).squares[0]
    assert (square == 255).all()


def test_with_boxes_the_central_96_px_are_the_box(tmp_path):
    (tmp_path / "images").mkdir()
    image = np.zeros((300, 400, 3), np.uint8)
    image[100:148, 200:248] = 255  # half the side of an input
    path = tmp_path / "images" / "face.png"
    Image.fromarray(image).save(path)
    boxes = {path.resolve(): (200, 100, 248, 148)}
    square = pack_faces(tmp_path / "images", tmp_path / "pack", boxes=boxes).squares[0].astype(int)
    margin = (136 - 96) // 2
    assert (square[margin + 2 : -margin - 2, margin + 2 : -margin - 2] == 255).all()
    assert (square[: margin - 2] == 0).all()
    assert (square[:, : margin - 2] == 0).all()
    archive = tar_of(tmp_path / "faces.tar", {"a/face.png": path.read_bytes()})
    named = {type(path)("a/face.png"): (200, 100, 248, 148)}
    assert np.array_equal(pack_faces(archive, tmp_path / "tar-pack", boxes=named).squares[0], square)


def test_images_without_a_good_box_are_left_out(folder, tmp_path):
    boxes = {path.resolve(): (10, 10, 90, 90) for path in folder.rglob("*.png")}
    boxes[(folder / "1.png").resolve()] = (90, 90, 10, 10)
    pack = pack_faces(folder, tmp_path / "pack", boxes=boxes, skip_at_most=0.5)
    assert pack.names == ("0.png", "2.png")
    assert "inverted" in pack.skipped["1.png"]
    assert "no box" in pack.skipped["below/deep.JPG"]


def test_corrupt_images_are_counted_and_listed(folder, tmp_path):
    (folder / "1.png").write_bytes(encode(BLUE)[:60])
    (folder / "2.png").write_bytes(b"")
    pack = pack_faces(folder, tmp_path / "pack", skip_at_most=0.5)
    assert pack.names == ("0.png", "below/deep.JPG")
    assert colours(pack)[0] == (0, 100, 100)
    assert list(pack.skipped) == ["1.png", "2.png"]
    assert list(json.loads((tmp_path / "pack" / "pack.json").read_text())["skipped"]) == ["1.png", "2.png"]
    with pytest.raises(DataError, match=r"2 of the first 3 images cannot be used, and 1 of 4 may.* 1.png: .* 2.png: "):
        pack_faces(folder, tmp_path / "other")
    assert not (tmp_path / "other").exists()
    assert find_leftovers(tmp_path) == []


def test_one_corrupt_image_is_always_allowed_but_not_the_only_one(folder, tmp_path):
    (folder / "1.png").write_bytes(b"")
    assert len(pack_faces(folder, tmp_path / "pack", skip_at_most=0)) == 3
    lone = tmp_path / "lone"
    lone.mkdir()
    (lone / "a.png").write_bytes(b"")
    with pytest.raises(DataError, match="holds no image that can be used"):
        pack_faces(lone, tmp_path / "none")


@pytest.mark.parametrize(
    ("name", "make", "words"),
    [
        pytest.param(
            "empty", lambda path: [path.mkdir(), (path / "notes.txt").touch()], "holds no images", id="folder"
        ),
        pytest.param("absent", lambda path: None, "no such file or folder", id="absent"),
        pytest.param(
            "faces.tar", lambda path: path.write_text("text"), "neither a folder nor a tar or parquet file", id="text"
        ),
        pytest.param("none.tar", lambda path: tar_of(path, {"a.txt": b""}), "holds no images", id="tar"),
        pytest.param(
            "faces.parquet",
            lambda path: parquet_of(path, picture=[b"1"]),
            r"columns \['picture'\]; wanted one named 'image'",
            id="columns",
        ),
        pytest.param("text.parquet", lambda path: path.write_text("text"), "cannot be read as parquet", id="parquet"),
    ],
)
def test_sources_that_hold_no_faces(tmp_path, name, make, words):
    make(tmp_path / name)
    with pytest.raises(DataError, match=words):
        pack_faces(tmp_path / name, tmp_path / "pack")
    assert not (tmp_path / "pack").exists()


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
def test_a_truncated_archive(tmp_path, mode):
    noise = np.random.default_rng(0).integers(0, 256, (90, 90, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "PNG")
    archive = tar_of(tmp_path / "faces.tar", {f"{number}.png": file.getvalue() for number in range(4)}, mode)
    archive.write_bytes(archive.read_bytes()[: archive.stat().st_size * 6 // 10])
    with pytest.raises(DataError, match=r"faces.tar (cannot be read as a tar file|is neither a folder nor a tar)"):
        pack_faces(archive, tmp_path / "pack")
    assert not (tmp_path / "pack").exists()


def test_a_truncated_parquet(tmp_path):
    path = parquet_of(tmp_path / "faces.parquet", image=[encode(RED)] * 4)
    content = bytearray(path.read_bytes())
    content[10:60] = bytes(50)  # the data, not the footer
    path.write_bytes(content)
    with pytest.raises(DataError, match="cannot be read as parquet"):
        pack_faces(path, tmp_path / "pack")


def test_only_a_pack_is_overwritten(folder, tmp_path):
    pack_faces(folder, tmp_path / "pack")
    with pytest.raises(OutputError, match="exists already"):
        pack_faces(folder, tmp_path / "pack")
    (folder / "2.png").unlink()
    assert len(pack_faces(folder, tmp_path / "pack", overwrite=True)) == 3
    with pytest.raises(OutputError, match="if it is a pack"):
        pack_faces(folder, folder, overwrite=True)
    assert len(list(folder.rglob("*.png"))) == 3


def test_a_failed_attempt_leaves_the_old_pack(folder, tmp_path):
    pack_faces(folder, tmp_path / "pack")
    for path in folder.rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match="cannot be used"):
        pack_faces(folder, tmp_path / "pack", overwrite=True)
    assert len(Pack.open(tmp_path / "pack")) == 4


def test_squares_smaller_than_the_input(folder, tmp_path):
    with pytest.raises(OptionError, match="size is 95; it must be at least 96"):
        pack_faces(folder, tmp_path / "pack", size=95)


def test_another_input_size_has_its_own_framing(folder, tmp_path):
    assert [default_size(size) for size in (96, 64, 128)] == [136, 90, 182]
    pack = pack_faces(folder, tmp_path / "pack", input_size=64)
    assert (pack.input_size, pack.size, Pack.open(tmp_path / "pack").input_size) == (64, 90, 64)
    assert pack.central_views(torch.from_numpy(pack.squares[:2])).shape == (2, 3, 64, 64)
    pack.check_input_size(64)
    with pytest.raises(DataError, match=r"framed for inputs of 64 px, the model sees 96 px.*--input-size 96"):
        pack.check_input_size(96)


def test_a_pack_without_an_input_size_is_framed_for_96_px(folder, tmp_path):
    pack_faces(folder, tmp_path / "pack")
    index = json.loads((tmp_path / "pack" / "pack.json").read_text())
    assert index.pop("input_size") == 96
    (tmp_path / "pack" / "pack.json").write_text(json.dumps(index))
    assert Pack.open(tmp_path / "pack").input_size == 96


@pytest.mark.parametrize("damage", ["short", "long", "empty", "no squares", "no json", "other json", "no index"])
def test_a_damaged_pack(folder, tmp_path, damage):
    out = tmp_path / "pack"
    pack_faces(folder, out)
    squares, index = out / "squares.uint8", out / "pack.json"
    content = squares.read_bytes()
    if damage == "short":
        squares.write_bytes(content[:-1])
    elif damage == "long":
        squares.write_bytes(content + b"0")
    elif damage == "empty":
        squares.write_bytes(b"")
    elif damage == "no squares":
        squares.unlink()
    elif damage == "no json":
        index.write_text("{")
    elif damage == "other json":
        index.write_text("[1]")
    else:
        index.unlink()
    assert is_pack(out) == (damage != "no index")
    with pytest.raises(DataError, match=r"pack is (damaged|not a pack).*scemae data pack IMAGES OUT"):
        Pack.open(out)


@pytest.mark.parametrize(
    "change", [{"names": "ab"}, {"names": [1, 2]}, {"size": 136.0}, {"input_size": 500}, {"skipped": []}, {"source": 1}]
)
def test_an_index_of_wrong_types(tmp_path, change):
    """Faults D."""
    pack_noise(tmp_path / "pack", 2)
    index = tmp_path / "pack" / "pack.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | change))
    with pytest.raises(DataError, match="pack is damaged"):
        Pack.open(tmp_path / "pack")


def test_a_pack_of_pipes(tmp_path):
    """Faults C7: a FIFO without a writer was waited for."""
    pack_noise(tmp_path / "pack", 2)
    index = tmp_path / "pack" / "pack.json"
    index.unlink()
    os.mkfifo(index)
    with pytest.raises(DataError, match=r"pack\.json is a folder or device"):
        Pack.open(tmp_path / "pack")


def test_a_file_is_no_pack(tmp_path):
    (tmp_path / "file").write_text("")
    assert not is_pack(tmp_path / "file")
    with pytest.raises(DataError, match="is not a pack"):
        Pack.open(tmp_path / "file")


# ---- batches


CPU = torch.device("cpu")


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize(("count", "batch_size"), [(10, 4), (7, 7), (3, 8), (1, 2)])
def test_every_face_comes_once_in_each_epoch(count, batch_size, on_device):
    batches = Batches(count, batch_size, seed=3)
    steps = 6 * count
    rows = (lambda step: batches.rows_on(step, CPU).numpy()) if on_device else batches.rows
    seen = np.concatenate([rows(step) for step in range(steps)])
    assert seen.shape == (steps * batch_size,)
    epochs = seen[: len(seen) // count * count].reshape(-1, count)
    assert (np.sort(epochs, axis=1) == np.arange(count)).all()
    assert count == 1 or len({tuple(epoch) for epoch in epochs.tolist()}) > 1


def test_a_step_is_a_function_of_the_seed_and_its_number():
    batches, other, reseeded = Batches(50, 8, seed=1), Batches(50, 8, seed=1), Batches(50, 8, seed=2)
    for step in (9, 0, 40, 3):  # in any order
        assert np.array_equal(batches.rows(step), other.rows(step))
        assert not np.array_equal(batches.rows(step), reseeded.rows(step))
        assert batches.rng(step).random() == other.rng(step).random()
        assert batches.rng(step).random() != reseeded.rng(step).random()
        rows = batches.rows_on(step, CPU)
        assert torch.equal(rows, other.rows_on(step, CPU))
        assert not torch.equal(rows, reseeded.rows_on(step, CPU))
        assert torch.equal(batches.draws(step, CPU).bits(9), other.draws(step, CPU).bits(9))
        assert not (batches.draws(step, CPU).bits(9) == reseeded.draws(step, CPU).bits(9)).any()
    assert batches.rng(1).random() != batches.rng(2).random()
    assert not (batches.draws(1, CPU).bits(9) == batches.draws(2, CPU).bits(9)).any()


def test_draws_are_splitmix64():
    """The first numbers of the published generator from the state 1234567."""
    draws = Draws([0], CPU)
    draws.state = 1234567
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    numbers = [*draws.bits(1).tolist(), *draws.bits(3).tolist()]
    assert [number % 2**64 for number in numbers] == published
    draws.drawn = 0
    expected = [10 + 5 * (number >> 11) / 2**53 for number in published]
    assert draws.uniform(10, 15, 2, 2).flatten().tolist() == pytest.approx(expected, abs=1e-12)


def test_an_order_of_drawn_bits_is_any_order_alike_often():
    """Mean place and share of first places of each of 6 patches, in 6,000 orders, within 5 standard errors."""
    orders = Draws([7, 1, 4], CPU).bits(6000, 6).argsort(1)
    assert (orders.double().mean(0) - 2.5).abs().max() < 5 * (35 / 12 / 6000) ** 0.5
    shares = torch.bincount(orders[:, 0], minlength=6) / 6000
    assert (shares - 1 / 6).abs().max() < 5 * (5 / 36 / 6000) ** 0.5


# ---- crops


def crops_of(count=400, size=136, area=(0.3, 1.0), ratio=(3 / 4, 4 / 3)):
    draws = Draws([0], CPU)
    return random_crops(draws, count, size=size, input_size=INPUT, area=area, ratio=ratio).numpy()


def test_crops_stay_inside_and_have_the_wanted_area_and_shape():
    crops = crops_of().astype(np.float64)
    corners = np.array([[-0.5, -0.5, 1], [INPUT - 0.5, INPUT - 0.5, 1]])  # pixel edges of the input
    found = np.einsum("nij,kj->nki", crops, corners)
    assert found.min() > -0.5 - 1e-4
    assert found.max() < 136 - 0.5 + 1e-4
    sides = np.abs(found[:, 1] - found[:, 0])
    unclipped = (sides < 136 - 1e-3).all(axis=1)
    areas, shapes = sides.prod(axis=1) / 136**2, sides[:, 0] / sides[:, 1]
    assert areas.max() <= 1 + 1e-6
    assert areas[unclipped].min() >= 0.3 - 1e-6
    assert areas.min() < 0.35
    assert areas.max() > 0.9
    assert shapes.min() >= 3 / 4 - 1e-6
    assert shapes.max() <= 4 / 3 + 1e-6
    assert shapes.min() < 0.8 < 1.25 < shapes.max()
    mirrored = crops[:, 0, 0] < 0
    assert 0.4 < mirrored.mean() < 0.6
    assert (crops[:, 1, 1] > 0).all()
    assert (crops[:, [0, 1], [1, 0]] == 0).all()
    starts = found.min(axis=1) + 0.5
    room = 136 - sides
    assert (starts[room > 1] / room[room > 1]).std() > 0.2  # anywhere


def test_a_view_of_a_ramp_shows_where_its_pixels_come_from():
    size = 136
    rows, columns = np.mgrid[:size, :size].astype(np.float32)
    ramp = torch.from_numpy(np.stack([columns, rows])[None]).expand(40, -1, -1, -1)
    crops = crops_of(40, area=(0.2, 0.8))
    views = sample_views(ramp, torch.from_numpy(crops), INPUT).numpy()
    pixels = np.array([[10, 20], [0, 0], [95, 95], [50, 3]])
    for crop, view in zip(crops, views, strict=True):
        for x, y in pixels:
            expected = crop @ (x, y, 1)
            inside = ((expected >= 0) & (expected <= size - 1)).all()
            if inside:
                assert view[:, y, x] == pytest.approx(expected, abs=1e-2)
    left, right = views[:, 0, 48, 0], views[:, 0, 48, 95]
    assert ((left > right) == (crops[:, 0, 0] < 0)).all()


def test_the_whole_square_and_nothing_else():
    crops = crops_of(50, size=112, area=(1.0, 1.0), ratio=(1.0, 1.0))
    assert np.allclose(np.abs(crops[:, 0, 0]), 112 / 96)
    assert np.allclose(crops[:, 1, 2], 112 / 96 / 2 - 0.5)
