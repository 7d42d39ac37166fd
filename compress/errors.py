"""The errors that are the user's to mend: each is printed as one line, with exit code 2.

    CompressError
    ├── CheckpointError    a checkpoint is missing, damaged, of another version or stage
    ├── DataError          a data set cannot be found or used
    ├── NonFiniteLossError training diverged (train/loop.py)
    └── UnmetBudgetError   no network is fast or small enough (prune/search.py)

Anything else that escapes is a bug of ours, and is treated as one: exit code 1, with its traceback
in a file.
"""

from __future__ import annotations


class CompressError(ValueError):
    """A mistake of the user's; the message says what is wrong, what is allowed and what to do.

    A ValueError, so that pydantic takes it for a config's own rule.
    """


class CheckpointError(CompressError):
    """A checkpoint is missing, damaged, of another version or of the wrong stage."""


class DataError(CompressError):
    """A data set cannot be found or used; the message says what to do."""
