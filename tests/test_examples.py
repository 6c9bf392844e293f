import csv
import json
import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from coloured_places import draw_face, read_places
from made_up_faces import mtfl_folder
from PIL import Image
from small_models import load_small_model
from training_runs import pack_noise

import scemae
from scemae.datasets import read_dataset
from scemae.model.config import BACKBONES, BackboneConfig

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "arguments", "written"),
    [
        ("match_two_faces.py", ["m.png"], ["m.png"]),
        ("few_shot_detector.py", ["f.png", "f.safetensors"], ["f.png", "f.safetensors"]),
        ("similarity_map.py", ["nose_tip", "s.png"], ["s.png"]),
        ("measure_speed.py", ["1", "float32"], []),
        ("frames_picture.py", ["frames.png"], ["frames.png"]),
        ("made_up_mafl.py", ["mafl", "3", "2"], ["mafl"]),
    ],
)
def test_example_runs(script, arguments, written, two_block_model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(scemae, "load_model", lambda **_options: two_block_model)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    runpy.run_path(str(EXAMPLES / script), run_name="__main__")  # in this process: torch is imported already
    assert capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(written)


@pytest.mark.slow
def test_windows_on_a_gpu(tmp_path, tiny_backbone, monkeypatch, capsys):
    """Two windows of one run, and one that ends with its schedule, on a CPU."""
    pack = pack_noise(tmp_path / "pack", 16).folder
    quick = ["--profile-seconds", "2", "--architectures", tiny_backbone, "--batch-sizes", "4", "8", "--no-compile"]

    def use_window(out, *words):
        line = ["gpu_window.py", "--pack", pack, "--out", out, "--work", f"{out}-work", *quick, *words]
        monkeypatch.setattr(sys, "argv", [*map(str, line)])
        runpy.run_path(str(EXAMPLES / "gpu_window.py"), run_name="__main__")
        step, steps, images = re.search(r"step (\d+) of (\d+), ([\d,]+) images", capsys.readouterr().out).groups()
        return int(step), int(steps), int(images.replace(",", ""))

    short = ("--windows", "90", "--minutes", "0.08")
    step, steps, _ = use_window(tmp_path / "a", *short, "--part-size", "0.1", "--copy-minutes", "0.02")
    assert 0 < step < steps
    kept = [path for path in (tmp_path / "a").rglob("*") if path.is_file()]
    assert {path.parent.name for path in kept} <= {"a", "copy-0", "copy-1"}
    assert len({path.parent.name for path in kept}) == 2  # the older copy is gone
    assert max(path.stat().st_size for path in kept) <= 100_000
    rows = json.loads((tmp_path / "a" / "profile.json").read_text())
    measured = [(row["architecture"], row["batch_size"]) for row in rows]
    assert measured in ([(tiny_backbone, 4)], [(tiny_backbone, 4), (tiny_backbone, 8)])  # as time allows
    assert all(row["images_per_second"] > 0 for row in rows)

    further, same, _ = use_window(tmp_path / "b", *short, "--resume-from", tmp_path / "a")
    assert step < further < steps
    assert same == steps
    assert not (tmp_path / "b" / "profile.json").exists()  # every minute is for training

    step, steps, images = use_window(tmp_path / "c", "--minutes", "2", "--most-images", "200")
    assert step == steps
    assert 190 < images <= 200
    names = [path.name for path in (tmp_path / "c").glob("copy-*/*")]
    assert {"model__model.safetensors.000", "model__config.json.000", "checkpoint.pt.000"} <= set(names)
    next((tmp_path / "c").glob("copy-*/log.jsonl.000")).write_text("{}")
    with pytest.raises(SystemExit, match="holds no whole copy"):
        use_window(tmp_path / "d", "--resume-from", tmp_path / "c")


@pytest.mark.slow
def test_the_picture_of_groups_is_measured_and_drawn(tmp_path, two_block_model):
    example = runpy.run_path(str(EXAMPLES / "groups_picture.py"))
    mtfl_folder(tmp_path, test=25)
    faces = read_dataset("mtfl", tmp_path, "pool", partial=True)
    errors, ridges = example["measure_draw"](two_block_model, faces, 0, people=2, frames=2, others=2)
    assert len(errors) == 5
    assert np.isfinite(list(errors.values())).all()
    assert ridges.keys() == {"held out by frame", "held out by person"}
    example["draw_bars"]([errors, errors]).savefig(tmp_path / "groups.png")


@pytest.mark.slow
def test_the_coverage_of_the_radius_is_measured(tmp_path, two_block_model):
    example = runpy.run_path(str(EXAMPLES / "radius_coverage.py"))
    mtfl_folder(tmp_path, training=14)
    faces = read_dataset("mtfl", tmp_path, "net_7876", partial=True)
    pool, test = faces[:10], faces[10:]
    features = scemae.extract_features(two_block_model, [face.image() for face in test.samples], boxes=test.boxes)
    within, radii = example["measure_draw"](two_block_model, pool, test, features, 9, 0)
    assert within.shape == radii.shape == (4, 5)
    assert (radii > 0).all()
    assert example["mean_of_fifths"](radii, radii).shape == (5,)


@pytest.mark.slow
def test_where_the_attentive_tokens_lie_is_drawn_and_counted(tmp_path, monkeypatch):
    monkeypatch.setitem(BACKBONES, "test-tiny", BackboneConfig(width=32, heads=2, depth=4, params=0))
    model = load_small_model(tmp_path / "model", input_size=96, patch_size=8)
    example = runpy.run_path(str(EXAMPLES / "attentive_tokens.py"))
    mtfl_folder(tmp_path)
    faces = read_dataset("mtfl", tmp_path, "net_7876", partial=True)
    lines = example["print_table"](model, faces)
    assert [line.split("|")[1].strip() for line in lines[2:]] == ["1", "2", "3", "4", "chance"]
    near, ring = lines[-1].split("|")[2:4]
    assert round(float(ring)) == 31  # 44 of 144 cells
    assert 5 < float(near) < 31  # five landmarks with 9 cells each, at most
    features = scemae.extract_features(model, [face.image() for face in faces.samples], boxes=faces.boxes)
    picture = example["draw_blocks"](model, example["cut_views"](features[:1]))
    assert picture.width == 2 * 192 + 12  # a face with the tokens of block 3, and with those of block 4


def test_faces_are_brought_to_the_frame_of_celeba(tmp_path, monkeypatch):
    """Two faces whose labels are CelebA's, moved: written, they are those of the frame, and so are their pixels."""
    mtfl, out = tmp_path / "mtfl", tmp_path / "out"
    mtfl_folder(mtfl, training=1)
    monkeypatch.setattr(sys, "argv", ["paper_frame.py", str(mtfl), str(out)])
    monkeypatch.setattr(scemae.datasets, "read_dataset", lambda *where: read_dataset(*where, partial=True))
    example = runpy.run_path(str(EXAMPLES / "paper_frame.py"), run_name="__main__")
    frame = (example["CELEBA"] + 0.5) * 150 / 178 - 0.5
    for split in ("lfw_5590", "net_7876"):
        before = read_dataset("mtfl", mtfl, split, partial=True).samples[0]
        after = read_dataset("mtfl", out, split, partial=True).samples[0]
        # A similarity: the mean is the frame's, and distances keep their proportions.
        np.testing.assert_allclose(after.landmarks.mean(axis=0), frame.mean(axis=0), atol=1e-3)
        sides = [np.linalg.norm(xy[1:] - xy[0], axis=1) for xy in (before.landmarks, after.landmarks)]
        assert np.ptp(sides[1] / sides[0]) < 1e-3
        assert np.linalg.norm(after.landmarks - frame, axis=1).max() < 10
        colours = []
        for sample in (before, after):
            pixels = np.asarray(Image.open(sample.path).convert("RGB").reduce(2), dtype=float)
            x, y = (sample.landmarks[2] / 2).round().astype(int)
            colours.append(pixels[y, x])
        assert np.abs(colours[0] - colours[1]).max() < 25


FIVE = np.array([(-0.2, -0.15), (0.2, -0.15), (0, 0), (-0.15, 0.15), (0.15, 0.15)])  # of a face of side 1 about 0


def wild_folder(root):
    """A folder for finder_rates.py: faces that have their label, others far from it or without one."""

    def write(name, *faces, size=(420, 300)):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.zeros((size[1], size[0], 3), np.uint8)
        for centre, side in faces:
            draw_face(pixels, centre, side)
        Image.fromarray(pixels).save(path)

    labels = {  # picture: its labelled face, and those that are there
        "lfw/0.png": (((80, 70), 60), [((80, 70), 60)]),
        "lfw/1.png": (((330, 80), 70), [((330, 80), 70), ((100, 200), 60)]),
        "lfw/2.png": (((90, 230), 60), [((90, 230), 80)]),
        "lfw/3.png": (((90, 230), 60), [((330, 60), 60)]),
        "net/0.png": (((330, 230), 50), [((330, 230), 60)]),
        "net/1.png": (((200, 150), 130), [((200, 150), 60)]),
    }
    with open(root / "points.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["path", *(f"{axis}{k}" for k in range(5) for axis in "xy")])
        for name, ((centre, side), faces) in labels.items():
            write(name, *faces)
            table.writerow([name, *(np.array(centre) + side * FIVE).ravel()])
    write("groups/0.png", ((60, 60), 40), ((200, 200), 80), ((350, 100), 60))
    boxes = ("0,40,40,80,80", "1,165,165,235,235", "2,20,200,80,260")
    lines = ["path,face,x0,y0,x1,y1", *(f"groups/0.png,{box}" for box in boxes)]
    (root / "groups.csv").write_text("\n".join(lines) + "\n")
    write("nofaces/0.png", ((200, 100), 60))
    write("nofaces/1.png", ((200, 100), 60))
    write("nofaces/2.png", ((200, 100), 36), size=(1300, 300))  # too small once the picture is reduced


@pytest.mark.slow
def test_the_rates_of_the_face_finder_are_counted(tmp_path, tiny_backbone, monkeypatch, capsys):
    """A finder that is exact at any roll: its rates are those of the labels, and the same at a random roll."""
    model, calls, find_faces = read_places(load_small_model(tmp_path / "model")), [], scemae.find_faces

    def spy(image, **options):
        calls.append((image.size, options["min_size"]))
        return find_faces(image, **options)

    monkeypatch.setattr(scemae, "load_model", lambda *_name, **_options: model)
    monkeypatch.setattr(scemae, "find_faces", spy)
    example = runpy.run_path(str(EXAMPLES / "finder_rates.py"))
    wild_folder(tmp_path)
    example["main"]([str(tmp_path), "--look", str(tmp_path / "look")])
    table = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()]
    assert {name: counts for name, *counts, _milliseconds in table[2:]} == {
        "lfw, upright": ["4", "3 of 4, 75.0 %", "2"],
        "lfw, random roll": ["4", "3 of 4, 75.0 %", "2"],
        "net, upright": ["2", "1 of 2, 50.0 %", "1"],
        "net, random roll": ["2", "1 of 2, 50.0 %", "1"],
        "groups": ["1", "2 of 3, 66.7 %", "1"],
        "no face": ["2", "–", "1"],
        "1 megapixel, from 64 px": ["1", "–", "–"],
    }
    assert all(float(line[-1]) > 0 for line in table[2:])
    assert calls[:4] + calls[8:10] == [((420, 300), None)] * 6
    assert all(size != (420, 300) and min_size is None for size, min_size in calls[4:8] + calls[10:12])
    assert calls[12:] == [((420, 300), 30), ((420, 300), None), ((640, 148), None), *[((1155, 866), 64)] * 6]

    sheets = {path.stem: Image.open(path) for path in (tmp_path / "look").iterdir()}
    assert sheets.keys() == {row[0].replace(",", "").replace(" ", "-") for row in table[2:-1]}
    panel = example["SQUARE"] + 2 * example["MARGIN"]
    assert sheets["no-face"].width == panel
    assert sheets["lfw-upright"].width > 2 * panel
    assert np.allclose(sheets["no-face"].getpixel((panel // 2, panel // 2)), (128, 128, 255), atol=4)

    example["main"]([str(tmp_path), "--pictures", "1"])
    table = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()]
    assert [line[1] for line in table[2:]] == ["1"] * 7


@pytest.mark.parametrize(
    ("tolerance", "finds", "taken"),  # finds: middle and side, of a label of (0, 0), 100
    [
        ("ONE", [(34, -34, 100)], [0]),
        ("ONE", [(36, 0, 100)], []),
        ("ONE", [(0, -36, 100)], []),
        ("ONE", [(0, 0, 49), (0, 0, 201), (0, 0, 51), (0, 0, 199)], [2]),
        ("ONE", [(0, 0, 199), (0, 0, 100)], [0]),
        ("ONE", [], []),
        ("GROUP", [(41, 0, 100), (0, 41, 100), (0, 0, 39), (0, 0, 251), (39, -39, 41)], [4]),
        ("GROUP", [(0, 0, 249)], [0]),
    ],
)
def test_a_find_near_a_label_is_its_face(tolerance, finds, taken):
    example = runpy.run_path(str(EXAMPLES / "finder_rates.py"))
    x, y, side = np.array(finds, dtype=np.float64).reshape(-1, 3).T
    boxes = np.stack([x - side / 2, y - side / 2, x + side / 2, y + side / 2], axis=1)
    label = np.array([[-50.0, -50.0, 50.0, 50.0]])
    match_finds = example["match_finds"]
    assert match_finds(boxes, label, example[tolerance]) == taken
    assert match_finds(boxes[taken], np.concatenate([label, label]), example[tolerance]) == [*range(len(taken))]


@pytest.mark.parametrize("mode", ["I;16", "I", "F", "RGBA", "LA", "P"])
def test_the_onnx_example_refuses_what_it_would_read_otherwise_than_the_library(mode, tmp_path, monkeypatch):
    """Faults A6: it clipped 16-bit pictures."""
    pytest.importorskip("onnxruntime")
    image = Image.fromarray(np.full((20, 30), 40000, np.uint16)) if mode == "I;16" else Image.new(mode, (30, 20))
    options = {"transparency": 0} if mode == "P" else {}
    image.save(tmp_path / "face.tiff" if mode in "IF" else tmp_path / "face.png", **options)
    [path] = tmp_path.iterdir()
    monkeypatch.setattr(sys, "argv", ["onnx_landmarks.py", "none.onnx", str(path), "0", "0", "30", "20"])
    with pytest.raises(SystemExit, match=f"face.*has pixels of mode {mode}: convert it to 8 bits"):
        runpy.run_path(str(EXAMPLES / "onnx_landmarks.py"), run_name="__main__")
