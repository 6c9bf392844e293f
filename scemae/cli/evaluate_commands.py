"""The commands `scemae eval matching | detection | silhouette | ablation`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from scemae.datasets import DATASETS, FaceDataset, read_dataset
from scemae.errors import OptionError
from scemae.evaluation import ablation as rows_of
from scemae.evaluation import few_shot_detection as heads
from scemae.evaluation import pair_matching as matches
from scemae.evaluation import silhouette as clusters
from scemae.evaluation.detection_scores import detection_scores, detection_tables
from scemae.evaluation.evaluation_folder import SCORES, EvaluationFolder
from scemae.evaluation.extractors import SPELLINGS, load_extractor
from scemae.evaluation.figures import cumulative_curve, draw_detections, draw_matches
from scemae.evaluation.result_table import Table
from scemae.evaluation.setup import EvaluationSetup, data_settings
from scemae.extraction import Extractor
from scemae.weights.zoo import DTYPES, load_model

Outcome = tuple[Any, str]
FIRST_FACES = 1000  # of the silhouettes of Fig. 5


def matching(options: argparse.Namespace) -> Outcome:
    """Landmark matching on warped pairs of faces (Table 1)."""
    dataset, extractor = _dataset(options, 1), _extractor(options)
    setup = _subject(options, extractor, options.use or extractor.config.matching_use)
    prior = (extractor.config.prior_sigma if setup.align else 0.0) if options.prior is None else options.prior
    settings = matches.matching_settings(
        setup,
        dataset,
        pairs=options.pairs,
        seeds=options.seeds,
        source=options.source,
        rounded=not options.exact,
        prior=prior,
    )
    run = EvaluationFolder.open(options.out, settings, options.overwrite)
    matches.match_pairs(setup, dataset, run)
    scores = matches.matching_scores(run)
    if options.pictures:
        rows = [row for row in run.rows() if row["key"].startswith("0/")]
        pairs, times = matches.run_pairs(run, dataset, 0), matches.source_warps(run)
        draw_matches(pairs, times, rows, options.pictures, run.path / "pictures")
    return _outcome(run, scores, matches.matching_table(setup, dataset, prior, scores))


def detection(options: argparse.Namespace) -> Outcome:
    """Landmark detectors fitted on few or all annotated faces (Tables 2 and 3)."""
    pool, test, extractor = _dataset(options, 0), _dataset(options, 1), _extractor(options)
    setup = _subject(options, extractor, options.use)
    fits = heads.plan_fits(options.head or ["cascade"], _counts(options.annotated, len(pool)), len(pool))
    settings = heads.detection_settings(setup, pool, test, fits)
    run = EvaluationFolder.open(options.out, settings, options.overwrite)
    heads.detect(setup, pool, test, fits, run)
    scores, errors = detection_scores(run)
    most = fits[-1].count
    curves = {f"{head}, {most} annotated": errors.per_face(head, most) for head in scores["heads"]}
    cumulative_curve(curves).save(run.path / "curve.png")
    if options.pictures:
        shown = str(next(fit for fit in fits if fit.count == most))
        found = np.array([row["found"][shown] for row in run.rows()])
        draw_detections(test, found, errors.by_fit[shown].mean(axis=1), options.pictures, run.path / "pictures")
    return _outcome(run, scores, *detection_tables(setup, pool, test, fits, scores))


def silhouette(options: argparse.Namespace) -> Outcome:
    """Clusters of landmark descriptors on the first 1,000 faces: t-SNE and silhouette (Fig. 5)."""
    dataset, extractor = _dataset(options, 1)[: None if options.faces else FIRST_FACES], _extractor(options)
    use = options.use or extractor.config.matching_use
    setup = _subject(options, extractor, use)
    run = EvaluationFolder.open(
        options.out, clusters.silhouette_settings(setup, dataset, options.runs), options.overwrite
    )
    clusters.embed(setup, use, dataset, run)
    scores = clusters.silhouette_scores(run)
    clusters.plot(run, dataset.names).save(run.path / "tsne.png")
    return _outcome(run, scores, clusters.silhouette_table(setup, dataset, scores))


def ablation(options: argparse.Namespace) -> Outcome:
    """Landmark matching, one row for each variant (Table 4 and the questions it leaves open)."""
    dataset = _dataset(options, 1)
    variants = [rows_of.read_variant(text) for text in options.row or []]
    model = load_model(options.model, dtype=options.dtype)
    rows = rows_of.model_rows(model)
    rows += [rows_of.variant_row(label, load_model(name, dtype=options.dtype)) for label, name in variants]
    choices = {"pairs": options.pairs, "seeds": options.seeds, "source": options.source, "rounded": not options.exact}
    measured = {"evaluation": "ablation", "sha256": model.id.sha256, "dtype": options.dtype}
    settings = {**measured, "data": data_settings(dataset), **choices}
    run = EvaluationFolder.open(options.out, settings, options.overwrite)
    scores = rows_of.measure_rows(rows, dataset, run, **choices)
    return _outcome(run, {"rows": scores}, rows_of.ablation_table(dataset, scores))


def evaluate(parser: argparse.ArgumentParser, common: argparse.ArgumentParser) -> None:
    """What is measured."""
    register(parser.add_subparsers(required=True, metavar="WHAT"), common)


def register(commands: Any, common: argparse.ArgumentParser) -> None:
    """Add the four commands; `commands` is what add_subparsers() gave, `common` has --json."""
    data, look, pairs, out = _data_options(), _look_options(), _pair_options(), _out_options()
    model = argparse.ArgumentParser(add_help=False)
    model.add_argument("--model", default="scemae-tiny", help="name of a model, or local-dir:PATH")
    model.add_argument(
        "--dtype", choices=DTYPES, default="float32", help="of the encoder; bfloat16 is faster on many processors"
    )

    def add(run: Callable[[argparse.Namespace], Outcome], *parents: argparse.ArgumentParser) -> argparse.ArgumentParser:
        parser: argparse.ArgumentParser = commands.add_parser(
            run.__name__, help=run.__doc__, description=run.__doc__, parents=[common, data, model, *parents, out]
        )
        parser.set_defaults(run=run)
        return parser

    matching_parser = add(matching, look, pairs)
    matching_parser.add_argument("--prior", type=float, help="input px; 0 switches the prior on the place off")
    matching_parser.add_argument("--pictures", type=int, default=0, metavar="N", help="N good and N bad results")
    fitted = add(detection, look)
    fitted.add_argument(
        "--annotated", default="1,5,10,20,50,100", metavar="N,N,...", help="how many annotated faces; or 'all'"
    )
    fitted.add_argument("--head", action="append", choices=list(heads.HEADS), help="may be repeated; default: cascade")
    fitted.add_argument("--pictures", type=int, default=0, metavar="N", help="N good and N bad results")
    add(silhouette, look).add_argument("--runs", type=int, default=100, help="t-SNE embeddings")
    add(ablation, pairs).add_argument(
        "--row", action="append", metavar="LABEL=MODEL", help="a model trained otherwise; may be repeated"
    )


def _data_options() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument("dataset", choices=sorted(DATASETS))
    options.add_argument("--data", type=Path, required=True, metavar="FOLDER", help="where it was unpacked to")
    options.add_argument("--pool", metavar="SPLIT", help="annotated faces to fit on; default: the benchmark's")
    options.add_argument("--test", metavar="SPLIT", help="faces to measure on; default: the benchmark's")
    options.add_argument("--faces", type=int, metavar="N", help="only the first N of them")
    options.add_argument("--partial", action="store_true", help="take what is there of an incomplete data set")
    options.add_argument("--annotations", type=Path, metavar="CSV", help="aflw_r: other labels of the test faces")
    return options


def _look_options() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument("--extractor", help=f"features of something else: {SPELLINGS}; --model aligns the faces")
    options.add_argument("--no-align", action="store_true", help="the paper's fixed crop")
    options.add_argument("--expansion", type=int, choices=(1, 2, 4, 8), help="cells per patch side")
    options.add_argument("--margin", choices=("context", "reflect"), default="context", help="beyond the view")
    options.add_argument("--use", choices=("backbone", "projected", "both"), help="which features")
    return options


def _pair_options() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument("--pairs", type=int, default=500, help="pairs of each kind")
    options.add_argument("--seeds", type=int, default=1, help="how often the warps are drawn")
    options.add_argument(
        "--source", choices=("twice", "original"), default="twice", help="the source warped twice (as in the code of "
        "DVE and CL), or not at all (as the paper says)"
    )  # fmt: skip
    options.add_argument("--exact", action="store_true", help="do not round the labels to whole pixels")
    return options


def _out_options() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(add_help=False)
    options.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="predictions, scores and tables")
    options.add_argument("--overwrite", action="store_true", help="start again where another evaluation lies")
    return options


def _dataset(options: argparse.Namespace, part: int) -> FaceDataset:
    """The faces to fit on (part 0) or to measure on (part 1)."""
    split = (options.pool, options.test)[part] or DATASETS[options.dataset].benchmark[part]
    annotations = options.annotations if part == 1 else None
    dataset = read_dataset(
        options.dataset, options.data, split, exclude="none", annotations=annotations, partial=options.partial
    )
    return dataset if part == 0 or options.faces is None else dataset[: options.faces]


def _extractor(options: argparse.Namespace) -> Extractor:
    return load_extractor(options.model, options.extractor, options.expansion, options.dtype)


def _subject(options: argparse.Namespace, extractor: Extractor, use: str | None) -> EvaluationSetup:
    ours = options.extractor is None
    return EvaluationSetup.of(
        extractor,
        align=False if options.no_align else None,
        expansion=options.expansion if ours else None,
        margin=options.margin,
        use=use,
    )


def _counts(text: str, pool: int) -> list[int]:
    try:
        return sorted({pool if part == "all" else int(part) for part in text.split(",")})
    except ValueError as error:
        raise OptionError(f"--annotated is {text!r}; wanted whole numbers and 'all', such as 1,10,all.") from error


def _outcome(run: EvaluationFolder, scores: dict[str, Any], *tables: Table) -> Outcome:
    run.write_scores(scores, *tables)
    text = "\n\n".join(table.markdown() for table in tables)
    return json.loads((run.path / SCORES).read_text(encoding="utf-8")), f"{text}\n\nwritten to {run.path}"
