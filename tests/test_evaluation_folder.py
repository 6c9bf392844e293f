"""The folder of an evaluation: what an interruption cut is done again, what is damaged is named."""

import json

import pytest

from scemae.errors import RunError
from scemae.evaluation.evaluation_folder import EvaluationFolder


@pytest.mark.parametrize("text", ["", "{", "[1]", "\udcff", "[" * 100_000])
def test_damaged_settings_are_named(tmp_path, text):
    folder = EvaluationFolder.open(tmp_path / "out", {"faces": 3})
    (folder.path / "settings.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(RunError, match=r"settings\.json is damaged.*--overwrite"):
        EvaluationFolder.open(tmp_path / "out", {"faces": 3})
    assert EvaluationFolder.open(tmp_path / "out", {"faces": 3}, overwrite=True).settings == {"faces": 3}


@pytest.mark.parametrize("line", ["{", "3", '{"other": 1}'])
def test_damaged_predictions_are_named(tmp_path, line):
    folder = EvaluationFolder.open(tmp_path / "out", {})
    folder.append([{"key": "a"}])
    path = folder.path / "predictions.jsonl"
    path.write_text(path.read_text() + line + "\n" + json.dumps({"key": "b"}) + "\n")
    with pytest.raises(RunError, match=r"predictions\.jsonl is damaged"):
        folder.read_predictions()


def test_a_line_that_was_cut_is_removed(tmp_path):
    folder = EvaluationFolder.open(tmp_path / "out", {})
    folder.append([{"key": "a"}, {"key": "b"}])
    path = folder.path / "predictions.jsonl"
    path.write_text(path.read_text()[:-4])
    assert folder.read_predictions() == [{"key": "a"}]
    assert path.read_text() == '{"key": "a"}\n'
