"""Progress bars: one definition of when they are shown."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sized
from typing import TypeVar

from tqdm.auto import tqdm

from scemae.errors import ImageInputError

T = TypeVar("T", bound=Sized)
LONG_WORK = 2.0  # seconds before a bar appears


def with_progress(batches: Iterator[T], total: int | None, progress: bool | None = None) -> Iterator[T]:
    """The batches, with a bar as in `extract_features`; raises ImageInputError if there are none."""
    is_empty = True
    with tqdm(total=total, unit="face", delay=LONG_WORK, disable=hide_progress(progress)) as bar:
        for batch in batches:
            is_empty = False
            bar.update(len(batch))
            yield batch
    if is_empty:
        raise ImageInputError("images is empty: there is nothing to extract features from.")


def hide_progress(progress: bool | None = None) -> bool:
    """Whether to hide the bar; None shows it on a terminal only."""
    return not (sys.stderr.isatty() if progress is None else progress)
