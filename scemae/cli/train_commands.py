"""The commands `scemae train STAGE`; `scemae.cli.main` loads them when one is called."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from scemae.cli.dataclass_options import add_fields, given_fields
from scemae.datasets import read_dataset
from scemae.errors import DataError, MissingExtraError, OptionError, RunError
from scemae.output import real_path
from scemae.training.discriminant_config import DiscriminantConfig
from scemae.training.perturbation_config import AlignConfig, FindConfig
from scemae.training.register_config import RegisterConfig
from scemae.training.run_config import (
    STAGE1_PRESETS,
    STAGE1_SOURCES,
    CardFields,
    PublishConfig,
    RunConfig,
    RunOptions,
    Stage1Config,
)
from scemae.training.stage2_config import STAGE2_PRESETS, STAGE2_SOURCES, Stage2Config, stage2_preset

if TYPE_CHECKING:
    from scemae.evaluation.watched_pairs import WatchedPairs
    from scemae.model.config import ModelConfig
    from scemae.training.pack import Pack
    from scemae.training.recipe import History, Recipe

Config = TypeVar("Config", bound=RunConfig)
Outcome = tuple[Any, str]  # the result of a command for --json, and as text
CONFIG_TITLE = "Configuration of {}; it defines the result [default in brackets]"
CARD_TITLE = "Model-card metadata"


def add_train_commands(parser: argparse.ArgumentParser, common: argparse.ArgumentParser) -> None:
    """Add the commands of `scemae train`."""
    stages = parser.add_subparsers(required=True, metavar="STAGE")
    stage1 = add_command(stages, "stage1", run_stage1, common)
    _add_run_arguments(stage1)
    card = CardFields(name="name of RUN", training_data="number and name of --data")
    title = "stage 1, the masked autoencoder (MAE, Sec. 3.1)"
    _add_gradient_options(stage1, Stage1Config, title, STAGE1_PRESETS, sources=STAGE1_SOURCES)
    add_fields(stage1, CardFields, CARD_TITLE, {"": card})

    stage2 = add_command(stages, "stage2", run_stage2, common)
    _add_run_arguments(stage2)
    _add_model_argument(stage2)
    stage2.add_argument("--watch-data", type=Path, metavar="FOLDER", help="Folder that the dataset of --watch is in.")
    shown = {name: stage2_preset(name, "deit-tiny") for name in STAGE2_PRESETS}
    shown["paper with DeiT-S"] = stage2_preset("paper", "deit-small")
    shown["paper with DeiT-B"] = stage2_preset("paper", "deit-base")
    title = "stage 2, CARB and LCR (Sec. 3.2, Sec. 3.3)"
    _add_gradient_options(stage2, Stage2Config, title, shown, tuple(STAGE2_PRESETS), STAGE2_SOURCES)
    add_fields(stage2, CardFields, CARD_TITLE, {})

    discriminant = add_command(stages, "discriminant", run_discriminant, common)
    _add_run_arguments(discriminant)
    _add_model_argument(discriminant)
    discriminant.add_argument("--overwrite", action="store_true", help="Replace RUN/model if it exists.")
    add_fields(discriminant, DiscriminantConfig, CONFIG_TITLE.format("the discriminant"), {"": DiscriminantConfig()})
    add_fields(discriminant, CardFields, CARD_TITLE, {})

    register = add_command(stages, "register", run_register, common)
    _add_run_arguments(register)
    _add_model_argument(register)
    register.add_argument("--resume", action="store_true", help="Continue the run in this folder, if there is one.")
    register.add_argument("--overwrite", action="store_true", help="Replace the run in this folder, if there is one.")
    add_fields(register, RegisterConfig, CONFIG_TITLE.format("the registration"), {"": RegisterConfig()})
    add_fields(register, CardFields, CARD_TITLE, {})

    for name, run, config, title in (
        ("align", run_align, AlignConfig(), "the aligner"),
        ("find", run_find, FindConfig(), "the face finder"),
    ):
        perturbed = add_command(stages, name, run, common)
        _add_run_arguments(perturbed)
        _add_model_argument(perturbed)
        perturbed.add_argument(
            "--backgrounds",
            metavar="FOLDER",
            help="Pictures without faces, which are shown beside the faces and alone; without it plain colours are.",
        )
        _add_gradient_options(perturbed, type(config), title, {"cpu": config})
        add_fields(perturbed, CardFields, CARD_TITLE, {})

    combine = add_command(stages, "combine", run_combine, common)
    _add_model_argument(combine, "Model of which everything else is")
    for part in ("aligner", "finder"):
        combine.add_argument(f"--{part}", metavar="MODEL", help=f"Model of which the {part} is taken.")
    combine.add_argument("--out", required=True, metavar="FOLDER", help="Folder to write.")

    publish = add_command(stages, "publish", run_publish, common)
    _add_model_argument(publish, "Model to publish")
    publish.add_argument("--out", required=True, metavar="FOLDER", help="Folder to write the published model to.")
    publish.add_argument(
        "--measured",
        action="append",
        default=[],
        metavar="OUT",
        help="Folder of a `scemae eval` of this model, whose tables go on the card; may be repeated.",
    )
    publish.add_argument("--notes", metavar="FILE", help="Markdown file to add to the card.")
    publish.add_argument("--overwrite", action="store_true", help="Replace FOLDER if it is a model.")
    add_fields(publish, PublishConfig, "Model-card metadata and defaults of the model", {})


def run_stage1(args: argparse.Namespace) -> Outcome:
    """Stage 1: train a masked autoencoder (MAE) on unlabelled faces (paper Sec. 3.1)."""
    from scemae.training.stage1 import Stage1

    config = _configure(STAGE1_PRESETS[args.preset or "cpu"], args)
    faces = open_faces(args, config.input_size)
    default_card = {
        "name": real_path(args.out).name,
        "training_data": f"{len(faces):,} faces of {Path(faces.source).name}",
    }
    card_fields = CardFields(**default_card | given_fields(args, CardFields))
    return run_training(Stage1(config, faces, card_fields), args, start=config.continue_from)


def run_stage2(args: argparse.Namespace) -> Outcome:
    """Stage 2: train the projector with CARB and LCR (paper Sec. 3.2, Sec. 3.3)."""
    from scemae.training.stage2 import Stage2

    source = _read_model_config(args.model)
    config = _configure(stage2_preset(args.preset or "paper", source.architecture), args)
    faces, watch = open_faces(args, source.input_size), _watched_pairs(config, args)
    recipe = Stage2(config, faces, args.model, given_fields(args, CardFields), watch)
    return run_training(recipe, args, start=args.model)


def _watched_pairs(config: Stage2Config, args: argparse.Namespace) -> WatchedPairs | None:
    """The labelled pairs of --watch."""
    from scemae.evaluation.watched_pairs import WatchedPairs
    from scemae.weights.zoo import load_model

    if config.watch is None:
        return None
    if args.watch_data is None:
        raise OptionError(f"--watch {config.watch} needs --watch-data FOLDER, where that dataset is.")
    name, _, split = config.watch.partition("/")
    dataset = read_dataset(name, args.watch_data, split, exclude="none")
    return WatchedPairs(load_model(args.model), dataset, config.watch_pairs, config.watch_align)


def run_discriminant(args: argparse.Namespace) -> Outcome:
    """Alternative stage 2: fit the projector in closed form, as a positional discriminant (not in the paper)."""
    from scemae.training.discriminant import train_discriminant

    config = DiscriminantConfig(**given_fields(args, DiscriminantConfig))
    faces, card_fields = open_faces(args, _read_model_config(args.model).input_size), given_fields(args, CardFields)
    measured = train_discriminant(args.model, faces, config, Path(args.out), card_fields, args.overwrite)
    return format_report(args.out, measured, [f"{name}: {value:.3f} input px" for name, value in measured.items()])


def run_register(args: argparse.Namespace) -> Outcome:
    """Find the same places on all faces without labels; fit the projector and the dense shape (not in the paper)."""
    from scemae.training.register_faces import train_register

    if args.resume and args.overwrite:
        raise OptionError("--resume and --overwrite cannot both be given: continue the run, or replace it.")
    _check_start(args.model, args.out)
    config = RegisterConfig(**given_fields(args, RegisterConfig))
    faces, card_fields = open_faces(args, _read_model_config(args.model).input_size), given_fields(args, CardFields)
    measured = train_register(
        args.model, faces, config, Path(args.out), card_fields, resume=args.resume, overwrite=args.overwrite
    )
    lines = [f"{name}: {value:.3f}{'' if name == 'folded' else ' input px'}" for name, value in measured.items()]
    return format_report(args.out, measured, lines)


def run_align(args: argparse.Namespace) -> Outcome:
    """Train the aligner without labels, from known perturbations of the faces (docs/alignment.md; not in the paper)."""
    from scemae.training.fit_aligner import AlignRecipe

    return _run_perturbed(AlignRecipe, AlignConfig, args)


def run_find(args: argparse.Namespace) -> Outcome:
    """Train the first look for faces in whole pictures, without labels (docs/find.md; not in the paper)."""
    from scemae.training.fit_finder import FindRecipe

    return _run_perturbed(FindRecipe, FindConfig, args)


def _run_perturbed(recipe: Any, kind: type[AlignConfig], args: argparse.Namespace) -> Outcome:
    config = _configure(kind(), args)
    faces, card_fields = open_faces(args, _read_model_config(args.model).input_size), given_fields(args, CardFields)
    backgrounds = None if args.backgrounds is None else Path(args.backgrounds)
    return run_training(recipe(config, faces, args.model, backgrounds, card_fields), args, start=args.model)


def run_combine(args: argparse.Namespace) -> Outcome:
    """Put parts that were trained side by side into one model."""
    from scemae.training.combine_models import combine_models

    parts = {part: source for part in ("aligner", "finder") if (source := getattr(args, part)) is not None}
    sha256 = combine_models(args.model, parts, Path(args.out))
    return {"out": args.out, "sha256": sha256}, f"SHA-256 {sha256}\nmodel: local-dir:{args.out}"


def run_publish(args: argparse.Namespace) -> Outcome:
    """Make a model ready to publish: metadata, defaults for users, and a card with what `scemae eval` measured."""
    from scemae.evaluation.publish import publish_model

    out, measured = Path(args.out), [Path(folder) for folder in args.measured]
    try:
        if args.notes is not None and not os.path.isfile(args.notes):
            raise FileNotFoundError("there is no such file")
        notes = "" if args.notes is None else Path(args.notes).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"--notes {args.notes} cannot be read: {error}; wanted Markdown in UTF-8.") from error
    files = publish_model(args.model, out, given_fields(args, PublishConfig), measured, notes, args.overwrite)
    lines = [f"{name}: {size:,} bytes, SHA-256 {sha256}" for name, (sha256, size) in files.items()]
    return {"out": str(out), "files": files}, "\n".join([*lines, f"model: local-dir:{out}"])


def open_faces(args: argparse.Namespace, input_size: int) -> Pack:
    """The pack in --data; if --data is images, a pack of them beside the run, made once."""
    from scemae.training.pack import Pack, is_pack, pack_faces

    source, packed = Path(args.data), Path(args.out) / "pack"
    if is_pack(source):
        return Pack.open(source)
    if is_pack(packed) and not vars(args).get("overwrite"):
        faces = Pack.open(packed)
        if faces.source != str(real_path(source)):
            raise DataError(f"{packed} was made of {faces.source}, not of {source}; pass that, or --overwrite.")
        return faces
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise OptionError(
            f"{source} is not a pack, and several processes do not make one: scemae data pack {source} PACK first."
        )
    return pack_faces(source, packed, input_size=input_size, overwrite=True)


def run_training(recipe: Recipe, args: argparse.Namespace, start: str | None) -> Outcome:
    """Train; only the first process reports. `start`: the model that the run starts from."""
    from scemae.training.engine import train
    from scemae.training.processes import leave_processes

    if start:
        _check_start(start, args.out)
    history = train(recipe, Path(args.out), RunOptions(**given_fields(args, RunOptions)))
    if not leave_processes():
        raise SystemExit(0)
    return _format_history(history, recipe.config, args.out)


def _check_start(source: str, run: str) -> None:
    """Raise RunError if the model that a run starts from is the one that it would write."""
    from scemae.training.run_folder import MODEL
    from scemae.weights.zoo import locate_model

    model = Path(run) / MODEL
    if real_path(locate_model(source).folder) == real_path(model):
        raise RunError(f"{model} is the model that this run starts from and would replace; choose another --out.")


def format_report(run: str, result: dict[str, Any], lines: list[str]) -> Outcome:
    """The report of a command that wrote the model of a run."""
    from scemae.training.run_folder import MODEL

    model = Path(run) / MODEL
    return {"model": str(model), **result}, "\n".join([*lines, f"model: local-dir:{model}"])


def _format_history(history: History, config: RunConfig, run: str) -> Outcome:
    loss = history.lines[-1]["loss"] if history.lines else math.nan
    result: dict[str, Any] = {
        "step": history.step,
        "steps": config.steps,
        "loss": None if math.isnan(loss) else loss,
        "hours": history.hours,
        "hardware": history.hardware,
    }
    lines = [f"step {history.step} of {config.steps}, loss {loss:.4f}, {history.hours:.2f} hours on {history.hardware}"]
    if history.profile is not None:
        from scemae.training.run_profile import describe_profile

        result["profile"] = history.profile
        lines.append(describe_profile(history.profile))
    return format_report(run, result, lines)


def _configure(preset: Config, args: argparse.Namespace) -> Config:
    """A preset with what the command line gives; steps given stand instead of the preset's epochs."""
    given = given_fields(args, type(preset))
    if "steps" in given and given.setdefault("epochs", None) is not None:
        raise OptionError(f"--steps {given['steps']} and --epochs {given['epochs']} contradict; pass one of them.")
    return replace(preset, **given)


def _read_model_config(model: str) -> ModelConfig:
    from scemae.weights.model_folder import read_config
    from scemae.weights.zoo import locate_model

    return read_config(locate_model(model).folder)


def _add_run_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data", required=True, help="Faces: a pack, or images, from which a pack is made first in RUN/pack."
    )
    parser.add_argument("--out", required=True, metavar="RUN", help="Folder of the run; the model goes to RUN/model.")


def _add_model_argument(parser: argparse.ArgumentParser, what: str = "Model to start from") -> None:
    parser.add_argument("--model", required=True, help=f"{what}: its name, or local-dir:PATH.")


def _add_gradient_options(
    parser: argparse.ArgumentParser,
    config: type[RunConfig],
    title: str,
    presets: Mapping[str, RunConfig],
    names: Sequence[str] = (),
    sources: Mapping[str, str] | None = None,
) -> None:
    """Add the options of gradient-based training: presets, run options, the fields of the configuration.

    `presets`: their values are shown; `names`: those that can be chosen, by default all. `sources`: see `add_fields`.
    """
    default = next(iter(presets))
    parser.add_argument(
        "--preset",
        choices=tuple(names or presets),
        help=f"Supplies the values of configuration options that are not given [{default}].",
    )
    add_fields(parser, RunOptions, "Runtime options (do not affect the result)", {"": RunOptions()})
    add_fields(parser, config, CONFIG_TITLE.format(title), presets, sources)


def add_command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], Outcome], common: argparse.ArgumentParser
) -> argparse.ArgumentParser:
    """Add a command that needs the extra `train`; its help is the docstring of `run`."""

    def check_extra_and_run(args: argparse.Namespace) -> Outcome:
        for package in ("accelerate", "filelock", "matplotlib", "pyarrow"):
            if find_spec(package) is None:
                raise MissingExtraError(f'This command needs {package}: pip install "scemae[train]"')
        return run(args)

    parser = commands.add_parser(name, help=run.__doc__, description=run.__doc__, parents=[common])
    parser.set_defaults(run=check_extra_and_run)
    return parser
