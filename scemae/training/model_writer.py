"""A run's result: a model folder whose card says how it was made, with the log and the curve of its loss.

A card is published with the model, so its pictures show the sample faces, never those of the training data.
"""

from __future__ import annotations

import json
import math
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from PIL import Image
from torch import Tensor

from scemae.model.config import ModelConfig
from scemae.plots import line_plot
from scemae.training.recipe import History
from scemae.training.run_config import RunConfig
from scemae.training.training_config import TrainingConfig
from scemae.weights.card import RUN_HEADING, copy_earlier_sections, model_card
from scemae.weights.model_folder import CARD, WEIGHTS, file_sha256, save_model

MAX_LOG_LINES = 200  # that a model folder keeps


@dataclass(frozen=True, eq=False, kw_only=True)
class CardSection:
    """What a card says of one run."""

    title: str  # what was run, after "How it was made: "
    rows: Mapping[str, str]  # of its table
    config: TrainingConfig  # printed whole
    pictures: Mapping[str, Image.Image] = field(default_factory=dict)  # by caption
    log: Sequence[Mapping[str, float]] = ()  # the lines of the run's log

    @classmethod
    def of_training(
        cls, title: str, config: RunConfig, history: History, pictures: Mapping[str, Image.Image]
    ) -> CardSection:
        """The section of a run of the engine, with the curve of its loss among the pictures."""
        rows = {
            "steps": f"{history.step:,} of {config.steps:,}, batches of {config.batch_size}",
            "last loss": f"{history.lines[-1]['loss']:.4f}" if history.lines else "none logged",
            **describe_run(history.hours, history.hardware),
        }
        pictures = {"loss over steps": plot_loss(history.lines), **pictures}
        return cls(title=title, rows=rows, config=config, pictures=pictures, log=history.lines)


def describe_run(hours: float, hardware: str) -> dict[str, str]:
    """Rows of a card on how long a run took, where, and with which software."""
    versions = ", ".join(f"{name} {_package_version(name)}" for name in ("scemae", "torch", "timm", "accelerate"))
    return {
        "hours": f"{hours:.2f}",
        "hardware": hardware,
        "software": f"Python {platform.python_version()}, {versions}",
        "git commit": git_commit(),
    }


def write_model(
    folder: Path, model: ModelConfig, tensors: Mapping[str, Tensor], section: CardSection, source: Path | None = None
) -> None:
    """Fill an empty folder with a model; tensors as float16.

    `source`: the model folder that the run started from; the sections of its card, with the files that they link to,
    come first.
    """
    save_model(folder, {name: tensor.half() for name, tensor in tensors.items()}, model, card="")
    weights = folder / WEIGHTS
    card = model_card(model, file_sha256(weights), weights.stat().st_size)
    card += "" if source is None else copy_earlier_sections(source, folder)
    prefix = f"{card.count(RUN_HEADING) + 1}-{section.title.replace(' ', '-')}"
    card += f"\n{RUN_HEADING}{section.title}\n\n| | |\n|---|---|\n"
    card += "".join(f"| {name} | {value} |\n" for name, value in section.rows.items())
    for caption, picture in section.pictures.items():
        name = f"{prefix}-{caption.replace(' ', '-')}.png"
        picture.save(folder / name)
        card += f"\n![{caption}]({name})\n"
    if section.log:
        name = f"{prefix}-log.jsonl"
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in thin_log(section.log)), encoding="utf-8")
        card += f"\n[log]({name})\n"
    card += f"\n```json\n{section.config.to_json()}\n```\n"
    (folder / CARD).write_text(card, encoding="utf-8")


def thin_log(lines: Sequence[Mapping[str, float]]) -> Sequence[Mapping[str, float]]:
    """At most MAX_LOG_LINES of the lines, evenly spaced, with the last one."""
    return lines[::-1][:: max(1, math.ceil(len(lines) / MAX_LOG_LINES))][::-1]


def git_commit() -> str:
    """The commit of the checkout that the package runs from; "-dirty" where files differ from it."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        subprocess.run([*git, "ls-files", "--error-unmatch", Path(__file__).name], capture_output=True, check=True)
        described = [*git, "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
        return subprocess.run(described, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "none (an installed package)"


def _package_version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:  # a checkout that nobody installed
        return "(not installed)"


def plot_loss(lines: Sequence[Mapping[str, float]]) -> Image.Image:
    """The loss (logarithmic) over the steps; losses of 0 are left out."""
    shown = [line for line in lines if line["loss"] > 0]
    series = {"loss": ([line["step"] for line in shown], [line["loss"] for line in shown])}
    return line_plot(series, "step", "training loss", y_scale="log")


def draw_view(view: Tensor) -> Image.Image:
    """A view (3, H, W) of 0..1 (clipped) at twice its size."""
    pixels = (view.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    picture = Image.fromarray(pixels)
    return picture.resize((2 * picture.width, 2 * picture.height), Image.Resampling.NEAREST)
