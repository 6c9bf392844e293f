"""What the client's errors mean, in words that name the repository, the file and the way out."""

from __future__ import annotations

from collections.abc import Mapping
from errno import EACCES, EDQUOT, ENOSPC, EPERM, EROFS
from typing import TYPE_CHECKING

from scemae.errors import (
    GatedWeightsError,
    ModelNotFoundError,
    RevisionNotFoundError,
    ScemaeError,
    WeightsUnavailableError,
)
from scemae.weights.hub.client import patience, status
from scemae.weights.hub.options import HUB

if TYPE_CHECKING:
    from scemae.weights.hub.repository import Repository


def explained(repository: Repository, name: str, error: Exception) -> ScemaeError:
    """Our error for one that the client raised when it was asked for a file."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError) or status(error) == 401 or (status(error) == 403 and _by_hub(error)):
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
        return ModelNotFoundError(f"{repository} has no {name}; `scemae push` has not made it.")
    return unavailable(repository, name, _reason(repository, error))


def unavailable(repository: Repository, name: str, reason: str) -> WeightsUnavailableError:
    """The error for a file that is not here and cannot be had, with the ways out."""
    folder = f"load 'local-dir:DIR/{repository.id.partition('/')[2]}'"
    return WeightsUnavailableError(
        f"{name} of {repository} is not in the cache {_cache(repository)}, and cannot be fetched: {reason}. Ways out: "
        "check the network, the proxy and the endpoint (HF_ENDPOINT); "
        f"or run `scemae download {repository.source} --to DIR` where there is a network, bring DIR here and "
        f"{folder if repository.source.startswith(HUB) else 'set SCEMAE_WEIGHTS_DIR=DIR'}; "
        "or use the model that comes with scemae, load_model()."
    )


def _reason(repository: Repository, error: Exception) -> str:
    number = error.errno if isinstance(error, OSError) else None
    if number in (ENOSPC, EDQUOT):
        return f"there is no space left for it in {_cache(repository)}; make room, or pass cache_dir= (HF_HUB_CACHE)"
    if number in (EROFS, EACCES, EPERM):
        return f"{_cache(repository)} cannot be written ({error}); pass cache_dir= (HF_HUB_CACHE)"
    if isinstance(error, TimeoutError):
        return f"there was no answer within {patience():g} s (HF_HUB_ETAG_TIMEOUT)"
    return f"{type(error).__name__}: {' '.join(str(error).split())}".rstrip(".: ")


def _cache(repository: Repository) -> str:
    from huggingface_hub import constants

    return str(repository.cache_dir or constants.HF_HUB_CACHE)


def _by_hub(error: Exception) -> bool:
    """Whether an HTTP error is the Hub's own, and not that of a proxy on the way."""
    headers: Mapping[str, str] = getattr(getattr(error, "response", None), "headers", {})
    return "X-Error-Code" in headers or "X-Error-Message" in headers
