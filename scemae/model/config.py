"""What describes a model: frozen values, the table of backbones, and their JSON (config.json beside the weights)."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

from scemae.errors import IncompatibleWeightsError, OptionError

Use = Literal["backbone", "projected", "both"]
ProjectorMode = Literal["linear", "spatial_softmax"]


def validate_use(use: str) -> Use:
    """`use`, if it names the features of a model: "backbone", "projected" or "both"."""
    if use not in get_args(Use):
        raise OptionError(f"use is {use!r}; it must be one of {get_args(Use)}.")
    return use  # type: ignore[return-value]


def validate_switch(name: str, value: object) -> None:
    """Raise OptionError unless an argument is True or False: any word, "no" too, would count as true."""
    import numpy as np  # here, as `scemae models` must not wait for it

    if not isinstance(value, (bool, np.bool_)):
        raise OptionError(f"{name} is {value!r}; it must be True or False.")


@dataclass(frozen=True, kw_only=True)
class BackboneConfig:
    """The shape of a vision transformer."""

    width: int  # numbers in a token
    heads: int  # of each attention
    depth: int  # blocks
    params: int  # parameters at 96 px and patches of 8 px, position embedding included (the paper's count)


BACKBONES = {  # the DeiTs of the paper (Sec. 4)
    "deit-tiny": BackboneConfig(width=192, heads=3, depth=12, params=5_403_840),
    "deit-small": BackboneConfig(width=384, heads=6, depth=12, params=21_424_512),
    "deit-base": BackboneConfig(width=768, heads=12, depth=12, params=85_316_352),
}


@dataclass(frozen=True, kw_only=True)
class AlignerConfig:
    """Alignment learned without labels (docs/alignment.md)."""

    points: tuple[tuple[float, float], ...]  # canonical places that it predicts, (x, y) in half-sides of the frame
    scale: float  # the part of that frame, by side, that the canonical view shows
    steps: tuple[int, ...]  # which stage each step uses
    # How many steps, from the first, only rotate, scale and shift: shear and aspect are hard to see, and errors in them
    # take many steps to undo while the face is still askew.
    similarity_steps: int
    projection_dim: int  # numbers kept of each token
    residual: float  # half-sides: a last step that still moves the points by this (rms) has a confidence of one half

    @property
    def stages(self) -> int:
        """How many trained stages `steps` draws on."""
        return max(self.steps) + 1


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Everything that defines a model except its weights, and how to feed it."""

    name: str  # what `load_model` takes, of a released model
    architecture: str  # a key of `BACKBONES`
    mean: tuple[float, float, float]  # of the normalisation, RGB of 0..1
    std: tuple[float, float, float]  # of the normalisation
    images_seen: int  # in training, with repetitions
    training_data: str  # for the card, with its credit
    description: str  # for the card
    license: str = "other"  # as the Hub spells it
    license_link: str = ""  # URL of its text
    projector_dim: int | None = None  # channels of the projected map; None: the model has no projector
    projector_mode: ProjectorMode = "linear"  # see Projector
    aligner: AlignerConfig | None = None  # None: the model cannot align faces
    expansion: int = 2  # the default: cells per patch side
    matching_use: Use = "backbone"  # the default features of match_landmarks
    regression_use: Use = "backbone"  # of fit_regressor
    few_shot_use: Use = "backbone"  # for a regressor on at most regressor.FEW annotated faces
    prior_sigma: float = 0.0  # input px: see match_landmarks; 0 switches the prior off
    input_size: int = 96  # px: side of the square that the model sees, without margin
    patch_size: int = 8  # px

    def __post_init__(self) -> None:
        if self.architecture not in BACKBONES:
            raise IncompatibleWeightsError(
                f"Model {self.name!r} has the architecture {self.architecture!r}; known are {sorted(BACKBONES)}."
            )
        if self.patch_size < 1 or self.input_size < 1 or self.input_size % self.patch_size:
            raise IncompatibleWeightsError(
                f"Model {self.name!r} has an input of {self.input_size} px; it must be a multiple of its patch size, "
                f"{self.patch_size} px."
            )

    @property
    def backbone(self) -> BackboneConfig:
        """The row of `BACKBONES` that this model's architecture names."""
        return BACKBONES[self.architecture]

    @property
    def params(self) -> int:
        """Parameters of the backbone, position embedding included, projector and aligner not (the paper's count)."""
        return self.backbone.params

    def to_json(self) -> str:
        """The text of config.json."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str) -> ModelConfig:
        """Read config.json; raises IncompatibleWeightsError if a field is missing or unknown, or if it is not JSON."""
        try:
            fields: dict[str, Any] = {**json.loads(text)}
            fields.pop("interpolation", None)  # a field of older folders that nothing ever read
            for name in ("mean", "std"):
                fields[name] = tuple(fields[name])
            aligner = fields["aligner"]
            if aligner is not None:
                aligner["points"] = tuple((float(x), float(y)) for x, y in aligner["points"])
                aligner["steps"] = tuple(aligner["steps"])
                fields["aligner"] = AlignerConfig(**aligner)
            return cls(**fields)
        except (KeyError, TypeError, ValueError) as error:
            raise IncompatibleWeightsError(
                f"This config.json does not describe a scemae model ({type(error).__name__}: {error}). "
                "Was it written by another version of scemae, or edited by hand?"
            ) from error


class ModelId(NamedTuple):
    """Which model made a value: its name and the SHA-256 of its weight file."""

    name: str
    sha256: str

    def __str__(self) -> str:
        return f"{self.name} ({self.sha256[:12]})"
