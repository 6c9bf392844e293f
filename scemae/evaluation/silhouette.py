"""How well landmark descriptors cluster: t-SNE and silhouette coefficients (paper Fig. 5)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch.nn.functional as F
from PIL import Image
from tqdm.auto import tqdm

from scemae.datasets import FaceDataset
from scemae.errors import MissingExtraError, OptionError
from scemae.evaluation import paper_results
from scemae.evaluation.evaluation_folder import EvaluationFolder
from scemae.evaluation.result_table import PUBLISHED, Spread, Table
from scemae.evaluation.setup import EvaluationSetup, data_settings
from scemae.geometry import Array
from scemae.model.config import Use
from scemae.output import atomic_write
from scemae.plots import scatter_plot

DESCRIPTORS, PERPLEXITY = "descriptors.npz", 30


def silhouette_settings(
    setup: EvaluationSetup, dataset: FaceDataset, runs: int, perplexity: float = PERPLEXITY
) -> dict[str, Any]:
    """The settings of an evaluation by `embed_descriptors`; JSON-ready.

    Raises OptionError for a perplexity below 1, or more than a third of the landmarks.
    """
    most = (dataset.landmarks[..., 0].size - 1) // 3
    if perplexity == PERPLEXITY:
        perplexity = min(PERPLEXITY, most)
    if not 1 <= perplexity <= most:
        raise OptionError(f"--perplexity is {perplexity:g}; wanted 1 to {most}, a third of the landmarks.")
    return {
        "evaluation": "silhouette",
        **setup.settings(),
        "data": data_settings(dataset),
        "runs": runs,
        "perplexity": perplexity,
    }


def embed_descriptors(setup: EvaluationSetup, use: Use, dataset: FaceDataset, folder: EvaluationFolder) -> None:
    """Write the unit descriptors of all landmarks and a t-SNE embedding for each run, unless they are there."""
    try:
        from sklearn.manifold import TSNE
    except ImportError as error:
        raise MissingExtraError("t-SNE needs scikit-learn: pip install 'scemae[eval]'.") from error
    if not (folder.path / DESCRIPTORS).exists():
        _save_array(folder.path / DESCRIPTORS, "descriptors", _read_descriptors(setup, use, dataset))
    descriptors = _load_array(folder.path / DESCRIPTORS, "descriptors").reshape(-1, setup.descriptor_size(use))
    for number in tqdm(range(folder.settings["runs"]), unit="run", delay=2, disable=None):
        if not _embedding_path(folder, number).exists():
            perplexity = folder.settings["perplexity"]
            tsne = TSNE(2, perplexity=perplexity, init="random", learning_rate="auto", random_state=number)
            _save_array(_embedding_path(folder, number), "embedding", tsne.fit_transform(descriptors))


def silhouette_scores(folder: EvaluationFolder) -> dict[str, Any]:
    """Silhouette coefficients with the landmarks as classes: of the embeddings (Fig. 5) and of the descriptors."""
    from sklearn.metrics import silhouette_score

    descriptors = _load_array(folder.path / DESCRIPTORS, "descriptors")
    faces, count, _ = descriptors.shape
    labels = np.tile(np.arange(count), faces)
    embedded = [_load_array(_embedding_path(folder, number), "embedding") for number in range(folder.settings["runs"])]
    return {
        "faces": faces,
        "landmarks": count,
        "perplexity": folder.settings["perplexity"],
        "embedded": Spread.of([float(silhouette_score(places, labels)) for places in embedded]),
        "descriptors_cosine": float(silhouette_score(descriptors.reshape(len(labels), -1), labels, metric="cosine")),
    }


def silhouette_table(setup: EvaluationSetup, dataset: FaceDataset, scores: dict[str, Any]) -> Table:
    """What was measured, and the results of Fig. 5."""
    columns = ("method", "t-SNE", "t-SNE sd over runs", "descriptors, cosine")
    embedded: Spread = scores["embedded"]
    rows = [_table_row(str(setup), embedded.mean, embedded.sd, scores["descriptors_cosine"])]
    rows += [_table_row(f"{name}, {PUBLISHED}", *values, None) for name, values in paper_results.SILHOUETTE.items()]
    notes = (
        f"Silhouette coefficients of {scores['faces'] * scores['landmarks']:,} landmarks of {dataset}: of "
        f"{embedded.count} t-SNE embeddings with random starts, as published, and perplexity {scores['perplexity']:g}; "
        "and without t-SNE, which has no spread.",
        *dataset.notes,
    )
    title = f"Clusters of landmark descriptors on {dataset}"
    return Table(name="silhouette", title=title, columns=columns, rows=tuple(rows), notes=notes)


def plot_embedding(folder: EvaluationFolder, names: tuple[str, ...]) -> Image.Image:
    """The first t-SNE embedding (Fig. 5), one colour for each landmark."""
    places = _load_array(_embedding_path(folder, 0), "embedding").reshape(-1, len(names), 2)
    clusters = {name: places[:, k] for k, name in enumerate(names)}
    return scatter_plot(clusters, "t-SNE 1 (no unit)", "t-SNE 2 (no unit)")


def _table_row(method: str, mean: float, sd: float, cosine: float | None) -> tuple[Any, ...]:
    return (method, *(None if value is None or np.isnan(value) else f"{value:.3f}" for value in (mean, sd, cosine)))


def _read_descriptors(setup: EvaluationSetup, use: Use, dataset: FaceDataset) -> Array:
    """Unit descriptors (N, K, C), sampled at the labels."""
    parts, start = [], 0
    for features in tqdm(setup.stream(dataset), unit="batch", delay=2, disable=None):
        landmarks = dataset[start : start + len(features)].landmarks
        parts.append(F.normalize(features.descriptors(landmarks, use), dim=-1).numpy())
        start += len(features)
    return np.concatenate(parts)


def _embedding_path(folder: EvaluationFolder, number: int) -> Path:
    return folder.path / f"embedding-{number:03d}.npz"


def _save_array(path: Path, name: str, array: Array) -> None:
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        np.savez(file, **{name: array})  # type: ignore[arg-type]


def _load_array(path: Path, name: str) -> Array:
    with np.load(path) as arrays:
        return np.asarray(arrays[name])
