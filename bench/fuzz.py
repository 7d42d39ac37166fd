"""Damaged and hostile files, for everything that reads a file which somebody else may have written.

    make fuzz          # python -m bench.fuzz --cases 10000

JSON and TOML are changed by hypothesis (wrong types, huge numbers, NaN, deep nesting, missing and
added keys), with checksums made anew so that the layers behind them are reached; all files are also
changed byte by byte, ONNX files field by field. Each case runs in a forked child: it may return or
raise CompressError (or OSError, which the command line tells in a line too). Anything else is a
fault, as are a death of the child, more than `CASE_S` seconds, and more memory than its target
states. Writes bench/results/fuzz.json.
"""

import faulthandler
import hashlib
import json
import os
import random
import resource
import select
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from PIL import Image

from bench.damage import (
    damaged_bytes,
    damaged_documents,
    damaged_onnx,
    damaged_safetensors,
    to_json_text,
    to_toml_text,
)
from compress.architectures.build import build
from compress.architectures.spec import ModelSpec
from compress.bundle.manifest import LABELS, MANIFEST, SAMPLES
from compress.bundle.verify import verify_bundle
from compress.bundle.write import write_bundle
from compress.checkpoint import (
    DESCRIPTION,
    HISTORY,
    INT8_FILE,
    MODEL_FILE,
    REPORT_JSON,
    TENSORS,
    _checksum,
    load_checkpoint,
)
from compress.cli.group import OUT_OF_MEMORY
from compress.cli.main import main as compress_main
from compress.data.image import FORMATS, read_image
from compress.data.preprocess import Preprocess, preprocess_image
from compress.doctor.examine import examine
from compress.errors import CompressError
from compress.files import file_digest, write_json
from compress.host import Host, describe_host
from compress.int8.restore import load_model
from compress.log import say
from compress.measure import latency
from compress.run.benchmark import benchmark_files
from compress.run.evaluate import evaluate_file, predict_images
from compress.run.recipe import load_card, load_recipe, recipe_settings
from compress.run.report import write_run_report
from compress.run.single_stage import data_of

RESULTS = Path(__file__).parent / "results" / "fuzz.json"
BUNDLE = "bundle.zip"
CASE_S = 30
"""A case that takes longer hangs."""
MEMORY_MIB, IMAGE_MEMORY_MIB = 1024, 3072
"""What a case may take beyond what its process had before. Images may have 134 million pixels."""
HEADROOM_MIB = 16 * 1024
"""Of address space, in which nobody's machine dies of a fault."""
MESSAGE = 1500
"""Characters of the longest message."""
SHOWN_FAULTS = 20

Case = Mapping[str, bytes]
"""Files, by their path in the scratch folder, that differ from the source's."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """Code that reads files, and cases of such files."""

    name: str
    source: Path
    """Folder that the scratch folder is a copy of."""
    cases: Callable[[int, int], Sequence[Case]]
    """From a count and a seed."""
    read: Callable[[Path], object]
    """Reads what is in the scratch folder, as a command would."""
    memory_mib: int = MEMORY_MIB


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A case that ended as none may."""

    target: str
    kind: str
    """`traceback`, `crash`, `hang`, `memory` or `message`."""
    what: str
    files: Case = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class TargetResult:
    """What a target's cases ended as."""

    name: str
    cases: int
    returned: int
    refused: int
    """With one line."""
    tracebacks: int
    crashes: int
    """Of native code."""
    hangs: int
    over_memory: int
    long_messages: int
    slowest_s: float
    peak_mib: float
    """Of one case, beyond what its process had before."""
    bound_mib: int


@dataclass(frozen=True, kw_only=True)
class Fuzz:
    """What the results file holds."""

    cases: int
    tracebacks: int
    crashes: int
    hangs: int
    over_memory: int
    long_messages: int
    case_limit_s: float
    targets: tuple[TargetResult, ...]
    seconds: float
    seed: int
    command: str
    date: str
    host: Host


# Targets


def targets(run: Path, scratch: Path) -> list[Target]:
    """Returns all targets.

    Args:
        run: a finished run on the digits.
        scratch: an empty folder for what the cases start from.
    """
    found = []
    for number, stage in enumerate(("2-prune", "3-quantize")):
        kind = ("float", "int8")[number]
        source = run / stage
        found += [
            Target(
                name=f"{DESCRIPTION}, {kind}",
                source=source,
                cases=partial(_descriptions, source),
                read=_read_checkpoint,
            ),
            Target(
                name=f"{TENSORS}, {kind}",
                source=source,
                cases=partial(_tensors, source),
                read=_read_checkpoint,
            ),
        ]
        onnx_source = scratch / f"onnx-{kind}"
        onnx_source.mkdir()
        (onnx_source / MODEL_FILE).write_bytes((source / MODEL_FILE).read_bytes())
        Image.new("L", (20, 20), 128).save(onnx_source / "image.png")
        found += [
            Target(
                name=f"ONNX to {name}, {kind}",
                source=onnx_source,
                cases=partial(_onnx_files, onnx_source),
                read=read,
            )
            for name, read in (
                ("evaluate", _evaluate),
                ("benchmark", _benchmark),
                ("doctor", _doctor),
                ("predict", _predict),
            )
        ]
    bundle, packed = scratch / "bundle", scratch / "packed"
    packed.mkdir()
    write_bundle(run, bundle, n_images=4, noise=False)
    write_bundle(run, packed / BUNDLE, n_images=4, noise=False)
    found += [
        Target(
            name="bundles",
            source=bundle,
            cases=partial(_bundles, bundle),
            read=verify_bundle,
        ),
        Target(
            name="zipped bundles",
            source=packed,
            cases=partial(_zip_files, packed),
            read=lambda folder: verify_bundle(folder / BUNDLE),
        ),
    ]
    cards, images = scratch / "cards", scratch / "images"
    cards.mkdir()
    (cards / "card.toml").write_bytes(to_toml_text(CARD))
    (cards / "recipe.toml").write_bytes(to_toml_text(RECIPE))
    images.mkdir()
    (images / "image").write_bytes(image_files()[0])
    found += [
        Target(
            name=REPORT_JSON,
            source=run,
            cases=partial(_reports, run),
            read=write_run_report,
        ),
        Target(
            name="cards",
            source=cards,
            cases=partial(_toml_files, "card.toml", CARD),
            read=_read_card,
        ),
        Target(
            name="recipes",
            source=cards,
            cases=partial(_toml_files, "recipe.toml", RECIPE),
            read=lambda folder: recipe_settings(load_recipe(str(folder / "recipe.toml"))),
        ),
        Target(
            name="images",
            source=images,
            cases=_images,
            read=_read_image,
            memory_mib=IMAGE_MEMORY_MIB,
        ),
    ]
    return found


GRAY_16 = Preprocess(size=16, resize=16, channels=1, mean=(0.3,), std=(0.4,))
CARD = {
    "description": "two small networks",
    "teacher": {"architecture": "simple_cnn", "arguments": {"widths": [8, 16], "hidden": 32}},
    "student": {
        "architecture": "scaled_resnet",
        "arguments": {"width": 0.25, "depths": [1, 1, 1]},
        "stem": "small",
        "activation": "relu",
        "weights": "",
    },
}
RECIPE = {
    "description": "some settings of each kind",
    "stages": ["teacher", "distill", "prune", "quantize", "export"],
    "seed": 3,
    "data": {"validation": 0.1, "size": 32, "flip": "auto"},
    "measure": {"threads": 1},
    "teacher": {"train": {"epochs": 3, "lr": 0.005, "warmup": 0.2}},
    "distill": {"kd": {"alpha": 0.7}, "train": {"epochs": 2}},
    "prune": {"latency_ratio": 0.5, "importance": "taylor"},
    "quantize": {"method": "auto", "calib": 64},
    "export": {"max_drop": 1.0},
}


def _read_checkpoint(folder: Path) -> None:
    checkpoint = load_checkpoint(folder)
    data_of(checkpoint)
    load_model(checkpoint)


def _evaluate(folder: Path) -> None:
    evaluate_file(folder / MODEL_FILE, "digits", "test")


def _benchmark(folder: Path) -> None:
    latency.COLD_RUNS = 0  # each sweeps the caches
    benchmark_files([folder / MODEL_FILE], (1,), (1,), rounds=1)


def _doctor(folder: Path) -> None:
    examine(folder / MODEL_FILE)


def _predict(folder: Path) -> None:
    list(predict_images(folder / MODEL_FILE, [folder / "image.png"], 3))


def _read_card(folder: Path) -> None:
    card = load_card(str(folder / "card.toml"))
    for network in (card.teacher, card.student):
        spec = ModelSpec(
            architecture=network.architecture,
            arguments=network.arguments,
            stem="small" if network.stem == "auto" else network.stem,
            activation=network.activation,
            class_names=("a", "b"),
            preprocess=GRAY_16,
        )
        build(spec, most=2**25)


def _read_image(folder: Path) -> None:
    for mode in ("L", "RGB"):
        image = read_image(folder / "image", mode)
        if mode == "L":
            preprocess_image(image, GRAY_16)


def _descriptions(source: Path, count: int, seed: int) -> list[Case]:
    content = (source / DESCRIPTION).read_bytes()
    random_, document = random.Random(seed), json.loads(content)
    structured = count * 3 // 4
    found: list[Case] = [
        {DESCRIPTION: _signed(changed)} for changed in damaged_documents(document, structured, seed)
    ]
    return [
        *found,
        *({DESCRIPTION: damaged_bytes(content, random_)} for _ in range(count - len(found))),
    ]


def _signed(document: Any) -> bytes:
    """Returns a description with its own checksum, so that what it says is looked at."""
    raw = to_json_text(document)
    with suppress(ValueError, RecursionError, AttributeError):
        plain = json.loads(raw)
        return to_json_text({**plain, "checksum": _checksum(plain)})
    return raw


def _tensors(source: Path, count: int, seed: int) -> list[Case]:
    random_ = random.Random(seed)
    found: list[Case] = []
    content, description = (
        (source / TENSORS).read_bytes(),
        (source / DESCRIPTION).read_text(encoding="utf-8"),
    )
    for _ in range(count):
        changed = random_.choice((damaged_bytes, damaged_safetensors))(content, random_)
        with tempfile.NamedTemporaryFile() as file:
            file.write(changed)
            file.flush()
            digest = file_digest(Path(file.name))
        found.append(
            {TENSORS: changed, DESCRIPTION: _signed({**json.loads(description), "tensors": digest})}
        )
    return found


def _reports(run: Path, count: int, seed: int) -> list[Case]:
    random_ = random.Random(seed)
    found: list[Case] = []
    files = [
        str(path.relative_to(run))
        for name in (REPORT_JSON, HISTORY)
        for path in sorted(run.glob(f"*/{name}"))
    ]
    for name in files:
        content = (run / name).read_bytes()
        share = count // len(files) + 1
        rows = name.endswith(HISTORY)
        document = (
            [json.loads(line) for line in content.splitlines()] if rows else json.loads(content)
        )
        structured = damaged_documents(document, share * 3 // 4, seed)
        one: list[Case] = [
            {name: b"\n".join(map(to_json_text, changed)) if rows else to_json_text(changed)}
            for changed in structured
        ]
        one += [{name: damaged_bytes(content, random_)} for _ in range(share - len(one))]
        # the next case must see this file as it was
        found += [
            {**{other: (run / other).read_bytes() for other in files}, **case} for case in one
        ]
    random_.shuffle(found)
    return found[:count]


def _toml_files(name: str, document: Mapping[str, Any], count: int, seed: int) -> list[Case]:
    random_, content = random.Random(seed), to_toml_text(document)
    found: list[Case] = [
        {name: to_toml_text(changed)}
        for changed in damaged_documents(document, count * 3 // 4, seed)
    ]
    return [*found, *({name: damaged_bytes(content, random_)} for _ in range(count - len(found)))]


def _onnx_files(source: Path, count: int, seed: int) -> list[Case]:
    random_, content = random.Random(seed), (source / MODEL_FILE).read_bytes()
    damage = (damaged_onnx, damaged_onnx, damaged_bytes)
    return [{MODEL_FILE: damage[place % 3](content, random_)} for place in range(count)]


def _bundles(source: Path, count: int, seed: int) -> list[Case]:
    """Damages the manifest, or another file, whose digest the manifest then has."""
    random_, original = (
        random.Random(seed),
        {path.name: path.read_bytes() for path in source.iterdir()},
    )
    document = json.loads(original[MANIFEST])
    damage = {SAMPLES: damaged_bytes, INT8_FILE: damaged_onnx, LABELS: damaged_bytes}
    found: list[Case] = [
        {**original, MANIFEST: to_json_text(changed)}
        for changed in damaged_documents(document, count // 4, seed)
    ]
    for place in range(count - len(found)):
        name = list(damage)[place % len(damage)]
        changed = damage[name](original[name], random_)
        facts = {"size_bytes": len(changed), "sha256": hashlib.sha256(changed).hexdigest()}
        signed = {**document, "files": {**document["files"], name: facts}}
        found.append({**original, name: changed, MANIFEST: to_json_text(signed)})
    return found


def _zip_files(source: Path, count: int, seed: int) -> list[Case]:
    random_, content = random.Random(seed), (source / BUNDLE).read_bytes()
    return [{BUNDLE: damaged_bytes(content, random_)} for _ in range(count)]


def _images(count: int, seed: int) -> list[Case]:
    random_ = random.Random(seed)
    originals = image_files()
    return [
        {"image": damaged_bytes(originals[place % len(originals)], random_)}
        for place in range(count)
    ]


def image_files() -> list[bytes]:
    """Returns small images of all formats and several modes."""
    generator, found = np.random.default_rng(0), []
    colors = Image.fromarray(generator.integers(0, 256, (24, 32, 4), np.uint8))
    wide = Image.fromarray(generator.integers(0, 2**16, (24, 32), np.uint16))
    for format_ in FORMATS:
        for image in (colors, colors.convert("RGB"), colors.convert("L"), colors.convert("P")):
            with suppress(OSError, ValueError):  # not every format has every mode
                found.append(_encoded(image, format_))
    found += [_encoded(wide, "PNG"), _encoded(wide, "TIFF")]
    found += [_encoded(colors.convert("CMYK"), "JPEG"), _encoded(colors.convert("1"), "TIFF")]
    for format_ in ("GIF", "WEBP", "TIFF", "PNG"):
        frames = [colors.rotate(90 * turn) for turn in range(1, 4)]
        found.append(_encoded(colors, format_, save_all=True, append_images=frames))
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation
    found.append(_encoded(colors.convert("RGB"), "JPEG", exif=exif))
    return found


def _encoded(image: Image.Image, format_: str, **options: Any) -> bytes:
    file = BytesIO()
    image.save(file, format_, **options)
    return file.getvalue()


# Running


def fuzz(target: Target, count: int, seed: int) -> tuple[TargetResult, list[Fault]]:
    """Runs cases of one target, each in a child process that may die.

    Args:
        target: what reads them.
        count: of cases.
        seed: fixes them.
    """
    cases: list[Case] = [{}, *target.cases(count - 1, seed)]  # the first is undamaged
    assert len(cases) == count, (target.name, len(cases))
    ends: Counter[str] = Counter()
    faults, slowest, peak = [], 0.0, 0.0
    with tempfile.TemporaryDirectory() as scratch:
        done = 0
        while done < count:
            child, pipe = _start(target, cases, done, Path(scratch))
            for end in _ends(child, pipe):
                assert done or end["kind"] == "returned", f"{target.name}, undamaged: {end['what']}"
                ends[end["kind"]] += 1
                slowest, peak = max(slowest, end["seconds"]), max(peak, end["mib"])
                if end["kind"] not in ("returned", "refused"):
                    faults.append(
                        Fault(
                            target=target.name,
                            kind=end["kind"],
                            what=end["what"],
                            files=cases[done],
                        )
                    )
                done += 1
                if done == count:
                    break
    result = TargetResult(
        name=target.name,
        cases=count,
        returned=ends["returned"],
        refused=ends["refused"],
        tracebacks=ends["traceback"],
        crashes=ends["crash"],
        hangs=ends["hang"],
        over_memory=ends["memory"],
        long_messages=ends["message"],
        slowest_s=round(slowest, 2),
        peak_mib=round(peak, 1),
        bound_mib=target.memory_mib,
    )
    return result, faults


def _start(target: Target, cases: Sequence[Case], first: int, scratch: Path) -> tuple[int, int]:
    """Starts a child that runs the cases from one on; returns its number and a pipe of its ends."""
    reader, writer = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child:
        os.close(writer)
        return child, reader
    try:
        os.close(reader)
        quiet = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(quiet, stream)
        faulthandler.disable()  # the parent counts what a child dies of
        torch.set_num_threads(1)  # OpenMP's threads do not survive a fork
        warnings.simplefilter("ignore")
        limit = _memory_kib("VmSize") * 1024 + HEADROOM_MIB * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
        folder = scratch / f"from-{first}"
        _link(target.source.resolve(), folder)
        for case in cases[first:]:
            for name, content in case.items():
                (folder / name).unlink(missing_ok=True)  # not what it links to
                (folder / name).write_bytes(content)
            end = _run_case(target, folder)
            os.write(writer, json.dumps(end).encode() + b"\n")
    except BaseException:
        os.write(writer, json.dumps(_end("traceback", traceback.format_exc())).encode() + b"\n")
    finally:
        os._exit(0)


def _link(source: Path, folder: Path) -> None:
    """Makes a copy of a folder, of links to its files."""
    folder.mkdir()
    for path in sorted(source.rglob("*")):
        place = folder / path.relative_to(source)
        if path.is_dir():
            place.mkdir()
        else:
            place.symlink_to(path)


def _run_case(target: Target, folder: Path) -> dict[str, Any]:
    _forget_peak()
    before, started = _memory_kib("VmRSS"), time.perf_counter()
    kind, what = "returned", ""
    try:
        target.read(folder)
    except (CompressError, OSError) as error:
        kind, what = "refused", str(error)
        if len(what) > MESSAGE:
            kind = "message"
    except Exception as error:
        kind, what = "traceback", traceback.format_exc()
        if isinstance(error, MemoryError) or OUT_OF_MEMORY.search(str(error)):
            kind = "memory"
    mib = (_memory_kib("VmHWM") - before) / 1024
    if mib > target.memory_mib:
        kind, what = "memory", f"{mib:.0f} MiB; {what}"
    return _end(kind, what, seconds=time.perf_counter() - started, mib=max(0.0, mib))


def _end(kind: str, what: str, *, seconds: float = 0.0, mib: float = 0.0) -> dict[str, Any]:
    return {"kind": kind, "what": what[-4000:], "seconds": seconds, "mib": mib}


def _ends(child: int, pipe: int) -> Iterator[dict[str, Any]]:
    """Yields what each case of a child ends as; the last one may be its death."""
    rest, started = b"", time.perf_counter()
    try:
        while True:
            ready, _, _ = select.select([pipe], [], [], CASE_S)
            if not ready:
                yield _end("hang", f"more than {CASE_S} s", seconds=time.perf_counter() - started)
                return
            read = os.read(pipe, 1 << 16)
            if not read:
                status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
                child = 0
                name = signal.Signals(-status).name if status < 0 else f"exit code {status}"
                yield _end("crash", name)
                return
            *lines, rest = (rest + read).split(b"\n")
            for line in lines:
                yield json.loads(line)
                started = time.perf_counter()
    finally:
        os.close(pipe)
        if child:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def _memory_kib(entry: str) -> int:
    text = Path("/proc/self/status").read_text(encoding="utf-8")
    line = next(line for line in text.splitlines() if line.startswith(f"{entry}:"))
    return int(line.split()[1])


def _forget_peak() -> None:
    """Lets the kernel restart its count of peak resident memory."""
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def make_run(folder: Path) -> Path:
    """Runs all stages on the digits with small networks, and returns the run's folder."""
    card, run = folder / "fuzzed.toml", folder / "run"
    card.write_bytes(to_toml_text(CARD))
    settings = ("prune.latency_ratio=1", "prune.macs_ratio=0.7", "distill.ablation=true")
    options = [part for setting in settings for part in ("--set", setting)]
    command = ["run", str(card), "--data", "digits", "--pipeline", "smoke", "--out", str(run)]
    compress_main([*command, *options], standalone_mode=False)
    return run


@click.command()
@click.option("--cases", default=10_000, show_default=True, help="In all.")
@click.option("--seed", default=0, show_default=True, help="Of the cases.")
@click.option("--only", default="", help="Targets whose names hold this text; writes no results.")
def main(cases: int, seed: int, only: str) -> None:
    """Read damaged files with everything that reads files, and count what ends badly."""
    started, results, faults = time.perf_counter(), [], []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        os.environ["COMPRESS_CACHE"] = str(folder / "cache")
        all_targets = targets(make_run(folder), folder)
        count = -(-cases // len(all_targets))
        for target in all_targets:
            if only not in target.name:
                continue
            result, found = fuzz(target, count, seed)
            say(f"{result}")
            results.append(result)
            faults += found
    distinct = {(fault.target, fault.kind, fault.what[-200:]): fault for fault in faults}
    for fault in list(distinct.values())[:SHOWN_FAULTS]:
        say(f"{fault.target}: {fault.kind}: {fault.what}")
    if only:
        return
    report = Fuzz(
        cases=sum(result.cases for result in results),
        tracebacks=sum(result.tracebacks for result in results),
        crashes=sum(result.crashes for result in results),
        hangs=sum(result.hangs for result in results),
        over_memory=sum(result.over_memory for result in results),
        long_messages=sum(result.long_messages for result in results),
        case_limit_s=CASE_S,
        targets=tuple(results),
        seconds=round(time.perf_counter() - started, 1),
        seed=seed,
        command=f"python -m bench.fuzz --cases {cases} --seed {seed}",
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        host=describe_host(),
    )
    write_json(RESULTS, report)
    click.echo(RESULTS)
    if faults:
        raise click.ClickException(f"{len(faults)} cases ended as none may; see above")


if __name__ == "__main__":
    main()
