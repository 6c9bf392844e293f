"""Registration of faces without labels, and what a model learns from it: a projector and the dense shape.

scemae train register --model MODEL --data UPRIGHT_PACK --out RUN
"""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scemae.errors import OptionError, RunError
from scemae.geometry import MeanFrame
from scemae.model.config import DenseShapeConfig
from scemae.model.dense_shape import DenseShape
from scemae.model.projector import Projector
from scemae.model.sce_mae import SceMae
from scemae.output import atomic_folder, is_taken, remove
from scemae.training.acceleration import choose_precision
from scemae.training.engine import describe_hardware
from scemae.training.face_views import EXPANSION, FaceViews, encode_central
from scemae.training.fit_dense_shape import DenseShapeFit
from scemae.training.held_out_matching import HeldOutFaces
from scemae.training.model_writer import CardSection, describe_run
from scemae.training.pack import Pack
from scemae.training.register_config import RegisterConfig
from scemae.training.registration import (
    Round,
    centre_shapes,
    learn_projector,
    mean_shapes,
    measure_rings,
    measure_shapes,
    register_once,
)
from scemae.training.run_folder import MAPS, MODEL, RunFolder
from scemae.training.stage2 import write_projected
from scemae.weights.zoo import load_model

FIELDS = {"config", "origin", "pack", "precision", "step", "seconds", "shapes"}  # of a checkpoint


def train_register(
    source: str,
    pack: Pack,
    config: RegisterConfig,
    out: Path,
    card_fields: Mapping[str, Any] | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
) -> dict[str, float]:
    """Write `out`/model: the model `source` with a projector and a dense shape learned from registered faces.

    Returns what was measured on held-out faces: `HeldOutFaces.measure`, and the last line of the log. `resume`:
    continue the run in `out`, with the same result as in one go; its maps and its last round are kept there until the
    model is. Raises RunError where `out` is in use, holds a model, or a run that cannot be continued; OptionError for
    more components or dimensions than the maps have, or more modes than places.
    """
    model = load_model(source)
    pack.check_input_size(model.config.input_size)
    head = _make_head(model, config)
    if config.projector_dim > model.config.backbone.width:
        raise OptionError(
            f"projector_dim is {config.projector_dim}; the maps have {model.config.backbone.width} channels."
        )
    folder = RunFolder(out)
    folder.lock()
    try:
        if resume and is_taken(out / MODEL):
            raise RunError(f"{out} holds the model already; there is nothing to resume.")
        folder.begin(resume, overwrite)
        measured = _Run(model, source, pack, config, folder, head).train(card_fields)
        remove(out / MAPS)
    finally:
        folder.release()
    return measured


def _make_head(model: SceMae, config: RegisterConfig) -> DenseShape:
    shape = DenseShapeConfig(
        components=config.components,
        modes=config.modes,
        global_stages=config.global_stages,
        local_stages=config.local_stages,
    )
    width, numbers = model.config.backbone.width, 2 * (EXPANSION * model.backbone.grid) ** 2
    if shape.components > width or shape.modes > numbers:
        raise OptionError(
            f"components is {shape.components} and modes {shape.modes}; with this model they are at most {width}, its "
            f"channels, and {numbers}, the coordinates of its places."
        )
    return DenseShape(shape, width, model.config.input_size, model.config.patch_size)


class _Run:
    """A registration in its folder, from its last checkpoint on."""

    def __init__(
        self, model: SceMae, source: str, pack: Pack, config: RegisterConfig, folder: RunFolder, head: DenseShape
    ) -> None:
        self.model, self.source, self.config, self.folder, self.head = model, source, config, folder, head
        rows, self.held_out = pack.split(config.held_out, config.seed)
        self.pack, rows = pack, rows[: config.faces]
        self.start = time.monotonic()
        self.views = FaceViews.draw(head.frame, pack, rows, model.view_margin, config, folder.path / MAPS)
        saved = folder.read_checkpoint(FIELDS)
        if saved is None:
            saved = self._begin(len(rows))
        self._check(saved)
        self.precision, self.step, self.shapes = saved["precision"], saved["step"], saved["shapes"]
        self.start -= saved["seconds"]
        folder.cut_log(self.step)

    @property
    def frame(self) -> MeanFrame:
        return self.head.frame

    @torch.no_grad()
    def train(self, card_fields: Mapping[str, Any] | None) -> dict[str, float]:
        """Everything from the maps to the model."""
        self.views.encode(self.model, self.precision)
        maps = encode_central(self.model, self.pack, self.held_out, self.precision)
        own = self.model.projector
        projector = self._learn(self.shapes) if self.step or own is None else copy.deepcopy(own).cpu()
        while self.step < len(self.config.reaches):
            projector = self._register(projector, maps)
        DenseShapeFit(self.head, self.views, self.shapes).fit(self.config.global_ridge, self.config.local_ridge)
        shapes = self._read_shapes()
        projector = self._learn(shapes)
        lines = [*self.folder.read_log(), self._measure(self.step + 1, shapes, projector, maps)]
        unseen = HeldOutFaces(self.model, self.pack, self.held_out).measure(projector)
        self._write(projector, unseen, lines, card_fields)
        return {**unseen, **{name: value for name, value in lines[-1].items() if name != "step"}}

    def _register(self, projector: Projector, maps: Tensor) -> Projector:
        """One round, its line in the log, and its checkpoint; the projector for the next one."""
        config = self.config
        settings = Round(
            reach=config.reaches[self.step],
            smoothing=config.smoothings[self.step],
            temperature=config.temperature,
        )
        self.shapes, agreement = register_once(self.views, self.shapes, projector, settings)
        projector = self._learn(self.shapes)
        self.step += 1
        self.folder.log({**self._measure(self.step, self.shapes, projector, maps), "agreement": agreement})
        self._save(self.shapes)
        return projector

    def _learn(self, shapes: Tensor) -> Projector:
        return learn_projector(self.views, shapes, self.config.projector_dim, self.config.shrinkage)

    def _read_shapes(self) -> Tensor:
        """The shapes of the faces as the fitted dense shape sees them, of mean displacement zero."""
        grid, shapes = self.frame.grid, torch.empty_like(self.shapes)
        for part, maps in self.views.iter_maps("still", "shapes"):
            shapes[part] = self.head(maps, grid).float()
        return centre_shapes(self.frame, shapes)

    def _measure(self, step: int, shapes: Tensor, projector: Projector, maps: Tensor) -> dict[str, float]:
        rings = measure_rings(maps, self.frame, projector, self.config.temperature)
        return {"step": step, **measure_shapes(self.frame, shapes), "ring_error": rings}

    def _write(
        self,
        projector: Projector,
        unseen: Mapping[str, float],
        lines: list[dict[str, float]],
        card_fields: Mapping[str, Any] | None,
    ) -> None:
        model, last = self.model, lines[-1]
        hardware = describe_hardware(model.device, 1, self.precision)
        rows = {
            "faces": f"{len(self.shapes):,}, each also mirrored or not, moved and warped",
            "mean displacement": f"{last['displacement']:.2f} input px",
            "folded places": f"{100 * last['folded']:.3f} %",
            "error through three faces": f"{last['ring_error']:.2f} input px (held-out faces)",
            **describe_run((time.monotonic() - self.start) / 3600, hardware),
        }
        section = CardSection(title="registration", rows=rows, config=self.config, log=lines)
        model.dense_shape = self.head
        kept = {"matching_use": model.config.matching_use, "dense_shape": self.head.config}
        with atomic_folder(self.folder.path / MODEL) as folder:
            write_projected(folder, model, self.source, projector, section, unseen, {**kept, **(card_fields or {})})

    def _begin(self, faces: int) -> dict[str, Any]:
        """The state before the first round, written down: it holds the precision in which all maps are made."""
        self.step, self.precision = 0, choose_precision(self.model.device)
        return self._save(mean_shapes(self.frame, faces))

    def _save(self, shapes: Tensor) -> dict[str, Any]:
        state = {
            "config": self.config.to_json(),
            "origin": self.model.id.sha256,
            "pack": self.pack.source,
            "precision": self.precision,
            "step": self.step,
            "seconds": time.monotonic() - self.start,
            "shapes": shapes,
        }
        self.folder.write_checkpoint(state)
        return state

    def _check(self, saved: Mapping[str, Any]) -> None:
        """Raise RunError unless a checkpoint is of this run."""
        path = self.folder.path
        try:
            changed = RegisterConfig.from_json(saved["config"]).difference(self.config)
        except TypeError as error:
            raise RunError(f"{path} was started by another version of scemae: {error}.") from error
        if changed:
            raise RunError(f"{path} was started with another configuration: {'; '.join(changed)}.")
        if saved["origin"] != self.model.id.sha256:
            raise RunError(f"{path} was started from another model; pass the same --model.")
        if saved["pack"] != self.pack.source or len(saved["shapes"]) != len(self.views):
            raise RunError(f"{path} was started with other faces, of {saved['pack']}; pass the same --data.")
