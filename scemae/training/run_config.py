"""Configurations of the trainings with gradient steps, and what the author of a model states about it.

`*Config` is what defines a result, and is kept in the model's card; `RunOptions` is how a run goes.
"""
# ruff: noqa: RUF009 - `option` makes a dataclass field

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from scemae.errors import OptionError
from scemae.model.config import BACKBONES, BackboneConfig, ProjectorMode, Use, validate_switch
from scemae.training.training_config import MotionConfig, TrainingConfig, option

Density = Literal["knn", "mean", "paper_literal"]
Reduction = Literal["sum", "mean_query"]
Locality = Literal["log", "root"]
Precision = Literal["float32", "bf16"]


@dataclass(frozen=True, kw_only=True)
class RunConfig(TrainingConfig):
    """What every training with gradient steps has: batches, schedule, optimizer, seed."""

    batch_size: int = option(128, "Images per step, over all processes.")
    accumulate: int = option(1, "Forward and backward passes per step and process; more passes need less memory.")
    steps: int = option(9000, "Weight updates in the whole schedule, at the end of which the learning rate is 0.")
    learning_rate: float = option(1e-3, "Peak learning rate, reached after the warm-up.")
    warmup: float = option(
        0.05,
        "Fraction of the steps over which the learning rate rises from 0; then it follows half a cosine down to 0.",
    )
    betas: tuple[float, float] = option((0.9, 0.95), "Both betas of AdamW.")
    weight_decay: float = option(
        0.05, "Weight decay of AdamW; not applied to biases, norms, or the CLS and mask tokens."
    )
    clip_norm: float | None = option(
        None, "Maximum norm of the gradient, which is scaled down if it is larger; none: no clipping."
    )
    seed: int = option(0, "Seed of the weights, the order of the images and everything random in a step.")

    def __post_init__(self) -> None:
        self._check_at_least_1("batch_size", "accumulate", "steps")
        self._check("seed", "at least 0", self.seed >= 0)
        self._check("learning_rate", "above 0", self.learning_rate > 0)
        self._check("warmup", "in 0..1", 0 <= self.warmup <= 1)
        self._check("betas", "two numbers from 0 to below 1", all(0 <= value < 1 for value in self.betas))
        self._check("clip_norm", "above 0, or none", self.clip_norm is None or self.clip_norm > 0)


@dataclass(frozen=True, kw_only=True)
class Stage1Config(RunConfig):
    """Stage 1, the masked autoencoder (MAE, paper Sec. 3.1). The defaults are the preset "cpu"."""

    architecture: str = option("deit-tiny", f"Backbone (Sec. 4): {', '.join(BACKBONES)}.")
    input_size: int = option(96, "Side of the images that the model sees, px (Sec. 4); --data must be framed for it.")
    patch_size: int = option(8, "Side of the patches that become tokens, px (Sec. 4).")
    mean: tuple[float, float, float] = option((0.5, 0.5, 0.5), "Mean that pixels are normalised with, RGB in 0..1.")
    std: tuple[float, float, float] = option((0.25, 0.25, 0.25), "Standard deviation that pixels are normalised with.")
    continue_from: str | None = option(
        None, "Model to start from: its encoder, and its decoder if it has one of this shape; none: train from scratch."
    )
    mask_ratio: float = option(
        0.75, "Fraction of the patches hidden from the encoder; the paper gives none, this is that of He et al."
    )
    decoded_ratio: float = option(0.5, "Fraction of the hidden patches that are reconstructed; fewer take less time.")
    decoder_width: int = option(128, "Width of the decoder's tokens.")
    decoder_depth: int = option(4, "Blocks of the decoder.")
    decoder_heads: int = option(4, "Attention heads of the decoder.")
    normalise_pixels: bool = option(True, "Reconstruct each patch normalised by its own mean and standard deviation.")
    crop_area: tuple[float, float] = option(
        (0.4, 1.0), "Smallest and largest area of the random crop, as fractions of the packed square (augmentation)."
    )
    crop_ratio: tuple[float, float] = option(
        (3 / 4, 4 / 3), "Smallest and largest aspect ratio (width over height) of that crop."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.architecture not in BACKBONES:
            raise OptionError(f"architecture is {self.architecture!r}; there are {', '.join(BACKBONES)}.")
        self._check_at_least_1("input_size", "patch_size", "decoder_width", "decoder_depth", "decoder_heads")
        self._check("patch_size", f"a divisor of {self.input_size}", self.input_size % self.patch_size == 0)
        self._check("std", "three numbers above 0", all(value > 0 for value in self.std))
        for name in ("mask_ratio", "decoded_ratio"):
            self._check(name, "in 0..1", 0 <= getattr(self, name) <= 1)
        self._check("decoder_width", "a multiple of 4 and of decoder_heads", self._decoder_fits())
        smallest, largest = self.crop_area
        self._check("crop_area", "two rising numbers, above 0 and at most 1", 0 < smallest <= largest <= 1)
        narrowest, widest = self.crop_ratio
        self._check("crop_ratio", "two rising numbers above 0", 0 < narrowest <= widest)

    def _decoder_fits(self) -> bool:
        return self.decoder_width % self.decoder_heads == 0 and self.decoder_width % 4 == 0

    @property
    def backbone(self) -> BackboneConfig:
        """The row of `BACKBONES` that the architecture names."""
        return BACKBONES[self.architecture]


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """How a run goes; nothing here defines its result."""

    resume: bool = option(False, "Continue the run in this folder, if there is one.")
    overwrite: bool = option(False, "Replace the run in this folder, if there is one.")
    max_hours: float = option(math.inf, "Write a checkpoint and the model after this many hours, and stop.")
    precision: Literal["auto", Precision] = option(
        "auto", "Precision of matrix products; auto: the fastest on this machine."
    )
    compile: bool | None = option(None, "Use torch.compile; by default only on a CPU, if there is a C++ compiler.")
    checkpoint_minutes: float = option(5.0, "Minutes between two checkpoints: the most that a killed run can lose.")

    def __post_init__(self) -> None:
        for name in ("resume", "overwrite"):
            validate_switch(name, getattr(self, name))
        if self.resume and self.overwrite:
            raise OptionError("resume and overwrite cannot both be set: continue the run, or replace it.")


@dataclass(frozen=True, kw_only=True)
class CardFields:
    """What the author of a model states about it; none of this can be measured."""

    name: str = field(metadata={"help": "Name of the model on its card."})
    training_data: str = field(metadata={"help": "Faces that the model was trained on, and where they come from."})
    license: str = option("other", "Licence of the weights, as the Hugging Face Hub spells it, such as CC-BY-4.0.")
    license_link: str = option("", "Where that licence can be read.")


@dataclass(frozen=True, kw_only=True)
class PublishConfig(CardFields):
    """What the author of a published model states about it, and its defaults for users."""

    description: str = field(metadata={"help": "One or two sentences about the model for its card."})
    matching_use: Use = field(metadata={"help": "Features that match_landmarks compares by default."})
    regression_use: Use = field(metadata={"help": "Features that fit_regressor learns from by default."})
    few_shot_use: Use = field(metadata={"help": "The same with at most five annotated faces."})
    prior_sigma: float = field(
        metadata={"help": "Standard deviation of match_landmarks' position prior, input px; 0 switches it off."}
    )


CELEBA_MEAN, CELEBA_STD = (0.5084, 0.4224, 0.3769), (0.2599, 0.2371, 0.2323)  # as in the paper's compared methods
STAGE1_PRESETS = {
    # Two cores, hours: docs/training.md says what was measured.
    "cpu": Stage1Config(),
    # Sec. 4: 400 epochs of CelebA's 162,770 training images in batches of 512. The paper names neither the decoder
    # nor the mask ratio, the crop or the optimiser; they are those of He et al., whose base rate of 1.5e-4 per 256
    # images gives the paper's 3e-4 at 512.
    "paper": Stage1Config(
        architecture="deit-base",
        mean=CELEBA_MEAN,
        std=CELEBA_STD,
        batch_size=512,
        steps=400 * (162_770 // 512),
        learning_rate=3e-4,
        warmup=0.1,
        decoded_ratio=1.0,
        decoder_width=512,
        decoder_depth=8,
        decoder_heads=16,
        crop_area=(0.2, 1.0),
    ),
}


@dataclass(frozen=True, kw_only=True)
class Stage2Config(MotionConfig, RunConfig):
    """Stage 2: tokens selected as in Sec. 3.2; CARB and LCR (Sec. 3.3). The defaults are preset "paper" for DeiT-T."""

    batch_size: int = 256
    steps: int = 1560  # 10 epochs of 39,954 faces
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 5e-4
    warmup: float = 0.0
    attentive_ratio: float = option(0.1, "eta: fraction of the tokens that count as attentive (Sec. 3.2, 4).")
    num_clusters: int = option(4, "K_c: cluster centres that stand for the inattentive tokens (Sec. 3.2, 4).")
    cluster_block: int = option(3, "Block of the backbone after which the tokens are clustered (Sec. 4).")
    cls_mean_heads: bool = option(True, "Compute Eq. 1 as the mean over the attention heads; off: as printed.")
    density: Density = option("knn", "rho, Eq. 2: from the 5 nearest tokens, from all, or as printed (not a density).")
    sequence: Literal["reduced", "full"] = option(
        "reduced", "Tokens that the blocks after the clustering see: only the kept ones, or all of them."
    )
    projector_dim: int = option(64, "D: dimensions of the projected features (Sec. 3.3, Table 1).")
    projector_mode: ProjectorMode = option("linear", "What follows the projector's 1 x 1 convolution (Sec. 3.3).")
    temperature: float = option(
        1 / 8, "tau, Eq. 4; the paper gives none: CL, which it compares with, has 1/8 at D = 64, 1/7 at 128 and 256."
    )
    attentive_repellence: float = option(5.0, "lambda, Eq. 6, between two attentive tokens.")
    mixed_repellence: float = option(5.0, "lambda, Eq. 6, between an attentive token and a cluster centre.")
    center_repellence: float = option(2.0, "lambda, Eq. 6, between two cluster centres.")
    locality: Locality = option("log", "f_loc of two tokens at distance d: log(d + 1) (Eq. 5), or sqrt(d) (CL).")
    reduction: Reduction = option(
        "sum", "Eq. 7 summed over the pairs of tokens, or that sum divided by the number of tokens."
    )
    amplitude: float = option(
        0.0,
        "How far faces are moved, see --rotation; 0: not at all. Distances in Eq. 5 are those of the unmoved faces.",
    )
    faces_together: int = option(1, "Faces whose tokens share the softmax of Eq. 4 (in the paper each has its own).")
    keys: Literal["all", "others"] = option("all", "Keys of that softmax: all tokens, or those of other faces only.")
    held_out: int = option(200, "Faces held out to measure the matching error between them and warped copies of them.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_size % (self.faces_together * self.accumulate):
            raise OptionError(
                f"batch_size {self.batch_size} is not a multiple of faces_together {self.faces_together}"
                + (f" times accumulate {self.accumulate}." if self.accumulate > 1 else ".")
            )
        self._check("temperature", "above 0", self.temperature > 0)
        self._check("attentive_ratio", "above 0 and at most 1", 0 < self.attentive_ratio <= 1)
        self._check_at_least_1("cluster_block")
        if self.keys == "others" and self.faces_together < 2:
            raise OptionError('keys "others" needs faces_together of at least 2: there is no other face.')


STAGE2_PRESETS = {
    # Table 1, DeiT-T. DeiT-S: projector_dim 128 or 256; DeiT-B: projector_dim 256, attentive_ratio 0.25; with
    # both, temperature 1/7.
    "paper": Stage2Config(),
    # Ours: moved faces, all their tokens, compared with those of other faces (docs/training.md says why).
    "moved": Stage2Config(
        batch_size=64,
        steps=1000,
        attentive_ratio=1.0,
        num_clusters=0,
        sequence="full",
        temperature=0.05,
        amplitude=1.0,
        faces_together=16,
        keys="others",
    ),
    # Table 4, "clustering without LCR", in our reading: the same tokens, under the loss that LCR was made from.
    "clustering": Stage2Config(locality="root", attentive_repellence=1.0, mixed_repellence=1.0, center_repellence=1.0),
}
