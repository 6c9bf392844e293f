"""Stage 2: trains the projector by selective correspondence enhancement (paper Sec. 3.2 and Sec. 3.3).

The tokens are selected by Eq. 1, Eq. 2, Eq. 3 (Sec. 3.2) and approximated by CARB (Sec. 3.3); the loss is LCR
(Sec. 3.3: Eq. 4, Eq. 5, Eq. 6, Eq. 7).

scemae train stage2 --model RUN1/model --data PACK --out RUN2
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from scemae.errors import OptionError, RunError
from scemae.model.backbone import Backbone, gather_tokens
from scemae.model.projector import Projector
from scemae.model.sce_mae import SceMae
from scemae.training.batches import Batches, normalise
from scemae.training.carb import Selection, select
from scemae.training.held_out_matching import HeldOutFaces
from scemae.training.lcr import lcr_loss, repellence
from scemae.training.model_writer import CardSection, write_model
from scemae.training.motions import Moves, token_centres
from scemae.training.pack import Pack, sample_pack
from scemae.training.recipe import History
from scemae.training.run_config import Stage2Config
from scemae.weights.zoo import load_model, locate_model


class CorrespondenceEnhancer(nn.Module):
    """A frozen backbone, CARB, a projector, and LCR. Only the projector learns."""

    def __init__(self, backbone: Backbone, projector: Projector, config: Stage2Config) -> None:
        super().__init__()
        self.backbone = backbone.requires_grad_(False)
        self.projector = projector
        self.config = config

    def forward(self, images: Tensor, places: Tensor) -> dict[str, Tensor]:
        """Normalised images (B, 3, H, W), places (B, N, 2) of their tokens in the face, cells -> {"loss"}: Eq. 7."""
        with torch.no_grad():
            selection, features = self.approximate(images)
        config, grid = self.config, self.backbone.grid
        feature_map = features.transpose(1, 2).unflatten(2, (grid, grid))
        projected = self.projector(feature_map).flatten(2).transpose(1, 2)
        kept = selection.kept
        descriptors, positions = (
            gather_tokens(tokens, kept).unflatten(0, (-1, config.faces_together)).flatten(1, 2)
            for tokens in (projected, places)
        )
        face, token = (part.to(kept.device) for part in _faces_and_tokens(config.faces_together, kept.shape[1]))
        weights = repellence(
            token < selection.attentive.shape[1],
            config.attentive_repellence,
            config.mixed_repellence,
            config.center_repellence,
        )
        keys = None if config.keys == "all" else face[:, None] != face
        loss = lcr_loss(descriptors, positions, weights, config.temperature, config.reduction, keys, config.locality)
        return {"loss": loss / config.faces_together if config.reduction == "sum" else loss}

    def approximate(self, images: Tensor) -> tuple[Selection, Tensor]:
        """CARB: the kept tokens, and the last layer's features (B, N, D) where these stand in for the others."""
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


def _faces_and_tokens(faces: int, tokens: int) -> tuple[Tensor, Tensor]:
    """The face of each of faces * tokens tokens, one face after the other, and its index in that face."""
    return torch.arange(faces).repeat_interleave(tokens), torch.arange(tokens).repeat(faces)


class Stage2:
    """The recipe that the engine trains: faces of a pack at the usual framing, or moved by known motions."""

    compiles = True

    def __init__(
        self, config: Stage2Config, pack: Pack, source: str, card_fields: Mapping[str, Any] | None = None
    ) -> None:
        self.model = load_model(source, device="cpu")
        self.config, self.pack, self.source, self.card_fields = config, pack, source, card_fields
        backbone = self.model.config.backbone
        pack.check_input_size(self.model.config.input_size)
        if config.cluster_block > backbone.depth:
            raise OptionError(f"cluster_block is {config.cluster_block}; the model has {backbone.depth} blocks.")
        self.origin = self.model.id.sha256
        self.faces, held_out = pack.split(config.held_out, config.seed)
        self.batches = Batches(len(self.faces), config.batch_size, config.seed)
        torch.manual_seed(config.seed)
        projector = Projector(backbone.width, config.projector_dim, config.projector_mode)
        self.module = CorrespondenceEnhancer(self.model.backbone, projector, config)
        self.unseen = HeldOutFaces(self.model, pack, held_out)

    @property
    def report_every(self) -> int:
        """Steps of an epoch."""
        return -(-len(self.faces) // self.config.batch_size)

    def keep_on(self, device: torch.device) -> None:
        """Nothing: the views are cut on the CPU."""

    def load(self, step: int, part: slice) -> tuple[Tensor, ...]:
        """Views (b, 3, H, W), 0..1, and the places (b, N, 2) of their tokens in the face, in cells."""
        rows, config = self.faces[self.batches.rows(step)[part]], self.config
        centres = token_centres(self.module.backbone.grid, self.pack.input_size)
        if config.amplitude == 0:
            views = self.pack.central_views(torch.from_numpy(self.pack.squares[rows]))
            places = np.tile(centres, (len(rows), 1, 1))
        else:
            moves = Moves.draw(
                self.batches.rng(step),
                config.batch_size,
                config,
                amplitude=config.amplitude,
                input_size=self.pack.input_size,
            )[part]
            views, places = moves.sample(self.pack, rows), moves.to_unmoved(centres)
        return views, self.model.grid(1).to_cells(torch.from_numpy(places)).float()

    def prepare(self, loaded: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The same, with normalised views."""
        views, places = loaded
        if len(views) % self.config.faces_together:
            raise RunError(
                f"Each process has {len(views)} faces at a time, which is not a multiple of faces_together, "
                f"{self.config.faces_together}; choose another batch_size."
            )
        return normalise(views, self.model.config), places

    def measure(self) -> dict[str, float]:
        """See `HeldOutFaces.measure`."""
        return self.unseen.measure(self.module.projector)

    def draw_report(self) -> Image.Image:
        """See `HeldOutFaces.draw_similarity`."""
        return self.unseen.draw_similarity(self.module.projector)

    def export(self, folder: Path, history: History) -> None:
        """Write the source model with this projector."""
        section = CardSection.of_training("stage 2", self.config, history, {})
        model = self.model.to(self.module.projector.weight.device)  # the engine moved its backbone only
        write_projected(folder, model, self.source, self.module.projector, section, self.measure(), self.card_fields)


def write_projected(
    folder: Path,
    model: SceMae,
    source: str,
    projector: Projector,
    section: CardSection,
    measured: Mapping[str, float],
    card_fields: Mapping[str, Any] | None,
) -> None:
    """Write the model with another projector; its card's section also gets what was measured and similarity maps."""
    config = dataclasses.replace(
        model.config,
        projector_dim=projector.out_channels,
        projector_mode=projector.mode,
        matching_use="projected",
        **(card_fields or {}),
    )
    tensors = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("projector.")}
    tensors |= {f"projector.{name}": tensor for name, tensor in projector.state_dict().items()}
    rows = {name.replace("_", " "): f"{value:.3f} input px (held-out faces)" for name, value in measured.items()}
    samples = sample_pack(config.input_size)
    similarity = HeldOutFaces(model, samples, np.arange(len(samples))).draw_similarity(projector)
    section = dataclasses.replace(
        section, rows={**section.rows, **rows}, pictures={**section.pictures, "similarity": similarity}
    )
    write_model(folder, config, tensors, section, locate_model(source).folder)
