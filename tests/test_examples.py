import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from made_up_faces import mtfl_folder
from PIL import Image

import scemae
from scemae.datasets import read_dataset

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
