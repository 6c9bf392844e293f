"""Stage 2: the projector, learned by selective correspondence enhancement (paper Sec. 3.2-3.3, Eq. 1-7).

scemae train stage2 --model RUN1/model --data PACK --out RUN2
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from tqdm.auto import tqdm

from scemae.errors import OptionError, RunError
from scemae.model.backbone import Backbone, gather_tokens
from scemae.model.projector import Projector
from scemae.model.sce_mae import SceMae
from scemae.training.acceleration import fastest_precision
from scemae.training.batches import Batches, normalise
from scemae.training.carb import Selection, select
from scemae.training.engine import History, hardware
from scemae.training.held_out_matching import HeldOutFaces
from scemae.training.lcr import lcr_loss, repellence
from scemae.training.model_writer import CardSection, circumstances, write_model
from scemae.training.motions import Moves, token_centres
from scemae.training.pack import Pack, sample_pack
from scemae.training.positional_discriminant import TokenSource, positional_projection, token_encoder
from scemae.training.run_config import Stage2Config
from scemae.training.run_folder import model_written
from scemae.weights.zoo import load_model, locate_model


class CorrespondenceEnhancer(nn.Module):
    """A frozen backbone, the choice of tokens, a projector, and the loss. Only the projector learns."""

    def __init__(self, backbone: Backbone, projector: Projector, config: Stage2Config) -> None:
        super().__init__()
        self.backbone = backbone.requires_grad_(False)
        self.projector = projector
        self.config = config

    def forward(self, images: Tensor, places: Tensor) -> dict[str, Tensor]:
        """Normalised images (B, 3, H, W), places (B, N, 2) of their tokens in the face, cells -> {"loss"}: Eq. 7."""
        with torch.no_grad():
            selection, features = self.approximated(images)
        config, grid = self.config, self.backbone.grid
        feature_map = features.transpose(1, 2).unflatten(2, (grid, grid))
        projected = self.projector(feature_map).flatten(2).transpose(1, 2)
        kept = selection.kept
        descriptors, positions = (
            gather_tokens(tokens, kept).unflatten(0, (-1, config.faces_together)).flatten(1, 2)
            for tokens in (projected, places)
        )
        face, token = (part.to(kept.device) for part in _numbered(config.faces_together, kept.shape[1]))
        weights = repellence(
            token < selection.attentive.shape[1],
            config.attentive_repellence,
            config.mixed_repellence,
            config.center_repellence,
        )
        keys = None if config.keys == "all" else face[:, None] != face
        loss = lcr_loss(descriptors, positions, weights, config.temperature, config.reduction, keys, config.locality)
        return {"loss": loss / config.faces_together if config.reduction == "sum" else loss}

    def approximated(self, images: Tensor) -> tuple[Selection, Tensor]:
        """Which tokens are kept, and the last layer's features (B, N, D) with those in the place of the others."""
        config, backbone = self.config, self.backbone
        before = backbone.run_blocks(backbone.prepend_cls(backbone.embed(images)), 0, config.cluster_block - 1)
        similarity = backbone.cls_similarity(before, config.cluster_block - 1, config.cls_mean_heads)
        tokens = backbone.run_blocks(before, config.cluster_block - 1, config.cluster_block)
        patch_tokens = tokens[:, 1:].float()
        selection = select(patch_tokens, similarity, config.attentive_ratio, config.num_clusters, config.density)
        if config.sequence == "full":
            kept = gather_tokens(backbone.run_blocks(tokens, config.cluster_block)[:, 1:], selection.kept)
        else:
            sequence = torch.cat([tokens[:, :1], gather_tokens(tokens[:, 1:], selection.kept)], dim=1)
            kept = backbone.run_blocks(sequence, config.cluster_block)[:, 1:]
        return selection, gather_tokens(kept, selection.substitute)


def _numbered(faces: int, tokens: int) -> tuple[Tensor, Tensor]:
    """Of faces * tokens tokens, one face after the other: the face of each, and its number there."""
    return torch.arange(faces).repeat_interleave(tokens), torch.arange(tokens).repeat(faces)


class Stage2:
    """The recipe that the engine trains: faces of a pack as they lie in it, or moved by known motions."""

    def __init__(self, config: Stage2Config, pack: Pack, source: str, label: Mapping[str, Any] | None = None) -> None:
        self.model, self.source, self.pack, self.label = load_model(source, device="cpu"), source, pack, label
        described = self.model.config
        theirs = {
            name: getattr(described, name) for name in ("architecture", "mean", "std", "input_size", "patch_size")
        }
        self.config = dataclasses.replace(config, **theirs)
        if config.cluster_block > described.backbone.depth:
            raise OptionError(
                f"cluster_block is {config.cluster_block}; the model has {described.backbone.depth} blocks."
            )
        self.origin = self.model.id.sha256
        self.faces, held_out = pack.split(config.held_out, config.seed)
        self.batches = Batches(len(self.faces), config.batch_size, config.seed)
        torch.manual_seed(config.seed)
        projector = Projector(described.backbone.width, config.projector_dim, config.projector_mode)
        self.module = CorrespondenceEnhancer(self.model.backbone, projector, self.config)
        self.unseen = HeldOutFaces(self.model, pack, held_out)

    @property
    def report_every(self) -> int:
        """Steps between two pictures and measurements: an epoch."""
        return -(-len(self.faces) // self.config.batch_size)

    def load(self, step: int, part: slice) -> tuple[Tensor, ...]:
        """Views (b, 3, 96, 96), 0..1, and the places (b, N, 2) of their tokens in the face, in cells."""
        rows, config = self.faces[self.batches.rows(step)[part]], self.config
        centres = token_centres(self.module.backbone.grid)
        if config.amplitude == 0:
            views = self.pack.central_views(torch.from_numpy(self.pack.squares[rows]))
            places = np.tile(centres, (len(rows), 1, 1))
        else:
            moves = Moves.draw(self.batches.rng(step), config.batch_size, config, config.amplitude).part(part)
            views, places = moves.views(self.pack, rows), moves.to_unmoved(centres)
        return views, self.model.grid(1).to_cells(torch.from_numpy(places)).float()

    def inputs(self, loaded: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The same, the views normalised."""
        views, places = loaded
        if len(views) % self.config.faces_together:
            raise RunError(
                f"Each process has {len(views)} faces at a time, no multiple of faces_together "
                f"{self.config.faces_together}; another batch_size would do."
            )
        return normalise(views, self.config), places

    def measure(self) -> dict[str, float]:
        """See `HeldOutFaces.measure`."""
        return self.unseen.measure(self.module.projector)

    def picture(self) -> Image.Image:
        """See `HeldOutFaces.picture`."""
        return self.unseen.picture(self.module.projector)

    def export(self, folder: Path, history: History) -> None:
        """Write the source model with this projector as a model folder."""
        chapter = CardSection.of_training("stage 2", self.config, history, {})
        model = self.model.to(self.module.projector.weight.device)  # the engine moved its backbone only
        write_projected(folder, model, self.source, self.module.projector, chapter, self.measure(), self.label)


def train_positional(
    source: str,
    pack: Pack,
    config: Stage2Config,
    out: Path,
    label: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> dict[str, float]:
    """The projector in closed form instead (objective "lda"; not in the paper): see `PositionalScatter`.

    Writes `out`/model, the model `source` with that projector; returns what `HeldOutFaces.measure` says of it.
    """
    start = time.monotonic()
    model = load_model(source)
    faces, held_out = pack.split(config.held_out, config.seed)
    with model_written(out, overwrite) as folder, tqdm(total=config.views, unit="view", delay=2, disable=None) as bar:
        tokens = TokenSource(
            token_encoder(model), pack, faces, config, config.amplitude, config.batch_size, (config.seed,), bar
        )
        mean, projection = positional_projection(
            tokens, config.views, config.cells, config.projector_dim, config.shrinkage
        )
        projector = Projector(len(mean), config.projector_dim)
        projector.load_state_dict({"weight": projection.T[..., None, None], "bias": -mean @ projection})
        unseen = HeldOutFaces(model, pack, held_out)
        chapter = CardSection(
            "stage 2 by positional discriminant",
            circumstances(
                (time.monotonic() - start) / 3600, hardware(model.device, 1, fastest_precision(model.device))
            ),
            config,
            {},
        )
        measured = unseen.measure(projector)
        write_projected(folder, model, source, projector, chapter, measured, label)
    return measured


def write_projected(
    folder: Path,
    model: SceMae,
    source: str,
    projector: Projector,
    chapter: CardSection,
    measured: Mapping[str, float],
    label: Mapping[str, Any] | None,
) -> None:
    """Write the model with another projector; what was measured, and similar places, join the card's chapter."""
    described = dataclasses.replace(
        model.config,
        projector_dim=projector.out_channels,
        projector_mode=projector.mode,
        matching_use="projected",
        **(label or {}),
    )
    tensors = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("projector.")}
    tensors |= {f"projector.{name}": tensor for name, tensor in projector.state_dict().items()}
    rows = {name.replace("_", " "): f"{value:.3f} input px (held-out faces)" for name, value in measured.items()}
    samples = sample_pack()
    similarity = HeldOutFaces(model, samples, np.arange(len(samples))).picture(projector)
    chapter = dataclasses.replace(
        chapter, rows={**chapter.rows, **rows}, pictures={**chapter.pictures, "similarity": similarity}
    )
    write_model(folder, described, tensors, chapter, locate_model(source).folder)
