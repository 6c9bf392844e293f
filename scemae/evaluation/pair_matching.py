"""Landmark matching on warped pairs (paper Sec. 4.1, Table 1): predictions to a file, scores from the file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from scemae import FaceFeatures, match_landmarks
from scemae.datasets import FaceDataset
from scemae.errors import OptionError
from scemae.evaluation import paper_results
from scemae.evaluation.evaluation_folder import EvaluationFolder
from scemae.evaluation.result_table import PUBLISHED, Spread, Table
from scemae.evaluation.setup import EvaluationSetup, data_settings
from scemae.evaluation.warped_pairs import BOX, FRAME, INSET, Pairs, Source, frozen_pairs
from scemae.geometry import Array
from scemae.metrics import distance_between, normalised_errors, pixel_errors

CHUNK = 8  # pairs looked at together
KINDS = ("same", "different")
CANONICAL = 69 / 95  # px of the published errors per input px, as CL has it; DVE's is 70 / 96


def matching_settings(
    setup: EvaluationSetup, dataset: FaceDataset, *, pairs: int, seeds: int, source: Source, rounded: bool, prior: float
) -> dict[str, Any]:
    """What a run of `match_pairs` is; raises OptionError where the data set has no two faces."""
    if len(dataset) < 2 or pairs < 1 or seeds < 1:
        raise OptionError(f"{pairs} pairs, {seeds} seeds of {len(dataset)} faces: there is nothing to match.")
    return {
        "evaluation": "matching",
        **setup.settings(),
        "data": data_settings(dataset),
        "eyes": list(dataset.eyes),
        "pairs": min(pairs, len(dataset) // 2),
        "seeds": seeds,
        "source": source,
        "rounded": rounded,
        "prior": prior,
    }


def match_pairs(
    setup: EvaluationSetup, dataset: FaceDataset, run: EvaluationFolder, frozen: Path | None = None
) -> None:
    """Write what is not written yet: a line for each pair and kind, landmarks in input px (96 x 96).

    The pairs are frozen in the run's folder, or in `frozen` to be shared with other runs.

    `origin` are the landmarks of the source, `truth` and `found` those of the target; `ties` marks where several
    places are the most similar ones, of which the first was taken; `perfect` is what the best of matchers would find,
    known for the same face only.
    """
    done = run.done()
    for seed in range(run.settings["seeds"]):
        todo = [i for i in range(run.settings["pairs"]) if f"{seed}/different/{i}" not in done]
        if not todo:
            continue
        pairs = run_pairs(run, dataset, seed, frozen)
        with tqdm(total=len(todo), unit="pair", desc=f"seed {seed}", delay=2, disable=None) as bar:
            for start in range(0, len(todo), CHUNK):
                chunk = todo[start : start + CHUNK]
                rows = _matched(setup, pairs, chunk, run)
                run.append({"key": f"{seed}/{row['kind']}/{row['pair']}", **row} for row in rows)
                bar.update(len(chunk))


def run_pairs(run: EvaluationFolder, dataset: FaceDataset, seed: int, frozen: Path | None = None) -> Pairs:
    """The pairs of a seed, as they were frozen; drawn and frozen if they were not."""
    path = (frozen or run.path) / f"pairs-{seed}.npz"
    return frozen_pairs(path, dataset, run.settings["pairs"], seed, run.settings["rounded"])


def source_warps(run: EvaluationFolder) -> int:
    """How many times the source of a pair is warped."""
    return 2 if run.settings["source"] == "twice" else 0


def _matched(setup: EvaluationSetup, pairs: Pairs, chunk: list[int], run: EvaluationFolder) -> Iterator[dict[str, Any]]:
    times = source_warps(run)
    sources, others = [2 * i for i in chunk], [2 * i + 1 for i in chunk]
    pictures = pairs.pictures(sources, times) + pairs.pictures(sources, 1) + pairs.pictures(others, 1)
    features = setup.features(pictures, [BOX] * len(pictures))
    for row, i in enumerate(chunk):
        reference, targets = features[row], features[[len(chunk) + row, 2 * len(chunk) + row]]
        origin = pairs.landmarks[times, 2 * i]
        matches = match_landmarks(
            reference,
            _in_view(reference, origin),
            targets,
            use=setup.use,
            prior=run.settings["prior"],
            keep_similarity=True,
        )
        assert matches.similarity is not None
        best = matches.similarity.max(axis=(-2, -1), keepdims=True)
        ties = (matches.similarity == best).sum(axis=(-2, -1)) > 1
        perfect = pairs.perfect(2 * i, times) - INSET
        for kind, target in enumerate((2 * i, 2 * i + 1)):
            yield {
                "kind": KINDS[kind],
                "pair": i,
                "source": pairs.dataset.samples[2 * i].path.name,
                "target": pairs.dataset.samples[target].path.name,
                "origin": origin - INSET,
                "truth": pairs.landmarks[1, target] - INSET,
                "found": matches.xy[kind] - INSET,
                "score": matches.scores[kind],
                "ties": ties[kind],
                "perfect": None if kind else perfect,
            }


def _in_view(features: FaceFeatures, xy: Array) -> Array:
    """Landmarks that lie outside the view, or outside the picture, moved to its edge: none is left out."""
    size = features.faces[0].crop.size
    inside = features.to_image(features.to_input(xy[None]).clip(0, size - 1))[0].clip(0, FRAME - 1)
    seen = np.abs(features.to_input(inside[None])[0] - features.to_input(xy[None])[0]).max(axis=1) < 1e-6
    return np.where(seen[:, None], xy, inside)


def matching_scores(run: EvaluationFolder) -> dict[str, Any]:
    """Errors of the predictions in a run's file, by kind."""
    rows = run.rows()
    return {kind: _scores([row for row in rows if row["kind"] == kind], run.settings["eyes"]) for kind in KINDS}


def _scores(rows: Sequence[dict[str, Any]], eyes: Sequence[int]) -> dict[str, Any]:
    seeds = np.array([int(row["key"].partition("/")[0]) for row in rows])
    found, truth, origin = (np.array([row[name] for row in rows]) for name in ("found", "truth", "origin"))
    best = np.array([row["perfect"] for row in rows], dtype=np.float64)
    errors, still = pixel_errors(found, truth), pixel_errors(origin, truth)
    relative = 100 * normalised_errors(found, truth, distance_between(truth, *eyes))

    def spread(values: Array) -> Spread:
        return Spread.of([float(values[seeds == seed].mean()) for seed in np.unique(seeds)])

    return {
        "pairs": len(rows),
        "canonical_px": spread(CANONICAL * errors),
        "dve_px": spread(70 / 96 * errors),
        "input_px": spread(errors),
        "inter_ocular_percent": spread(relative),
        "inter_ocular_percent_median": float(np.median(relative)),
        "standard_error_canonical_px": float(CANONICAL * errors.mean(axis=1).std(ddof=1) / len(rows) ** 0.5)
        if len(rows) > 1
        else None,
        "canonical_px_by_landmark": (CANONICAL * errors.mean(axis=0)).tolist(),
        "no_motion_canonical_px": spread(CANONICAL * still),
        "perfect_canonical_px": spread(CANONICAL * pixel_errors(best, truth)) if best.ndim == 3 else None,
        "ties": float(np.mean([row["ties"] for row in rows])),
    }


COLUMNS = ("method", "dim.", "same", "different", "same, input px", "different, input px", "same, %", "different, %")


def score_row(setup: EvaluationSetup, prior: float, scores: dict[str, Any]) -> tuple[Any, ...]:
    """One row of `COLUMNS` from `matching_scores`."""
    names = ("canonical_px", "input_px", "inter_ocular_percent")
    label = f"{setup}, prior {prior:g} px" if prior else str(setup)
    return (
        label,
        str(setup.dimensions(setup.use or "backbone")),
        *(scores[kind][name] for name in names for kind in KINDS),
    )


def matching_table(setup: EvaluationSetup, dataset: FaceDataset, prior: float, scores: dict[str, Any]) -> Table:
    """What was measured, "no motion" on the same pairs, and the paper's Table 1."""
    still = [scores[kind]["no_motion_canonical_px"] for kind in KINDS]
    rows = [score_row(setup, prior, scores), ("no motion", "", *still, *[None] * 4)]
    rows.append(("perfect match, whole pixels", "", scores["same"]["perfect_canonical_px"], *[None] * 5))
    rows += [
        (f"{method}, {PUBLISHED} (MAFL)", str(size), Spread(same), Spread(different), *[None] * 4)
        for (method, size), (same, different) in paper_results.MATCHING.items()
    ]
    notes = (
        f"{scores['same']['pairs']} pairs of {dataset} of each kind. same, different: mean error in px of the 70 px "
        "frame (69/95 of an input px), as published; ±: standard deviation over warp seeds.",
        f"Most similar place not unique: {100 * scores['same']['ties']:.1f} % (same), "
        f"{100 * scores['different']['ties']:.1f} % (different) of the landmarks.",
        *dataset.notes,
    )
    return Table("matching", f"Landmark matching on {dataset}", COLUMNS, tuple(rows), notes)
