"""Features of other models in our geometry: `ExternalExtractor` makes an extractor from anything that encodes views."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from scemae.errors import IncompatibleFeaturesError, OptionError
from scemae.evaluation.baseline_features import (
    gradient_histograms,
    hypercolumn_features,
    pixel_patches,
    timm_features,
)
from scemae.geometry import CellGrid
from scemae.model.aligner import Aligner, Located
from scemae.model.backbone import initialise_backbone
from scemae.model.config import ModelId
from scemae.model.face_finder import FaceFinder
from scemae.model.sce_mae import SceMae
from scemae.weights.zoo import load_model

SPELLINGS = "pixels, gradients, random-vit, timm:NAME[:LAYERS], hypercolumn:NAME[:CHECKPOINT], python:MODULE:NAME"
WEIGHTLESS = {"pixels": pixel_patches, "gradients": gradient_histograms}
PRETRAINED = {"timm": timm_features, "hypercolumn": hypercolumn_features}


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """What turns views into feature maps.

    Attributes:
        name: what tables call it.
        encode: RGB views 0..1 (B, 3, S, S) to maps (B, C, h, w), S = view_size + 2 view_margin.
        view_size: side of a view without its margin, px.
        view_margin: pixels of surroundings that it needs on each side of a view.
        origin: centre of the first cell, px of the view without its margin; None: the cells tile the view.
        step: distance between the cells, px; None: the cells tile the view.
    """

    name: str
    encode: Callable[[Tensor], Tensor]
    view_size: int = 96
    view_margin: int = 0
    origin: float | None = None
    step: float | None = None


class ExternalExtractor:
    """An extractor with the maps of an encoder; the scemae model `aligning_model` aligns the faces.

    Raises IncompatibleFeaturesError, also when it is called, if the encoder returns anything but maps of one shape.
    """

    projector = None
    dense_shape = None

    def __init__(self, encoder: Encoder, aligning_model: SceMae) -> None:
        self.encoder, self.aligning_model = encoder, aligning_model
        self.shape: tuple[int, ...] | None = None
        side = encoder.view_size + 2 * encoder.view_margin
        ramp = torch.linspace(0, 1, side, device=aligning_model.device).expand(1, 3, side, side)
        probe = self(ramp)
        self.shape = tuple(probe.shape[1:])
        self.id = ModelId(encoder.name, hashlib.sha256(probe.float().cpu().numpy().tobytes()).hexdigest())
        self.config = replace(
            aligning_model.config,
            name=encoder.name,
            projector_dim=None,
            expansion=1,
            matching_use="backbone",
            regression_use="backbone",
            few_shot_use="backbone",
            prior_sigma=0.0,
        )

    @property
    def channels(self) -> int:
        """Number of channels of a descriptor."""
        assert self.shape is not None
        return self.shape[0]

    @property
    def dtype(self) -> torch.dtype:
        """That of the aligning model."""
        return self.aligning_model.dtype

    @property
    def view_size(self) -> int:
        """Side of the views without their margin, px."""
        return self.encoder.view_size

    @property
    def view_margin(self) -> int:
        """Pixels of surroundings on each side of a view."""
        return self.encoder.view_margin

    @property
    def aligner(self) -> Aligner | None:
        """That of the aligning model."""
        return self.aligning_model.aligner

    @property
    def finder(self) -> FaceFinder | None:
        """That of the aligning model."""
        return self.aligning_model.finder

    def normalise(self, views: Tensor) -> Tensor:
        """Views 0..1, moved to the device of the aligning model; encoders normalise for themselves."""
        return views.to(self.aligning_model.device)

    def locate_face(self, views: Tensor, step: int) -> Located:
        """What the aligning model's aligner sees."""
        return self.aligning_model.locate_face(views, step)

    def __call__(self, views: Tensor, expansion: int = 1) -> Tensor:
        """Maps (B, C, h, w), float32."""
        with torch.inference_mode():
            maps = self.encoder.encode(views)
        self._check_maps(views, maps)
        return maps.float()

    def grid(self, expansion: int) -> CellGrid:
        """The grid of the cells, px of the input; an encoder has expansion 1 only."""
        if expansion != 1:
            raise OptionError(f"expansion is {expansion}, but {self.encoder.name} has a fixed grid of cells; omit it.")
        assert self.shape is not None
        step = self.encoder.step or self.encoder.view_size / self.shape[-1]
        origin = (step - 1) / 2 if self.encoder.origin is None else self.encoder.origin
        scale = self.config.input_size / self.encoder.view_size
        return CellGrid((origin + 0.5) * scale - 0.5, step * scale)

    def _check_maps(self, views: Tensor, maps: Any) -> None:
        name = self.encoder.name
        if not isinstance(maps, Tensor):
            raise IncompatibleFeaturesError(f"{name} returned a {type(maps).__name__}; wanted a tensor (B, C, h, w).")
        wanted = (len(views), *(("C", "h", "w") if self.shape is None else self.shape))
        square = maps.ndim == 4 and maps.shape[-1] == maps.shape[-2] >= 2
        if not square or len(maps) != len(views) or self.shape not in (None, tuple(maps.shape[1:])):
            raise IncompatibleFeaturesError(
                f"{name} returned a map of shape {tuple(maps.shape)} for {len(views)} views; wanted "
                f"({', '.join(map(str, wanted))}), h and w the same and at least 2."
            )
        if maps.device != views.device:
            raise IncompatibleFeaturesError(
                f"{name} returned a map on {maps.device} for views on {views.device}; move it back to that device."
            )
        if not bool(torch.isfinite(maps).all()):
            raise IncompatibleFeaturesError(f"{name} returned a map with values that are nan or infinite.")


def build_extractor(spelling: str, aligning_model: SceMae, expansion: int | None) -> ExternalExtractor:
    """The extractor that --extractor names (see `SPELLINGS`); raises OptionError if there is none."""
    kind, _, rest = spelling.partition(":")
    if kind == "random-vit" and not rest:
        default = aligning_model.config.expansion
        return ExternalExtractor(_random_vit(aligning_model, expansion or default), aligning_model)
    if expansion is not None:
        raise OptionError(
            f"--expansion has no effect on {spelling}, which has a fixed grid of cells; it is for scemae models and "
            "random-vit."
        )
    return ExternalExtractor(_build_encoder(spelling, aligning_model.device), aligning_model)


def _build_encoder(spelling: str, device: torch.device) -> Encoder:
    kind, _, rest = spelling.partition(":")
    if spelling in WEIGHTLESS:
        return Encoder(name=spelling, encode=WEIGHTLESS[spelling])
    if kind == "python":
        return _import_encoder(rest)
    if kind in PRETRAINED and rest:
        name, _, detail = rest.partition(":")
        encode, size = PRETRAINED[kind](name, detail, device)
        return Encoder(name=spelling, encode=encode, view_size=size)
    raise OptionError(f"--extractor is {spelling!r}; wanted one of {SPELLINGS}.")


def load_extractor(
    model: str, spelling: str | None, expansion: int | None, dtype: str = "float32"
) -> SceMae | ExternalExtractor:
    """The model of that name, or the extractor of that spelling, whose faces the model aligns."""
    scemae_model = load_model(model, dtype=dtype)
    return scemae_model if spelling is None else build_extractor(spelling, scemae_model, expansion)


def _random_vit(aligning_model: SceMae, expansion: int) -> Encoder:
    """The architecture of the aligning model with the random weights that training starts from."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        vit = SceMae(replace(aligning_model.config, projector_dim=None, aligner=None, finder=None))
        initialise_backbone(vit.backbone)
    vit = vit.requires_grad_(False).eval().to(aligning_model.device)
    grid = vit.grid(expansion)
    return Encoder(
        name=f"random-vit, expansion {expansion}",
        encode=lambda views: vit(vit.normalise(views), expansion),
        view_size=vit.view_size,
        view_margin=vit.view_margin,
        origin=grid.origin,
        step=grid.step,
    )


def _import_encoder(spelling: str) -> Encoder:
    """`MODULE:NAME`, a function from views to maps; its attributes view_size, origin and step are used if present."""
    module, _, name = spelling.partition(":")
    try:
        encode = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise OptionError(
            f"--extractor python:{spelling} cannot be found ({error}); wanted python:MODULE:NAME."
        ) from error
    return Encoder(
        name=f"python:{spelling}",
        encode=encode,
        view_size=getattr(encode, "view_size", 96),
        origin=getattr(encode, "origin", None),
        step=getattr(encode, "step", None),
    )
