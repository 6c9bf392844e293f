"""What a training run is made of: frozen values, one comment per field with the paper's symbol and section."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Literal

from scemae.errors import OptionError
from scemae.model.config import BACKBONES, AlignerConfig, BackboneConfig, ProjectorMode, Use
from scemae.training.settings import Settings

Density = Literal["knn", "mean", "paper_literal"]
Reduction = Literal["sum", "mean_query"]
Locality = Literal["log", "root"]
Precision = Literal["float32", "bf16"]
Objective = Literal["lcr", "lda"]
POSITIONAL = ("cells", "shrinkage", "views")  # settings of the objective lda alone


@dataclass(frozen=True, kw_only=True)
class RunConfig(Settings):
    """What both stages have in common. Steps count updates of the weights."""

    architecture: str = "deit-tiny"  # row of scemae.model.config.BACKBONES (Sec. 4.1)
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
class RunOptions:
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
class CardFields:
    """What a person says of a model."""

    name: str  # what its card calls it
    training_data: str  # what it has seen, and from where
    license: str = "other"  # of the weights, as the Hub names licences
    license_link: str = ""  # where that licence can be read


@dataclass(frozen=True, kw_only=True)
class PublishConfig(CardFields):
    """What a person says of a model that is published, and what it does where a user says nothing."""

    description: str  # for its card
    matching_use: Use  # features that match_landmarks compares
    regression_use: Use  # features that fit_regressor learns from
    few_shot_use: Use  # the same, of at most five annotated faces
    prior_sigma: float  # input px, of match_landmarks; 0 switches the prior off


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


@dataclass(frozen=True, kw_only=True)
class MotionConfig(Settings):
    """Known random motions of the training faces: standard deviations at amplitude 1, and of the light."""

    rotation: float = 0.3  # rad
    log_scale: float = 0.15
    shear: float = 0.06  # of shear, and of the logarithm of the aspect ratio
    shift: float = 0.13  # half-sides of the view
    brightness: float = 0.08  # added to pixels of 0..1; no amplitude changes it, nor the contrast
    log_contrast: float = 0.15


@dataclass(frozen=True, kw_only=True)
class Stage2Config(RunConfig, MotionConfig):
    """Selective correspondence enhancement (Sec. 3.2-3.3). The defaults are the preset "paper" at DeiT-T's size."""

    objective: Objective = "lcr"  # Eq. 7, or the positional discriminant, which has no steps (not in the paper)
    batch_size: int = 256
    steps: int = 1560  # 10 epochs of 39,954 faces
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 5e-4
    warmup: float = 0.0
    attentive_ratio: float = 0.1  # eta (Sec. 4.1)
    num_clusters: int = 4  # K_c (Sec. 4.1)
    cluster_block: int = 3  # clustering takes place after so many blocks (Sec. 4.1)
    cls_mean_heads: bool = True  # Eq. 1 as the mean over the heads, or as printed: see Backbone.cls_similarity
    density: Density = "knn"  # rho (Eq. 2): see carb.log_density
    sequence: Literal["reduced", "full"] = "reduced"  # what the later blocks see: the kept tokens, or all
    projector_dim: int = 64  # D (Table 1)
    projector_mode: ProjectorMode = "linear"
    temperature: float = 1 / 8  # tau (Eq. 4): that of the compared method CL at D = 64; at 128 and 256 it has 1/7
    attentive_repellence: float = 5.0  # lambda between two attentive tokens (Eq. 6)
    mixed_repellence: float = 5.0  # lambda between an attentive token and a center
    center_repellence: float = 2.0  # lambda between two centers
    locality: Locality = "log"  # f_loc of the distance of two tokens: log(d + 1) (Eq. 5), or the root of d
    reduction: Reduction = "sum"  # of Eq. 7 over the pairs
    amplitude: float = 0.0  # of known motions of the faces; places are those of the unmoved face. 0: faces as they lie
    faces_together: int = 1  # faces whose tokens share the softmax of Eq. 4
    keys: Literal["all", "others"] = "all"  # of Eq. 4: all tokens, or those of other faces only
    cells: int = 20  # lda: classes of position, along one axis
    shrinkage: float = 0.1  # lda: of the scatter within classes
    views: int = 6000  # lda: that it is learned from
    held_out: int = 200  # faces that the matching error is measured on, warped copies of them

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.batch_size % (self.faces_together * self.accumulate):
            raise OptionError(
                f"batch_size {self.batch_size} is no multiple of faces_together {self.faces_together}"
                + (f" times accumulate {self.accumulate}." if self.accumulate > 1 else ".")
            )
        self._check("temperature", "above 0", self.temperature > 0)
        self._check("attentive_ratio", "above 0 and at most 1", 0 < self.attentive_ratio <= 1)
        self._check("cluster_block", "at least 1", self.cluster_block >= 1)
        if self.keys == "others" and self.faces_together < 2:
            raise OptionError('keys "others" needs faces_together of at least 2: there is no other face.')
        if self.objective == "lda" and self.amplitude <= 0:
            raise OptionError(
                'objective "lda" needs an amplitude above 0: of faces that lie still it learns the place only.'
            )


def unused_settings(objective: Objective) -> set[str]:
    """The fields of Stage2Config and RunOptions that an objective makes no use of, or has from its model."""
    the_models = {"architecture", "mean", "std", "input_size", "patch_size"}
    if objective == "lcr":
        return the_models | set(POSITIONAL)
    every = {field.name for kind in (Stage2Config, RunOptions) for field in dataclasses.fields(kind)}
    motions = {field.name for field in dataclasses.fields(MotionConfig)}
    used = {"objective", "projector_dim", "amplitude", "batch_size", "seed", "held_out", "overwrite"}
    return every - motions - used - set(POSITIONAL)


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
    "lda": Stage2Config(objective="lda", amplitude=1.0),
}


CANONICAL_POINTS = (  # places of the canonical view, half-sides: brows, nose, mouth corners, chin, forehead
    (-0.4, -0.4),
    (0.4, -0.4),
    (0.0, 0.06),
    (-0.32, 0.47),
    (0.32, 0.47),
    (0.0, 0.88),
    (0.0, -0.82),
)


@dataclass(frozen=True, kw_only=True)
class AlignConfig(MotionConfig):
    """The aligner, learned without labels (docs/alignment.md; not in the paper)."""

    amplitudes: tuple[float, ...] = (1.0, 0.5, 0.3)  # one trained stage for each
    steps: tuple[int, ...] = (0, 0, 0, 1, 1, 2, 2, 2, 2)  # which stage each step of the alignment uses
    similarity_steps: int = 5  # so many, from the first, only turn, scale and shift
    residual: float = 0.05  # half-sides; what the last step may still move a face for a confidence of one half
    projection_dim: int = 24  # numbers kept of each token
    cells: int = 16  # classes of position, along one axis
    shrinkage: float = 0.1  # of the scatter within classes
    projection_views: int = 2000  # views that each stage's projection is learned from
    views: int = 16_000  # views that each stage's regression is learned from
    ridges: tuple[float, ...] = (0.1, 0.3, 1.0)  # tried on held-out faces; times the mean diagonal
    held_out: int = 1000  # faces
    batch_size: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.steps or not self.amplitudes or sorted(set(self.steps)) != list(range(len(self.amplitudes))):
            raise OptionError(
                f"steps {self.steps} must use each of the {len(self.amplitudes)} stages (amplitudes), counted from 0."
            )
        for name in ("projection_views", "views", "held_out", "batch_size"):
            if getattr(self, name) < 1:
                raise OptionError(f"{name} is {getattr(self, name)}; it must be at least 1.")

    @property
    def aligner(self) -> AlignerConfig:
        """What the model's config.json says of it."""
        return AlignerConfig(
            points=CANONICAL_POINTS,
            scale=1.0,
            steps=self.steps,
            similarity_steps=self.similarity_steps,
            projection_dim=self.projection_dim,
            residual=self.residual,
        )
