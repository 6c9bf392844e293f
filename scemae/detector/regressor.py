"""fit_regressor: a landmark detector from one to a few hundred annotated faces (paper Sec. 4.2)."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any, Self, Unpack

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scemae.detector.augmentation import augment_faces
from scemae.detector.heads import Head, Mirror, describe_head, head_from_description, new_head
from scemae.detector.mirror import mirror_permutation
from scemae.detector.normalizer import Normalizer, normalizer_lengths
from scemae.detector.sklearn_protocol import Estimator
from scemae.errors import (
    ImageInputError,
    IncompatibleWeightsError,
    LandmarkInputError,
    ModelNotFoundError,
    NotFittedError,
)
from scemae.extraction import Boxes, Extractor, extract_features, stream_features
from scemae.features import Face, FaceFeatures, FeatureKind
from scemae.images import ImageBatch, ImageLike
from scemae.landmark_input import check_annotated, validate_landmarks
from scemae.landmarks import Landmarks
from scemae.metrics import pixel_errors
from scemae.model.config import ModelId, Use, validate_use
from scemae.numerics import default_numerics
from scemae.progress import with_progress
from scemae.weights.card import error_unit
from scemae.weights.hub import HUB, HubOptions, fetch, validate_hub_options
from scemae.weights.model_folder import REGRESSOR, REGRESSOR_FORMAT, read_file, write_file
from scemae.weights.zoo import load_model

Images = ImageLike | Iterable[ImageLike] | FaceFeatures | Sequence[FaceFeatures]
BATCH = 64  # faces that are predicted on together, where their features are there
FEW = 5  # up to so many annotated faces the model's few_shot_use is the default
ASKED = ("names", "mirror", "use", "expansion", "align", "normalizer")  # arguments, saved as they were given


def fit_regressor(
    model: Extractor,
    images: Images,
    landmarks: Any,
    *,
    boxes: Boxes = None,
    names: Sequence[str] | None = None,
    head: str | Head = "cascade",
    mirror: Mirror = "auto",
    use: Use | None = None,
    expansion: int | None = None,
    align: bool | None = None,
    normalizer: Normalizer = None,
) -> LandmarkRegressor:
    """Fit a landmark detector on annotated faces; seconds on a CPU with the default head.

    Args:
        model: what `load_model` gives.
        images: n images (see `extract_features`), or their FaceFeatures.
        landmarks: (n, K, 2), image pixels, nan where a face is not annotated; or n dicts of name -> (x, y).
        boxes: one face box per image, as in `extract_features`.
        names: of the K landmarks.
        head: "cascade" (closed form), "heatmap" (the paper's, slow), or an instance with its own settings.
        mirror: learn from mirror images too. A list of pairs, by name or number, says which landmarks change places
            (others stay their own mirror image); "auto" finds the pairs by names such as left_eye and right_eye, and
            what these leave open by reflecting the mean shape; "off": no mirror images. The cascade uses them if
            held-out faces gain, "heatmap" always.
        use: which features; default: the model's choice for so many faces.
        expansion, align: as in `extract_features`; for FaceFeatures, what they were made with.
        normalizer: two landmarks, by name or number, whose distance errors are divided by (the eyes, say); default:
            the diagonal of the landmarks' box, of a single landmark the side of the square that the model saw. A face
            on which it is not annotated is learned from, but has no error.

    Returns:
        A fitted LandmarkRegressor. `held_out_error_` is its error on faces held out whole (leave-one-out up to 10
        faces, then five folds; three with "heatmap"), as a part of the normalizer; with the cascade it chose the ridge
        and the use of mirror images, which makes it a little optimistic. nan for one face.

    Raises:
        ImageInputError: an image that cannot be used; says which.
        BoxInputError: a box that cannot be right, or not one per image.
        LandmarkInputError: wrong shape or count, outside the image, a landmark that no face shows, a face without any
            landmark.
        IncompatibleFeaturesError: FaceFeatures of another model.

    Warns:
        UserWarning: a landmark far from the face that the model saw.
    """
    regressor = LandmarkRegressor(
        model,
        names=names,
        head=head,
        mirror=mirror,
        use=use,
        expansion=expansion,
        align=align,
        normalizer=normalizer,
    )
    return regressor.fit(images, landmarks, boxes=boxes)


class LandmarkRegressor(Estimator):
    """A landmark detector: `fit` / `predict` / `score` / `save` / `load`, and scikit-learn's protocol.

    The arguments are those of `fit_regressor`. After `fit`: `names_`, `use_`, `faces_` (how many), `mirrored_`
    (whether mirror images helped), `held_out_error_` (mean, as a part of the normalizer), `held_out_errors_` (n, K).
    """

    def __init__(
        self,
        model: Extractor,
        *,
        names: Sequence[str] | None = None,
        head: str | Head = "cascade",
        mirror: Mirror = "auto",
        use: Use | None = None,
        expansion: int | None = None,
        align: bool | None = None,
        normalizer: Normalizer = None,
    ) -> None:
        self.model = model
        self.names = names
        self.head = head
        self.mirror = mirror
        self.use = use
        self.expansion = expansion
        self.align = align
        self.normalizer = normalizer

    def fit(self, images: Images, landmarks: Any, *, boxes: Boxes = None) -> Self:
        """Fit on n images or FaceFeatures and landmarks (n, K, 2), image px, nan where not annotated."""
        features = self._given(images)
        if features is None:
            pictures: Any = images
            features = extract_features(self.model, pictures, boxes=boxes, expansion=self.expansion, align=self.align)
        xy, names = validate_landmarks(landmarks, features.faces, self.names, allow_missing=True)
        check_annotated(xy, names, features)
        self._learn(features, xy, names)
        return self

    @default_numerics()
    def _learn(self, features: FaceFeatures, xy: NDArray[np.float64], names: tuple[str, ...] | None) -> None:
        normalizers = normalizer_lengths(self.normalizer, xy, names, features.faces)
        mean_shape = np.nanmean(features.to_input(xy), axis=0)
        swap = mirror_permutation(self.mirror, mean_shape, names, self.model.config.input_size)
        default = features.config.few_shot_use if len(features) <= FEW else features.config.regression_use
        self.use_ = default if self.use is None else validate_use(self.use)
        maps = features.map(self.use_)
        self.mean_, self.std_ = maps.mean((0, 2, 3)), maps.std((0, 2, 3)).clamp(min=1e-6)
        self.head_ = new_head(self.head, features.aligned)
        data = augment_faces(self.model, features, xy, swap, self.head_, self._read)
        held_out, self.mirrored_ = self.head_.fit(data)
        self.names_, self.faces_ = names, len(features)
        self.kind_, self.landmarks_ = features.kind, xy.shape[1]
        errors = pixel_errors(features.to_image(held_out.numpy()), xy) / normalizers[:, None]
        self.held_out_errors_ = errors
        self.held_out_error_ = float(np.nanmean(errors)) if np.isfinite(errors).any() else float("nan")

    def predict(self, images: Images, *, boxes: Boxes = None) -> Landmarks:
        """Landmarks on images or FaceFeatures: `xy` (B, K, 2) in each image's own px, `scores` (B, K) confidence 0..1.

        What the confidence is, the head says; it ranks landmarks and faces, and is no probability.
        """
        self.check_fitted()
        kind = self.kind_
        found: list[tuple[NDArray[np.float64], NDArray[np.float64], tuple[Face, ...]]] = []
        for part in self._parts(images, boxes):
            part.kind.require(kind, "These features", "the regressor's")
            with default_numerics():
                places, confidence = self.head_.predict(self._read(part), part.grid)
            found.append((part.to_image(places.numpy()), confidence.numpy(), part.faces))
        xy, scores, faces = zip(*found, strict=True)
        return Landmarks(np.concatenate(xy), np.concatenate(scores), self.names_, sum(faces, ()))

    def score(self, images: Images, landmarks: Any, *, boxes: Boxes = None) -> float:
        """Minus the mean error over the normalizer: higher is better, 0 is perfect. nan marks what is not annotated."""
        found = self.predict(images, boxes=boxes)
        xy, names = validate_landmarks(landmarks, found.faces, self.names_, allow_missing=True)
        if xy.shape != found.xy.shape:
            raise LandmarkInputError(f"landmarks have {xy.shape[1]} points; the regressor finds {self.landmarks_}.")
        if names != self.names_:
            raise LandmarkInputError(
                "landmarks have names, those of the regressor have none: pass an array in its order, or fit with names="
            )
        normalizers = normalizer_lengths(self.normalizer, xy, names, found.faces)
        return -float(np.nanmean(pixel_errors(found.xy, xy) / normalizers[:, None]))

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write one safetensors file: the head's tensors, and as JSON in its header all the rest; never a pickle.

        The model itself is not in it, but its name and SHA-256 are. Raises OutputError where the file exists.
        """
        self.check_fitted()
        tensors = {f"head.{name}": tensor for name, tensor in self.head_.state().items()}
        tensors |= {"mean": self.mean_, "std": self.std_, "held_out_errors": torch.from_numpy(self.held_out_errors_)}
        header = {
            "kind": asdict(self.kind_),
            "head": self.head_.name,
            "settings": self.head_.settings(),
            "names": self.names_,
            "landmarks": self.landmarks_,
            "use": self.use_,
            "mirrored": self.mirrored_,
            "faces": self.faces_,
            "asked": {name: getattr(self, name) for name in ASKED} | {"head": describe_head(self.head)},
        }
        text = json.dumps(header, default=lambda numbers: numbers.tolist())  # numpy's, of mirror= and normalizer=
        write_file(path, tensors, {REGRESSOR_FORMAT: text}, overwrite)

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], model: Extractor | None = None, **hub: Unpack[HubOptions]
    ) -> LandmarkRegressor:
        """Read what `save` wrote, or "hf-hub:ORG/REPO[@REVISION]", what `scemae push` made of it.

        `model`: the one that it was fitted on; None loads it by its name. `hub`: as in `load_model`. The arguments are
        those that it was made with: another `fit` chooses anew what they leave open.

        Raises WeightsIntegrityError for a damaged file, IncompatibleWeightsError for another kind of file or where
        the model is not the one that the regressor was fitted on; from the Hub, all that `load_model` raises.
        """
        validate_hub_options(hub)
        if isinstance(path, str) and path.startswith(HUB):
            path = fetch(path, (REGRESSOR,), hub)[0] / REGRESSOR
        tensors, metadata = read_file(path)
        if REGRESSOR_FORMAT not in metadata:
            raise IncompatibleWeightsError(f"{path} is no landmark regressor of scemae (format '{REGRESSOR_FORMAT}').")
        try:
            header = json.loads(metadata[REGRESSOR_FORMAT])
            kind = FeatureKind(**header["kind"] | {"model": ModelId(*header["kind"]["model"])})
            model = _fitted_on(kind.model, hub) if model is None else model
            if model.id.sha256 != kind.model.sha256:
                raise IncompatibleWeightsError(
                    f"{path} was fitted on {kind.model}; the model here is {model.id}. "
                    "Load that model and pass model=, or fit again."
                )
            asked = header["asked"]
            regressor = cls(model, **asked | {"head": head_from_description(asked["head"])})
            regressor._restore(kind, header, tensors)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            if isinstance(error, IncompatibleWeightsError):
                raise
            raise IncompatibleWeightsError(f"{path} is damaged: {type(error).__name__}: {error}.") from error
        return regressor

    def __repr__(self) -> str:
        if not hasattr(self, "head_"):
            return f"LandmarkRegressor({self.model.config.name}, not fitted)"
        faces = "1 face" if self.faces_ == 1 else f"{self.faces_} faces"
        faces += " and mirror images" if self.mirrored_ else ""
        known = not np.isnan(self.held_out_error_)
        of = error_unit(self.normalizer, self.landmarks_)
        error = f"held-out error {100 * self.held_out_error_:.1f} % of {of}" if known else "no held-out error"
        return (
            f"LandmarkRegressor({self.landmarks_} landmarks from {faces}, "
            f"{self.head_.name} on {self.use_} features of {self.model.config.name}, {error})"
        )

    def _given(self, images: Any) -> FaceFeatures | None:
        """The features that `images` are; None where they are images."""
        parts = [images] if isinstance(images, FaceFeatures) else images
        if not (isinstance(parts, Sequence) and parts and all(isinstance(part, FaceFeatures) for part in parts)):
            return None
        for part in parts:
            part.kind.require(replace(part.kind, model=self.model.id), "These features", "the regressor's")
        features = FaceFeatures.concatenate(parts)
        if not len(features):
            raise ImageInputError("images are features of no face.")
        return features

    def _parts(self, images: Any, boxes: Boxes) -> Iterator[FaceFeatures]:
        """Features of the images, made as those it learned from, or those that they are; some faces at a time."""
        features, kind = self._given(images), self.kind_
        if features is not None:
            return (features[start : start + BATCH] for start in range(0, len(features), BATCH))
        settings: dict[str, Any] = {"expansion": kind.expansion, "align": kind.aligned, "margin": kind.margin}
        batch = ImageBatch(images, boxes)
        return with_progress(stream_features(self.model, batch, **settings), batch.count)

    def check_fitted(self) -> None:
        """Raise NotFittedError unless `fit` or `load` made this regressor."""
        if not hasattr(self, "head_"):
            raise NotFittedError("This LandmarkRegressor is not fitted yet; call fit(images, landmarks) first.")

    def _read(self, features: FaceFeatures) -> Tensor:
        """Maps of the chosen features, standardised."""
        return (features.map(self.use_) - self.mean_[:, None, None]) / self.std_[:, None, None]

    def _restore(self, kind: FeatureKind, header: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        self.mean_, self.std_ = tensors["mean"], tensors["std"]
        self.held_out_errors_ = tensors["held_out_errors"].numpy()
        known = np.isfinite(self.held_out_errors_)
        self.held_out_error_ = float(self.held_out_errors_[known].mean()) if known.any() else float("nan")
        self.names_ = None if header["names"] is None else tuple(header["names"])
        self.use_, self.mirrored_ = header["use"], header["mirrored"]
        self.kind_, self.landmarks_, self.faces_ = kind, header["landmarks"], header["faces"]
        self.head_ = head_from_description([header["head"], header["settings"]])
        self.head_.load_state({n.removeprefix("head."): t for n, t in tensors.items() if n.startswith("head.")})


def _fitted_on(model: ModelId, hub: HubOptions) -> Extractor:
    try:
        return load_model(model.name, **hub)
    except ModelNotFoundError as error:
        raise ModelNotFoundError(
            f"The regressor was fitted on a model of your own, {model}: load it and pass model= (--model)."
        ) from error
