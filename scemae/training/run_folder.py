"""The files of a run, each written whole or not at all: checkpoint.pt, log.jsonl, pictures/, bad_batch/, model/,
profile.json, maps/."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Iterator, Mapping, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from PIL import Image

from scemae.errors import OutputError, RunError
from scemae.output import atomic_folder, atomic_write, find_leftovers, is_taken, make_folder, remove, write_picture

CHECKPOINT, LOG, PICTURES, BAD_BATCH, MODEL = "checkpoint.pt", "log.jsonl", "pictures", "bad_batch", "model"
PROFILE, MAPS = "profile.json", "maps"
RUN_FILES = (CHECKPOINT, LOG, PICTURES, BAD_BATCH, MODEL, PROFILE, MAPS)
ZIP_END, DIGEST = 22, 64  # bytes of the end of a zip archive without a comment, and of a SHA-256 as text
PART = 2**20  # bytes that are read at a time
# Fields of a checkpoint. step: updates of the weights so far; seconds: of work; losses: of the steps that are not in
# the log yet; images: hash of the first image of the next step; origin: see Recipe. Older checkpoints lack hardware: of
# each part of the run so far; processes: of the last part.
CHECKPOINT_FIELDS = {"config", "precision", "step", "seconds", "losses", "images", "origin", "module", "optimizer"}
NEWER_FIELDS = {"hardware", "processes"}


class RunFolder:
    """One run's folder: `lock` it, then `begin`; `release` it at the end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = FileLock(path / "lock")

    def lock(self) -> None:
        """Make the folder and lock other processes out; the system unlocks it when this process ends in any way.

        Raises RunError where another process trains there.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise RunError(
                f"Another process is training in {self.path}; wait for it, or choose another --out."
            ) from error
        except OSError as error:
            raise OutputError(f"{self.path} cannot be written: {error}.") from error

    def begin(self, resume: bool, overwrite: bool) -> None:
        """Clear what is in the way; raises RunError for a run that is to be neither resumed nor overwritten."""
        made = [self.path / name for name in RUN_FILES if (self.path / name).exists()]
        if made and not resume and not (overwrite and (self.path / LOG).exists()):
            names = ", ".join(path.name for path in made)
            raise RunError(
                f"{self.path} holds {names} already. Pass --resume to continue that run, --overwrite to replace it "
                f"(only where there is a {LOG}), or choose another --out."
            )
        ours = tuple(f".{name}." for name in RUN_FILES)
        partial = [self.path / name for name in find_leftovers(self.path) if name.startswith(ours)]
        for path in partial + (made if overwrite else []):
            remove(path)

    def release(self) -> None:
        """Unlock the folder."""
        self._lock.release()

    def read_checkpoint(self, fields: Set[str] = CHECKPOINT_FIELDS) -> dict[str, Any] | None:
        """The last state that `write_checkpoint` wrote, on the CPU; raises RunError where it cannot be read.

        `fields`: those that it must have.
        """
        path = self.path / CHECKPOINT
        if not path.exists():
            return None
        if not path.is_file():
            raise RunError(f"{path} is a folder or device; wanted a checkpoint. Choose another --out.")
        again = f"Replace the run with --overwrite; a new one can --continue-from {self.path / MODEL}, if it is there."
        try:
            whole = _is_whole(path)
        except OSError as error:
            raise RunError(f"{path} cannot be read: {error}.") from error
        if not whole:
            raise RunError(f"{path} is damaged or was altered: its checksums do not match its contents. {again}")
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # which kind depends on what it is
            raise RunError(f"{path} is not a checkpoint: it cannot be read as one. {again}") from error
        if not isinstance(state, dict) or state.keys() - NEWER_FIELDS != fields:
            raise RunError(f"{path} is not a checkpoint of this version of scemae. {again}")
        return state

    def write_checkpoint(self, state: Mapping[str, Any]) -> None:
        """Replace the checkpoint; if that fails, the last one stays."""
        _save_whole(self.path / CHECKPOINT, dict(state))

    def log(self, line: Mapping[str, float]) -> None:
        """Add a line to the log."""
        try:
            with (self.path / LOG).open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
        except OSError as error:
            raise OutputError(f"{self.path / LOG} cannot be written: {error}.") from error

    def read_log(self) -> list[dict[str, float]]:
        """The lines of the log, without a last one that was cut short."""
        path = self.path / LOG
        try:
            text = path.read_bytes().decode() if path.exists() else ""
            lines = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
            if not all(isinstance(line, dict) and type(line.get("step")) is int for line in lines):
                raise ValueError("a line has no step")
        except (ValueError, RecursionError, OSError) as error:
            raise RunError(f"{path} is damaged ({error}). Mend or remove the line, or remove the file.") from error
        return lines

    def cut_log(self, step: int) -> None:
        """Drop what was logged after a step: the run continues there."""
        kept = [line for line in self.read_log() if line["step"] <= step]
        with atomic_write(self.path / LOG) as temporary:
            temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")

    def write_picture(self, step: int, picture: Image.Image) -> None:
        """Save the picture of a report."""
        write_picture(make_folder(self.path / PICTURES) / f"{step:07d}.png", picture)

    def write_profile(self, profile: Mapping[str, float | str]) -> None:
        """Save what `--profile` measured."""
        with atomic_write(self.path / PROFILE) as temporary:
            temporary.write_text(json.dumps(profile, indent=1) + "\n", encoding="utf-8")

    def write_bad_batch(self, process: int, passes: Any) -> Path:
        """Save the batch that a run broke on; returns its folder."""
        folder = make_folder(self.path / BAD_BATCH)
        _save_whole(folder / f"{process}.pt", passes)
        return folder


@contextmanager
def lock_folder(path: Path) -> Iterator[None]:
    """Lock a run's folder, for a training without the engine."""
    folder = RunFolder(path)
    folder.lock()
    try:
        yield
    finally:
        folder.release()


@contextmanager
def create_model_folder(path: Path, overwrite: bool = False) -> Iterator[Path]:
    """An empty folder that becomes the model of a run's folder, for a training without the engine.

    Raises RunError where another process trains there, and for a model that is not to be overwritten.
    """
    with lock_folder(path):
        if is_taken(path / MODEL) and not overwrite:
            raise RunError(f"{path / MODEL} exists already; pass --overwrite, or choose another --out.")
        with atomic_folder(path / MODEL) as folder:
            yield folder


def _is_whole(path: Path) -> bool:
    """Whether a file is as `_save_whole` wrote it; torch.load compares no checksum.

    It is a zip archive whose comment is the SHA-256 of all before it. Those of scemae 0.1.0 have no comment, and their
    parts have CRCs only.
    """
    with path.open("rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                file.seek(-ZIP_END, os.SEEK_END)
                if file.read(4) == b"PK\5\6":  # the archive ends without a comment
                    return archive.testzip() is None
        except Exception:  # which kind depends on the damage
            return False
        end = file.seek(-DIGEST, os.SEEK_END)
        stated = file.read()
        digest = hashlib.sha256()
        file.seek(0)
        for start in range(0, end, PART):
            digest.update(file.read(min(PART, end - start)))
        return digest.hexdigest().encode() == stated


def _save_whole(path: Path, state: Any) -> None:
    try:
        with atomic_write(path) as temporary:
            torch.save(state, temporary)
            with temporary.open("r+b") as file:  # Windows flushes only what is open for writing
                file.seek(-2, os.SEEK_END)
                file.write(DIGEST.to_bytes(2, "little"))  # the length of the archive's comment
                file.seek(0)
                file.write(hashlib.file_digest(file, "sha256").hexdigest().encode())
                file.flush()
                os.fsync(file.fileno())  # after a power failure the file is the old one or the new one
    except RuntimeError as error:  # how torch reports a full disk
        raise OutputError(
            f"{path} cannot be written, is the disk full? The file that was there is kept. {error}."
        ) from error
