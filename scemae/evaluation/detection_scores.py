"""Scores and tables of landmark detection (paper Table 2, Table 3), from the file of predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from scemae.datasets import FaceDataset
from scemae.datasets.annotated_face import POSES
from scemae.evaluation import paper_results
from scemae.evaluation.evaluation_folder import EvaluationFolder
from scemae.evaluation.few_shot_detection import Fit
from scemae.evaluation.result_table import PUBLISHED, Spread, Table
from scemae.evaluation.setup import EvaluationSetup
from scemae.geometry import Array
from scemae.metrics import distance_between, normalised_errors

FAILURE = 10.0  # % of the inter-ocular distance: a face with a larger mean error counts as a failure
# The column of the paper's Table 2 to print beside a dataset; corrected labels of aflw_r have their own, "aflw_rc".
PUBLISHED_SETS = {
    "mafl": "mafl", "aflw_m": "aflw_m", "mtfl": "aflw_m", "aflw_r": "aflw_ro", "300w": "300w"
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class DetectionErrors:
    """Errors of N test faces, % of the inter-ocular distance; their mean is the NME.

    Attributes:
        by_fit: (N, K) for each detector.
        poses: (N,) keys of `POSES`, 0 where unknown.
    """

    by_fit: dict[Fit, Array]
    poses: Array

    @classmethod
    def from_predictions(cls, predictions: Sequence[dict[str, Any]], eyes: Sequence[int]) -> Self:
        """The errors of the predictions that `detect` wrote."""
        truth = np.array([face["truth"] for face in predictions])
        distances = distance_between(truth, *eyes)
        by_fit = {
            Fit.from_key(key): 100
            * normalised_errors(np.array([face["found"][key] for face in predictions]), truth, distances)
            for key in predictions[0]["found"]
        }
        return cls(by_fit, np.array([face["pose"] or 0 for face in predictions]))

    def draws(self, head: str, count: int) -> list[Array]:
        """Errors (N, K) of each draw of `count` annotated faces."""
        return [errors for fit, errors in self.by_fit.items() if (fit.head_name, fit.count) == (head, count)]

    def per_face(self, head: str, count: int) -> Array:
        """Mean error of each face in each draw, (draws * N,)."""
        return np.concatenate([errors.mean(axis=1) for errors in self.draws(head, count)])


def detection_scores(folder: EvaluationFolder) -> tuple[dict[str, Any], DetectionErrors]:
    """Scores by head and number of annotated faces, and the errors that they summarise."""
    errors = DetectionErrors.from_predictions(folder.read_predictions(), folder.settings["eyes"])
    scores: dict[str, Any] = {}
    for fit in map(Fit.from_key, folder.settings["fits"]):
        by_count = scores.setdefault(fit.head_name, {})
        if str(fit.count) not in by_count:
            by_count[str(fit.count)] = _score_draws(errors.draws(fit.head_name, fit.count), errors.poses)
    return {"faces": len(errors.poses), "heads": scores}, errors


def _score_draws(draws: list[Array], poses: Array) -> dict[str, Any]:
    """Scores of one head and number of annotated faces: `draws` of errors (N, K), `poses` (N,)."""
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
    """The NME by number of annotated faces, beside the paper's Table 2 and Table 3; and by pose, if known."""
    counts = list(dict.fromkeys(fit.count for fit in fits))
    headings = [f"{count} (all)" if count == len(pool) else str(count) for count in counts]
    measured = [
        (f"{head} on {setup}", *(by_count[str(count)]["inter_ocular_percent"] for count in counts))
        for head, by_count in scores["heads"].items()
    ]
    shared = len({sample.path for sample in pool.samples} & {sample.path for sample in test.samples})
    notes = [
        f"Mean error on the {scores['faces']:,} faces of {test}, % of the inter-ocular distance; ±: standard deviation "
        f"over draws of the annotated faces ({_list_draws(fits)}) from the {len(pool):,} of {pool}."
    ]
    if shared:
        notes.append(f"{shared:,} of these faces are in both: detectors are tested on faces they were fitted on.")
    if test.name == "mtfl" and len(pool) in counts:
        notes.append("The column of all annotations does not compare: the published results are fitted on other faces.")
    notes += dict.fromkeys([*pool.notes, *test.notes])
    rows = [*measured, *_published_rows(test, counts, len(pool))]
    table = Table(
        name="detection",
        title=f"Landmark detection on {test}",
        columns=("method", *headings),
        rows=tuple(rows),
        notes=tuple(notes),
    )
    by_pose = _pose_table(scores, test)
    return [table, by_pose] if by_pose.rows else [table]


def _list_draws(fits: list[Fit]) -> str:
    """How many draws there are of how many faces, such as "20 of 1; 5 of 5, 10"."""
    draws = {fit.count: 1 + max(other.draw for other in fits if other.count == fit.count) for fit in fits}
    return "; ".join(
        f"{times} of {', '.join(str(count) for count in draws if draws[count] == times)}"
        for times in dict.fromkeys(draws.values())
    )


def _published_rows(test: FaceDataset, counts: list[int], pool: int) -> list[tuple[Any, ...]]:
    """The rows of Table 3, and those of Table 2 if all annotations were used and it has a column for the test set."""
    rows: list[tuple[Any, ...]] = [
        (
            f"{method} {size}, {PUBLISHED} (AFLW_M)",
            *(None if count == pool else paper_results.few_shot_error(errors, count) for count in counts),
        )
        for (method, size), errors in paper_results.FEW_SHOT.items()
    ]
    name = "aflw_rc" if test.annotations else PUBLISHED_SETS.get(test.name)
    if pool not in counts or name is None:
        return rows
    column = paper_results.DETECTION_SETS.index(name)
    return rows + [
        (
            f"{method} {size}, {PUBLISHED} ({name})",
            *(Spread(errors[column]) if count == pool else None for count in counts),
        )
        for (method, size), errors in paper_results.DETECTION.items()
    ]


def _pose_table(scores: dict[str, Any], test: FaceDataset) -> Table:
    rows = [
        (f"{head}, {count} annotated", *by_count["by_pose"].values())
        for head, counts in scores["heads"].items()
        for count, by_count in counts.items()
        if by_count["by_pose"]
    ]
    sizes = {name: sum(sample.pose == pose for sample in test.samples) for pose, name in POSES.items()}
    headings = tuple(f"{name} ({size:,})" for name, size in sizes.items() if size)
    title = f"By pose, {test} (number of faces)"
    return Table(name="by_pose", title=title, columns=("method", *headings), rows=tuple(rows))
