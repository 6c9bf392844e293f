"""The first look for faces in whole pictures, learned without labels from known perturbations (docs/find.md).

scemae train find --model MODEL --data PACK --backgrounds FOLDER --out RUN
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from scemae import draw
from scemae.geometry import determinants, invert_affines
from scemae.model.config import FinderConfig
from scemae.model.face_finder import STRIDE, FaceFinder, cell_centres
from scemae.training.model_writer import CardSection, draw_view
from scemae.training.pack import Pack
from scemae.training.perturbation_config import FindConfig
from scemae.training.perturbed_faces import PerturbedFaces
from scemae.training.recipe import History

INSIDE, NEAR = 0.2, 0.45  # sides from the middle of a face: up to which a cell shows it, and may show it
SHOWN = 24
RECALL = 0.999  # of the held-out faces that the threshold lets through


class FinderLoss(nn.Module):
    """The finder as it is trained, and the loss: focal cross-entropy of cells, distances where there is a face."""

    def __init__(self, finder: FaceFinder, config: FindConfig) -> None:
        super().__init__()
        self.finder, self.config = finder, config

    def forward(self, views: Tensor, affines: Tensor, is_face: Tensor) -> dict[str, Tensor]:
        """Views (n, 3, V, V), the affines (n, 2, 3) of `Perturbations`, and which show a face (n,)."""
        outputs = self.finder.outputs(views)
        sides, targets = self.describe(affines, outputs.shape[-2:], views.shape[-1])
        distance = targets[:, 1:3].norm(dim=1) * STRIDE / sides[:, None, None]
        smallest, largest = self.config.sides
        fits = is_face & (sides >= smallest) & (sides <= largest)
        unsure = is_face & (sides >= smallest / self.config.unsure) & (sides <= largest * self.config.unsure)
        face = fits[:, None, None] & (distance <= INSIDE)
        counted = face | ~(unsure[:, None, None] & (distance <= NEAR))
        logits = outputs[:, 0]
        missed = F.binary_cross_entropy_with_logits(logits, face.float(), reduction="none")
        focus = (face.float() - torch.sigmoid(logits)).abs().detach()  # cells that are clear already count less
        count = face.sum().clamp(min=1)
        detected = (missed * focus * counted).sum() / count
        off = (outputs[:, 1:] - targets[:, 1:]).abs().sum(1)
        return {"loss": detected + 0.2 * (off * face).sum() / count}

    def describe(self, affines: Tensor, shape: torch.Size, size: int) -> tuple[Tensor, Tensor]:
        """Sides (n,) of the faces, px of the view; what `FaceFinder.outputs` (n, 6, h, w) should be (logits: 0)."""
        to_view = invert_affines(affines)
        sides = determinants(to_view).abs().sqrt() * size
        middle = (to_view[..., 2] + 1) * (size / 2) - 0.5
        offsets = (middle[:, :, None, None] - cell_centres(shape, affines.device)) / STRIDE
        linear = to_view[..., :2]
        turn = torch.stack([linear[:, 0, 0] + linear[:, 1, 1], linear[:, 1, 0] - linear[:, 0, 1]], dim=1)
        whole = torch.cat([(sides / self.finder.config.typical_side).log()[:, None], F.normalize(turn, dim=1)], dim=1)
        whole = whole[:, :, None, None].expand(-1, -1, *shape)
        return sides, torch.cat([torch.zeros_like(offsets[:, :1]), offsets, whole], dim=1)


class FindRecipe(PerturbedFaces):
    """The recipe that the engine trains."""

    config: FindConfig

    def __init__(
        self,
        config: FindConfig,
        pack: Pack,
        source: str,
        backgrounds: Path | None = None,
        card_fields: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(config, pack, source, backgrounds, card_fields)
        finder = FinderConfig(widths=config.finder_widths, sides=config.sides, threshold=0.0)
        network = FaceFinder(finder, norm=not config.refine)
        if config.refine:
            network.load_state_dict(self.require(FaceFinder, self.model.finder, network).state_dict())
        self.module = FinderLoss(network, config)

    def prepare(self, loaded: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The arguments of the loss: views, affines, which are faces."""
        views, drawn = self.render_loaded(loaded)
        return views, drawn["affines"], drawn["is_face"]

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """See `_measure`."""
        threshold, measured = self._measure(self._trained())
        return {"threshold": threshold, **measured}

    def draw_report(self) -> Image.Image:
        """Held-out views, and beside each what the finder says of its cells."""
        return self._draw(self._trained())

    def export(self, folder: Path, history: History) -> None:
        """Write the source model with this finder, its threshold set on held-out faces."""
        finder = self._trained()
        threshold, measured = self._measure(finder)
        section = CardSection.of_training("face finder", self.config, history, {})
        rows = {name.replace("_", " "): f"{value:.4f}" for name, value in measured.items()}
        section = dataclasses.replace(section, rows={**section.rows, **rows})
        config = dataclasses.replace(finder.config, threshold=threshold)
        self.write(folder, "finder", finder, config, section)

    def _trained(self) -> FaceFinder:
        """The finder as it is now, as models have it, on the CPU."""
        return copy.deepcopy(self.module.finder).cpu().fold_norms().eval().requires_grad_(False)

    def _measure(self, finder: FaceFinder) -> tuple[float, dict[str, float]]:
        """The logit that `RECALL` of the held-out faces reach; how far off their places are; how often others do."""
        config = dataclasses.replace(self.config, negatives=0.0, hidden_part=0.0, farthest=0.7)
        smallest, largest = self.config.sides
        size = self.config.view_size
        config = dataclasses.replace(config, scales=(size / largest, size / smallest))
        faces, fields = self.held_out_views(config)
        empty, _ = self.held_out_views(config, faces=False)
        with torch.inference_mode():
            seen, nothing = finder(faces), finder(empty)
        best = seen.logits.flatten(1).argmax(1)
        rows = torch.arange(len(best))
        tops = seen.logits.flatten(1)[rows, best]
        sides, _ = self.module.describe(fields["affines"], seen.logits.shape[-2:], size)
        middles = (invert_affines(fields["affines"])[..., 2] + 1) * (size / 2) - 0.5
        off = (seen.centres.flatten(2)[rows, :, best] - middles).norm(dim=1) / sides
        threshold = float(tops.quantile(1 - RECALL))
        cells = nothing.logits.numel()
        return threshold, {
            "median_distance_in_sides": float(off.median()),
            "faces_within_a_third_of_a_side": float((off < 1 / 3).double().mean()),
            "other_cells_per_million": float((nothing.logits > threshold).sum()) / cells * 1e6,
        }

    def _draw(self, finder: FaceFinder) -> Image.Image:
        views, _ = self.held_out_views(dataclasses.replace(self.config, negatives=0.0))
        with torch.inference_mode():
            logits = finder(views[:SHOWN]).logits
        maps = torch.sigmoid(logits)[:, None].repeat_interleave(STRIDE, 2).repeat_interleave(STRIDE, 3)
        pairs = [
            draw.stack_rows([draw_view(v), draw_view(m.expand(3, -1, -1))]) for v, m in zip(views, maps, strict=False)
        ]
        columns = math.ceil(len(pairs) / 2)
        return draw.stack_rows([draw.row(pairs[:columns]), draw.row(pairs[columns:])])
