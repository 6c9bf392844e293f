"""download, verify, push: models and regressors, between the Hub, this machine and machines without a network."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Unpack

from scemae.errors import (
    IncompatibleWeightsError,
    ModelNotFoundError,
    OptionError,
    OutputError,
    WeightsUnavailableError,
)
from scemae.output import atomic_write, new_path
from scemae.weights.card import linked_files, load_call, regressor_card
from scemae.weights.hub import HUB, HubOptions, Pushed, fetch, push_files, read_card_hashes
from scemae.weights.model_folder import (
    CARD,
    CONFIG,
    REGRESSOR,
    REGRESSOR_FORMAT,
    WEIGHTS,
    file_sha256,
    read_config,
    read_file,
)
from scemae.weights.zoo import LOCAL, RELEASED, Located, checked, load_model, locate, shipped


def download(
    source: str, to: str | os.PathLike[str] | None = None, *, overwrite: bool = False, **hub: Unpack[HubOptions]
) -> Located:
    """Fetch a released model, or all that an "hf-hub:" repository has for scemae, into the Hub's cache, or below `to`.

    `to/NAME` is then a folder for "local-dir:", and `to` one for SCEMAE_WEIGHTS_DIR. Files that are there already and
    right stay; others are replaced with `overwrite` only, else OutputError. Other errors: those of `load_model`.
    """
    found = _located(source, hub)
    if to is None:
        return found
    target = Path(to) / source.removeprefix(HUB).partition("@")[0].rpartition("/")[2]
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{target} cannot be made: {error}.") from error
    for name in found.sha256:
        _copy(found.folder / name, target / name, overwrite)
    _copy((shipped(source) if source in RELEASED else found.folder) / CARD, target / CARD, overwrite)
    return checked(target, found.sha256, "Is the disk damaged?")


def verify(source: str, **hub: Unpack[HubOptions]) -> list[Located]:
    """Check what is on this machine, without a request: a released model, a repository in the cache, or a folder.

    A folder is one with a model or a regressor and its card, or one of such folders (as for SCEMAE_WEIGHTS_DIR).

    Raises:
        WeightsIntegrityError: a file is not what the release, or else its card, says.
        WeightsUnavailableError: it is not on this machine.
        ModelNotFoundError: nothing to check.
    """
    path = Path(source.removeprefix(LOCAL))
    if source in RELEASED or not path.is_dir():
        return [_located(source, {**hub, "local_files_only": True})]
    folders = [path] if (path / CARD).is_file() else sorted(card.parent for card in path.glob(f"*/{CARD}"))
    found = [located for located in map(_verified, folders) if located.sha256]
    if not found:
        raise ModelNotFoundError(f"{path} has no model or regressor with a {CARD} that states its SHA-256.")
    return found


def verify_all(**hub: Unpack[HubOptions]) -> dict[str, Located | None]:
    """`verify` all released models; None for those that are not on this machine."""
    found: dict[str, Located | None] = {}
    for name in RELEASED:
        try:
            (found[name],) = verify(name, **hub)
        except WeightsUnavailableError:
            found[name] = None
    return found


def push(
    path: str | os.PathLike[str],
    repo: str,
    *,
    private: bool = False,
    tag: str | None = None,
    endpoint: str | None = None,
    token: str | bool | None = None,
) -> Pushed:
    """Upload a model folder, or the file of a saved regressor, to a repository of the Hub; see `to_push`.

    Args:
        path: of the folder or file.
        repo: "ORG/REPO"; it is made if it is not there.
        private: make it a private one, or see that it is.
        tag: a name for the new commit.
        endpoint, token: as in `load_model`.

    Raises:
        GatedWeightsError: no right to write there.
        OptionError: the tag exists already, or the repository is public and `private` was asked for.
        OutputError: all else.
    """
    return push_files(repo, to_push(path, repo), private=private, tag=tag, endpoint=endpoint, token=token)


def to_push(path: str | os.PathLike[str], repo: str) -> dict[str, Path | bytes]:
    """What `push` uploads, name -> path or content: the files of a model folder, or a regressor and a card for it.

    Raises the errors of `load_model` for a folder, of `LandmarkRegressor.load` for a file, if it is damaged.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo, re.ASCII):
        raise OptionError(f"{repo!r} names no repository; wanted ORG/REPO.")
    path = Path(path)
    return _regressor_files(path, repo) if path.is_file() else _model_files(path, repo)


def _located(source: str, hub: HubOptions) -> Located:
    return Located(*fetch(source, (), hub)) if source.startswith(HUB) else locate(source, hub)


def _verified(folder: Path) -> Located:
    release = RELEASED.get(folder.name)
    return checked(folder, read_card_hashes(folder) if release is None else release.sha256, "Download it again.")


def _copy(path: Path, target: Path, overwrite: bool) -> None:
    if target.is_file() and file_sha256(target) == file_sha256(path):
        return
    with atomic_write(new_path(target, overwrite)) as temporary:
        shutil.copyfile(path, temporary)


def _model_files(folder: Path, repo: str) -> dict[str, Path | bytes]:
    load_model(folder, device="cpu")
    if not {WEIGHTS, CONFIG} <= read_card_hashes(folder).keys():
        raise IncompatibleWeightsError(
            f"{folder / CARD} states no SHA-256 of {WEIGHTS} and {CONFIG}, so that nobody could check them; write it "
            "with scemae.weights.card.model_card."
        )
    card = (folder / CARD).read_text(encoding="utf-8")
    name = read_config(folder).name
    if name not in RELEASED:
        card = card.replace(load_call(name), load_call(HUB + repo))
    return {CARD: card.encode(), **{name: folder / name for name in (CONFIG, WEIGHTS, *linked_files(card, folder))}}


def _regressor_files(path: Path, repo: str) -> dict[str, Path | bytes]:
    tensors, metadata = read_file(path)
    if REGRESSOR_FORMAT not in metadata:
        raise IncompatibleWeightsError(f"{path} is no landmark regressor of scemae; wanted one, or a model folder.")
    error = tensors["held_out_errors"].nanmean().item()
    card = regressor_card(json.loads(metadata[REGRESSOR_FORMAT]), error, repo, file_sha256(path), path.stat().st_size)
    return {CARD: card.encode(), REGRESSOR: path}
