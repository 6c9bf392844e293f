"""The encoder: timm's VisionTransformer, held by composition (paper Sec. 3.1, 4)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from scemae.model.config import BackboneConfig


def sincos_positions(width: int, grid: int) -> Tensor:
    """Fixed two-dimensional sine-cosine positions (1, 1 + grid**2, width); the CLS row is zero.

    The first half of the channels encodes the column, the second the row; in each, sines then cosines of
    `index / 10000**(2 i / (width / 2))` (He et al., "Masked Autoencoders", 2022, after Vaswani et al., 2017).
    """
    quarter = width // 4
    frequencies = 10000.0 ** -(torch.arange(quarter, dtype=torch.float64) / quarter)
    angles = torch.arange(grid, dtype=torch.float64)[:, None] * frequencies
    axis = torch.cat([angles.sin(), angles.cos()], dim=1)
    rows, columns = torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij")
    positions = torch.cat([axis[columns.flatten()], axis[rows.flatten()]], dim=1)
    return torch.cat([torch.zeros(1, width, dtype=torch.float64), positions])[None].float()


def gather_tokens(tokens: Tensor, indices: Tensor) -> Tensor:
    """Of tokens (B, N, D) those at indices (B, M), in that order: (B, M, D)."""
    return tokens.gather(1, indices[..., None].expand(-1, -1, tokens.shape[-1]))


class Backbone(nn.Module):
    """Patches + positions -> blocks -> final norm, in three calls that training can step between."""

    def __init__(self, config: BackboneConfig, input_size: int = 96, patch_size: int = 8) -> None:
        super().__init__()
        self.vit = VisionTransformer(
            img_size=input_size,
            patch_size=patch_size,
            embed_dim=config.width,
            depth=config.depth,
            num_heads=config.heads,
            num_classes=0,
            global_pool="",
        )
        self.grid = input_size // patch_size
        self.positions.data = sincos_positions(config.width, self.grid)
        self.positions.requires_grad_(False)

    @property
    def positions(self) -> nn.Parameter:
        """The fixed positions (1, 1 + N, D), CLS first."""
        assert self.vit.pos_embed is not None
        return self.vit.pos_embed

    @property
    def cls_token(self) -> nn.Parameter:
        """The CLS token (1, 1, D), without its position."""
        assert self.vit.cls_token is not None
        return self.vit.cls_token

    def embed(self, images: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) to patch tokens with their positions, (B, N, D); no CLS yet."""
        return self.vit.patch_embed(images) + self.positions[:, 1:]

    def embed_patches(self, patches: Tensor) -> Tensor:
        """Normalised pixels (B, M, 3 * p * p) of any patches, channel by channel, to tokens (B, M, D) without position.

        Gives the same numbers as `embed`, for those patches only.
        """
        projection = self.vit.patch_embed.proj
        return F.linear(patches, projection.weight.flatten(1), projection.bias)

    def encode(self, patch_tokens: Tensor) -> Tensor:
        """The whole encoder: patch tokens with their positions (B, N, D) -> (B, 1 + N, D), CLS first."""
        return self.run_blocks(self.prepend_cls(patch_tokens))

    def prepend_cls(self, patch_tokens: Tensor) -> Tensor:
        """Patch tokens (B, N, D) with the CLS token in front, (B, 1 + N, D)."""
        cls_token = (self.cls_token + self.positions[:, :1]).expand(patch_tokens.shape[0], -1, -1)
        return torch.cat([cls_token, patch_tokens], dim=1)

    def run_blocks(self, tokens: Tensor, start: int = 0, stop: int | None = None) -> Tensor:
        """Tokens (B, 1 + M, D) through the blocks `start` to `stop` (exclusive; None: all, then the final norm)."""
        for block in self.vit.blocks[start:stop]:
            tokens = block(tokens)
        if stop is None:
            tokens = self.vit.norm(tokens)
        return tokens

    def cls_similarity(self, tokens: Tensor, block: int, mean_heads: bool = True) -> Tensor:
        """How much the CLS token attends to each patch in block number `block`, from 0: (B, N) (paper Eq. 1).

        `tokens` (B, 1 + N, D), CLS first, are the input of that block. With `mean_heads` the softmax of each head is
        taken over all keys, CLS included, and averaged over the heads; CLS is dropped from the result. Without, it is
        one softmax over the patches of the inner product at full width, which is how Eq. 1 is printed.
        """
        layer: Any = self.vit.blocks[block]
        attention = layer.attn
        batch, count, width = tokens.shape
        qkv = attention.qkv(layer.norm1(tokens)).view(batch, count, 3, attention.num_heads, -1).float()
        query, keys = qkv[:, 0, 0], qkv[:, :, 1]  # (B, heads, d), (B, 1 + N, heads, d)
        with torch.autocast(tokens.device.type, enabled=False):
            logits = torch.einsum("bhd,bnhd->bhn", query, keys)
        if mean_heads:
            return (logits * attention.head_dim**-0.5).softmax(-1).mean(1)[:, 1:]
        return (logits[..., 1:].sum(1) / width**0.5).softmax(-1)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (B, 3, H, W) to the last layer's patch tokens as a map (B, D, h, w)."""
        patch_tokens = self.encode(self.embed(images))[:, 1:]
        return patch_tokens.transpose(1, 2).unflatten(2, (self.grid, self.grid))


def initialise_backbone(backbone: Backbone) -> None:
    """Fresh weights, as in MAE: Xavier-uniform linear layers and patch embedding, CLS token N(0, 0.02)."""
    initialise_linear(backbone)
    projection = backbone.vit.patch_embed.proj.weight
    nn.init.xavier_uniform_(projection.view(len(projection), -1))
    nn.init.normal_(backbone.cls_token, std=0.02)


def initialise_linear(module: nn.Module) -> None:
    """Xavier-uniform weights and zero biases for every linear layer of a module (as in MAE)."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
