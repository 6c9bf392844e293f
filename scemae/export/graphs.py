"""What is exported: modules that do from tensors to tensors, in one graph, what extraction and prediction do."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scemae.detector.regressor import LandmarkRegressor
from scemae.errors import OptionError
from scemae.geometry import (
    apply_affines,
    compose_affines,
    crops_from_boxes,
    determinants,
    pad_crops,
    sample_crops,
)
from scemae.model.aligner import FaceAligner, is_plausible
from scemae.model.projector import concatenate_maps
from scemae.model.sce_mae import SceMae

BOX_SIDE = 128  # patch px: up to this side of the box the graph sees an aligned face as `predict` does


class MapsGraph(nn.Module):
    """Views with margin (B, 3, S, S), 0..1, not normalised, to the backbone map, and the projected map if any."""

    def __init__(self, model: SceMae, expansion: int) -> None:
        super().__init__()
        self.model = _copy_to_cpu(model)
        self.expansion = expansion

    def forward(self, views: Tensor) -> tuple[Tensor, ...]:
        """Maps (B, D, h, w) and (B, C, h, w); their cells lie at `model.grid(expansion)`."""
        backbone_map = self.model(self.model.normalise(views), self.expansion)
        return (backbone_map,) if self.model.projector is None else (backbone_map, self.model.project(backbone_map))


class RegressorGraph(nn.Module):
    """Patches and face boxes to landmarks and confidence: what `regressor.predict(patches, boxes=boxes)` does.

    It is equal up to rounding if boxes have at most `box_side` px, unless alignment grows the square to more than
    192 px: `predict` then resamples the patch if the square leaves it, while the graph keeps reading the patch.
    Affines and positions are float64, as they are there: an aligner amplifies rounding (docs/export.md).
    """

    constants: Tensor
    slopes: Tensor

    def __init__(self, regressor: LandmarkRegressor) -> None:
        super().__init__()
        regressor.check_fitted()
        if not isinstance(regressor.model, SceMae):
            raise OptionError(
                f"The detector was fitted on features of {regressor.model.id}; only one that was fitted on a scemae "
                "model can be exported."
            )
        self.model = _copy_to_cpu(regressor.model)
        self.kind, self.reader = regressor.kind_, regressor.reader_
        self.size = self.model.config.input_size
        self.aligner = self.model.aligner if self.kind.aligned else None
        if self.aligner is not None:
            steps = [_linear_step(self.aligner, step) for step in range(len(self.aligner.config.steps))]
            self.register_buffer("constants", torch.stack([constant for constant, _ in steps]))
            self.register_buffer("slopes", torch.stack([slopes for _, slopes in steps]))
        self.head = copy.deepcopy(regressor.head_)

    @property
    def box_side(self) -> int:
        """Largest longer side of a box, patch px; without alignment the only one, as `predict` resamples any other."""
        return self.size if self.aligner is None else BOX_SIDE

    def forward(self, patches: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Landmarks (B, K, 2) in patch pixels and confidence (B, K), 0..1.

        `patches` (B, 3, H, W) uint8 RGB; `boxes` (B, 4), each (x0, y0, x1, y1), pixel edges in its patch.
        """
        pixels = patches.float() / 255
        crop = crops_from_boxes(boxes.double(), self.size)
        if self.aligner is not None:
            crop = self._align(self.aligner, pixels, crop)
        maps = self.reader.standardise(self._encode(pixels, crop))
        places, confidence = self.head.predict(maps, self.model.grid(self.kind.expansion))
        return apply_affines(crop, places).float(), confidence.float()

    def _align(self, aligner: FaceAligner, pixels: Tensor, start: Tensor) -> Tensor:
        """The crops (B, 2, 3) that the aligner's steps lead to; a step that loses the face is not taken.

        `FaceAligner.align` for a whole batch in torch. That loop cannot be traced itself: it fits affines with numpy,
        decides face by face which step to take, and has patches cut again. Shared are what a step does (`_linear_step`
        takes it from `aligner.affines`) and `is_plausible`.
        """
        total = torch.eye(2, 3, dtype=torch.float64).expand(start.shape[0], -1, -1)
        for step, stage in enumerate(aligner.config.steps):
            views = sample_crops(pixels, compose_affines(start, total), self.size)
            points = aligner(self.model.patch_tokens(self.model.normalise(views)), stage).double()
            motion = self.constants[step] + torch.einsum("bp,prc->brc", points.flatten(1), self.slopes[step])
            proposed = compose_affines(total, motion)
            accepted = self._accept(proposed, start, pixels)
            total = torch.where(accepted[:, None, None], proposed, total)
        return compose_affines(start, total)

    def _accept(self, total: Tensor, start: Tensor, pixels: Tensor) -> Tensor:
        """Which affines (B, 2, 3) to the starting crops are plausible, (B,); the patch is the picture."""
        middle = total.new_full((1, 1, 2), (self.size - 1) / 2)
        centre = apply_affines(compose_affines(start, total), middle)[:, 0]
        return is_plausible(determinants(total), centre, torch.tensor([pixels.shape[-1], pixels.shape[-2]]))

    def _encode(self, pixels: Tensor, crop: Tensor) -> Tensor:
        """The maps (B, C, h, w) that the head reads, not standardised."""
        margin = self.model.view_margin
        if self.kind.margin == "context":
            views = self.model.normalise(sample_crops(pixels, pad_crops(crop, margin), self.size + 2 * margin))
        else:
            views = self.model.normalise(sample_crops(pixels, crop, self.size))
            views = F.pad(views, (margin,) * 4, mode="reflect")
        backbone_map = self.model(views, self.kind.expansion)
        if self.reader.use == "backbone":
            return backbone_map
        projected = self.model.project(backbone_map)
        if self.reader.use == "projected":
            return projected
        return concatenate_maps(backbone_map, projected, self.model.config.projector_mode)


def _copy_to_cpu(model: SceMae) -> SceMae:
    """A copy of the model, ready for tracing; raises OptionError where it is not float32."""
    dtype = model.backbone.cls_token.dtype
    if dtype != torch.float32:
        raise OptionError(f"The model is of {dtype}; exported graphs are float32: load_model(..., dtype='float32').")
    return copy.deepcopy(model).cpu().eval().requires_grad_(False)


def _linear_step(aligner: FaceAligner, step: int) -> tuple[Tensor, Tensor]:
    """`aligner.affines` of a step as a linear map: constant (2, 3) + flat points (2 P) @ slopes (2 P, 2, 3), float64.

    A least-squares fit to fixed points is linear in what is fitted, so probing it with unit vectors gives all of it.
    """
    count = len(aligner.config.points)
    probes = torch.cat([torch.zeros(1, 2 * count), torch.eye(2 * count)]).unflatten(1, (count, 2))
    found = torch.stack([torch.from_numpy(affine) for affine, _ in aligner.affines(probes, step)])
    return found[0], found[1:] - found[0]
