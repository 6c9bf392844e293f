"""The model folder: model.safetensors, config.json and README.md, read strictly, with mismatches explained."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from scemae.errors import IncompatibleWeightsError, ModelNotFoundError, OutputError, WeightsIntegrityError
from scemae.model.config import ModelConfig, validate_switch
from scemae.output import atomic_write, new_path

if TYPE_CHECKING:  # `scemae models` reads configurations and must not wait for torch
    from torch import Tensor

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"
REGRESSOR = "regressor.safetensors"  # the name of a regressor in its repository on the Hub
REGRESSOR_FORMAT = "scemae landmark regressor 2"  # key of its description in the header of its file
MODEL_FORMAT = "scemae model 1"  # the same of a model's weights, since they carry a checksum; released ones do not
SEAL = re.compile(r'\{"sha256": "([^"]*)"(?:, |(?=\}))')  # how a sealed description begins, see `seal`
TEXT_LIMIT = 2**20  # bytes of a configuration or a card; the released ones have 2,000 and 30,000
HEADER_LIMIT = 2**23  # bytes of the header of a safetensors file; that of a detector of 1,000 landmarks has 30,000
TENSOR_LIMIT = 10_000  # in one file; deit-base has 150


class VerifiedFiles(NamedTuple):
    """Files on this machine whose SHA-256 was checked."""

    folder: Path  # where they are
    sha256: Mapping[str, str]  # file name -> SHA-256; without files that neither a release nor a card knows


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, hexadecimal; raises WeightsIntegrityError where it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise WeightsIntegrityError(f"{path} cannot be read: {error}.") from error


def check_complete(folder: Path, names: Sequence[str] = (CONFIG, WEIGHTS)) -> None:
    """Raise ModelNotFoundError unless the folder holds these files of a model."""
    missing = [name for name in names if not os.path.isfile(folder / name)]  # False for names that no file can have
    if missing:
        what = "is not a model folder" if os.path.isdir(folder) else "is not a folder"
        raise ModelNotFoundError(
            f"{folder} {what}: {' and '.join(missing)} missing. A model folder holds {CONFIG} and {WEIGHTS}."
        )


def read_config(folder: Path) -> ModelConfig:
    """The configuration of a model folder; raises ModelNotFoundError where there is none."""
    check_complete(folder, (CONFIG,))
    path = folder / CONFIG
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(TEXT_LIMIT + 1)
    except UnicodeDecodeError as error:
        raise IncompatibleWeightsError(f"{path} is not UTF-8 text. Get it again.") from error
    except OSError as error:
        raise WeightsIntegrityError(f"{path} cannot be read: {error}.") from error
    if len(text) > TEXT_LIMIT:
        raise IncompatibleWeightsError(f"{path} is longer than {TEXT_LIMIT:,} bytes, as no configuration is.")
    try:
        return ModelConfig.from_json(text)
    except IncompatibleWeightsError as error:
        raise IncompatibleWeightsError(f"{folder}: {error}") from error


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
    """The tensors and the metadata of a safetensors file; raises WeightsIntegrityError where it is damaged.

    The file must be a regular one: others may never end, or never begin.
    """
    from safetensors import SafetensorError, safe_open

    try:
        _check_header(Path(path))
        with safe_open(path, framework="pt") as file:
            names, metadata = list(file.keys()), file.metadata() or {}
            if len(names) > TENSOR_LIMIT:
                raise WeightsIntegrityError(f"{path} has {len(names):,} tensors; wanted at most {TENSOR_LIMIT:,}.")
            tensors = {name: file.get_tensor(name) for name in names}
    except (WeightsIntegrityError, ModelNotFoundError):
        raise
    except OSError as error:
        raise WeightsIntegrityError(f"{path} cannot be read: {error}.") from error
    except (SafetensorError, OverflowError) as error:
        raise WeightsIntegrityError(f"{path} cannot be read as safetensors, it may be truncated: {error}.") from error
    for key, text in metadata.items():
        found = SEAL.match(text)
        stated = found[1] if found else "" if key == MODEL_FORMAT else None
        if stated is not None and stated != _digest(tensors, key, SEAL.sub("{", text, count=1)):
            raise WeightsIntegrityError(
                f"{path} is damaged or was altered: it does not have the SHA-256 that it states. Get or make it again."
            )
    return tensors, metadata


def _check_header(path: Path) -> None:
    """Raise WeightsIntegrityError for what is no regular file, or states a header that is far too long."""
    if not os.path.isfile(path):
        if os.path.exists(path):
            raise WeightsIntegrityError(f"{path} is a folder or device; wanted a safetensors file.")
        raise ModelNotFoundError(f"{path}: there is no such file.")
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
    if HEADER_LIMIT < size <= path.stat().st_size:  # of what is more than the file, safetensors says that it is cut
        raise WeightsIntegrityError(f"{path} has a header of {size:,} bytes; wanted at most {HEADER_LIMIT:,}.")


def seal(tensors: Mapping[str, Tensor], key: str, header: dict[str, Any]) -> dict[str, str]:
    """Metadata for `write_file`: the header as JSON under the key, beginning with the SHA-256 of the tensors and of it.

    `read_file` checks it. A checksum in a key of its own would make two files of one detector differ: safetensors
    writes keys in any order.
    """
    text = json.dumps(header, default=_to_list)
    start = f'{{"sha256": "{_digest(tensors, key, text)}"' + (", " if header else "")
    return {key: start + text[1:]}


def _to_list(values: Any) -> Any:
    """What JSON has for an array, or any other iterable, in names=, mirror= and normalizer=."""
    return values.tolist() if hasattr(values, "tolist") else list(values)


def _digest(tensors: Mapping[str, Tensor], key: str, text: str) -> str:
    """SHA-256 of tensors with their names, types and shapes, and of a text and its key."""
    import torch

    digest = hashlib.sha256(json.dumps([key, text]).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write_file(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: dict[str, str], overwrite: bool = False
) -> None:
    """Write a safetensors file, whole or not at all; raises OutputError where it exists or cannot be written."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    validate_switch("overwrite", overwrite)
    try:
        with atomic_write(new_path(path, overwrite)) as temporary:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, metadata)
    except SafetensorError as error:
        raise OutputError(f"{path} cannot be written; is the disk full? {error}.") from error


def check_layout(
    path: str | os.PathLike[str], found: Mapping[str, Tensor], expected: Mapping[str, Tensor], source: str
) -> None:
    """Raise IncompatibleWeightsError, naming the tensors, unless names, shapes and types are those of `expected`.

    `source`: what says so. All floating-point types of weights are one: they are used as float32.
    """
    problems = [f"missing: {name}" for name in sorted(expected.keys() - found.keys())]
    problems += [f"unexpected: {name}" for name in sorted(found.keys() - expected.keys())]
    for name in sorted(expected.keys() & found.keys()):
        tensor, wanted = found[name], expected[name]
        if tensor.shape != wanted.shape:
            problems.append(f"{name} is {tuple(tensor.shape)}, wanted {tuple(wanted.shape)}")
        elif tensor.dtype != wanted.dtype and not (source == CONFIG and tensor.is_floating_point()):
            problems.append(f"{name} is {tensor.dtype}, wanted {wanted.dtype}")
    _refuse(path, f"do not match its {source}", problems)


def check_finite(path: str | os.PathLike[str], tensors: Mapping[str, Tensor]) -> None:
    """Raise IncompatibleWeightsError, naming the tensors, where one holds nan or an infinite number."""
    _refuse(path, "hold numbers that are not finite", [n for n, t in sorted(tensors.items()) if not t.isfinite().all()])


def _refuse(path: str | os.PathLike[str], what: str, problems: Sequence[str]) -> None:
    if problems:
        shown = "; ".join(problems[:8]) + (f"; and {len(problems) - 8} more" if len(problems) > 8 else "")
        raise IncompatibleWeightsError(f"The tensors of {path} {what}. {shown}. Get or make the file again.")


def read_weights(path: Path, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a model's weights, as float32: just those of `expected`, and finite."""
    tensors, _ = read_file(path)
    check_layout(path, tensors, expected, CONFIG)
    tensors = {name: tensor.float() for name, tensor in tensors.items()}
    check_finite(path, tensors)
    return tensors


def save_model(folder: Path, tensors: Mapping[str, Tensor], config: ModelConfig, card: str) -> None:
    """Write a model folder; raises OutputError where one of its files exists already."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in (WEIGHTS, CONFIG, CARD):
        new_path(folder / name)
    write_file(folder / WEIGHTS, tensors, seal(tensors, MODEL_FORMAT, {}))
    (folder / CONFIG).write_text(config.to_json(), encoding="utf-8", newline="\n")
    (folder / CARD).write_text(card, encoding="utf-8")
