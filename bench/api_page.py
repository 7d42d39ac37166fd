"""Writes docs/api.md from the docstrings of the library.

python -m bench.api_page
"""

import inspect
import re
from pathlib import Path
from typing import Any

from compress import api
from compress.data.dataset import Data
from compress.files import write_text

PAGE = Path(__file__).parents[1] / "docs/api.md"
CALLABLES = (
    *("Data.from_datasets", "load_data", "train", "distill", "prune", "quantize", "export"),
    *("evaluate", "benchmark", "run", "Result"),
)
INTRODUCTION = """\
# Library

<!-- Written by `python -m bench.api_page` from the docstrings. -->

Everything that the command does, as functions of a network and a dataset.
[README.md](../README.md#library) has an example.

A network is any `nn.Module` that takes normalized float images `[N, C, H, W]` and returns logits
`[N, classes]`. It is copied, and never changed. A dataset is any map-style dataset of
(image, label), such as torchvision's. Stages can be chained: each takes the result of another and
writes into the same run folder. A finished stage that is called again with the same network, data,
and settings returns at once.

Students also learn from images without labels, by the teacher's logits:

```python
import compress
from sklearn.datasets import load_digits

digits = load_digits()
images = (digits.images * 15.9).astype("uint8")
pairs = list(zip(images, digits.target))

data = compress.Data.from_datasets(
    train=pairs[:300],
    unlabeled=images[300:1400],  # or pairs, whose labels are ignored
    test=pairs[1400:],
    mean=[0.3],
    std=[0.38],
)
print(f"{len(data.train)} images with labels, {len(data.unlabeled)} without")
```

Settings are those of the command: `compress prune --latency-ratio 0.5` is
`compress.prune(..., latency_ratio=0.5)`. Mistakes raise `compress.CompressError`, whose message
says what to do. Progress goes to the logger `compress`;
`logging.getLogger("compress").setLevel("WARNING")` silences it.

On the command line, `--data package.module:function --trust` uses a dataset of your own: the
function returns the arguments of `Data.from_datasets` as a dict.
"""


def api_page() -> str:
    """Returns the page."""
    return "\n".join((INTRODUCTION, *map(_section, CALLABLES)))


def _section(name: str) -> str:
    found: Any = Data.from_datasets if name == "Data.from_datasets" else getattr(api, name)
    signature = str(inspect.signature(found))
    short = re.sub(r"(?:[a-z_]+\.)+(?=[A-Z])", "", signature).replace("'", "")
    text = inspect.cleandoc(found.__doc__ or "")
    if name == "Result":
        members = [
            (member, value)
            for member, value in vars(found).items()
            if not member.startswith("_") and getattr(value, "__doc__", None)
        ]
        fields = ", ".join(f"`{field}`" for field in found.__dataclass_fields__)
        lines = [f"- `{member}`: {inspect.cleandoc(value.__doc__)}" for member, value in members]
        return f"## `compress.{name}`\n\n{text}\n\nFields: {fields}.\n\n" + "\n".join(lines) + "\n"
    wrapped = f"compress.{name}{short}"
    return f"## `compress.{name}`\n\n    {wrapped}\n\n{_markdown(text)}\n"


def _markdown(docstring: str) -> str:
    """Turns the sections of a docstring into lists."""
    text = re.sub(r"^(Args|Raises|Returns):$", r"\n**\1**\n", docstring, flags=re.MULTILINE)
    text = re.sub(r"^ {4}(?! )(\w+): ", r"- `\1`: ", text, flags=re.MULTILINE)
    text = re.sub(r"^ {8}", "  ", text, flags=re.MULTILINE)
    return re.sub(r"\n{3,}", "\n\n", text)


if __name__ == "__main__":
    write_text(PAGE, api_page())
    print(PAGE)
