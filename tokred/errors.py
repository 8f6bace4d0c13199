"""The errors tokred raises. Every message says what was found, what is supported, and what to try."""


class TokredError(Exception):
    """Base class of all errors of this package."""


class UnsupportedModelError(TokredError):
    """The model has no adapter, is wrapped in a way that cannot be patched, or failed the self-check."""


class AlreadyPatchedError(TokredError):
    """The model, or a part of it, is patched already."""


class ScheduleMismatchError(TokredError):
    """A schedule was made for another depth, or asks for something the method cannot do."""


class BudgetError(TokredError):
    """A budget cannot be read, or no schedule of the method reaches it."""


class NonFiniteError(TokredError):
    """Activations became NaN or infinite; the message names the layer."""


class DataError(TokredError):
    """Data cannot be found or read."""


class ConfigError(TokredError):
    """A configuration file has an unknown key or a wrong value; the message names it and the nearest known one."""
