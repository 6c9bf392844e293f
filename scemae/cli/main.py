"""The command `scemae`. Results go to standard output (--json for machines), problems to standard error.

Exit codes: 0 done, 2 bad usage or bad input (one clear line), 130 interrupted.
"""

from __future__ import annotations

import argparse
import importlib
import io
import json
import os
import platform
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import scemae
from scemae.cli import export_commands, hub_commands
from scemae.errors import OptionError, ScemaeError, TableError
from scemae.output import atomic_write, new_path
from scemae.samples import sample_faces
from scemae.tables import read_annotations, read_boxes

if TYPE_CHECKING:
    from PIL import Image

    from scemae.features import FaceFeatures
    from scemae.landmarks import Landmarks
    from scemae.model.sce_mae import SceMae

# Commands with commands of their own, in scemae.cli.train_commands, which is loaded only for them.
TRAINING = {  # command -> module, function there, what it is
    "train": ("scemae.cli.train_commands", "add_train_commands", "Train a model on your own faces."),
    "data": ("scemae.cli.train_commands", "add_data_commands", "Prepare faces for training."),
    "eval": ("scemae.cli.evaluate_commands", "evaluate", "Measure a model, or anybody's features."),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    # Huge pages, which PyTorch asks for if this stands at its first allocation: on a CPU under Linux features take a
    # sixth less time.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of landmarks and files that a terminal cannot show
    try:
        options = _parser(words).parse_args(words)
        result, text = options.run(options)
    except ScemaeError as error:
        report = {"error": type(error).__name__, "message": str(error)}
        print(json.dumps(report) if "--json" in words else f"scemae: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stopped:
        if stopped.args:
            print(f"scemae: {stopped}", file=sys.stderr)
        return 130
    try:
        print(json.dumps(result, indent=2) if options.json else text, flush=True)
    except BrokenPipeError:  # the reader, `head` say, has seen enough
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    except OSError as error:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        print(f"scemae: what was found cannot be printed: {error}.", file=sys.stderr)
        return 2
    return 0


def models(options: argparse.Namespace) -> tuple[Any, str]:
    """The released models."""
    found = scemae.list_models(options.pattern)
    lines = [
        f"{info.name}  {info.config.params / 1e6:.1f} M parameters, {sum(info.files.values()) / 1e6:.0f} MB, "
        f"weights {info.config.license}, "
        + ("bundled" if info.bundled else f"on the Hub: {info.repo}" if info.revision else "not published yet")
        for info in found
    ]
    return [info.to_dict() for info in found], "\n".join(lines) or f"No model matches {options.pattern!r}."


def info(options: argparse.Namespace) -> tuple[Any, str]:
    """What a model is."""
    row = scemae.model_info(options.model).to_dict()
    return row, "\n".join(f"{name}: {value}" for name, value in row.items())


def features(options: argparse.Namespace) -> tuple[Any, str]:
    """Features of faces, as a safetensors file."""
    import torch

    from scemae.weights.model_folder import write_file

    out = _out_path(options)
    found = _extract(_model(options), options.images, options)
    feature_map = found.map(options.use or "backbone")
    crops = torch.stack([torch.from_numpy(face.crop.to_image_affine) for face in found.faces])
    header = {
        "sources": json.dumps([face.source for face in found.faces]),
        "model": json.dumps(list(found.model)),
        "grid": json.dumps({"origin": found.grid.origin, "step": found.grid.step}),
    }
    write_file(out, {"map": feature_map, "crop_to_image": crops}, header, options.overwrite)
    result = {"out": str(out), "map": list(feature_map.shape), "grid": vars(found.grid)}
    return result, f"{out}: map {tuple(feature_map.shape)} of {len(found)} faces"


def match(options: argparse.Namespace) -> tuple[Any, str]:
    """Points of one face found on others."""
    points = _points(options)
    out = _picture_path(options)
    found = _extract(_model(options), [options.reference, *options.images], options)
    matches = scemae.match_landmarks(found[0], points, found[1:], use=options.use, prior=options.prior)
    return _landmarks_result(matches, out)


def fit(options: argparse.Namespace) -> tuple[Any, str]:
    """Fit a landmark detector on annotated faces."""
    out = _out_path(options)
    annotations = read_annotations(Path(options.annotations))
    paths = list(annotations)
    regressor = scemae.fit_regressor(
        _model(options),
        paths,
        list(annotations.values()),
        boxes=_boxes(options, paths),
        head=options.head,
        use=options.use,
        expansion=options.expansion,
        align=False if options.no_align else None,
    )
    regressor.save(out, overwrite=options.overwrite)
    error = None if regressor.held_out_error_ != regressor.held_out_error_ else regressor.held_out_error_
    result = {"out": str(out), "faces": regressor.faces_, "landmarks": regressor.names_, "held_out_error": error}
    return result, f"{regressor}\nwritten to {out}"


def predict(options: argparse.Namespace) -> tuple[Any, str]:
    """Landmarks of faces by a fitted detector."""
    from scemae.detector.regressor import LandmarkRegressor

    out = _picture_path(options)
    model = None if options.model is None else scemae.load_model(options.model)
    regressor = LandmarkRegressor.load(options.regressor, model)
    return _landmarks_result(regressor.predict(options.images, boxes=_boxes(options, options.images)), out)


def demo(options: argparse.Namespace) -> tuple[Any, str]:
    """Points of one sample face found on the other, as a picture."""
    out = new_path(options.out or "scemae-demo.png", options.overwrite)
    reference, target = sample_faces()
    model = _model(options)
    found = scemae.extract_features(model, [reference.path, target.path], boxes=[reference.box, target.box])
    matches = scemae.match_landmarks(found[0], reference.landmarks, found[1], keep_similarity=True)
    return _landmarks_result(matches, out)


def doctor(options: argparse.Namespace) -> tuple[Any, str]:
    """What a bug report needs: versions, device, models."""
    import torch

    names = ("scemae", "torch", "torchvision", "timm", "huggingface-hub", "safetensors", "numpy", "pillow")
    report = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        **{name: _version(name) for name in names},
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "models": [row.name for row in scemae.list_models()],
        "default model": _default_model(),
    }
    return report, "\n".join(f"{name}: {value}" for name, value in report.items())


def _default_model() -> str:
    """What it is, or what is wrong with it: a report is wanted most where something does not work."""
    try:
        return str(scemae.load_model().id)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return scemae.__version__ + " (not installed)" if name == "scemae" else "not installed"


def _model(options: argparse.Namespace) -> SceMae:
    return scemae.load_model(options.model)


def _extract(model: SceMae, images: list[str], options: argparse.Namespace) -> FaceFeatures:
    return scemae.extract_features(
        model,
        images,
        boxes=_boxes(options, images),
        align=False if options.no_align else None,
        expansion=options.expansion,
    )


def _boxes(options: argparse.Namespace, images: Sequence[str | Path]) -> list[Any] | None:
    """The box of each image from --boxes; an image that is not in the file is an error, not a guess."""
    if options.boxes is None:
        return None
    boxes = {path.resolve(): box for path, box in read_boxes(Path(options.boxes)).items()}
    absent = [image for image in images if Path(image).resolve() not in boxes]
    if absent:
        raise TableError(f"{options.boxes} has no box for {absent[0]}.")
    return [boxes[Path(image).resolve()] for image in images]


def _points(options: argparse.Namespace) -> dict[str, tuple[float, float]]:
    """The reference's landmarks from --points and --point."""
    points: dict[str, tuple[float, float]] = {}
    if options.points:
        annotations = {path.resolve(): named for path, named in read_annotations(Path(options.points)).items()}
        points |= annotations.get(Path(options.reference).resolve(), {})
        if not points:
            raise TableError(f"{options.points} has no landmarks of {options.reference}.")
    for text in options.point or []:
        name, _, place = text.rpartition("=")
        try:
            x, y = (float(number) for number in place.split(","))
        except ValueError as error:
            raise OptionError(f"--point is {text!r}; wanted NAME=X,Y or X,Y in pixels of the reference.") from error
        points[name or str(len(points))] = (x, y)
    if not points:
        raise OptionError("There are no points to match; pass --points FILE.csv or --point NAME=X,Y.")
    return points


def _out_path(options: argparse.Namespace) -> Path:
    if options.out is None:
        raise OptionError("There is nowhere to write the result; pass --out FILE.safetensors.")
    return new_path(options.out, options.overwrite)


def _picture_path(options: argparse.Namespace) -> Path | None:
    return None if options.out is None else new_path(options.out, options.overwrite)


def _landmarks_result(landmarks: Landmarks, out: Path | None) -> tuple[Any, str]:
    """The landmarks as JSON and as lines, their picture written to `out`."""
    faces = landmarks.to_dict()
    lines = []
    for face in faces:
        lines.append(face["source"])
        for name, place in face["landmarks"].items():
            lines.append(f"  {name}: {place['x']:.1f} {place['y']:.1f}  score {place['score']:.2f}")
    if out is not None:
        _save_picture(landmarks.draw(), out)
        lines.append(f"picture: {out}")
    return {"faces": faces, "picture": None if out is None else str(out)}, "\n".join(lines)


def _save_picture(picture: Image.Image, out: Path) -> None:
    try:
        with atomic_write(out) as temporary:
            picture.save(temporary)
    except ValueError as error:
        raise OptionError(f"{out} has no ending of a picture format that Pillow knows; say .png.") from error


def _head_names(words: Sequence[str]) -> list[str] | None:
    """The heads of `scemae fit`; None for other commands, which do not wait for torch."""
    if words[:1] != ["fit"]:
        return None
    from scemae.detector.built_in_heads import HEADS

    return list(HEADS)


def _parser(words: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="scemae", description=scemae.__doc__)
    parser.add_argument("--version", action="version", version=f"scemae {scemae.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", help="print the result as JSON")
    chosen = argparse.ArgumentParser(add_help=False)
    chosen.add_argument("--model", default="scemae-tiny", help="name of a model, hf-hub:ORG/REPO or local-dir:PATH")
    seen = argparse.ArgumentParser(add_help=False)
    seen.add_argument("--boxes", metavar="CSV", help="face boxes: path,x0,y0,x1,y1")
    looked = argparse.ArgumentParser(add_help=False)
    looked.add_argument("--no-align", action="store_true", help="the paper's fixed crop")
    looked.add_argument("--expansion", type=int, choices=(1, 2, 4, 8), help="cells per patch side")
    looked.add_argument("--use", choices=("backbone", "projected", "both"), help="which features")
    written = argparse.ArgumentParser(add_help=False)
    written.add_argument("--out", metavar="FILE", help="where to write the result")
    written.add_argument("--overwrite", action="store_true", help="replace the file if it exists")

    def add(run: Any, *parents: argparse.ArgumentParser) -> argparse.ArgumentParser:
        command = commands.add_parser(
            run.__name__, help=run.__doc__, description=run.__doc__, parents=[common, *parents]
        )
        command.set_defaults(run=run)
        return command

    add(models).add_argument("pattern", nargs="?", default="*")
    add(info).add_argument("model", nargs="?", default="scemae-tiny")
    add(features, chosen, seen, looked, written).add_argument("images", nargs="+")
    matching = add(match, chosen, seen, looked, written)
    matching.add_argument("reference")
    matching.add_argument("images", nargs="+")
    matching.add_argument("--points", metavar="CSV", help="annotations, path,name,x,y: those of the reference")
    matching.add_argument("--point", action="append", metavar="NAME=X,Y", help="one point; may be repeated")
    matching.add_argument("--prior", type=float, help="input px; 0 switches the prior on the place off")
    fitting = add(fit, chosen, seen, looked, written)
    fitting.add_argument("annotations", metavar="ANNOTATIONS.csv", help="path,name,x,y")
    fitting.add_argument("--head", choices=_head_names(words), default="cascade")
    predicting = add(predict, seen, written)
    predicting.add_argument("--model", help="the model it was fitted on; default: the released one of that name")
    predicting.add_argument("regressor")
    predicting.add_argument("images", nargs="+")
    export_commands.add_commands(add)
    add(demo, chosen, written)
    add(doctor)
    hub_commands.add_commands(add)
    for name, (module, function, what) in TRAINING.items():
        room = commands.add_parser(name, help=what, description=what)
        if name in words[:1]:
            getattr(importlib.import_module(module), function)(room, common)
    return parser
