import os

import pytest
import torch

from scemae.errors import OutputError
from scemae.output import atomic_write, check_own
from scemae.weights.model_folder import write_file


@pytest.mark.skipif(os.name == "nt", reason="Windows has other rights")
@pytest.mark.parametrize(("mask", "rights"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_files_have_the_rights_that_the_process_gives(tmp_path, mask, rights):
    before = os.umask(mask)
    try:
        with atomic_write(tmp_path / "new.txt") as temporary:
            temporary.write_text("new")
        write_file(tmp_path / "new.safetensors", {"zeros": torch.zeros(2)}, {})
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {rights}


def test_a_failed_write_leaves_the_old_file(tmp_path):
    (tmp_path / "old.txt").write_text("old")
    with pytest.raises(OutputError, match="cannot be written: disk full"), atomic_write(tmp_path / "old.txt"):
        raise OSError("disk full")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["old"]


def test_a_folder_with_other_files_is_not_replaced(tmp_path):
    for name in ("a.csv", "scores.json"):
        (tmp_path / name).touch()
    check_own(tmp_path, ("*.csv", "scores.json"))
    with pytest.raises(OutputError, match=r"it contains a\.csv, which scemae did not write"):
        check_own(tmp_path, ("scores.json",))
