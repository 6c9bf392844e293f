"""download and verify: copies of models and detectors on this machine, and for machines without a network."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Unpack

from scemae.errors import ModelNotFoundError, OptionError
from scemae.model.config import validate_switch
from scemae.output import atomic_write, make_folder, new_path
from scemae.weights.card import read_card_hashes
from scemae.weights.hub import HUB, HubOptions, fetch
from scemae.weights.model_folder import CARD, VerifiedFiles, file_sha256, verify_files
from scemae.weights.zoo import LOCAL, RELEASED, locate_model, packaged_folder


def download(
    source: str, to: str | os.PathLike[str] | None = None, *, overwrite: bool = False, **hub: Unpack[HubOptions]
) -> VerifiedFiles:
    """Fetch a model or detector into the Hub's cache, or copy it into a folder for machines without a network.

    Args:
        source: the name of a released model or "hf-hub:ORG/REPO[@REVISION]", all files of which that its card states
            the SHA-256 of are fetched.
        to: a folder; the files go into `to/NAME`, which "local-dir:" loads. SCEMAE_WEIGHTS_DIR may name `to` itself.
        overwrite: replace files in `to/NAME` that differ. Files that are the same are kept as they are.
        **hub: how to reach the Hub (HubOptions).

    Raises OutputError where `to` cannot be written or a file in it differs, and the errors of `load_model`.
    """
    validate_switch("overwrite", overwrite)
    if source.startswith(LOCAL):
        raise OptionError(f"{source} is on this machine already; wanted a released model, or {HUB}ORG/REPO.")
    found = _locate_files(source, hub)
    if to is None:
        return found
    target = Path(to) / source.removeprefix(HUB).partition("@")[0].rpartition("/")[2]
    make_folder(target)
    for name in found.sha256:
        _copy_file(found.folder / name, target / name, overwrite)
    # Only the files of a release are fetched, but its card is always in the package.
    _copy_file((packaged_folder(source) if source in RELEASED else found.folder) / CARD, target / CARD, overwrite)
    return verify_files(target, found.sha256, "Is the disk damaged?")


def verify(source: str, **hub: Unpack[HubOptions]) -> list[VerifiedFiles]:
    """Check the SHA-256 of files on this machine, without a request.

    Args:
        source: the name of a released model; "hf-hub:ORG/REPO[@REVISION]", in the cache; the folder of a model or
            detector with its card; or a folder of such folders, as SCEMAE_WEIGHTS_DIR names.
        **hub: where the Hub's cache is (HubOptions).

    Raises:
        WeightsIntegrityError: a file does not have the SHA-256 of the release, or else of its card.
        WeightsUnavailableError: it is not on this machine.
        ModelNotFoundError: there is nothing to check.
    """
    path = Path(source.removeprefix(LOCAL))
    if source in RELEASED or not os.path.isdir(path):
        return [_locate_files(source, {**hub, "local_files_only": True})]
    folders = [path] if (path / CARD).is_file() else sorted(card.parent for card in path.glob(f"*/{CARD}"))
    found = [files for files in map(_verify_folder, folders) if files.sha256]
    if not found:
        raise ModelNotFoundError(f"{path} has no model or detector with a {CARD} that states its SHA-256.")
    return found


def _locate_files(source: str, hub: HubOptions) -> VerifiedFiles:
    return fetch(source, (), hub) if source.startswith(HUB) else locate_model(source, **hub)


def _verify_folder(folder: Path) -> VerifiedFiles:
    release = RELEASED.get(folder.name)
    return verify_files(folder, release.sha256 if release else read_card_hashes(folder), "Download it again.")


def _copy_file(path: Path, target: Path, overwrite: bool) -> None:
    if target.is_file() and file_sha256(target) == file_sha256(path):
        return
    with atomic_write(new_path(target, overwrite)) as temporary:
        shutil.copyfile(path, temporary)
