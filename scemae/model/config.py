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
MOST_POINTS = 100  # of an aligner, which has a matrix of their square


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
    """The convolutional aligner, learned without labels (docs/alignment.md)."""

    points: tuple[tuple[float, float], ...]  # canonical places that it predicts, (x, y) in half-sides of the frame
    scale: float = 1.0  # the part of that frame, by side, that the canonical view shows
    view_size: int  # px: side of the views that it sees
    widths: tuple[int, ...]  # channels of its blocks, which halve the map until it has 4 x 4 cells
    squeezed: int  # channels that the last map is reduced to
    hidden: int  # numbers in the layer between that map and the outputs
    steps: int  # at most
    similarity_steps: int  # how many of them, from the first, only rotate, scale and shift
    settled: float  # half-sides: a step that moves the points by less (rms) is the last one
    threshold: float  # the log error up to which there is a face
    slope: float  # of the face's log odds over the log error

    def __post_init__(self) -> None:
        if not (
            1 <= len(self.points) <= MOST_POINTS
            and self.scale > 0
            and 8 <= self.view_size <= 1024
            and 1 <= len(self.widths) <= 8
            and all(1 <= size <= LARGEST for size in (*self.widths, self.squeezed, self.hidden))
            and 1 <= self.steps <= 64
            and 0 <= self.similarity_steps <= LARGEST
            and self.settled >= 0
            and self.slope > 0
        ):
            raise _out_of_range(self)


@dataclass(frozen=True, kw_only=True)
class TokenAlignerConfig:
    """The aligner on patch tokens that models of scemae 0.1.0 have."""

    points: tuple[tuple[float, float], ...]  # canonical places that it predicts, (x, y) in half-sides of the frame
    scale: float  # the part of that frame, by side, that the canonical view shows
    steps: tuple[int, ...]  # which stage each step uses
    similarity_steps: int  # how many steps, from the first, only rotate, scale and shift
    projection_dim: int  # numbers kept of each token
    residual: float  # of its confidence, which was no measure of success; not used

    def __post_init__(self) -> None:
        if not (
            1 <= len(self.points) <= MOST_POINTS
            and self.scale > 0
            and self.residual > 0
            and self.steps
            and all(0 <= step < 64 for step in self.steps)
            and 0 <= self.similarity_steps <= LARGEST
            and 1 <= self.projection_dim <= LARGEST
        ):
            raise _out_of_range(self)

    @property
    def stages(self) -> int:
        """How many trained stages `steps` draws on."""
        return max(self.steps) + 1


@dataclass(frozen=True, kw_only=True)
class FinderConfig:
    """The first look for faces in whole pictures (docs/find.md)."""

    widths: tuple[int, int, int]  # channels at strides of 2, 4 and 8 px
    sides: tuple[float, float]  # px: smallest and largest side of the faces that it sees
    threshold: float  # logit from which on a place is looked at closer

    def __post_init__(self) -> None:
        if not (all(1 <= width <= LARGEST for width in self.widths) and 0 < self.sides[0] < self.sides[1] <= LARGEST):
            raise IncompatibleWeightsError(f"No face can be found by {self}: a value is out of range.")

    @property
    def typical_side(self) -> float:
        """The middle of `sides`, px."""
        return math.sqrt(self.sides[0] * self.sides[1])


@dataclass(frozen=True, kw_only=True)
class DenseShapeConfig:
    """The dense shape, learned without labels (docs/registration.md)."""

    components: int  # channels that its stages read
    modes: int  # of shape, along which the global stages move
    global_stages: int
    local_stages: int

    def __post_init__(self) -> None:
        sizes, stages = (self.components, self.modes), (self.global_stages, self.local_stages)
        if not (all(1 <= size <= LARGEST for size in sizes) and all(0 <= count <= 64 for count in stages)):
            raise IncompatibleWeightsError(f"No dense shape is described by {self}: a value is out of range.")


def _out_of_range(config: AlignerConfig | TokenAlignerConfig) -> IncompatibleWeightsError:
    return IncompatibleWeightsError(f"No model can be aligned by {str(config)[:400]}: a value is out of range.")


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
    aligner: AlignerConfig | TokenAlignerConfig | None = None  # None: the model cannot align faces
    finder: FinderConfig | None = None  # None: the model cannot find faces in whole pictures
    dense_shape: DenseShapeConfig | None = None  # None: the model does not know the mean face's places on a face
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
        fields = dataclasses.asdict(self)
        for part in ("finder", "dense_shape"):  # as the folders of models without them have it
            if fields[part] is None:
                del fields[part]
        return json.dumps(fields, indent=2) + "\n"

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
    if type(None) in parts:  # X | None, or X | Y | None: of two dataclasses the first that has all the fields
        kinds = [part for part in parts[:-1] if isinstance(value, dict) and value.keys() <= get_type_hints(part).keys()]
        return None if value is None else _as_type(value, (*kinds, parts[0])[0], name)
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
