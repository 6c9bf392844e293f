"""A repository at one revision: its files, in the cache or fetched, each with the SHA-256 that it must have."""

from __future__ import annotations

import logging
import re
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from scemae.errors import IncompatibleWeightsError, OptionError, WeightsIntegrityError, WeightsUnavailableError
from scemae.weights.card import find_card_hashes
from scemae.weights.hub.client import download, probe
from scemae.weights.hub.hub_errors import explained, unavailable
from scemae.weights.hub.options import HUB, HubOptions
from scemae.weights.model_folder import CARD, check_sha256

SOURCE = re.compile(r"(?P<id>[\w.-]+/[\w.-]+)(@(?P<revision>[^@\s]+))?", re.ASCII)
COMMIT = re.compile(r"[0-9a-f]{40}")

logger = logging.getLogger(__name__)


def fetch(source: str, wanted: Collection[str], hub: HubOptions) -> tuple[Path, dict[str, str]]:
    """The files of "hf-hub:ORG/REPO[@REVISION]" that its card vouches for: their folder, and their SHA-256.

    `wanted` are fetched; all that the card names if there are none. The folder is named after the commit.
    """
    repository = Repository.parse(source, hub)
    card = repository.file(CARD)
    stated = read_card_hashes(card.parent)
    missing = sorted(set(wanted) - stated.keys())
    if missing or not stated:
        raise IncompatibleWeightsError(
            f"{repository} holds no {' and '.join(missing) or 'file of scemae'} that can be checked: the SHA-256 that "
            f"its {CARD} states are of {', '.join(stated) or 'nothing'}. `scemae push` writes such a card."
        )
    sha256 = {name: stated[name] for name in wanted or stated}
    try:
        return replace(repository, revision=card.parent.name).folder(sha256), sha256
    except WeightsIntegrityError:
        _remove(card)  # it may be the card that is wrong
        raise


def read_card_hashes(folder: Path) -> dict[str, str]:
    """The SHA-256 that the card of a folder states of the files beside it; none where there is no card of scemae's."""
    card = folder / CARD
    return find_card_hashes(card.read_text(encoding="utf-8", errors="replace")) if card.is_file() else {}


@dataclass(frozen=True)
class Repository:
    """A repository at one revision: a branch, a tag, or, pinned, the 40 hexadecimal digits of a commit."""

    id: str
    revision: str
    source: str  # what the user calls it
    endpoint: str | None = None
    cache_dir: str | Path | None = None
    token: str | bool | None = None
    local_files_only: bool = False

    @classmethod
    def parse(cls, source: str, hub: HubOptions) -> Self:
        """Read "hf-hub:ORG/REPO[@REVISION]"; without a revision it is main."""
        found = SOURCE.fullmatch(source.removeprefix(HUB))
        if not found:
            raise OptionError(f"{source!r} names no repository; wanted '{HUB}ORG/REPO' or '{HUB}ORG/REPO@REVISION'.")
        return cls(found["id"], found["revision"] or "main", source, **hub)

    def __str__(self) -> str:
        from huggingface_hub import constants

        return f"{self.endpoint or constants.ENDPOINT}/{self.id} at revision {self.revision}"

    def folder(self, sha256: Mapping[str, str]) -> Path:
        """The folder of the pinned revision, with these files in it, each with its SHA-256."""
        paths = [self._checked(name, expected) for name, expected in sha256.items()]
        return paths[0].parent

    def file(self, name: str) -> Path:
        """A file, unchecked: a pinned one out of the cache without a request, else the one that the Hub has now."""
        cached = self._cached(name)
        if cached and (self._offline() or COMMIT.fullmatch(self.revision)):
            logger.debug("%s: %s is in the cache", self, name)
            return cached
        try:
            return self._fetched(name)
        except WeightsUnavailableError as error:
            if not cached:
                raise
            reason = error.__cause__ or "what answers is no Hub"
            logger.warning("The cached %s of %s is used, maybe an older one; not fetched: %s", name, self, reason)
            return cached

    def _checked(self, name: str, expected: str) -> Path:
        """A file with its SHA-256; a wrong one is fetched once more."""
        path = self.file(name)
        try:
            check_sha256(path, expected, "Go online, so that it can be fetched again.")
        except WeightsIntegrityError as error:
            if self._offline():
                raise
            logger.warning("%s", error)
            _remove(path)
            path = self.file(name)
            return self._kept(path, expected)
        return path

    def _kept(self, path: Path, expected: str) -> Path:
        """A file that was fetched for the second time, if it is right; else it does not stay."""
        try:
            check_sha256(
                path,
                expected,
                f"It was fetched twice from {self}, and not kept: is that a mirror, or is there a proxy, which alters "
                "files? Or the cache cannot be written. Try another network, endpoint or cache_dir.",
            )
        except WeightsIntegrityError:
            _remove(path)
            raise
        return path

    def _cached(self, name: str) -> Path | None:
        from huggingface_hub import try_to_load_from_cache

        path = try_to_load_from_cache(self.id, name, self.cache_dir, self.revision)
        return Path(path) if isinstance(path, str) else None

    def _offline(self) -> bool:
        from huggingface_hub import constants

        return self.local_files_only or constants.HF_HUB_OFFLINE

    def _fetched(self, name: str) -> Path:
        if self._offline():
            raise unavailable(self, name, "this is offline (HF_HUB_OFFLINE or local_files_only)")
        where = (self.id, name, self.revision, self.endpoint, self.token)
        logger.info("Fetching %s of %s", name, self)
        try:
            if probe(*where) is None:
                raise unavailable(self, name, "what answers is no Hub, but a proxy or a login page, say")
            return download(*where, self.cache_dir)
        except WeightsUnavailableError:
            raise
        except Exception as error:  # the transports of the client's versions have no base in common
            raise explained(self, name, error) from error


def _remove(path: Path) -> None:
    """Remove a file of the cache: the blob, and the link to it in the snapshot folder."""
    with suppress(OSError):  # the cache may be one that cannot be written
        path.resolve().unlink()
        path.unlink(missing_ok=True)
