"""scikit-learn's estimator protocol, without requiring scikit-learn."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from copy import deepcopy
from typing import Any, ClassVar, Self

from scemae.errors import MissingExtraError, OptionError


class Estimator:
    """Base of a class whose `__init__` stores each argument, unchanged, under its own name.

    `metadata`: by method, the arguments that hold one value per sample. With `enable_metadata_routing`, scikit-learn
    passes them on as the `set_*_request` methods say; they change and return the estimator.
    """

    metadata: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    _metadata_request: Any

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The arguments of `__init__`."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def set_params(self, **parameters: Any) -> Self:
        """Change arguments of `__init__`, for the next `fit`; raises OptionError for an unknown one."""
        known = self.get_params()
        for name, value in parameters.items():
            if name not in known:
                raise OptionError(f"There is no parameter {name!r}; there are {', '.join(known)}.")
            setattr(self, name, value)
        return self

    def set_fit_request(self, **requests: bool | str | None) -> Self:
        """Which arguments scikit-learn passes to `fit`: True, False, the name to take it from, or None to refuse it."""
        return self._set_request("fit", requests)

    def set_predict_request(self, **requests: bool | str | None) -> Self:
        """The same for `predict`."""
        return self._set_request("predict", requests)

    def set_score_request(self, **requests: bool | str | None) -> Self:
        """The same for `score`."""
        return self._set_request("score", requests)

    def get_metadata_routing(self) -> Any:
        """What was requested, as scikit-learn's MetadataRequest."""
        return self._metadata_request if hasattr(self, "_metadata_request") else self._get_default_requests()

    _get_metadata_request = get_metadata_routing  # its name in scikit-learn's RequestMethod

    def _get_default_requests(self) -> Any:
        """Nothing is requested; the scorer of scikit-learn 1.6 asks for it by this name."""
        from sklearn.utils.metadata_routing import MetadataRequest

        default = MetadataRequest(owner=type(self).__name__)
        for method, arguments in self.metadata.items():
            for argument in arguments:
                getattr(default, method).add_request(param=argument, alias=None)
        return default

    def _set_request(self, method: str, requests: Mapping[str, bool | str | None]) -> Self:
        try:
            from sklearn.utils._metadata_requests import RequestMethod
        except ImportError as error:
            raise MissingExtraError(
                f"set_{method}_request is for scikit-learn: pip install 'scikit-learn>=1.6'."
            ) from error
        RequestMethod(method, list(self.metadata[method])).__get__(self, type(self))(**requests)
        return self

    def __sklearn_clone__(self) -> Self:
        clone = type(self)(**self.get_params())
        if hasattr(self, "_metadata_request"):
            clone._metadata_request = deepcopy(self._metadata_request)
        return clone

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import RegressorTags, Tags, TargetTags

        return Tags(
            estimator_type="regressor",
            target_tags=TargetTags(required=True, multi_output=True),
            regressor_tags=RegressorTags(),
        )
