"""Readers of the field's data sets, on made-up folders of the genuine layouts."""

import argparse
import csv
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

import scemae
from scemae.cli.data_check_command import add_data_check
from scemae.cli.main import main
from scemae.datasets import DATASETS, check_dataset, problems, read_dataset
from scemae.datasets.three_hundred_w import read_points, window_box
from scemae.errors import DataError, OptionError
from scemae.geometry import Crop, sample_view
from scemae.patches import cut_patch
from scemae.training.pack import Pack

FACE = np.array([(60, 70), (100, 71), (80, 90), (65, 110), (95, 111)], dtype=float)


def write_image(path, size):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (90, 120, 60)).save(path)


def to_text(xy):
    return " ".join(f"{value:g}" for value in np.asarray(xy).ravel())


def celeba_folder(root, flat=False):
    """Twelve images; 1 to 8 are the training partition, of which MAFL has 2 (test), 3 and 7 (training)."""
    anno, evaluation, images = ("", "", "") if flat else ("Anno", "Eval", "Img")
    names = [f"{i:06d}.jpg" for i in range(1, 13)]
    for name in names:
        write_image(root / images / "img_align_celeba" / name, (178, 218))
    lines = [
        "12",
        "lefteye_x lefteye_y righteye_x righteye_y nose_x nose_y leftmouth_x leftmouth_y rightmouth_x rightmouth_y",
    ]
    lines += [f"{name} {to_text(FACE + i)}" for i, name in enumerate(names)]
    write_lines(root / anno / "list_landmarks_align_celeba.txt", lines)
    partition = [f"{name} {0 if i < 8 else 1 if i < 10 else 2}" for i, name in enumerate(names)]
    write_lines(root / evaluation / "list_eval_partition.txt", partition)
    write_lines(root / "MAFL" / "training.txt", ["000007.jpg", "000003.jpg"])
    write_lines(root / "MAFL" / "testing.txt", ["000012.jpg", "000002.jpg"])
    return root


def mtfl_folder(root):
    """Thirteen AFLW test faces and four training faces, pixels counted from 1."""
    rows = [("AFLW", f"{i:04d}-image{i}.jpg", i % 5 + 1) for i in range(13)]
    training = [("lfw_5590", "A_0001.jpg", 3), ("lfw_5590", "B_0001.jpg", 2), ("net_7876", "1.jpg", 3)]
    for folder, name, _ in rows + training:
        write_image(root / folder / name, (150, 150))
    for path, part in (("testing.txt", rows), ("training.txt", training)):
        write_lines(
            root / path, [f" {folder}\\{name} {to_text(FACE.T + 1)} 1 1 2 {pose}" for folder, name, pose in part]
        )
    return root


def aflw_m_folder(root):
    mtfl_folder(root / "MTFL")
    header = ["face_id", "image_file", "set", "crop_file", *[f"p{i}" for i in range(10)]]
    with_set = [("a", 1), ("b", 0), ("c", 1)]
    for name, _ in with_set:
        write_image(root / "aflw_cropped" / "cropped" / f"{name}.jpg", (150, 150))
    with (root / "aflw_cropped" / "facedata_cropped.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(header)
        table.writerows(
            [i, f"image{i}.jpg", part, f"cropped/{n}.jpg", *(FACE + 1).ravel()] for i, (n, part) in enumerate(with_set)
        )
    return root


def aflw_r_folder(root):
    sizes = np.array([(140, 110), (130, 130)])  # height, width
    for split, names in (("train", ["1.jpg", "2.jpg"]), ("test", ["3.jpg", "4.jpg"])):
        write_lines(root / f"aflw_{split}_images.txt", names)
        for name, (height, width) in zip(names, sizes, strict=True):
            write_image(root / "output" / name, (int(width), int(height)))
        truth = np.stack([FACE - 20, FACE - 15])[..., ::-1]  # row, column
        savemat(root / f"aflw_{split}_keypoints.mat", {"gt": truth, "hw": sizes})
    return root


def three_hundred_w_folder(root):
    parts = {
        "afw": ["1_1.jpg"], "helen_trainset": ["2_1.jpg"], "lfpw_trainset": ["image_0001.png"],
        "helen_testset": ["3_1.jpg"], "lfpw_testset": ["image_0002.png"], "ibug": ["image_003_1.jpg", "0001.jpg"],
    }  # fmt: skip
    points = np.column_stack([np.linspace(100, 200, 68), np.linspace(120, 220, 68)])
    for part, names in parts.items():
        folder = root / part.replace("_", "/")
        cells = np.empty((1, len(names)), dtype=object)
        for i, name in enumerate(names):
            cells[0, i] = {
                "imgName": name,
                "bb_detector": np.ones((1, 4)),
                "bb_ground_truth": np.array([[101, 121, 204, 221]]),
            }
            if part != "ibug" or name.startswith("image"):
                write_image(folder / name, (320, 300))
                lines = ["version: 1", "n_points:  68", "{", *(f"{x:.3f} {y:.3f}" for x, y in points + 1), "}"]
                write_lines((folder / name).with_suffix(".pts"), lines)
        (root / "Bounding Boxes").mkdir(exist_ok=True)
        savemat(root / "Bounding Boxes" / f"bounding_boxes_{part}.mat", {"bounding_boxes": cells})
    return root


def write_lines(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


BUILDERS = {
    "celeba": celeba_folder, "mafl": celeba_folder, "aflw_m": aflw_m_folder, "mtfl": mtfl_folder,
    "aflw_r": aflw_r_folder, "300w": three_hundred_w_folder,
}  # fmt: skip
COUNTS = {
    "celeba": {"train": 8, "val": 2, "test": 2},
    "mafl": {"train": 2, "test": 2},
    "aflw_m": {"train": 2, "test": 13},
    "mtfl": {"lfw_5590": 2, "net_7876": 1, "train": 3, "pool": 3, "test": 10, "aflw": 13},
    "aflw_r": {"train": 2, "test": 2},
    "300w": {"train": 3, "test": 3},
}


@pytest.fixture
def small_counts(monkeypatch):
    """The counts of the made-up folders in place of the genuine ones."""
    for name, splits in COUNTS.items():
        monkeypatch.setitem(DATASETS, name, replace(DATASETS[name], splits=splits))


@pytest.fixture
def folder(tmp_path):
    return lambda name: BUILDERS[name](tmp_path)


@pytest.mark.parametrize("name", BUILDERS)
def test_every_split_of_every_data_set_is_read(name, folder, small_counts):
    root = folder(name)
    for split, count in COUNTS[name].items():
        dataset = read_dataset(name, root, split, exclude="none")
        assert len(dataset) == count
        assert dataset.landmarks.shape == (count, len(dataset.names), 2)
        assert (dataset.eye_distances > 1).all()
        assert dataset.notes[0] == DATASETS[name].framing
    report = check_dataset(name, root)
    assert report.problems == ()
    assert report.splits == COUNTS[name]


@pytest.mark.parametrize("name", BUILDERS)
def test_genuine_counts_are_wanted_unless_partial(name, folder):
    root = folder(name)
    split = DATASETS[name].test_split
    with pytest.raises(DataError, match=r"wanted [\d,]+.*http.*--partial"):
        read_dataset(name, root, split)
    assert len(read_dataset(name, root, split, partial=True)) > 0


@pytest.mark.parametrize("name", BUILDERS)
def test_features_of_every_data_set_are_extracted(name, folder, model):
    """Extraction takes a data set's images, boxes and landmarks as they are; the landmarks are inside the view."""
    dataset = read_dataset(name, folder(name), DATASETS[name].test_split, partial=True)[:2]
    faces = scemae.extract_features(
        model, [s.image() for s in dataset.samples], boxes=dataset.boxes, align=False, expansion=1
    )
    inside = faces.to_input(dataset.landmarks)
    assert ((inside > 0) & (inside < 95)).all()
    assert faces.descriptors(dataset.landmarks).shape == (len(dataset), len(dataset.names), 192)


def test_celeba_leaves_mafl_out(folder, small_counts):
    root = folder("celeba")
    names = [s.path.name for s in read_dataset("celeba", root, "train", partial=True).samples]
    assert names == ["000001.jpg", "000004.jpg", "000005.jpg", "000006.jpg", "000008.jpg"]
    assert "MAFL" in read_dataset("celeba", root, "train", partial=True).notes[1]
    assert len(read_dataset("celeba", root, "train", exclude="none")) == 8
    assert len(read_dataset("celeba", root, "test", exclude="mafl")) == 1


def test_a_split_is_packed_in_the_frame_it_is_tested_in(folder, small_counts, tmp_path):
    root = folder("celeba")
    rows = np.tile(np.arange(218, dtype=np.uint8)[:, None, None], (1, 178, 3))
    for path in root.rglob("*.jpg"):
        Image.fromarray(rows).save(path, quality=100)
    assert (
        main(["data", "pack", str(root), str(tmp_path / "pack"), "--split", "celeba/train", "--exclude", "none"]) == 0
    )
    pack = Pack.open(tmp_path / "pack")
    assert len(pack) == 8
    face = read_dataset("celeba", root, "train", exclude="none").samples[0]
    middle = (face.box[1] + face.box[3]) / 2 - 0.5
    assert pack.squares[0, 67:69, 68, 0].mean() == pytest.approx(middle, abs=1)
    assert pack.squares[0, :, 68, 0].min() == pytest.approx(30, abs=1.5)  # rows 30 to 207 of the picture
    assert pack.squares[0, :, 68, 0].max() == pytest.approx(207, abs=1.5)


def test_celeba_as_torchvision_has_it(tmp_path, small_counts):
    assert len(read_dataset("celeba", celeba_folder(tmp_path, flat=True), "train", exclude="none")) == 8


def test_mafl_is_in_the_order_of_celeba(folder, small_counts):
    samples = read_dataset("mafl", folder("mafl"), "test").samples
    assert [s.path.name for s in samples] == ["000002.jpg", "000012.jpg"]
    np.testing.assert_array_equal(samples[0].landmarks, FACE + 1)


def protocol_view(image, square, size=136):
    """Resize the square (left, top, right, bottom) to 136 with Pillow and keep the central 96, as DVE and CL do."""
    return np.asarray(image.crop(square).resize((size, size), Image.Resampling.BILINEAR))[20:116, 20:116] / 255


@pytest.mark.parametrize(("name", "square"), [("mafl", (0, 30, 178, 208)), ("mtfl", (0, 0, 150, 150))])
def test_the_box_is_the_crop_of_the_protocol(name, square, folder, small_counts):
    sample = read_dataset(name, folder(name), "test").samples[0]
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (*sample.size[::-1], 3), dtype=np.uint8))
    image = noise.resize((sample.size[0] // 4, sample.size[1] // 4)).resize(sample.size, Image.Resampling.BICUBIC)
    crop = Crop.from_box(sample.box)
    view = sample_view(cut_patch(image, crop, at_input_scale=True), crop)
    np.testing.assert_allclose(view.permute(1, 2, 0), protocol_view(image, square), atol=1.01 / 255)


@pytest.mark.parametrize(("name", "bias"), [("mafl", 0.5 - 68 / 178), ("mtfl", 0.5 - 68 / 150)])
def test_landmarks_differ_from_the_protocols_by_a_constant(name, bias, folder, small_counts):
    sample = read_dataset(name, folder(name), "test").samples[0]
    top, side = (30, 178) if name == "mafl" else (0, 150)
    protocol = (sample.landmarks - (0, top)) * 136 / side - 20
    np.testing.assert_allclose(protocol - Crop.from_box(sample.box).to_input(sample.landmarks), bias, atol=1e-9)
    assert bias < 0.12


def test_mtfl_lines(folder, small_counts):
    root = folder("mtfl")
    pool, test, aflw = (read_dataset("mtfl", root, split) for split in ("pool", "test", "aflw"))
    assert [s.path.name[:4] for s in pool.samples] == ["0000", "0006", "0012"]
    assert {s.path for s in pool.samples} | {s.path for s in test.samples} == {s.path for s in aflw.samples}
    np.testing.assert_array_equal(pool.samples[0].landmarks, FACE)  # counted from 0
    assert [s.pose for s in aflw.samples[:5]] == [1, 2, 3, 4, 5]
    assert [s.path.parent.name for s in read_dataset("mtfl", root, "net_7876").samples] == ["net_7876"]


def test_aflw_r_is_stretched(folder, small_counts):
    sample = read_dataset("aflw_r", folder("aflw_r"), "test").samples[0]
    assert sample.size == (110, 140)
    assert sample.image().size == (136, 136)
    assert sample.box == (20, 20, 116, 116)
    np.testing.assert_allclose(sample.landmarks, (FACE - 20 + 0.5) * 136 / np.array([110, 140]) - 0.5)


def test_aflw_rc_is_aflw_r_with_other_labels(folder, small_counts, tmp_path):
    root = folder("aflw_r")
    names = ("left_eye", "right_eye", "nose", "left_mouth", "right_mouth")
    lines = ["path,name,x,y"]
    lines += [f"{p},{n},{x + 5},{y}" for p in ("3.jpg", "4.jpg") for n, (x, y) in zip(names, FACE - 20, strict=True)]
    write_lines(tmp_path / "corrected.csv", lines)
    corrected = read_dataset("aflw_r", root, "test", annotations=tmp_path / "corrected.csv")
    original = read_dataset("aflw_r", root, "test")
    np.testing.assert_allclose((corrected.landmarks - original.landmarks)[0, :, 0], 5 * 136 / 110)
    assert corrected.annotations == "corrected.csv"
    assert "corrected.csv" in corrected.notes[-1]
    write_lines(tmp_path / "corrected.csv", lines[:-1])
    with pytest.raises(DataError, match="right_mouth"):
        read_dataset("aflw_r", root, "test", annotations=tmp_path / "corrected.csv")


def test_other_labels_are_known_by_path(folder, small_counts, tmp_path):
    """Two folders may hold the same file name: both faces had the labels of the last."""
    root, table = folder("aflw_r"), tmp_path / "corrected.csv"
    names = ("left_eye", "right_eye", "nose", "left_mouth", "right_mouth")

    def corrected(*paths):
        places = [(p, n, x + i, y) for i, p in enumerate(paths) for n, (x, y) in zip(names, FACE - 20, strict=True)]
        write_lines(table, ["path,name,x,y", *(f"{p},{n},{x},{y}" for p, n, x, y in places)])
        dataset = read_dataset("aflw_r", root, "test", annotations=table)
        return (dataset.landmarks + 0.5) * np.array([s.size for s in dataset.samples])[:, None] / 136 - 0.5

    write_lines(root / "aflw_test_images.txt", ["0/4.jpg", "2/4.jpg"])
    for before, after in (("3.jpg", "0/4.jpg"), ("4.jpg", "2/4.jpg")):
        (root / "output" / after).parent.mkdir()
        (root / "output" / before).rename(root / "output" / after)
    np.testing.assert_allclose(corrected("output/0/4.jpg", "2/4.jpg"), [FACE - 20, FACE - 20 + [1, 0]])
    with pytest.raises(DataError, match=r"lacks .*4\.jpg"):
        corrected("4.jpg", "0/4.jpg")
    with pytest.raises(DataError, match=r"several images or faces whose path ends with 2/4\.jpg"):
        corrected("0/4.jpg", "a/2/4.jpg", "b/2/4.jpg")


def test_300w_window():
    """A tight box of 104 px halves: its centre, pixel 153 of 1.., lies at pixel 76 (from 1) of the half picture."""
    left, top, right, bottom = window_box(np.array([101.0, 121.0, 204.0, 221.0]))
    # Half size: centre (101 + 52.5, 121 + 51) / 2 = (76.75, 86) -> (76, 86); window columns 26..125, rows 34..133
    np.testing.assert_allclose((left, right), (2 * (26 + 100 * 20 / 136), 2 * (126 - 100 * 20 / 136)))
    np.testing.assert_allclose((top, bottom), (2 * (34 + 100 * 20 / 136), 2 * (134 - 100 * 20 / 136)))


def test_300w_points_and_eyes(folder, small_counts):
    root = folder("300w")
    dataset = read_dataset("300w", root, "test")
    assert dataset.eyes == (36, 45)
    assert [s.path.name for s in dataset.samples] == ["3_1.jpg", "image_0002.png", "image_003_1.jpg"]
    np.testing.assert_allclose(dataset.samples[0].landmarks[[0, 67]], [(100, 120), (200, 220)], atol=1e-3)
    write_lines(root / "bad.pts", ["version: 1", "{", "1 2", "}"])
    with pytest.raises(DataError, match="68 points"):
        read_points(root / "bad.pts")


@pytest.mark.parametrize(
    ("name", "folder_name", "words"),
    [
        pytest.param("mtfl", ".", r"not laid out as mtfl.*testing.txt.*MTFL.zip", id="mtfl"),
        pytest.param("celeba", ".", r"no Eval/list_eval_partition.txt or list_eval_partition.txt in", id="celeba"),
        pytest.param("300w", "nowhere", "is not a folder", id="no folder"),
    ],
)
def test_a_folder_of_another_layout_is_refused(name, folder_name, words, tmp_path):
    with pytest.raises(DataError, match=words):
        read_dataset(name, tmp_path / folder_name, "test")


def test_a_folder_of_another_layout_has_a_problem_for_each_split(tmp_path):
    found = check_dataset("aflw_m", tmp_path).problems
    assert len(found) == 2
    assert "facedata_cropped.csv" in found[0]


def test_missing_images_are_named_and_left_out_of_a_partial_data_set(folder, small_counts):
    root = folder("mtfl")
    (root / "AFLW" / "0001-image1.jpg").unlink()
    with pytest.raises(DataError, match=r"1 of 10 images are missing: .*0001-image1.jpg"):
        read_dataset("mtfl", root, "test")
    assert len(read_dataset("mtfl", root, "test", partial=True)) == 9


def test_missing_labels_are_named(folder, small_counts):
    root = folder("300w")
    (root / "ibug" / "image_003_1.pts").unlink()
    with pytest.raises(DataError, match=r"1 of 3 images have no labels: .*image_003_1.jpg"):
        read_dataset("300w", root, "test")


def test_images_of_another_size_and_broken_files_are_named(folder, small_counts):
    root = folder("mtfl")
    write_image(root / "net_7876" / "1.jpg", (250, 250))
    with pytest.raises(DataError, match=r"250 x 250 px, wanted 150 x 150"):
        read_dataset("mtfl", root, "net_7876")
    write_lines(root / "lfw_5590" / "B_0001.jpg", ["not an image"])
    (problem,) = [p for p in check_dataset("mtfl", root).problems if "B_0001" in p]
    assert "cannot be read as an image" in problem
    assert "250 x 250" in problem


def test_labels_outside_their_image_are_named(folder, small_counts, monkeypatch):
    root = folder("mtfl")
    line = f"lfw_5590/A_0001.jpg {to_text(FACE.T + 90)} 1 1 2 3"
    write_lines(root / "training.txt", [line, *(root / "training.txt").read_text().splitlines()[1:]])
    with pytest.raises(DataError, match=r"1 of 2 faces have labels outside their image: .*A_0001.jpg"):
        read_dataset("mtfl", root, "lfw_5590")
    monkeypatch.setattr(problems, "OUTSIDE", 0.5)
    assert "not fitted on these labels" in read_dataset("mtfl", root, "lfw_5590").notes[-1]


@pytest.mark.parametrize(
    ("change", "words"),
    [(lambda xy: xy[[1, 0, 2, 3, 4]], "left eye"), (lambda xy: xy[[0, 0, 2, 3, 4]], "coincide")],
)
def test_labels_that_cannot_be_right_are_refused(change, words, folder, small_counts):
    root = folder("mtfl")
    lines = [f"net_7876/1.jpg {to_text(change(FACE).T + 1)} 1 1 2 3"]
    write_lines(root / "training.txt", [*(root / "training.txt").read_text().splitlines()[:2], *lines])
    with pytest.raises(DataError, match=words):
        read_dataset("mtfl", root, "net_7876")


def test_damaged_label_lines_are_named(folder, small_counts):
    root = folder("mtfl")
    write_lines(root / "training.txt", ["net_7876/1.jpg 1 2 3"])
    with pytest.raises(DataError, match="line 1 has 4 columns; wanted 15"):
        read_dataset("mtfl", root, "net_7876")
    write_lines(root / "training.txt", [f"net_7876/1.jpg {to_text(FACE.T).replace('60', 'x', 1)} 1 1 2 3"])
    with pytest.raises(DataError, match="wanted numbers"):
        read_dataset("mtfl", root, "net_7876")


def test_extra_images_are_noted(folder, small_counts):
    root = folder("mtfl")
    write_image(root / "AFLW" / "another.jpg", (150, 150))
    assert any(
        "1 images are in no list" in note and "another.jpg" in note for note in check_dataset("mtfl", root).notes
    )


@pytest.mark.parametrize(
    ("name", "split", "options", "words"),
    [
        pytest.param("imagenet", "train", {}, "there are celeba", id="data set"),
        pytest.param("mafl", "val", {}, "it has train, test", id="split"),
        pytest.param("celeba", "train", {"exclude": "all"}, "exclude", id="exclude"),
        pytest.param("mafl", "test", {"annotations": Path("labels.csv")}, "aflw_r", id="annotations"),
    ],
)
def test_wrong_options_are_refused(name, split, options, words, tmp_path):
    with pytest.raises(OptionError, match=words):
        read_dataset(name, tmp_path, split, **options)


def test_the_check_command(folder, small_counts, tmp_path):
    root = folder("mtfl")
    parser = argparse.ArgumentParser()
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true")
    add_data_check(parser.add_subparsers(), common)
    args = parser.parse_args(["check", "mtfl", str(root)])
    result, text = args.run(args)
    assert result["splits"]["test"] == 10
    assert "OK: nothing is missing" in text
    (root / "AFLW" / "0001-image1.jpg").unlink()
    with pytest.raises(DataError, match=r"0001-image1.jpg[\s\S]*MTFL.zip"):
        args.run(args)


@pytest.mark.skipif("SCEMAE_MTFL" not in os.environ, reason="SCEMAE_MTFL does not name the folder of MTFL")
def test_the_real_mtfl():
    report = check_dataset("mtfl", Path(os.environ["SCEMAE_MTFL"]))
    assert report.problems == ()
    assert report.splits == DATASETS["mtfl"].splits
    test = read_dataset("mtfl", Path(os.environ["SCEMAE_MTFL"]), "test")
    assert test.samples[0].path.name == "0002-image04733.jpg"
