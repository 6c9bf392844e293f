"""The commands `scemae eval matching | detection | silhouette | ablation`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from scemae.datasets import DATASETS, FaceDataset, read_dataset
from scemae.errors import OptionError
from scemae.evaluation.ablation import (
    CLUSTERING,
    LCR,
    ablation_table,
    measure_rows,
    read_variant,
    table_rows,
    variant_row,
)
from scemae.evaluation.detection_scores import detection_scores, detection_tables
from scemae.evaluation.evaluation_folder import SCORES, EvaluationFolder
from scemae.evaluation.extractors import SPELLINGS, load_extractor
from scemae.evaluation.few_shot_detection import HEADS, detect, detection_settings, plan_fits
from scemae.evaluation.figures import draw_detections, draw_matches, plot_cumulative_errors
from scemae.evaluation.heatmap_options import HEATMAP_HEADS, OPTION_HELP, PRESETS, HeatmapOptions
from scemae.evaluation.pair_matching import (
    PairOptions,
    count_source_warps,
    match_pairs,
    matching_scores,
    matching_settings,
    matching_table,
    open_pairs,
)
from scemae.evaluation.result_table import Table
from scemae.evaluation.setup import EvaluationSetup, data_settings
from scemae.evaluation.silhouette import (
    PERPLEXITY,
    embed_descriptors,
    plot_embedding,
    silhouette_scores,
    silhouette_settings,
    silhouette_table,
)
from scemae.model.extractor import Extractor
from scemae.output import write_picture
from scemae.plots import require_matplotlib
from scemae.weights.zoo import DTYPES, load_model

Outcome = tuple[Any, str]
ANNOTATED = "1,5,10,20,50,100"
FIRST_FACES = 1000  # of the silhouettes of Fig. 5


def evaluate_matching(args: argparse.Namespace) -> Outcome:
    """Match landmarks on warped pairs of faces (Table 1 of the paper)."""
    dataset, extractor = _read_test_split(args), _load_extractor(args)
    setup = _build_setup(args, extractor, args.use or extractor.config.matching_use)
    prior = args.prior
    if prior is None and not (setup.align and extractor.dense_shape is not None):  # else None: by shape
        prior = extractor.config.prior_sigma if setup.align else 0.0
    settings = matching_settings(setup, dataset, _pair_options(args), prior)
    folder = EvaluationFolder.open(args.out, settings, args.overwrite)
    match_pairs(setup, dataset, folder)
    scores = matching_scores(folder)
    if args.pictures:
        rows = [row for row in folder.read_predictions() if row["key"].startswith("0/")]  # of the first seed
        pairs, times = open_pairs(folder, dataset, 0), count_source_warps(folder)
        draw_matches(pairs, times, rows, args.pictures, folder.path / "pictures")
    return _write_outcome(folder, scores, matching_table(setup, dataset, prior, scores))


def evaluate_detection(args: argparse.Namespace) -> Outcome:
    """Fit landmark detectors on few or all annotated faces and test them (Tables 2 and 3 of the paper)."""
    require_matplotlib()
    pool, test, extractor = _read_fit_split(args), _read_test_split(args), _load_extractor(args)
    setup = _build_setup(args, extractor, args.use)
    heads = list(dict.fromkeys(args.head or ["cascade"]))
    fits = plan_fits(heads, _parse_counts(args.annotated, len(pool)), len(pool), args.draws)
    heatmaps = _heatmap_options(args, heads, len(pool))
    settings = detection_settings(setup, pool, test, fits, heatmaps)
    folder = EvaluationFolder.open(args.out, settings, args.overwrite)
    detect(setup, pool, test, fits, folder, heatmaps)
    scores, errors = detection_scores(folder)
    most = fits[-1].count
    curves = {f"{head}, {most} annotated": errors.per_face(head, most) for head in scores["heads"]}
    write_picture(folder.path / "curve.png", plot_cumulative_errors(curves))
    if args.pictures:
        drawn = next(fit for fit in fits if fit.count == most)
        found = np.array([face["found"][drawn.key] for face in folder.read_predictions()])
        draw_detections(test, found, errors.by_fit[drawn].mean(axis=1), args.pictures, folder.path / "pictures")
    return _write_outcome(folder, scores, *detection_tables(setup, pool, test, fits, scores))


def evaluate_silhouette(args: argparse.Namespace) -> Outcome:
    """Cluster the landmark descriptors of the first 1,000 faces: t-SNE and silhouette (Fig. 5 of the paper)."""
    require_matplotlib()
    dataset, extractor = _read_test_split(args)[: None if args.faces else FIRST_FACES], _load_extractor(args)
    use = args.use or extractor.config.matching_use
    setup = _build_setup(args, extractor, use)
    settings = silhouette_settings(setup, dataset, args.runs, args.perplexity)
    folder = EvaluationFolder.open(args.out, settings, args.overwrite)
    embed_descriptors(setup, use, dataset, folder)
    scores = silhouette_scores(folder)
    write_picture(folder.path / "tsne.png", plot_embedding(folder, dataset.names))
    return _write_outcome(folder, scores, silhouette_table(setup, dataset, scores))


def evaluate_ablation(args: argparse.Namespace) -> Outcome:
    """Match landmarks with variants of a model, one row each (Table 4 of the paper, and what it leaves open)."""
    dataset = _read_test_split(args)
    variants = [read_variant(text) for text in args.row or []]
    model = load_model(args.model, dtype=args.dtype)
    trained = [name and load_model(name, dtype=args.dtype) for name in (args.clustering, args.lcr)]
    rows = table_rows(model, *trained)
    rows += [variant_row(label, load_model(name, dtype=args.dtype)) for label, name in variants]
    options = _pair_options(args)
    settings = {
        "evaluation": "ablation",
        "sha256": model.id.sha256,
        "dtype": args.dtype,
        "data": data_settings(dataset),
        **asdict(options),
    }
    folder = EvaluationFolder.open(args.out, settings, args.overwrite)
    scores = measure_rows(rows, dataset, folder, options)
    return _write_outcome(folder, {"rows": scores}, ablation_table(dataset, scores))


def evaluate(parser: argparse.ArgumentParser, common: argparse.ArgumentParser) -> None:
    """Add the four commands to the parser of `scemae eval`; `common` has --json."""
    commands = parser.add_subparsers(required=True, metavar="TASK")
    data, features, pairs, output = _data_parser(), _features_parser(), _pairs_parser(), _output_parser()
    model = argparse.ArgumentParser(add_help=False)
    _add_model_options(model.add_argument_group("model"))

    def add(
        name: str, run: Callable[[argparse.Namespace], Outcome], *parents: argparse.ArgumentParser
    ) -> argparse.ArgumentParser:
        command: argparse.ArgumentParser = commands.add_parser(
            name, help=run.__doc__, description=run.__doc__, parents=[common, *parents, data, output]
        )
        command.set_defaults(run=run)
        return command

    matching = add("matching", evaluate_matching, features, pairs)
    matching.add_argument(
        "--prior", type=float, metavar="PX",
        help="Match by descriptors alone, with this sigma of the position prior, in input px; 0 for none, as in the "
        "paper (default: by the dense shape if the model has one, otherwise the model's prior, 0 with --no-align).",
    )  # fmt: skip
    detection = add("detection", evaluate_detection, features)
    detection.add_argument("--pool", metavar="SPLIT", help="Split to fit on (default: the benchmark's).")
    detection.add_argument(
        "--annotated", nargs="+", action="extend", metavar="N",
        help=f"Numbers of annotated faces to fit on, or 'all'; may be repeated (default: {ANNOTATED}).",
    )  # fmt: skip
    detection.add_argument(
        "--head", action="append", choices=list(HEADS), help="Head of the detector; may be repeated (default: cascade)."
    )
    detection.add_argument(
        "--draws", type=int, metavar="N",
        help="Draw the annotated faces N times (default: 20 times one face, 5 times more; all of them once).",
    )  # fmt: skip
    _add_heatmap_options(detection.add_argument_group("training of the heads heatmap and heatmap-block"))
    for command in (matching, detection):
        command.add_argument(
            "--pictures", type=int, default=0, metavar="N", help="Draw N good and N bad results to OUT/pictures."
        )
    silhouette = add("silhouette", evaluate_silhouette, features)
    silhouette.add_argument(
        "--runs", type=int, default=100, metavar="N", help="Number of t-SNE embeddings (default: %(default)s)."
    )
    silhouette.add_argument(
        "--perplexity", type=float, default=PERPLEXITY, metavar="P",
        help="Perplexity of t-SNE (default: %(default)s, ours, or what few landmarks allow).",
    )  # fmt: skip
    ablation = add("ablation", evaluate_ablation, model, pairs)
    for option, row, preset in (("--clustering", CLUSTERING, "clustering"), ("--lcr", LCR, "paper")):
        ablation.add_argument(
            option, metavar="MODEL",
            help=f"The model of Table 4's row '{row}': train stage2 --preset {preset} on the backbone of --model.",
        )  # fmt: skip
    ablation.add_argument(
        "--row", action="append", metavar="LABEL=MODEL", help="Also measure this model; may be repeated."
    )


def _data_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("dataset", choices=sorted(DATASETS), help="Name of the dataset.")
    group = parser.add_argument_group("faces")
    group.add_argument(
        "--data", type=Path, required=True, metavar="FOLDER", help="Folder that the dataset was unpacked to."
    )
    group.add_argument("--test", metavar="SPLIT", help="Split to measure on (default: the benchmark's).")
    group.add_argument("--faces", type=int, metavar="N", help="Measure on the first N faces only.")
    group.add_argument(
        "--partial", action="store_true", help="Accept an incomplete dataset and use the files that are present."
    )
    group.add_argument(
        "--annotations",
        type=Path,
        metavar="CSV",
        help="For aflw_r only: other labels of the test faces (path,name,x,y).",
    )
    return parser


def _add_model_options(group: Any) -> None:
    group.add_argument(
        "--model", default="scemae-tiny", help="Name of a model, or local-dir:PATH (default: %(default)s)."
    )
    group.add_argument(
        "--dtype", choices=DTYPES, default="float32",
        help="Data type of the encoder; bfloat16 is faster on many processors (default: %(default)s).",
    )  # fmt: skip


def _add_heatmap_options(group: Any) -> None:
    group.add_argument(
        "--head-preset", choices=PRESETS,
        help="Values of what follows: ours (default), or those of the paper for all annotations (Table 2) and, where "
        "it is silent, of CL, whose regressor it takes over.",
    )  # fmt: skip
    for name, text in OPTION_HELP.items():
        kind = int if name in ("maps", "steps") else float
        group.add_argument(
            f"--head-{name.replace('_', '-')}", type=kind, metavar="N" if kind is int else "X", help=text
        )
    group.add_argument(
        "--mirror", action=argparse.BooleanOptionalAction,
        help="Learn from mirror images too (on: ours; paper: off, CL).",
    )  # fmt: skip


def _features_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    group = parser.add_argument_group("model and features")
    _add_model_options(group)
    group.add_argument(
        "--extractor", help=f"Measure other features, one of {SPELLINGS}; --model then only aligns the faces."
    )
    group.add_argument("--no-align", action="store_true", help="Use the fixed crop, as the paper does.")
    group.add_argument("--expansion", type=int, choices=(1, 2, 4, 8), help="Cells per patch side.")
    group.add_argument(
        "--margin", choices=("context", "reflect"), default="context",
        help="What the encoder sees beyond the view: the photo, or the view mirrored (default: %(default)s).",
    )  # fmt: skip
    group.add_argument("--use", choices=("backbone", "projected", "both"), help="Features of the model to use.")
    return parser


def _pairs_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    group = parser.add_argument_group("pairs")
    group.add_argument(
        "--pairs", type=int, default=500, metavar="N", help="Number of pairs of each kind (default: %(default)s)."
    )
    group.add_argument(
        "--seeds", type=int, default=1, metavar="N", help="Draw the warps N times (default: %(default)s)."
    )
    group.add_argument(
        "--source", choices=("twice", "original"), default="twice",
        help="Warp the source twice, as in the code of DVE and CL, or not at all, as the paper says "
        "(default: %(default)s).",
    )  # fmt: skip
    group.add_argument("--exact", action="store_true", help="Do not round the labels to whole pixels.")
    return parser


def _output_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    group = parser.add_argument_group("output")
    group.add_argument(
        "--out", type=Path, required=True, metavar="FOLDER", help="Folder for predictions, scores and tables."
    )
    group.add_argument("--overwrite", action="store_true", help="Start again if the folder holds another evaluation.")
    return parser


def _read_fit_split(args: argparse.Namespace) -> FaceDataset:
    return _read_split(args, args.pool or DATASETS[args.dataset].fit_split, None)


def _read_test_split(args: argparse.Namespace) -> FaceDataset:
    return _read_split(args, args.test or DATASETS[args.dataset].test_split, args.annotations)[: args.faces]


def _read_split(args: argparse.Namespace, split: str, annotations: Path | None) -> FaceDataset:
    return read_dataset(args.dataset, args.data, split, exclude="none", annotations=annotations, partial=args.partial)


def _load_extractor(args: argparse.Namespace) -> Extractor:
    return load_extractor(args.model, args.extractor, args.expansion, args.dtype)


def _build_setup(args: argparse.Namespace, extractor: Extractor, use: str | None) -> EvaluationSetup:
    return EvaluationSetup.of(
        extractor,
        align=False if args.no_align else None,
        expansion=args.expansion if args.extractor is None else None,
        margin=args.margin,
        use=use,
    )


def _heatmap_options(args: argparse.Namespace, heads: list[str], pool: int) -> HeatmapOptions:
    given = {name: getattr(args, f"head_{name}") for name in OPTION_HELP} | {"mirror": args.mirror}
    given = {name: value for name, value in given.items() if value is not None}
    if (given or args.head_preset) and not set(heads) & set(HEATMAP_HEADS):
        raise OptionError(
            f"--head-... and --mirror are for {' and '.join(HEATMAP_HEADS)}; the heads here are {', '.join(heads)}: "
            "pass --head heatmap too."
        )
    return HeatmapOptions.of_preset(args.head_preset or "ours", given, dataset=args.dataset, pool=pool)


def _pair_options(args: argparse.Namespace) -> PairOptions:
    return PairOptions(pairs=args.pairs, seeds=args.seeds, source=args.source, rounded=not args.exact)


def _parse_counts(words: list[str] | None, pool: int) -> list[int]:
    """The numbers of faces in the words of --annotated, each of which may be several with commas between."""
    text = ",".join(words or [ANNOTATED])
    try:
        return sorted({pool if part == "all" else int(part) for part in text.split(",")})
    except ValueError as error:
        raise OptionError(f"--annotated is {text!r}; wanted whole numbers and 'all', such as 1,10,all.") from error


def _write_outcome(folder: EvaluationFolder, scores: dict[str, Any], *tables: Table) -> Outcome:
    folder.write_scores(scores, *tables)
    text = "\n\n".join(table.to_markdown() for table in tables)
    return json.loads((folder.path / SCORES).read_text(encoding="utf-8")), f"{text}\n\nwritten to {folder.path}"
