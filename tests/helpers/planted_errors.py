"""Errors on held-out faces that are as far off as they are expected to be."""

import numpy as np

from scemae.detector.error_model import HeldOut


def plant_held_out(rng, faces, lengths=(1.0, 2.0, 1.5, 1.0, 0.5), power=1.0, told=True):
    """Errors of points whose expected error is known: `lengths` times a power of the doubt."""
    doubt = np.exp(rng.uniform(-2.5, -0.5, (faces, len(lengths))))
    noise = np.linalg.norm(rng.normal(size=(*doubt.shape, 2)), axis=-1) / np.sqrt(np.pi / 2)  # of mean 1
    errors = np.asarray(lengths) * doubt**power * noise
    return HeldOut(errors=errors, confidence=1 - doubt if told else doubt * np.nan, groups=np.arange(faces))
