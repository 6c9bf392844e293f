"""Convolutions with batch normalisation as they are trained, and without it as models have them."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


def convolution(channels: int, width: int, stride: int, norm: bool) -> list[nn.Module]:
    """A 3 x 3 convolution, its batch normalisation if `norm`, and what follows."""
    layer = nn.Conv2d(channels, width, 3, stride, 1, bias=not norm)
    return [layer, *([nn.BatchNorm2d(width)] if norm else []), nn.ReLU()]


def fold_norms(layers: Iterable[nn.Module]) -> nn.Sequential:
    """The same function in evaluation mode, each batch normalisation folded into the convolution before it."""
    folded: list[nn.Module] = []
    for layer in layers:
        if isinstance(layer, nn.BatchNorm2d):
            before = folded.pop()
            assert isinstance(before, nn.Conv2d)
            folded.append(fuse_conv_bn_eval(before.eval(), layer.eval()))
        else:
            folded.append(layer)
    return nn.Sequential(*folded)
