"""Scores and tables of landmark detection, from the predictions' file."""

from __future__ import annotations

from typing import Any

import numpy as np

from scemae.datasets import FaceDataset
from scemae.datasets.sample import POSES
from scemae.evaluation import paper_results
from scemae.evaluation.evaluation_folder import EvaluationFolder
from scemae.evaluation.few_shot_detection import FAILURE, Errors, Fit
from scemae.evaluation.result_table import PUBLISHED, Spread, Table
from scemae.evaluation.setup import EvaluationSetup
from scemae.geometry import Array


def detection_scores(run: EvaluationFolder) -> tuple[dict[str, Any], Errors]:
    """By head and number of annotated faces; all of it from the run's file."""
    errors = Errors.of(run.rows(), run.settings["eyes"])
    scores: dict[str, Any] = {}
    for head, count in _methods(run):
        scores.setdefault(head, {})[str(count)] = _scores(errors.draws(head, count), errors.poses)
    return {"faces": len(errors.poses), "heads": scores}, errors


def _methods(run: EvaluationFolder) -> list[tuple[str, int]]:
    fits = [fit.split("/") for fit in run.settings["fits"]]
    return list(dict.fromkeys((head, int(count)) for head, count, _ in fits))


def _scores(draws: list[Array], poses: Array) -> dict[str, Any]:
    faces = np.mean(draws, axis=0).mean(axis=1)
    per_face = [errors.mean(axis=1) for errors in draws]
    return {
        "inter_ocular_percent": Spread.of([errors.mean() for errors in draws]),
        "standard_error": float(faces.std(ddof=1) / len(faces) ** 0.5) if len(faces) > 1 else None,
        "median_face": Spread.of([float(np.median(values)) for values in per_face]),
        f"faces_above_{FAILURE:g}_percent": Spread.of([100 * float((values > FAILURE).mean()) for values in per_face]),
        "by_landmark": np.mean(draws, axis=(0, 1)).tolist(),
        "by_pose": {
            POSES[pose]: Spread.of([errors[poses == pose].mean() for errors in draws])
            for pose in POSES
            if (poses == pose).any()
        },
    }


def detection_tables(
    setup: EvaluationSetup, pool: FaceDataset, test: FaceDataset, fits: list[Fit], scores: dict[str, Any]
) -> list[Table]:
    """Error by number of annotated faces, with the paper's Tables 2 and 3 beside it; and by pose, if known."""
    counts = list(dict.fromkeys(fit.count for fit in fits))
    headings = [f"{count} (all)" if count == len(pool) else str(count) for count in counts]
    measured = [
        (f"{head} on {setup}", *(by_count[str(count)]["inter_ocular_percent"] for count in counts))
        for head, by_count in scores["heads"].items()
    ]
    shared = len({sample.path for sample in pool.samples} & {sample.path for sample in test.samples})
    notes = (
        f"Mean error on the {scores['faces']:,} faces of {test}, % of the inter-ocular distance; ±: standard deviation "
        f"over draws of the annotated faces (20 of one face, 5 of more) from the {len(pool):,} of {pool}.",
        *(
            [f"{shared:,} of these faces are in both: detectors are tested on some that they learned."]
            if shared
            else []
        ),
        *(
            ["The column of all annotations does not compare: the published pool is another."]
            if test.name == "mtfl" and len(pool) in counts
            else []
        ),
        *dict.fromkeys([*pool.notes, *test.notes]),
    )
    rows = [*measured, *_published(test, counts, len(pool))]
    tables = [Table("detection", f"Landmark detection on {test}", ("method", *headings), tuple(rows), notes)]
    by_pose = _by_pose(scores, test)
    return [*tables, by_pose] if by_pose.rows else tables


def _published(test: FaceDataset, counts: list[int], pool: int) -> list[tuple[Any, ...]]:
    few = [
        (f"{method} {size}, {PUBLISHED} (AFLW_M)", *(_few(values, count, pool) for count in counts))
        for (method, size), values in paper_results.FEW_SHOT.items()
    ]
    if pool not in counts:
        return few
    sets = {"mafl": 0, "aflw_m": 1, "mtfl": 1, "aflw_r": 2, "300w": 4}
    column = 3 if any("Labels from" in note for note in test.notes) else sets.get(test.name, 0)
    name = paper_results.DETECTION_SETS[column]
    return few + [
        (f"{method} {size}, {PUBLISHED} ({name})", *(Spread(values[column]) if c == pool else None for c in counts))
        for (method, size), values in paper_results.DETECTION.items()
    ]


def _few(values: Any, count: int, pool: int) -> Spread | None:
    known = count in paper_results.FEW_SHOT_COUNTS and count != pool
    return paper_results.spread(values[paper_results.FEW_SHOT_COUNTS.index(count)]) if known else None


def _by_pose(scores: dict[str, Any], test: FaceDataset) -> Table:
    rows = [
        (f"{head}, {count} annotated", *by_count["by_pose"].values())
        for head, counts in scores["heads"].items()
        for count, by_count in counts.items()
        if by_count["by_pose"]
    ]
    sizes = {name: sum(sample.pose == pose for sample in test.samples) for pose, name in POSES.items()}
    headings = tuple(f"{name} ({size:,})" for name, size in sizes.items() if size)
    return Table("by_pose", f"By pose, {test} (number of faces)", ("method", *headings), tuple(rows))
