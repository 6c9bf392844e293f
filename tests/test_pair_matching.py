"""Landmark matching: least errors, known values, hand-planted errors, resumption; and ablations."""

import copy
import dataclasses
import json

import numpy as np
import pytest
import torch
from made_up_faces import coloured_faces, mtfl_folder

from scemae.datasets import read_dataset
from scemae.errors import OptionError, OutputError, RunError
from scemae.evaluation import pair_matching
from scemae.evaluation.ablation import (
    Row,
    ablation_table,
    measure_rows,
    model_rows,
    read_variant,
    table_rows,
    variant_row,
)
from scemae.evaluation.evaluation_folder import PREDICTIONS, EvaluationFolder
from scemae.evaluation.extractors import Encoder, ExternalExtractor
from scemae.evaluation.pair_matching import PairOptions, match_pairs, matching_scores, matching_settings, matching_table
from scemae.evaluation.result_table import Spread
from scemae.evaluation.setup import EvaluationSetup
from scemae.evaluation.warped_pairs import INSET, draw_pairs, load_or_draw_pairs
from scemae.evaluation.watched_pairs import WatchedPairs
from scemae.model.projector import Projector

COUNT = 9  # pairs of each kind, more than are matched together


@pytest.fixture
def dataset(tmp_path):
    return coloured_faces(tmp_path, 2 * COUNT)


def make_options(pairs=COUNT, seeds=1, source="twice"):
    return PairOptions(pairs=pairs, seeds=seeds, source=source, rounded=True)


def make_settings(setup, dataset, **options):
    return matching_settings(setup, dataset, make_options(**options), prior=0.0)


def trace_back(warps, pixels):
    """Where frame pixels (..., 2) of a face's warped picture come from, through its warps, the last first; frame px."""
    unit = 2 * torch.as_tensor(pixels, dtype=torch.float64).reshape(1, -1, 2) / 135 - 1
    for weights in warps:
        unit = weights.source(unit)
    return (unit[0] + 1) * 135 / 2


def warps_of(pairs, face, times):
    single = [type(w)(w.weights[[face]]) for w in (pairs.first_warps, pairs.second_warps)]
    return single[:times][::-1]


def landmark_offset(face):
    """How far the landmarks of one of `coloured_faces` lie from those of the first, frame px."""
    return face % 3 * 136 / 150


class Perfect:
    """Features that say where on the unwarped face each pixel comes from: it knows the warps, and faces by colour."""

    def __init__(self, pairs, source_times):
        self.pairs, self.times, self.seen = pairs, source_times, set()
        rows, columns = np.meshgrid(np.arange(96), np.arange(96), indexing="ij")
        self.lattice = np.stack([columns, rows], axis=-1).reshape(-1, 2) + INSET

    def __call__(self, views):
        return torch.stack([self.features(view) for view in views])

    def features(self, view):
        face = round(float(view[0, 48, 48]) * 255 / 10)
        times = self.times if face % 2 == 0 and face not in self.seen else 1
        self.seen.add(face)
        xy = trace_back(warps_of(self.pairs, face, times), self.lattice) - landmark_offset(face)
        angles = torch.cat([xy * w for w in (0.03, 0.1)], dim=1)
        return torch.cat([angles.cos(), angles.sin()], dim=1).T.reshape(-1, 96, 96).float()


def least_errors(pairs, times, kind):
    """Errors (pairs, K) of a matcher that knows where every pixel comes from, from the rounded labels alone."""
    lattice = Perfect(pairs, times).lattice
    errors = []
    for i in range(len(pairs)):
        target = 2 * i + kind
        home = trace_back(warps_of(pairs, target, 1), lattice).numpy()
        query = trace_back(warps_of(pairs, 2 * i, times), pairs.landmarks[times, 2 * i]).numpy()
        query = query - landmark_offset(2 * i) + landmark_offset(target)
        found = lattice[np.linalg.norm(home[None] - query[:, None], axis=-1).argmin(axis=1)]
        errors.append(np.linalg.norm(found - pairs.landmarks[1, target], axis=1))
    return np.array(errors)


@pytest.mark.slow
@pytest.mark.parametrize(("source", "times"), [("twice", 2), ("original", 0)])
def test_perfect_features_give_the_floor_of_the_rounded_labels(two_block_model, dataset, tmp_path, source, times):
    pairs = draw_pairs(dataset, COUNT, 0)
    perfect = Perfect(pairs, times)
    setup = EvaluationSetup.of(ExternalExtractor(Encoder(name="perfect", encode=perfect), two_block_model), align=False)
    perfect.seen.clear()
    run = EvaluationFolder.open(tmp_path / "run", make_settings(setup, dataset, source=source))
    match_pairs(setup, dataset, run)
    scores = matching_scores(run)
    least = [least_errors(pairs, times, kind).mean() for kind in (0, 1)]
    for expected, name in zip(least, ("same", "different"), strict=True):
        assert scores[name]["input_px"].mean == pytest.approx(expected, abs=1e-9)
        assert scores[name]["canonical_px"].mean == pytest.approx(69 / 95 * expected, abs=1e-9)
    assert scores["same"]["perfect_canonical_px"].mean == pytest.approx(69 / 95 * least[0], abs=0.06)
    if source == "twice":  # the source's label is a whole pixel before it is warped: what is lost is lost in both
        assert scores["same"]["canonical_px"].mean < 0.15
    assert scores["same"]["ties"] == 0


def flat_setup(model):
    """Features that say nothing."""
    return EvaluationSetup.of(
        ExternalExtractor(Encoder(name="flat", encode=lambda views: torch.ones(len(views), 4, 12, 12)), model),
        align=False,
    )


def test_flat_features_are_reported_as_ties_in_the_corner(two_block_model, dataset, tmp_path):
    setup = flat_setup(two_block_model)
    run = EvaluationFolder.open(tmp_path / "run", make_settings(setup, dataset, pairs=2))
    match_pairs(setup, dataset, run)
    assert matching_scores(run)["same"]["ties"] == 1
    assert (np.array([row["found"] for row in run.read_predictions()]) == 0).all()


@pytest.mark.slow
def test_no_motion_is_the_distance_of_the_labels(two_block_model, dataset, tmp_path):
    setup = flat_setup(two_block_model)
    run = EvaluationFolder.open(tmp_path / "run", make_settings(setup, dataset))
    match_pairs(setup, dataset, run)
    labels = draw_pairs(dataset, COUNT, 0).landmarks
    for kind, name in enumerate(("same", "different")):
        still = np.linalg.norm(labels[2, ::2] - labels[1, kind::2], axis=-1).mean()
        assert matching_scores(run)[name]["no_motion_canonical_px"].mean == pytest.approx(69 / 95 * still, abs=1e-9)


def test_planted_errors_come_back(tmp_path):
    truth = np.array([(30.0, 40), (66, 40), (48, 60), (36, 72), (60, 72)])
    run = EvaluationFolder.open(tmp_path / "run", {"eyes": [0, 1], "source": "twice"})
    lines = []
    for seed, error in ((0, (3, 4)), (1, (6, 8))):
        for kind in ("same", "different"):
            for pair in range(3):
                found = truth + np.array(error) * (1 if kind == "same" else 2)
                lines.append(
                    {"key": f"{seed}/{kind}/{pair}", "kind": kind, "pair": pair, "truth": truth, "found": found,
                     "origin": truth + np.array([0, 12]), "score": np.ones(5), "ties": [False] * 4 + [True],
                     "perfect": None if kind == "different" else truth + np.array([0, 1])}
                )  # fmt: skip
    run.append(lines)
    scores = matching_scores(run)
    assert scores["same"]["input_px"].mean == pytest.approx(7.5, abs=1e-9)
    assert scores["same"]["input_px"].sd == pytest.approx(5 / 2**0.5, abs=1e-9)
    assert scores["different"]["canonical_px"].mean == pytest.approx(15 * 69 / 95, abs=1e-9)
    assert scores["different"]["dve_px"].mean == pytest.approx(15 * 70 / 96, abs=1e-9)
    assert scores["same"]["inter_ocular_percent"].mean == pytest.approx(100 * 7.5 / 36, abs=1e-9)
    assert scores["same"]["no_motion_canonical_px"].mean == pytest.approx(12 * 69 / 95, abs=1e-9)
    assert scores["same"]["ties"] == pytest.approx(0.2)
    assert scores["same"]["perfect_canonical_px"].mean == pytest.approx(69 / 95, abs=1e-9)
    assert scores["different"]["perfect_canonical_px"] is None


def test_pairs_are_frozen_and_a_function_of_seed_and_face(dataset, tmp_path):
    drawn = load_or_draw_pairs(tmp_path / "pairs.npz", dataset, COUNT, 0, rounded=True)
    again = load_or_draw_pairs(tmp_path / "pairs.npz", dataset, COUNT, 0, rounded=True)
    assert torch.equal(drawn.second_warps.weights, again.second_warps.weights)
    np.testing.assert_array_equal(drawn.landmarks, again.landmarks)
    np.testing.assert_array_equal(drawn.landmarks, drawn.landmarks.round())
    fewer, other = draw_pairs(dataset, 2, 0), draw_pairs(dataset, 2, 1)
    assert torch.equal(fewer.first_warps.weights, drawn.first_warps.weights[:4])
    assert not torch.equal(other.first_warps.weights, fewer.first_warps.weights)
    assert not torch.equal(drawn.first_warps.weights, drawn.second_warps.weights)
    exact = draw_pairs(dataset, COUNT, 0, rounded=False).landmarks
    assert 0.1 < np.abs(exact - drawn.landmarks).max() < 2
    (tmp_path / "pairs.npz").write_text("no arrays")
    with pytest.raises(RunError, match="damaged"):
        load_or_draw_pairs(tmp_path / "pairs.npz", dataset, COUNT, 0, rounded=True)


@pytest.mark.slow
def test_an_interrupted_matching_is_resumed(two_block_model, dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(pair_matching, "CHUNK", 2)
    setup = EvaluationSetup.of(two_block_model, align=False, expansion=1, use="backbone")
    settings = make_settings(setup, dataset, pairs=6)
    whole = EvaluationFolder.open(tmp_path / "whole", settings)
    match_pairs(setup, dataset, whole)
    broken = EvaluationFolder.open(tmp_path / "broken", settings)
    calls = iter(range(3))

    def fails(self, images, boxes):
        if next(calls) == 2:
            raise KeyboardInterrupt
        return original(self, images, boxes)

    original = EvaluationSetup.extract
    with monkeypatch.context() as patch:
        patch.setattr(EvaluationSetup, "extract", fails)
        with pytest.raises(KeyboardInterrupt):
            match_pairs(setup, dataset, broken)
    assert len(broken.read_predictions()) == 8
    with (broken.path / PREDICTIONS).open("a") as file:
        file.write('{"key": "0/same/4", "kind": "sa')  # what an interruption may leave
    resumed = EvaluationFolder.open(tmp_path / "broken", settings)
    match_pairs(setup, dataset, resumed)
    assert (resumed.path / PREDICTIONS).read_text() == (whole.path / PREDICTIONS).read_text()


def test_other_settings_are_refused(two_block_model, dataset, tmp_path):
    setup = flat_setup(two_block_model)
    EvaluationFolder.open(tmp_path / "run", make_settings(setup, dataset))
    with pytest.raises(RunError, match=rf"pairs: {COUNT} -> 3.*--overwrite"):
        EvaluationFolder.open(tmp_path / "run", make_settings(setup, dataset, pairs=3))
    EvaluationFolder.open(tmp_path / "run", make_settings(setup, dataset, pairs=3), overwrite=True)
    (tmp_path / "run" / "letter.txt").write_text("dear")
    with pytest.raises(OutputError, match=r"run was not replaced: it contains letter\.txt"):
        EvaluationFolder.open(tmp_path / "run", {}, overwrite=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(RunError, match="does not hold an evaluation"):
        EvaluationFolder.open(tmp_path / "mine", {}, overwrite=True)
    assert (tmp_path / "mine" / "letter.txt").exists()
    aligned, aligned_otherwise = copy.copy(setup.extractor), copy.copy(two_block_model)
    aligned.aligning_model = aligned_otherwise
    aligned_otherwise.id = two_block_model.id._replace(sha256="0" * 64)
    first, second = (make_settings(EvaluationSetup.of(extractor), dataset) for extractor in (setup.extractor, aligned))
    assert {name for name in first if first[name] != second[name]} == {"aligned_by"}
    with pytest.raises(OptionError, match="nothing to match"):
        make_settings(setup, dataset[:1])


def test_an_aligned_view_that_leaves_a_landmark_out_still_counts_it(two_block_model, dataset, tmp_path):
    """Alignment of pictures without faces puts the view anywhere; no landmark is left out, as in the protocol."""
    setup = EvaluationSetup.of(two_block_model, expansion=1)
    run = EvaluationFolder.open(tmp_path / "run", make_settings(setup, dataset, pairs=4))
    match_pairs(setup, dataset, run)
    assert matching_scores(run)["same"]["pairs"] == 4


def test_the_table_of_matching(two_block_model, dataset, tmp_path):
    setup = EvaluationSetup.of(two_block_model, align=False, expansion=1, use="projected")
    run = EvaluationFolder.open(tmp_path / "run", make_settings(setup, dataset, pairs=2, seeds=2))
    match_pairs(setup, dataset, run)
    scores = matching_scores(run)
    run.write_scores(scores, matching_table(setup, dataset, 0.0, scores))
    text = (run.path / "tables.md").read_text()
    assert f"| {two_block_model.config.name}, projected, not aligned | {two_block_model.config.projector_dim} |" in text
    assert "±" in text
    assert "| perfect match, whole pixels |" in text
    assert "SCE-MAE DeiT-B, published (MAFL) | 256 | 0.27 | 1.61" in text
    header, first = (run.path / "matching.csv").read_text().splitlines()[:2]
    assert header.startswith("method,dim.,same,same sd,different")
    assert float(first.split(",")[-2]) == pytest.approx(scores["different"]["inter_ocular_percent"].mean)
    saved = json.loads((run.path / "scores.json").read_text())
    assert saved["same"]["canonical_px"]["count"] == 2
    assert saved["settings"]["pairs"] == 2


def test_ablation(two_block_model, dataset, tmp_path):
    variants = (("raw, a", "backbone"), ("projected", "projected"))
    rows = [
        Row(label, EvaluationSetup.of(two_block_model, align=False, expansion=1, use=use)) for label, use in variants
    ]
    run = EvaluationFolder.open(tmp_path / "run", {})
    scores = measure_rows(rows, dataset, run, make_options(pairs=2))
    assert (run.path / "rows" / "raw-a" / PREDICTIONS).exists()
    assert (run.path / "pairs-0.npz").exists()
    table = ablation_table(dataset, scores).to_markdown()
    assert "| raw, a |" in table
    assert "| clustering and LCR, published (MAFL) | 0.27 | 1.61 |" in table
    with pytest.raises(OptionError, match="same name"):
        measure_rows([rows[0], rows[0]], dataset, run, make_options(pairs=2))


def test_rows_of_table_4_are_beside_those_of_the_paper(two_block_model, dataset):
    other = copy.deepcopy(two_block_model)
    other.projector.weight.data *= 2
    rows = table_rows(two_block_model, other, other)
    labels = [row.label for row in rows]
    assert labels[:3] == ["raw backbone, expansion 4", "clustering, no LCR", "clustering and LCR"]
    assert [row.setup.use for row in rows[:3]] == ["backbone", "projected", "projected"]
    assert len(rows) == len(model_rows(two_block_model)) + 2
    errors = {"canonical_px": 1.5, "inter_ocular_percent": 5.5, "no_motion_canonical_px": 9.5, "pairs": 2}
    table = ablation_table(dataset, {label: {"same": errors, "different": errors} for label in labels[:3]})
    assert [row[:3] for row in table.rows] == [
        ("raw backbone, expansion 4", 1.5, 1.5),
        ("raw MAE, published (MAFL)", Spread(0.55), Spread(3.51)),
        ("clustering, no LCR", 1.5, 1.5),
        ("clustering, no LCR, published (MAFL)", Spread(0.30), Spread(4.04)),
        ("clustering and LCR", 1.5, 1.5),
        ("clustering and LCR, published (MAFL)", Spread(0.27), Spread(1.61)),
        ("no motion", 9.5, 9.5),
        ("CL hypercolumn, published (MAFL)", Spread(0.69), Spread(5.37)),
        ("LEAD hypercolumn, published (MAFL)", Spread(2.35), Spread(6.22)),
    ]


def test_a_row_of_table_4_with_another_backbone_is_refused(two_block_model):
    other = copy.deepcopy(two_block_model)
    other.backbone.cls_token.data += 1
    with pytest.raises(OptionError, match=r"--lcr .* the backbone of --model"):
        table_rows(two_block_model, lcr=other)


def test_rows_of_a_model(two_block_model):
    model = copy.copy(two_block_model)
    model.config = dataclasses.replace(model.config, prior_sigma=40.0)
    labels = [row.label for row in model_rows(model)]
    assert labels[:3] == [f"{name}, expansion 4" for name in ("raw backbone", "projected", "concatenated")]
    assert "projected, expansion 1" in labels
    assert "concatenated, expansion 4, aligned" in labels
    assert "projected, expansion 4, aligned, prior 40 px" in labels
    assert len({row.folder_name for row in model_rows(model)}) == len(labels)
    assert variant_row("trained otherwise", model).setup.use == "projected"
    assert read_variant("no LCR=local-dir:runs/a=b") == ("no LCR", "local-dir:runs/a=b")
    with pytest.raises(OptionError, match="LABEL=MODEL"):
        read_variant("scemae-tiny")


def test_a_training_is_watched_by_the_protocol(two_block_model, tmp_path):
    """What a watch measures of a projector is what an evaluation measures of a model that has it."""
    mtfl_folder(tmp_path)
    dataset = read_dataset("mtfl", tmp_path, "lfw_5590", partial=True)
    projector = Projector(two_block_model.config.backbone.width, 6)
    measured = WatchedPairs(two_block_model, dataset, 2, align=False).measure(projector)
    model = copy.deepcopy(two_block_model)
    model.projector = projector
    setup = EvaluationSetup.of(model, align=False, use="projected")
    settings = matching_settings(setup, dataset, make_options(pairs=2), prior=0.0)
    folder = EvaluationFolder.open(tmp_path / "out", settings)
    match_pairs(setup, dataset, folder)
    scores = matching_scores(folder)
    for kind in ("same", "different"):
        assert measured[f"watched_{kind}_error"] == pytest.approx(scores[kind]["canonical_px"].mean, rel=1e-9)


def test_one_face_cannot_be_watched(two_block_model, tmp_path):
    mtfl_folder(tmp_path)
    dataset = read_dataset("mtfl", tmp_path, "lfw_5590", partial=True)
    with pytest.raises(OptionError, match="has 1 faces; wanted at least two to watch a training on"):
        WatchedPairs(two_block_model, dataset[:1], 2, align=False)
