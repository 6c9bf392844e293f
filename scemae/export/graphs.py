"""What is exported: modules that do from tensors to tensors, in one graph, what extraction and prediction do."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scemae.detector.head import reads_shapes, run_head
from scemae.detector.regressor import LandmarkRegressor
from scemae.errors import OptionError
from scemae.features import FOUND
from scemae.geometry import (
    FaceShapes,
    apply_affines,
    compose_affines,
    crops_from_boxes,
    determinants,
    pad_crops,
    resample_crops,
    sample_crops,
)
from scemae.landmarks import COVERAGE
from scemae.model.aligner import LOST, Aligner, is_plausible
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
        self.head = copy.deepcopy(regressor.head_)
        self.shape_reader = self.model.dense_shape if reads_shapes(self.head) else None
        self.error_model = regressor.error_model_

    @property
    def box_side(self) -> int:
        """Largest longer side of a box, patch px; without alignment the only one, as `predict` resamples any other."""
        return self.size if self.aligner is None else BOX_SIDE

    def forward(self, patches: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Landmarks (B, K, 2) in patch pixels, confidence (B, K), 0..1, the faces' scores (B,), see `Face.score`, and
        the radii (B, K) at a coverage of 0.9, patch pixels; nan where `Landmarks.radius` is.

        `patches` (B, 3, H, W) uint8 RGB; `boxes` (B, 4), each (x0, y0, x1, y1), pixel edges in its patch.
        """
        pixels = patches.float() / 255
        crop = crops_from_boxes(boxes.double(), self.size)
        scores = torch.full_like(boxes[:, 0], torch.nan)
        if self.aligner is not None:
            crop, log_errors = self._align(self.aligner, pixels, crop)
            scores = self.aligner.face_scores(log_errors).float()
        backbone_map, grid = self._encode(pixels, crop), self.model.grid(self.kind.expansion)
        reader = self.shape_reader
        shapes = None if reader is None else FaceShapes(reader.frame, reader(backbone_map, grid))
        maps = self.reader.standardise(self._read(backbone_map))
        places, confidence = run_head(self.head, maps, grid, shapes)
        radii = torch.full_like(confidence, torch.nan)
        if self.error_model is not None:
            limit = self.error_model.calibration.quantile(COVERAGE)
            radii = limit * self.error_model.expect(confidence) * determinants(crop).abs().sqrt()[:, None]
            radii = radii.masked_fill((scores < FOUND)[:, None], torch.nan)
        return apply_affines(crop, places).float(), confidence.float(), scores, radii.float()

    def _align(self, aligner: Aligner, pixels: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
        """The crops (B, 2, 3) that the aligner's steps lead to, and the log errors (B,) of the last ones.

        `Aligner.align` for a whole batch, as can be traced: each step is computed for all faces, and kept by those
        that have not settled.
        """
        total = torch.eye(2, 3, dtype=torch.float64).expand(start.shape[0], -1, -1)
        log_errors = torch.full_like(start[:, 0, 0], LOST)
        moving = torch.ones_like(log_errors, dtype=torch.bool)
        for step in range(aligner.steps):
            crops = resample_crops(compose_affines(start, total), self.size, aligner.view_size)
            located = self.model.locate_face(sample_crops(pixels, crops, aligner.view_size), step)
            points, errors = located.points.double(), located.log_errors.double()
            proposed = compose_affines(total, aligner.motion(points, step))
            accepted = self._accept(proposed, start, pixels)
            total = torch.where((moving & accepted)[:, None, None], proposed, total)
            log_errors = torch.where(moving, torch.where(accepted, errors, LOST), log_errors)
            moving = moving & ~(accepted & aligner.has_settled(points, errors))
        return compose_affines(start, total), log_errors

    def _accept(self, total: Tensor, start: Tensor, pixels: Tensor) -> Tensor:
        """Which affines (B, 2, 3) to the starting crops are plausible, (B,); the patch is the picture."""
        middle = total.new_full((1, 1, 2), (self.size - 1) / 2)
        centre = apply_affines(compose_affines(start, total), middle)[:, 0]
        return is_plausible(determinants(total), centre, torch.tensor([pixels.shape[-1], pixels.shape[-2]]))

    def _encode(self, pixels: Tensor, crop: Tensor) -> Tensor:
        """The backbone map (B, D, h, w)."""
        margin = self.model.view_margin
        if self.kind.margin == "context":
            views = self.model.normalise(sample_crops(pixels, pad_crops(crop, margin), self.size + 2 * margin))
        else:
            views = self.model.normalise(sample_crops(pixels, crop, self.size))
            views = F.pad(views, (margin,) * 4, mode="reflect")
        return self.model(views, self.kind.expansion)

    def _read(self, backbone_map: Tensor) -> Tensor:
        """The map (B, C, h, w) that the head reads, not standardised."""
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
