"""The model folder: model.safetensors, config.json and README.md, read strictly, with mismatches explained."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from scemae.errors import IncompatibleWeightsError, ModelNotFoundError, OutputError, WeightsIntegrityError
from scemae.model.config import ModelConfig
from scemae.output import atomic_write, new_path

if TYPE_CHECKING:  # `scemae models` reads configurations and must not wait for torch
    from torch import Tensor, nn

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
REGRESSOR = "regressor.safetensors"  # the name of a regressor in its repository on the Hub
REGRESSOR_FORMAT = "scemae landmark regressor 2"  # key of its description in the header of its file


class VerifiedFiles(NamedTuple):
    """Files on this machine whose SHA-256 was checked."""

    folder: Path  # where they are
    sha256: Mapping[str, str]  # file name -> SHA-256; without files that neither a release nor a card knows


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_complete(folder: Path, names: Sequence[str] = (CONFIG, WEIGHTS)) -> None:
    """Raise ModelNotFoundError unless the folder holds these files of a model."""
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        what = "is not a model folder" if folder.is_dir() else "is not a folder"
        raise ModelNotFoundError(
            f"{folder} {what}: {' and '.join(missing)} missing. A model folder holds {CONFIG} and {WEIGHTS}."
        )


def read_config(folder: Path) -> ModelConfig:
    """The configuration of a model folder; raises ModelNotFoundError where there is none."""
    check_complete(folder, (CONFIG,))
    try:
        return ModelConfig.from_json((folder / CONFIG).read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise IncompatibleWeightsError(f"{folder / CONFIG} is not UTF-8 text.") from error


def check_sha256(path: Path, expected: str, next_step: str) -> None:
    """Raise WeightsIntegrityError unless the file's SHA-256 is `expected`."""
    actual = file_sha256(path)
    if actual != expected:
        raise WeightsIntegrityError(
            f"{path} is damaged or was altered: its SHA-256 is {actual}, expected {expected}. {next_step}"
        )


def verify_files(folder: Path, sha256: Mapping[str, str], next_step: str) -> VerifiedFiles:
    """These files of a folder, if they have these SHA-256; else WeightsIntegrityError or ModelNotFoundError."""
    check_complete(folder, tuple(sha256))
    for name, expected in sha256.items():
        check_sha256(folder / name, expected, next_step)
    return VerifiedFiles(folder, sha256)


def read_file(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a safetensors file; raises WeightsIntegrityError where it is damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except FileNotFoundError as error:
        raise ModelNotFoundError(f"{path}: there is no such file.") from error
    except (SafetensorError, OSError) as error:
        raise WeightsIntegrityError(f"{path} cannot be read as safetensors, it may be truncated: {error}.") from error


def write_file(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: dict[str, str], overwrite: bool = False
) -> None:
    """Write a safetensors file, whole or not at all; raises OutputError where it exists or cannot be written."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    try:
        with atomic_write(new_path(path, overwrite)) as temporary:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, metadata)
    except SafetensorError as error:
        raise OutputError(f"{path} cannot be written; is the disk full? {error}.") from error


def check_tensors(path: Path, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    """Raise IncompatibleWeightsError, naming the tensors, unless names and shapes of `found` are those of `wanted`."""
    problems = [f"missing: {name}" for name in sorted(wanted.keys() - found.keys())]
    problems += [f"unexpected: {name}" for name in sorted(found.keys() - wanted.keys())]
    problems += [
        f"{name} is {tuple(found[name].shape)}, wanted {tuple(wanted[name].shape)}"
        for name in sorted(wanted.keys() & found.keys())
        if found[name].shape != wanted[name].shape
    ]
    if problems:
        shown = "; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")
        raise IncompatibleWeightsError(f"The tensors of {path} do not match its {CONFIG}. {shown}.")


def load_state(module: nn.Module, path: Path) -> None:
    """Load the tensors of a safetensors file, as float32, into `module`, which must have just these."""
    tensors, _ = read_file(path)
    check_tensors(path, tensors, module.state_dict())
    module.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})


def save_model(folder: Path, tensors: Mapping[str, Tensor], config: ModelConfig, card: str) -> None:
    """Write a model folder; raises OutputError where one of its files exists already."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in (WEIGHTS, CONFIG, CARD):
        new_path(folder / name)
    write_file(folder / WEIGHTS, tensors, {})
    (folder / CONFIG).write_text(config.to_json(), encoding="utf-8", newline="\n")
    (folder / CARD).write_text(card, encoding="utf-8")
