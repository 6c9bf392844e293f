"""Ablations on landmark matching (paper Table 4, and what it leaves open): one row for each way to look at faces."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from scemae.datasets import FaceDataset
from scemae.errors import OptionError
from scemae.evaluation import paper_results
from scemae.evaluation.evaluation_folder import EvaluationFolder
from scemae.evaluation.pair_matching import KINDS, match_pairs, matching_scores, matching_settings
from scemae.evaluation.result_table import PUBLISHED, Spread, Table
from scemae.evaluation.setup import EvaluationSetup
from scemae.model.config import Use
from scemae.model.sce_mae import SceMae

EXPANSIONS = (1, 2, 4)
ROWS = "rows"


@dataclass(frozen=True, eq=False)
class Row:
    """One thing to measure: what it is called, how it looks at faces, with which prior on the place (input px)."""

    label: str
    setup: EvaluationSetup
    prior: float = 0.0

    @property
    def folder(self) -> str:
        """The name of its folder."""
        return re.sub(r"[^a-z0-9]+", "-", self.label.lower()).strip("-")


def model_rows(model: SceMae) -> list[Row]:
    """What one model answers: which features, how fine a map, aligned or not, with the prior or without."""
    return list(_model_rows(model))


def _model_rows(model: SceMae) -> Iterator[Row]:
    uses: tuple[Use, ...] = ("backbone",) if model.projector is None else ("backbone", "projected", "both")
    names = {"backbone": "raw backbone", "projected": "projected", "both": "concatenated"}
    for use in uses:
        yield Row(f"{names[use]}, expansion 4", _as_published(model, 4, use))
    best = uses[-2:][0]
    for expansion in EXPANSIONS[:-1]:
        yield Row(f"{names[best]}, expansion {expansion}", _as_published(model, expansion, best))
    if model.aligner is not None:
        for use in uses:
            yield Row(
                f"{names[use]}, expansion 4, aligned", EvaluationSetup.of(model, align=True, expansion=4, use=use)
            )
        if model.config.prior_sigma:
            sigma = model.config.prior_sigma
            setup = EvaluationSetup.of(model, align=True, expansion=4, use=best)
            yield Row(f"{names[best]}, expansion 4, aligned, prior {sigma:g} px", setup, sigma)


def variant_row(label: str, model: SceMae) -> Row:
    """A model that was trained otherwise, as Table 4 looks at models: its projected features, or the raw ones."""
    use: Use = "backbone" if model.projector is None else "projected"
    return Row(label, _as_published(model, 4, use))


def _as_published(model: SceMae, expansion: int, use: Use) -> EvaluationSetup:
    """Not aligned, the shifts of the view mirrored beyond it: the setting of Table 4."""
    return EvaluationSetup.of(model, align=False, expansion=expansion, margin="reflect", use=use)


def measure_rows(rows: Sequence[Row], dataset: FaceDataset, run: EvaluationFolder, **choices: Any) -> dict[str, Any]:
    """Match the same pairs in every way; each row's predictions and scores lie in a folder of its own."""
    folders = [row.folder for row in rows]
    if len(set(folders)) < len(folders):
        raise OptionError(f"Two rows have the same name among {', '.join(row.label for row in rows)}.")
    (run.path / ROWS).mkdir(exist_ok=True)
    scores = {}
    for row in rows:
        settings = matching_settings(row.setup, dataset, prior=row.prior, **choices)
        part = EvaluationFolder.open(run.path / ROWS / row.folder, settings)
        match_pairs(row.setup, dataset, part, frozen=run.path)
        scores[row.label] = matching_scores(part)
        part.write_scores(scores[row.label])
    return scores


def ablation_table(dataset: FaceDataset, scores: dict[str, Any]) -> Table:
    """What was measured, "no motion" on the same pairs, and the paper's Table 4."""
    measured: list[tuple[Any, ...]] = [
        (label, *(row[kind]["canonical_px"] for kind in KINDS), *(row[kind]["inter_ocular_percent"] for kind in KINDS))
        for label, row in scores.items()
    ]
    first = next(iter(scores.values()))
    measured.append(("no motion", *(first[kind]["no_motion_canonical_px"] for kind in KINDS), None, None))
    measured += [
        (f"{label}, {PUBLISHED} (MAFL)", Spread(same), Spread(different), None, None)
        for label, (same, different) in paper_results.ABLATION.items()
    ]
    notes = (
        f"{first['same']['pairs']} pairs of {dataset} of each kind; px of the 70 px frame, and % of the inter-ocular "
        "distance. Not aligned unless said so.",
        *dataset.notes,
    )
    columns = ("features", "same", "different", "same, %", "different, %")
    return Table("ablation", f"Ablation on {dataset}", columns, tuple(measured), notes)


def read_variant(text: str) -> tuple[str, str]:
    """LABEL=MODEL of --row."""
    label, _, model = text.partition("=")
    if not label or not model:
        raise OptionError(f"--row is {text!r}; wanted LABEL=MODEL, such as 'clustering, no LCR=local-dir:RUN/model'.")
    return label, model
