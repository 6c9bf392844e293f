"""What is exported: modules that do in one graph, from tensors to tensors, what the verbs do."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scemae.detector.regressor import LandmarkRegressor
from scemae.errors import OptionError
from scemae.extraction import ZOOM
from scemae.geometry import sample_smoothly
from scemae.model.aligner import FaceAligner
from scemae.model.cover_and_stride import MARGIN
from scemae.model.projector import concatenate_maps
from scemae.model.sce_mae import SceMae

BOX_SIDE = 128  # patch px: from a box of at most this side a face that is aligned is seen as `predict` sees it


class MapsGraph(nn.Module):
    """Views 0..1 (B, 3, 104, 104), not normalised, to the backbone map, and the projected one if there is one."""

    def __init__(self, model: SceMae, expansion: int) -> None:
        super().__init__()
        self.model = _on_cpu(model)
        self.expansion = expansion

    def forward(self, views: Tensor) -> tuple[Tensor, ...]:
        """Maps (B, D, h, w) and (B, C, h, w); their cells lie at `model.grid(expansion)`."""
        backbone_map = self.model(self.model.normalise(views), self.expansion)
        return (backbone_map,) if self.model.projector is None else (backbone_map, self.model.project(backbone_map))


class RegressorGraph(nn.Module):
    """Patches and face boxes to landmarks and confidence: what `regressor.predict(patches, boxes=boxes)` does.

    Up to rounding it is equal, where boxes have at most `box_side` px, until alignment has grown the square to more
    than 192 px: there `predict` resamples the patch if the square leaves it, and the graph reads on in it.
    Affines and positions are float64, as they are there: an aligner amplifies rounding (docs/export.md).
    """

    constants: Tensor
    slopes: Tensor

    def __init__(self, regressor: LandmarkRegressor) -> None:
        super().__init__()
        regressor.check_fitted()
        if not isinstance(regressor.model, SceMae):
            raise OptionError(
                f"The detector was fitted on {regressor.model.id}, somebody's features; only one on a model of scemae "
                "can be exported."
            )
        self.model = _on_cpu(regressor.model)
        self.kind, self.reader = regressor.kind_, regressor.reader_
        self.size = self.model.config.input_size
        self.aligner = self.model.aligner if self.kind.aligned else None
        if self.aligner is not None:
            steps = [_affine_of_points(self.aligner, step) for step in range(len(self.aligner.config.steps))]
            self.register_buffer("constants", torch.stack([constant for constant, _ in steps]))
            self.register_buffer("slopes", torch.stack([slopes for _, slopes in steps]))
        self.head = copy.deepcopy(regressor.head_)

    @property
    def box_side(self) -> int:
        """Longer side of a box in its patch, px, at most; without alignment `predict` resamples any other box."""
        return self.size if self.aligner is None else BOX_SIDE

    def forward(self, patches: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Landmarks (B, K, 2) in patch pixels and confidence (B, K), 0..1.

        `patches` (B, 3, H, W) uint8 RGB; `boxes` (B, 4), each (x0, y0, x1, y1), pixel edges in its patch.
        """
        pixels = patches.float() / 255
        crop = _crops(boxes.double(), self.size)
        if self.aligner is not None:
            crop = self._aligned(self.aligner, pixels, crop)
        maps = self.reader.standardise(self._maps(pixels, crop))
        places, confidence = self.head.predict(maps, self.model.grid(self.kind.expansion))
        return _applied(crop, places).float(), confidence.float()

    def _aligned(self, aligner: FaceAligner, pixels: Tensor, start: Tensor) -> Tensor:
        """The crops (B, 2, 3) that the aligner's steps lead to; a step that loses the face is not taken."""
        total = torch.eye(3, dtype=torch.float64)[:2].expand(start.shape[0], -1, -1)
        for step, stage in enumerate(aligner.config.steps):
            views = _sample(pixels, _composed(start, total), self.size)
            points = aligner(self.model.patch_tokens(self.model.normalise(views)), stage).double()
            affine = self.constants[step] + torch.einsum("bp,prc->brc", points.flatten(1), self.slopes[step])
            proposal = _composed(total, affine)
            total = torch.where(self._plausible(proposal, start, pixels)[:, None, None], proposal, total)
        return _composed(start, total)

    def _plausible(self, total: Tensor, start: Tensor, pixels: Tensor) -> Tensor:
        """(B,): whether an affine keeps handedness, rescales within `ZOOM` and keeps the centre in the patch."""
        zoom = _determinant(total).clamp(min=0).sqrt()
        centre = _applied(_composed(start, total), total.new_full((1, 1, 2), (self.size - 1) / 2))[:, 0]
        last = torch.tensor([pixels.shape[-1], pixels.shape[-2]]) - 0.5
        inside = ((centre >= -0.5) & (centre <= last)).all(dim=1)
        return (zoom >= ZOOM[0]) & (zoom <= ZOOM[1]) & inside

    def _maps(self, pixels: Tensor, crop: Tensor) -> Tensor:
        """The maps (B, C, h, w) that the head reads, not standardised."""
        if self.kind.margin == "context":
            padded = _shifted(crop, -MARGIN, -MARGIN)
            views = self.model.normalise(_sample(pixels, padded, self.size + 2 * MARGIN))
        else:
            views = F.pad(self.model.normalise(_sample(pixels, crop, self.size)), (MARGIN,) * 4, mode="reflect")
        backbone_map: Tensor = self.model(views, self.kind.expansion)
        if self.reader.use == "backbone":
            return backbone_map
        projected = self.model.project(backbone_map)
        if self.reader.use == "projected":
            return projected
        return concatenate_maps(backbone_map, projected, self.model.config.projector_mode)


def _on_cpu(model: SceMae) -> SceMae:
    dtype = model.backbone.cls_token.dtype
    if dtype != torch.float32:
        raise OptionError(f"The model is of {dtype}; a graph is float32: load_model(..., dtype='float32').")
    return copy.deepcopy(model).cpu().eval().requires_grad_(False)


def _affine_of_points(aligner: FaceAligner, step: int) -> tuple[Tensor, Tensor]:
    """What `aligner.affines` does in a step: constant (2, 3) + flat points (2 P) @ slopes (2 P, 2, 3), float64.

    A least-squares fit to fixed places is linear in what is fitted, so probing it tells all.
    """
    count = len(aligner.config.points)
    probes = torch.cat([torch.zeros(1, 2 * count), torch.eye(2 * count)]).unflatten(1, (count, 2))
    found = torch.stack([torch.from_numpy(affine) for affine, _ in aligner.affines(probes, step)])
    return found[0], found[1:] - found[0]


def _crops(boxes: Tensor, size: int) -> Tensor:
    """`Crop.from_box` of boxes (B, 4): affines (B, 2, 3) from input to patch pixels."""
    scale = (boxes[:, 2:] - boxes[:, :2]).amax(dim=1)[:, None, None] / size
    centre = (boxes[:, :2] + boxes[:, 2:])[:, :, None] / 2 - 0.5
    return torch.cat([torch.eye(2, dtype=boxes.dtype) * scale, centre - scale * (size - 1) / 2], dim=2)


def _composed(outer: Tensor, inner: Tensor) -> Tensor:
    """Affines (B, 2, 3) that apply `inner` first, then `outer`."""
    return outer[..., :2] @ inner + outer * outer.new_tensor([0.0, 0.0, 1.0])


def _shifted(affine: Tensor, x: Tensor | float, y: Tensor | float) -> Tensor:
    """Affines (B, 2, 3) that shift by x and y, numbers or (B, 1), first."""
    origin = affine[..., 2] + x * affine[..., 0] + y * affine[..., 1]
    return torch.cat([affine[..., :2], origin[..., None]], dim=2)


def _applied(affine: Tensor, xy: Tensor) -> Tensor:
    """Points (B, K, 2) through affines (B, 2, 3)."""
    return xy @ affine[..., :2].transpose(1, 2) + affine[..., 2][:, None]


def _determinant(affine: Tensor) -> Tensor:
    return affine[:, 0, 0] * affine[:, 1, 1] - affine[:, 0, 1] * affine[:, 1, 0]


def _sample(pixels: Tensor, crop: Tensor, size: int) -> Tensor:
    """What crops (B, 2, 3) of `size` px see of pixels (B, 3, H, W), as `sample_view` does it: (B, 3, size, size)."""
    return sample_smoothly(pixels, crop, _determinant(crop).abs().sqrt(), size)
