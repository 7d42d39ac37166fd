"""Runs all checks on a file."""

from dataclasses import dataclass
from pathlib import Path

from compress.doctor.deployment import DEPLOYMENT_CHECKS
from compress.doctor.finding import Finding, Severity
from compress.doctor.graph import GRAPH_CHECKS
from compress.doctor.model import read_model
from compress.doctor.quantization import QUANTIZATION_CHECKS
from compress.doctor.weights import WEIGHT_CHECKS

CHECKS = (*QUANTIZATION_CHECKS, *GRAPH_CHECKS, *WEIGHT_CHECKS, *DEPLOYMENT_CHECKS)
SEVERITIES: tuple[Severity, ...] = ("error", "warning", "note")
"""The worst first."""


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """All findings in a file, the worst first."""

    file: str
    findings: tuple[Finding, ...]

    def count(self, severity: Severity) -> int:
        """Returns the number of findings of a severity."""
        return sum(finding.severity == severity for finding in self.findings)

    @property
    def is_sound(self) -> bool:
        """Whether there are notes at most."""
        return self.count("note") == len(self.findings)


def examine(path: Path) -> Diagnosis:
    """Runs all checks on an ONNX file.

    Raises:
        CompressError: see `read_model`.
    """
    model = read_model(path)
    found = [
        Finding(
            check=check.name,
            severity=check.severity,
            what=fault.what,
            where=fault.where,
            why=check.why,
            upstream=check.upstream,
            fix=check.fix,
        )
        for check in CHECKS
        for fault in check.find(model)
    ]
    found.sort(key=lambda finding: SEVERITIES.index(finding.severity))
    return Diagnosis(file=str(path), findings=tuple(found))
