"""Configurations of the trainings with gradient steps, and what the author of a model states about it.

`*Config` is what defines a result, and is kept in the model's card; `RunOptions` is how a run goes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal, Self

from scemae.errors import OptionError
from scemae.model.config import BACKBONES, BackboneConfig, Use, validate_switch
from scemae.training.training_config import TrainingConfig, option

Precision = Literal["float32", "bf16"]


@dataclass(frozen=True, kw_only=True)
class RunConfig(TrainingConfig):
    """What every training with gradient steps has: batches, schedule, optimizer, seed."""

    batch_size: int = option(128, "Images per step, over all processes.")
    accumulate: int = option(1, "Forward and backward passes per step and process; more passes need less memory.")
    steps: int = option(9000, "Weight updates in the whole schedule, at the end of which the learning rate is 0.")
    epochs: float | None = option(None, "Passes over the faces, from which the steps follow; none: --steps says.")
    learning_rate: float = option(1e-3, "Peak learning rate, reached after the warm-up.")
    warmup: float = option(0.05, "Fraction of the steps over which the learning rate rises from 0.")
    schedule: Literal["cosine", "constant"] = option(
        "cosine", "The learning rate after the warm-up: half a cosine down to 0, or constant."
    )
    optimizer: Literal["adamw", "adam"] = option(
        "adamw", "AdamW, or Adam, whose weight decay is part of the gradient (coupled, L2)."
    )
    betas: tuple[float, float] = option((0.9, 0.95), "Both betas of the optimizer.")
    weight_decay: float = option(
        0.05, "Weight decay of the optimizer; not applied to biases, norms, or the CLS and mask tokens."
    )
    clip_norm: float | None = option(
        None, "Maximum norm of the gradient, which is scaled down if it is larger; none: no clipping."
    )
    seed: int = option(0, "Seed of the weights, the order of the images and everything random in a step.")

    def __post_init__(self) -> None:
        self._check_at_least_1("batch_size", "accumulate", "steps")
        self._check("epochs", "above 0, or none", self.epochs is None or self.epochs > 0)
        self._check("seed", "at least 0", self.seed >= 0)
        self._check("learning_rate", "above 0", self.learning_rate > 0)
        self._check("warmup", "in 0..1", 0 <= self.warmup <= 1)
        self._check("betas", "two numbers from 0 to below 1", all(0 <= value < 1 for value in self.betas))
        self._check("clip_norm", "above 0, or none", self.clip_norm is None or self.clip_norm > 0)

    def for_faces(self, count: int) -> Self:
        """The same, its steps those of `epochs` passes over so many faces, if it has epochs."""
        if self.epochs is None:
            return self
        return replace(self, steps=max(1, int(self.epochs * count / self.batch_size)))


@dataclass(frozen=True, kw_only=True)
class Stage1Config(RunConfig):
    """Stage 1, the masked autoencoder (MAE, paper Sec. 3.1). The defaults are the preset "cpu"."""

    architecture: str = option("deit-tiny", f"Backbone: {', '.join(BACKBONES)}.")
    input_size: int = option(96, "Side of the images that the model sees, px; --data must be framed for it.")
    patch_size: int = option(8, "Side of the patches that become tokens, px.")
    mean: tuple[float, float, float] = option((0.5, 0.5, 0.5), "Mean that pixels are normalised with, RGB in 0..1.")
    std: tuple[float, float, float] = option((0.25, 0.25, 0.25), "Standard deviation that pixels are normalised with.")
    continue_from: str | None = option(
        None, "Model to start from: its encoder, and its decoder if it has one of this shape; none: train from scratch."
    )
    mask_ratio: float = option(0.75, "Fraction of the patches hidden from the encoder.")
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
    flip: bool = option(True, "Mirror half of the crops (augmentation).")

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
    compile: bool | None = option(None, "Use torch.compile; by default in stage 1, where there is a compiler for it.")
    checkpoint_minutes: float = option(5.0, "Minutes between two checkpoints: the most that a killed run can lose.")
    profile: bool = option(
        False, "Also write RUN/profile.json: images per second, share of the peak of this hardware, waits for data."
    )

    def __post_init__(self) -> None:
        for name in ("resume", "overwrite", "profile"):
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
    # Sec. 4. The paper names neither the decoder nor the mask ratio, the crop or the optimiser; they are those of
    # He et al., whose base rate of 1.5e-4 per 256 images gives the paper's 3e-4 at 512.
    "paper": Stage1Config(
        architecture="deit-base",
        mean=CELEBA_MEAN,
        std=CELEBA_STD,
        batch_size=512,
        epochs=400,
        learning_rate=3e-4,
        warmup=0.1,
        decoded_ratio=1.0,
        decoder_width=512,
        decoder_depth=8,
        decoder_heads=16,
        crop_area=(0.2, 1.0),
    ),
}
# Where the values of the preset "paper" come from.
STAGE1_SOURCES = {
    "batch_size": "paper, Sec. 4",
    "accumulate": "does not change the result",
    "steps": "follow from the epochs",
    "epochs": "paper, Sec. 4",
    "learning_rate": "paper, Sec. 4",
    "warmup": "He et al.",
    "schedule": "He et al.",
    "optimizer": "He et al.",
    "betas": "He et al.",
    "weight_decay": "He et al., who also apply it to the CLS and mask tokens",
    "clip_norm": "He et al.",
    "seed": "ours",
    "architecture": "paper, Sec. 4",
    "input_size": "paper, Sec. 4",
    "patch_size": "paper, Sec. 4",
    "mean": "DVE and CL",
    "std": "DVE and CL",
    "continue_from": "paper, Sec. 3.1",
    "mask_ratio": "He et al.",
    "decoded_ratio": "paper, Sec. 3.1",
    "decoder_width": "He et al.",
    "decoder_depth": "He et al.",
    "decoder_heads": "He et al.",
    "normalise_pixels": "He et al.; the paper names the pixels themselves",
    "crop_area": "He et al.",
    "crop_ratio": "He et al.",
    "flip": "He et al.",
}
