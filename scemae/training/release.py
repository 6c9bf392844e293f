"""A run's result: a model folder whose card says how it was made, and the curve of its loss."""

from __future__ import annotations

import platform
import shutil
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

from scemae import draw
from scemae.card import model_card
from scemae.checkpoint import CARD, WEIGHTS, file_sha256, save_model
from scemae.config import ModelConfig
from scemae.training.config import RunConfig
from scemae.training.engine import History

LOSS_CURVE = "loss.png"
CURVE_SIZE = (720, 320)


def write_model(
    folder: Path, model: ModelConfig, tensors: Mapping[str, Tensor], config: RunConfig, history: History
) -> None:
    """Write a model folder in the place of an older one of the same run; tensors as float16."""
    shutil.rmtree(folder, ignore_errors=True)
    save_model(folder, {name: tensor.half() for name, tensor in tensors.items()}, model, card="")
    weights = folder / WEIGHTS
    card = model_card(model, file_sha256(weights), weights.stat().st_size)
    (folder / CARD).write_text(card + run_section(config, history), encoding="utf-8")
    loss_curve(history.lines).save(folder / LOSS_CURVE)


def run_section(config: RunConfig, history: History) -> str:
    """The part of a card that says how the model was trained: steps, hours, hardware, versions, every setting."""
    loss = f"{history.lines[-1]['loss']:.4f}" if history.lines else "none logged"
    versions = ", ".join(f"{name} {_version(name)}" for name in ("scemae", "torch", "timm", "accelerate"))
    return f"""
## How it was trained

| | |
|---|---|
| steps | {history.step:,} of {config.steps:,}, batches of {config.batch_size} |
| last loss | {loss} |
| hours | {history.hours:.2f} |
| hardware | {history.hardware} |
| software | Python {platform.python_version()}, {versions} |
| git commit | {git_commit()} |
| seed | {config.seed} |

![loss over steps]({LOSS_CURVE})

```json
{config.to_json()}
```
"""


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
