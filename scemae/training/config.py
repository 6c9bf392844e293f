"""What a training run is made of: frozen values, one comment per field with the paper's symbol and section."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import Any, Literal, Self

from scemae.config import BACKBONES, BackboneConfig
from scemae.errors import OptionError

Precision = Literal["float32", "bf16"]


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """What both stages have in common. Steps count updates of the weights."""

    architecture: str = "deit-tiny"  # row of scemae.config.BACKBONES (Sec. 4.1)
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)  # of the normalisation, RGB 0..1
    std: tuple[float, float, float] = (0.25, 0.25, 0.25)  # of the normalisation
    batch_size: int = 128  # images per step, over all processes
    accumulate: int = 1  # forward and backward passes per step and process, to save memory
    steps: int = 9000  # of the whole schedule, to the learning rate 0
    learning_rate: float = 1e-3  # at its highest
    warmup: float = 0.05  # part of the steps over which the learning rate rises from 0; then half a cosine to 0
    betas: tuple[float, float] = (0.9, 0.95)  # of AdamW
    weight_decay: float = 0.05  # not on biases, norms and single tokens
    clip_norm: float | None = None  # longest gradient; none: as long as it is
    seed: int = 0  # of the weights, the order of the images and all that is random in a step
    input_size: int = 96  # px: what packs are framed for
    patch_size: int = 8  # px

    def __post_init__(self) -> None:
        if self.architecture not in BACKBONES:
            raise OptionError(f"architecture is {self.architecture!r}; there are {', '.join(BACKBONES)}.")
        for name in ("batch_size", "accumulate", "steps", "patch_size"):
            self._check(name, "at least 1", getattr(self, name) >= 1)
        self._check("seed", "at least 0", self.seed >= 0)
        self._check("std", "three numbers above 0", all(value > 0 for value in self.std))
        self._check("learning_rate", "above 0", self.learning_rate > 0)
        self._check("warmup", "in 0..1", 0 <= self.warmup <= 1)
        self._check("betas", "two numbers from 0 to below 1", all(0 <= value < 1 for value in self.betas))
        self._check("clip_norm", "above 0, or none", self.clip_norm is None or self.clip_norm > 0)
        self._check("input_size", "96, as packs are framed", self.input_size == 96)
        self._check("patch_size", f"a divisor of {self.input_size}", self.input_size % self.patch_size == 0)

    def _check(self, name: str, wanted: str, holds: bool) -> None:
        if not holds:
            raise OptionError(f"{name} is {getattr(self, name)}; it must be {wanted}.")

    @property
    def backbone(self) -> BackboneConfig:
        """The row of `BACKBONES` that the architecture names."""
        return BACKBONES[self.architecture]

    def to_json(self) -> str:
        """The text that `from_json` reads."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote."""
        values = json.loads(text)
        given: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}
        return cls(**given)

    def difference(self, other: RunConfig) -> list[str]:
        """A line for each field that differs: name, this value, the other."""
        mine, theirs = dataclasses.asdict(self), dataclasses.asdict(other)
        return [
            f"{name}: {mine.get(name)!r} -> {theirs.get(name)!r}"
            for name in sorted(mine.keys() | theirs.keys())
            if mine.get(name) != theirs.get(name)
        ]


@dataclass(frozen=True, kw_only=True)
class Stage1Config(RunConfig):
    """Masked autoencoder (Sec. 3.1). The defaults are the preset "cpu"."""

    continue_from: str | None = None  # a model to start from: its encoder, and its decoder if that is there and fits
    mask_ratio: float = 0.75  # part of the patches that the encoder does not see; the paper gives no number
    decoded_ratio: float = 0.5  # part of the hidden patches that is reconstructed
    decoder_width: int = 128  # numbers of a token
    decoder_depth: int = 4  # blocks
    decoder_heads: int = 4  # of attention
    normalise_pixels: bool = True  # reconstruct each patch with its own mean and contrast taken out
    crop_area: tuple[float, float] = (0.4, 1.0)  # of the random crop, as a part of the stored square
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)  # its width over its height

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("mask_ratio", "decoded_ratio"):
            self._check(name, "in 0..1", 0 <= getattr(self, name) <= 1)
        for name in ("decoder_width", "decoder_depth", "decoder_heads"):
            self._check(name, "at least 1", getattr(self, name) >= 1)
        self._check("decoder_width", "a multiple of 4 and of decoder_heads", self._decoder_fits())
        smallest, largest = self.crop_area
        self._check("crop_area", "two rising numbers, above 0 and at most 1", 0 < smallest <= largest <= 1)
        narrowest, widest = self.crop_ratio
        self._check("crop_ratio", "two rising numbers above 0", 0 < narrowest <= widest)

    def _decoder_fits(self) -> bool:
        return self.decoder_width % self.decoder_heads == 0 and self.decoder_width % 4 == 0


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a run goes, not what comes out."""

    resume: bool = False  # go on with the run in the folder, if there is one
    overwrite: bool = False  # start anew in a folder that holds a run already
    max_hours: float = math.inf  # checkpoint, export and stop after so long
    precision: Literal["auto", Precision] = "auto"  # of matrix products; auto: what is fastest here
    compile: bool | None = None  # torch.compile; default: on a CPU that has a compiler
    checkpoint_minutes: float = 5.0  # between two checkpoints: what a killed run may lose

    def __post_init__(self) -> None:
        if self.resume and self.overwrite:
            raise OptionError("resume and overwrite cannot both be: go on with the run, or start anew.")


@dataclass(frozen=True, kw_only=True)
class Label:
    """What a person says of a model."""

    name: str  # what its card calls it
    training_data: str  # what it has seen, and from where
    license: str = "other"  # of the weights, as the Hub names licences
    license_link: str = ""  # where that licence can be read


CELEBA_MEAN, CELEBA_STD = (0.5084, 0.4224, 0.3769), (0.2599, 0.2371, 0.2323)  # as in the paper's compared methods
STAGE1_PRESETS = {
    # Two cores, hours: docs/training.md says what was measured.
    "cpu": Stage1Config(),
    # Sec. 4.1: 400 epochs of CelebA's 162,770 training images in batches of 512. The paper names neither the decoder
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
