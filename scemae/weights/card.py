"""Model cards, generated from config.json, the header of a detector and the hashes of the files, never by hand."""

from __future__ import annotations

import hashlib
import re
import shutil
from pathlib import Path
from typing import Any

from scemae.model.config import ModelConfig
from scemae.weights.model_folder import CARD

FILE_ROW = re.compile(r"^\| ([\w-]+\.(?:safetensors|json)) \| [\d,]+ bytes, SHA-256 `([0-9a-f]{64})` \|$", re.M | re.A)
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
    projector = f"1 x 1, {config.projector_dim} dimensions" if config.projector_dim else "none"
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
| training data | {config.training_data} |
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
| landmarks | {", ".join(header["names"] or ["not named"])} |
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


def find_card_hashes(card: str) -> dict[str, str]:
    """File name -> SHA-256, as a card's table states them."""
    return dict(FILE_ROW.findall(card))


def read_card_hashes(folder: Path) -> dict[str, str]:
    """File name -> SHA-256, as the card in a folder states them; empty without a card of ours."""
    card = folder / CARD
    return find_card_hashes(card.read_text(encoding="utf-8", errors="replace")) if card.is_file() else {}


def linked_files(card: str, folder: Path) -> list[str]:
    """Names of the pictures and logs that a card shows or links to and that are in its folder."""
    return [name for name in LINKED.findall(card) if (folder / name).is_file()]


def copy_earlier_sections(source: Path, folder: Path) -> str:
    """The sections of the card in `source` that tell how the model was made; files they link to go into `folder`."""
    if not (source / CARD).is_file():
        return ""
    card = (source / CARD).read_text(encoding="utf-8")
    sections = card[card.find(f"\n{RUN_HEADING}") :] if RUN_HEADING in card else ""
    for name in linked_files(sections, source):
        shutil.copyfile(source / name, folder / name)
    return sections


def _file_row(name: str, size: int, sha256: str) -> str:
    return f"| {name} | {size:,} bytes, SHA-256 `{sha256}` |"
