"""Faces for training: any folder, tar or parquet of images -> a pack, decoded once and memory-mapped."""

from __future__ import annotations

import json
import lzma
import os
import tarfile
import zlib
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from scemae.errors import (
    BoxInputError,
    DataError,
    ImageInputError,
    MissingExtraError,
    OptionError,
    OutputError,
    ScemaeError,
    name_face,
)
from scemae.geometry import Crop, central_box, sample_views
from scemae.images import iter_photos
from scemae.output import atomic_folder, is_taken, real_path
from scemae.patches import cut_square, validate_box
from scemae.photo import is_picture_name, list_pictures
from scemae.samples import sample_faces

MARGIN = 20 / 96  # of a square on each side of its input, in sides of the input (paper Sec. 4, after DVE: 136 for 96)
SQUARES, INDEX = "squares.uint8", "pack.json"


@dataclass(frozen=True, eq=False, kw_only=True)
class Pack:
    """N faces as squares, of each of which the central `input_size` px are what the model sees at the usual framing."""

    folder: Path  # where it is stored
    squares: NDArray[np.uint8]  # (N, size, size, 3), RGB, mapped from disk; what is written there stays in memory
    names: tuple[str, ...]  # of the images
    source: str  # what it was made of
    skipped: Mapping[str, str]  # images that were left out, and why
    input_size: int = 96  # px

    def __len__(self) -> int:
        return len(self.squares)

    @property
    def size(self) -> int:
        """Side of the squares, px."""
        return int(self.squares.shape[1])

    @property
    def central_affine(self) -> NDArray[np.float64]:
        """The affine (3, 3) that takes pixels of the input at the usual framing to those of the square."""
        central = np.eye(3)
        central[:2, 2] = (self.size - self.input_size) / 2
        return central

    def read_squares(self, rows: NDArray[np.int64]) -> Tensor:
        """The squares of these faces, (n, 3, size, size), 0..1."""
        return torch.from_numpy(self.squares[rows]).permute(0, 3, 1, 2).float() / 255

    def central_views(self, squares: Tensor) -> Tensor:
        """What the model sees of squares (n, size, size, 3), uint8, at the usual framing: (n, 3, S, S), 0..1."""
        central = torch.from_numpy(self.central_affine[:2]).float().to(squares.device).expand(len(squares), 2, 3)
        return sample_views(squares.permute(0, 3, 1, 2).float() / 255, central, self.input_size)

    def check_input_size(self, input_size: int) -> None:
        """Raise DataError unless the squares are framed for a model of this input size, px."""
        if self.input_size != input_size:
            raise DataError(
                f"{self.folder} is framed for inputs of {self.input_size} px, the model sees {input_size} px. "
                f"Make another pack: {_COMMAND} --input-size {input_size}."
            )

    def split(self, held_out: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Rows of the faces to learn from, and of `held_out` others, drawn at random."""
        if held_out >= len(self):
            raise DataError(f"{self.folder} has {len(self)} faces; {held_out} cannot be held out with some left over.")
        order = np.random.default_rng([seed, 2]).permutation(len(self))
        return order[held_out:], order[:held_out]

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Map a folder that `pack_faces` wrote; raises DataError where it is not a pack, or not whole."""
        try:
            if odd := [name for name in (INDEX, SQUARES) if (folder / name).exists() and not (folder / name).is_file()]:
                raise OSError(f"{odd[0]} is a folder or device")
            index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
            names, size, input_size = index["names"], index["size"], index.get("input_size", 96)
            texts = [index["source"], *names, *index["skipped"].values()]
            if not (isinstance(names, list) and names and all(isinstance(text, str) for text in texts)):
                raise ValueError("names, source or skipped are not as scemae writes them")
            if not (type(size) is type(input_size) is int and 1 <= input_size <= size):
                raise ValueError(f"size is {size!r}, input_size {input_size!r}")
            squares = np.memmap(folder / SQUARES, dtype=np.uint8, mode="c").reshape(len(names), size, size, 3)
            return cls(
                folder=folder,
                squares=squares,
                names=tuple(names),
                source=index["source"],
                skipped=index["skipped"],
                input_size=input_size,
            )
        except OSError as error:
            raise DataError(f"{folder} is not a pack that can be read: {error}. Make one: {_COMMAND}.") from error
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
            raise DataError(f"{folder} is damaged ({error!r}). Make it again: {_COMMAND}.") from error


_COMMAND = "scemae data pack IMAGES OUT"


def default_size(input_size: int) -> int:
    """Side of the squares, px: the input and a margin on each side, 136 for 96."""
    return input_size + 2 * round(MARGIN * input_size)


def sample_pack(input_size: int = 96) -> Pack:
    """The two sample faces of the package, in memory."""
    samples = sample_faces()
    squares = [
        cut_square(
            next(iter_photos(sample.path)).image, Crop.from_box(sample.box, input_size), default_size(input_size)
        )
        for sample in samples
    ]
    names = tuple(sample.path.name for sample in samples)
    return Pack(
        folder=samples[0].path.parent,
        squares=np.stack(squares),
        names=names,
        source="sample faces",
        skipped={},
        input_size=input_size,
    )


def pack_faces(
    source: Path,
    out: Path,
    *,
    input_size: int = 96,
    size: int | None = None,
    boxes: Mapping[Path, Any] | None = None,
    only_boxed: bool = False,
    skip_at_most: float = 0.01,
    overwrite: bool = False,
) -> Pack:
    """Decode every image of a folder, tar or parquet file once.

    Args:
        source: a folder (searched below too), a .tar, or a .parquet with a column `image` of files' bytes.
        out: the folder to write.
        input_size: side of what the model sees, px.
        size: side of the squares, px, at least `input_size`. None is the protocol's framing, 136 for inputs of 96; 112
            suits images that are face crops already, such as FairFace's, which then are the squares.
        boxes: (x0, y0, x1, y1) of each image, which become the central `input_size` px: by resolved path for a folder,
            by the name in the archive, as a Path, for a tar. A dict of several boxes of an image, by the number of the
            face, gives as many squares. None: the largest centred square becomes the `size` px.
        only_boxed: leave out a folder's images that have no box without counting them as unusable.
        skip_at_most: the fraction of the images that may be unreadable or without a good box (one always may); they
            are left out and named in the pack.
        overwrite: replace a pack; nothing but a pack is ever replaced.

    Raises:
        DataError: there are no images, or too many that cannot be used.
        OutputError: the pack exists or does not fit on the disk.
    """
    size = default_size(input_size) if size is None else size
    if not 1 <= input_size <= size:
        raise OptionError(f"size is {size}; it must be at least {input_size}, the input size, and that at least 1.")
    entries = _iter_entries(source, boxes if only_boxed else None)
    count = next(entries)
    squares = (pair for name, image in entries for pair in _cut_faces(name, image, input_size, size, boxes))
    return write_pack(
        out,
        squares,
        count=count,
        input_size=input_size,
        size=size,
        source=str(real_path(source)),
        skip_at_most=skip_at_most,
        overwrite=overwrite,
    )


def write_pack(
    out: Path,
    squares: Iterable[tuple[str, NDArray[np.uint8] | ScemaeError]],
    *,
    count: int,
    size: int,
    source: str,
    input_size: int = 96,
    skip_at_most: float = 0.0,
    overwrite: bool = False,
) -> Pack:
    """Write a pack of `count` named squares, whole or not at all; an error in place of a square says why it is missing.

    Raises DataError where more than the fraction `skip_at_most` is missing, OutputError where `out` exists or the disk
    is full.
    """
    if is_taken(out) and not (overwrite and is_pack(out)):
        raise OutputError(f"{out} exists already; choose another path, or pass --overwrite if it is a pack.")
    with atomic_folder(out) as folder:
        names, skipped = _write_squares(folder / SQUARES, squares, count, skip_at_most)
        if not names:
            raise DataError(f"{source} holds no image that can be used: {next(iter(skipped.values()))}")
        index = {"source": source, "size": size, "input_size": input_size, "names": names, "skipped": skipped}
        (folder / INDEX).write_text(json.dumps(index), encoding="utf-8")
    return Pack.open(out)


def is_pack(folder: Path) -> bool:
    """Whether the folder has the index of a pack."""
    return os.path.isfile(folder / INDEX)  # False for names that no folder can have


def _write_squares(
    path: Path, squares: Iterable[tuple[str, NDArray[np.uint8] | ScemaeError]], count: int, skip_at_most: float
) -> tuple[list[str], dict[str, str]]:
    names: list[str] = []
    skipped: dict[str, str] = {}
    allowed = max(1, int(skip_at_most * count))
    with path.open("wb") as file:
        for name, square in tqdm(squares, total=count, unit="face", delay=2, disable=None):
            if not isinstance(square, ScemaeError):
                file.write(square.tobytes())
                names.append(name)
                continue
            skipped[name] = str(square)
            if len(skipped) > allowed:
                reasons = "; ".join(f"{name}: {why}" for name, why in list(skipped.items())[:5])
                raise DataError(
                    f"{len(skipped)} of the first {len(names) + len(skipped)} images cannot be used, and "
                    f"{allowed} of {count} may be left out. {reasons}"
                ) from square
    return names, skipped


def _cut_faces(
    name: str, image: Path | bytes, input_size: int, size: int, boxes: Mapping[Path, Any] | None
) -> Iterator[tuple[str, NDArray[np.uint8] | ScemaeError]]:
    """The name and the square of each face of an image, or why there is none."""
    try:
        if not isinstance(image, (Path, bytes)):  # a parquet file's text, say: what a file names is not followed
            raise ImageInputError(f"{name} is a {type(image).__name__}; wanted the bytes of an image file.")
        photo = next(iter_photos(image))
        box: Any = central_box(*photo.image.size, central=input_size, frame=size)
        if boxes is not None:
            box = boxes.get(real_path(image) if isinstance(image, Path) else Path(name))
            if box is None:
                raise BoxInputError(f"{name} has no box in the table of boxes.")
    except (ImageInputError, BoxInputError) as error:
        yield name, error
        return
    numbered = box if isinstance(box, Mapping) else {0: box}
    for number, place in numbered.items():
        face = name_face(name, number if len(numbered) > 1 else None)
        try:
            yield face, cut_square(photo.image, Crop.from_box(validate_box(place, photo), input_size), size)
        except (ImageInputError, BoxInputError) as error:
            yield face, error


def _iter_entries(source: Path, only: Container[Path] | None) -> Iterator[Any]:
    """The number of images, then each as (name, path or bytes); of a folder `only` those, None: all."""
    if os.path.isdir(source):
        paths = [path for path in list_pictures(source) if only is None or real_path(path) in only]
        return _count_first(source, len(paths), ((str(path.relative_to(source)), path) for path in paths))
    if not os.path.isfile(source):
        raise DataError(f"{source}: there is no such file or folder.")
    return _iter_parquet(source) if source.suffix == ".parquet" else _iter_tar(source)


def _count_first(source: Path, count: int, entries: Iterator[Any]) -> Iterator[Any]:
    if count == 0:
        raise DataError(f"{source} holds no images (wanted files with an ending that Pillow knows).")
    yield count
    yield from entries


def _iter_tar(source: Path) -> Iterator[Any]:
    try:
        if not tarfile.is_tarfile(source):
            raise DataError(f"{source} is neither a folder nor a tar or parquet file of images.")
        with tarfile.open(source) as archive:
            members = [member for member in archive.getmembers() if member.isfile() and is_picture_name(member.name)]
            files = ((m.name, file.read()) for m in members if (file := archive.extractfile(m)) is not None)
            yield from _count_first(source, len(members), files)
    except (tarfile.TarError, OSError, EOFError, zlib.error, lzma.LZMAError) as error:
        raise DataError(f"{source} cannot be read as a tar file: {error}.") from error


def _iter_parquet(source: Path) -> Iterator[Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtraError("Reading parquet needs pyarrow: pip install pyarrow.") from error
    try:
        table = parquet.ParquetFile(source)
        if "image" not in table.schema_arrow.names:
            raise DataError(f"{source} has the columns {table.schema_arrow.names}; wanted one named 'image'.")
        items = (item for batch in table.iter_batches(64, columns=["image"]) for item in batch["image"].to_pylist())
        rows = (
            (f"{source.name}:{row}", item.get("bytes") if isinstance(item, dict) else item)
            for row, item in enumerate(items)
        )
        yield from _count_first(source, table.metadata.num_rows, rows)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{source} cannot be read as parquet: {error}.") from error
