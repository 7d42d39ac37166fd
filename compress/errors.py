"""User errors: each is printed on one line, with exit code 2.

    CompressError
    ├── CheckpointError    a checkpoint is missing, damaged, of another version or stage
    ├── DataError          a dataset is missing or unusable
    ├── NonFiniteLossError training diverged (train/epoch.py)
    └── UnmetBudgetError   no network is fast or small enough (prune/search.py)

Any other exception is a bug: exit code 1, with the traceback in a file.
"""


class CompressError(ValueError):
    """A user error; the message says what is wrong, what is allowed, and what to do.

    A ValueError, so that pydantic accepts it from validators.
    """


class CheckpointError(CompressError):
    """A checkpoint is missing, damaged, of another version or of the wrong stage."""


class DataError(CompressError):
    """A dataset is missing or unusable; the message says what to do."""
