"""One model of parts that were trained side by side: an aligner and a face finder do not depend on the backbone.

scemae train combine --model STAGE1 --aligner ALIGNED --finder FOUND --out MODEL
"""

from __future__ import annotations

import dataclasses
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

from scemae.errors import OptionError, OutputError
from scemae.output import atomic_folder, is_taken
from scemae.training.stage1 import DECODER
from scemae.weights.card import RUN_HEADING, copy_earlier_sections, linked_files, model_card, read_card
from scemae.weights.model_folder import CARD, WEIGHTS, file_sha256, read_config, read_file, save_model
from scemae.weights.zoo import locate_model


def combine_models(model: str, parts: Mapping[str, str], out: Path) -> str:
    """Write `model` with parts of other models, and how each was made on its card; returns the SHA-256 of the weights.

    Args:
        model: the source of everything else.
        parts: "aligner" or "finder" -> the model that it is taken from.
        out: the folder to write.

    Raises:
        OptionError: a model does not have the part, or sees inputs of another size.
        OutputError: `out` exists.
    """
    if is_taken(out):
        raise OutputError(f"{out} exists already; choose another path.")
    first = locate_model(model).folder
    config = read_config(first)
    tensors, _ = read_file(first / WEIGHTS)
    sources = {}
    for part, source in parts.items():
        sources[part] = locate_model(source).folder
        other = read_config(sources[part])
        if getattr(other, part) is None or other.input_size != config.input_size:
            raise OptionError(f"{source} has no {part} for inputs of {config.input_size} px.")
        config = dataclasses.replace(config, **{part: getattr(other, part)})
        theirs, _ = read_file(sources[part] / WEIGHTS)
        own = {name: tensor for name, tensor in tensors.items() if not name.startswith(f"{part}.")}
        tensors = own | {name: tensor for name, tensor in theirs.items() if name.startswith(f"{part}.")}
    with atomic_folder(out) as folder:
        save_model(folder, tensors, config, card="")
        weights = folder / WEIGHTS
        sha256 = file_sha256(weights)
        if (first / DECODER).exists():  # stage 1 can be continued from it
            shutil.copyfile(first / DECODER, folder / DECODER)
        card = model_card(config, sha256, weights.stat().st_size) + copy_earlier_sections(first, folder)
        for trained in sources.values():
            card += _copy_last_section(trained, folder, card.count(RUN_HEADING) + 1)
        (folder / CARD).write_text(card, encoding="utf-8")
    return sha256


def _copy_last_section(source: Path, folder: Path, number: int) -> str:
    """What the card in `source` says of its last run, as section `number`; the files it links to go into `folder`."""
    _, heading, section = read_card(source).rpartition(f"\n{RUN_HEADING}")
    for name in linked_files(section, source):
        renamed = re.sub(r"^\d+", str(number), name)
        shutil.copyfile(source / name, folder / renamed, follow_symlinks=False)
        section = section.replace(f"]({name})", f"]({renamed})")
    return heading + section
