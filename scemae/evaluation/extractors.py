"""Features of other models through our geometry: `ExternalExtractor` makes an extractor of whatever encodes views."""

from __future__ import annotations

import hashlib
import importlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from scemae.errors import IncompatibleFeaturesError, OptionError
from scemae.evaluation import baseline_features
from scemae.geometry import CellGrid
from scemae.model.aligner import FaceAligner
from scemae.model.backbone import initialise_backbone
from scemae.model.config import ModelId
from scemae.model.sce_mae import SceMae
from scemae.weights.zoo import load_model

SPELLINGS = "pixels, gradients, random-vit, timm:NAME[:LAYERS], hypercolumn:NAME[:CHECKPOINT], python:MODULE:NAME"


@dataclass(frozen=True)
class Encoder:
    """What turns views into maps: `encode` takes RGB 0..1 (B, 3, S, S), S = view_size + 2 view_margin, to (B, C, h, w).

    `origin` and `step` say where the cells lie, px of the view without its margin; None: they tile it.
    """

    name: str
    encode: Callable[[Tensor], Tensor]
    view_size: int = 96
    view_margin: int = 0
    origin: float | None = None
    step: float | None = None


class ExternalExtractor:
    """An extractor whose maps are those of an encoder; `aligning_model`, a scemae model, aligns the faces."""

    projector = None

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
        """Numbers in a descriptor."""
        assert self.shape is not None
        return self.shape[0]

    @property
    def dtype(self) -> torch.dtype:
        """That of the aligning_model model."""
        return self.aligning_model.dtype

    @property
    def view_size(self) -> int:
        """Side of the views, px, without their margin."""
        return self.encoder.view_size

    @property
    def view_margin(self) -> int:
        """Pixels of surroundings on each side of a view."""
        return self.encoder.view_margin

    @property
    def aligner(self) -> FaceAligner | None:
        """That of the aligning_model model."""
        return self.aligning_model.aligner

    def normalise(self, views: Tensor) -> Tensor:
        """Views 0..1, where the aligning_model model is."""
        return views.to(self.aligning_model.device)

    def patch_tokens(self, views: Tensor) -> Tensor:
        """The aligning_model model's, for its aligner."""
        return self.aligning_model.patch_tokens(self.aligning_model.normalise(views))

    def __call__(self, views: Tensor, expansion: int = 1) -> Tensor:
        """Maps (B, C, h, w), float32; raises IncompatibleFeaturesError where the encoder gives something else."""
        with torch.inference_mode():
            maps = self.encoder.encode(views)
        self._check(views, maps)
        return maps.float()

    def grid(self, expansion: int) -> CellGrid:
        """Where the cells lie, in pixels of the input; an encoder has no other expansion than its own."""
        if expansion != 1:
            raise OptionError(f"expansion is {expansion}, but the cells of {self.encoder.name} are what they are.")
        assert self.shape is not None
        step = self.encoder.step or self.encoder.view_size / self.shape[-1]
        origin = (step - 1) / 2 if self.encoder.origin is None else self.encoder.origin
        scale = self.config.input_size / self.encoder.view_size
        return CellGrid((origin + 0.5) * scale - 0.5, step * scale)

    def _check(self, views: Tensor, maps: Any) -> None:
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
                f"{name} returned a map on {maps.device} for views on {views.device}; move it back to where they were."
            )
        if not bool(torch.isfinite(maps).all()):
            raise IncompatibleFeaturesError(f"{name} returned a map with values that are nan or infinite.")


def build_extractor(spelling: str, aligning_model: SceMae, expansion: int | None) -> ExternalExtractor:
    """The extractor that a command's --extractor names (`SPELLINGS`); `aligning_model` aligns the faces."""
    kind, _, rest = spelling.partition(":")
    if kind == "random-vit" and not rest:
        encoder = _random_vit(aligning_model, aligning_model.config.expansion if expansion is None else expansion)
        return ExternalExtractor(encoder, aligning_model)
    if expansion is not None:
        raise OptionError(
            f"--expansion is for models of ours and random-vit; the cells of {spelling} are what they are."
        )
    if spelling in ("pixels", "gradients"):
        return ExternalExtractor(Encoder(spelling, getattr(baseline_features, spelling)), aligning_model)
    if kind == "python":
        return ExternalExtractor(_callable(rest), aligning_model)
    if kind in ("timm", "hypercolumn") and rest:
        name, _, detail = rest.partition(":")
        encode, size = getattr(baseline_features, f"{kind}_features")(name, detail, aligning_model.device)
        return ExternalExtractor(Encoder(spelling, encode, size), aligning_model)
    raise OptionError(f"--extractor is {spelling!r}; wanted one of {SPELLINGS}.")


def load_extractor(
    model: str, spelling: str | None, expansion: int | None, dtype: str = "float32"
) -> SceMae | ExternalExtractor:
    """The model of that name, or the extractor of that spelling with the model to align its faces."""
    ours = load_model(model, dtype=dtype)
    return ours if spelling is None else build_extractor(spelling, ours, expansion)


def _random_vit(aligning_model: SceMae, expansion: int) -> Encoder:
    """The aligning_model model's architecture with the numbers that it starts its training from."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        vit = SceMae(replace(aligning_model.config, projector_dim=None, aligner=None))
        initialise_backbone(vit.backbone)
    vit = vit.requires_grad_(False).eval().to(aligning_model.device)
    grid = vit.grid(expansion)
    return Encoder(
        f"random-vit, expansion {expansion}",
        lambda views: vit(vit.normalise(views), expansion),
        vit.view_size,
        vit.view_margin,
        grid.origin,
        grid.step,
    )


def _callable(rest: str) -> Encoder:
    """`MODULE:NAME`, a function views -> map; its attributes view_size, origin and step are taken if there are any."""
    module, _, name = rest.partition(":")
    try:
        encode = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise OptionError(f"--extractor python:{rest} cannot be found ({error}); wanted python:MODULE:NAME.") from error
    return Encoder(
        f"python:{rest}",
        encode,
        getattr(encode, "view_size", 96),
        origin=getattr(encode, "origin", None),
        step=getattr(encode, "step", None),
    )
