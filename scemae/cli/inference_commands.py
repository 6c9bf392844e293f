"""The commands that use a model: models, info, boxes, features, match, fit, predict, demo and doctor."""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import scemae
from scemae import draw
from scemae.cli.inference_inputs import has_table, list_photos, open_batch, path_in_table, reference_points
from scemae.errors import ImageInputError, OptionError, escape_controls
from scemae.output import find_leftovers, new_path, write_picture
from scemae.samples import sample_faces
from scemae.tables import match_boxes, read_annotations, read_boxes, read_groups, write_boxes

if TYPE_CHECKING:
    from scemae.face_boxes import FaceBoxes
    from scemae.features import FaceFeatures
    from scemae.images import ImageBatch
    from scemae.landmarks import Landmarks
    from scemae.photo import Photo

PACKAGES = ("scemae", "torch", "torchvision", "timm", "huggingface-hub", "safetensors", "numpy", "pillow")
Report = tuple[Any, str, Iterator[str]]  # for --json, as text, and lines that follow once these are printed
MODEL_HELP = "Name of a released model (default: scemae-tiny), hf-hub:ORG/REPO, or local-dir:PATH."


def models(args: argparse.Namespace) -> tuple[Any, str]:
    """List the released models."""
    found = scemae.list_models(args.pattern)
    lines = [
        f"{info.name}  {info.config.params / 1e6:.1f} M parameters, {sum(info.files.values()) / 1e6:.0f} MB, "
        f"weights {info.config.license}, "
        + ("bundled" if info.bundled else f"on the Hub: {info.repo}" if info.revision else "not published yet")
        for info in found
    ]
    return [info.to_dict() for info in found], "\n".join(lines) or f"No model matches {args.pattern!r}."


def info(args: argparse.Namespace) -> tuple[Any, str]:
    """Describe a model: architecture, training data, licence, defaults, files."""
    row = scemae.model_info(args.model).to_dict()
    return row, "\n".join(f"{name}: {value}" for name, value in row.items())


def boxes(args: argparse.Namespace) -> Report:
    """Find the faces of photos and write the table of their boxes."""
    from scemae.face_boxes import find_faces_on
    from scemae.images import ImageBatch
    from scemae.progress import with_progress

    out = None if args.out is None else new_path(args.out, args.overwrite)
    batch = ImageBatch(list_photos(args.photos), "auto", on_error="skip")
    model = scemae.load_model(args.model)
    found: list[FaceBoxes] = []

    def find_boxes(photo: Photo) -> Any:
        found.append(find_faces_on(photo, model, args.min_size, args.max_faces))
        return found[-1].xyxy

    batch.find_boxes = find_boxes
    for _ in with_progress(([face] for face in batch), None):
        pass  # `found` has more
    rows, lines = [], []
    for photo in found:
        lines += [f"{escape_controls(photo.source)}: {len(photo)} face{'s' * (len(photo) != 1)}"]
        for face, (box, score, roll) in enumerate(zip(photo.xyxy.tolist(), photo.scores, photo.rolls, strict=True)):
            rows.append((photo.source, face, box, float(score), float(roll)))
            place = " ".join(f"{edge:.1f}" for edge in box)
            lines.append(f"  face {face}: {place}  score {score:.2f}, turned {roll:+.0f}°")
    if out is not None:
        write_boxes(out, [(path_in_table(source, out), *rest) for source, *rest in rows])
        lines.append(f"{out}: {len(rows)} faces")
    columns = ("source", "face", "box", "score", "roll")
    faces = [dict(zip(columns, row, strict=True)) for row in rows]
    result = {"out": None if out is None else str(out), "faces": faces, "failed": _failures(batch)}
    return result, "\n".join(lines), _finish(batch)


def features(args: argparse.Namespace) -> Report:
    """Extract features of faces to a safetensors file."""
    import torch

    from scemae.weights.model_folder import write_file

    out = _tensor_file_path(args)
    batch = open_batch(args.images, args)
    faces = _extract(batch, args)
    feature_map = faces.map(args.use or "backbone")
    crops = torch.stack([torch.from_numpy(face.crop.to_image_affine) for face in faces.faces])
    header = {
        "sources": json.dumps([face.source for face in faces.faces]),
        "faces": json.dumps([face.number for face in faces.faces]),
        "model": json.dumps(list(faces.model)),
        "grid": json.dumps({"origin": faces.grid.origin, "step": faces.grid.step}),
    }
    write_file(out, {"map": feature_map, "crop_to_image": crops}, header, args.overwrite)
    result = {"out": str(out), "map": list(feature_map.shape), "grid": vars(faces.grid), "failed": _failures(batch)}
    return result, f"{out}: map {tuple(feature_map.shape)} of {len(faces)} faces", _finish(batch)


def match(args: argparse.Namespace) -> Report:
    """Find points of one face on other faces."""
    from scemae.matching import validate_prior

    key, points = reference_points(args)
    if args.prior is not None:
        validate_prior(args.prior)
    out = _picture_path(args.out, args, len(args.images))
    batch = open_batch([args.reference, *args.images], args, {key: points})
    faces = _extract(batch, args)
    matches = scemae.match_landmarks(faces[0], points, faces[1:], use=args.use, prior=args.prior)
    return _report_landmarks(matches, out, batch)


def fit(args: argparse.Namespace) -> tuple[Any, str]:
    """Fit a landmark detector on annotated faces."""
    out = _tensor_file_path(args)
    annotations = read_annotations(Path(args.annotations))
    groups = read_groups(Path(args.annotations))
    regressor = scemae.fit_regressor(
        scemae.load_model(args.model),
        [key.path for key in annotations],
        list(annotations.values()),
        boxes=match_boxes(annotations, read_boxes(args.boxes)) if has_table(args) else args.boxes,
        groups=[groups[key] for key in annotations],
        head=args.head,
        use=args.use,
        expansion=args.expansion,
        align=_align(args),
    )
    regressor.save(out, overwrite=args.overwrite)
    error = None if regressor.held_out_error_ != regressor.held_out_error_ else regressor.held_out_error_
    result = {"out": str(out), "faces": regressor.faces_, "landmarks": regressor.names_, "held_out_error": error}
    return result, f"{regressor}\nwritten to {out}"


def predict(args: argparse.Namespace) -> Report:
    """Find landmarks on faces with a fitted detector."""
    from scemae.detector.regressor import LandmarkRegressor
    from scemae.landmarks import validate_coverage

    if args.coverage is not None:
        validate_coverage(args.coverage)
    out = _picture_path(args.out, args, len(args.images))
    batch: Any = open_batch(args.images, args)
    model = None if args.model is None else scemae.load_model(args.model)
    regressor = LandmarkRegressor.load(args.regressor, model)
    return _report_landmarks(regressor.predict(batch, batch_size=args.batch_size), out, batch, args.coverage)


def demo(args: argparse.Namespace) -> Report:
    """Match eight points between the two sample faces, draw a picture and print the error."""
    import numpy as np

    from scemae.metrics import distance_between, normalised_errors

    out = _picture_path(args.out or "scemae-demo.png", args, 1)
    reference, target = sample_faces()
    model = scemae.load_model(args.model)
    faces = scemae.extract_features(model, [reference.path, target.path], boxes=[reference.box, target.box])
    prior = 25.0  # input px: on these two it saves the chin, which is at the very edge of the input
    matches = scemae.match_landmarks(faces[0], reference.landmarks, faces[1], prior=prior)
    result, text, picture = _report_landmarks(matches, out)

    labels = matches.labels()
    annotated = np.array([[target.landmarks[name] for name in labels]])
    eyes = distance_between(annotated, labels.index("left_eye"), labels.index("right_eye"))
    errors = 100 * normalised_errors(matches.xy, annotated, eyes)[0]
    result |= {"prior": prior, "error_percent": dict(zip(labels, errors.tolist(), strict=True))}
    worst = labels[errors.argmax()]
    text += (
        f"\nerror: {errors.mean():.1f} % of the distance between the eyes, at most {errors.max():.1f} % ({worst})\n"
        f"settings: match_landmarks(..., prior={prior:g})"
    )
    return result, text, picture


def doctor(args: argparse.Namespace) -> tuple[Any, str]:
    """Report versions, device and models, for bug reports, and files that killed commands left in this folder."""
    import torch

    report = {
        "python": platform.python_version(),
        "platform": platform.platform(),
        **{name: _version_of(name) for name in PACKAGES},
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "models": [row.name for row in scemae.list_models()],
        "default model": _check_default_model(),
        "unfinished files here": find_leftovers(Path()),
    }
    return report, "\n".join(f"{name}: {value}" for name, value in report.items())


def add_commands(add: Any) -> None:
    """Add the commands to the parser. `add(run, *parents)` makes a sub-command named after its function."""
    model, framing, batch, extraction = _model_options(), _box_options(), _batch_options(), _extraction_options()
    picture = _out_options("Save a picture of the landmarks to this file, such as landmarks.png.")

    add(models).add_argument("pattern", nargs="?", default="*", help='Only models whose name matches, "*small" say.')
    add(info).add_argument("model", nargs="?", default="scemae-tiny", help=MODEL_HELP)

    command = add(boxes, model, _out_options("Write the table path,face,x0,y0,x1,y1,score,roll to this file."))
    command.add_argument("photos", nargs="+", metavar="PHOTO", help="Photos, or folders to search for photos.")
    command.add_argument(
        "--min-size",
        type=float,
        metavar="PX",
        help="Side of the smallest faces to look for, brow to chin, at least 16. Default: a thirtieth of the longer "
        "side of the photo, at least 32.",
    )
    command.add_argument("--max-faces", type=int, metavar="N", help="Keep the N surest of each photo. Default: all.")

    command = add(
        features, model, framing, batch, extraction, _out_options("Write the features to this .safetensors file.")
    )
    command.add_argument("images", nargs="+", metavar="IMAGE", help="Photos, each of one face without --boxes.")

    command = add(match, model, framing, batch, extraction, picture)
    command.add_argument("reference", metavar="REFERENCE", help="The photo on which the points are given.")
    command.add_argument("images", nargs="+", metavar="IMAGE", help="Photos on which to find them.")
    command.add_argument("--points", metavar="CSV", help="Table path,name,x,y with the points of REFERENCE.")
    command.add_argument(
        "--point",
        action="append",
        metavar="NAME=X,Y",
        help="A point in pixels of REFERENCE, (0, 0) the centre of its top-left pixel. May be repeated.",
    )
    command.add_argument(
        "--prior",
        type=float,
        metavar="PX",
        help="Prefer matches near the reference's position, within about PX of the input's 96 pixels; 0 is off. "
        "Default: the model's choice.",
    )

    command = add(fit, model, framing, extraction, _out_options("Write the detector to this .safetensors file."))
    command.add_argument(
        "annotations",
        metavar="ANNOTATIONS.csv",
        help="Table path,name,x,y: one landmark per line, in pixels. In an optional column face, number the faces of a "
        "photo from 0; in another, group, images of one person have the same word and are held out together.",
    )
    command.add_argument(
        "--head",
        default="cascade",
        help="Head to fit: cascade, a cascade of ridge regressions (default), or heatmap, the paper's head.",
    )

    command = add(predict, framing, batch, picture)
    command.add_argument("--model", help="The model that the detector was fitted on. Default: found by its name.")
    command.add_argument(
        "--coverage",
        type=float,
        metavar="C",
        help="Share of points that shall lie within their radius; the picture shows the radii too. Default: 0.9, and "
        "they are not drawn.",
    )
    command.add_argument("regressor", metavar="DETECTOR", help="File written by scemae fit.")
    command.add_argument("images", nargs="+", metavar="IMAGE", help="Photos, each of one face without --boxes.")

    add(demo, model, _out_options("Save the picture of the matches to this file. Default: scemae-demo.png."))
    add(doctor)


def _model_options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--model", default="scemae-tiny", help=MODEL_HELP)
    return parser


def _box_options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument(
        "--boxes",
        metavar="CSV",
        help="Table path,x0,y0,x1,y1 with the box of each face, from brow to chin; in an optional column face, number "
        "the faces of a photo from 0. Or auto: all faces that are found. Default: the middle of each photo.",
    )
    return parser


def _batch_options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument(
        "--batch-size",
        type=int,
        default=16,
        metavar="N",
        help="Faces that go through the model together: fewer take less memory. Default: 16.",
    )
    return parser


def _extraction_options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument(
        "--no-align", action="store_true", help="Do not align the faces; use the boxes as they are, as the paper does."
    )
    parser.add_argument(
        "--expansion",
        type=int,
        choices=(1, 2, 4, 8),
        help="Map cells per patch side: more give a finer map and take longer. Default: the model's choice.",
    )
    parser.add_argument(
        "--use", choices=("backbone", "projected", "both"), help="Features to use. Default: the model's choice."
    )
    return parser


def _out_options(meaning: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--out", metavar="FILE", help=meaning)
    parser.add_argument("--overwrite", action="store_true", help="Replace FILE if it exists.")
    return parser


def _align(args: argparse.Namespace) -> bool | None:
    return False if args.no_align else None


def _extract(batch: Any, args: argparse.Namespace) -> FaceFeatures:
    options: dict[str, Any] = {"align": _align(args), "expansion": args.expansion, "batch_size": args.batch_size}
    return scemae.extract_features(scemae.load_model(args.model), batch, **options)


def _tensor_file_path(args: argparse.Namespace) -> Path:
    if args.out is None:
        raise OptionError("There is nowhere to write the result; pass --out FILE.safetensors.")
    return new_path(args.out, args.overwrite)


def _picture_path(out: str | None, args: argparse.Namespace, faces: int) -> Path | None:
    """Where to save a picture of so many faces; raises OutputError or OptionError where that will not be possible."""
    if out is None:
        return None
    path = new_path(out, args.overwrite)
    if path.suffix.lower() not in draw.PICTURE_ENDINGS:
        endings = ", ".join(draw.PICTURE_ENDINGS)
        raise OptionError(f"{path} has no ending of a picture format that scemae writes; wanted one of {endings}.")
    draw.check_count(faces)
    return path


def _report_landmarks(
    landmarks: Landmarks, out: Path | None, batch: ImageBatch | None = None, coverage: float | None = None
) -> Report:
    """The landmarks for --json and as text; then draws them to `out`, and raises the error about skipped images.

    With a coverage their radii are drawn too, and it is an error if they have none.
    """
    from scemae.features import name_faces

    if coverage is not None:
        landmarks.radius(coverage)  # says why there is none
    faces = landmarks.to_dict() if coverage is None else landmarks.to_dict(coverage)
    lines = []
    for label, face in zip(name_faces(landmarks.faces), faces, strict=True):
        lines.append(escape_controls(label))
        for name, place in face["landmarks"].items():
            radius = "" if place.get("radius") is None else f"  radius {place['radius']:.1f}"
            at = f"{place['x']:.1f} {place['y']:.1f}  score {place['score']:.2f}"
            lines.append(f"  {escape_controls(name)}: {at}{radius}")
    result = {"faces": faces, "picture": None if out is None else str(out), "failed": _failures(batch)}
    return result, "\n".join(lines), _finish(batch, landmarks, out, coverage or False)


def _finish(
    batch: ImageBatch | None, landmarks: Landmarks | None = None, out: Path | None = None, radius: float | bool = False
) -> Iterator[str]:
    """Draw the landmarks to `out`, then raise ImageInputError if an image could not be used. Gives lines to print."""
    if landmarks is not None and out is not None:
        write_picture(out, landmarks.draw(radius))
        yield f"picture: {out}"
    if batch is not None and batch.failed:
        names = [str(failure) for failure in batch.failed]
        more = f" and {len(names) - 8} more" if len(names) > 8 else ""
        raise ImageInputError(f"{', '.join(names[:8])}{more} could not be used; the other images are done.")


def _failures(batch: ImageBatch | None) -> list[dict[str, Any]]:
    """The images that could not be used, for --json; "face" is the one of several that could not."""
    return [
        {"source": source, "face": face, "error": type(error).__name__, "message": str(error)}
        for source, error, face in ([] if batch is None else batch.failed)
    ]


def _check_default_model() -> str:
    """The id of the default model, or what is wrong with it: bug reports are about things that do not work."""
    try:
        return str(scemae.load_model().id)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def _version_of(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return scemae.__version__ + " (not installed)" if package == "scemae" else "not installed"
