"""Features or landmarks of many pictures on the machines of a Ray cluster: pip install "scemae[ray]"

    python examples/features_at_scale.py photos/ features/ --boxes boxes.csv --workers 8

SOURCE, which all machines see under one path, as they do OUT, is a folder, searched below, with one of these kinds of
files, or one such file:

    pictures    --boxes is a table as `scemae boxes` writes it (a picture that it lacks is an error), or auto
    .tar        WebDataset: of each sample the picture, and in its .json `box`, or `boxes` of several faces
    .parquet    columns `image` (the bytes of a file) and, if they are there, `path`, `box` or `boxes`

A box is [x0, y0, x1, y1] in pixels, from brow to chin. A picture without one is taken to be filled by its face.

OUT gets Parquet files, shards in the order of the pictures, with a row for each face:

    path, face     the picture, and the number of the face on it
    box            x0, y0, x1, y1, as given or found
    found, score   whether there is a face, and the probability of it; null and nan where the model cannot tell
    crop           the affine (2, 3), by rows, from the pixels that the model saw to those of the picture
    features       float16 bytes of a map (D, h, w); its `shape` is in the JSON of the schema's metadata, "scemae"
    landmarks      in place of features with --detector: x0, y0, x1, y1, ... in pixels of the picture
    confidences    of the landmarks
    error          why a picture or box could not be used, or null
    model_sha256   of the model's weights

A shard is written whole or not at all, under a name that follows from the names of its pictures, their boxes and the
settings. So each row is there once whatever dies, and the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import tarfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby, islice
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import torch
from PIL import Image
from pyarrow import dataset, parquet

import scemae
from scemae.errors import DataError, ImageInputError, MissingExtraError, OptionError, OutputError, ScemaeError
from scemae.output import atomic_write, find_leftovers, make_folder, real_path, remove
from scemae.patches import validate_box
from scemae.photo import is_picture_name, read_photo
from scemae.samples import sample_faces
from scemae.tables import boxes_by_image, read_boxes

Faces = list[tuple[int, Any]] | None  # the faces of a picture, their numbers and boxes; None: not given
Row = dict[str, Any]
RETRIES = 3  # of a shard whose worker dies: it may be one of its pictures that kills
ROWS = 256  # in a row group: 57 MB of features of scemae-tiny


class Unit(NamedTuple):
    """What a shard is made of: pictures in a folder, a row group of a Parquet file, or a tar (None)."""

    source: str
    part: list[tuple[str, Faces]] | int | None


class Picture(NamedTuple):
    """A picture's name in the table; its path, the bytes of its file, or why there are none; its faces."""

    name: str
    content: Any
    faces: Faces


def list_units(source: Path, table: Path | None, size: int) -> list[Unit]:
    """What each shard will be made of: of a folder of pictures, `size` of them. Raises DataError for other sources."""
    root = source.parent if source.is_file() else source
    files = [source] if source.is_file() else sorted(path for path in source.rglob("*") if path.is_file())
    tars, tables = ([path for path in files if path.suffix == suffix] for suffix in (".tar", ".parquet"))
    pictures = [path for path in files if is_picture_name(path.name)]
    if sum(map(bool, (pictures, tars, tables))) != 1:
        counts = f"{len(pictures)} pictures, {len(tars)} tars and {len(tables)} Parquet files"
        raise DataError(f"{source} has {counts}; wanted a folder with one of these kinds, or one such file.")
    if table and not pictures:
        raise OptionError(f"--boxes is {table}; tars and Parquet files have boxes of their own: leave it out, or auto.")
    try:
        groups = [Unit(str(path), row) for path in tables for row in range(parquet.ParquetFile(path).num_row_groups)]
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"A Parquet file of {source} cannot be read: {error}.") from error
    boxes = boxes_by_image(read_boxes(table)) if table else None
    rows: list[tuple[str, Faces]] = [
        (path.relative_to(root).as_posix(), None if boxes is None else [*boxes.get(real_path(path), {}).items()])
        for path in pictures
    ]
    parts = [Unit(str(root), rows[start : start + size]) for start in range(0, len(rows), size)]
    return parts + groups + [Unit(str(path), None) for path in tars]


def read_pictures(unit: Unit) -> Iterator[Picture]:
    """The pictures of a shard; one more, without content, where its file cannot be read to the end."""
    source, part = Path(unit.source), unit.part
    try:
        if isinstance(part, list):
            yield from (Picture(name, source / name, faces) for name, faces in part)
        else:
            yield from read_tar(source) if part is None else read_row_group(source, part)
    except (tarfile.TarError, pa.ArrowException, OSError, EOFError) as error:
        yield Picture(source.name, DataError(f"{source} cannot be read, or not to its end: {error}."), None)


def read_tar(path: Path) -> Iterator[Picture]:
    """The pictures of a WebDataset: files beside each other with the same name up to the first dot are a sample."""
    with tarfile.open(path) as archive:
        members = (member for member in archive if member.isfile())
        for _, sample in groupby(
            members, lambda member: (Path(member.name).parent, Path(member.name).name.split(".")[0])
        ):
            files = {member.name: archive.extractfile(member).read() for member in sample}  # type: ignore[union-attr]
            faces: Faces = None
            for label in (content for name, content in files.items() if name.endswith(".json")):
                try:
                    faces = list_faces(json.loads(label))
                except (ValueError, AttributeError, TypeError):  # what is no box will be an error in the row
                    faces = [(0, label.decode(errors="replace"))]
            yield from (Picture(f"{path.name}/{name}", files[name], faces) for name in files if is_picture_name(name))


def read_row_group(path: Path, group: int) -> Iterator[Picture]:
    with parquet.ParquetFile(path) as file:
        first = sum(file.metadata.row_group(before).num_rows for before in range(group))
        columns = [name for name in ("path", "image", "box", "boxes") if name in file.schema_arrow.names]
        for row, cells in enumerate(file.read_row_group(group, columns).to_pylist(), first):
            image = cells.get("image")
            content = image.get("bytes") if isinstance(image, dict) else image  # a dict as Hugging Face writes it
            content = content if isinstance(content, bytes) else DataError("There are no bytes in its column 'image'.")
            yield Picture(cells.get("path") or f"{path.name}:{row}", content, list_faces(cells))


def list_faces(label: Mapping[str, Any]) -> Faces:
    boxes = label.get("boxes") if label.get("box") is None else [label["box"]]
    return None if boxes is None else [*enumerate(boxes)]


class Worker:
    """A model, and perhaps a detector on it; Ray has one in each worker process."""

    def __init__(self, args: argparse.Namespace, device: str = "cpu") -> None:
        torch.set_num_threads(max(1, int(args.cpus)))
        self.args, self.model = args, scemae.load_model(args.model, device=device)
        self.detector = scemae.LandmarkRegressor.load(args.detector, self.model) if args.detector else None
        sample = sample_faces()[0]
        self.read_faces([Image.open(sample.path)], [sample.box])  # a first run, which tells `shape`
        weights = {"model": self.model.id.name, "model_sha256": self.model.id.sha256}
        self.settings: Row = {**weights, "auto": args.boxes == "auto", "use": args.use, **self.shape}
        columns = {"path": pa.string(), "face": pa.int32(), "box": pa.list_(pa.float64())}
        columns |= {"found": pa.bool_(), "score": pa.float32(), "crop": pa.list_(pa.float64())}
        if args.detector:
            self.settings["detector_sha256"] = hashlib.sha256(Path(args.detector).read_bytes()).hexdigest()
            columns |= dict.fromkeys(["landmarks", "confidences"], pa.list_(pa.float32()))
        else:
            columns["features"] = pa.binary()
        columns |= {"error": pa.string(), "model_sha256": pa.string()}
        self.schema = pa.schema(columns, metadata={"scemae": json.dumps(self.settings)})

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Write shards, of each its name and its unit as JSON, where they are not there."""
        for name, unit in zip(batch["name"], batch["unit"], strict=True):
            path, rows = self.args.out / name, self.read_unit(Unit(*json.loads(unit)))
            if not path.exists():  # by a worker that died after it had written it
                with atomic_write(path) as temporary, parquet.ParquetWriter(temporary, self.schema) as writer:
                    while some := [*islice(rows, ROWS)]:
                        writer.write_table(pa.Table.from_pylist(some, self.schema))
        return {"name": batch["name"]}

    def read_unit(self, unit: Unit) -> Iterator[Row]:
        """The rows of a shard."""
        faces = (face for picture in read_pictures(unit) for face in self.frame_faces(picture))
        while some := [*islice(faces, self.args.batch_size)]:
            framed = [(row, image) for row, image in some if image is not None]
            found = self.read_faces([image for _, image in framed], [row["box"] for row, _ in framed]) if framed else []
            for (row, _), columns in zip(framed, found, strict=True):
                row.update(columns)
            yield from ({**row, "model_sha256": self.model.id.sha256} for row, _ in some)

    def frame_faces(self, picture: Picture) -> Iterator[tuple[Row, Image.Image | None]]:
        """A row for each face with the picture; without it, and with the error, where it cannot be used."""
        name, content, faces = picture
        try:
            if isinstance(content, ScemaeError):
                raise content
            photo = read_photo(content, str(content) if isinstance(content, Path) else name)
            if faces is None and self.args.boxes == "auto":
                faces = [*enumerate(scemae.find_faces(photo.image, model=self.model).xyxy)]
            if faces == []:
                raise ImageInputError(f"{photo.source} has no box in the table, or no face was found on it.")
        except ScemaeError as error:
            yield {"path": name, "error": str(error)}, None
            return
        for number, box in [(0, None)] if faces is None else faces:
            try:
                yield {"path": name, "face": number, "box": validate_box(box, photo)}, photo.image
            except ScemaeError as error:
                yield {"path": name, "face": number, "error": str(error)}, None

    def read_faces(self, images: Sequence[Image.Image], boxes: Sequence[Any]) -> list[Row]:
        """What the model sees of faces, and whether they are faces."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of faces that are not found: there is a column for it
            if self.detector:
                found: Any = self.detector.predict(images, boxes=boxes, batch_size=len(images))
                values = {"landmarks": found.xy.reshape(len(images), -1), "confidences": found.scores}
                self.shape: Row = {"shape": found.xy.shape[1:], "names": found.names}
            else:
                options = {"expansion": self.args.expansion, "batch_size": len(images)}
                found = scemae.extract_features(self.model, images, boxes=boxes, **options)
                maps = found.map(self.args.use).half().numpy()
                values = {"features": [one.tobytes() for one in maps]}
                self.shape = {"shape": maps.shape[1:], "expansion": found.expansion}
        seen = (
            {"found": face.found, "score": face.score, "crop": face.crop.to_image_affine.ravel()}
            for face in found.faces
        )
        return [{**row, **{name: cells[i] for name, cells in values.items()}} for i, row in enumerate(seen)]


def write_shards(args: argparse.Namespace) -> None:
    """Have the shards made that are missing, and say what there is. Raises OutputError where OUT has others."""
    if min(args.shard, args.batch_size, args.workers + 1) < 1:
        raise OptionError("--shard and --batch-size must be at least 1, --workers at least 0.")
    table = None if args.boxes in (None, "auto") else Path(args.boxes)
    units = [json.dumps(unit) for unit in list_units(real_path(args.source), table, args.shard)]
    worker = Worker(args)  # wrong settings are found here, before any of the others starts
    args.out = make_folder(real_path(args.out))
    digests = [hashlib.sha256((unit + json.dumps(worker.settings)).encode()).hexdigest() for unit in units]
    plan = {f"{i:06}-{digest[:16]}.parquet": unit for i, (digest, unit) in enumerate(zip(digests, units, strict=True))}
    there = {path.name for path in args.out.glob("[!.]*.parquet")}
    if others := sorted(there - plan.keys()):
        raise OutputError(f"{args.out} has {others[0]}, of other pictures or settings; choose another folder for OUT.")
    todo = [{"name": name, "unit": unit} for name, unit in plan.items() if name not in there]
    print(f"{len(plan)} shards, of which {len(there)} are there", flush=True)
    if todo and args.workers:
        run_workers(todo, args)
    else:
        worker({"name": [shard["name"] for shard in todo], "unit": [shard["unit"] for shard in todo]})
    for name in find_leftovers(args.out):  # of workers that died
        remove(args.out / name)
    rows = dataset.dataset([str(args.out / name) for name in plan]).to_table(["found", "error"])
    errors = len(rows) - rows["error"].null_count
    lost = sum(found is False for found in rows["found"].to_pylist())
    print(f"{len(rows)} rows: {len(rows) - errors} faces, {lost} of which are not found in their box, {errors} errors")


def run_workers(shards: list[dict[str, str]], args: argparse.Namespace) -> None:
    """Have Ray make the shards."""
    try:
        import ray
    except ImportError as error:
        raise MissingExtraError('Ray is not installed: pip install "scemae[ray]", or pass --workers 0.') from error
    ray.init()  # the cluster that RAY_ADDRESS names, or one on this machine
    options = {"num_cpus": args.cpus, "num_gpus": args.gpus, "max_task_retries": RETRIES}
    device = "cuda" if args.gpus else "cpu"
    pool = ray.data.ActorPoolStrategy(size=args.workers)
    units = ray.data.from_items(shards, override_num_blocks=len(shards))
    units.map_batches(Worker, batch_size=1, compute=pool, fn_constructor_args=(args, device), **options).materialize()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("source", type=Path, metavar="SOURCE")
    add("out", type=Path, metavar="OUT", help="folder for the shards")
    add("--boxes", metavar="TABLE", help="a table path,x0,y0,x1,y1[,face], or auto to find the faces of pictures")
    add("--model", default="scemae-tiny", help="as load_model takes it; default: %(default)s")
    add("--detector", metavar="FILE", help="landmarks of this detector, fitted on MODEL, in place of features")
    add("--use", choices=("backbone", "projected", "both"), default="backbone", help="features; default: %(default)s")
    add("--expansion", type=int, choices=(1, 2, 4, 8), help="of features; default: the model's")
    add("--shard", type=int, default=1000, metavar="N", help="pictures of a folder in a shard; default: %(default)s")
    add("--batch-size", type=int, default=16, metavar="N", help="faces in one pass; default: %(default)s")
    add("--workers", type=int, default=1, metavar="N", help="default: %(default)s; 0: in this process, without Ray")
    add("--cpus", type=float, default=1, metavar="N", help="of each worker; default: %(default)s")
    add("--gpus", type=float, default=0, metavar="N", help="of each worker, or a part of one; default: %(default)s")
    args = parser.parse_args(arguments)
    try:
        write_shards(args)
    except ScemaeError as error:
        parser.exit(2, f"{parser.prog}: {error}\n")


if __name__ == "__main__":
    main()
