"""Measures all insights of a run."""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from scipy.special import softmax

from compress.checkpoint import Checkpoint
from compress.data.dataset import Data
from compress.data.splits import as_numpy, batch_count, stratified_sample
from compress.insights.config import InsightsConfig
from compress.insights.maps import MappedFile, compare_maps, open_mapped
from compress.insights.predictions import compare_predictions
from compress.insights.results import Compared, Insights, Maps, Predictions, Robustness
from compress.insights.robustness import compare_robustness
from compress.int8.restore import load_model
from compress.log import track

BATCH = 100
KEPT = 200
"""Images to choose examples of maps from."""


def measure_insights(
    teacher: tuple[Checkpoint, Path],
    shipped: tuple[Checkpoint, Path],
    source: Checkpoint,
    data: Data,
    *,
    config: InsightsConfig,
    compared: Compared,
) -> Insights:
    """Compares two ONNX files on the test images.

    Args:
        teacher: checkpoint and file.
        shipped: the same of the shipped file.
        source: the float network that the shipped file was made from; FGSM needs its gradient.
        data: images that both files take.
        config: what to measure.
        compared: identifies the files and images.
    """
    started = time.perf_counter()
    files = [open_mapped(path, maps=config.maps) for _, path in (teacher, shipped)]
    predictions, maps = None, None
    if config.predictions or config.maps:
        predictions, maps = _compare(files, data, config)
    robustness = _compare_robustness(files, (teacher[0], source), data, config)
    return Insights(
        compared=compared,
        config=config,
        predictions=predictions,
        maps=maps,
        robustness=robustness,
        seconds=time.perf_counter() - started,
    )


def _compare(
    files: list[MappedFile], data: Data, config: InsightsConfig
) -> tuple[Predictions | None, Maps | None]:
    order = stratified_sample(data.test.labels, config.images, seed=0)
    labels = data.test.labels[order].numpy()
    runs: list[list[tuple[np.ndarray, np.ndarray | None]]] = [[], []]
    first: list[np.ndarray] = []
    total = batch_count(len(order), BATCH)
    batches = data.test.batches(BATCH, order=order)
    for batch in track(batches, "comparing with the teacher", total=total):
        images = as_numpy(batch.images)
        if len(first) * BATCH < KEPT:
            first.append(images)
        for run, file in zip(runs, files, strict=True):
            run.append(file.run(images, batch.labels.numpy()))
    before, after = (softmax(np.concatenate([one for one, _ in run]), axis=1) for run in runs)
    mapped = [[heat for _, heat in run if heat is not None] for run in runs]
    maps = None
    if all(len(heats) == total for heats in mapped):
        teacher, shipped = (np.concatenate(heats) for heats in mapped)
        maps = compare_maps(
            *(teacher, shipped, labels), names=data.class_names, images=np.concatenate(first)
        )
    predictions = None
    if config.predictions:
        predictions = compare_predictions(
            before, after, labels, names=data.class_names, image_of=_image_of(data, order)
        )
    return predictions, maps


def _image_of(data: Data, order: torch.Tensor) -> Callable[[int], np.ndarray]:
    def image_of(index: int) -> np.ndarray:
        (batch,) = data.test.batches(1, order=order[index : index + 1])
        image: np.ndarray = as_numpy(batch.images)[0]
        return image

    return image_of


def _compare_robustness(
    files: list[MappedFile],
    checkpoints: tuple[Checkpoint, Checkpoint],
    data: Data,
    config: InsightsConfig,
) -> Robustness | None:
    if not config.robustness:
        return None
    order = stratified_sample(data.test.labels, config.robustness_images, seed=0)
    images = np.concatenate([as_numpy(b.images) for b in data.test.batches(BATCH, order=order)])
    labels = data.test.labels[order].numpy()

    def predict(file: MappedFile) -> Callable[[np.ndarray], np.ndarray]:
        def classes(changed: np.ndarray) -> np.ndarray:
            parts = [changed[start : start + BATCH] for start in range(0, len(changed), BATCH)]
            return np.concatenate([file.logits(part).argmax(1) for part in parts])

        return classes

    teacher, source = (load_model(checkpoint) for checkpoint in checkpoints)
    one, other = map(predict, files)
    return compare_robustness(one, other, images, labels, gradients=(teacher, source))
