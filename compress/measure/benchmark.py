"""Comparisons of models as plain data, and whether their ratios can be trusted."""

from dataclasses import dataclass
from typing import Literal

from compress.host import Host
from compress.log import count_of
from compress.measure.conditions import Conditions
from compress.measure.engines import Runtime
from compress.measure.latency import Latency
from compress.measure.profile import OperatorTime

MAX_NOISE = 0.1
"""Largest difference between a model and its copy, relative, at which ratios count."""
MAX_THROTTLED = 0.01
SPARE_CORES = 0.1
"""Cores that others may use beyond those that the threads leave them: the system does not rest."""
MIN_AGREEMENT = 99.0
"""Percent of the images that need the same class in two runtimes."""

Cause = Literal["affinity", "quota", "throttled", "shared", "noise", "outputs"]
Verdict = Literal["faster", "slower", "no difference", "not concluded"]


@dataclass(frozen=True, kw_only=True)
class Doubt:
    """Why no ratio is concluded."""

    cause: Cause
    text: str


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """How far a runtime agrees with ONNX Runtime on the same file."""

    top1_agreement: float
    """Percent of images for which both predict the same class."""
    n_images: int
    images: Literal["test", "random"]


@dataclass(frozen=True, kw_only=True)
class BenchmarkRow:
    """A model with a number of threads and a batch size.

    Speedup and verdict compare with the first row of the same threads and batch size.
    """

    file: str
    runtime: Runtime
    size_bytes: int
    """Of the ONNX file."""
    latency: Latency
    memory_bytes: int | None
    """Peak memory beyond that before loading; see `Times.memory_bytes`."""
    agreement: Agreement | None
    """None for ONNX Runtime itself."""
    conditions: Conditions
    """The machine while it and its rivals were timed."""
    doubts: tuple[Doubt, ...]
    verdict: Verdict | None
    """None for the first."""
    operators: tuple[OperatorTime, ...]
    """The longest first; empty without a profile, and in other runtimes."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkResult:
    """A comparison of models, a row for each of them and each setting."""

    created: str
    """UTC, ISO 8601."""
    host: Host
    versions: dict[Runtime, str]
    """Of the runtimes."""
    rows: tuple[BenchmarkRow, ...]


def doubts_about_machine(
    conditions: Conditions, *, threads: int, noise: float
) -> tuple[Doubt, ...]:
    """Returns why ratios that were measured under these conditions cannot be trusted.

    Args:
        conditions: the machine meanwhile.
        threads: threads of the runtimes.
        noise: see `Latency.speedup_noise`.
    """
    cores, quota, others = conditions.cores, conditions.quota_cores, conditions.others_cores
    wanted = count_of(threads, "thread")
    found: list[Doubt] = []
    if threads > cores:
        text = f"{wanted} share {count_of(cores, 'core')}, all that this process may use"
        found.append(Doubt(cause="affinity", text=text))
    if quota is not None and threads > quota:
        text = f"{wanted} share a CPU quota of {quota:g} cores"
        found.append(Doubt(cause="quota", text=text))
    if conditions.throttled_share > MAX_THROTTLED:
        text = f"the CPU quota stopped this process {conditions.throttled_share:.0%} of the time"
        found.append(Doubt(cause="throttled", text=text))
    if others is not None and others > max(0, cores - threads) + SPARE_CORES:
        text = f"others kept {others:.1f} of {count_of(cores, 'core')} busy beside {wanted}"
        found.append(Doubt(cause="shared", text=text))
    if noise > MAX_NOISE:
        text = f"a file and its own copy differ by up to {noise:.0%}, more than {MAX_NOISE:.0%}"
        found.append(Doubt(cause="noise", text=text))
    return tuple(found)


def doubts_about_outputs(agreement: Agreement | None, runtime: Runtime) -> tuple[Doubt, ...]:
    """Returns why a runtime cannot be compared with ONNX Runtime: it computes something else."""
    if agreement is None or agreement.top1_agreement >= MIN_AGREEMENT:
        return ()
    text = f"{runtime} agrees on the class of only {agreement_text(agreement)}"
    return (Doubt(cause="outputs", text=text),)


def agreement_text(agreement: Agreement) -> str:
    """Returns the share and the number of images in words."""
    return f"{agreement.top1_agreement:.1f} % of {agreement.n_images} {agreement.images} images"


def judge(latency: Latency, doubts: tuple[Doubt, ...]) -> Verdict:
    """Decides whether a model is faster than the first one."""
    if doubts:
        return "not concluded"
    low, high = latency.speedup_ci95
    if low > 1:
        return "faster"
    return "slower" if high < 1 else "no difference"
