"""Landmark matching on warped pairs (paper Sec. 4.1, Table 1): predictions to a file, scores from the file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
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
from scemae.evaluation.warped_pairs import BOX, FRAME, INSET, Source, WarpedPairs, load_or_draw_pairs
from scemae.geometry import Array
from scemae.matching import validate_prior
from scemae.metrics import distance_between, normalised_errors, pixel_errors

CHUNK = 8  # pairs extracted and matched together
KINDS = ("same", "different")
CANONICAL = 69 / 95  # px of the published errors per input px, as in CL; DVE has 70 / 96


@dataclass(frozen=True, kw_only=True)
class PairOptions:
    """Which pairs are matched.

    Attributes:
        pairs: number of each kind, at most half the number of faces.
        seeds: how many times the warps are drawn.
        source: the source is warped twice ("twice") or not at all ("original").
        rounded: landmarks are rounded to whole pixels by each warp.
    """

    pairs: int
    seeds: int
    source: Source
    rounded: bool


def matching_settings(
    setup: EvaluationSetup, dataset: FaceDataset, options: PairOptions, prior: float | None
) -> dict[str, Any]:
    """The settings of an evaluation by `match_pairs`; JSON-ready. `prior` None: matched by the dense shape.

    Raises OptionError if there is nothing to match.
    """
    if prior is not None:
        validate_prior(prior)
    if len(dataset) < 2 or options.pairs < 1 or options.seeds < 1:
        raise OptionError(
            f"{options.pairs} pairs, {options.seeds} seeds of {len(dataset)} faces: there is nothing to match."
        )
    return {
        "evaluation": "matching",
        **setup.settings(),
        "data": data_settings(dataset),
        "eyes": list(dataset.eyes),
        **asdict(options),
        "pairs": min(options.pairs, len(dataset) // 2),
        "prior": prior,
    }


def match_pairs(
    setup: EvaluationSetup, dataset: FaceDataset, folder: EvaluationFolder, pairs_folder: Path | None = None
) -> None:
    """Write a line for each pair and kind that has none yet; landmarks in input px (96 x 96).

    `origin`: landmarks of the source. `truth`, `found`: those of the target. `ties`: several positions are
    tied for the most similar, and the first was taken. `perfect`: what a perfect matcher finds, known for the same
    face only.

    The warps are saved in the evaluation's folder, or in `pairs_folder` to be shared with other evaluations.
    """
    finished = folder.read_finished_keys()
    for seed in range(folder.settings["seeds"]):
        todo = [i for i in range(folder.settings["pairs"]) if f"{seed}/different/{i}" not in finished]
        if not todo:
            continue
        pairs = open_pairs(folder, dataset, seed, pairs_folder)
        with tqdm(total=len(todo), unit="pair", desc=f"seed {seed}", delay=2, disable=None) as bar:
            for start in range(0, len(todo), CHUNK):
                chunk = todo[start : start + CHUNK]
                rows = _match_chunk(setup, pairs, chunk, folder)
                folder.append({"key": f"{seed}/{row['kind']}/{row['pair']}", **row} for row in rows)
                bar.update(len(chunk))


def open_pairs(
    folder: EvaluationFolder, dataset: FaceDataset, seed: int, pairs_folder: Path | None = None
) -> WarpedPairs:
    """The pairs of a seed, as they were saved; drawn and saved if they were not."""
    path = (pairs_folder or folder.path) / f"pairs-{seed}.npz"
    return load_or_draw_pairs(path, dataset, folder.settings["pairs"], seed, folder.settings["rounded"])


def count_source_warps(folder: EvaluationFolder) -> int:
    """How many times the source of a pair is warped."""
    return 2 if folder.settings["source"] == "twice" else 0


def _match_chunk(
    setup: EvaluationSetup, pairs: WarpedPairs, chunk: list[int], folder: EvaluationFolder
) -> Iterator[dict[str, Any]]:
    times = count_source_warps(folder)
    sources, others = [2 * i for i in chunk], [2 * i + 1 for i in chunk]
    frames = pairs.warp_frames(sources, times) + pairs.warp_frames(sources, 1) + pairs.warp_frames(others, 1)
    features = setup.extract(frames, [BOX] * len(frames))
    for row, i in enumerate(chunk):
        reference, targets = features[row], features[[len(chunk) + row, 2 * len(chunk) + row]]
        origin = pairs.landmarks[times, 2 * i]
        matches = match_landmarks(
            reference,
            clip_to_view(reference, origin),
            targets,
            use=setup.use,
            prior=folder.settings["prior"],
            keep_similarity=True,
        )
        assert matches.similarity is not None
        best = matches.similarity.max(axis=(-2, -1), keepdims=True)
        ties = (matches.similarity == best).sum(axis=(-2, -1)) > 1
        perfect = pairs.find_correct_pixels(2 * i, times) - INSET
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


def clip_to_view(features: FaceFeatures, xy: Array) -> Array:
    """Landmarks (K, 2), frame px, moved to the edge if outside the view or the frame, so that all are measured."""
    clipped = features.to_image(features.to_input(xy[None]).clip(0, features.faces[0].crop.size - 1))[0].clip(
        0, FRAME - 1
    )
    unmoved = np.abs(features.to_input(clipped[None])[0] - features.to_input(xy[None])[0]).max(axis=1) < 1e-6
    return np.where(unmoved[:, None], xy, clipped)


def matching_scores(folder: EvaluationFolder) -> dict[str, Any]:
    """Mean errors of the predictions, by kind."""
    rows = folder.read_predictions()
    return {kind: _score_rows([row for row in rows if row["kind"] == kind], folder.settings["eyes"]) for kind in KINDS}


def _score_rows(rows: Sequence[dict[str, Any]], eyes: Sequence[int]) -> dict[str, Any]:
    seeds = np.array([int(row["key"].partition("/")[0]) for row in rows])
    found, truth, origin = (np.array([row[name] for row in rows]) for name in ("found", "truth", "origin"))
    perfect = np.array([row["perfect"] for row in rows], dtype=np.float64)
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
        "perfect_canonical_px": spread(CANONICAL * pixel_errors(perfect, truth)) if perfect.ndim == 3 else None,
        "ties": float(np.mean([row["ties"] for row in rows])),
    }


COLUMNS = ("method", "dim.", "same", "different", "same, input px", "different, input px", "same, %", "different, %")


def _measured_row(setup: EvaluationSetup, prior: float | None, scores: dict[str, Any]) -> tuple[Any, ...]:
    """One row of `COLUMNS` from `matching_scores`."""
    names = ("canonical_px", "input_px", "inter_ocular_percent")
    label = f"{setup}, by shape" if prior is None else f"{setup}, prior {prior:g} px" if prior else str(setup)
    return (
        label,
        str(setup.descriptor_size(setup.use or "backbone")),
        *(scores[kind][name] for name in names for kind in KINDS),
    )


def matching_table(setup: EvaluationSetup, dataset: FaceDataset, prior: float | None, scores: dict[str, Any]) -> Table:
    """What was measured, on the same pairs "no motion" and a perfect matcher, and the paper's Table 1."""
    still = [scores[kind]["no_motion_canonical_px"] for kind in KINDS]
    rows = [_measured_row(setup, prior, scores), ("no motion", "", *still, *[None] * 4)]
    rows.append(("perfect match, whole pixels", "", scores["same"]["perfect_canonical_px"], *[None] * 5))
    rows += [
        (f"{method}, {PUBLISHED} (MAFL)", str(size), Spread(same), Spread(different), *[None] * 4)
        for (method, size), (same, different) in paper_results.MATCHING.items()
    ]
    notes = (
        f"{scores['same']['pairs']} pairs of {dataset} of each kind. same, different: mean error in px of the 70 px "
        "frame (69/95 of an input px), as published; ±: standard deviation over warp seeds.",
        f"Landmarks whose most similar place is not unique: {100 * scores['same']['ties']:.1f} % (same), "
        f"{100 * scores['different']['ties']:.1f} % (different).",
        *dataset.notes,
    )
    return Table(
        name="matching", title=f"Landmark matching on {dataset}", columns=COLUMNS, rows=tuple(rows), notes=notes
    )
