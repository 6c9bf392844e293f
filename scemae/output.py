"""Files and folders that are written whole or not at all, and never overwrite another by accident."""

from __future__ import annotations

import os
import re
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

from scemae.errors import OutputError, ScemaeError

if TYPE_CHECKING:
    from PIL.Image import Image

# Of files and folders being written, and of those that a killed process left behind.
TEMPORARY_NAME = re.compile(r"\..+\.[0-9a-f]{16}(\.[^.]+)?", re.S)
LONG_NAME = 100  # bytes: with a longer name of the file in it, the temporary name might be too long


def new_path(path: str | os.PathLike[str], overwrite: bool = False) -> Path:
    """`path` if a file can be written there, else OutputError. Call it before long work, not after.

    `overwrite` allows to replace a regular file; behind a link, the file to which it leads.
    """
    path = Path(path)
    taken, target = is_taken(path), _follow_link(path)
    if path.is_dir():
        raise OutputError(f"{path} is a folder; wanted the path of a file.")
    if taken and not overwrite:
        raise OutputError(f"{path} exists already; choose another path, or pass overwrite=True (--overwrite).")
    if is_taken(target) and not target.is_file():
        raise OutputError(f"{path} is not a regular file, but a device or pipe, say; choose another path.")
    if not target.parent.is_dir():
        raise OutputError(f"{path} cannot be written: there is no folder {target.parent}.")
    if not os.access(target.parent, os.W_OK):
        raise OutputError(f"{path} cannot be written: no permission to write in {target.parent}.")
    return path


def is_taken(path: Path) -> bool:
    """Whether anything has this path, even a link that leads nowhere; raises OutputError for an impossible path."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError) as error:  # a name that is too long, say
        raise OutputError(f"{path} cannot be written: {getattr(error, 'strerror', None) or error}.") from error
    return True


def real_path(path: str | os.PathLike[str]) -> Path:
    """The absolute path to which links lead; no error, unlike that of Path.resolve, where they lead round in a loop."""
    return Path(os.path.realpath(path))


def find_leftovers(folder: Path) -> list[str]:
    """Names of temporary files and folders: of processes that are writing there, or that were killed before the end."""
    try:
        return sorted(filter(TEMPORARY_NAME.fullmatch, os.listdir(folder)))
    except OSError:  # a folder that cannot be read
        return []


def make_folder(path: Path) -> Path:
    """A folder, and those above it, made if need be; raises OutputError where it cannot be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{path} cannot be made: {error}.") from error
    return path


def remove(path: Path) -> None:
    """Delete a file, a folder with all that is in it, or a link but not what it leads to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to; it becomes `path` on success and is deleted on failure.

    Raises OutputError if another process has written `path` in the meantime, which is kept.
    """
    target = _follow_link(path)
    before, temporary = _identify(target), _temporary_path(target)
    with _translate_errors(path):
        try:
            temporary.touch(exist_ok=False)
            rights = temporary.stat().st_mode  # as the process creates its files
            yield temporary
            if temporary.stat().st_mode != rights:  # safetensors replaces the file by one of its own
                temporary.chmod(rights)
            _check_untouched(target, before)
            temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)


def write_picture(path: Path, picture: Image) -> None:
    """Save a picture, whole or not at all, in the format of the path's ending; replaces another one."""
    with atomic_write(path) as temporary:
        picture.save(temporary)


def check_own(folder: Path, own: Sequence[str]) -> None:
    """Raise OutputError if a folder that is to be replaced holds anything but files of these patterns."""
    others = [entry.name for entry in folder.iterdir() if not any(fnmatch(entry.name, name) for name in own)]
    if others:
        raise OutputError(
            f"{folder} was not replaced: it contains {min(others)}, which scemae did not write. Choose another path."
        )


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """An empty folder beside `path` to fill; it replaces `path` on success and is deleted on failure.

    Raises OutputError if another process has written `path` in the meantime, which is kept.
    """
    target = _follow_link(path)
    before, partial = _identify(target), _temporary_path(target)
    with _translate_errors(path):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.mkdir()
            yield partial
            _check_untouched(target, before)
            _put_in_place(target, partial, replace=before is not None)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def _put_in_place(path: Path, new: Path, replace: bool) -> None:
    """Rename `new` to `path`. The old folder is deleted last, so that a kill in between loses neither."""
    old = _temporary_path(path)
    try:
        if replace:
            with suppress(FileNotFoundError):
                path.rename(old)
        new.rename(path)
    except BaseException:  # Ctrl-C in between too
        with suppress(OSError):  # fails where there is no old folder, or another process was faster
            old.rename(path)
        raise
    with suppress(OSError):  # the new folder is there
        remove(old)


def _follow_link(path: Path) -> Path:
    """The path to which a link leads; other paths as they are."""
    return real_path(path) if path.is_symlink() else path


def _temporary_path(path: Path) -> Path:
    """A new, random path beside `path`, with its suffix, which tells some writers the format."""
    name, suffix = (part if len(os.fsencode(part)) <= LONG_NAME else "" for part in (path.name, path.suffix))
    return path.with_name(f".{name or 'scemae'}.{secrets.token_hex(8)}{suffix}")


def _identify(path: Path) -> tuple[int, int] | None:
    """What tells the file or folder of this path from any other; None if there is none."""
    return (path.lstat().st_dev, path.lstat().st_ino) if is_taken(path) else None


def _check_untouched(path: Path, before: tuple[int, int] | None) -> None:
    """Raise OutputError if `path` is there, but not what it was before."""
    if _identify(path) not in (None, before):
        raise OutputError(f"{path} was not replaced: another process has just written it. Choose another path.")


@contextmanager
def _translate_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except ScemaeError:
        raise
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error}.") from error
