"""What pruning did: the widths of the layers, and each cut; and the stage's own page."""

from compress.measure.results import StageReport
from compress.prune.result import PruneResult
from compress.report.charts import Axis, Series, axis_of, bar, chart
from compress.report.html import document, figure, heading, paragraph, table
from compress.report.render import conditions
from compress.report.text import html_text


def pruning_page(report: StageReport) -> str:
    """Returns the page of a stage that pruned; empty for any other."""
    result = report.result
    if not isinstance(result, PruneResult) or not result.iterations:
        return ""
    body = widths_html(result) + cuts_html(result) + paragraph(conditions(report), "note")
    return document(report.stage, f"<main>{heading(report.stage)}{body}</main>")


def widths_html(result: PruneResult) -> str:
    """Returns the channels of each layer before and after."""
    axis = Axis(low=0, high=max((width.before for width in result.widths), default=1))
    rows = [
        [
            html_text(width.layer),
            str(width.before),
            str(width.after),
            bar(axis, width.after, before=width.before, text=_kept(width.before, width.after)),
        ]
        for width in result.widths
    ]
    return table(
        "Output channels of each layer, in the order of execution; gray: removed.",
        ("layer", "before", "after", "kept"),
        rows,
        wide=True,
    )


def _kept(before: int, after: int) -> str:
    if not after:
        return "<small>layer removed</small>"
    return f"<small>{100 * after / before:.0f} %</small>" if before else ""


def cuts_html(result: PruneResult) -> str:
    """Returns latency and accuracy of each cut."""
    kinds = (
        ("fine-tuned", "top1_trained", 1),
        ("BatchNorm statistics re-estimated", "top1_batchnorm", 3),
        ("as pruned", "top1_raw", 2),
    )
    series = [
        Series(
            name=name,
            color=color,
            points=[(cut.measured_ms, getattr(cut, key)) for cut in result.iterations],
            line=True,
        )
        for name, key, color in kinds
    ]
    drawn = chart(
        series,
        axis_of(
            [result.unpruned_ms, *(cut.measured_ms for cut in result.iterations)],
            title=f"{result.precision} latency, ms",
        ),
        axis_of([up for one in series for _, up in one.points], title="validation top-1, %"),
        summary="Validation accuracy of each cut against its latency; the table has the numbers.",
    )
    rows = [
        [
            str(number),
            *(f"{ms:.3f}" for ms in (cut.target_ms, cut.predicted_ms, cut.measured_ms)),
            *(f"{getattr(cut, key):.2f}" for _, key, _ in reversed(kinds)),
        ]
        for number, cut in enumerate(result.iterations, 1)
    ]
    caption = (
        f"Each cut: {result.precision} latency, ms ({result.unpruned_ms:.3f} before), and "
        "validation top-1 in PyTorch, %"
    )
    columns = ("cut", "target", "predicted", "measured", *(name for name, _, _ in reversed(kinds)))
    return figure(caption, drawn) + table(caption, columns, rows)
