"""Models by name: load_model, list_models and model_info, for released models, Hub repositories and model folders."""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from scemae.errors import ModelNotFoundError, OptionError, WeightsUnavailableError
from scemae.model.config import ModelConfig, ModelId
from scemae.weights.card import read_card_hashes
from scemae.weights.hub import HUB, HubOptions, Repository, fetch, validate_hub_options
from scemae.weights.model_folder import (
    CARD,
    CONFIG,
    WEIGHTS,
    VerifiedFiles,
    check_complete,
    file_sha256,
    read_config,
    read_weights,
    verify_files,
)

if TYPE_CHECKING:
    from scemae.model.sce_mae import SceMae

DEFAULT = "scemae-tiny"
LOCAL = "local-dir:"
MIRROR = "SCEMAE_WEIGHTS_DIR"  # environment variable: a folder of model folders, as `scemae download --to` makes it
DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True, kw_only=True)
class Release:
    """What was released under a name."""

    repo: str  # on the Hub
    revision: str | None  # the commit there, 40 hexadecimal digits; None until it is published
    bundled: bool  # whether the weights come with the package; configuration and card always do
    sha256: Mapping[str, str]  # file name -> SHA-256
    weights_bytes: int  # size of the weight file


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """One row of `list_models`."""

    config: ModelConfig  # what its config.json says
    files: dict[str, int]  # file name -> size in bytes
    bundled: bool  # whether the weights come with the package
    repo: str | None = None  # of a released model, on the Hub
    revision: str | None = None  # the commit there, once the model is published

    @property
    def name(self) -> str:
        """The name of the model; of a released one, what `load_model` takes."""
        return self.config.name

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: the configuration, `params`, `files`, `bundled`, `repo`, `revision`."""
        fields = dataclasses.asdict(self)
        return {**fields.pop("config"), "params": self.config.params, **fields}


RELEASED: dict[str, Release] = {
    "scemae-tiny": Release(
        repo="scemae/scemae-tiny",
        revision=None,
        bundled=True,
        sha256={
            WEIGHTS: "48c8e4719dd49047b68aebbf008dc6644fab89465652b377144c19b0f652b83b",
            CONFIG: "06118ccfdf57d926ae14cec2802b3eda5a906b3e23f6731e5b4e83a500df674c",
        },
        weights_bytes=12_488_274,
    ),
}


def list_models(pattern: str = "*") -> list[ModelInfo]:
    """The released models whose names match `pattern` (shell style), sorted; without network or loading weights."""
    return [_released_info(name) for name in sorted(RELEASED) if fnmatch(name, pattern)]


def model_info(source: str | os.PathLike[str] = DEFAULT, **hub: Unpack[HubOptions]) -> ModelInfo:
    """What `load_model(source)` would load, without loading it. Files of an "hf-hub:" repository are fetched first."""
    validate_hub_options(hub)
    if isinstance(source, str) and source in RELEASED:
        return _released_info(source)
    folder = locate_model(source, **hub).folder
    return ModelInfo(config=read_config(folder), files=_file_sizes(folder), bundled=False)


def load_model(
    source: str | os.PathLike[str] = DEFAULT,
    *,
    device: str = "auto",
    dtype: str = "float32",
    **hub: Unpack[HubOptions],
) -> SceMae:
    """Load a trained model, ready to use, after checking its SHA-256.

    Args:
        source: the name of a released model (`list_models`): taken from the package, else from the folder that
            SCEMAE_WEIGHTS_DIR names, else from the Hub's cache, else fetched. Its SHA-256 is that of the release.
            "hf-hub:ORG/REPO" or "hf-hub:ORG/REPO@REVISION": a repository that `scemae push` wrote.
            "local-dir:PATH" or a pathlib.Path: a model folder. For both, the SHA-256 must be the one that the card
            states; in a folder without a card, the weights must have the checksum that they carry (released ones carry
            none, and must be those of the release), and just the tensors that the configuration describes, finite.
        device: "auto" (the first CUDA GPU, Apple's MPS, else the CPU) or any torch device.
        dtype: "float32", or "bfloat16" for an encoder that is faster on processors with bf16 instructions.
        **hub: how to reach the Hub: `endpoint`, `cache_dir`, `token`, `local_files_only` (HubOptions).

    Raises:
        OptionError: the device or dtype cannot be used.
        ModelNotFoundError: there is no such name, folder or repository.
        RevisionNotFoundError: the repository has no such revision.
        WeightsUnavailableError: the files are not on this machine and cannot be fetched.
        GatedWeightsError: the repository is gated or private.
        WeightsIntegrityError: a file is damaged or was altered.
        IncompatibleWeightsError: the tensors do not match the configuration.
    """
    import torch

    from scemae.model.sce_mae import SceMae
    from scemae.numerics import default_numerics

    if dtype not in DTYPES:
        raise OptionError(f"dtype is {dtype!r}; it must be one of {DTYPES}.")
    folder, sha256 = locate_model(source, **hub)
    config = read_config(folder)
    with torch.device("meta"):  # a configuration may ask for any amount of memory
        expected = SceMae(config).state_dict()
    tensors = read_weights(folder / WEIGHTS, expected)
    with torch.random.fork_rng(devices=[]), default_numerics():  # the initial weights, soon replaced, draw none
        model = SceMae(config).float()  # whatever the default dtype is
        model.load_state_dict(tensors)
    model.id = ModelId(config.name, sha256.get(WEIGHTS) or file_sha256(folder / WEIGHTS))
    if dtype == "bfloat16":
        model.backbone.to(torch.bfloat16)
    return model.requires_grad_(False).eval().to(_choose_device(device))


def _choose_device(device: str) -> str:
    import torch

    if device != "auto":
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:  # AssertionError: torch was built without CUDA
            raise OptionError(f"device is {device!r}, which cannot be used here: {error}") from error
        return device
    return "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"


def locate_model(source: str | os.PathLike[str], **hub: Unpack[HubOptions]) -> VerifiedFiles:
    """The files of a model on this machine, fetched if need be and checked; `source` and errors as for `load_model`."""
    validate_hub_options(hub)
    if isinstance(source, os.PathLike):
        return _verify_local_folder(Path(source))
    if not isinstance(source, str):
        raise OptionError(
            f"source is a {type(source).__name__}; wanted the name of a model, such as {DEFAULT!r}, or a pathlib.Path."
        )
    if source.startswith(LOCAL):
        return _verify_local_folder(Path(source.removeprefix(LOCAL)))
    if source.startswith(HUB):
        return fetch(source, (WEIGHTS, CONFIG), hub)
    if source in RELEASED:
        return _locate_released(source, hub)
    close = difflib.get_close_matches(source, RELEASED, n=1, cutoff=0.5)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    if os.sep in source or os.path.isdir(source):
        hint += f" To load a folder, say '{LOCAL}{source}'; a repository of the Hub, '{HUB}ORG/REPO'."
    raise ModelNotFoundError(f"There is no model {source!r:.200}; there is {', '.join(sorted(RELEASED))}.{hint}")


def packaged_folder(name: str) -> Path:
    """The folder of a released model in the installed package, or in the source checkout that it runs from."""
    package = Path(__file__).parent.parent
    installed = package / "_weights" / name
    return installed if installed.is_dir() else package.parent / "weights" / name


def _verify_local_folder(folder: Path) -> VerifiedFiles:
    check_complete(folder)
    stated = read_card_hashes(folder)
    wanted: Mapping[str, str] = {name: stated[name] for name in (WEIGHTS, CONFIG) if name in stated}
    next_step = f"{folder / CARD} states that. Get the folder again; or, if you changed it, remove the card."
    if not wanted:
        config = file_sha256(folder / CONFIG)
        for name, release in RELEASED.items():
            if release.sha256[CONFIG] == config:
                wanted = release.sha256
                next_step = f"Its {CONFIG} is that of {name}; if you changed the weights, give them another name there."
    return verify_files(folder, wanted, next_step)


def _locate_released(name: str, hub: HubOptions) -> VerifiedFiles:
    release = RELEASED[name]
    if release.bundled:
        return verify_files(packaged_folder(name), release.sha256, "Install scemae again.")
    mirror = os.environ.get(MIRROR)
    if mirror and os.path.isdir(Path(mirror) / name):
        next_step = f"It is in {MIRROR}; run `scemae download {name}` again."
        return verify_files(Path(mirror) / name, release.sha256, next_step)
    if release.revision is None:
        raise WeightsUnavailableError(
            f"{name} is not published yet: there is no {release.repo} on the Hub. If you have its folder, put it into "
            f"the one that {MIRROR} names; or use the model that comes with scemae, load_model()."
        )
    repository = Repository(id=release.repo, revision=release.revision, source=name, hub=hub)
    return repository.get_verified_files(release.sha256, {WEIGHTS: release.weights_bytes})


def _released_info(name: str) -> ModelInfo:
    release, folder = RELEASED[name], packaged_folder(name)
    return ModelInfo(
        config=read_config(folder),
        files={WEIGHTS: release.weights_bytes, **_file_sizes(folder)},
        bundled=release.bundled,
        repo=release.repo,
        revision=release.revision,
    )


def _file_sizes(folder: Path) -> dict[str, int]:
    return {name: (folder / name).stat().st_size for name in (WEIGHTS, CONFIG, CARD) if (folder / name).is_file()}
