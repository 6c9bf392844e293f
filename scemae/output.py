"""Files and folders that are written whole or not at all, and never overwrite another by accident."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path

from scemae.errors import OutputError


def new_path(path: str | os.PathLike[str], overwrite: bool = False) -> Path:
    """`path` if a file can be written there, else OutputError. Call it before long work, not after."""
    path = Path(path)
    if path.is_dir():
        raise OutputError(f"{path} is a folder; wanted the path of a file.")
    if path.exists() and not overwrite:
        raise OutputError(f"{path} exists already; choose another path, or pass overwrite=True (--overwrite).")
    if not path.parent.is_dir():
        raise OutputError(f"{path} cannot be written: there is no folder {path.parent}.")
    if not os.access(path.parent, os.W_OK):
        raise OutputError(f"{path} cannot be written: no permission to write in {path.parent}.")
    return path


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to; it becomes `path` on success and is deleted on failure."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}{path.suffix}")
    try:
        temporary.touch(exist_ok=False)
        rights = temporary.stat().st_mode  # as the process creates its files
        yield temporary
        if temporary.stat().st_mode != rights:  # safetensors replaces the file by one of its own
            temporary.chmod(rights)
        temporary.replace(path)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error}.") from error
    finally:
        temporary.unlink(missing_ok=True)


def check_own(folder: Path, own: Sequence[str]) -> None:
    """Raise OutputError if a folder that is to be replaced holds anything but files of these patterns."""
    others = [entry.name for entry in folder.iterdir() if not any(fnmatch(entry.name, name) for name in own)]
    if others:
        raise OutputError(
            f"{folder} was not replaced: it contains {min(others)}, which scemae did not write. Choose another path."
        )


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """An empty folder beside `path` to fill; it replaces `path` on success and is deleted on failure."""
    partial, replaced = (path.with_name(path.name + ending) for ending in (".partial", ".replaced"))
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        yield partial
        if path.exists():  # the old folder goes last, so that a kill in between loses neither
            shutil.rmtree(replaced, ignore_errors=True)
            path.rename(replaced)
        partial.rename(path)
        shutil.rmtree(replaced, ignore_errors=True)
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error}.") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
