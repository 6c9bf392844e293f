"""load_model, list_models: the name of a released model, or any model folder -> a model, verified."""

from __future__ import annotations

import difflib
import os
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

from scemae.checkpoint import CARD, CONFIG, WEIGHTS, check_sha256, file_sha256, load_state, read_config
from scemae.config import ModelId, ModelInfo
from scemae.errors import ModelNotFoundError, OptionError

if TYPE_CHECKING:
    from scemae.model import SceMae

DEFAULT = "scemae-tiny"
LOCAL = "local-dir:"
DTYPES = ("float32", "bfloat16")
# What was released under each name: the SHA-256 of its weights and of its configuration.
RELEASED: dict[str, dict[str, str]] = {
    "scemae-tiny": {
        WEIGHTS: "a5f61ef706ec2e457528ccbd2c176049d3ad7509d69d96d69a3a2141500f9a52",
        CONFIG: "ca7f3e6b6407060d145087711de10e33f0260111a2aa7da6477bcd284b189f62",
    },
}


def list_models(pattern: str = "*") -> list[ModelInfo]:
    """The released models whose names match `pattern` (shell style), by name. Reads no network and loads no weights."""
    return [_info(_bundled(name), bundled=True) for name in sorted(RELEASED) if fnmatch(name, pattern)]


def model_info(source: str | os.PathLike[str] = DEFAULT) -> ModelInfo:
    """What `load_model(source)` would load, without loading it."""
    folder, expected = _resolve(source)
    return _info(folder, bundled=bool(expected))


def model_folder(source: str | os.PathLike[str]) -> Path:
    """Where the files of a model lie."""
    return _resolve(source)[0]


def load_model(source: str | os.PathLike[str] = DEFAULT, *, device: str = "auto", dtype: str = "float32") -> SceMae:
    """A trained model, ready to use: weights whose SHA-256 was checked, or an exception; never random ones.

    Args:
        source: the name of a released model (`list_models`); "local-dir:PATH" or a pathlib.Path for a model folder,
            whose bytes nobody vouches for, so that only their names and shapes are checked.
        device: "auto" (the first CUDA GPU, Apple's MPS, else the CPU) or any torch device.
        dtype: "float32", or "bfloat16" for an encoder that is faster where the processor has bf16 instructions.

    Raises:
        ModelNotFoundError: no such name or folder. WeightsIntegrityError: damaged or altered files.
        IncompatibleWeightsError: tensors that are not those of the configuration.
    """
    import torch

    from scemae.model import SceMae

    if dtype not in DTYPES:
        raise OptionError(f"dtype is {dtype!r}; it must be one of {DTYPES}.")
    folder, expected = _resolve(source)
    config = read_config(folder)
    for name, sha256 in expected.items():
        check_sha256(folder / name, sha256)
    model = SceMae(config)
    load_state(model, folder / WEIGHTS)
    model.id = ModelId(config.name, expected.get(WEIGHTS) or file_sha256(folder / WEIGHTS))
    if dtype == "bfloat16":
        model.backbone.to(torch.bfloat16)
    return model.requires_grad_(False).eval().to(_device(device))


def _device(device: str) -> str:
    import torch

    if device != "auto":
        return device
    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


def _resolve(source: str | os.PathLike[str]) -> tuple[Path, dict[str, str]]:
    """The folder of a model, and the SHA-256 that its files must have (none for a folder of the user's)."""
    if isinstance(source, os.PathLike):
        return Path(source), {}
    if source.startswith(LOCAL):
        return Path(source.removeprefix(LOCAL)), {}
    if source in RELEASED:
        return _bundled(source), RELEASED[source]
    close = difflib.get_close_matches(source, RELEASED, n=1, cutoff=0.5)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    folder = f" To load a folder, say 'local-dir:{source}'." if os.sep in source or Path(source).is_dir() else ""
    raise ModelNotFoundError(f"There is no model {source!r}; there is {', '.join(sorted(RELEASED))}.{hint}{folder}")


def _bundled(name: str) -> Path:
    """A released folder: inside the installed package, or in the source checkout that the package runs from."""
    package = Path(__file__).parent
    installed = package / "_weights" / name
    return installed if installed.is_dir() else package.parent / "weights" / name


def _info(folder: Path, bundled: bool) -> ModelInfo:
    config = read_config(folder)
    files = {name: (folder / name).stat().st_size for name in (WEIGHTS, CONFIG, CARD) if (folder / name).is_file()}
    return ModelInfo(config, files, bundled)
