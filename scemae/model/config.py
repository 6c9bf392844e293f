"""What describes a model: frozen values, the table of backbones, and their JSON (config.json beside the weights)."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from scemae.errors import IncompatibleWeightsError, OptionError

Use = Literal["backbone", "projected", "both"]
ProjectorMode = Literal["linear", "spatial_softmax"]
LARGEST = 2**14  # of any size in a configuration: far above what can be computed, far below what overflows


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

    def __post_init__(self) -> None:
        if not (
            self.points
            and self.scale > 0
            and self.residual > 0
            and self.steps
            and all(0 <= step < 64 for step in self.steps)
            and 0 <= self.similarity_steps <= LARGEST
            and 1 <= self.projection_dim <= LARGEST
        ):
            raise IncompatibleWeightsError(f"No model can be aligned by {str(self)[:400]}: a value is out of range.")

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
        if self.patch_size < 1 or not 1 <= self.input_size <= LARGEST or self.input_size % self.patch_size:
            raise IncompatibleWeightsError(
                f"Model {self.name!r} has an input of {self.input_size} px; it must be a multiple of its patch size, "
                f"{self.patch_size} px, and at most {LARGEST}."
            )
        if not 1 <= (self.projector_dim or 1) <= LARGEST or min(self.std) <= 0 or self.prior_sigma < 0:
            raise IncompatibleWeightsError(
                f"Model {self.name!r} has projector_dim {self.projector_dim}, std {self.std} and prior_sigma "
                f"{self.prior_sigma}; wanted 1 to {LARGEST} or None, numbers above 0, and at least 0."
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
        """Read config.json; raises IncompatibleWeightsError unless it is JSON of just these fields and their types."""
        try:
            fields: dict[str, Any] = {**json.loads(text)}
            fields.pop("interpolation", None)  # a field of older folders that nothing ever read
            return _as_type(fields, cls, "config.json")
        except (TypeError, ValueError, RecursionError) as error:
            raise IncompatibleWeightsError(
                f"This config.json does not describe a scemae model ({type(error).__name__}: {str(error)[:400]}). "
                "Was it written by another version of scemae, or edited by hand?"
            ) from error


def _as_type(value: Any, hint: Any, name: str) -> Any:
    """A value of JSON as the annotated type of a field; raises TypeError or ValueError, with the name, for another."""
    parts = get_args(hint)
    if isinstance(value, dict) and dataclasses.is_dataclass(hint):
        build: Any = hint
        hints = get_type_hints(hint)
        return build(**{key: _as_type(part, hints[key], key) if key in hints else part for key, part in value.items()})
    if isinstance(value, list) and get_origin(hint) is tuple:
        wanted = [parts[0]] * len(value) if parts[-1] is Ellipsis else parts
        return tuple(_as_type(part, kind, name) for part, kind in zip(value, wanted, strict=True))
    if get_origin(hint) is Literal and value in parts:
        return value
    if type(None) in parts:  # X | None
        return None if value is None else _as_type(value, parts[0], name)
    if hint is float and type(value) in (int, float) and math.isfinite(value):
        return value
    if hint in (int, str) and type(value) is hint:
        return value
    raise TypeError(f"{name} is {value!r}, wanted {getattr(hint, '__name__', hint)}")


class ModelId(NamedTuple):
    """Which model made a value: its name and the SHA-256 of its weight file."""

    name: str
    sha256: str

    def __str__(self) -> str:
        return f"{self.name} ({self.sha256[:12]})"
