"""How well descriptors of landmarks cluster: t-SNE and silhouette coefficients (paper Fig. 5)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch.nn.functional as F
from PIL import Image
from tqdm.auto import tqdm

from scemae import draw
from scemae.datasets import FaceDataset
from scemae.errors import MissingExtraError
from scemae.evaluation import paper_results
from scemae.evaluation.evaluation_folder import EvaluationFolder
from scemae.evaluation.result_table import PUBLISHED, Spread, Table
from scemae.evaluation.setup import EvaluationSetup, data_settings
from scemae.geometry import Array
from scemae.model.config import Use
from scemae.output import atomic_write

DESCRIPTORS, PERPLEXITY = "descriptors.npz", 30
PLOT = 640  # px


def silhouette_settings(setup: EvaluationSetup, dataset: FaceDataset, runs: int) -> dict[str, Any]:
    """What a run of `embed` is."""
    return {"evaluation": "silhouette", **setup.settings(), "data": data_settings(dataset), "runs": runs}


def embed(setup: EvaluationSetup, use: Use, dataset: FaceDataset, run: EvaluationFolder) -> None:
    """Write what is not written yet: the unit descriptors of all landmarks, and for each run its t-SNE embedding."""
    try:
        from sklearn.manifold import TSNE
    except ImportError as error:
        raise MissingExtraError("t-SNE needs scikit-learn: pip install 'scemae[eval]'.") from error
    if not (run.path / DESCRIPTORS).exists():
        _save(run.path / DESCRIPTORS, descriptors=_descriptors(setup, use, dataset))
    descriptors = _load(run.path / DESCRIPTORS, "descriptors").reshape(-1, setup.dimensions(use))
    perplexity = min(PERPLEXITY, (len(descriptors) - 1) // 3)
    for number in tqdm(range(run.settings["runs"]), unit="run", delay=2, disable=None):
        if not _embedding(run, number).exists():
            tsne = TSNE(2, perplexity=perplexity, init="random", learning_rate="auto", random_state=number)
            _save(_embedding(run, number), embedding=tsne.fit_transform(descriptors))


def silhouette_scores(run: EvaluationFolder) -> dict[str, Any]:
    """Silhouettes with the landmarks as classes: of the embeddings (as in Fig. 5) and of the descriptors."""
    from sklearn.metrics import silhouette_score

    descriptors = _load(run.path / DESCRIPTORS, "descriptors")
    faces, count, _ = descriptors.shape
    labels = np.tile(np.arange(count), faces)
    embedded = [_load(_embedding(run, number), "embedding") for number in range(run.settings["runs"])]
    return {
        "faces": faces,
        "landmarks": count,
        "embedded": Spread.of([float(silhouette_score(places, labels)) for places in embedded]),
        "descriptors_cosine": float(silhouette_score(descriptors.reshape(len(labels), -1), labels, metric="cosine")),
    }


def silhouette_table(setup: EvaluationSetup, dataset: FaceDataset, scores: dict[str, Any]) -> Table:
    """What was measured beside Fig. 5."""
    columns = ("method", "t-SNE", "t-SNE sd over runs", "descriptors, cosine")
    embedded: Spread = scores["embedded"]
    rows = [_row(str(setup), embedded.mean, embedded.sd, scores["descriptors_cosine"])]
    rows += [_row(f"{name}, {PUBLISHED}", *values, None) for name, values in paper_results.SILHOUETTE.items()]
    notes = (
        f"Silhouette coefficients of {scores['faces'] * scores['landmarks']:,} landmarks of {dataset}: of "
        f"{embedded.count} t-SNE embeddings with random starts, as published, and without t-SNE, which has no spread.",
        *dataset.notes,
    )
    return Table("silhouette", f"Clusters of landmark descriptors on {dataset}", columns, tuple(rows), notes)


def plot(run: EvaluationFolder, names: tuple[str, ...]) -> Image.Image:
    """The first embedding, one colour for each landmark."""
    places = _load(_embedding(run, 0), "embedding")
    low, high = places.min(axis=0), places.max(axis=0)
    xy = 20 + (places - low) / np.maximum(high - low, 1e-9) * (PLOT - 40)
    canvas = np.full((PLOT, PLOT, 3), draw.BACKGROUND, dtype=np.uint8)
    columns, rows = xy.round().astype(int).T
    colours = np.array(draw.palette(len(names)))[np.arange(len(places)) % len(names)]
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            canvas[rows + dy, columns + dx] = colours
    return draw.row([Image.fromarray(canvas), draw.legend(names, PLOT)])


def _row(method: str, mean: float, sd: float, cosine: float | None) -> tuple[Any, ...]:
    return (method, *(None if value is None or np.isnan(value) else f"{value:.3f}" for value in (mean, sd, cosine)))


def _descriptors(setup: EvaluationSetup, use: Use, dataset: FaceDataset) -> Array:
    """Unit descriptors (N, K, C), read at the labels."""
    parts, start = [], 0
    for features in tqdm(setup.stream(dataset), unit="batch", delay=2, disable=None):
        landmarks = dataset[start : start + len(features)].landmarks
        parts.append(F.normalize(features.descriptors(landmarks, use), dim=-1).numpy())
        start += len(features)
    return np.concatenate(parts)


def _embedding(run: EvaluationFolder, number: int) -> Path:
    return run.path / f"embedding-{number:03d}.npz"


def _save(path: Path, **arrays: Array) -> None:
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def _load(path: Path, name: str) -> Array:
    with np.load(path) as arrays:
        return np.asarray(arrays[name])
