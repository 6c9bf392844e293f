"""huggingface_hub's client, made impatient: it says within seconds that nobody answers."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import TypeVar

PATIENCE = 4.0  # s: a server that has said nothing in that time is taken for absent
BREAKS = 15.0  # s: a connection that breaks twice within that time is given up

T = TypeVar("T")


def probe(repo: str, name: str, revision: str, endpoint: str | None, token: str | bool | None) -> str | None:
    """The commit that a file would come from; None if what answers is no Hub.

    To be asked before `download`, which keeps trying for 23 s where nobody answers. A server's error is tried twice.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    url = hf_hub_url(repo, name, revision=revision, endpoint=endpoint)
    seconds = patience()

    def ask() -> str | None:  # has more time than `within` gives it, so that it is always `within` that gives up
        return get_hf_file_metadata(url, token=token, timeout=2 * seconds, endpoint=endpoint).commit_hash

    try:
        return within(seconds, ask)
    except Exception as error:
        if status(error) < 500:
            raise
    time.sleep(0.5)
    return within(seconds, ask)


def download(
    repo: str,
    name: str,
    revision: str,
    endpoint: str | None,
    token: str | bool | None,
    cache_dir: str | Path | None,
) -> Path:
    """A file of the Hub, now in the cache; a connection that breaks gets one more try, not the client's five."""
    from huggingface_hub import hf_hub_download

    log = logging.getLogger("huggingface_hub.file_download")
    impatience = _Impatience()
    log.addFilter(impatience)
    try:
        return Path(
            hf_hub_download(
                repo,
                name,
                revision=revision,
                endpoint=endpoint,
                token=token,
                cache_dir=cache_dir,
                library_name="scemae",
            )
        )
    finally:
        log.removeFilter(impatience)


def patience() -> float:
    """How long to wait for an answer, seconds; HF_HUB_ETAG_TIMEOUT where it was set."""
    from huggingface_hub import constants

    chosen = constants.HF_HUB_ETAG_TIMEOUT
    return PATIENCE if chosen == constants.DEFAULT_ETAG_TIMEOUT else chosen


def status(error: Exception) -> int:
    """The HTTP status behind an error of the client; 0 if there is none."""
    return getattr(getattr(error, "response", None), "status_code", 0)


def within(seconds: float, call: Callable[[], T]) -> T:
    """call(), or TimeoutError. The client's own timeout is for each address of a host, one after the other."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future.result(seconds)


class _Impatience(logging.Filter):
    """Raises the error of a connection that breaks again. The client's log is the only place that tells of it."""

    def __init__(self) -> None:
        super().__init__()
        self.thread, self.broken = threading.get_ident(), -BREAKS

    def filter(self, record: logging.LogRecord) -> bool:
        error = sys.exception()
        if error is None or threading.get_ident() != self.thread or "Trying to resume" not in str(record.msg):
            return True
        if time.monotonic() - self.broken < BREAKS:
            raise error
        self.broken = time.monotonic()
        return True
