"""The file of a detector: safetensors, never a pickle. `FittedDetector` is what it holds beside the arguments."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scemae.detector.built_in_heads import HEADS
from scemae.detector.head import Head
from scemae.detector.map_reader import MapReader
from scemae.errors import IncompatibleWeightsError, ModelNotFoundError, OptionError
from scemae.extraction import Extractor
from scemae.features import FeatureKind
from scemae.model.config import ModelId
from scemae.weights.hub import HUB, HubOptions, fetch
from scemae.weights.model_folder import REGRESSOR, REGRESSOR_FORMAT, read_file, write_file
from scemae.weights.zoo import load_model

ARGUMENTS = ("names", "head", "mirror", "use", "expansion", "align", "normalizer")  # of a regressor, beside the model
FIRST_FORMAT = "scemae landmark regressor 1"  # before heads had `params`
HEAD_TENSOR = "head."  # prefix of the tensors of the head's state


@dataclass(frozen=True, kw_only=True, eq=False)
class FittedDetector:
    """What `LandmarkRegressor.fit` finds.

    Attributes:
        head: fitted.
        reader: which maps the head reads.
        kind: of the features: the model, and how they were extracted.
        names: the names of the K landmarks, or None.
        mirrored: whether the head was fitted on mirror images too.
        held_out_errors: (n, K), of the n annotated faces, as a fraction of the normalizer; nan where not known.
    """

    head: Head
    reader: MapReader
    kind: FeatureKind
    names: tuple[str, ...] | None
    mirrored: bool
    held_out_errors: NDArray[np.float64]


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
    faces, landmarks = fitted.held_out_errors.shape
    header = {
        "kind": asdict(fitted.kind),
        "head": head.name,
        "params": head.params(),
        "names": fitted.names,
        "landmarks": landmarks,
        "use": reader.use,
        "mirrored": fitted.mirrored,
        "faces": faces,
        "asked": {name: arguments[name] for name in ARGUMENTS} | {"head": _describe_head(arguments["head"])},
    }
    text = json.dumps(header, default=_to_list)
    write_file(path, tensors, {REGRESSOR_FORMAT: text}, overwrite)


def _to_list(values: Any) -> Any:
    """What JSON has for an array, or any other iterable, in names=, mirror= and normalizer=."""
    return values.tolist() if hasattr(values, "tolist") else list(values)


def load_detector(
    path: str | os.PathLike[str], model: Extractor | None, head: type[Head] | None, hub: HubOptions
) -> tuple[dict[str, Any], FittedDetector]:
    """The regressor's arguments, the model among them, and what it found; see `LandmarkRegressor.load`."""
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
        kind = FeatureKind(**header["kind"] | {"model": ModelId(*header["kind"]["model"])})
        model = _load_fitted_on(kind.model, hub) if model is None else model
        if model.id.sha256 != kind.model.sha256:
            raise IncompatibleWeightsError(
                f"{path} was fitted on {kind.model}; the model here is {model.id}. "
                "Load that model and pass model=, or fit again."
            )
        new_head = _head_class(path, header["head"], head)
        fitted = FittedDetector(
            head=new_head(**header["params"]),
            reader=MapReader(header["use"], tensors["mean"], tensors["std"]),
            kind=kind,
            names=None if header["names"] is None else tuple(header["names"]),
            mirrored=header["mirrored"],
            held_out_errors=tensors["held_out_errors"].numpy(),
        )
        fitted.head.load_state(
            {name.removeprefix(HEAD_TENSOR): tensor for name, tensor in tensors.items() if name.startswith(HEAD_TENSOR)}
        )
        arguments = {name: header["asked"][name] for name in ARGUMENTS}
        if not isinstance(arguments["head"], str):
            arguments["head"] = new_head(**arguments["head"]["params"])
        return arguments | {"model": model}, fitted


def _update_first_format(header: dict[str, Any], tensors: dict[str, Tensor]) -> dict[str, Any]:
    """The header of a file of the first format as it would be today; the ridge that was chosen becomes a tensor."""
    params, asked = header["settings"], header["asked"]["head"]
    if header["head"] == "cascade":
        tensors[f"{HEAD_TENSOR}ridge"] = torch.tensor(params["ridge"], dtype=torch.float64)
    if not isinstance(asked, str):
        asked = {"name": asked[0], "params": asked[1]}
    return header | {"params": params, "asked": header["asked"] | {"head": asked}}


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
    try:
        return load_model(model.name, **hub)
    except ModelNotFoundError as error:
        raise ModelNotFoundError(
            f"The regressor was fitted on a model of your own, {model}: load it and pass model= (--model)."
        ) from error


@contextmanager
def _explain_damage(path: str | os.PathLike[str]) -> Iterator[None]:
    try:
        yield
    except IncompatibleWeightsError:
        raise
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise IncompatibleWeightsError(f"{path} is damaged: {type(error).__name__}: {error}.") from error
