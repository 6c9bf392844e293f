"""The heads of a landmark regressor: arrays in, arrays out, all in input pixels; they know no images and no models."""

import copy
from typing import Any

from scemae.detector.annotated_maps import AnnotatedMaps
from scemae.detector.cascade import CascadeHead
from scemae.detector.heatmap import HeatmapHead
from scemae.detector.mirror import Mirror
from scemae.errors import OptionError

Head = CascadeHead | HeatmapHead
HEADS: dict[str, type[Head]] = {head.name: head for head in (CascadeHead, HeatmapHead)}
FIXED_CROP_SIGMAS = (12.0, 9.0, 6.0, 4.0, 3.0, 2.0, 1.5, 1.0)  # without alignment faces lie further from the mean shape

__all__ = [
    "HEADS",
    "AnnotatedMaps",
    "CascadeHead",
    "Head",
    "HeatmapHead",
    "Mirror",
    "describe_head",
    "head_from_description",
    "new_head",
]


def new_head(head: str | Head, aligned: bool) -> Head:
    """An unfitted head: one of `HEADS` by name, with its defaults for faces that are aligned or not, or a copy."""
    if not isinstance(head, str):
        return copy.deepcopy(head)
    if head not in HEADS:
        raise OptionError(f"head is {head!r}; it must be one of {', '.join(HEADS)}, or an instance.")
    return CascadeHead(sigmas=FIXED_CROP_SIGMAS) if head == "cascade" and not aligned else HEADS[head]()


def describe_head(head: str | Head) -> Any:
    """A head as JSON can hold it: its name, or [name, settings]."""
    return head if isinstance(head, str) else [head.name, head.settings()]


def head_from_description(description: Any) -> Any:
    """What `describe_head` wrote."""
    return description if isinstance(description, str) else HEADS[description[0]](**description[1])
