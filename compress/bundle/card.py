"""The model card: Markdown with a front matter in YAML, as on Hugging Face."""

import json

from compress.bundle.manifest import BENCHMARKS, LABELS, PREDICT, SAMPLES
from compress.data.names import short_name
from compress.files import printable
from compress.measure.results import RunReport
from compress.onnx_file import OnnxFacts
from compress.report.render import COLUMNS, conditions, run_rows
from compress.report.tables import markdown_table
from compress.report.text import markdown_text

SHOWN = 20
"""Classes named on the card."""


def card_markdown(report: RunReport, facts: OnnxFacts, ship: str) -> str:
    """Returns the model card of a run's shipped file."""
    spec, classes = facts.preprocess, facts.class_names
    colors = "gray" if spec.channels == 1 else "RGB"
    named = ", ".join(map(markdown_text, classes[:SHOWN])) + (", ..." if classes[SHOWN:] else "")
    lines = [
        _front_matter(report),
        f"# {markdown_text(report.name)}",
        "",
        f"An image classifier for CPUs: `{ship}`, trained on {markdown_text(_data(report))}, "
        f"compressed by distillation, pruning, or quantization, and measured in ONNX Runtime.",
        "",
        "## Use",
        "",
        "    pip install numpy pillow onnxruntime",
        f"    python {PREDICT} IMAGE...",
        "",
        f"Input `images`: uint8 `[batch, {spec.channels}, {spec.size}, {spec.size}]`, {colors}, 0 "
        f"to 255, the center of the image after its short side was resized to {spec.resize} px "
        f"({spec.interpolation}, antialiased). Normalization is part of the file. Output `logits`: "
        f"float32 `[batch, {len(classes)}]`.",
        "",
        f"{len(classes)} classes, in `{LABELS}`: {named}",
        "",
        "## Results",
        "",
        markdown_table(COLUMNS, run_rows(report)),
        "",
        f"{conditions(report.stages[-1])}. The intervals are Wilson's; the last three columns "
        "compare with the teacher. Latency depends on the machine, and accuracy on images like "
        "those of the test split.",
        "",
        "## Check it on your machine",
        "",
        f"`compress verify` compares all files with their SHA-256, and the logits with those in "
        f"`{SAMPLES}`; `compress benchmark` also measures latency and appends a row to "
        f"`{BENCHMARKS}`.",
    ]
    return "\n".join(lines) + "\n"


def _data(report: RunReport) -> str:
    return printable(short_name(report.data))  # the path is nobody's business


def _front_matter(report: RunReport) -> str:
    """Returns the metadata; JSON values are YAML, too."""
    last = report.stages[-1]
    result = {
        "task": {"type": "image-classification"},
        "dataset": {"name": _data(report), "type": _data(report)},
        "metrics": [{"type": "accuracy", "value": round(last.top1 / 100, 4), "name": "top-1"}],
    }
    facts = {
        "library_name": "onnx",
        "pipeline_tag": "image-classification",
        "tags": ["image-classification", "onnx", "onnxruntime", "cpu"],
        "model-index": [{"name": report.name, "results": [result]}],
    }
    rows = [f"{name}: {json.dumps(value, ensure_ascii=False)}" for name, value in facts.items()]
    return "\n".join(["---", *rows, "---", ""])
