"""Files of Hugging Face Hub repositories: from the cache or fetched, and always checked against their SHA-256."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from errno import EACCES, EDQUOT, ENOSPC, EPERM, EROFS
from pathlib import Path
from typing import TYPE_CHECKING, Self, TypedDict

from scemae.errors import (
    GatedWeightsError,
    IncompatibleWeightsError,
    ModelNotFoundError,
    OptionError,
    RevisionNotFoundError,
    ScemaeError,
    WeightsIntegrityError,
    WeightsUnavailableError,
)
from scemae.model.config import validate_switch
from scemae.output import real_path
from scemae.weights.card import read_stated_files
from scemae.weights.client_errors import describe_client_error, http_status, is_from_hub
from scemae.weights.endpoint_guard import COMMIT, Guard, guarding, split_endpoint
from scemae.weights.model_folder import CARD, TEXT_LIMIT, VerifiedFiles, check_sha256

if TYPE_CHECKING:
    from huggingface_hub import HfFileMetadata

HUB = "hf-hub:"
REPOSITORY = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}", re.ASCII)
REVISION = re.compile(r"(?=.{1,200}$)\w[\w.+-]*(/\w[\w.+-]*)*", re.ASCII)  # the client makes a path of it
TOKEN = re.compile(r"[!-~]*")
RETRIES = (1, 2, 4, 8, 8)  # s, pauses before a server that failed is asked again

logger = logging.getLogger(__name__)


class HubOptions(TypedDict, total=False):
    """How to reach the Hub. The default of each option is that of huggingface_hub and its environment variables.

    Args:
        endpoint: the URL of a mirror; default $HF_ENDPOINT, else https://huggingface.co.
        cache_dir: where fetched files are kept; default $HF_HUB_CACHE, else ~/.cache/huggingface/hub.
        token: for gated and private repositories; default $HF_TOKEN, else what `hf auth login` stored.
        local_files_only: make no request. $HF_HUB_OFFLINE=1 does the same if it is set before Python starts.
    """

    endpoint: str | None
    cache_dir: str | Path | None
    token: str | bool | None
    local_files_only: bool


def validate_hub_options(hub: HubOptions) -> None:
    """Raise TypeError for an unknown keyword, as Python itself does for named parameters."""
    known = HubOptions.__annotations__
    unknown = sorted(hub.keys() - known)
    if unknown:
        raise TypeError(f"unexpected keyword argument {unknown[0]!r}; those about the Hub are {', '.join(known)}")
    validate_token(hub.get("token"))
    validate_switch("local_files_only", hub.get("local_files_only", False))


def validate_token(token: str | bool | None) -> None:
    """Raise OptionError, which does not show the token, unless it can be sent: the client's own error would show it."""
    if isinstance(token, str) and not TOKEN.fullmatch(token):
        raise OptionError("token has a space, a line break or a letter that no token has; copy it again.")


def is_repository(name: str) -> bool:
    """Whether the Hub can have a repository "ORG/REPO" of this name."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    with suppress(HFValidationError):
        validate_repo_id(name)
        return REPOSITORY.fullmatch(name) is not None
    return False


def fetch(source: str, wanted: Collection[str], hub: HubOptions) -> VerifiedFiles:
    """Files of "hf-hub:ORG/REPO[@REVISION]", fetched if need be, with the SHA-256 that the repository's card states.

    Args:
        source: the repository; the revision is a branch, a tag or a commit, and main if there is none.
        wanted: names of files; if empty, all files that the card states the SHA-256 of.
        hub: how to reach the Hub.

    Returns a folder of the cache, named after the commit. Raises the errors of `load_model`.
    """
    validate_hub_options(hub)
    repository = Repository.parse(source, hub)
    card = repository.get_file(CARD)
    try:
        stated = read_stated_files(card.parent)
        missing = sorted(set(wanted) - stated.keys())
        if missing or not stated:
            raise IncompatibleWeightsError(
                f"{repository} has no {' and '.join(missing) or 'file'} that can be checked: its {CARD} states the "
                f"SHA-256 of {', '.join(stated) or 'nothing'}. `scemae push` writes a card that does."
            )
        files = {name: stated[name] for name in wanted or stated}
        return replace(repository, revision=card.parent.name).get_verified_files(
            {name: file.sha256 for name, file in files.items()}, {name: file.size for name, file in files.items()}
        )
    except WeightsIntegrityError:
        repository.remove_cached(card)  # it may be the card that is wrong
        raise


def repository_url(repo: str, endpoint: str | None) -> str:
    """The page of a repository ("ORG/REPO")."""
    return f"{split_endpoint(endpoint)[0]}/{repo}"


@dataclass(frozen=True, kw_only=True)
class Repository:
    """A repository of the Hub at one revision."""

    id: str  # ORG/REPO
    revision: str  # a branch, a tag, or a commit: 40 hexadecimal digits
    source: str  # what the user calls it
    hub: HubOptions  # how to reach it

    @classmethod
    def parse(cls, source: str, hub: HubOptions) -> Self:
        """Read "hf-hub:ORG/REPO[@REVISION]"; raises OptionError."""
        name, at, revision = source.removeprefix(HUB).partition("@")
        if not is_repository(name) or (at and not REVISION.fullmatch(revision)):
            raise OptionError(
                f"{source!r} does not name a repository; wanted '{HUB}ORG/REPO[@REVISION]': names of up to 96 letters, "
                "digits and '-', '_', '.', and a branch, a tag or a commit."
            )
        return cls(id=name, revision=revision or "main", source=source, hub=hub)

    def __str__(self) -> str:
        return f"{repository_url(self.id, self.hub.get('endpoint'))} at revision {self.revision}"

    def get_verified_files(self, sha256: Mapping[str, str], sizes: Mapping[str, int]) -> VerifiedFiles:
        """Files of a commit, each with the SHA-256 that is given; what is not in the cache is fetched.

        `sizes`: the most bytes that are fetched of a file, where that is not a small one.
        """
        paths = [self._get_verified_file(name, sha256[name], sizes.get(name, TEXT_LIMIT)) for name in sha256]
        return VerifiedFiles(paths[0].parent, sha256)

    def get_file(self, name: str, limit: int = TEXT_LIMIT) -> Path:
        """A file, unchecked: that of a commit from the cache if it is there, else what the Hub has now.

        Where the Hub cannot be reached, an older file of a branch is better than none; a warning is logged. A file of
        more than `limit` bytes is not fetched.
        """
        from huggingface_hub import try_to_load_from_cache

        path = try_to_load_from_cache(self.id, name, self.hub.get("cache_dir"), self.revision)
        cached = Path(path) if isinstance(path, str) else None
        if cached and (self._is_offline() or COMMIT.fullmatch(self.revision)):
            return cached
        if self._is_offline():
            raise self.unavailable(name, "this is offline (HF_HUB_OFFLINE or local_files_only)")
        try:
            return self._fetch(name, limit, retry=cached is None)
        except WeightsUnavailableError as error:
            if not cached:
                raise
            logger.warning("Using the cached %s of %s, which may be outdated: %s", name, self, error)
            return cached

    def unavailable(self, name: str, reason: str) -> WeightsUnavailableError:
        """The error for a file that is not in the cache and cannot be fetched; says what the user can do."""
        from_hub = self.source.startswith(HUB)
        use = f"load 'local-dir:DIR/{self.id.partition('/')[2]}'" if from_hub else "set SCEMAE_WEIGHTS_DIR=DIR"
        return WeightsUnavailableError(
            f"{name} of {self} is not in the cache {self.cache_dir} and cannot be fetched: {reason}. To fix this, "
            "check the network, the proxy and the endpoint (HF_ENDPOINT); or run "
            f"`scemae download {self.source} --to DIR` on a machine with a network, copy DIR here and {use}; "
            "or use the model that comes with scemae, load_model()."
        )

    @property
    def cache_dir(self) -> str:
        """Where fetched files are kept."""
        from huggingface_hub import constants

        return str(self.hub.get("cache_dir") or constants.HF_HUB_CACHE)

    def _is_offline(self) -> bool:
        from huggingface_hub import constants

        return self.hub.get("local_files_only") or constants.HF_HUB_OFFLINE

    def remove_cached(self, path: Path) -> None:
        """Remove a file of the cache: the link to it in the snapshot folder, and the blob, unless it is elsewhere."""
        if self._is_offline() or not real_path(path.parent).is_relative_to(real_path(self.cache_dir)):
            return
        with suppress(OSError):  # the cache may be read-only
            target = path.parent / path.readlink() if path.is_symlink() else None
            path.unlink(missing_ok=True)  # first, as links may lead round in a loop
            if target:
                self.remove_cached(target)

    def _get_verified_file(self, name: str, expected: str, limit: int, retry: bool = True) -> Path:
        """A file with the SHA-256 `expected`; a file with another one is fetched again, once, and never kept."""
        path, offline = self.get_file(name, limit), self._is_offline()
        if offline:
            next_step = "Go online to have it fetched again."
        elif retry:
            next_step = "It is being fetched again."
        else:
            next_step = (
                f"It was fetched twice from {self}, and not kept: does a mirror or proxy alter files? Or the cache "
                "cannot be written. Try another network, endpoint or cache_dir."
            )
        try:
            check_sha256(path, expected, next_step)
        except WeightsIntegrityError as error:
            if offline:
                raise
            self.remove_cached(path)
            if not retry:
                raise
            logger.warning("%s", error)
            return self._get_verified_file(name, expected, limit, retry=False)
        return path

    def _fetch(self, name: str, limit: int, retry: bool) -> Path:
        """Download a file into the cache. `retry`: whether a server's error (5xx) is worth more requests."""
        from huggingface_hub import constants, hf_hub_download

        endpoint, header = split_endpoint(self.hub.get("endpoint"))
        try:
            with guarding(limit, self.revision) as guard:
                guard.check_metadata(self._get_metadata(name, retry, guard))
                path = hf_hub_download(
                    self.id,
                    name,
                    revision=self.revision,
                    endpoint=endpoint,
                    headers={"accept-encoding": "identity", **header},
                    token=self.hub.get("token"),
                    cache_dir=self.hub.get("cache_dir"),
                    etag_timeout=constants.HF_HUB_ETAG_TIMEOUT,
                    library_name="scemae",
                )
        except Exception as error:  # the transports of the client's versions have no common base class
            raise translate_hub_error(self, name, error) from error
        return Path(path)

    def _get_metadata(self, name: str, retry: bool, guard: Guard) -> HfFileMetadata:
        """What the Hub says of a file, or the client's error: at once where nobody answers, `hf_hub_download` alone
        would retry for minutes."""
        from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
        from huggingface_hub.errors import FileMetadataError

        endpoint, header = split_endpoint(self.hub.get("endpoint"))
        url = hf_hub_url(self.id, name, revision=self.revision, endpoint=endpoint)
        for tries, pause in enumerate((*RETRIES, None), 1):
            try:
                found = get_hf_file_metadata(
                    url,
                    token=self.hub.get("token"),
                    timeout=constants.HF_HUB_ETAG_TIMEOUT,
                    headers=header,
                    endpoint=endpoint,
                )
                break
            except Exception as error:
                if pause is None or not retry or http_status(error) < 500 or guard.answers > tries:
                    raise  # the last: some versions of the client tried again themselves
                time.sleep(pause)
        if found.commit_hash is None:
            raise FileMetadataError("what answers is not a Hub but, say, a proxy or a login page")
        return found


def translate_hub_error(repository: Repository, name: str, error: Exception) -> ScemaeError:
    """Our error for one that huggingface_hub raised when it was asked for a file."""
    from huggingface_hub import errors

    status = http_status(error)
    if isinstance(error, errors.GatedRepoError) or status == 401 or (status == 403 and is_from_hub(error)):
        return GatedWeightsError(
            f"{repository} is gated or private, or does not exist, or does not accept this token. Open its page, agree "
            "to its terms if it has any, and pass token= or set HF_TOKEN (`hf auth login`)."
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return ModelNotFoundError(f"{repository}: there is no such repository. Is '{repository.id}' spelt right?")
    if isinstance(error, errors.RevisionNotFoundError):
        return RevisionNotFoundError(
            f"{repository}: there is no such revision. Give a branch, a tag, or the full 40-hex commit."
        )
    if isinstance(error, errors.EntryNotFoundError) and not isinstance(error, errors.LocalEntryNotFoundError):
        return ModelNotFoundError(f"{repository} has no {name}; was it written by `scemae push`?")
    number = error.errno if isinstance(error, OSError) else None
    if number in (ENOSPC, EDQUOT):
        reason = f"{repository.cache_dir} has no space left; make room, or pass cache_dir= (HF_HUB_CACHE)"
    elif number in (EROFS, EACCES, EPERM):
        reason = f"{repository.cache_dir} cannot be written ({error}); pass cache_dir= (HF_HUB_CACHE)"
    else:
        reason = describe_client_error(error)
    return repository.unavailable(name, reason)
