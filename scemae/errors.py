"""The errors of scemae. Each is also the built-in error that a caller would guess::

    ScemaeError
    ├── ValueError
    │   ├── ImageInputError
    │   ├── BoxInputError
    │   ├── LandmarkInputError
    │   ├── OptionError
    │   ├── TableError
    │   ├── DataError
    │   ├── IncompatibleWeightsError
    │   ├── IncompatibleFeaturesError
    │   └── NotFittedError (also AttributeError)
    ├── LookupError
    │   ├── ModelNotFoundError
    │   └── RevisionNotFoundError
    ├── OSError
    │   ├── WeightsUnavailableError
    │   ├── WeightsIntegrityError
    │   ├── OutputError
    │   └── GatedWeightsError (PermissionError)
    ├── ImportError
    │   └── MissingExtraError
    └── RuntimeError
        ├── ExportError
        └── RunError

Each message says what was given, what was expected and what to do next.
"""

import re
import sys
import warnings

# Controls of terminals, line ends, and what makes a line run from right to left.
UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def escape_controls(text: str) -> str:
    """The text on one line, control characters as \\n or \\x1b: names of files and landmarks may hold any."""
    return UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def escape_lines(text: str) -> str:
    """The text with its line ends, and all other control characters escaped."""
    return "\n".join(map(escape_controls, text.split("\n")))


def name_face(source: str, number: int | None) -> str:
    """What a face is called in messages: its image, and unless None, which face of it."""
    return source if number is None else f"{source}, face {number}"


class ScemaeError(Exception):
    """Base class of all errors that scemae raises on purpose."""


class ImageInputError(ScemaeError, ValueError):
    """An image cannot be read or used; the message names it."""


class BoxInputError(ScemaeError, ValueError):
    """A face box is inverted, outside its image or too small, or the numbers of boxes and images differ."""


class LandmarkInputError(ScemaeError, ValueError):
    """Landmarks have the wrong shape, are outside their image, or are not for as many images as were given."""


class OptionError(ScemaeError, ValueError):
    """An argument has a value that is not allowed."""


class TableError(ScemaeError, ValueError):
    """A CSV file cannot be read, or one of its lines is not an annotation or a box."""


class DataError(ScemaeError, ValueError):
    """Training data are missing, empty, damaged or not laid out as their reader expects."""


class IncompatibleWeightsError(ScemaeError, ValueError):
    """The tensors of a weight file do not fit its configuration."""


class IncompatibleFeaturesError(ScemaeError, ValueError):
    """Features come from another model, expansion or alignment than expected."""


class NotFittedError(ScemaeError, ValueError, AttributeError):
    """A regressor was asked to predict before it was fitted."""


class ModelNotFoundError(ScemaeError, LookupError):
    """There is no model of that name, or none in that folder."""


class RevisionNotFoundError(ScemaeError, LookupError):
    """A Hub repository does not have that branch, tag or commit."""


class WeightsUnavailableError(ScemaeError, OSError):
    """A file is not on this machine and cannot be fetched: no network, no answer, no space, or not published yet."""


class WeightsIntegrityError(ScemaeError, OSError):
    """A weight file is unreadable, or its SHA-256 is not the expected one."""


class OutputError(ScemaeError, OSError):
    """An output path exists already or cannot be written."""


class GatedWeightsError(ScemaeError, PermissionError):
    """A Hub repository is gated or private, or the Hub does not accept the token."""


class MissingExtraError(ScemaeError, ImportError):
    """A function needs a package of an extra that is not installed."""


class ExportError(ScemaeError, RuntimeError):
    """An exported graph does not compute what torch computes; it was not written."""


class RunError(ScemaeError, RuntimeError):
    """A training run cannot start, continue or finish; its last good checkpoint is kept."""


def warn_user(message: str) -> None:
    """Warn where the user's code called scemae."""
    level, frame = 2, sys._getframe(1)
    while frame.f_back and frame.f_globals.get("__name__", "").partition(".")[0] in ("scemae", "contextlib"):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)
