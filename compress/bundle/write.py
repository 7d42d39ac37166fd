"""Packs a run's exported files for other machines."""

import shutil
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from compress.bundle.card import card_markdown
from compress.bundle.manifest import (
    CARD,
    LABELS,
    MANIFEST,
    PREDICT,
    SAMPLES,
    ZIP,
    Manifest,
    file_facts,
)
from compress.checkpoint import load_checkpoint
from compress.data.preprocess import Preprocess
from compress.data.splits import UNLABELED, Split, as_numpy, stratified_sample
from compress.errors import CompressError
from compress.export.result import ExportResult
from compress.files import atomic_write, write_json, write_text
from compress.log import say
from compress.measure.runtime import open_session, run_session
from compress.onnx_file import read_facts
from compress.run.lookup import finished_stages
from compress.run.report import collect
from compress.run.single_stage import data_of

PREDICT_SOURCE = Path(__file__).with_name(PREDICT)
BATCH = 50


def write_bundle(run: Path, out: Path, *, n_images: int, noise: bool) -> None:
    """Writes a bundle of a finished run.

    Args:
        run: the run's folder.
        out: folder or zip file to write; must not exist.
        n_images: number of images with expected logits.
        noise: random images instead of test images.

    Raises:
        CompressError: the run has no exported files, or `out` exists.
    """
    if out.exists():
        raise CompressError(f"{out} exists; remove it, or choose another name with --out")
    report = collect(run)
    exported = report.stages[-1]
    if not isinstance(exported.result, ExportResult):
        raise CompressError(f"{run} is unfinished: it has no export stage; run it to the end")
    source = finished_stages(run)[exported.stage]
    models, ship = exported.result.files, exported.result.ship
    facts = read_facts(source / ship)
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=out.parent, prefix=f".{out.name}-") as work:
        folder = Path(work) / "bundle"
        folder.mkdir()
        for name in models:
            shutil.copyfile(source / name, folder / name)
        shutil.copyfile(PREDICT_SOURCE, folder / PREDICT)
        write_json(folder / LABELS, list(facts.class_names))
        write_text(folder / CARD, card_markdown(report, facts, ship))
        if noise:
            images, labels = _noise(facts.preprocess, n_images)
        else:
            images, labels = _sample(data_of(load_checkpoint(source)).test, n_images)
        expected = {f"logits of {name}": logits(folder / name, images) for name in models}
        np.savez_compressed(
            folder / SAMPLES, allow_pickle=False, images=images, labels=labels, **expected
        )
        manifest = Manifest(
            name=report.name,
            ship=ship,
            models=models,
            images="noise" if noise else "test",
            files={path.name: file_facts(path) for path in sorted(folder.iterdir())},
        )
        write_json(folder / MANIFEST, manifest)
        _put(folder, out)
    say(f"bundle: {len(images)} {manifest.images} images, {', '.join(models)}")


def logits(path: Path, images: np.ndarray) -> np.ndarray:
    """Returns the logits of an ONNX file, float32 `[n, classes]`."""
    session = open_session(path, threads=1)
    parts = [images[start : start + BATCH] for start in range(0, len(images), BATCH)]
    return np.concatenate([run_session(session, part) for part in parts])


def _sample(split: Split, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns images with the class proportions of a split, and their labels."""
    order = stratified_sample(split.labels, count, seed=0)
    batches = list(split.batches(BATCH, order=order))
    images = np.concatenate([as_numpy(batch.images) for batch in batches])
    return images, split.labels[order].numpy()


def _noise(spec: Preprocess, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns random images without labels."""
    shape = (count, spec.channels, spec.size, spec.size)
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    return images, np.full(count, UNLABELED)


def _put(folder: Path, out: Path) -> None:
    """Moves a finished bundle to its place, or packs it."""
    if out.suffix.lower() != ZIP:
        folder.rename(out)
        return
    with atomic_write(out) as partial, zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as file:
        for path in sorted(folder.iterdir()):
            file.write(path, path.name)
