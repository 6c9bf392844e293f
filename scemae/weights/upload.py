"""push: model folders and detectors to the Hub, as one commit."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from scemae.errors import GatedWeightsError, IncompatibleWeightsError, OptionError, OutputError, ScemaeError
from scemae.model.config import validate_switch
from scemae.output import real_path
from scemae.weights.card import linked_files, load_call, read_card, read_card_hashes, regressor_card
from scemae.weights.client_errors import describe_client_error, http_status
from scemae.weights.endpoint_guard import COMMIT, split_endpoint
from scemae.weights.hub import HUB, REVISION, is_repository, validate_token
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
from scemae.weights.zoo import RELEASED, load_model

if TYPE_CHECKING:
    from huggingface_hub import HfApi


def push(
    path: str | os.PathLike[str],
    repo: str,
    *,
    private: bool = False,
    tag: str | None = None,
    endpoint: str | None = None,
    token: str | bool | None = None,
) -> str:
    """Upload a model folder or the file of a saved detector to the Hub.

    Args:
        path: the folder or file.
        repo: "ORG/REPO"; created if it does not exist.
        private: create a private repository; an existing one must be private.
        tag: a name for the new commit.
        endpoint, token: as in `load_model`.

    Returns "hf-hub:ORG/REPO@COMMIT", which loads exactly the files that were uploaded. A damaged folder or file raises
    what `load_model` or `LandmarkRegressor.load` does.

    Raises:
        GatedWeightsError: the token has no write access.
        OptionError: the tag exists already, or the repository is public and `private` was asked for.
        OutputError: the upload failed for another reason.
    """
    return push_files(repo, collect_files(path, repo), private=private, tag=tag, endpoint=endpoint, token=token)


def collect_files(path: str | os.PathLike[str], repo: str) -> dict[str, Path | bytes]:
    """What `push` uploads, name -> path or content: the files of a model folder, or a detector and a card for it."""
    if not is_repository(repo):
        raise OptionError(f"{repo!r} does not name a repository; wanted ORG/REPO.")
    path = Path(path)
    return _collect_regressor(path, repo) if os.path.isfile(path) else _collect_model(path, repo)


def push_files(
    repo: str,
    files: Mapping[str, Path | bytes],
    *,
    private: bool = False,
    tag: str | None = None,
    endpoint: str | None = None,
    token: str | bool | None = None,
) -> str:
    """Upload files (name -> path or content) as one commit; arguments, result and errors are those of `push`."""
    from huggingface_hub import CommitOperationAdd, HfApi

    if tag is not None and not REVISION.fullmatch(tag):
        raise OptionError(f"{tag!r} cannot be a tag; wanted letters, digits and '-', '_', '.', such as 'v1.0'.")
    validate_token(token)
    validate_switch("private", private)
    url, header = split_endpoint(endpoint)
    api = HfApi(endpoint=url if header else endpoint, token=token, headers=header, library_name="scemae")
    operations = [CommitOperationAdd(name, content) for name, content in files.items()]
    try:
        _prepare_repository(api, repo, private, tag)
        commit = api.create_commit(repo, operations, commit_message="Upload by scemae").oid
        if not COMMIT.fullmatch(commit):
            raise OutputError(f"{repo} on {url} was written, but its commit is said to be {commit!r:.99}.")
        if tag:
            api.create_tag(repo, tag=tag, revision=commit)
    except ScemaeError:
        raise
    except Exception as error:  # the transports of the client's versions have no common base class
        raise _translate_push_error(repo, url, error) from error
    return f"{HUB}{repo}@{commit}"


def _prepare_repository(api: HfApi, repo: str, private: bool, tag: str | None) -> None:
    """Create the repository, or check that an existing one is private if it must be, and does not have the tag."""
    from huggingface_hub import constants
    from huggingface_hub.errors import RepositoryNotFoundError

    try:  # the first request is one with a timeout: the others wait for ever where nobody answers
        existing = api.model_info(repo, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except RepositoryNotFoundError:
        api.create_repo(repo, private=private)
        return
    if private and not existing.private:
        raise OptionError(f"{repo} is public, and nothing was uploaded; choose another, or leave out --private.")
    if tag in [known.name for known in api.list_repo_refs(repo).tags]:
        raise OptionError(f"{repo} has a tag {tag!r} already, and nothing was uploaded; choose another --tag.")


def _translate_push_error(repo: str, endpoint: str, error: Exception) -> ScemaeError:
    from huggingface_hub.errors import LocalTokenNotFoundError

    if http_status(error) in (401, 403) or isinstance(error, LocalTokenNotFoundError):
        return GatedWeightsError(
            f"This token may not write to {repo} on {endpoint}. Make one that may, on your settings page there; then "
            "`hf auth login`, set HF_TOKEN or pass token=."
        )
    return OutputError(f"{repo} on {endpoint} could not be written: {describe_client_error(error)}.")


def _collect_model(folder: Path, repo: str) -> dict[str, Path | bytes]:
    load_model(folder, device="cpu")
    if not {WEIGHTS, CONFIG} <= read_card_hashes(folder).keys():
        raise IncompatibleWeightsError(
            f"{folder / CARD} does not state the SHA-256 of {WEIGHTS} and {CONFIG}, so nobody could check them; write "
            "it with scemae.weights.card.model_card."
        )
    card = read_card(folder)
    name = read_config(folder).name
    if name not in RELEASED:
        card = card.replace(load_call(name), load_call(HUB + repo))
    names = (CONFIG, WEIGHTS, *linked_files(card, folder))
    for name in (CARD, *names):
        _check_inside(folder / name, folder)
    return {CARD: card.encode(), **{name: folder / name for name in names}}


def _check_inside(path: Path, folder: Path) -> None:
    """Raise OptionError where a file is a link that leaves its folder: it may lead to a private file."""
    if not real_path(path).is_relative_to(real_path(folder)):
        raise OptionError(
            f"{path} is a link to {real_path(path)}, outside of the folder, and nothing was uploaded. Put the file "
            "itself there, or leave it out of the card."
        )


def _collect_regressor(path: Path, repo: str) -> dict[str, Path | bytes]:
    tensors, metadata = read_file(path)
    if REGRESSOR_FORMAT not in metadata:
        raise IncompatibleWeightsError(f"{path} is not a detector of scemae; wanted one, or a model folder.")
    try:
        header, held_out = json.loads(metadata[REGRESSOR_FORMAT]), tensors["held_out_errors"].nanmean().item()
        card = regressor_card(header, held_out, repo, file_sha256(path), path.stat().st_size)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:  # a file without a checksum
        raise IncompatibleWeightsError(f"{path} is damaged: {type(error).__name__}: {error}.") from error
    return {CARD: card.encode(), REGRESSOR: path}
