"""Model cards, generated from config.json, the header of a detector and the hashes of the files, never by hand."""

from __future__ import annotations

import hashlib
import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple

from scemae.errors import WeightsIntegrityError, escape_controls
from scemae.model.config import ModelConfig
from scemae.weights.model_folder import CARD, CONFIG, REGRESSOR, TEXT_LIMIT, WEIGHTS

FILE_ROW = re.compile(
    r"^\| ([\w-]+\.(?:safetensors|json)) \| ([\d,]{1,19}) bytes, SHA-256 `([0-9a-f]{64})` \|$", re.M | re.A
)
OURS = re.compile(r"^library_name: scemae$", re.M)
LINKED = re.compile(r"\]\(([\w-]+\.(?:png|jsonl))\)", re.A)
RUN_HEADING = "## How it was made: "  # of a section of a model's card
PURPOSE = """\
Use it to locate points on faces: to match landmarks between pictures, and to train a landmark detector from a few
annotated faces. It is not for identification, for inferring emotions or character, or for surveillance. Its accuracy
for different groups of people has not been measured.
"""


def model_card(config: ModelConfig, weights_sha256: str, weights_bytes: int) -> str:
    """The README.md of a model folder: Hub metadata, what the model is, how to load it, what it is for and not for."""
    aligner = "learned without labels" if config.aligner else "none"
    finder = "learned without labels" if config.finder else "none"
    projector = f"1 x 1, {config.projector_dim} dimensions" if config.projector_dim else "none"
    dense_shape = "" if config.dense_shape is None else "| dense shape | learned without labels |\n"
    text = config.to_json().encode()
    return f"""---
library_name: scemae
pipeline_tag: keypoint-detection
license: {config.license.lower()}
license_link: {config.license_link}
tags: [face, landmarks, self-supervised, masked-autoencoder]
---

# {config.name}

{config.description}

| | |
|---|---|
| backbone | {config.architecture}, {config.params:,} parameters |
| input | {config.input_size} x {config.input_size} px, patches of {config.patch_size} px |
| projector | {projector} |
| alignment | {aligner} |
| face finder | {finder} |
{dense_shape}| training data | {config.training_data} |
| images seen | {config.images_seen:,} |
| licence of the weights | {config.license} ({config.license_link}) |
{_file_row("model.safetensors", weights_bytes, weights_sha256)}
{_file_row("config.json", len(text), hashlib.sha256(text).hexdigest())}

```python
import scemae

model = scemae.{load_call(config.name)}
```

{PURPOSE}"""


def regressor_card(header: dict[str, Any], held_out_error: float, repo: str, sha256: str, size: int) -> str:
    """The README.md of a landmark detector on the Hub.

    Args:
        header: the JSON in the detector's file.
        held_out_error: as a fraction of the length that `error_unit` names; nan if it is not known.
        repo: "ORG/REPO".
        sha256, size: of the detector's file; the size in bytes.
    """
    from scemae.metrics import error_unit  # brings numpy, which `scemae models` does without

    kind = header["kind"]
    faces = "1 annotated face" if header["faces"] == 1 else f"{header['faces']} annotated faces"
    of = error_unit(header["asked"]["normalizer"], header["landmarks"])
    error = "not known" if held_out_error != held_out_error else f"{100 * held_out_error:.2f} % of {of}"
    return f"""---
library_name: scemae
pipeline_tag: keypoint-detection
tags: [face, landmarks, few-shot]
---

# {repo.rpartition("/")[2]}

A detector of {header["landmarks"]} facial landmarks, fitted on {faces}.

| | |
|---|---|
| landmarks | {escape_controls(", ".join(header["names"] or ["not named"]))} |
| error on held-out faces | {error} |
| features | {kind["model"][0]} (SHA-256 `{kind["model"][1]}`), {header["use"]}, expansion {kind["expansion"]} |
| head | {header["head"]} |
{_file_row("regressor.safetensors", size, sha256)}

```python
from scemae import LandmarkRegressor

regressor = LandmarkRegressor.load("hf-hub:{repo}")
```

{PURPOSE}"""


def load_call(source: str) -> str:
    """The call that loads a model, as its card shows it."""
    return f'load_model("{source}")'


class StatedFile(NamedTuple):
    """What a card states of a file."""

    sha256: str
    size: int  # in bytes


def find_stated_files(card: str, where: object = "The card") -> dict[str, StatedFile]:
    """File name -> what a card's table states of it; empty where the card is not one of ours.

    Raises WeightsIntegrityError, which names `where`, if a card of ours lacks a row: without it nothing is checked.
    """
    rows = FILE_ROW.findall(card)
    found = {name: StatedFile(sha256, int(size.replace(",", "") or 0)) for name, size, sha256 in rows}
    complete = REGRESSOR in found or found.keys() >= {WEIGHTS, CONFIG}
    if len(found) < len(rows) or (not complete and (found or OURS.search(card))):
        raise WeightsIntegrityError(
            f"{where} is damaged or was altered: its rows of files, sizes and SHA-256 are for "
            f"{', '.join(row[0] for row in rows) or 'none'}; wanted one each for {WEIGHTS} and {CONFIG}, or for "
            f"{REGRESSOR}. Get it again; or, if you changed the files, remove the card."
        )
    return found


def find_card_hashes(card: str) -> dict[str, str]:
    """File name -> SHA-256, as a card's table states them; errors are those of `find_stated_files`."""
    return {name: file.sha256 for name, file in find_stated_files(card).items()}


def read_card(folder: Path) -> str:
    """The text of the card in a folder, "" if there is none; raises WeightsIntegrityError where it cannot be read."""
    card = folder / CARD
    if not card.is_file():
        return ""
    try:
        with card.open(encoding="utf-8", errors="replace") as file:
            text = file.read(TEXT_LIMIT + 1)
    except OSError as error:
        raise WeightsIntegrityError(f"{card} cannot be read: {error}.") from error
    if len(text) > TEXT_LIMIT:
        raise WeightsIntegrityError(f"{card} is too long: a card has at most {TEXT_LIMIT:,} characters. Get it again.")
    return text


def read_stated_files(folder: Path) -> dict[str, StatedFile]:
    """What the card in a folder states of files; empty without a card of ours."""
    return find_stated_files(read_card(folder), folder / CARD)


def read_card_hashes(folder: Path) -> dict[str, str]:
    """File name -> SHA-256, as the card in a folder states them; empty without a card of ours."""
    return {name: file.sha256 for name, file in read_stated_files(folder).items()}


def linked_files(card: str, folder: Path) -> list[str]:
    """Names of the pictures and logs that a card shows or links to and that are in its folder."""
    return [name for name in LINKED.findall(card) if (folder / name).is_file()]


def copy_earlier_sections(source: Path, folder: Path) -> str:
    """The sections of the card in `source` that tell how the model was made; files they link to go into `folder`."""
    card = read_card(source)
    sections = card[card.find(f"\n{RUN_HEADING}") :] if RUN_HEADING in card else ""
    for name in linked_files(sections, source):
        shutil.copyfile(source / name, folder / name, follow_symlinks=False)  # a link may lead to a private file
    return sections


def _file_row(name: str, size: int, sha256: str) -> str:
    return f"| {name} | {size:,} bytes, SHA-256 `{sha256}` |"
