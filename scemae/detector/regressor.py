"""fit_regressor: a landmark detector from one to a few hundred annotated faces (paper Sec. 4.2)."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Self, Unpack

import numpy as np
import torch
from numpy.typing import NDArray

from scemae.detector.augmentation import augment_faces
from scemae.detector.built_in_heads import new_head
from scemae.detector.detector_file import FittedDetector, load_detector, save_detector
from scemae.detector.error_model import ErrorModel, HeldOut
from scemae.detector.groups import group_pictures, merge_copies, number_pictures
from scemae.detector.head import Head, HeadFit, reads_shapes, run_head
from scemae.detector.heatmap import HeatmapHead
from scemae.detector.map_reader import MapReader
from scemae.detector.mirror import Mirror, mirror_permutation
from scemae.detector.normalizer import Normalizer, normalizer_lengths
from scemae.detector.sklearn_protocol import Estimator
from scemae.detector.streamed_fit import fit_streamed
from scemae.errors import BoxInputError, ImageInputError, LandmarkInputError, NotFittedError, OptionError, warn_user
from scemae.extraction import Boxes, extract_features, open_batch, stream_features, validate_model
from scemae.features import FaceFeatures
from scemae.images import ImageBatch, ImageLike, OnError
from scemae.landmark_input import check_annotated, read_landmarks, validate_landmarks
from scemae.landmarks import Landmarks
from scemae.metrics import error_unit, pixel_errors
from scemae.model.config import Use, validate_use
from scemae.model.extractor import Extractor
from scemae.numerics import default_numerics
from scemae.progress import with_progress
from scemae.weights.hub import HubOptions, validate_hub_options

Images = ImageLike | Iterable[ImageLike] | FaceFeatures | Sequence[FaceFeatures]
BATCH = 64  # faces that go through the head together, where their features are given
NO_BOXES = (
    "The regressor was fitted with boxes=, but these images have none; pass boxes= (--boxes), 'auto' to have the faces "
    "found, or [None] * n on purpose."
)
ROUTE_BOXES = (
    "For scikit-learn's cross-validation, extract the features first, or call set_config(enable_metadata_routing=True) "
    "and regressor.set_fit_request(boxes=True).set_score_request(boxes=True)."
)
LEARNING = 0.08  # errors shrink as this power of the number of annotated faces (docs/few-shot.md)
FEW = 5  # up to this many annotated pictures the model's few_shot_use is the default


def fit_regressor(
    model: Extractor,
    images: Images,
    landmarks: Any,
    *,
    boxes: Boxes = None,
    groups: Any = None,
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
        model: a model from `load_model`.
        images: n images (see `extract_features`), or their FaceFeatures.
        landmarks: (n, K, 2), image pixels, nan where a face is not annotated; or n dicts of name -> (x, y).
        boxes: one face box per image, as in `extract_features`; not beside FaceFeatures. "auto" takes the face found on
            each image that holds its landmarks; an image where none does is an error.
        groups: one label per image, a text or number: images of one person, or frames of one video, have the same one
            and are held out together. None, nan or "" is an image on its own. Images that show the same pixels at the
            same crop count as one image without being told, with the mean of their landmarks.
        names: the names of the K landmarks.
        head: "cascade" (closed form), "heatmap" (the paper's, slow), or an instance of a head: one of these with
            other params, or your own (`scemae.detector.head.Head`).
        mirror: learn from mirror images too. A list of pairs, by name or number, says which landmarks change places
            (others are their own mirror image); "auto" finds the pairs by names such as left_eye and right_eye, and
            the remaining ones by reflecting the mean shape; "off" uses no mirror images. The cascade uses them
            if the error on held-out faces is smaller with them, "heatmap" always.
        use: which features; default: the model's choice for this number of faces.
        expansion, align: as in `extract_features`; for FaceFeatures, what they were made with.
        normalizer: two landmarks, by name or number (the eyes, say): errors are divided by their distance. Default:
            the diagonal of the landmarks' box, or for a single landmark the side of the square that the model saw. A
            face without these two annotated is used for fitting, but has no error.

    Returns:
        A fitted LandmarkRegressor. `held_out_error_` is its mean error on held-out faces, as a fraction of the
        normalizer (an NME): leave-one-group-out up to 10 groups, where a face without a group counts as one, then
        five folds of groups, at most three with "heatmap"; nan for one group. The cascade chooses the ridge and the
        use of mirror images by it, which makes it a little optimistic.

    Raises:
        ImageInputError: an image that cannot be used; says which.
        BoxInputError: a box that is invalid, not one box per image, or boxes beside FaceFeatures.
        OptionError: an argument with a value that is not allowed, `groups` that are not one label per image.
        LandmarkInputError: wrong shape or count, outside the image and its mirrored surroundings, a landmark that is
            annotated on no face, a face without any landmark.
        IncompatibleFeaturesError: FaceFeatures of another model.

    Warns:
        UserWarning: landmarks that look like those of another convention: far from the face that the model saw, at
            (0, 0) on several faces, on their side, tiny, or named in a way that very few faces have.
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
    return regressor.fit(images, landmarks, boxes=boxes, groups=groups)


class LandmarkRegressor(Estimator):
    """A landmark detector fitted on a few annotated faces; a scikit-learn estimator.

    Parameters:
        model, names, head, mirror, use, expansion, align, normalizer: as in `fit_regressor`.

    Attributes:
        head_: the fitted head.
        reader_: which features the head reads, and how they are standardised.
        kind_: the kind of features: the model, and how they were extracted.
        use_: which features.
        names_: the names of the landmarks, or None.
        landmarks_: their number, K.
        faces_: the number of annotated faces, n.
        mirrored_: whether mirror images were used.
        boxed_: whether the images came with boxes; False after a fit on FaceFeatures.
        held_out_errors_: (n, K), the error of each landmark of each face while held out, as a fraction of the
            normalizer; nan where not known.
        held_out_error_: the mean of those that are known, or nan.
        error_model_: what error to expect of a prediction; None for a detector of a version before it was there.

    Example:
        >>> regressor = LandmarkRegressor(model, normalizer=("left_eye", "right_eye")).fit(images, landmarks)
        >>> regressor.held_out_error_  # 0.05: 5 % of the distance between the eyes
        >>> regressor.predict("new.jpg").xy  # (1, K, 2), pixels
    """

    metadata: ClassVar = {"fit": ("boxes", "groups"), "predict": ("boxes",), "score": ("boxes",)}

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
        validate_model(model)
        self.model = model
        self.names = names
        self.head = head
        self.mirror = mirror
        self.use = use
        self.expansion = expansion
        self.align = align
        self.normalizer = normalizer

    def fit(self, images: Images, landmarks: Any, *, boxes: Boxes = None, groups: Any = None) -> Self:
        """Fit on n images or FaceFeatures and landmarks (n, K, 2), image px, nan where not annotated.

        `boxes` and `groups`: see `fit_regressor`.
        """
        features = self._given(images, boxes)
        if features is not None:
            for name, asked, made in (
                ("expansion", self.expansion, features.expansion),
                ("align", self.align, features.aligned),
            ):
                if asked not in (None, made):
                    raise OptionError(
                        f"{name} is {asked!r}, but these FaceFeatures were made with {made}; leave it out."
                    )
        else:
            pictures: Any = _open_annotated(images, boxes, landmarks, self.names)
            features = extract_features(self.model, pictures, boxes=boxes, expansion=self.expansion, align=self.align)
        xy, names = validate_landmarks(landmarks, features.faces, self.names, allow_missing=True, allow_outside=True)
        check_annotated(xy, names, features)
        self._fit(features, xy, names, groups, boxed=_have_boxes(images, boxes))
        return self

    @default_numerics()
    def _fit(
        self,
        features: FaceFeatures,
        xy: NDArray[np.float64],
        names: tuple[str, ...] | None,
        groups: Any,
        boxed: bool,
    ) -> None:
        lengths = normalizer_lengths(self.normalizer, xy, names, features.faces)  # (n,)
        pictures = number_pictures(features.faces)  # (n,) numbers below m
        once, shapes = merge_copies(features, xy, pictures)  # m faces, (m, K, 2)
        places = torch.from_numpy(once.to_input(shapes))
        if once.has_shapes:  # where a face that looks aside is as symmetric as others
            places = once.read_shapes().to_mean(places)
        mean_shape = np.nanmean(places.numpy(), axis=0)  # (K, 2)
        swap = mirror_permutation(self.mirror, mean_shape, names, self.model.config.input_size)
        default = features.config.few_shot_use if len(once) <= FEW else features.config.regression_use
        use = default if self.use is None else validate_use(self.use)
        head = new_head(self.head, features.aligned, features.has_shapes)
        group_of_picture = group_pictures(pictures, groups)
        if isinstance(head, HeatmapHead) and not features.backbone_map.numel():  # of `stream_faces`
            reader, found = fit_streamed(self.model, once, shapes, swap=swap, head=head, use=use)
            blocks = np.zeros(len(once), dtype=np.int64)
        else:
            reader = MapReader.fit(once, use)
            maps = augment_faces(self.model, once, shapes, groups=group_of_picture, swap=swap, head=head, reader=reader)
            found, blocks = head.fit(maps), maps.blocks
        held_out = found.held_out.numpy()[pictures]  # (n, K, 2)
        errors = pixel_errors(features.to_image(held_out), xy) / lengths[:, None]  # (n, K)
        error_model = ErrorModel.fit(_collect_held_out(found, once, shapes, group_of_picture, blocks))
        self._set_fitted(
            FittedDetector(
                head=head,
                reader=reader,
                kind=features.kind,
                names=names,
                mirrored=found.mirrored,
                boxed=boxed,
                held_out_errors=errors,
                error_model=error_model,
            )
        )

    def _set_fitted(self, fitted: FittedDetector) -> None:
        """Set every fitted attribute."""
        self.head_ = fitted.head
        self.reader_ = fitted.reader
        self.kind_ = fitted.kind
        self.use_ = fitted.reader.use
        self.names_ = fitted.names
        self.faces_, self.landmarks_ = fitted.held_out_errors.shape
        self.mirrored_ = fitted.mirrored
        self.boxed_ = fitted.boxed
        self.held_out_errors_ = fitted.held_out_errors
        self.error_model_ = fitted.error_model
        known = np.isfinite(fitted.held_out_errors).any()
        self.held_out_error_ = float(np.nanmean(fitted.held_out_errors)) if known else float("nan")

    def predict(
        self, images: Images, *, boxes: Boxes = None, batch_size: int = 16, on_error: OnError = "raise"
    ) -> Landmarks:
        """Landmarks on images or FaceFeatures: `xy` (B, K, 2) in each image's own px, `scores` (B, K) confidence 0..1.

        The confidence is the head's own measure: for ranking landmarks and faces, not a calibrated probability. The
        result's `radius(0.9)` is how far off each may be.
        `batch_size` and `on_error` are as in `extract_features`: "skip" leaves out the images that cannot be used.
        """
        self.check_fitted()
        found: list[Landmarks] = []
        for part in self._parts(images, boxes, batch_size, on_error):
            part.kind.require(self.kind_, "These features", "the regressor's")
            with default_numerics():
                shapes = part.read_shapes() if reads_shapes(self.head_) else None
                places, confidence = run_head(self.head_, self.reader_(part), part.grid, shapes)
                expected = None if self.error_model_ is None else self.error_model_.expect(confidence).numpy()
            found.append(
                Landmarks(
                    xy=part.to_image(places.numpy()),
                    scores=confidence.numpy(),
                    names=self.names_,
                    faces=part.faces,
                    expected_errors=None if expected is None else expected * _known_scales(part),
                    calibration=None if self.error_model_ is None else self.error_model_.calibration,
                )
            )
        landmarks = Landmarks.concatenate(found)
        if self._lacks_boxes(images, boxes) and landmarks.ok.all():  # else it was said
            warn_user(f"{NO_BOXES} Here the middle of each image was taken for the face.")
        return landmarks

    def score(self, images: Images, landmarks: Any, *, boxes: Boxes = None) -> float:
        """Minus the mean error as a fraction of the normalizer (NME): higher is better, 0 is perfect.

        Landmarks (n, K, 2), image px, nan where not annotated.
        """
        self.check_fitted()
        if self._lacks_boxes(images, boxes):
            raise BoxInputError(f"score: {NO_BOXES} {ROUTE_BOXES}")
        found = self.predict(_open_annotated(images, boxes, landmarks, self.names_), boxes=boxes)
        xy, names = validate_landmarks(landmarks, found.faces, self.names_, allow_missing=True, allow_outside=True)
        if xy.shape != found.xy.shape:
            raise LandmarkInputError(f"landmarks have {xy.shape[1]} points; the regressor finds {self.landmarks_}.")
        if names != self.names_:
            raise LandmarkInputError(
                "landmarks have names, those of the regressor have none: pass an array in its order, or fit with names="
            )
        normalizers = normalizer_lengths(self.normalizer, xy, names, found.faces)
        return -float(np.nanmean(pixel_errors(found.xy, xy) / normalizers[:, None]))

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write one safetensors file: the head's tensors, and everything else as JSON in its header; not a pickle.

        It names the model and its SHA-256, but does not contain it. Raises OutputError where the file exists.
        """
        self.check_fitted()
        fitted = FittedDetector(
            head=self.head_,
            reader=self.reader_,
            kind=self.kind_,
            names=self.names_,
            mirrored=self.mirrored_,
            boxed=self.boxed_,
            held_out_errors=self.held_out_errors_,
            error_model=self.error_model_,
        )
        save_detector(path, self.get_params(), fitted, overwrite)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        model: Extractor | None = None,
        *,
        head: type[Head] | None = None,
        **hub: Unpack[HubOptions],
    ) -> LandmarkRegressor:
        """Read a file that `save` wrote, or "hf-hub:ORG/REPO[@REVISION]", to which `scemae push` uploaded one.

        Its arguments are those that it was created with, so `fit` chooses again what they leave open.

        Args:
            path: the path of the file, or its source on the Hub.
            model: the one that it was fitted on; None loads it by its name, if it is a released one.
            head: the class of a head of your own that it was fitted with.
            hub: as in `load_model`, whose errors a file on the Hub raises too.

        Raises:
            WeightsIntegrityError: a damaged file.
            IncompatibleWeightsError: another kind of file, another model than the regressor was fitted on, or a head
                that is not one of scemae's without head=.
            ModelNotFoundError: it was fitted on a model that is not a released one: pass model=.

        Warns:
            UserWarning: the file carries no checksum, as scemae 0.1.0 wrote it.
        """
        validate_hub_options(hub)
        arguments, fitted = load_detector(path, model, head, hub)
        regressor = cls(**arguments)
        regressor._set_fitted(fitted)
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

    def _given(self, images: Any, boxes: Boxes) -> FaceFeatures | None:
        """The features, concatenated, if that is what `images` are; None if they are images."""
        validate_model(self.model)  # again, as scikit-learn may have set another
        parts = _list_features(images)
        if not parts:
            return None
        if boxes is not None:
            raise BoxInputError("images are FaceFeatures, which were extracted with their boxes; leave out boxes=.")
        for part in parts:
            part.kind.require(replace(part.kind, model=self.model.id), "These features", "the regressor's")
        features = FaceFeatures.concatenate(parts)
        if not len(features):
            raise ImageInputError("images are FaceFeatures without a face; wanted at least one.")
        return features

    def _parts(self, images: Any, boxes: Boxes, batch_size: int, on_error: OnError) -> Iterator[FaceFeatures]:
        """Features of some faces at a time: of the images, extracted as those of `fit` were, or those given."""
        features, kind = self._given(images, boxes), self.kind_
        if features is not None:
            return (features[start : start + BATCH] for start in range(0, len(features), BATCH))
        settings: dict[str, Any] = {"expansion": kind.expansion, "align": kind.aligned, "margin": kind.margin}
        batch = open_batch(images, boxes, on_error)
        return with_progress(stream_features(self.model, batch, batch_size=batch_size, **settings), batch.count)

    def _lacks_boxes(self, images: Any, boxes: Boxes) -> bool:
        """Whether images have no boxes though those of `fit` had, as scikit-learn does it without routing."""
        return self.boxed_ and not _list_features(images) and not _have_boxes(images, boxes)

    def check_fitted(self) -> None:
        """Raise NotFittedError unless `fit` or `load` made this regressor."""
        if not hasattr(self, "head_"):
            raise NotFittedError("This LandmarkRegressor is not fitted yet; call fit(images, landmarks) first.")


def _open_annotated(images: Any, boxes: Boxes, landmarks: Any, names: Sequence[str] | None) -> Any:
    """The images; with boxes="auto" a batch that takes the one found face of each that holds its landmarks."""
    if not isinstance(boxes, str) or _list_features(images):
        return images
    batch = ImageBatch(images, boxes)
    batch.landmarks, _ = read_landmarks(landmarks, batch.count, names)
    return batch


def _collect_held_out(
    fit: HeadFit,
    features: FaceFeatures,
    xy: NDArray[np.float64],
    groups: NDArray[np.int64],
    blocks: NDArray[np.int64],
) -> HeldOut:
    """The errors on held-out faces with landmarks (m, K, 2), image px, without those that were not found.

    They are what they would be if no block had been missing from the fit.
    """
    errors = pixel_errors(features.to_image(fit.held_out.numpy()), xy) / _known_scales(features)
    errors *= (1 - 1 / max(len(np.unique(blocks)), 2)) ** LEARNING
    confidence = np.full(errors.shape, np.nan) if fit.confidence is None else fit.confidence.double().numpy()
    return HeldOut(errors=errors, confidence=confidence, groups=groups)


def _known_scales(features: FaceFeatures) -> NDArray[np.float64]:
    """Image px per input px (B, 1); nan of a face that was not found: nothing is known of its errors."""
    return np.array([[np.nan if face.found is False else face.crop.scale] for face in features.faces])


def _have_boxes(images: Any, boxes: Boxes) -> bool:
    """Whether images come with boxes, beside them or in their ImageBatch."""
    return images.has_boxes if isinstance(images, ImageBatch) else boxes is not None


def _list_features(images: Any) -> list[FaceFeatures]:
    """The FaceFeatures that these are, alone or a sequence of nothing else; empty for images."""
    parts = [images] if isinstance(images, FaceFeatures) else images
    of_features = isinstance(parts, Sequence) and all(isinstance(part, FaceFeatures) for part in parts)
    return list(parts) if of_features else []
