"""Teacher logits of fixed views of the training images: computed once, kept on disk in float16."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from compress import distributed
from compress.data.load import Data
from compress.data.splits import View
from compress.files import atomic_write, write_text
from compress.kd.teachers import TeacherModel, mean_logits
from compress.log import say, track
from compress.train.evaluate import evaluation_batch


@dataclass(frozen=True, kw_only=True)
class StoredLogits:
    """The logits of all teachers for all views, mapped into memory where they are used."""

    views: tuple[tuple[np.ndarray, ...], ...]
    """For each view and teacher float16 `[n_train, classes]`; none if teachers run live."""
    weights: tuple[float, ...]
    """Of the teachers."""
    seconds: float
    """What computing them took, whenever that was."""

    def rows(self, index: Tensor, view: int | None) -> Tensor:
        """Returns the teachers' mean logits of some images, float32 `[N, classes]`, on the CPU.

        Args:
            index: int64 `[N]`, places in the training split.
            view: which of the views; None takes the mean over all of them.
        """
        if view is not None:
            return self._mean(self.views[view], index)
        means = [self._mean(one, index) for one in self.views]
        return mean_logits(means, [1] * len(means))

    def _mean(self, teachers: Sequence[np.ndarray], index: Tensor) -> Tensor:
        places = index.numpy()
        rows = [torch.from_numpy(np.asarray(logits[places])).float() for logits in teachers]
        return mean_logits(rows, self.weights)


def stored_logits(
    teachers: Sequence[TeacherModel], data: Data, views: Sequence[View | None], *, store: Path
) -> StoredLogits:
    """Opens the teachers' logits of views of the training split; computes those that are missing.

    Args:
        teachers: the teachers.
        data: its training split.
        views: augmented ones, or None for the images as they are.
        store: folder for the logits; stages of one run share it.
    """
    found, seconds = [], 0.0
    for view in views:
        of_view = []
        for teacher in teachers:
            facts = f"{teacher.source.digest} {data.fingerprint} {view}"
            path = store / f"{hashlib.sha256(facts.encode()).hexdigest()[:16]}.npy"
            shape = (len(data.train), len(data.class_names))
            if not distributed.decide(lambda path=path, shape=shape: _is_whole(path, shape)):  # type: ignore[misc]
                _compute(teacher, data, view, path)
            of_view.append(np.load(path, mmap_mode="r"))
            seconds += json.loads(_seconds_file(path).read_text(encoding="utf-8"))["seconds"]
        found.append(tuple(of_view))
    weights = tuple(teacher.source.weight for teacher in teachers)
    return StoredLogits(views=tuple(found), weights=weights, seconds=seconds)


def _seconds_file(path: Path) -> Path:
    return path.with_suffix(".json")


def _is_whole(path: Path, shape: tuple[int, int]) -> bool:
    if not path.is_file():
        return False
    try:
        logits = np.load(path, mmap_mode="r")
        float(json.loads(_seconds_file(path).read_text(encoding="utf-8"))["seconds"])
        whole = bool(logits.shape == shape and logits.dtype == np.float16)
    except (OSError, ValueError, EOFError, KeyError, TypeError):
        whole = False
    if not whole:
        say(f"  {path} is damaged: computing the teacher's logits again")
    return whole


def _compute(teacher: TeacherModel, data: Data, view: View | None, path: Path) -> None:
    """Writes a teacher's logits as they come; all processes compute, the first one writes."""
    started = time.perf_counter()
    parts = _logits(teacher, data, view)
    if not distributed.is_first():
        for _ in parts:
            pass
    else:
        shape = (len(data.train), len(data.class_names))
        with atomic_write(path) as partial:
            logits = np.lib.format.open_memmap(partial, "w+", np.float16, shape)
            done = 0
            for part in parts:
                logits[done : done + len(part)] = part.numpy()
                done += len(part)
            logits.flush()
            taken = time.perf_counter() - started
            write_text(_seconds_file(path), json.dumps({"seconds": taken}))
    distributed.wait_for_all()


def _logits(teacher: TeacherModel, data: Data, view: View | None) -> Iterator[Tensor]:
    """Yields float16 logits `[N, classes]` of consecutive images, whoever computed them."""
    size, device = evaluation_batch(data.train), distributed.device()
    processes, place = distributed.processes(), distributed.place()
    blocks = torch.arange(len(data.train)).split(size * processes)
    mine = [block[place * size : (place + 1) * size] for block in blocks]
    batches = iter(data.train.batches(size, order=torch.cat(mine), view=view))
    title = f"{teacher.source.path.name}'s answers" + (f", view {view.number + 1}" if view else "")
    for block, own in zip(track(blocks, title, total=len(blocks)), mine, strict=True):
        padded = torch.zeros(size, len(data.class_names), dtype=torch.float16)
        if len(own):
            logits = teacher.forward(next(batches).images.to(device).float())
            padded[: len(own)] = logits.half().cpu()
        yield torch.cat(distributed.gathered(padded))[: len(block)]
