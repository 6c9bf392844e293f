"""`Sample`, one annotated face, and `FaceDataset`, the faces of one split."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from scemae.errors import MissingExtraError
from scemae.geometry import Array, Box
from scemae.images import iter_photos
from scemae.metrics import distance_between

FIVE = ("left_eye", "right_eye", "nose", "left_mouth", "right_mouth")  # left and right as seen in the image
POSES = {1: "left profile", 2: "left", 3: "frontal", 4: "right", 5: "right profile"}  # of MTFL


@dataclass(frozen=True, eq=False, kw_only=True)
class Sample:
    """One annotated face.

    Attributes:
        path: the image file.
        box: what the model sees, pixel edges of `image()`.
        landmarks: (K, 2), pixels of `image()`; nan where not annotated.
        size: (width, height) that the file must have; None where the dataset does not say.
        resized: side in px of the square that the protocol stretches the file to; None: the file is used as it is.
        pose: a key of `POSES`; None where unknown.
    """

    path: Path
    box: Box
    landmarks: Array
    size: tuple[int, int] | None = None
    resized: int | None = None
    pose: int | None = None

    def image(self) -> Path | Image.Image:
        """The path, or the image stretched to the square of the protocol: both are inputs of `extract_features`."""
        if self.resized is None:
            return self.path
        photo = next(iter_photos(self.path)).image
        stretched = photo.resize((self.resized, self.resized), Image.Resampling.BILINEAR)
        stretched.filename = str(self.path)  # type: ignore[attr-defined]  # the name that messages give it
        return stretched


@dataclass(frozen=True, eq=False, kw_only=True)
class FaceDataset:
    """N annotated faces of one split; `dataset[[3, 5]]` and `dataset[:10]` are FaceDatasets too.

    Attributes:
        name: a key of `DATASETS`.
        split: one of its splits.
        samples: the faces, in the order of the protocol.
        names: the names of the K landmarks.
        eyes: indices of the two landmarks whose distance normalises errors.
        annotations: file name of the labels that replace the dataset's own; None: its own.
        notes: sentences to print with results.
    """

    name: str
    split: str
    samples: tuple[Sample, ...]
    names: tuple[str, ...]
    eyes: tuple[int, int]
    annotations: str | None = None
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: slice | Iterable[int]) -> FaceDataset:
        indices = range(len(self))[index] if isinstance(index, slice) else index
        return replace(self, samples=tuple(self.samples[int(i)] for i in indices))

    def __str__(self) -> str:
        return f"{self.name}/{self.split}"

    @property
    def landmarks(self) -> Array:
        """(N, K, 2), pixels of each `image()`."""
        return np.stack([sample.landmarks for sample in self.samples])

    @property
    def boxes(self) -> list[Box]:
        """One box per face, pixel edges of each `image()`."""
        return [sample.box for sample in self.samples]

    @property
    def eye_distances(self) -> Array:
        """(N,) the inter-ocular distances, pixels of each `image()`."""
        return distance_between(self.landmarks, *self.eyes)


def read_matlab(path: Path) -> dict[str, object]:
    """The variables of a .mat file; raises MissingExtraError without scipy."""
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise MissingExtraError(f"Reading {path.name} needs scipy: pip install 'scemae[eval]'.") from error
    variables: dict[str, object] = loadmat(path, simplify_cells=True)
    return variables
