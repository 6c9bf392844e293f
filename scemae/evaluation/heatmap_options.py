"""How `scemae eval detection` trains the paper's heat-map heads (Sec. 4.2), and what CL's training would be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

from scemae.detector.heatmap import BATCH, HeatmapHead
from scemae.errors import OptionError

HEATMAP_HEADS = ("heatmap", "heatmap-block")
PRESETS = ("ours", "paper")
# Epochs without mirror images after which CL (Cheng et al., ICCV 2021) reports its errors; for other sets as MAFL.
CL_EPOCHS = {"mafl": 120, "aflw_m": 45, "aflw_r": 45, "300w": 80}
# Of each option --head-NAME: what it is, and its value in each preset with where it comes from.
OPTION_HELP = {
    "maps": "Heat maps per landmark (50: paper, Sec. 4.2).",
    "steps": f"Steps of {BATCH} faces (1000: ours; paper: as many as in CL's 120 epochs of MAFL, 45 of AFLW, 80 of "
    "300W, so 71,250 for MAFL).",
    "rate": "Initial learning rate, which falls to 0 as a cosine (0.001: CL).",
    "weight_decay": "Weight decay (0.0005: CL, whose Adam adds it to the gradient; ours is AdamW).",
    "multiplier": "Factor on the activations before the softmax (10: ours; paper: 100, CL).",
}


class PapersHead(HeatmapHead):
    """The heat-map head without held-out faces, whose error is not used here: a quarter of the time."""

    max_folds = 1


@dataclass(frozen=True, kw_only=True)
class HeatmapOptions:
    """How heat-map heads are trained; the defaults are the preset "ours". Raises OptionError for impossible values.

    Attributes:
        maps: heat maps per landmark.
        steps: optimizer steps of `BATCH` faces.
        rate: the initial learning rate.
        weight_decay: that of AdamW.
        multiplier: factor on the activations before the softmax.
        mirror: learn from mirror images too.
    """

    maps: int = 50
    steps: int = 1000
    rate: float = 1e-3
    weight_decay: float = 5e-4
    multiplier: float = 10.0
    mirror: bool = True

    def __post_init__(self) -> None:
        for name in ("maps", "steps"):
            if getattr(self, name) < 1:
                raise OptionError(f"--head-{name} is {getattr(self, name)}; wanted at least 1.")
        for name, least in (("rate", "above"), ("multiplier", "above"), ("weight_decay", "at least")):
            value = getattr(self, name)
            if not 0 <= value < float("inf") or (value == 0 and least == "above"):
                raise OptionError(f"--head-{name.replace('_', '-')} is {value}; wanted a number {least} 0.")

    @classmethod
    def of_preset(cls, preset: str, given: Mapping[str, Any], *, dataset: str, pool: int) -> Self:
        """The options of a preset for `pool` annotated faces of a data set, except those that are `given`."""
        options = cls()
        if preset == "paper":
            steps = max(1, round(CL_EPOCHS.get(dataset, CL_EPOCHS["mafl"]) * pool / BATCH))
            options = cls(steps=steps, multiplier=100.0, mirror=False)
        return replace(options, **given)

    def new_head(self, name: str) -> PapersHead:
        """An unfitted head, one of `HEATMAP_HEADS`."""
        return PapersHead(
            heatmaps=self.maps,
            block=name == "heatmap-block",
            steps=self.steps,
            rate=self.rate,
            weight_decay=self.weight_decay,
            multiplier=self.multiplier,
        )
