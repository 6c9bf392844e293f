"""load_model, list_models: the name of a released model, a repository of the Hub or any model folder -> a model."""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Unpack

from scemae.errors import ModelNotFoundError, OptionError, WeightsUnavailableError
from scemae.model.config import ModelConfig, ModelId
from scemae.weights.hub import HUB, HubOptions, Repository, fetch, read_card_hashes, validate_hub_options
from scemae.weights.model_folder import (
    CARD,
    CONFIG,
    WEIGHTS,
    check_complete,
    check_sha256,
    file_sha256,
    load_state,
    read_config,
)

if TYPE_CHECKING:
    from scemae.model.sce_mae import SceMae

DEFAULT = "scemae-tiny"
LOCAL = "local-dir:"
MIRROR = "SCEMAE_WEIGHTS_DIR"  # environment variable: a folder of model folders, as `scemae download --to` makes it
DTYPES = ("float32", "bfloat16")


class ReleasedFile(NamedTuple):
    """What a released file must be."""

    sha256: str
    size: int  # bytes


@dataclass(frozen=True)
class Release:
    """What was released under a name.

    `repo`: on the Hub. `revision`: the 40 hexadecimal digits of its commit there; None if it is not published yet.
    `bundled`: whether the weights come with the package; configuration and card always do.
    """

    repo: str
    revision: str | None
    bundled: bool
    files: Mapping[str, ReleasedFile]

    @property
    def sha256(self) -> dict[str, str]:
        """The SHA-256 of each file."""
        return {name: file.sha256 for name, file in self.files.items()}


@dataclass(frozen=True)
class ModelInfo:
    """One row of `list_models`: the model's configuration, its files with their sizes in bytes, where they come from.

    A released model has a `repo` on the Hub, and a `revision`, the commit there, once it is published.
    """

    config: ModelConfig
    files: dict[str, int]
    bundled: bool
    repo: str | None = None
    revision: str | None = None

    @property
    def name(self) -> str:
        """What `load_model` takes."""
        return self.config.name

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: the configuration, `params`, `files`, `bundled`, `repo`, `revision`."""
        return {
            **dataclasses.asdict(self.config),
            "params": self.config.params,
            "files": self.files,
            "bundled": self.bundled,
            "repo": self.repo,
            "revision": self.revision,
        }


RELEASED: dict[str, Release] = {
    "scemae-tiny": Release(
        repo="scemae/scemae-tiny",
        revision=None,
        bundled=True,
        files={
            WEIGHTS: ReleasedFile("552e50602d618acf91d8d50c4094b3429d997751dae7c64436154d95f23cd7ff", 11_176_852),
            CONFIG: ReleasedFile("bb0500c4392c72e6b55ba63f85b23c0aadf5f2e57600902df5e7ec54ec3893f5", 1_485),
        },
    ),
}


class Located(NamedTuple):
    """A folder on this machine, and the SHA-256 that its files were found to have; those that somebody vouches for."""

    folder: Path
    sha256: Mapping[str, str]


def list_models(pattern: str = "*") -> list[ModelInfo]:
    """The released models whose names match `pattern` (shell style), by name. Reads no network and loads no weights."""
    return [_released_info(name) for name in sorted(RELEASED) if fnmatch(name, pattern)]


def model_info(source: str | os.PathLike[str] = DEFAULT, **hub: Unpack[HubOptions]) -> ModelInfo:
    """What `load_model(source)` would load, without loading it; a repository of the Hub is fetched."""
    validate_hub_options(hub)
    if isinstance(source, str) and source in RELEASED:
        return _released_info(source)
    folder = locate(source, hub).folder
    return ModelInfo(read_config(folder), _sizes(folder), bundled=False)


def model_folder(source: str | os.PathLike[str], **hub: Unpack[HubOptions]) -> Path:
    """Where the files of a model lie, checked; those of the Hub are fetched first."""
    return locate(source, hub).folder


def load_model(
    source: str | os.PathLike[str] = DEFAULT,
    *,
    device: str = "auto",
    dtype: str = "float32",
    **hub: Unpack[HubOptions],
) -> SceMae:
    """A trained model, ready to use: weights whose SHA-256 was checked, or an exception; never random ones.

    Args:
        source: the name of a released model (`list_models`): bundled, else in the folder that SCEMAE_WEIGHTS_DIR names,
            else in the Hub's cache, else fetched; always the very bytes of the release.
            "hf-hub:ORG/REPO" or "hf-hub:ORG/REPO@REVISION": a repository that `scemae push` has made.
            "local-dir:PATH" or a pathlib.Path: a model folder. The bytes of both must be those that their card states;
            a folder without a card is checked for the names and shapes of its tensors only.
        device: "auto" (the first CUDA GPU, Apple's MPS, else the CPU) or any torch device.
        dtype: "float32", or "bfloat16" for an encoder that is faster where the processor has bf16 instructions.
        **hub: how to reach the Hub: `endpoint`, `cache_dir`, `token`, `local_files_only` (HubOptions).

    Raises:
        OptionError: a device or dtype that there is not.
        ModelNotFoundError: no such name, folder or repository.
        RevisionNotFoundError: no such revision of it.
        WeightsUnavailableError: not on this machine, and not to be had.
        GatedWeightsError: no access.
        WeightsIntegrityError: damaged or altered files.
        IncompatibleWeightsError: tensors that are not those of the configuration.
    """
    import torch

    from scemae.model.sce_mae import SceMae
    from scemae.numerics import default_numerics

    if dtype not in DTYPES:
        raise OptionError(f"dtype is {dtype!r}; it must be one of {DTYPES}.")
    folder, sha256 = locate(source, hub)
    config = read_config(folder)
    with torch.random.fork_rng(devices=[]), default_numerics():  # its first weights, which are replaced, change nothing
        model = SceMae(config).float()  # whatever the default dtype is
        load_state(model, folder / WEIGHTS)
    model.id = ModelId(config.name, sha256.get(WEIGHTS) or file_sha256(folder / WEIGHTS))
    if dtype == "bfloat16":
        model.backbone.to(torch.bfloat16)
    return model.requires_grad_(False).eval().to(_device(device))


def _device(device: str) -> str:
    import torch

    if device != "auto":
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:  # AssertionError: torch was built without CUDA
            raise OptionError(f"device is {device!r}, which cannot be used here: {error}") from error
        return device
    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


def locate(source: str | os.PathLike[str], hub: HubOptions) -> Located:
    """The folder of a model, fetched if need be, its files checked."""
    validate_hub_options(hub)
    if isinstance(source, os.PathLike):
        return _local(Path(source))
    if source.startswith(LOCAL):
        return _local(Path(source.removeprefix(LOCAL)))
    if source.startswith(HUB):
        return Located(*fetch(source, (WEIGHTS, CONFIG), hub))
    if source in RELEASED:
        return _released(source, hub)
    close = difflib.get_close_matches(source, RELEASED, n=1, cutoff=0.5)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    if os.sep in source or Path(source).is_dir():
        hint += f" To load a folder, say '{LOCAL}{source}'; a repository of the Hub, '{HUB}ORG/REPO'."
    raise ModelNotFoundError(f"There is no model {source!r}; there is {', '.join(sorted(RELEASED))}.{hint}")


def _local(folder: Path) -> Located:
    """A folder of the user's: what its card states of its files must be so."""
    check_complete(folder)
    stated = read_card_hashes(folder)
    next_step = f"{folder / CARD} states that. Get the folder again; or, if you changed it, remove the card."
    return checked(folder, {name: stated[name] for name in (WEIGHTS, CONFIG) if name in stated}, next_step)


def _released(name: str, hub: HubOptions) -> Located:
    release = RELEASED[name]
    if release.bundled:
        return checked(shipped(name), release.sha256, "Install scemae again.")
    mirror = os.environ.get(MIRROR)
    if mirror and (Path(mirror) / name).is_dir():
        return checked(Path(mirror) / name, release.sha256, f"It is in {MIRROR}; `scemae download {name}` it again.")
    if release.revision is None:
        raise WeightsUnavailableError(
            f"{name} is not published yet: there is no {release.repo} on the Hub. Put its folder, if you have it, into "
            f"the one that {MIRROR} names, or use the model that comes with scemae, load_model()."
        )
    repository = Repository(release.repo, release.revision, name, **hub)
    return Located(repository.folder(release.sha256), release.sha256)


def checked(folder: Path, sha256: Mapping[str, str], next_step: str) -> Located:
    """The folder, if these files in it have these SHA-256; else WeightsIntegrityError."""
    check_complete(folder, tuple(sha256))
    for name, expected in sha256.items():
        check_sha256(folder / name, expected, next_step)
    return Located(folder, sha256)


def shipped(name: str) -> Path:
    """The folder of a released model in the installed package, or in the source checkout that it runs from."""
    package = Path(__file__).parent.parent
    installed = package / "_weights" / name
    return installed if installed.is_dir() else package.parent / "weights" / name


def _released_info(name: str) -> ModelInfo:
    release, folder = RELEASED[name], shipped(name)
    sizes = {file: known.size for file, known in release.files.items()} | _sizes(folder)
    return ModelInfo(read_config(folder), sizes, release.bundled, release.repo, release.revision)


def _sizes(folder: Path) -> dict[str, int]:
    return {name: (folder / name).stat().st_size for name in (WEIGHTS, CONFIG, CARD) if (folder / name).is_file()}
