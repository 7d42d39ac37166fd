"""A comparison of files and runtimes as tables and remarks."""

from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from compress.files import printable
from compress.log import count_of
from compress.measure.benchmark import BenchmarkResult, BenchmarkRow, agreement_text
from compress.measure.profile import OperatorTime
from compress.report.render import size_text
from compress.report.tables import Rows, terminal_table

LATENCY_COLUMNS = (
    "file", "threads", "batch", "p50 ms", "p90 ms", "p99 ms", "cold ms", "images/s",
    "faster", "95 % CI",
)  # fmt: skip
LOADING_COLUMNS = ("file", "threads", "batch", "size", "load ms", "first ms", "memory")
OPERATOR_COLUMNS = ("operator", "nodes", "ms", "%")


def latency_rows(result: BenchmarkResult) -> Rows:
    """Returns the cells of `LATENCY_COLUMNS`; those of ratios are empty if none is concluded."""
    return [_latency_row(row) for row in result.rows]


def _latency_row(row: BenchmarkRow) -> tuple[str, ...]:
    latency, ratio = row.latency, ("", "")
    if not row.doubts:
        low, high = latency.speedup_ci95
        ratio = (f"{latency.speedup:.2f}x", f"{low:.2f}-{high:.2f}")
    return (
        *_setting(row),
        f"{latency.latency_ms_p50:.3f}",
        f"{latency.latency_ms_p90:.3f}",
        _ms(latency.latency_ms_p99),
        _ms(latency.cold_latency_ms_p50),
        f"{1000 * latency.batch / latency.latency_ms_p50:.0f}",
        *ratio,
    )


def loading_rows(result: BenchmarkResult) -> Rows:
    """Returns the cells of `LOADING_COLUMNS`."""
    return [
        (
            *_setting(row),
            size_text(row.size_bytes),
            _ms(row.latency.load_ms, digits=1),
            _ms(row.latency.first_ms),
            "" if row.memory_bytes is None else size_text(row.memory_bytes),
        )
        for row in result.rows
    ]


def benchmark_tables(result: BenchmarkResult) -> list[Table]:
    """Returns the tables for the terminal: latency, loading, and each profile."""
    tables = [
        _table(LATENCY_COLUMNS, latency_rows(result)),
        _table(LOADING_COLUMNS, loading_rows(result)),
    ]
    for row in result.rows:
        if row.operators:
            title = f"{_name(row)}, {_conditions(row)}"
            tables.append(_table(OPERATOR_COLUMNS, operator_rows(row.operators), title))
    return tables


def operator_rows(operators: Sequence[OperatorTime]) -> Rows:
    """Returns the cells of `OPERATOR_COLUMNS`."""
    return [(one.kind, str(one.count), f"{one.ms:.3f}", f"{one.percent:.1f}") for one in operators]


def remarks(result: BenchmarkResult) -> list[str]:
    """Returns whether runtimes agree, and where and why no ratio is concluded."""
    lines: list[str] = []
    for row in result.rows:
        if row.agreement is not None:
            text = agreement_text(row.agreement)
            lines.append(f"{_name(row)}: the class of ONNX Runtime for {text}")
    for row in result.rows:
        for doubt in row.doubts:
            where = _conditions(row)
            if doubt.cause == "outputs":
                where = f"{_name(row)}, {where}"
            lines.append(f"{where}: no ratio is concluded: {doubt.text}")
    return list(dict.fromkeys(lines))


def _table(columns: Sequence[str], rows: Rows, title: str | None = None) -> Table:
    table = terminal_table(columns, title=title)
    for row in rows:
        table.add_row(*row)
    return table


def _setting(row: BenchmarkRow) -> tuple[str, str, str]:
    return _name(row), str(row.latency.threads), str(row.latency.batch)


def _name(row: BenchmarkRow) -> str:
    name = printable(str(Path(*Path(row.file).parts[-2:])))
    return name if row.runtime == "onnxruntime" else f"{name}, {row.runtime}"


def _conditions(row: BenchmarkRow) -> str:
    return f"{count_of(row.latency.threads, 'thread')}, batch {row.latency.batch}"


def _ms(value: float | None, *, digits: int = 3) -> str:
    return "" if value is None else f"{value:.{digits}f}"
