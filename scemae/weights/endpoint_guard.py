"""Guards around huggingface_hub: what an endpoint answers is not trusted, and a password in its URL is not printed.

The client makes paths of an answer's ETag and commit, takes a body as long as it comes, and prints URLs.
"""

from __future__ import annotations

import base64
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import replace
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit, urlunsplit

from scemae.errors import OptionError
from scemae.weights.model_folder import TEXT_LIMIT

if TYPE_CHECKING:
    from huggingface_hub import HfFileMetadata

COMMIT = re.compile(r"[0-9a-f]{40}")
ETAG = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")  # of git, or SHA-256
PATIENCE = 60.0  # s that any file may take
SLOWEST = 16_384.0  # bytes/s; a longer file may take the longer
TRIES = 4  # how often the bytes of a file may come: the client goes on where a connection broke, but not all servers do
PIECE = 65_536  # bytes
ANSWERS = 30  # with all redirections and tries of a file


class RefusedAnswerError(Exception):
    """An answer that is not taken; the message says why, without a full stop."""


def split_endpoint(endpoint: str | None) -> tuple[str, dict[str, str]]:
    """The URL of an endpoint without the user and password in it, and the header that carries them instead."""
    from huggingface_hub import constants

    try:
        parts = urlsplit(endpoint or constants.ENDPOINT)
    except ValueError as error:
        raise OptionError(f"endpoint (HF_ENDPOINT) is not a URL: {error}.") from None
    user, at, host = parts.netloc.rpartition("@")
    header = {"authorization": f"Basic {base64.b64encode(unquote(user).encode()).decode()}"} if at else {}
    return urlunsplit(parts._replace(netloc=host)), header


class Guard:
    """Checks what an endpoint answers when it is asked for one file of at most `limit` bytes."""

    def __init__(self, limit: int, revision: str) -> None:
        self.limit = limit
        self.revision = revision
        self.answers = 0
        self.received = 0  # bytes, in all tries
        self.end = 0.0  # by the clock, from the first answer on
        self.checked: HfFileMetadata | None = None

    def check_metadata(self, found: HfFileMetadata) -> None:
        """Raise RefusedAnswerError, or have the client use just these metadata."""
        if not ETAG.fullmatch(found.etag or ""):
            raise RefusedAnswerError(f"its ETag is {found.etag!r:.99}, wanted 40 or 64 hexadecimal digits")
        commit = found.commit_hash or ""
        if not COMMIT.fullmatch(commit) or (COMMIT.fullmatch(self.revision) and commit != self.revision):
            wanted = "the one asked for" if COMMIT.fullmatch(commit) else "40 hexadecimal digits"
            raise RefusedAnswerError(f"its commit is {commit!r:.99}, wanted {wanted}")
        if found.size is not None and found.size > self.limit:
            raise RefusedAnswerError(f"it has {found.size:,} bytes there, and may have {self.limit:,}")
        self.checked = replace(found, xet_file_data=None)  # Xet's downloads know no guard

    def watch(self, response: Any) -> None:
        """Count a response of requests or httpx, and bound its body while it comes in."""
        self.answers += 1
        if self.answers > ANSWERS:
            raise RefusedAnswerError(f"it was redirected again and again ({ANSWERS} answers)")
        if response.request.method == "HEAD":
            return
        coding = response.headers.get("Content-Encoding", "identity")
        if coding != "identity":  # what was asked for
            raise RefusedAnswerError(f"it comes compressed ({coding!r:.99}), which was not asked for")
        self.end = self.end or time.monotonic() + PATIENCE + self.limit / SLOWEST
        limit = self.limit if response.status_code in (200, 206) else TEXT_LIMIT  # of an error's page
        if hasattr(response, "iter_bytes"):
            pieces = response.iter_bytes
            response.iter_bytes = lambda chunk_size=None: self._pass(pieces(), limit, chunk_size or 0)
        else:
            response.raw.stream = partial(self._stream_requests, response.raw, limit)

    def _stream_requests(self, raw: Any, limit: int, size: int, decode_content: bool | None = None) -> Iterator[bytes]:
        """urllib3's stream, which alone would wait until `size` bytes are there."""
        from urllib3.exceptions import HTTPError

        read = getattr(raw, "read1", raw.read)  # urllib3 before 2.1 has no read1
        try:
            yield from self._pass(iter(lambda: read(PIECE, decode_content=decode_content), b""), limit, size)
        except HTTPError as error:  # the client would go on with a new session, which nothing watches
            raise RefusedAnswerError(f"the connection broke: {error}") from error

    def _pass(self, pieces: Iterable[bytes], limit: int, size: int) -> Iterator[bytes]:
        """The pieces, as chunks of `size` bytes."""
        body, chunk = 0, bytearray()
        for piece in pieces:
            body += len(piece)
            self.received += len(piece)
            if body > limit or self.received > TRIES * limit:
                raise RefusedAnswerError(f"more than {limit:,} bytes come, or the same ones come again and again")
            if time.monotonic() > self.end:
                raise RefusedAnswerError(f"it is not here after {PATIENCE + self.limit / SLOWEST:.0f} s")
            chunk += piece
            if len(chunk) >= size:
                yield bytes(chunk)
                chunk.clear()
        if chunk:
            yield bytes(chunk)


INSTALLING = Lock()
GUARD: ContextVar[Guard | None] = ContextVar("scemae_hub_guard", default=None)


@contextmanager
def guarding(limit: int, revision: str) -> Iterator[Guard]:
    """What huggingface_hub does in this context is guarded."""
    with INSTALLING:
        _install()
    token = GUARD.set(guard := Guard(limit, revision))
    try:
        yield guard
    finally:
        GUARD.reset(token)


def _install() -> None:
    """Have the client's session and its downloads ask the guard of their context; without one they are as before."""
    from huggingface_hub import file_download, get_session

    session: Any = get_session()
    hooks = (session.hooks if hasattr(session, "hooks") else session.event_hooks)["response"]  # requests, or httpx
    if _watch not in hooks:
        hooks.append(_watch)
    # A second request for metadata could be answered with others than those that were checked.
    ask = file_download.get_hf_file_metadata
    if not (isinstance(ask, partial) and ask.func is _recall):
        file_download.get_hf_file_metadata = partial(_recall, ask)


def _watch(response: Any, *_: Any, **__: Any) -> None:
    guard = GUARD.get()
    if guard is not None:
        guard.watch(response)


def _recall(ask: Callable[..., HfFileMetadata], *args: Any, **options: Any) -> HfFileMetadata:
    guard = GUARD.get()
    return guard.checked if guard is not None and guard.checked else ask(*args, **options)
