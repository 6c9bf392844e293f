"""One annotated face, and many."""

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

FIVE = ("left_eye", "right_eye", "nose", "left_mouth", "right_mouth")  # left and right as seen in the picture
POSES = {1: "left profile", 2: "left", 3: "frontal", 4: "right", 5: "right profile"}  # of MTFL


@dataclass(frozen=True, eq=False)
class Sample:
    """One face: `box` is what the model sees, `landmarks` (K, 2) are in pixels, both of `image()`.

    `size`: (width, height) of the file where the data set says so. `resized`: the side of the square that the file is
    brought to, its aspect lost, before box and landmarks mean anything; None: box and landmarks are the file's own.
    """

    path: Path
    box: Box
    landmarks: Array
    size: tuple[int, int] | None = None
    resized: int | None = None
    pose: int | None = None

    def image(self) -> Path | Image.Image:
        """What the verbs take: the path, or the picture resized as the data set's protocol wants it."""
        if self.resized is None:
            return self.path
        picture = next(iter_photos(self.path)).image
        stretched = picture.resize((self.resized, self.resized), Image.Resampling.BILINEAR)
        stretched.filename = str(self.path)  # type: ignore[attr-defined]  # what messages call it
        return stretched


@dataclass(frozen=True, eq=False)
class FaceDataset:
    """N annotated faces. `eyes`: the two landmarks whose distance is the normalizer; `notes`: what to say with results.

    `dataset[[3, 5]]` and `dataset[:10]` are FaceDatasets too.
    """

    name: str
    split: str
    samples: tuple[Sample, ...]
    names: tuple[str, ...]
    eyes: tuple[int, int]
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: slice | Iterable[int]) -> FaceDataset:
        chosen = range(len(self))[index] if isinstance(index, slice) else index
        return replace(self, samples=tuple(self.samples[int(i)] for i in chosen))

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


def matlab(path: Path) -> dict[str, object]:
    """The variables of a .mat file."""
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise MissingExtraError(f"Reading {path.name} needs scipy: pip install 'scemae[eval]'.") from error
    variables: dict[str, object] = loadmat(path, simplify_cells=True)
    return variables
