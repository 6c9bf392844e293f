import os
from pathlib import Path

import numpy as np
import pytest
import torch
from made_up_faces import coloured_faces
from PIL import Image

from scemae.errors import OutputError
from scemae.evaluation.figures import draw_detections
from scemae.output import atomic_folder, atomic_write, check_own, find_leftovers, new_path
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


def test_pictures_are_saved_whole_or_not_at_all(tmp_path, monkeypatch):
    """Pictures of evaluations too, which a full disk cut."""
    errors, places = np.array([1.0, 2.0]), np.zeros((2, 5, 2))
    dataset = coloured_faces(tmp_path, 2)
    drawn = draw_detections(dataset, places, errors, 1, tmp_path / "pictures")
    before = [path.read_bytes() for path in sorted(drawn)]

    def save_half(picture, path):
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(Image.Image, "save", save_half)
    with pytest.raises(OutputError, match="cannot be written: disk full"):
        draw_detections(dataset, places + 1, errors, 1, tmp_path / "pictures")
    assert [path.read_bytes() for path in sorted((tmp_path / "pictures").iterdir())] == before


def test_a_folder_with_other_files_is_not_replaced(tmp_path):
    for name in ("a.csv", "scores.json"):
        (tmp_path / name).touch()
    check_own(tmp_path, ("*.csv", "scores.json"))
    with pytest.raises(OutputError, match=r"it contains a\.csv, which scemae did not write"):
        check_own(tmp_path, ("scores.json",))


def fill(folder, text):
    (folder / "a.txt").write_text(text)


def test_a_folder_is_replaced_and_nothing_else_deleted(tmp_path):
    """faults B1: OUT.partial and OUT.replaced of the user were deleted."""
    for name in ("out", "out.partial", "out.replaced"):
        (tmp_path / name).mkdir()
        fill(tmp_path / name, "the user's")
    with atomic_folder(tmp_path / "out") as new:
        fill(new, "new")
    found = {str(path.relative_to(tmp_path)): path.read_text() for path in tmp_path.rglob("*.txt")}
    assert found == {"out/a.txt": "new", "out.partial/a.txt": "the user's", "out.replaced/a.txt": "the user's"}
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("exists", [False, True])
def test_of_two_writers_one_folder_is_whole(tmp_path, exists):
    """faults B1: both failed, and the folder had files of both."""
    out = tmp_path / "out"
    if exists:
        out.mkdir()
    writer = atomic_folder(out)
    fill(writer.__enter__(), "slow")
    with atomic_folder(out) as fast:
        fill(fast, "fast")
    with pytest.raises(OutputError, match="another process has just written it"):
        writer.__exit__(None, None, None)
    assert [path.read_text() for path in tmp_path.rglob("*.txt")] == ["fast"]
    assert list(tmp_path.iterdir()) == [out]


def test_a_file_that_another_process_wrote_is_kept(tmp_path):
    """Faults B1: an export of minutes replaced the file that was written meanwhile."""
    with pytest.raises(OutputError, match="another process has just written it"), atomic_write(tmp_path / "out"):
        (tmp_path / "out").write_text("another's")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["another's"]


def test_an_interrupt_between_renaming_two_folders_leaves_the_old_one(tmp_path, monkeypatch):
    """Faults B1: it was left under a random name, and there was no folder."""
    out, rename = tmp_path / "out", Path.rename
    out.mkdir()
    fill(out, "old")

    def interrupt(path, target):
        if target == out and "new" in os.listdir(path):
            raise KeyboardInterrupt
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", interrupt)
    with pytest.raises(KeyboardInterrupt), atomic_folder(out) as new:
        (new / "new").touch()
    assert [path.read_text() for path in tmp_path.rglob("*.txt")] == ["old"]
    assert list(tmp_path.iterdir()) == [out]


def test_a_file_is_replaced_by_a_folder_without_a_trace(tmp_path):
    (tmp_path / "out").write_text("old")
    with atomic_folder(tmp_path / "out") as new:
        fill(new, "new")
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


def test_a_folder_that_cannot_be_renamed_leaves_the_old_one(tmp_path):
    (tmp_path / "out").mkdir()
    fill(tmp_path / "out", "old")
    with pytest.raises(OutputError, match="cannot be written"), atomic_folder(tmp_path / "out") as new:
        new.rmdir()  # so that renaming it fails
    assert [path.read_text() for path in tmp_path.rglob("*.txt")] == ["old"]
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]


@pytest.mark.skipif(os.name == "nt", reason="Windows needs rights to make links")
def test_overwriting_writes_through_links(tmp_path):
    """faults B4: the link was replaced, and a link that led nowhere counted as nothing."""
    file, link, dangling = tmp_path / "file", tmp_path / "link", tmp_path / "dangling"
    file.write_text("old")
    link.symlink_to(file)
    dangling.symlink_to(tmp_path / "missing")
    for path in (link, dangling):
        with pytest.raises(OutputError, match="exists already"):
            new_path(path)
        with atomic_write(new_path(path, overwrite=True)) as temporary:
            temporary.write_text(path.name)
        assert path.is_symlink()
    assert (file.read_text(), (tmp_path / "missing").read_text()) == ("link", "dangling")


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such files")
def test_only_regular_files_are_overwritten(tmp_path):
    """faults B4: --overwrite replaced devices, pipes and links in a circle."""
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    (tmp_path / "device").symlink_to("/dev/null")
    for path in (tmp_path / "pipe", tmp_path / "circle", tmp_path / "device", "/dev/null"):
        with pytest.raises(OutputError, match="is not a regular file"):
            new_path(path, overwrite=True)


def test_a_long_name_is_written_or_refused_at_once(tmp_path):
    """faults D: a name of 240 characters failed after the work, and a longer one with a traceback."""
    path = tmp_path / f"{240 * 'n'}.txt"
    with atomic_write(new_path(path)) as temporary:
        temporary.write_text("new")
    with atomic_folder(tmp_path / (250 * "f")) as folder:
        fill(folder, "new")
    assert len(list(tmp_path.iterdir())) == 2
    for name in (300 * "n", "zero\0byte"):
        with pytest.raises(OutputError, match="cannot be written"):
            new_path(tmp_path / name)


def test_leftovers_are_found(tmp_path):
    """faults B5; the names as 0.1.0 made them too."""
    names = [
        ".a.b-c\n.0123456789abcdef.b-c\n",
        ".model.safetensors.0123456789abcdef.safetensors",
        ".pack.0123456789abcdef",
        ".gitignore",
        "a.png",
    ]
    for name in names:
        (tmp_path / name).touch()
    assert find_leftovers(tmp_path) == names[:3]
