"""The section of a run's page about training."""

from collections.abc import Mapping, Sequence
from typing import Any

from compress.log import count_of
from compress.report.charts import Series, axis_of, chart
from compress.report.html import figure, folded, paragraph, table
from compress.report.text import html_text

HISTORY_COLUMNS = ("epoch", "px", "loss", "train %", "validation %", "images/s", "precision")


def training_html(histories: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """Returns the training curves of each stage."""
    if not histories:
        return ""
    curves = "".join(f"<div>{_curves(stage, rows)}</div>" for stage, rows in histories.items())
    note = paragraph(
        "Top-1 in PyTorch: how training went, not what ships. Training images are augmented, which "
        "makes them harder. Each epoch is scored at the image size that it was trained with.",
        "note",
    )
    return f"{note}<div class='columns'>{curves}</div>"


def _curves(stage: str, rows: Sequence[Mapping[str, Any]]) -> str:
    kinds = (("training", "train_top1", 0), ("validation", "validation_top1", 1))
    series = [
        Series(
            name=name,
            color=color,
            points=[(row["epoch"], row[key]) for row in rows],
            line=True,
            dashed=not color,
            dots=False,
        )
        for name, key, color in kinds
    ]
    sizes = dict.fromkeys(row["image_size"] for row in rows)
    drawn = chart(
        series,
        axis_of([row["epoch"] for row in rows], title="epoch"),
        axis_of([up for one in series for _, up in one.points], title="top-1, %"),
        summary=f"Training and validation top-1 of {stage} by epoch; the table has the numbers.",
    )
    numbers = [
        [
            str(row["epoch"]),
            str(row["image_size"]),
            f"{row['loss']:.3f}",
            f"{row['train_top1']:.2f}",
            f"{row['validation_top1']:.2f}",
            f"{row['images_per_second']:.0f}",
            html_text(row["precision"]),
        ]
        for row in rows
    ]
    caption = f"{stage}: {count_of(len(rows), 'epoch')} at {', '.join(map(str, sizes))} px"
    return figure(caption, drawn) + folded("Numbers", table(caption, HISTORY_COLUMNS, numbers))
