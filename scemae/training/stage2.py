"""Stage 2: trains the projector by selective correspondence enhancement (paper Sec. 3.2 and Sec. 3.3).

The tokens are selected by Eq. 1, Eq. 2, Eq. 3 (Sec. 3.2) and approximated by CARB (Sec. 3.3); the loss is LCR
(Sec. 3.3: Eq. 4, Eq. 5, Eq. 6, Eq. 7).

scemae train stage2 --model RUN1/model --data PACK --out RUN2
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from scemae import draw
from scemae.errors import OptionError, RunError
from scemae.model.backbone import gather_tokens
from scemae.model.projector import Projector
from scemae.model.sce_mae import SceMae
from scemae.training.acceleration import fuse_attention
from scemae.training.batches import Batches, Squares
from scemae.training.carb import Selection
from scemae.training.chosen_tokens import CENTRE, ChosenTokens, choose_tokens, share_in_centre
from scemae.training.held_out_matching import FACES_SHOWN, HeldOutFaces
from scemae.training.lcr import lcr_loss, repellence
from scemae.training.model_writer import CardSection, draw_view, write_model
from scemae.training.motions import Moves, render_moved, token_centres
from scemae.training.pack import Pack, sample_pack
from scemae.training.recipe import History
from scemae.training.run_config import Precision
from scemae.training.stage2_config import Stage2Config
from scemae.weights.zoo import load_model, locate_model

VIEWS_AT_ONCE = 64  # that are encoded together: what the caches of a CPU hold


class CorrespondenceLoss(nn.Module):
    """The projector that learns, LCR of the chosen tokens, and the projector of the best measurement so far."""

    best_error: Tensor

    def __init__(self, projector: Projector, config: Stage2Config, attentive: int, patch_size: int = 8) -> None:
        super().__init__()
        self.projector, self.best = projector, copy.deepcopy(projector).requires_grad_(False)
        self.register_buffer("best_error", torch.tensor(math.inf))
        self.config, self.attentive, self.patch_size = config, attentive, patch_size

    def forward(self, features: Tensor, kept: Tensor, substitute: Tensor, places: Tensor) -> dict[str, Tensor]:
        """The loss, Eq. 7, of the last features (B, T, D) of the kept tokens.

        kept, substitute: see `Selection`; places (B, N, 2) of all tokens in the face, cells.
        """
        config, faces = self.config, self.config.faces_together
        projected = self._project(features, kept, substitute)
        descriptors, positions = (
            tokens.unflatten(0, (-1, faces)).flatten(1, 2) for tokens in (projected, gather_tokens(places, kept))
        )
        face, token = (part.to(kept.device) for part in _faces_and_tokens(faces, kept.shape[1]))
        weights = repellence(
            token < self.attentive, config.attentive_repellence, config.mixed_repellence, config.center_repellence
        )
        loss = lcr_loss(
            descriptors,
            positions,
            weights,
            config.temperature,
            reduction=config.reduction,
            keys=None if config.keys == "all" else face[:, None] != face,
            form=config.locality,
            normalise=config.normalise,
            cell=self.patch_size,
        )
        return {"loss": loss / faces if config.reduction == "sum" else loss}

    def _project(self, features: Tensor, kept: Tensor, substitute: Tensor) -> Tensor:
        """Descriptors (B, T, C) of the kept tokens, from the complete map, where these stand in for the others."""
        if self.projector.mode == "linear":  # each token by itself
            return self.projector(features.mT[..., None])[..., 0].mT
        complete = gather_tokens(features, substitute).mT
        side = math.isqrt(complete.shape[2])
        return gather_tokens(self.projector(complete.unflatten(2, (side, side))).flatten(2).mT, kept)

    @torch.no_grad()
    def keep_if_best(self, error: float) -> None:
        """Keep a copy of the projector if no measurement had a smaller error."""
        if error < float(self.best_error):
            self.best_error.fill_(error)
            self.best.load_state_dict(self.projector.state_dict())


def _faces_and_tokens(faces: int, tokens: int) -> tuple[Tensor, Tensor]:
    """The face of each of faces * tokens tokens, one face after the other, and its index in that face."""
    return torch.arange(faces).repeat_interleave(tokens), torch.arange(tokens).repeat(faces)


class Watch(Protocol):
    """Labelled faces on which a training is watched."""

    def measure(self, projector: Projector) -> dict[str, float]:
        """`watched_same_error` and `watched_different_error`, px of the published frame."""


class Stage2:
    """The recipe that the engine trains: faces of a pack at the usual framing, or moved by known motions."""

    compiles = False  # the backbone is no part of what learns

    def __init__(
        self,
        config: Stage2Config,
        pack: Pack,
        source: str,
        card_fields: Mapping[str, Any] | None = None,
        watch: Watch | None = None,
    ) -> None:
        self.model = load_model(source, device="cpu")
        self.pack, self.source, self.card_fields, self.watch = pack, source, card_fields, watch
        backbone, size = self.model.config.backbone, self.model.config.input_size
        pack.check_input_size(size)
        for name in ("cluster_block", "attention_block"):
            if (getattr(config, name) or 1) > backbone.depth:
                raise OptionError(f"{name} is {getattr(config, name)}; the model has {backbone.depth} blocks.")
        if config.watch is not None and watch is None:
            raise OptionError(f"watch is {config.watch!r}, but no faces are given to watch.")
        self.origin = self.model.id.sha256
        self.faces, held_out = pack.split(config.held_out, config.seed)
        self.config = config = config.for_faces(len(self.faces))
        self.batches, self.squares = Batches(len(self.faces), config.batch_size, config.seed), Squares(pack.squares)
        self.precision: Precision = "float32"
        self.cache: ChosenTokens | None = None
        self.unseen = HeldOutFaces(self.model, pack, held_out)
        # What is chosen does not change, as the backbone does not learn.
        selection, grid = self._choose(self.unseen.views)[0], self.model.backbone.grid
        self.where_chosen = share_in_centre(selection, grid)
        self.chosen_picture = self._draw_chosen(self.unseen.views[:FACES_SHOWN])
        torch.manual_seed(config.seed)
        projector = Projector(backbone.width, config.projector_dim, config.projector_mode, grid)
        attentive = selection.attentive.shape[1]
        self.module = CorrespondenceLoss(projector, config, attentive, self.model.config.patch_size)

    @property
    def report_every(self) -> int:
        """Steps between two measurements."""
        return self.config.report_steps or -(-len(self.faces) // self.config.batch_size)

    def keep_on(self, device: torch.device, precision: Precision) -> bool:
        self.precision = precision
        self.squares.keep_on(device)
        fuse_attention(self.model.to(device).backbone, device.type != "cpu")
        if self.config.amplitude == 0:
            tokens, kept = self.model.backbone.grid**2, self.module.attentive + self.config.num_clusters
            width, faces = self.model.config.backbone.width, (1 + self.config.flip) * len(self.faces)
            self.cache = ChosenTokens.if_it_fits(faces, tokens, kept, width, device)
        return False

    def load(self, step: int, part: slice) -> tuple[Tensor, ...]:
        """Squares (b, S, S, 3), how to cut and light their views, the places (b, N, 2) of the tokens in the face, in
        cells, and the faces' numbers (b,), those of mirrored ones after all others."""
        config = self.config
        index = self.batches.rows(step)[part]
        moves = Moves.draw(
            self.batches.rng(step),
            config.batch_size,
            config,
            amplitude=config.amplitude,
            input_size=self.pack.input_size,
            flip=config.flip,
        )[part]
        places = moves.to_unmoved(token_centres(self.model.backbone.grid, self.pack.input_size))
        return (
            self.squares[self.faces[index]],
            moves.to_square(self.pack),
            moves.light,
            self.model.grid(1).to_cells(torch.from_numpy(places)).float(),
            torch.from_numpy(index + len(self.faces) * moves.mirrored),
        )

    @torch.no_grad()
    def prepare(self, loaded: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The arguments of the loss; the views are made and encoded where the model is."""
        squares, to_square, light, places, numbers = loaded
        if len(squares) % self.config.faces_together:
            raise RunError(
                f"Each process has {len(squares)} faces at a time, which is not a multiple of faces_together, "
                f"{self.config.faces_together}; choose another batch_size."
            )
        todo = torch.ones_like(numbers, dtype=torch.bool) if self.cache is None else ~self.cache.known[numbers]
        if todo.any():
            views = render_moved(squares[todo], to_square[todo], light[todo], self.pack.input_size)
            selection, features = self._choose(views)
            if self.cache is None:
                return features, selection.kept, selection.substitute, places
            self.cache.store(numbers[todo], features, selection)
        assert self.cache is not None
        return *self.cache.read(numbers), places

    def measure(self) -> dict[str, float]:
        """What held-out faces and those of `watch` say of the projector, which is kept if it is the best so far."""
        measured = self._measure(self.module.projector)
        if self.config.keep != "last":
            name = "cycle_projected_error" if self.config.keep == "cycle" else "watched_different_error"
            self.module.keep_if_best(measured[name])
        return measured

    def _measure(self, projector: Projector) -> dict[str, float]:
        watched = {} if self.watch is None else self.watch.measure(projector)
        return self.unseen.measure(projector) | self.where_chosen | watched

    def draw_report(self) -> Image.Image:
        """Held-out faces: the chosen tokens, and similarity maps (see `HeldOutFaces.draw_similarity`)."""
        return draw.stack_rows([self.chosen_picture, self.unseen.draw_similarity(self.module.projector)])

    def export(self, folder: Path, history: History) -> None:
        """Write the source model with this projector, or with the best one."""
        projector, measured = self.module.projector, self.measure()
        if self.config.keep != "last":
            projector, measured = self.module.best, self._measure(self.module.best)
        samples = sample_pack(self.model.config.input_size)
        chosen = self._draw_chosen(samples.central_views(torch.from_numpy(samples.squares)))
        section = CardSection.of_training("stage 2", self.config, history, {"chosen tokens": chosen})
        write_projected(folder, self.model, self.source, projector, section, measured, self.card_fields)

    def _draw_chosen(self, views: Tensor) -> Image.Image:
        """The views (B, 3, H, W), their attentive tokens tinted and the cluster centres framed."""
        selection, grid = self._choose(views)[0], self.model.backbone.grid
        chosen = zip(views, selection.attentive.cpu().numpy(), selection.centers.cpu().numpy(), strict=True)
        return draw.row([draw.cells(draw_view(view), grid, *numbers) for view, *numbers in chosen])

    @torch.no_grad()
    def _choose(self, views: Tensor) -> tuple[Selection, Tensor]:
        """`choose_tokens` of views (B, 3, H, W) of 0..1, in the precision of the run, some at a time."""
        device = self.model.device
        with torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            parts = [
                choose_tokens(self.model.backbone, self.model.normalise(part), self.config)
                for part in (views.split(VIEWS_AT_ONCE) if device.type == "cpu" else [views])
            ]
        selections, features = zip(*parts, strict=True)
        return Selection.concatenate(selections), torch.cat(features).float()


def write_projected(
    folder: Path,
    model: SceMae,
    source: str,
    projector: Projector,
    section: CardSection,
    measured: Mapping[str, float],
    card_fields: Mapping[str, Any] | None,
) -> None:
    """Write the model with another projector; its card's section also gets what was measured and similarity maps.

    `card_fields`: fields of its configuration to change; unless they say otherwise it matches on projected features.
    """
    fields = {"matching_use": "projected", **(card_fields or {})}
    config = dataclasses.replace(
        model.config, projector_dim=projector.out_channels, projector_mode=projector.mode, **fields
    )
    tensors = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("projector.")}
    tensors |= {f"projector.{name}": tensor for name, tensor in projector.state_dict().items()}
    rows = {name.replace("_", " "): _describe(name, value) for name, value in measured.items()}
    samples = sample_pack(config.input_size)
    similarity = HeldOutFaces(model, samples, np.arange(len(samples))).draw_similarity(projector)
    section = dataclasses.replace(
        section, rows={**section.rows, **rows}, pictures={**section.pictures, "similarity": similarity}
    )
    write_model(folder, config, tensors, section, locate_model(source).folder)


def _describe(name: str, value: float) -> str:
    """What a card says of a measurement of held-out faces."""
    if name.endswith("_in_centre"):
        return f"{100 * value:.1f} % (held-out faces; of all tokens {100 * CENTRE**2:.0f} %)"
    return f"{value:.3f} {'px of 70 (labelled faces)' if name.startswith('watched') else 'input px (held-out faces)'}"
