"""Ablations on landmark matching (paper Table 4, and what it leaves open): one row for each variant."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from scemae.datasets import FaceDataset
from scemae.errors import OptionError
from scemae.evaluation import paper_results
from scemae.evaluation.evaluation_folder import EvaluationFolder
from scemae.evaluation.pair_matching import KINDS, PairOptions, match_pairs, matching_scores, matching_settings
from scemae.evaluation.result_table import PUBLISHED, Spread, Table
from scemae.evaluation.setup import EvaluationSetup
from scemae.model.config import Use
from scemae.model.sce_mae import SceMae

EXPANSIONS = (1, 2, 4)
ROWS = "rows"
RAW, CLUSTERING, LCR = "raw backbone, expansion 4", "clustering, no LCR", "clustering and LCR"
PAPER_ROWS = {RAW: "raw MAE", CLUSTERING: CLUSTERING, LCR: LCR}  # our rows of Table 4 -> those of the paper


@dataclass(frozen=True, eq=False)
class Row:
    """One variant to measure: its name, its features, and the sigma of its position prior (input px; 0: none)."""

    label: str
    setup: EvaluationSetup
    prior: float = 0.0

    @property
    def folder_name(self) -> str:
        """The name of its folder of predictions."""
        return re.sub(r"[^a-z0-9]+", "-", self.label.lower()).strip("-")


def model_rows(model: SceMae) -> list[Row]:
    """The variants of one model: which features, expansion, aligned or not, with its position prior or without."""
    rows = []
    uses: tuple[Use, ...] = ("backbone",) if model.projector is None else ("backbone", "projected", "both")
    names = {"backbone": "raw backbone", "projected": "projected", "both": "concatenated"}
    for use in uses:
        rows.append(Row(f"{names[use]}, expansion 4", _paper_setup(model, 4, use)))
    best = uses[-2:][0]
    for expansion in EXPANSIONS[:-1]:
        rows.append(Row(f"{names[best]}, expansion {expansion}", _paper_setup(model, expansion, best)))
    if model.aligner is not None:
        for use in uses:
            setup = EvaluationSetup.of(model, align=True, expansion=4, use=use)
            rows.append(Row(f"{names[use]}, expansion 4, aligned", setup))
        if model.config.prior_sigma:
            sigma = model.config.prior_sigma
            setup = EvaluationSetup.of(model, align=True, expansion=4, use=best)
            rows.append(Row(f"{names[best]}, expansion 4, aligned, prior {sigma:g} px", setup, sigma))
    return rows


def variant_row(label: str, model: SceMae) -> Row:
    """A model trained differently, in the setting of Table 4: its projected features, or the raw ones."""
    use: Use = "backbone" if model.projector is None else "projected"
    return Row(label, _paper_setup(model, 4, use))


def table_rows(model: SceMae, clustering: SceMae | None = None, lcr: SceMae | None = None) -> list[Row]:
    """The rows of Table 4, of models trained from one backbone (None: left out), then the others of `model_rows`.

    Raises OptionError for a model with another backbone than `model`, or without a projector.
    """
    trained = []
    for option, label, other in (("clustering", CLUSTERING, clustering), ("lcr", LCR, lcr)):
        if other is None:
            continue
        theirs, ours = other.backbone.state_dict(), model.backbone.state_dict()
        same = theirs.keys() == ours.keys() and all(torch.equal(theirs[name], ours[name]) for name in ours)
        if other.projector is None or not same:
            raise OptionError(
                f"--{option} {other.config.name} must have a projector and the backbone of --model: the rows of Table "
                "4 differ in stage 2 only. Pass the --model that it was trained from, or the other one with --row."
            )
        trained.append(variant_row(label, other))
    raw, *rest = model_rows(model)
    return [raw, *trained, *rest]


def _paper_setup(model: SceMae, expansion: int, use: Use) -> EvaluationSetup:
    """The setting of Table 4: not aligned, and the view mirrored beyond its edges."""
    return EvaluationSetup.of(model, align=False, expansion=expansion, margin="reflect", use=use)


def measure_rows(
    rows: Sequence[Row], dataset: FaceDataset, folder: EvaluationFolder, options: PairOptions
) -> dict[str, Any]:
    """Match the same pairs in every variant; each has its own folder of predictions and scores."""
    names = [row.folder_name for row in rows]
    if len(set(names)) < len(names):
        raise OptionError(f"Two rows have the same name among {', '.join(row.label for row in rows)}.")
    (folder.path / ROWS).mkdir(exist_ok=True)
    scores = {}
    for row in rows:
        settings = matching_settings(row.setup, dataset, options, row.prior)
        row_folder = EvaluationFolder.open(folder.path / ROWS / row.folder_name, settings)
        match_pairs(row.setup, dataset, row_folder, pairs_folder=folder.path)
        scores[row.label] = matching_scores(row_folder)
        row_folder.write_scores(scores[row.label])
    return scores


def ablation_table(dataset: FaceDataset, scores: dict[str, Any]) -> Table:
    """What was measured, with the paper's row of Table 4 below ours, and "no motion" on the same pairs."""
    published = {
        label: (f"{label}, {PUBLISHED} (MAFL)", Spread(same), Spread(different), None, None)
        for label, (same, different) in paper_results.ABLATION.items()
    }
    rows: list[tuple[Any, ...]] = []
    for label, row in scores.items():
        errors = (row[kind][unit] for unit in ("canonical_px", "inter_ocular_percent") for kind in KINDS)
        rows.append((label, *errors))
        if PAPER_ROWS.get(label) in published:
            rows.append(published.pop(PAPER_ROWS[label]))
    first = next(iter(scores.values()))
    rows.append(("no motion", *(first[kind]["no_motion_canonical_px"] for kind in KINDS), None, None))
    rows += published.values()
    notes = (
        f"{first['same']['pairs']} pairs of {dataset} of each kind; px of the 70 px frame, and % of the inter-ocular "
        "distance. Not aligned, unless the row says so.",
        *dataset.notes,
    )
    columns = ("features", "same", "different", "same, %", "different, %")
    return Table(name="ablation", title=f"Ablation on {dataset}", columns=columns, rows=tuple(rows), notes=notes)


def read_variant(text: str) -> tuple[str, str]:
    """Label and model from the LABEL=MODEL of --row; raises OptionError for another form."""
    label, _, model = text.partition("=")
    if not label or not model:
        raise OptionError(f"--row is {text!r}; wanted LABEL=MODEL, such as 'clustering, no LCR=local-dir:RUN/model'.")
    return label, model
