"""The heads that go by a name: `HEADS`."""

from __future__ import annotations

import copy

from scemae.detector.cascade import CascadeHead
from scemae.detector.head import Head
from scemae.detector.heatmap import HeatmapHead
from scemae.detector.shaped_cascade import ShapedCascadeHead
from scemae.errors import OptionError

HEADS: dict[str, type[CascadeHead] | type[HeatmapHead] | type[ShapedCascadeHead]] = {
    head.name: head for head in (CascadeHead, HeatmapHead, ShapedCascadeHead)
}


def new_head(head: str | Head, aligned: bool, shaped: bool = False) -> Head:
    """An unfitted head: one of `HEADS` by name, with its defaults for faces that are aligned or not, or a copy.

    `shaped`: whether the features have shapes: "cascade" is then the head that uses them.
    """
    if not isinstance(head, str):
        return copy.deepcopy(head)
    if head not in HEADS:
        raise OptionError(f"head is {head!r}; it must be one of {', '.join(HEADS)}, or an instance of a head.")
    if head == CascadeHead.name and shaped:
        return ShapedCascadeHead()
    return HEADS[head].with_defaults(aligned)
