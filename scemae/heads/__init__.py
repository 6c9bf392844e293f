"""The heads of a landmark regressor: arrays in, arrays out, all in input pixels; they know no images and no models."""

from scemae.heads.annotated import AnnotatedMaps
from scemae.heads.cascade import CascadeHead
from scemae.heads.heatmap import HeatmapHead
from scemae.heads.mirrors import mirror_pairs, named_pairs

HEADS: dict[str, type[CascadeHead] | type[HeatmapHead]] = {head.name: head for head in (CascadeHead, HeatmapHead)}

__all__ = ["HEADS", "AnnotatedMaps", "CascadeHead", "HeatmapHead", "mirror_pairs", "named_pairs"]
