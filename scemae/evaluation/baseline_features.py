"""Features to compare with: pixels and gradients, which have no weights, timm's models and ResNet hypercolumns."""

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

PATCH, STRIDE = 9, 2  # px: side of the patch of pixels around each cell, distance of the cells
BINS, CELL, STEP = 9, 8, 4  # gradients: orientations of a half turn, px that a histogram covers, px between cells
HYPERCOLUMN = 48  # cells per side of the map, as in CL and LEAD
CELEBA = ((0.5084, 0.4224, 0.3769), (0.2599, 0.2371, 0.2323))  # mean and std that the checkpoints of CL and LEAD expect

Encode = Callable[[Tensor], Tensor]


def pixel_patches(views: Tensor) -> Tensor:
    """The 9 x 9 pixels around every second pixel, minus their mean: (B, 243, h/2, w/2); cosine is cross-correlation."""
    reach = PATCH // 2
    # Cells tile the view, so cell m is at 2 m + 0.5: views are shifted by half a pixel to centre odd patches there.
    shifted = F.avg_pool2d(F.pad(views, (reach, reach + 1, reach, reach + 1), mode="replicate"), 2, stride=1)
    patches = F.unfold(shifted, PATCH, stride=STRIDE)
    patches = patches - patches.mean(dim=1, keepdim=True)
    return patches.unflatten(2, (views.shape[-2] // STRIDE, -1))


def gradient_histograms(views: Tensor) -> Tensor:
    """HOG-like histograms of gradient orientations: (B, 36, h / 4, w / 4); blocks of four 8 px cells, unit norm."""
    grey = F.pad(views.mean(dim=1, keepdim=True), (1, 1, 1, 1), mode="replicate")
    across = grey[..., 1:-1, 2:] - grey[..., 1:-1, :-2]
    down = grey[..., 2:, 1:-1] - grey[..., :-2, 1:-1]
    turn = torch.atan2(down, across) % math.pi * (BINS / math.pi)
    apart = (turn - torch.arange(BINS, device=views.device).view(1, -1, 1, 1)).abs()
    share = (1 - torch.minimum(apart, BINS - apart)).clamp(min=0)
    energy = F.pad(share * torch.hypot(across, down), (CELL // 2,) * 4, mode="replicate")
    cells = F.avg_pool2d(energy, CELL, stride=STEP)  # cell m is at 4 m - 0.5, so a block has two on each side
    blocks = torch.cat([cells[..., :-1, :-1], cells[..., :-1, 1:], cells[..., 1:, :-1], cells[..., 1:, 1:]], dim=1)
    return F.normalize(blocks, dim=1)


def timm_features(name: str, layers: str, device: torch.device) -> tuple[Encode, int]:
    """The encoder of a pretrained timm model, and its view size in px.

    `layers` are indices of its stages, such as "2,3"; "" is the last one. Maps of several stages are resized to the
    largest and concatenated. Raises OptionError if timm cannot load the model.
    """
    try:
        indices = tuple(int(layer) for layer in layers.split(",")) if layers else (-1,)
        network = timm.create_model(name, pretrained=True, features_only=True, out_indices=indices)
    except Exception as error:  # timm and the hub raise whatever came up
        raise OptionError(f"timm:{name}:{layers} cannot be loaded: {error}") from error
    settings = resolve_data_config({}, model=network)
    network = network.requires_grad_(False).eval().to(device)
    return _build_encode(network, settings["mean"], settings["std"], None), settings["input_size"][-1]


def hypercolumn_features(name: str, checkpoint: str, device: torch.device) -> tuple[Encode, int]:
    """The encoder of CL and LEAD, and its view size in px: four ResNet stages at 48 x 48 (3,840 channels for resnet50).

    `checkpoint` is a file of weights with torchvision's names, behind any prefix, trained with the normalisation of
    CL and LEAD; "" takes timm's pretrained weights. Raises OptionError if timm cannot load the model,
    IncompatibleWeightsError if the checkpoint does not fit.
    """
    try:
        network = timm.create_model(name, pretrained=not checkpoint, features_only=True, out_indices=(1, 2, 3, 4))
    except Exception as error:
        raise OptionError(f"hypercolumn:{name} cannot be loaded: {error}") from error
    mean, std = CELEBA
    if checkpoint:
        _load_checkpoint(network, Path(checkpoint))
    else:
        settings = resolve_data_config({}, model=network)
        mean, std = settings["mean"], settings["std"]
    network = network.requires_grad_(False).eval().to(device)
    return _build_encode(network, mean, std, HYPERCOLUMN), 96


def _build_encode(network: nn.Module, mean: Any, std: Any, side: int | None) -> Encode:
    """From views 0..1 to the network's maps, resized to `side` (None: the largest) and concatenated."""
    shift, scale = (torch.tensor(values).view(3, 1, 1) for values in (mean, std))

    def encode(views: Tensor) -> Tensor:
        maps = network((views - shift.to(views)) / scale.to(views))
        size = side or max(part.shape[-1] for part in maps)
        resized = [F.interpolate(part, (size, size), mode="bilinear", align_corners=False) for part in maps]
        return torch.cat(resized, dim=1)

    return encode


def _load_checkpoint(network: nn.Module, path: Path) -> None:
    """Load a checkpoint whose names may have a prefix, such as "module.encoder."."""
    found, wanted = _read_tensors(path), network.state_dict()
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
        raise IncompatibleWeightsError(f"{path} belongs to another network: {error}") from error


def _read_tensors(path: Path) -> Mapping[str, Tensor]:
    """The tensors of a .safetensors file or a PyTorch checkpoint; those under "model" or "state_dict" if present."""
    if path.suffix == ".safetensors":
        return read_file(path)[0]
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise IncompatibleWeightsError(f"{path} cannot be read as a PyTorch checkpoint: {error}") from error
    for key in ("model", "state_dict"):
        state = state.get(key, state) if isinstance(state, Mapping) else state
    if not isinstance(state, Mapping):
        raise IncompatibleWeightsError(f"{path} holds a {type(state).__name__}; wanted tensors by name.")
    return {str(name): tensor for name, tensor in state.items() if isinstance(tensor, Tensor)}
