"""The paper's head: soft-argmax over many heat maps per landmark, trained by gradient descent (Sec. 4.2)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm.auto import tqdm

from scemae.detector.head import AnnotatedMaps, HeadFit
from scemae.geometry import CellGrid, pixels_to_unit, soft_argmax, unit_to_pixels
from scemae.progress import LONG_WORK, hide_progress

BATCH = 32  # faces in a step, as in DVE and CL
ReadMaps = Callable[[Tensor], Tensor]


class HeatmapNet(nn.Module):
    """Maps (n, C, h, w) -> `heatmaps` soft-argmax positions per landmark -> landmarks (n, K, 2) in -1..1.

    `block` puts a 3 x 3 convolution, batch norm and ReLU in front of the 1 x 1 convolution.
    """

    def __init__(self, channels: int, count: int, heatmaps: int, block: bool, multiplier: float) -> None:
        super().__init__()
        hidden = 256
        front = [nn.Conv2d(channels, hidden, 3, padding=1, bias=False), nn.BatchNorm2d(hidden), nn.ReLU()]
        self.front = nn.Sequential(*front) if block else nn.Identity()
        self.activations = nn.Conv2d(hidden if block else channels, count * heatmaps, 1, bias=False)
        # Each landmark starts as the mean of its places.
        self.mix = nn.Parameter(torch.eye(2).repeat(heatmaps, 1).expand(count, -1, -1) / heatmaps)
        self.multiplier = multiplier

    def forward(self, maps: Tensor, grid: CellGrid) -> tuple[Tensor, Tensor]:
        """Landmarks (n, K, 2) in -1..1 over the input, and the heat maps (n, K, heatmaps, h, w), each of sum one."""
        activations = self.multiplier * self.activations(self.front(maps))
        heatmaps = activations.flatten(2).softmax(-1).view_as(activations)
        places = pixels_to_unit(soft_argmax(heatmaps, grid), grid.extent(maps.shape[-1]))
        places = places.unflatten(1, (len(self.mix), -1)).flatten(2)
        return torch.einsum("nki,kid->nkd", places, self.mix), heatmaps.unflatten(1, (len(self.mix), -1))


class HeatmapHead:
    """The paper's head (Sec. 4.2, after DVE): soft-argmax positions of many heat maps per landmark, mixed linearly.

    Trained with AdamW on smooth L1 of 10 x the coordinates, in batches of 32, with a cosine learning rate; all mirror
    images are used. Much slower than the cascade: it is here for comparison. After `fit`: `net_`.

    Args:
        heatmaps: number of heat maps per landmark.
        block: see `HeatmapNet`; the paper has it with all annotations, not with few.
        steps: number of optimizer steps.
        rate: the initial learning rate.
        weight_decay: the weight decay of AdamW.
        multiplier: factor on the activations before the softmax.
        seed: the seed of the initial weights and the batches.
    """

    name: ClassVar[str] = "heatmap"
    max_folds: ClassVar[int] = 3
    moved_copies: ClassVar[bool] = False

    net_: HeatmapNet

    def __init__(
        self,
        heatmaps: int = 50,
        block: bool = False,
        steps: int = 1000,
        rate: float = 1e-3,
        weight_decay: float = 5e-4,
        multiplier: float = 10.0,
        seed: int = 0,
    ) -> None:
        self.heatmaps = heatmaps
        self.block = block
        self.steps = steps
        self.rate = rate
        self.weight_decay = weight_decay
        self.multiplier = multiplier
        self.seed = seed

    @classmethod
    def with_defaults(cls, aligned: bool) -> Self:
        """The default head, the same for faces that are aligned or not."""
        return cls()

    def params(self) -> dict[str, Any]:
        """The constructor's arguments, JSON-ready."""
        return {name: value for name, value in vars(self).items() if name != "net_"}

    def fit(self, data: AnnotatedMaps) -> HeadFit:
        """Train a network for each block that is held out, then the final one on all faces."""

        def train(chosen: NDArray[np.bool_]) -> HeatmapNet:
            faces = torch.from_numpy(np.flatnonzero(chosen))
            return self._train(lambda rows: data.maps[faces[rows]], data.landmarks[faces], data.grid)

        originals = torch.from_numpy(data.originals)
        held_out = torch.full_like(data.landmarks[originals], torch.nan)
        confidence = torch.full_like(held_out[..., 0], torch.nan)
        blocks = np.unique(data.blocks)
        if len(blocks) > 1:
            for block in blocks:
                inside = torch.from_numpy(data.blocks[data.originals] == block)
                self.net_ = train(data.blocks != block)
                held_out[inside], confidence[inside] = self.predict(data.maps[originals][inside], data.grid)
        self.net_ = train(np.ones(len(data.blocks), dtype=bool))
        return HeadFit(held_out, bool(data.mirrored.any()), confidence)

    def fit_stream(self, read: ReadMaps, landmarks: Tensor, grid: CellGrid) -> None:
        """Train a network on faces whose maps are not in memory, without holding any out.

        `read` gives the standardised maps (b, C, h, w) of the faces in rows (b,), on the device to train on.
        `landmarks`: (n, K, 2), input px, nan where not annotated.
        """
        self.net_ = self._train(read, landmarks, grid)

    def predict(self, maps: Tensor, grid: CellGrid) -> tuple[Tensor, Tensor]:
        """Landmarks (n, K, 2) in input px in standardised maps (n, C, h, w), and their confidence (n, K), 0..1.

        The confidence is the largest share that one cell holds of a heat map, averaged over the landmark's maps.
        """
        unit, heatmaps = self.net_(maps, grid)
        return unit_to_pixels(unit.double(), grid.extent(maps.shape[-1])), heatmaps.flatten(3).amax(-1).mean(
            -1
        ).double()

    def state(self) -> dict[str, Tensor]:
        """The network's tensors."""
        return self.net_.state_dict()

    def expected_state(self, channels: int, landmarks: int, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Names, shapes and types that a `state` must have, on "meta"."""
        with torch.device("meta"):
            return self._new_net(channels, landmarks).float().state_dict()

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take what `state` gave."""
        count = len(state["mix"])
        front = state.get("front.0.weight")
        channels = state["activations.weight"].shape[1] if front is None else front.shape[1]
        self.net_ = self._new_net(channels, count)
        self.net_.load_state_dict(state)
        self.net_.eval().requires_grad_(False)

    def _new_net(self, channels: int, count: int) -> HeatmapNet:
        return HeatmapNet(channels, count, self.heatmaps, self.block, self.multiplier)

    def _train(self, read: ReadMaps, landmarks: Tensor, grid: CellGrid) -> HeatmapNet:
        like = read(torch.tensor([0]))
        targets = pixels_to_unit(landmarks, grid.extent(like.shape[-1])).float().to(like.device)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.seed)  # torch.manual_seed would seed GPUs too
            net = self._new_net(like.shape[1], targets.shape[1]).to(like.device)
            self._optimise(net, self._draw_batches(read, targets), grid)
        return net.cpu().eval().requires_grad_(False)

    def _draw_batches(self, read: ReadMaps, targets: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Maps and targets of `BATCH` random faces, or of all, for each step."""
        for _ in tqdm(range(self.steps), unit="step", delay=LONG_WORK, disable=hide_progress(), leave=False):
            rows = torch.randperm(len(targets))[:BATCH]
            yield read(rows), targets[rows]

    def _optimise(self, net: HeatmapNet, batches: Iterable[tuple[Tensor, Tensor]], grid: CellGrid) -> None:
        """One step for each batch: maps (b, C, h, w), and targets (b, K, 2) in -1..1, nan where not annotated."""
        optimizer = torch.optim.AdamW(net.parameters(), lr=self.rate, weight_decay=self.weight_decay)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.steps)
        for maps, targets in batches:
            found, _ = net(maps, grid)
            error = 10 * (found - targets)[targets.isfinite()]
            loss = nn.functional.smooth_l1_loss(error, torch.zeros_like(error))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
