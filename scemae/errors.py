"""Every error that scemae raises on purpose. Each also is the built-in error that a caller would guess."""


class ScemaeError(Exception):
    """Base of all errors of scemae. The message says what came, what was wanted and the next step."""


class ImageInputError(ScemaeError, ValueError):
    """An image that cannot be read or used; names which one."""


class BoxInputError(ScemaeError, ValueError):
    """A face box that is inverted, outside its image, too small, or one too many or too few."""


class LandmarkInputError(ScemaeError, ValueError):
    """Landmarks of the wrong shape, outside their image, or for another number of images."""


class OptionError(ScemaeError, ValueError):
    """An argument with a value that is not one of those possible."""


class ModelNotFoundError(ScemaeError, LookupError):
    """No model of that name, or no model in that folder."""


class WeightsUnavailableError(ScemaeError, OSError):
    """A file that is not on this machine and cannot be fetched: no network, no answer, no room, not published yet."""


class GatedWeightsError(ScemaeError, PermissionError):
    """A repository of the Hub that is gated or private, or a token that it does not accept."""


class RevisionNotFoundError(ScemaeError, LookupError):
    """A repository of the Hub that has no such branch, tag or commit."""


class WeightsIntegrityError(ScemaeError, OSError):
    """A weight file that is unreadable, or whose SHA-256 is not the expected one."""


class IncompatibleWeightsError(ScemaeError, ValueError):
    """A weight file whose tensors are not those of its configuration."""


class IncompatibleFeaturesError(ScemaeError, ValueError):
    """Features of another model, expansion or alignment than was expected."""


class NotFittedError(ScemaeError, ValueError, AttributeError):
    """A regressor that was asked to predict before it was fitted."""


class OutputError(ScemaeError, OSError):
    """An output path that exists already or cannot be written."""


class MissingExtraError(ScemaeError, ImportError):
    """A function that needs a package of an extra that is not installed."""


class ExportError(ScemaeError, RuntimeError):
    """An exported graph that does not compute what torch computes; it was not written."""


class TableError(ScemaeError, ValueError):
    """A CSV file that cannot be read, or a line of it that is no annotation or box."""


class DataError(ScemaeError, ValueError):
    """Training data that is missing, empty, damaged or not laid out as its reader expects."""


class RunError(ScemaeError, RuntimeError):
    """A training run that cannot start, go on or finish; its last good checkpoint is kept."""
