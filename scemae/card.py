"""Model cards, written from config.json and the weights' hash, never by hand."""

from __future__ import annotations

from scemae.config import ModelConfig


def model_card(config: ModelConfig, weights_sha256: str, weights_bytes: int) -> str:
    """The README.md of a model folder: Hub metadata, what the model is, what it is not, how to use it."""
    aligner = "learned without labels" if config.aligner else "none"
    projector = f"1 x 1, {config.projector_dim} dimensions" if config.projector_dim else "none"
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
| model.safetensors | {weights_bytes:,} bytes, SHA-256 `{weights_sha256}` |

```python
import scemae

model = scemae.load_model("{config.name}")
```

It is for finding points of faces: matching landmarks between pictures, and fitting a landmark detector on a few
annotated ones. It is not for identification, not for reading emotions or character, and not for surveillance. How
well it works for different groups of people has not been measured.
"""
