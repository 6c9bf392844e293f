"""Configuration of stage 2, its presets, and where their values come from."""
# ruff: noqa: RUF009 - `option` makes a dataclass field

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from scemae.errors import OptionError
from scemae.model.config import ProjectorMode
from scemae.training.run_config import RunConfig
from scemae.training.training_config import MotionConfig, option

Density = Literal["knn", "mean", "paper_literal"]
Reduction = Literal["sum", "mean_query"]
Locality = Literal["log-cells", "log-pixels", "root"]
Length = Literal["unit", "none"]


@dataclass(frozen=True, kw_only=True)
class Stage2Config(MotionConfig, RunConfig):
    """Stage 2: tokens selected as in Sec. 3.2; CARB and LCR (Sec. 3.3). The defaults are preset "paper" for DeiT-T."""

    batch_size: int = 256
    epochs: float | None = 10
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 5e-4
    warmup: float = 0.0
    attentive_ratio: float = option(0.1, "eta: fraction of the tokens that count as attentive.")
    attention_block: int | None = option(
        None, "Block of the backbone whose CLS attention (Eq. 1) splits the tokens; none: --cluster-block."
    )
    attend: Literal["most", "least"] = option(
        "most", "The attentive tokens are those that the CLS token attends to most, or least."
    )
    cls_mean_heads: bool = option(True, "Compute Eq. 1 as the mean over the attention heads; off: as printed.")
    num_clusters: int = option(4, "K_c: cluster centres that stand for the inattentive tokens.")
    cluster_block: int = option(3, "Block of the backbone after which the tokens are clustered.")
    density: Density = option("knn", "rho, Eq. 2: from the 5 nearest tokens, from all, or as printed (not a density).")
    sequence: Literal["reduced", "full"] = option(
        "reduced", "Tokens that the blocks after the clustering see: only the kept ones, or all of them."
    )
    projector_dim: int = option(64, "D: dimensions of the projected features.")
    projector_mode: ProjectorMode = option("linear", "What follows the projector's 1 x 1 convolution.")
    normalise: Length = option("unit", "Descriptors in Eq. 4: scaled to unit length, or the plain inner product.")
    temperature: float = option(1 / 8, "tau, Eq. 4.")
    attentive_repellence: float = option(5.0, "lambda, Eq. 6, between two attentive tokens.")
    mixed_repellence: float = option(5.0, "lambda, Eq. 6, between an attentive token and a cluster centre.")
    center_repellence: float = option(2.0, "lambda, Eq. 6, between two cluster centres.")
    locality: Locality = option(
        "log-cells", "f_loc of two tokens at distance d: log(d + 1), Eq. 5, d in cells or in pixels; or sqrt(d), as CL."
    )
    reduction: Reduction = option(
        "sum", "Eq. 7 summed over the pairs of tokens, or that sum divided by the number of tokens."
    )
    flip: bool = option(False, "Mirror half of the faces (augmentation).")
    amplitude: float = option(
        0.0,
        "How far faces are moved, see --rotation; 0: not at all. Distances in Eq. 5 are those of the unmoved faces.",
    )
    faces_together: int = option(1, "Faces whose tokens share the softmax of Eq. 4.")
    keys: Literal["all", "others"] = option("all", "Keys of that softmax: all tokens, or those of other faces only.")
    held_out: int = option(200, "Faces held out to measure matching on them.")
    report_steps: int | None = option(None, "Steps between two measurements; none: those of an epoch.")
    watch: str | None = option(
        None, "Labelled faces DATASET/SPLIT, such as mtfl/lfw_5590: each measurement logs the matching error on them."
    )
    watch_pairs: int = option(100, "Pairs of them to match.")
    watch_align: bool = option(True, "Align them first; off: the fixed crop, as the paper does.")
    keep: Literal["last", "cycle", "watched"] = option(
        "last",
        "The projector of the last step, or of the measurement with the smallest cycle error on held-out faces, or "
        "with the smallest error of --watch between different faces (early stopping).",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_size % (self.faces_together * self.accumulate):
            raise OptionError(
                f"batch_size {self.batch_size} is not a multiple of faces_together {self.faces_together}"
                + (f" times accumulate {self.accumulate}." if self.accumulate > 1 else ".")
            )
        self._check("temperature", "above 0", self.temperature > 0)
        self._check("attentive_ratio", "above 0 and at most 1", 0 < self.attentive_ratio <= 1)
        self._check_at_least_1("cluster_block", "watch_pairs")
        for name in ("attention_block", "report_steps"):
            self._check(name, "at least 1, or none", getattr(self, name) is None or getattr(self, name) >= 1)
        if self.keys == "others" and self.faces_together < 2:
            raise OptionError('keys "others" needs faces_together of at least 2: there is no other face.')
        if self.keep == "watched" and self.watch is None:
            raise OptionError('keep "watched" needs watch: labelled faces, such as mtfl/lfw_5590.')


_PAPER = Stage2Config()
# What the paper sets by the size of the backbone: eta (Sec. 4) and D (Table 1; DeiT-S also 256); tau is CL's at that D.
_SIZES = {
    "deit-tiny": _PAPER,
    "deit-small": replace(_PAPER, projector_dim=128, temperature=1 / 7),
    "deit-base": replace(_PAPER, projector_dim=256, temperature=1 / 7, attentive_ratio=0.25),
}
# Ours: moved faces, all their tokens, compared with those of other faces (docs/training.md says why).
_MOVED = {
    "batch_size": 64,
    "steps": 1000,
    "epochs": None,
    "attentive_ratio": 1.0,
    "num_clusters": 0,
    "sequence": "full",
    "temperature": 0.05,
    "flip": True,
    "amplitude": 1.0,
    "faces_together": 16,
    "keys": "others",
}
# Table 4, "clustering without LCR", in our reading: the same tokens, under the loss that LCR was made from.
_CLUSTERING = {"locality": "root", "attentive_repellence": 1.0, "mixed_repellence": 1.0, "center_repellence": 1.0}
STAGE2_PRESETS: dict[str, dict[str, Any]] = {"paper": {}, "moved": _MOVED, "clustering": _CLUSTERING}


def stage2_preset(name: str, architecture: str) -> Stage2Config:
    """A preset of stage 2 for a backbone; one that the paper does not have gets the sizes of DeiT-T."""
    return replace(_SIZES.get(architecture, _PAPER), **STAGE2_PRESETS[name])


# Where the values of the preset "paper" come from.
STAGE2_SOURCES = {
    "batch_size": "ours; CL: 32",
    "accumulate": "does not change the result",
    "steps": "follow from the epochs",
    "epochs": "CL",
    "learning_rate": "CL",
    "warmup": "CL",
    "schedule": "CL",
    "optimizer": "ours; CL: adam",
    "betas": "ours; CL: 0.5,0.999",
    "weight_decay": "CL, there coupled",
    "clip_norm": "ours",
    "seed": "ours",
    "attentive_ratio": "paper, Sec. 4",
    "attention_block": "ours, Sec. 3.2 does not say",
    "attend": "paper, Sec. 3.2",
    "cls_mean_heads": "ours, Eq. 1 has one head",
    "num_clusters": "paper, Sec. 4",
    "cluster_block": "paper, Sec. 4",
    "density": "ours, from the text of Sec. 3.2",
    "sequence": "paper, Sec. 3.2, in our reading",
    "projector_dim": "paper, Table 1",
    "projector_mode": "ours; CL: spatial_softmax",
    "normalise": "ours, Eq. 4 has none",
    "temperature": "CL",
    "attentive_repellence": "paper, Sec. 4",
    "mixed_repellence": "paper, Sec. 4",
    "center_repellence": "paper, Sec. 4",
    "locality": "paper, Eq. 5, which has no unit",
    "reduction": "paper, Eq. 7",
    "flip": "ours",
    "amplitude": "paper: faces as they are",
    "faces_together": "paper, Eq. 4",
    "keys": "paper, Eq. 4",
    **dict.fromkeys(("rotation", "log_scale", "shear", "shift"), "ours, without effect at amplitude 0"),
    **dict.fromkeys(("brightness", "log_contrast"), "ours, without effect at amplitude 0"),
    **dict.fromkeys(("held_out", "report_steps", "watch", "watch_pairs", "watch_align"), "ours"),
    "keep": "ours; CL: by the error between different faces",
}
