"""What the errors of huggingface_hub say, whose transports in its versions have no common base class."""

from __future__ import annotations

from collections.abc import Mapping

from scemae.weights.endpoint_guard import RefusedAnswerError


def describe_client_error(error: Exception) -> str:
    """One line about an error of huggingface_hub, without a full stop."""
    from huggingface_hub import constants
    from huggingface_hub.errors import LocalEntryNotFoundError

    if isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # the client says "an error happened"; this is the error
    if isinstance(error, RefusedAnswerError):
        return f"what comes is refused: {error}"
    if "Timeout" in type(error).__name__:  # requests, httpx and Python each have their own
        return f"there was no answer within {constants.HF_HUB_ETAG_TIMEOUT:g} s (HF_HUB_ETAG_TIMEOUT)"
    text = "".join(c if c.isprintable() else " " for c in str(error)[:1000])  # a server may have written it
    return f"{type(error).__name__}: {' '.join(text.split())}".rstrip(".: ")


def http_status(error: Exception) -> int:
    """The HTTP status behind an error of the client; 0 if there is none."""
    return getattr(getattr(error, "response", None), "status_code", 0)


def is_from_hub(error: Exception) -> bool:
    """Whether an HTTP error is the Hub's own, and not that of a proxy on the way."""
    headers: Mapping[str, str] = getattr(getattr(error, "response", None), "headers", {})
    return "X-Error-Code" in headers or "X-Error-Message" in headers
