"""scikit-learn's estimator protocol, without requiring scikit-learn."""

from __future__ import annotations

import inspect
from typing import Any, Self

from scemae.errors import OptionError


class Estimator:
    """Base of a class whose `__init__` stores each argument, unchanged, under its own name."""

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

    def __sklearn_clone__(self) -> Self:
        return type(self)(**self.get_params())

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import RegressorTags, Tags, TargetTags

        return Tags(
            estimator_type="regressor",
            target_tags=TargetTags(required=True, multi_output=True),
            regressor_tags=RegressorTags(),
        )
