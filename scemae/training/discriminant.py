"""The positional discriminant: a projector in closed form (ours, not in the paper).

The linear projection of tokens that best tells where in the face they are, learned from moved faces.

scemae train discriminant --model RUN1/model --data PACK --out RUN2
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from scemae.geometry import pixels_to_half_sides
from scemae.training.acceleration import choose_precision
from scemae.training.class_scatter import ClassScatter, make_projector
from scemae.training.discriminant_config import DiscriminantConfig
from scemae.training.engine import describe_hardware
from scemae.training.held_out_matching import HeldOutFaces
from scemae.training.model_writer import CardSection, describe_run
from scemae.training.motions import TokenSource, token_centres, token_encoder
from scemae.training.pack import Pack
from scemae.training.run_folder import create_model_folder
from scemae.training.stage2 import write_projected
from scemae.weights.zoo import load_model

CLASS_REACH = 7 / 6  # half-sides of the unmoved view, from its centre, that the classes cover: moved views see beyond 1


def train_discriminant(
    source: str,
    pack: Pack,
    config: DiscriminantConfig,
    out: Path,
    card_fields: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> dict[str, float]:
    """Write `out`/model: the model `source` with a projector in closed form; returns `HeldOutFaces.measure` of it.

    `card_fields`: fields of its configuration to change. Raises RunError where `out` is in use or holds a model.
    """
    start = time.monotonic()
    model = load_model(source)
    pack.check_input_size(model.config.input_size)
    faces, held_out = pack.split(config.held_out, config.seed)
    with (
        create_model_folder(out, overwrite) as folder,
        tqdm(total=config.views, unit="view", delay=2, disable=None) as bar,
    ):
        tokens = TokenSource(
            encode=token_encoder(model),
            pack=pack,
            faces=faces,
            config=config,
            amplitude=config.amplitude,
            batch_size=config.batch_size,
            seed=(config.seed,),
            bar=bar,
        )
        mean, projection = learn_projection(
            tokens, views=config.views, cells=config.cells, dim=config.projector_dim, shrinkage=config.shrinkage
        )
        projector = make_projector(mean, projection)
        unseen = HeldOutFaces(model, pack, held_out)
        hardware = describe_hardware(model.device, 1, choose_precision(model.device))
        rows = describe_run((time.monotonic() - start) / 3600, hardware)
        section = CardSection(title="stage 2 by positional discriminant", rows=rows, config=config)
        measured = unseen.measure(projector)
        write_projected(folder, model, source, projector, section, measured, card_fields)
    return measured


def learn_projection(
    source: TokenSource, *, views: int, cells: int, dim: int, shrinkage: float
) -> tuple[Tensor, Tensor]:
    """Mean (D,) and projection (D, dim) of tokens, learned from `views` views: see `PositionalScatter`."""
    scatter: PositionalScatter | None = None
    for tokens, moves in source.iter_tokens(views, 0):
        scatter = scatter or PositionalScatter(tokens.shape[-1], cells)
        size = source.pack.input_size
        places = moves.to_unmoved(token_centres(math.isqrt(tokens.shape[1]), size))
        scatter.add(tokens, torch.from_numpy(pixels_to_half_sides(places, size)))
    assert scatter is not None
    return scatter.solve(dim, shrinkage)


class PositionalScatter(ClassScatter):
    """LDA of tokens, their class one of `cells` x `cells` places of the unmoved view."""

    def __init__(self, width: int, cells: int) -> None:
        super().__init__(width, cells**2)
        self.cells = cells

    def add(self, tokens: Tensor, places: Tensor) -> None:
        """Add tokens (B, N, D), whose centres are at (B, N, 2) half-sides of the unmoved view."""
        index = ((places / CLASS_REACH + 1) * (self.cells / 2)).floor().long()
        inside = ((index >= 0) & (index < self.cells)).all(dim=-1)
        self.add_classes(tokens[inside], (index[..., 1] * self.cells + index[..., 0])[inside])
