"""The commands `scemae train STAGE` and `scemae data VERB`; `scemae.cli.main` loads them when one is called."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scemae.cli.data_check_command import add_data_check
from scemae.cli.dataclass_options import add_fields, given_fields
from scemae.datasets import read_dataset
from scemae.errors import DataError, MissingExtraError, OptionError, RunError
from scemae.tables import read_boxes
from scemae.training.run_config import (
    STAGE1_PRESETS,
    STAGE2_PRESETS,
    AlignConfig,
    CardFields,
    PublishConfig,
    RunConfig,
    RunOptions,
    Stage1Config,
    Stage2Config,
    unused_settings,
)

if TYPE_CHECKING:
    from scemae.training.engine import History
    from scemae.training.pack import Pack

Command = Callable[[argparse.Namespace], tuple[Any, str]]


def train(parser: argparse.ArgumentParser, common: argparse.ArgumentParser) -> None:
    """The stages of training."""
    stages = parser.add_subparsers(required=True, metavar="STAGE")
    first = _add(stages, stage1, common)
    add_training(first, Stage1Config, STAGE1_PRESETS)
    add_fields(first, CardFields, {"": CardFields(name="name of RUN", training_data="number and name of --data")})
    second = _add(stages, stage2, common)
    add_training(second, Stage2Config, STAGE2_PRESETS)
    alignment = _add(stages, align, common)
    add_faces(alignment)
    alignment.add_argument("--overwrite", action="store_true", help="replace RUN/model if it is there")
    add_fields(alignment, AlignConfig, {"": AlignConfig()})
    for parser in (second, alignment):
        parser.add_argument("--model", required=True, help="whose backbone: name of a model, or local-dir:PATH")
        add_fields(parser, CardFields, {})
    last = _add(stages, publish, common)
    last.add_argument("--model", required=True, help="name of a model, or local-dir:PATH")
    last.add_argument("--out", required=True, metavar="FOLDER", help="folder of the model to publish")
    last.add_argument("--measured", action="append", default=[], metavar="OUT", help="a scemae eval; may be repeated")
    last.add_argument("--notes", metavar="FILE", help="Markdown for the card")
    last.add_argument("--overwrite", action="store_true", help="replace FOLDER if it is a model")
    add_fields(last, PublishConfig, {})


def data(parser: argparse.ArgumentParser, common: argparse.ArgumentParser) -> None:
    """What is done with faces before training."""
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    packing = _add(verbs, pack, common)
    packing.add_argument("images", help="a folder, a .tar, or a .parquet with a column `image`")
    packing.add_argument("out", help="folder to write")
    packing.add_argument(
        "--boxes", metavar="CSV", help="face boxes: path,x0,y0,x1,y1; path as in the tar, if it is one"
    )
    packing.add_argument(
        "--split",
        metavar="DATASET/SPLIT",
        help="these faces in their frame: celeba/train, IMAGES its folder",
    )
    packing.add_argument(
        "--exclude", choices=("mafl", "none"), default="mafl", help="what is left out of CelebA [MAFL's images]"
    )
    packing.add_argument(
        "--size", type=int, default=136, help="px of the stored squares, whose central 96 are the input"
    )
    packing.add_argument("--skip-at-most", type=float, default=0.01, help="part of the images that may be unusable")
    aligning = _add(verbs, upright, common, name="align")
    aligning.add_argument("pack", metavar="PACK", help="faces, as scemae data pack writes them")
    aligning.add_argument("out", help="folder to write")
    aligning.add_argument("--model", default="scemae-tiny", help="whose aligner: name of a model, or local-dir:PATH")
    aligning.add_argument("--steps", type=int, default=4, help="so many of the last steps of the model's alignment")
    add_data_check(verbs, common)
    for writing in (packing, aligning):
        writing.add_argument("--overwrite", action="store_true", help="replace the pack if there is one")


def add_faces(parser: argparse.ArgumentParser) -> None:
    """What every training command takes: faces and a run's folder."""
    parser.add_argument("--data", required=True, help="a pack, or images, which are packed first, to OUT/pack")
    parser.add_argument("--out", required=True, metavar="RUN", help="folder of the run; the model goes to RUN/model")


def add_training(parser: argparse.ArgumentParser, config: type[RunConfig], presets: dict[str, Any]) -> None:
    """What training commands with steps take: a preset, the fields of its configuration, how the run goes."""
    add_faces(parser)
    parser.add_argument("--preset", choices=tuple(presets))
    add_fields(parser, RunOptions, {"": RunOptions()})
    add_fields(parser, config, presets)


def stage1(options: argparse.Namespace) -> tuple[Any, str]:
    """Stage 1: a masked autoencoder on unlabelled faces (paper Sec. 3.1)."""
    from scemae.training.stage1 import Stage1

    config = replace(STAGE1_PRESETS[options.preset or "cpu"], **given_fields(options, Stage1Config))
    faces = training_faces(options)
    return trained(Stage1(config, faces, label(options, faces)), options)


def stage2(options: argparse.Namespace) -> tuple[Any, str]:
    """Stage 2: the projector (paper Sec. 3.2-3.3). Preset: paper, or lda with that objective."""
    from scemae.training.stage2 import Stage2, train_positional

    given = given_fields(options, Stage2Config)
    preset = options.preset or ("lda" if given.get("objective") == "lda" else "paper")
    config = replace(STAGE2_PRESETS[preset], **given)
    idle = sorted((given | given_fields(options, RunOptions)).keys() & unused_settings(config.objective))
    if idle:
        raise OptionError(
            f'{", ".join(idle)}: objective "{config.objective}" makes no use of it, or has it from the model.'
        )
    faces, named = training_faces(options), given_fields(options, CardFields)
    if config.objective == "lcr":
        return trained(Stage2(config, faces, options.model, named), options)
    overwrite = bool(given_fields(options, RunOptions).get("overwrite"))
    measured = train_positional(options.model, faces, config, Path(options.out), named, overwrite)
    return written(Path(options.out), measured, [f"{name}: {value:.3f} input px" for name, value in measured.items()])


def align(options: argparse.Namespace) -> tuple[Any, str]:
    """The aligner, learned without labels from known motions of the faces (docs/alignment.md)."""
    from scemae.training.fit_aligner import train_align

    config = AlignConfig(**given_fields(options, AlignConfig))
    faces, named = training_faces(options), given_fields(options, CardFields)
    errors = train_align(options.model, faces, config, Path(options.out), named, options.overwrite)
    lines = [
        f"amplitude {error.amplitude:g}: points {error.unmoved:.2f} px away, predicted to {error.predicted:.2f} px"
        for error in errors
    ]
    return written(Path(options.out), {"stages": [asdict(error) for error in errors]}, lines)


def publish(options: argparse.Namespace) -> tuple[Any, str]:
    """The model of a run with the choices of who publishes it, and a card with what scemae eval measured."""
    from scemae.evaluation.publish import publish_model

    out, measured = Path(options.out), [Path(folder) for folder in options.measured]
    try:
        notes = "" if options.notes is None else Path(options.notes).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"--notes {options.notes} cannot be read: {error}; wanted Markdown in UTF-8.") from error
    files = publish_model(options.model, out, given_fields(options, PublishConfig), measured, notes, options.overwrite)
    lines = [f"{name}: {size:,} bytes, SHA-256 {sha256}" for name, (sha256, size) in files.items()]
    return {"out": str(out), "files": files}, "\n".join([*lines, f"model: local-dir:{out}"])


def written(run: Path, result: dict[str, Any], lines: list[str]) -> tuple[Any, str]:
    """The report of a command that wrote a model in one go."""
    from scemae.training.run_folder import MODEL

    return {"model": str(run / MODEL), **result}, "\n".join([*lines, f"model: local-dir:{run / MODEL}"])


def upright(options: argparse.Namespace) -> tuple[Any, str]:
    """A pack of the same faces upright and centred, by the model's aligner."""
    from scemae.training.fit_aligner import align_pack
    from scemae.training.pack import Pack
    from scemae.weights.zoo import load_model

    packed = Pack.open(Path(options.pack))
    aligned = align_pack(
        load_model(options.model), packed, Path(options.out), steps=options.steps, overwrite=options.overwrite
    )
    return _packed(aligned)


def pack(options: argparse.Namespace) -> tuple[Any, str]:
    """Decode every image once, so that training does not wait for it."""
    from scemae.training.pack import pack_faces

    source, boxes = Path(options.images), None
    if options.split is not None:
        boxes = _split_boxes(options.split, source, options.exclude)
    elif options.boxes is not None:
        boxes = _boxes(Path(options.boxes), source)
    packed = pack_faces(
        source,
        Path(options.out),
        size=options.size,
        boxes=boxes,
        only_boxed=options.split is not None,
        skip_at_most=options.skip_at_most,
        overwrite=options.overwrite,
    )
    return _packed(packed)


def _packed(pack: Pack) -> tuple[Any, str]:
    """What a command that wrote a pack says of it."""
    result = {"out": str(pack.folder), "faces": len(pack), "size": pack.size, "skipped": dict(pack.skipped)}
    lines = [f"{pack.folder}: {len(pack)} faces of {pack.size} x {pack.size} px"]
    return result, "\n".join(lines + [f"left out: {name}: {why}" for name, why in pack.skipped.items()])


def training_faces(options: argparse.Namespace) -> Pack:
    """The pack that --data is, or that it is made into beside the run, once."""
    from scemae.training.pack import Pack, is_pack, pack_faces

    source, packed = Path(options.data), Path(options.out) / "pack"
    if is_pack(source):
        return Pack.open(source)
    if is_pack(packed) and not given_fields(options, RunOptions).get("overwrite"):
        found = Pack.open(packed)
        if found.source != str(source.resolve()):
            raise DataError(f"{packed} was made of {found.source}, not of {source}; give that, or --overwrite.")
        return found
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise OptionError(
            f"{source} is no pack, and several processes make none: scemae data pack {source} PACK first."
        )
    return pack_faces(source, packed, overwrite=True)


def label(options: argparse.Namespace, faces: Pack) -> CardFields:
    """What the command line says of the model, or else what its folders are called."""
    seen = f"{len(faces):,} faces of {Path(faces.source).name}"
    return CardFields(
        **{"name": Path(options.out).resolve().name, "training_data": seen} | given_fields(options, CardFields)
    )


def trained(recipe: Any, options: argparse.Namespace) -> tuple[Any, str]:
    """Train; the result is told by the first process only."""
    from accelerate import PartialState

    from scemae.training.engine import train
    from scemae.training.run_folder import MODEL
    from scemae.weights.zoo import locate_model

    model = Path(options.out) / MODEL
    start = getattr(options, "model", None) or getattr(options, "continue_from", None)
    if start and locate_model(start).folder.resolve() == model.resolve():
        raise RunError(f"{model} is where this run would start and what it would replace; choose another --out.")
    history = train(recipe, Path(options.out), RunOptions(**given_fields(options, RunOptions)))
    state = PartialState()
    state.destroy_process_group()
    if not state.is_main_process:
        raise SystemExit(0)
    return _report(history, recipe.config, model)


def _report(history: History, config: RunConfig, model: Path) -> tuple[Any, str]:
    loss = history.lines[-1]["loss"] if history.lines else math.nan
    result = {
        "model": str(model),
        "step": history.step,
        "steps": config.steps,
        "loss": None if math.isnan(loss) else loss,
        "hours": history.hours,
        "hardware": history.hardware,
    }
    text = f"step {history.step} of {config.steps}, loss {loss:.4f}, {history.hours:.2f} hours on {history.hardware}"
    return result, f"{text}\nmodel: local-dir:{model}"


def _boxes(table: Path, source: Path) -> dict[Path, Any]:
    """Boxes as `pack_faces` wants them: an archive's images are named by what stands in the table itself."""
    boxes = read_boxes(table)
    if source.is_dir():
        return {path.resolve(): box for path, box in boxes.items()}
    return {path.relative_to(table.parent): box for path, box in boxes.items()}


def _split_boxes(split: str, folder: Path, exclude: str) -> dict[Path, Any]:
    """The boxes of a data set's split, as `pack_faces` wants them."""
    name, _, part = split.partition("/")
    dataset = read_dataset(name, folder, part, exclude=exclude)
    if any(sample.resized for sample in dataset.samples):
        raise OptionError(f"--split {split}: the protocol stretches these pictures first, which no pack does.")
    return {sample.path.resolve(): sample.box for sample in dataset.samples}


def _add(
    commands: Any, run: Command, common: argparse.ArgumentParser, name: str | None = None
) -> argparse.ArgumentParser:
    def checked(options: argparse.Namespace) -> tuple[Any, str]:
        for package in ("accelerate", "filelock", "pyarrow"):
            if find_spec(package) is None:
                raise MissingExtraError(f'This command needs {package}; say: pip install "scemae[train]"')
        return run(options)

    parser = commands.add_parser(name or run.__name__, help=run.__doc__, description=run.__doc__, parents=[common])
    parser.set_defaults(run=checked)
    return parser  # type: ignore[no-any-return]
