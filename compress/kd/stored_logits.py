"""Teacher logits for the training images, computed once and stored on disk in float16."""

import functools
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
from compress.data.dataset import Data
from compress.data.splits import View
from compress.files import atomic_write, write_text
from compress.kd.teachers import TeacherModel, mean_logits
from compress.train.evaluate import evaluation_batch
from compress.train.events import OnEvent, print_event, progress_bar


@dataclass(frozen=True, kw_only=True)
class StoredLogits:
    """Memory-mapped logits of all teachers for all views."""

    views: tuple[tuple[np.ndarray, ...], ...]
    """Logits by view and teacher, float16 `[n_train, classes]`; empty if the teachers run live."""
    weights: tuple[float, ...]
    """Weight of each teacher."""
    seconds: float
    """Time it took to compute them, in this run or an earlier one."""

    def rows(self, index: Tensor, view: int | None) -> Tensor:
        """Returns the ensemble's logits for some images, float32 `[N, classes]`, on the CPU.

        Args:
            index: int64 `[N]`, positions in the training split.
            view: number of the view; None averages over all views.
        """
        if view is not None:
            return self._ensemble(self.views[view], index)
        means = [self._ensemble(teachers, index) for teachers in self.views]
        return mean_logits(means, [1] * len(means))

    def _ensemble(self, teachers: Sequence[np.ndarray], index: Tensor) -> Tensor:
        positions = index.numpy()
        rows = [torch.from_numpy(np.asarray(logits[positions])).float() for logits in teachers]
        return mean_logits(rows, self.weights)


def stored_logits(
    teachers: Sequence[TeacherModel],
    data: Data,
    views: Sequence[View | None],
    *,
    store: Path,
    on_event: OnEvent = print_event,
) -> StoredLogits:
    """Opens the stored logits of the training split; computes those that are missing or damaged.

    A view of None means the original images. The stages of a run share the store.
    """
    by_view, seconds = [], 0.0
    for view in views:
        by_teacher = []
        for teacher in teachers:
            path = _path(store, teacher, data, view)
            shape = (len(data.train), len(data.class_names))
            if not distributed.decide(functools.partial(_is_valid, path, shape, on_event)):
                _compute(teacher, data, view, path, on_event)
            by_teacher.append(np.load(path, mmap_mode="r"))
            seconds += json.loads(_seconds_file(path).read_text(encoding="utf-8"))["seconds"]
        by_view.append(tuple(by_teacher))
    weights = tuple(teacher.source.weight for teacher in teachers)
    return StoredLogits(views=tuple(by_view), weights=weights, seconds=seconds)


def _path(store: Path, teacher: TeacherModel, data: Data, view: View | None) -> Path:
    key = f"{teacher.source.digest} {data.fingerprint} {view}"
    return store / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.npy"


def _seconds_file(path: Path) -> Path:
    return path.with_suffix(".json")


def _is_valid(path: Path, shape: tuple[int, int], on_event: OnEvent) -> bool:
    if not path.is_file():
        return False
    try:
        logits = np.load(path, mmap_mode="r")
        float(json.loads(_seconds_file(path).read_text(encoding="utf-8"))["seconds"])
        valid = bool(logits.shape == shape and logits.dtype == np.float16)
    except (OSError, ValueError, EOFError, KeyError, TypeError):
        valid = False
    if not valid:
        on_event(f"{path} is damaged: recomputing the teacher logits")
    return valid


def _compute(
    teacher: TeacherModel, data: Data, view: View | None, path: Path, on_event: OnEvent
) -> None:
    """Writes a teacher's logits batch by batch; all processes compute, the first one writes."""
    started = time.perf_counter()
    batches = _logits(teacher, data, view, on_event)
    if not distributed.is_first():
        for _ in batches:
            pass
    else:
        shape = (len(data.train), len(data.class_names))
        with atomic_write(path) as partial:
            logits = np.lib.format.open_memmap(partial, "w+", np.float16, shape)
            done = 0
            for batch in batches:
                logits[done : done + len(batch)] = batch.numpy()
                done += len(batch)
            logits.flush()
            seconds = time.perf_counter() - started
            write_text(_seconds_file(path), json.dumps({"seconds": seconds}))
    distributed.wait_for_all()


def _logits(
    teacher: TeacherModel, data: Data, view: View | None, on_event: OnEvent
) -> Iterator[Tensor]:
    """Yields float16 logits `[N, classes]` of all images in order, gathered from all processes."""
    size, device = evaluation_batch(data.train), distributed.device()
    processes, place = distributed.processes(), distributed.rank()
    chunks = torch.arange(len(data.train)).split(size * processes)
    own_chunks = [chunk[place * size : (place + 1) * size] for chunk in chunks]
    batches = iter(data.train.batches(size, order=torch.cat(own_chunks), view=view))
    title = f"logits of {teacher.source.path.name}"
    if view is not None:
        title += f", view {view.number + 1}"
    bar = progress_bar(chunks, title, total=len(chunks), on_event=on_event)
    for chunk, own in zip(bar, own_chunks, strict=True):
        padded = torch.zeros(size, len(data.class_names), dtype=torch.float16)
        if len(own):
            logits = teacher.forward(next(batches).images.to(device).float())
            padded[: len(own)] = logits.half().cpu()
        yield torch.cat(distributed.gathered(padded))[: len(chunk)]
