"""Publishing a trained model: its configuration with the publisher's changes, and a card with what was measured.

scemae train publish --model MODEL --out FOLDER --measured OUT
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scemae.errors import OptionError, OutputError, RunError
from scemae.evaluation.evaluation_folder import SETTINGS, TABLES
from scemae.output import atomic_folder, check_own, is_taken
from scemae.weights.card import copy_earlier_sections, model_card
from scemae.weights.model_folder import CARD, CONFIG, WEIGHTS, file_sha256, read_config
from scemae.weights.zoo import locate_model


def publish_model(
    source: str, out: Path, changes: Mapping[str, Any], measured: Sequence[Path], notes: str, overwrite: bool = False
) -> dict[str, tuple[str, int]]:
    """Write the weights of `source` unchanged, its configuration with `changes` to its fields, and a card.

    The card has the tables of `measured` (folders of `scemae eval`), then `notes`, then the sections of the card of
    `source`. Returns SHA-256 and size by file.

    Raises:
        OptionError: features that the model does not have.
        OutputError: `out` exists and is not a model to overwrite.
        RunError: a folder of `measured` is not an evaluation of these weights.
    """
    folder = locate_model(source).folder
    config = dataclasses.replace(read_config(folder), **changes)
    uses = {config.matching_use, config.regression_use, config.few_shot_use}
    if config.projector_dim is None and uses != {"backbone"}:
        raise OptionError(f"{source} has no projector; its only features are 'backbone'.")
    if is_taken(out) and not (overwrite and (out / CONFIG).is_file()):
        raise OutputError(f"{out} exists already; choose another path, or --overwrite a model.")
    if out.exists():
        check_own(out, (CONFIG, WEIGHTS, CARD, "*.png", "*.jsonl"))
    sha256 = file_sha256(folder / WEIGHTS)
    tables = "\n".join(_read_tables(path, sha256) for path in measured)
    with atomic_folder(out) as new:
        shutil.copyfile(folder / WEIGHTS, new / WEIGHTS)
        (new / CONFIG).write_text(config.to_json(), encoding="utf-8", newline="\n")
        files = {name: (file_sha256(new / name), (new / name).stat().st_size) for name in (WEIGHTS, CONFIG)}
        card = model_card(config, *files[WEIGHTS])
        card += f"\n## What was measured\n\n{tables}" if tables else ""
        card += f"\n{notes.strip()}\n" if notes.strip() else ""
        (new / CARD).write_text(card + copy_earlier_sections(folder, new), encoding="utf-8")
    return files


def _read_tables(evaluation: Path, sha256: str) -> str:
    """The tables of an evaluation, in Markdown; raises RunError unless it measured the weights with this hash."""
    try:
        settings = json.loads((evaluation / SETTINGS).read_text(encoding="utf-8"))
        tables = (evaluation / TABLES).read_text(encoding="utf-8")
    except OSError as error:
        raise RunError(f"{evaluation} is not a finished evaluation: {error}. Make one with scemae eval.") from error
    if settings.get("sha256") != sha256:
        raise RunError(f"{evaluation} measured other weights, {settings.get('sha256')}; these are {sha256}.")
    return f"`scemae eval {settings['evaluation']}`, {settings['dtype']}:\n\n{tables.strip()}\n"
