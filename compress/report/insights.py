"""Sections of a run's page about what changed between the teacher's file and the shipped one."""

from compress.insights.results import (
    Calibration,
    Flip,
    Insights,
    Maps,
    Predictions,
    Robustness,
)
from compress.log import count_of
from compress.report.charts import Axis, Series, axis_of, bar, change_bar, chart
from compress.report.html import figure, folded, paragraph, table
from compress.report.text import html_text

PERCENT = Axis(low=0, high=100)
FEWEST = 10
"""Images of a bin that the reliability curve shows."""


def insight_sections(insights: Insights) -> list[tuple[str, str, str]]:
    """Returns anchor, title, and HTML of each section that was measured."""
    sections = []
    if insights.predictions:
        sections += [
            ("classes", "Class by class", _classes(insights.predictions)),
            ("flips", "Images whose class flipped", _flips(insights.predictions)),
            ("calibration", "Calibration", _calibration(insights.predictions)),
        ]
    if insights.maps:
        sections.append(("maps", "What the networks look at", _maps(insights.maps)))
    if insights.robustness:
        sections.append(("robustness", "Robustness", _robustness(insights.robustness)))
    return sections


def _classes(predictions: Predictions) -> str:
    """Returns the recall of each class, and the confusions that changed most."""
    classes = predictions.classes
    axis = axis_of([end for row in classes for end in (row.teacher, row.shipped)])
    rows = [
        [
            html_text(row.name),
            str(row.n_images),
            f"{row.teacher:.2f}",
            f"{row.shipped:.2f}",
            change_bar(
                *(axis, row.teacher, row.shipped),
                text=f"<small>{row.shipped - row.teacher:+.2f}</small>",
                higher_is_better=True,
            ),
        ]
        for row in classes
    ]
    confusions = [
        [
            html_text(f"{row.label} taken for {row.predicted}"),
            str(row.teacher),
            str(row.shipped),
            f"{row.shipped - row.teacher:+d}",
        ]
        for row in predictions.confusions
    ]
    changed = ""
    if confusions:
        caption = f"Confusions that changed most, of {count_of(predictions.n_images, 'test image')}"
        names = ("confusion", "teacher", "shipped", "change")
        changed = table(caption, names, confusions)
    caption = "Images of each class that are recognized, %; the bar leads from teacher to shipped."
    columns = ("class", "images", "teacher", "shipped", "change")
    return table(caption, columns, rows, wide=True) + changed


def _flips(predictions: Predictions) -> str:
    """Returns the gallery of images that one network gets right and the other wrong."""
    lost = [flip for flip in predictions.flips if flip.teacher == flip.label]
    won = [flip for flip in predictions.flips if flip.shipped == flip.label]
    note = paragraph(
        f"Of {count_of(predictions.n_images, 'test image')}, the shipped file gets "
        f"{predictions.lost} wrong that the teacher gets right, and {predictions.won} right that "
        "the teacher gets wrong. Shown are those of which both networks are surest.",
        "note",
    )
    return note + "".join(
        f"<h3>{title}</h3><div class='gallery'>{''.join(map(_flip, flips))}</div>"
        for title, flips in (("Lost", lost), ("Won", won))
        if flips
    )


def _flip(flip: Flip) -> str:
    alt = html_text(f"Test image {flip.index}, of class {flip.label}")
    return (
        f"<figure><figcaption>{html_text(flip.label)}<br>"
        f"<small>teacher: {html_text(flip.teacher)}, {flip.teacher_confidence:.0f} %<br>"
        f"shipped: {html_text(flip.shipped)}, {flip.shipped_confidence:.0f} %</small></figcaption>"
        f"<img src='{html_text(flip.image)}' alt='{alt}' width='96' height='96'></figure>"
    )


def _calibration(predictions: Predictions) -> str:
    """Returns the reliability curves and the expected calibration errors."""
    both = (("teacher", predictions.teacher, 0), ("shipped", predictions.shipped, 1))
    diagonal = Series(
        name="perfect", color=3, points=[(0, 0), (100, 100)], line=True, dashed=True, dots=False
    )
    series = [
        diagonal,
        *(
            Series(
                name=f"{name}, ECE {one.ece:.2f} %",
                color=color,
                points=[
                    (row.confidence, row.accuracy) for row in one.bins if row.n_images >= FEWEST
                ],
                line=True,
            )
            for name, one, color in both
        ),
    ]
    drawn = chart(
        series,
        Axis(low=0, high=100, title="confidence, %"),
        Axis(low=0, high=100, title="accuracy, %"),
        summary="Accuracy against confidence of teacher and shipped file; the tables have the "
        "numbers.",
        square=True,
    )
    caption = (
        "How often a network is right, by how sure it is. Below the diagonal, it is too sure. ECE "
        "is the mean distance from the diagonal over the test images. Bins of fewer than "
        f"{FEWEST} images are in the table only."
    )
    numbers = "".join(_bins(name, one) for name, one, _ in both)
    return figure(caption, drawn) + folded("Numbers", f"<div class='columns'>{numbers}</div>")


def _bins(name: str, calibration: Calibration) -> str:
    rows = [
        [f"{row.confidence:.1f}", f"{row.accuracy:.1f}", str(row.n_images)]
        for row in calibration.bins
    ]
    caption = f"{name}: ECE {calibration.ece:.2f} %"
    return table(caption, ("confidence %", "accuracy %", "images"), rows)


def _maps(maps: Maps) -> str:
    """Returns class-activation maps side by side, and how much they overlap."""
    note = paragraph(
        "Class-activation maps of the two ONNX files for the true class: what glows speaks for "
        f"it. Over {count_of(maps.n_images, 'test image')}, the two maps share "
        f"{maps.overlap:.0f} % of their mass (median).",
        "note",
    )
    rows = []
    for one in maps.examples:
        views = (
            ("the image", one.image),
            ("what the teacher looks at", one.teacher),
            ("what the shipped file looks at", one.shipped),
        )
        images = [
            f"<img src='{html_text(data)}' alt='{html_text(f'{what}: test image {one.index}')}' "
            "width='96' height='96'>"
            for what, data in views
        ]
        rows.append([html_text(one.label), *images, f"{one.overlap:.0f} %"])
    columns = ("class", "image", "teacher", "shipped", "overlap")
    examples = table("The first test image of each class", columns, rows)
    highest = Axis(low=0, high=max(maps.histogram))
    width = 100 // len(maps.histogram)
    histogram = [
        [f"{number * width}-{(number + 1) * width} %", bar(highest, count, text=str(count))]
        for number, count in enumerate(maps.histogram)
    ]
    overlaps = table("Test images by overlap", ("overlap", "images"), histogram, wide=True)
    return f"{note}<div class='looks'>{examples}</div>" + folded("Overlap", overlaps)


def _robustness(robustness: Robustness) -> str:
    """Returns top-1 on changed images."""
    rows = [
        [
            f"{html_text(row.name)}<br><small>{html_text(row.setting)}</small>",
            bar(PERCENT, row.teacher, text=f"{row.teacher:.1f}"),
            bar(PERCENT, row.shipped, text=f"{row.shipped:.1f}"),
            f"{row.shipped - row.teacher:+.1f}",
        ]
        for row in robustness.rows
    ]
    caption = f"Top-1 on {count_of(robustness.n_images, 'test image')}, changed in five ways, %"
    columns = ("images", "teacher", "shipped", "difference")
    return table(caption, columns, rows, wide=True)
