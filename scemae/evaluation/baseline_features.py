"""Features to compare with: pixels and gradients, which need no weights, timm's models and ResNet hypercolumns."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.data.config import resolve_data_config
from torch import Tensor, nn

from scemae.errors import IncompatibleWeightsError, OptionError
from scemae.weights.model_folder import read_file

PATCH, STRIDE = 9, 2  # px: the patch of pixels around each cell, the distance of the cells
BINS, CELL, BLOCK = 9, 8, 4  # gradients: orientations of a half turn, px that one histogram covers, px between cells
HYPERCOLUMN = 48  # cells a side of the peers' feature
CELEBA = ((0.5084, 0.4224, 0.3769), (0.2599, 0.2371, 0.2323))  # the normalisation of the peers' checkpoints

Encode = Callable[[Tensor], Tensor]


def pixels(views: Tensor) -> Tensor:
    """The 9 x 9 pixels around every second one, minus their mean: (B, 243, h / 2, w / 2). Cosine: cross-correlation."""
    reach = PATCH // 2
    # The grid tiles: cell m lies at 2 m + 0.5, so the odd patch is read from views moved by half a pixel.
    moved = F.avg_pool2d(F.pad(views, (reach, reach + 1, reach, reach + 1), mode="replicate"), 2, stride=1)
    patches = F.unfold(moved, PATCH, stride=STRIDE)
    patches = patches - patches.mean(dim=1, keepdim=True)
    feature_map: Tensor = patches.unflatten(2, (views.shape[-2] // STRIDE, -1))
    return feature_map


def gradients(views: Tensor) -> Tensor:
    """Histograms of gradient directions, HOG-like: (B, 36, h / 4, w / 4); four cells of 8 px to a block, unit norm."""
    grey = F.pad(views.mean(dim=1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    across = grey[..., 1:-1, 2:] - grey[..., 1:-1, :-2]
    down = grey[..., 2:, 1:-1] - grey[..., :-2, 1:-1]
    turn = torch.atan2(down, across) % math.pi * (BINS / math.pi)
    apart = (turn - torch.arange(BINS, device=views.device).view(1, -1, 1, 1)).abs()
    share = (1 - torch.minimum(apart, BINS - apart)).clamp(min=0)
    energy = F.pad(share * torch.hypot(across, down), (CELL // 2,) * 4, mode="replicate")
    cells = F.avg_pool2d(energy, CELL, stride=BLOCK)  # cell m lies at 4 m - 0.5: two of them around each block
    blocks = torch.cat([cells[..., :-1, :-1], cells[..., :-1, 1:], cells[..., 1:, :-1], cells[..., 1:, 1:]], dim=1)
    return F.normalize(blocks, dim=1)


def timm_features(name: str, layers: str, device: torch.device) -> tuple[Encode, int]:
    """Maps of timm's pretrained model, and its view size. `layers`: numbers of its stages, "2,3"; "": the last one.

    Several are brought to the size of the largest and concatenated.
    """
    try:
        indices = tuple(int(layer) for layer in layers.split(",")) if layers else (-1,)
        network = timm.create_model(name, pretrained=True, features_only=True, out_indices=indices)
    except Exception as error:  # timm and the hub raise whatever came up
        raise OptionError(f"timm:{name}:{layers} cannot be loaded: {error}") from error
    settings = resolve_data_config({}, model=network)
    network = network.requires_grad_(False).eval().to(device)
    return _normalised(network, settings["mean"], settings["std"], None), settings["input_size"][-1]


def hypercolumn_features(name: str, checkpoint: str, device: torch.device) -> tuple[Encode, int]:
    """The four stages of a ResNet at 48 x 48, concatenated: the feature of CL and LEAD (3840 numbers for resnet50).

    `checkpoint`: a file of weights with the names of torchvision's ResNet, behind any prefix; normalisation is then
    that of CelebA. Without: timm's pretrained weights.
    """
    try:
        network = timm.create_model(name, pretrained=not checkpoint, features_only=True, out_indices=(1, 2, 3, 4))
    except Exception as error:
        raise OptionError(f"hypercolumn:{name} cannot be loaded: {error}") from error
    mean, std = CELEBA
    if checkpoint:
        _load(network, Path(checkpoint))
    else:
        settings = resolve_data_config({}, model=network)
        mean, std = settings["mean"], settings["std"]
    network = network.requires_grad_(False).eval().to(device)
    return _normalised(network, mean, std, HYPERCOLUMN), 96


def _normalised(network: nn.Module, mean: Any, std: Any, side: int | None) -> Encode:
    """Views 0..1 to the network's maps, all resized to `side` (None: the largest of them) and concatenated."""
    shift, scale = (torch.tensor(values).view(3, 1, 1) for values in (mean, std))

    def encode(views: Tensor) -> Tensor:
        maps = network((views - shift.to(views)) / scale.to(views))
        size = side or max(part.shape[-1] for part in maps)
        resized = [F.interpolate(part, (size, size), mode="bilinear", align_corners=False) for part in maps]
        return torch.cat(resized, dim=1)

    return encode


def _load(network: nn.Module, path: Path) -> None:
    """Fill a network from a checkpoint whose names may stand behind a prefix ("module.encoder.", say)."""
    found, wanted = _tensors(path), network.state_dict()
    anchor = next(iter(wanted))
    prefixes = [name.removesuffix(anchor) for name in found if name.endswith(anchor)]
    prefix = min(prefixes, key=len, default="")
    tensors = {name: found[prefix + name] for name in wanted if prefix + name in found}
    missing = sorted(wanted.keys() - tensors.keys())
    if missing:
        raise IncompatibleWeightsError(
            f"{path} lacks {len(missing)} of the {len(wanted)} tensors of the network, such as {missing[0]}; it has "
            f"{', '.join(list(found)[:3])} ..."
        )
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        raise IncompatibleWeightsError(f"{path} is of another network: {error}") from error


def _tensors(path: Path) -> Mapping[str, Tensor]:
    """The tensors of a .safetensors, or of a PyTorch checkpoint with or without a "model" or "state_dict" around."""
    if path.suffix == ".safetensors":
        return read_file(path)[0]
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise IncompatibleWeightsError(f"{path} cannot be read as a checkpoint of PyTorch: {error}") from error
    for key in ("model", "state_dict"):
        state = state.get(key, state) if isinstance(state, Mapping) else state
    if not isinstance(state, Mapping):
        raise IncompatibleWeightsError(f"{path} holds a {type(state).__name__}; wanted tensors by name.")
    return {str(name): tensor for name, tensor in state.items() if isinstance(tensor, Tensor)}
