"""SceMae: normalised views in, maps out. It knows nothing about files and photos."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from scemae.errors import OptionError
from scemae.geometry import CellGrid
from scemae.model import cover_and_stride
from scemae.model.aligner import Aligner, FaceAligner, Located
from scemae.model.backbone import Backbone
from scemae.model.config import ModelConfig, ModelId, TokenAlignerConfig
from scemae.model.dense_shape import DenseShape
from scemae.model.face_finder import FaceFinder
from scemae.model.projector import Projector
from scemae.model.token_aligner import TokenAligner

# Bytes of activations that one chunk of encoder passes may take.
CPU_PASS_MEMORY = 2**25  # what the caches hold: 16 to 32 passes of deit-tiny were the fastest
GPU_PASS_MEMORY = 2**30  # enough to keep one busy; not measured


class SceMae(nn.Module):
    """A backbone, with a projector and an aligner if the model has them."""

    mean: Tensor
    std: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.id = ModelId(config.name, "")
        width = config.backbone.width
        self.backbone = Backbone(config.backbone, config.input_size, config.patch_size)
        dim, mode = config.projector_dim, config.projector_mode
        self.projector = None if dim is None else Projector(width, dim, mode, self.backbone.grid)
        self.aligner = self._build_aligner()
        self.finder = None if config.finder is None else FaceFinder(config.finder)
        shape, size, patch = config.dense_shape, config.input_size, config.patch_size
        self.dense_shape = None if shape is None else DenseShape(shape, width, size, patch)
        self.register_buffer("mean", torch.tensor(config.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config.std).view(3, 1, 1), persistent=False)

    @property
    def device(self) -> torch.device:
        """The device of the model's weights."""
        return self.mean.device

    @property
    def dtype(self) -> torch.dtype:
        """The data type that the encoder computes in."""
        return self.backbone.cls_token.dtype

    @property
    def view_size(self) -> int:
        """Side of the views, px, without their margin."""
        return self.config.input_size

    @property
    def view_margin(self) -> int:
        """Pixels of surroundings on each side of a view, for the shifts of cover-and-stride."""
        return cover_and_stride.view_margin(self.config.patch_size)

    def normalise(self, views: Tensor) -> Tensor:
        """Views 0..1 (B, 3, H, W), of any device, to the mean and deviation that the model was trained with."""
        return (views.to(self.device) - self.mean) / self.std

    def locate_face(self, views: Tensor, step: int) -> Located:
        """What the aligner sees in views (B, 3, V, V), 0..1, of `aligner.view_size` px, in that step."""
        if isinstance(self.aligner, TokenAligner):
            points = self.aligner(self.patch_tokens(self.normalise(views)), step)
            return Located(points, torch.full_like(points[:, 0, 0], torch.nan))
        if self.aligner is None:
            raise OptionError(f"Model {self.config.name!r} has no aligner.")
        located: Located = self.aligner(views.to(self.device))
        return located

    def patch_tokens(self, views: Tensor) -> Tensor:
        """Normalised views (B, 3, S, S) of `view_size` px to the last layer's patch tokens (B, N, D), float32."""
        return self._encode(views).flatten(2).transpose(1, 2)

    def forward(self, views: Tensor, expansion: int = 1) -> Tensor:
        """Normalised views with margin (B, 3, S, S) to the backbone map (B, D, h * expansion, w * expansion), float32.

        S is `view_size` + 2 `view_margin`: 104 px for an input of 96 px and patches of 8 px. The map's cells are at
        `grid(expansion)`. All shifts go through the encoder as one batch, in chunks of about `CPU_PASS_MEMORY`
        (`GPU_PASS_MEMORY`) bytes of activations; in a compiled or exported graph in one piece.
        """
        chunk = None if torch.compiler.is_compiling() else self._passes_at_once()
        return cover_and_stride.expand(self._encode, views, expansion, self.config.patch_size, chunk)

    def grid(self, expansion: int) -> CellGrid:
        """Where the cells of `forward(views, expansion)` are, in input pixels."""
        return cover_and_stride.cell_grid(expansion, self.config.patch_size)

    def project(self, backbone_map: Tensor) -> Tensor:
        """Backbone map (B, D, h, w) to projected map (B, C, h, w); raises OptionError if there is no projector."""
        if self.projector is None:
            raise OptionError(f"Model {self.config.name!r} has no projector: use='backbone' is what it offers.")
        return self.projector.project(backbone_map)

    def _build_aligner(self) -> Aligner | None:
        config, size = self.config.aligner, self.config.input_size
        if isinstance(config, TokenAlignerConfig):
            return TokenAligner(config, self.backbone.grid**2, self.config.backbone.width, size)
        return None if config is None else FaceAligner(config, size)

    def _encode(self, views: Tensor) -> Tensor:
        return self.backbone(views.to(self.dtype)).float()

    def _passes_at_once(self) -> int:
        shape = self.config.backbone
        tokens = self.backbone.grid**2 + 1
        memory = CPU_PASS_MEMORY if self.device.type == "cpu" else GPU_PASS_MEMORY
        return max(1, memory // (4 * tokens * (12 * shape.width + shape.heads * tokens)))
