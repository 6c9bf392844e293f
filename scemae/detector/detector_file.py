"""The file of a detector: safetensors, never a pickle. `FittedDetector` is what it holds beside the arguments."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scemae.detector.built_in_heads import HEADS
from scemae.detector.error_model import ErrorModel, HeldOut
from scemae.detector.head import Head
from scemae.detector.map_reader import MapReader
from scemae.errors import IncompatibleWeightsError, ModelNotFoundError, OptionError, ScemaeError, warn_user
from scemae.extraction import validate_model
from scemae.features import FeatureKind
from scemae.model.config import ModelId, validate_use
from scemae.model.extractor import Extractor
from scemae.model.sce_mae import SceMae
from scemae.weights.hub import HUB, HubOptions, fetch
from scemae.weights.model_folder import (
    REGRESSOR,
    REGRESSOR_FORMAT,
    check_finite,
    check_layout,
    read_file,
    seal,
    write_file,
)
from scemae.weights.zoo import RELEASED, load_model

if TYPE_CHECKING:
    from scemae.detector.cascade import CascadeHead
    from scemae.detector.heatmap import HeatmapHead

ARGUMENTS = ("names", "head", "mirror", "use", "expansion", "align", "normalizer")  # of a regressor, beside the model
FIRST_FORMAT = "scemae landmark regressor 1"  # before heads had `params`
UNSEALED = {"kind", "head", "params", "names", "landmarks", "use", "mirrored", "faces", "asked"}  # a header of 0.1.0
HEAD_TENSOR = "head."  # prefix of the tensors of the head's state
RADIUS_TENSOR = "radius."  # of those from which the radius follows
UNKNOWN_AS_NAN = {"held_out_errors", f"{RADIUS_TENSOR}errors", f"{RADIUS_TENSOR}confidence"}


@dataclass(frozen=True, kw_only=True, eq=False)
class FittedDetector:
    """What `LandmarkRegressor.fit` finds.

    Attributes:
        head: fitted.
        reader: which maps the head reads.
        kind: of the features: the model, and how they were extracted.
        names: the names of the K landmarks, or None.
        mirrored: whether the head was fitted on mirror images too.
        boxed: whether the images came with boxes; False where that is not known.
        held_out_errors: (n, K), of the n annotated faces, as a fraction of the normalizer; nan where not known.
        error_model: None in files that were written before there was one.
    """

    head: Head
    reader: MapReader
    kind: FeatureKind
    names: tuple[str, ...] | None
    mirrored: bool
    boxed: bool
    held_out_errors: NDArray[np.float64]
    error_model: ErrorModel | None


def save_detector(
    path: str | os.PathLike[str], arguments: Mapping[str, Any], fitted: FittedDetector, overwrite: bool
) -> None:
    """Write the detector, and the arguments of its regressor as they were given, but without the model.

    The head's tensors, the reader's and the errors are the file's tensors; the rest is JSON in its header.
    Raises OutputError where the file exists or cannot be written.
    """
    head, reader = fitted.head, fitted.reader
    tensors = {f"{HEAD_TENSOR}{name}": tensor for name, tensor in head.state().items()}
    tensors |= {"mean": reader.mean, "std": reader.std, "held_out_errors": torch.from_numpy(fitted.held_out_errors)}
    if fitted.error_model is not None:
        tensors |= {f"{RADIUS_TENSOR}{n}": torch.from_numpy(a) for n, a in vars(fitted.error_model.held_out).items()}
    faces, landmarks = fitted.held_out_errors.shape
    header = {
        "kind": asdict(fitted.kind),
        "head": head.name,
        "params": head.params(),
        "names": fitted.names,
        "landmarks": landmarks,
        "use": reader.use,
        "mirrored": fitted.mirrored,
        "boxed": fitted.boxed,
        "faces": faces,
        "asked": {name: arguments[name] for name in ARGUMENTS} | {"head": _describe_head(arguments["head"])},
    }
    write_file(path, tensors, seal(tensors, REGRESSOR_FORMAT, header), overwrite)


def load_detector(
    path: str | os.PathLike[str], model: Extractor | None, head: type[Head] | None, hub: HubOptions
) -> tuple[dict[str, Any], FittedDetector]:
    """The regressor's arguments, the model among them, and what it found; see `LandmarkRegressor.load`."""
    if model is not None:
        validate_model(model)
    if head is not None and not isinstance(head, type):
        raise OptionError(f"head is {head!r}; it must be the class of the head: its params are in the file.")
    if isinstance(path, str) and path.startswith(HUB):
        path = fetch(path, (REGRESSOR,), hub)[0] / REGRESSOR
    tensors, metadata = read_file(path)
    if not metadata.keys() & {REGRESSOR_FORMAT, FIRST_FORMAT}:
        raise IncompatibleWeightsError(f"{path} is not a landmark regressor of scemae (format '{REGRESSOR_FORMAT}').")
    with _explain_damage(path):
        if REGRESSOR_FORMAT in metadata:
            header = json.loads(metadata[REGRESSOR_FORMAT])
        else:
            header = _update_first_format(json.loads(metadata[FIRST_FORMAT]), tensors)
        if "sha256" not in header:
            _require_unsealed(path, header)
        kind = FeatureKind(**header["kind"] | {"model": ModelId(*header["kind"]["model"])})
        model = _load_fitted_on(kind.model, hub) if model is None else model
        if model.id.sha256 != kind.model.sha256:
            raise IncompatibleWeightsError(
                f"{path} was fitted on {kind.model}; the model here is {model.id}. "
                "Load that model and pass model=, or fit again."
            )
        new_head = _head_class(path, header["head"], head)
        fresh = new_head(**header["params"])
        _check_tensors(path, tensors, header, fresh, model)
        fitted = FittedDetector(
            head=fresh,
            reader=MapReader(header["use"], tensors["mean"], tensors["std"]),
            kind=kind,
            names=None if header["names"] is None else tuple(header["names"]),
            mirrored=header["mirrored"],
            boxed=header.get("boxed", False),  # files of 0.1.0 do not say
            held_out_errors=tensors["held_out_errors"].numpy(),
            error_model=_load_error_model(tensors),
        )
        fitted.head.load_state(_select_state(tensors))
        arguments = {name: header["asked"][name] for name in ARGUMENTS}
        if not isinstance(arguments["head"], str):
            arguments["head"] = new_head(**arguments["head"]["params"])
        return arguments | {"model": model}, fitted


def _update_first_format(header: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Any]:
    """The header of a file of the first format as it would be today; the ridge that was chosen becomes a tensor."""
    params, asked = header.pop("settings"), header["asked"]["head"]
    if header["head"] == "cascade":
        tensors[f"{HEAD_TENSOR}ridge"] = torch.tensor(params["ridge"], dtype=torch.float64)
    if not isinstance(asked, str):
        asked = {"name": asked[0], "params": asked[1]}
    return header | {"params": params, "asked": header["asked"] | {"head": asked}}


def _require_unsealed(path: str | os.PathLike[str], header: dict[str, Any]) -> None:
    """Warn of a header without a checksum; raise ValueError where it is none that 0.1.0 wrote."""
    if others := header.keys() ^ UNSEALED:
        raise ValueError(f"the header has no checksum, and is not one of scemae 0.1.0 ({', '.join(sorted(others))})")
    warn_user(
        f"{path} carries no checksum, as scemae 0.1.0 wrote it: damage to its numbers would not be noticed. "
        "Load it where it is known to be whole, and save it again."
    )


def _check_tensors(
    path: str | os.PathLike[str], tensors: dict[str, Tensor], header: dict[str, Any], head: Head, model: Extractor
) -> None:
    """Raise IncompatibleWeightsError or ValueError unless the tensors are those that header, head and model call for.

    A head that is not scemae's is given its own tensors unchecked.
    """
    faces, landmarks, names = header["faces"], header["landmarks"], header["names"]
    if names is not None and not (len(set(names)) == len(names) == landmarks and all(type(n) is str for n in names)):
        raise ValueError(f"names are {names!r:.200}, wanted those of {landmarks} landmarks")
    flags = {name: header.get(name, False) for name in ("mirrored", "boxed")}
    if any(type(flag) is not bool for flag in flags.values()) or min(faces, landmarks) < 1:
        raise ValueError(f"{flags}, faces {faces!r}, landmarks {landmarks!r}")
    use, channels = validate_use(header["use"]), len(tensors["mean"])
    if isinstance(model, SceMae):  # of others the channels are not known
        width, projected = model.config.backbone.width, model.config.projector_dim or 0
        channels = {"backbone": width, "projected": projected, "both": width + projected}[use]
    built_in, state = head.name in HEADS, _select_state(tensors)
    if built_in:
        state = cast("CascadeHead | HeatmapHead", head).expected_state(channels, landmarks, state)
    expected = {f"{HEAD_TENSOR}{name}": tensor for name, tensor in state.items()}
    with torch.device("meta"):
        expected["mean"] = expected["std"] = torch.empty(channels, dtype=torch.float32)
        expected["held_out_errors"] = torch.empty(faces, landmarks, dtype=torch.float64)
        if any(name.startswith(RADIUS_TENSOR) for name in tensors):
            pictures = len(tensors[f"{RADIUS_TENSOR}groups"])
            expected[f"{RADIUS_TENSOR}errors"] = torch.empty(pictures, landmarks, dtype=torch.float64)
            expected[f"{RADIUS_TENSOR}confidence"] = torch.empty(pictures, landmarks, dtype=torch.float64)
            expected[f"{RADIUS_TENSOR}groups"] = torch.empty(pictures, dtype=torch.int64)
    check_layout(path, tensors, expected, "header")
    finite = expected.keys() - UNKNOWN_AS_NAN if built_in else ("mean", "std")
    check_finite(path, {name: tensors[name] for name in finite})
    if any(tensors[name].isinf().any() for name in UNKNOWN_AS_NAN & expected.keys()) or not (tensors["std"] > 0).all():
        raise ValueError("a held-out error is infinite, or a deviation not above 0")


def _load_error_model(tensors: Mapping[str, Tensor]) -> ErrorModel | None:
    known = {n.removeprefix(RADIUS_TENSOR): t.numpy() for n, t in tensors.items() if n.startswith(RADIUS_TENSOR)}
    return ErrorModel.fit(HeldOut(**known)) if known else None


def _select_state(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the head's state, by their names there."""
    return {name.removeprefix(HEAD_TENSOR): t for name, t in tensors.items() if name.startswith(HEAD_TENSOR)}


def _describe_head(head: str | Head) -> Any:
    """A head as it was asked for, as JSON can hold it."""
    return head if isinstance(head, str) else {"name": head.name, "params": head.params()}


def _head_class(path: str | os.PathLike[str], name: str, own: type[Head] | None) -> Callable[..., Head]:
    """The class of the file's head; raises IncompatibleWeightsError where it is not here."""
    if own is None:
        if name not in HEADS:
            raise IncompatibleWeightsError(
                f"{path} was fitted with the head {name!r}, which is not one of scemae's ({', '.join(HEADS)}). "
                "Pass its class: LandmarkRegressor.load(path, head=...)."
            )
        return HEADS[name]
    if own.name != name:
        raise IncompatibleWeightsError(f"{path} was fitted with the head {name!r}; head= is the class of {own.name!r}.")
    return own


def _load_fitted_on(model: ModelId, hub: HubOptions) -> Extractor:
    """The released model of that name. Any other is for the caller to find: a file must not choose what is fetched."""
    if model.name not in RELEASED:
        raise ModelNotFoundError(
            f"The regressor was fitted on a model of your own, {model}: load it and pass model= (--model)."
        )
    return load_model(model.name, **hub)


@contextmanager
def _explain_damage(path: str | os.PathLike[str]) -> Iterator[None]:
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:  # RecursionError is one
        if isinstance(error, ScemaeError) and not isinstance(error, OptionError):
            raise
        raise IncompatibleWeightsError(f"{path} is damaged: {type(error).__name__}: {error}.") from error
