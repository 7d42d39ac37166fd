"""Results of the teacher stage."""

from dataclasses import dataclass

from compress.measure.results import Count


@dataclass(frozen=True, kw_only=True)
class TeacherResult:
    """How the teacher was made."""

    epochs: Count = 0
    taken_from: str = ""
    """The checkpoint given with --teacher; empty if the stage trained."""
