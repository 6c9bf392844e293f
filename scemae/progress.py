"""Progress bars: one definition of when a person sees one."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sized
from typing import TypeVar

from tqdm.auto import tqdm

from scemae.errors import ImageInputError

T = TypeVar("T", bound=Sized)
LONG_WORK = 2.0  # seconds after which a terminal is shown progress


def with_progress(batches: Iterator[T], total: int | None, progress: bool | None = None) -> Iterator[T]:
    """The batches, with a bar as in `extract_features`; raises ImageInputError where there is none."""
    nothing = True
    with tqdm(total=total, unit="face", delay=LONG_WORK, disable=hide_progress(progress)) as bar:
        for part in batches:
            nothing = False
            bar.update(len(part))
            yield part
    if nothing:
        raise ImageInputError("images is empty: there is nothing to extract features from.")


def hide_progress(progress: bool | None = None) -> bool:
    """Whether a bar is not to be shown; None shows it on a terminal."""
    return not (sys.stderr.isatty() if progress is None else progress)
