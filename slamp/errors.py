"""Every error this distribution raises on purpose.

Each derives from `SlampError` and from the built-in a caller would expect, and its message says where, what was
found, what is allowed and what to do.
"""


class SlampError(Exception):
    """Base of all errors raised on purpose by slamp and its exporters."""


class RasterError(SlampError, ValueError):
    """A raster or a samples file has the wrong shape, dtype or values."""


class GraphError(SlampError, ValueError):
    """A graph is inconsistent: shapes, edges, non-finite numbers."""


class UnsupportedModuleError(SlampError, TypeError):
    """A torch module cannot be captured."""


class CaptureError(SlampError, ValueError):
    """The captured graph does not spike like the module it was read from."""


class UnsupportedNodeError(SlampError, TypeError):
    """A target cannot express a node of the graph."""


class ScoreError(SlampError, ValueError):
    """Weights cannot be scored: unknown method, all-zero layer, missing activity."""


class BudgetError(SlampError, ValueError):
    """A budget is malformed or cannot be met; the message names the budget."""


class ProfileError(SlampError, ValueError):
    """A hardware profile is missing or has a wrong entry; the message names file, line and key."""


class MappingError(SlampError, ValueError):
    """A network cannot be placed on the cores of a chip; the message says the smallest change that would help."""


class MaskError(SlampError, ValueError):
    """Masks do not belong to the network they are applied to."""


class TrainingError(SlampError, RuntimeError):
    """The user's training function broke its contract."""


class SilentNetworkError(SlampError, ValueError):
    """A layer never fires, so nothing can be learned from its activity."""


class ArtifactError(SlampError, ValueError):
    """An artifact, graph file or manifest is missing, corrupt or truncated."""


class OutputDirectoryError(SlampError, FileExistsError):
    """The output directory holds files that are not ours to replace."""


class ExporterNotFoundError(SlampError, LookupError):
    """No exporter of that name is installed."""


class MissingDependencyError(SlampError, ImportError):
    """An optional package or environment is not installed."""


class WitnessError(SlampError, RuntimeError):
    """A foreign simulator refused the file, crashed or ran out of time."""


class NotEquivalentError(SlampError, AssertionError):
    """The replayed artifact spikes differently from the graph it was written from."""


class RunFileError(SlampError, ValueError):
    """A run file or a command-line value cannot be understood."""
