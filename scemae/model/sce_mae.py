"""SceMae: normalised views in, maps out. Knows no files and no pixels of anybody's photo."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from scemae.errors import OptionError
from scemae.geometry import CellGrid
from scemae.model import cover_and_stride
from scemae.model.aligner import FaceAligner
from scemae.model.backbone import Backbone
from scemae.model.config import ModelConfig, ModelId
from scemae.model.projector import Projector

# Bytes of activations that one chunk of encoder passes may take.
CPU_PASS_MEMORY = 2**25  # what the caches hold: 16 to 32 passes of deit-tiny were the fastest
GPU_PASS_MEMORY = 2**30  # enough to keep one busy; not measured


class SceMae(nn.Module):
    """A backbone, and where the model has them a projector and an aligner."""

    mean: Tensor
    std: Tensor
    view_margin = cover_and_stride.MARGIN

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.id = ModelId(config.name, "")
        width = config.backbone.width
        self.backbone = Backbone(config.backbone, config.input_size, config.patch_size)
        dim, mode = config.projector_dim, config.projector_mode
        self.projector = None if dim is None else Projector(width, dim, mode)
        self.aligner = (
            None
            if config.aligner is None
            else FaceAligner(config.aligner, self.backbone.grid**2, width, config.input_size)
        )
        self.register_buffer("mean", torch.tensor(config.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config.std).view(3, 1, 1), persistent=False)

    @property
    def device(self) -> torch.device:
        """Where the model's numbers are."""
        return self.mean.device

    @property
    def dtype(self) -> torch.dtype:
        """What the encoder computes in."""
        return self.backbone.cls_token.dtype

    @property
    def view_size(self) -> int:
        """Side of the views, px, without their margin."""
        return self.config.input_size

    def normalise(self, views: Tensor) -> Tensor:
        """Views 0..1 (B, 3, H, W), of any device, to what the model was trained on."""
        return (views.to(self.device) - self.mean) / self.std

    def patch_tokens(self, views: Tensor) -> Tensor:
        """Normalised views (B, 3, 96, 96) to the last layer's patch tokens (B, 144, D), float32."""
        return self._encode(views).flatten(2).transpose(1, 2)

    def forward(self, views: Tensor, expansion: int = 1) -> Tensor:
        """Normalised views (B, 3, 104, 104) to the backbone map (B, D, 12 * expansion, 12 * expansion), float32.

        The map's cells lie at `grid(expansion)`. All shifts go through the encoder as one batch, cut into chunks of
        about `CPU_PASS_MEMORY` (`GPU_PASS_MEMORY`) bytes of activations; a compiled or exported graph cuts none.
        """
        chunk = None if torch.compiler.is_compiling() else self._passes_at_once()
        return cover_and_stride.expand(self._encode, views, expansion, self.config.patch_size, chunk)

    def grid(self, expansion: int) -> CellGrid:
        """Where the cells of `forward(views, expansion)` lie, in input pixels."""
        return cover_and_stride.cell_grid(expansion, self.config.patch_size)

    def project(self, backbone_map: Tensor) -> Tensor:
        """Backbone map (B, D, h, w) to projected map (B, C, h, w); raises OptionError if there is no projector."""
        if self.projector is None:
            raise OptionError(f"Model {self.config.name!r} has no projector: use='backbone' is what it offers.")
        return self.projector.project(backbone_map)

    def _encode(self, views: Tensor) -> Tensor:
        maps: Tensor = self.backbone(views.to(self.dtype))
        return maps.float()

    def _passes_at_once(self) -> int:
        shape = self.config.backbone
        tokens = self.backbone.grid**2 + 1
        memory = CPU_PASS_MEMORY if self.device.type == "cpu" else GPU_PASS_MEMORY
        return max(1, memory // (4 * tokens * (12 * shape.width + shape.heads * tokens)))
