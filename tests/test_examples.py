import runpy
import sys
from pathlib import Path

import pytest

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
def test_example_runs(script, arguments, written, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    runpy.run_path(str(EXAMPLES / script), run_name="__main__")  # in this process: torch is imported already
    assert capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(written)
