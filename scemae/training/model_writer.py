"""A run's result: a model folder whose card says how it was made, and the log and curve of its loss.

A card is published with the model; so its pictures show the sample faces, never those of the training data.
"""

from __future__ import annotations

import json
import math
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from scemae import draw
from scemae.model.config import ModelConfig
from scemae.training.engine import History
from scemae.training.run_config import RunConfig
from scemae.training.settings import Settings
from scemae.weights.card import RUN_HEADING, copy_earlier_sections, model_card
from scemae.weights.model_folder import CARD, WEIGHTS, file_sha256, save_model

CURVE_SIZE = (720, 320)
LOGGED = 200  # lines of the log that a model folder keeps


@dataclass(frozen=True, eq=False)
class CardSection:
    """What a card says of one run: its title, a table, every setting, pictures by caption, and its log."""

    title: str
    rows: Mapping[str, str]
    settings: Settings
    pictures: Mapping[str, Image.Image]
    log: Sequence[Mapping[str, float]] = ()

    @classmethod
    def of_training(
        cls, title: str, config: RunConfig, history: History, pictures: Mapping[str, Image.Image]
    ) -> CardSection:
        """That of a run of the engine, the curve of its loss among the pictures."""
        rows = {
            "steps": f"{history.step:,} of {config.steps:,}, batches of {config.batch_size}",
            "last loss": f"{history.lines[-1]['loss']:.4f}" if history.lines else "none logged",
            **circumstances(history.hours, history.hardware),
        }
        return cls(title, rows, config, {"loss over steps": loss_curve(history.lines), **pictures}, history.lines)


def circumstances(hours: float, hardware: str) -> dict[str, str]:
    """Rows on how long a run took, where, and with which software."""
    versions = ", ".join(f"{name} {_version(name)}" for name in ("scemae", "torch", "timm", "accelerate"))
    return {
        "hours": f"{hours:.2f}",
        "hardware": hardware,
        "software": f"Python {platform.python_version()}, {versions}",
        "git commit": git_commit(),
    }


def write_model(
    folder: Path, model: ModelConfig, tensors: Mapping[str, Tensor], chapter: CardSection, source: Path | None = None
) -> None:
    """Fill an empty folder with a model; tensors as float16.

    `source`: the model folder that the run started from; the chapters of its card, and the files that they link to,
    come first.
    """
    save_model(folder, {name: tensor.half() for name, tensor in tensors.items()}, model, card="")
    weights = folder / WEIGHTS
    card = model_card(model, file_sha256(weights), weights.stat().st_size)
    card += "" if source is None else copy_earlier_sections(source, folder)
    prefix = f"{card.count(RUN_HEADING) + 1}-{chapter.title.replace(' ', '-')}"
    card += f"\n{RUN_HEADING}{chapter.title}\n\n| | |\n|---|---|\n"
    card += "".join(f"| {name} | {value} |\n" for name, value in chapter.rows.items())
    for caption, picture in chapter.pictures.items():
        name = f"{prefix}-{caption.replace(' ', '-')}.png"
        picture.save(folder / name)
        card += f"\n![{caption}]({name})\n"
    if chapter.log:
        name = f"{prefix}-log.jsonl"
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in _thinned(chapter.log)), encoding="utf-8")
        card += f"\n[log]({name})\n"
    card += f"\n```json\n{chapter.settings.to_json()}\n```\n"
    (folder / CARD).write_text(card, encoding="utf-8")


def _thinned(lines: Sequence[Mapping[str, float]]) -> Sequence[Mapping[str, float]]:
    """At most LOGGED of them, evenly spaced, the last among them."""
    return lines[::-1][:: max(1, math.ceil(len(lines) / LOGGED))][::-1]


def git_commit() -> str:
    """The commit of the checkout that the package runs from; "-dirty" where files differ from it."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        subprocess.run([*git, "ls-files", "--error-unmatch", Path(__file__).name], capture_output=True, check=True)
        described = [*git, "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
        return subprocess.run(described, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "none (an installed package)"


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:  # a checkout that nobody installed
        return "(not installed)"


def loss_curve(lines: list[dict[str, float]]) -> Image.Image:
    """The loss (logarithmic) over the steps (linear), the ends of both axes written at them."""
    width, height = CURVE_SIZE
    left, top, right, bottom = 70, 20, width - 20, height - 36
    picture = Image.new("RGB", CURVE_SIZE, draw.BACKGROUND)
    pen = ImageDraw.Draw(picture)
    pen.line((left, top, left, bottom, right, bottom), fill=draw.INK)
    points = np.array([(line["step"], line["loss"]) for line in lines if line["loss"] > 0], dtype=np.float64)
    if not len(points):
        return picture
    steps, losses = points.T
    low, high = losses.min(), losses.max()
    across = left + (right - left) * steps / steps.max()
    down = top + (bottom - top) * np.log(high / losses) / max(np.log(high / low), 1e-9)
    pen.line(list(zip(across.tolist(), down.tolist(), strict=True)), fill=draw.palette(1)[0], width=2)
    for text, place, anchor in (
        (f"{high:.3g}", (left - 8, top), "rm"),
        (f"{low:.3g}", (left - 8, bottom), "rm"),
        (f"{int(steps.max()):,} steps", (right, bottom + 8), "ra"),
        ("loss", (left + 8, top), "lm"),
    ):
        draw.write(pen, place, text, 14, anchor)
    return picture


def view_picture(view: Tensor) -> Image.Image:
    """A view (3, H, W) of 0..1 (clipped) at twice its size."""
    pixels = (view.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    picture = Image.fromarray(pixels)
    return picture.resize((2 * picture.width, 2 * picture.height), Image.Resampling.NEAREST)
