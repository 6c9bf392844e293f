"""Perturbed views of the faces of a pack over pictures without faces: what the aligner and the face finder share."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from scemae.errors import DataError, OptionError
from scemae.geometry import Array
from scemae.images import iter_photos
from scemae.photo import list_pictures
from scemae.training.batches import Batches, Squares
from scemae.training.model_writer import CardSection, write_model
from scemae.training.pack import Pack
from scemae.training.perturbation_config import AlignConfig
from scemae.training.perturbed_views import Perturbations, cut_backgrounds, draw_fields, render_views
from scemae.training.run_config import Precision
from scemae.weights.zoo import load_model, locate_model

Network = TypeVar("Network", bound=nn.Module)


class PerturbedFaces:
    """What the recipes of both share: batches of perturbed views, on which a model is based, and held-out ones."""

    compiles = False  # slower than the plain convolutions, measured on CPUs with and without AMX

    def __init__(
        self,
        config: AlignConfig,
        pack: Pack,
        source: str,
        backgrounds: Path | None = None,
        card_fields: Mapping[str, Any] | None = None,
    ) -> None:
        self.model = load_model(source, device="cpu")
        pack.check_input_size(self.model.config.input_size)
        self.pack, self.source, self.card_fields = pack, source, card_fields
        self.origin = self.model.id.sha256
        self.faces, self.held_out = pack.split(config.held_out, config.seed)
        self.config = config = config.for_faces(len(self.faces))
        self.batches, self.squares = Batches(len(self.faces), config.batch_size, config.seed), Squares(pack.squares)
        pictures = read_pictures(backgrounds, config.seed)
        unseen = math.ceil(len(pictures) / 8)
        rng, plain = np.random.default_rng([config.seed, 5]), len(pictures) // 8
        shown = [*pictures[:-unseen], *draw_plain_pictures(plain, rng)]
        self.backgrounds = Squares(cut_backgrounds(shown, config.background_squares, config.view_size, rng))
        self.unseen_pictures = pictures[-unseen:]
        self.report_every = math.ceil(config.steps / 20)
        torch.manual_seed(config.seed)

    def require(self, kind: type[Network], found: nn.Module | None, wanted: nn.Module) -> Network:
        """What the model has of a kind; raises OptionError unless its tensors are those of `wanted`."""
        shapes = {name: tensor.shape for name, tensor in wanted.state_dict().items()}
        if isinstance(found, kind) and {name: t.shape for name, t in found.state_dict().items()} == shapes:
            return found
        raise OptionError(f"{self.source} has no {kind.__name__} of these sizes to refine; leave out --refine.")

    def write(self, folder: Path, name: str, network: nn.Module, config: Any, section: CardSection) -> None:
        """Write the source model with this network, and what config.json says of it, as its `name`."""
        model_config = dataclasses.replace(self.model.config, **{name: config}, **(self.card_fields or {}))
        tensors = {key: t for key, t in self.model.state_dict().items() if not key.startswith(f"{name}.")}
        tensors |= {f"{name}.{key}": tensor for key, tensor in network.state_dict().items()}
        write_model(folder, model_config, tensors, section, locate_model(self.source).folder)

    def keep_on(self, device: torch.device, precision: Precision) -> bool:
        self.squares.keep_on(device)
        self.backgrounds.keep_on(device)
        return False

    def load(self, step: int, part: slice) -> tuple[Tensor, ...]:
        """Squares (b, S, S, 3) and backgrounds (b, V, V, 3), uint8, and the fields of the perturbations."""
        rows, config = self.faces[self.batches.rows(step)[part]], self.config
        rng = self.batches.rng(step)
        drawn = Perturbations.draw(rng, config.batch_size, len(self.backgrounds), config)[part]
        squares = self.squares[rows]
        drawn.replace_some(squares, self.backgrounds)
        fields = [torch.from_numpy(values) for values in vars(drawn).values()]
        return squares, self.backgrounds[drawn.background], *fields

    def render_loaded(self, loaded: tuple[Tensor, ...]) -> tuple[Tensor, dict[str, Tensor]]:
        """The views (n, 3, V, V) of what `load` returned, and the fields of their perturbations."""
        squares, backgrounds, *fields = loaded
        drawn = dict(zip(Perturbations.__dataclass_fields__, fields, strict=True))
        return self.render(squares, backgrounds, drawn), drawn

    def render(self, squares: Tensor, backgrounds: Tensor, drawn: Mapping[str, Tensor]) -> Tensor:
        """Perturbed views (n, 3, V, V), 0..1, of squares (n, S, S, 3) over backgrounds (n, V, V, 3)."""
        views = render_views(squares, backgrounds, drawn, self.pack.input_size / self.pack.size, backgrounds.shape[1])
        return views.contiguous(memory_format=torch.channels_last)

    def held_out_views(
        self, config: AlignConfig, size: int | None = None, faces: bool = True
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Views (n, 3, V, V) of the held-out faces over pictures that training did not show, and what was done to them.

        `faces`: else only the pictures are seen.
        """
        rng, count = np.random.default_rng([config.seed, 3]), len(self.held_out)
        cut = torch.from_numpy(cut_backgrounds(self.unseen_pictures, count, size or config.view_size, rng))
        fields = draw_fields(rng, count, count, config)
        if not faces:
            fields["border"] = torch.full_like(fields["border"], -9.0)
            fields["mirrored_border"] = torch.zeros_like(fields["mirrored_border"])
        squares = self.squares[self.held_out]
        there = {name: values.to(squares.device) for name, values in fields.items()}
        return self.render(squares, cut.to(squares.device), there).cpu(), fields


def read_pictures(folder: Path | None, seed: int) -> list[Array]:
    """Pictures (H, W, 3) without faces: those of a folder, or without one plain colours that run into each other."""
    if folder is None:
        return draw_plain_pictures(64, np.random.default_rng([seed, 6]))
    paths = list_pictures(folder)
    if len(paths) < 8:
        raise DataError(f"{folder} holds {len(paths)} pictures; wanted at least 8 without faces.")
    return [np.asarray(photo.image) for photo in iter_photos(paths)]


def draw_plain_pictures(count: int, rng: np.random.Generator) -> list[Array]:
    """Pictures (96, 96, 3), uint8, of a few random colours that run into each other."""
    coarse = rng.integers(0, 256, (count, 3, 3, 3), dtype=np.uint8)
    return [np.asarray(Image.fromarray(colours).resize((96, 96), Image.Resampling.BICUBIC)) for colours in coarse]
