"""The masked autoencoder (MAE) of stage 1 around a backbone (paper Sec. 3.1; He et al., 2022)."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from scemae.model.backbone import Backbone, gather_tokens, initialise_linear, sincos_positions
from scemae.training.run_config import Stage1Config


def to_patches(images: Tensor, patch_size: int) -> Tensor:
    """Images (B, 3, H, W) to patches (B, N, 3 * patch_size**2), row by row; in a patch channel, row, column."""
    tiles = images.unflatten(3, (-1, patch_size)).unflatten(2, (-1, patch_size))  # B, 3, rows, p, columns, p
    return tiles.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def to_images(patches: Tensor, patch_size: int) -> Tensor:
    """The images (B, 3, H, W), square, that `to_patches` was given."""
    side = round(patches.shape[1] ** 0.5)
    tiles = patches.unflatten(2, (3, patch_size, patch_size)).unflatten(1, (side, side))
    return tiles.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)


_norm: Any = partial(nn.LayerNorm, eps=1e-6)


class MaskedAutoencoder(nn.Module):
    """Encode the visible patches, decode the hidden ones. Its state minus the decoder is the released backbone.

    Patches come in a random order (B, N): the first are visible, the next `decoded` of the hidden are reconstructed.
    The decoder sees only those two groups: leaving hidden patches out saves its time and costs no quality (as in
    CrossMAE, Fu et al., 2024, whose decoder differs).
    """

    def __init__(self, backbone: Backbone, config: Stage1Config) -> None:
        super().__init__()
        self.backbone = backbone
        tokens, width = backbone.grid**2, backbone.cls_token.shape[-1]
        self.patch_size = config.input_size // backbone.grid
        self.normalise_pixels = config.normalise_pixels
        self.visible = int(tokens * (1 - config.mask_ratio))
        self.decoded = round((tokens - self.visible) * config.decoded_ratio)
        self.decoder = nn.ModuleDict(
            {
                "embed": nn.Linear(width, config.decoder_width),
                "blocks": nn.Sequential(
                    *(
                        Block(config.decoder_width, config.decoder_heads, qkv_bias=True, norm_layer=_norm)
                        for _ in range(config.decoder_depth)
                    )
                ),
                "norm": _norm(config.decoder_width),
                "head": nn.Linear(config.decoder_width, 3 * self.patch_size**2),
            }
        )
        self.mask_token = nn.Parameter(torch.empty(1, 1, config.decoder_width))
        self.decoder_positions: Tensor
        self.register_buffer("decoder_positions", sincos_positions(config.decoder_width, backbone.grid), False)
        initialise_linear(self.decoder)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, images: Tensor, order: Tensor) -> dict[str, Tensor]:
        """Normalised images (B, 3, H, W), order (B, N) -> {"loss"}: mean squared error over the decoded patches."""
        order = order[:, : self.visible + self.decoded]
        visible, wanted = gather_tokens(to_patches(images, self.patch_size), order).split(
            [self.visible, self.decoded], dim=1
        )
        if self.normalise_pixels:
            mean, deviation = _mean_and_deviation(wanted)
            wanted = (wanted - mean) / deviation
        found = self.decode(self.encode(visible, order), order)
        return {"loss": F.mse_loss(found.float(), wanted.float())}

    def encode(self, visible: Tensor, order: Tensor) -> Tensor:
        """The encoder's output (B, 1 + M, D), CLS first, of pixels (B, M, P) of the first M patches of `order`."""
        patch_tokens = self.backbone.embed_patches(visible)
        positions = self.backbone.positions[:, 1:].expand(len(order), -1, -1)
        return self.backbone.encode(patch_tokens + gather_tokens(positions, order[:, : visible.shape[1]]))

    def decode(self, encoded: Tensor, order: Tensor) -> Tensor:
        """Encoded tokens (B, 1 + visible, D) and order (B, M) -> pixels of the M - visible patches that are hidden."""
        tokens = self.decoder["embed"](encoded)
        hidden = order.shape[1] - self.visible
        tokens = torch.cat([tokens, self.mask_token.expand(len(tokens), hidden, -1)], dim=1)
        cls_position, positions = self.decoder_positions[:, :1], self.decoder_positions[:, 1:]
        positions = gather_tokens(positions.expand(len(order), -1, -1), order)
        tokens = tokens + torch.cat([cls_position.expand(len(order), -1, -1), positions], dim=1)
        tokens = self.decoder["blocks"](tokens)
        return self.decoder["head"](self.decoder["norm"](tokens[:, 1 + self.visible :]))

    def reconstruct(self, images: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
        """Images with the hidden patches left out (0), and with them reconstructed; both (B, 3, H, W), normalised.

        With normalised pixels the decoder knows no patch's mean and contrast; they are taken from the image.
        """
        patches = to_patches(images, self.patch_size)
        hidden = order[:, self.visible :, None].expand(-1, -1, patches.shape[-1])
        found = self.decode(self.encode(gather_tokens(patches, order[:, : self.visible]), order), order).float()
        if self.normalise_pixels:
            mean, deviation = _mean_and_deviation(patches.gather(1, hidden))
            found = found * deviation + mean
        masked, filled = patches.scatter(1, hidden, 0.0), patches.scatter(1, hidden, found)
        return to_images(masked, self.patch_size), to_images(filled, self.patch_size)


def _mean_and_deviation(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each patch (B, M, P), (B, M, 1) both; the latter never 0."""
    return patches.mean(-1, keepdim=True), (patches.var(-1, keepdim=True) + 1e-6).sqrt()
