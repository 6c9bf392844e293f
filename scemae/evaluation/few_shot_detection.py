"""Landmark detection from few or all annotations (paper Sec. 4.2, Table 2, Table 3): fits and predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from tqdm.auto import tqdm

from scemae import FaceFeatures, LandmarkRegressor, Landmarks, fit_regressor
from scemae.datasets import FaceDataset
from scemae.detector.built_in_heads import HEADS as BUILT_IN_HEADS
from scemae.detector.head import Head
from scemae.detector.mirror import Mirror
from scemae.errors import OptionError
from scemae.evaluation.evaluation_folder import EvaluationFolder
from scemae.evaluation.heatmap_options import HEATMAP_HEADS, HeatmapOptions
from scemae.evaluation.setup import EvaluationSetup, data_settings
from scemae.geometry import Array
from scemae.model.extractor import Extractor
from scemae.weights.model_folder import read_file, write_file

FITS = "fits"  # the folder of the fitted detectors
MEAN_SHAPE = "mean-shape"


# Names of heads; how the heat-map heads among them are trained, `HeatmapOptions` say.
HEADS = (*dict.fromkeys([*BUILT_IN_HEADS, *HEATMAP_HEADS]), MEAN_SHAPE)
OURS = HeatmapOptions()


@dataclass(frozen=True)
class MeanShape:
    """A baseline that ignores the features: the mean of the annotated shapes, (K, 2), input px of each face's crop.

    Its error is what the crops alone, and so the alignment, achieve.
    """

    shape: Array

    @classmethod
    def fit(cls, features: FaceFeatures, landmarks: Array) -> Self:
        """The mean over faces as they are aligned in `features`; `landmarks` (N, K, 2), image px."""
        return cls(features.to_input(landmarks).mean(axis=0))

    def predict(self, features: FaceFeatures) -> Landmarks:
        """The same points in every crop."""
        xy = features.to_image(np.broadcast_to(self.shape, (len(features), *self.shape.shape)))
        return Landmarks(xy=xy, scores=np.ones(xy.shape[:2]), names=None, faces=features.faces)

    def save(self, path: Path, *, overwrite: bool) -> None:
        """Write the shape as a safetensors file."""
        write_file(path, {"mean_shape": torch.from_numpy(self.shape)}, {}, overwrite)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote."""
        return cls(read_file(path)[0]["mean_shape"].numpy())


@dataclass(frozen=True)
class Fit:
    """One detector: the head, one of `HEADS` or your own; the number of annotated faces; and which draw of them."""

    head: str | Head
    count: int
    draw: int

    @property
    def head_name(self) -> str:
        """What the head is called in files and tables."""
        return self.head if isinstance(self.head, str) else self.head.name

    @property
    def key(self) -> str:
        """Its name in the files of an evaluation."""
        return f"{self.head_name}/{self.count}/{self.draw}"

    @classmethod
    def from_key(cls, key: str) -> Self:
        """The fit with that `key`, its head by name."""
        head, count, draw = key.rsplit("/", 2)
        return cls(head, int(count), int(draw))

    def draw_faces(self, pool: int) -> Array:
        """Indices (count,) among `pool` annotated faces, the same for every head and every extractor."""
        if self.count == pool:
            return np.arange(pool)
        return np.random.default_rng(self.draw).choice(pool, self.count, replace=False)


def plan_fits(heads: Sequence[str | Head], counts: Sequence[int], pool: int, draws: int | None = None) -> list[Fit]:
    """`draws` of each number of faces, by default 20 of one face and 5 of more, and one of all `pool` faces.

    `heads`: names of `HEADS`, or heads of your own. Raises OptionError for more faces than the pool has.
    """
    if draws is not None and draws < 1:
        raise OptionError(f"--draws is {draws}; wanted at least 1.")
    for head in heads:
        if isinstance(head, str) and head not in HEADS:
            raise OptionError(f"There is no head {head!r}; there are {', '.join(HEADS)}.")
    wrong = [count for count in counts if not 1 <= count <= pool]
    if wrong:
        raise OptionError(f"{wrong[0]} annotated faces are wanted, but the pool has {pool}; ask for 1 to {pool}.")
    return [
        Fit(head, count, draw)
        for head in heads
        for count in counts
        for draw in range(1 if count == pool else draws or (20 if count == 1 else 5))
    ]


def detection_settings(
    setup: EvaluationSetup,
    pool: FaceDataset,
    test: FaceDataset,
    fits: Sequence[Fit],
    heatmaps: HeatmapOptions = OURS,
) -> dict[str, Any]:
    """The settings of an evaluation by `detect`; JSON-ready."""
    own = {fit.head.name: fit.head.params() for fit in fits if not isinstance(fit.head, str)}
    streamed = any(fit.head in HEATMAP_HEADS for fit in fits)
    return {
        "evaluation": "detection",
        **setup.settings(),
        "pool": data_settings(pool),
        "test": data_settings(test),
        "eyes": list(test.eyes),
        "fits": [fit.key for fit in fits],
        **({"heatmap_heads": asdict(heatmaps)} if streamed else {}),
        **({"own_heads": own} if own else {}),
    }


def detect(
    setup: EvaluationSetup,
    pool: FaceDataset,
    test: FaceDataset,
    fits: Sequence[Fit],
    folder: EvaluationFolder,
    heatmaps: HeatmapOptions = OURS,
) -> None:
    """Fit the detectors that are missing, then write a line for each test face that has none yet, image px.

    `heatmaps`: how the heat-map heads are trained; they never hold the maps of many faces (`fit_streamed`).
    Each batch of test faces is extracted once, for all detectors, and not kept.
    """
    finished = folder.read_finished_keys()
    todo = [i for i in range(len(test)) if str(i) not in finished]
    if not todo:
        return
    _fit_missing(setup, pool, fits, folder.path / FITS, heatmaps)
    detectors = {fit.key: _load_detector(folder.path / FITS, fit, setup.extractor) for fit in fits}
    faces = iter(todo)
    with tqdm(total=len(todo), unit="face", desc="test", delay=2, disable=None) as bar:
        for features in setup.stream(test[todo]):
            found = {key: detector.predict(features).xy for key, detector in detectors.items()}
            folder.append(
                {
                    "key": str(i),
                    "image": test.samples[i].path.name,
                    "pose": test.samples[i].pose,
                    "truth": test.samples[i].landmarks,
                    "found": {key: xy[row] for key, xy in found.items()},
                }
                for row, i in enumerate(next(faces) for _ in range(len(features)))
            )
            bar.update(len(features))


def _fit_missing(
    setup: EvaluationSetup, pool: FaceDataset, fits: Sequence[Fit], folder: Path, heatmaps: HeatmapOptions
) -> None:
    folder.mkdir(exist_ok=True)
    missing = [fit for fit in fits if not _detector_path(folder, fit).exists()]
    streamed = [fit for fit in missing if fit.head in HEATMAP_HEADS]
    held = [fit for fit in missing if fit not in streamed]
    for some, stream in ((held, setup.stream), (streamed, setup.stream_faces)):
        if not some:
            continue
        needed = sorted({int(i) for fit in some for i in fit.draw_faces(len(pool))})
        features = FaceFeatures.concatenate(list(tqdm(stream(pool[needed]), desc="pool", delay=2, disable=None)))
        row_of = {face: row for row, face in enumerate(needed)}
        for fit in tqdm(some, unit="fit", delay=2, disable=None):
            rows = [row_of[int(i)] for i in fit.draw_faces(len(pool))]
            faces = pool[[needed[row] for row in rows]]
            detector = _fit_detector(setup, fit.head, features[rows], faces, heatmaps)
            detector.save(_detector_path(folder, fit), overwrite=True)


def _fit_detector(
    setup: EvaluationSetup, head: str | Head, features: FaceFeatures, faces: FaceDataset, heatmaps: HeatmapOptions
) -> LandmarkRegressor | MeanShape:
    if head == MEAN_SHAPE:
        return MeanShape.fit(features, faces.landmarks)
    mirror: Mirror = "auto"
    if isinstance(head, str) and head in HEATMAP_HEADS:
        head, mirror = heatmaps.new_head(head), "auto" if heatmaps.mirror else "off"
    return fit_regressor(
        setup.extractor,
        features,
        _mask_labels_outside(features, faces.landmarks),
        names=faces.names,
        head=head,
        mirror=mirror,
        use=setup.use,
        normalizer=faces.eyes,
    )


def _mask_labels_outside(features: FaceFeatures, landmarks: Array) -> Array:
    """Landmarks (N, K, 2), nan where a label is outside its image; moved to the edge if no face has it inside."""
    last = np.array([face.image_size for face in features.faces])[:, None] - 0.5
    inside = ((landmarks >= -0.5) & (landmarks <= last)).all(axis=-1, keepdims=True)
    never_inside = ~inside.any(axis=0)
    return np.where(inside, landmarks, np.where(never_inside, np.clip(landmarks, -0.5, last), np.nan))


def _detector_path(folder: Path, fit: Fit) -> Path:
    return folder / f"{fit.head_name}-{fit.count}-{fit.draw}.safetensors"


def _load_detector(folder: Path, fit: Fit, extractor: Extractor) -> LandmarkRegressor | MeanShape:
    path = _detector_path(folder, fit)
    if not isinstance(fit.head, str):
        return LandmarkRegressor.load(path, extractor, head=type(fit.head))
    return MeanShape.load(path) if fit.head == MEAN_SHAPE else LandmarkRegressor.load(path, extractor)
