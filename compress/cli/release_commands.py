"""Commands around a release: judge and compare runs, pack one for other machines, verify it."""

from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

import click

from compress.cli.group import FOLDER, starting
from compress.cli.json_output import json_option, print_json
from compress.files import printable
from compress.trust import trust_option

REPORT = click.Path(path_type=Path, resolve_path=True)
FILE = click.Path(path_type=Path, dir_okay=False)


@click.command()
@click.argument("run", type=REPORT)
@click.option("--max-drop", type=float, help="Points of test top-1 below the teacher's.")
@click.option("--max-latency-ms", type=float, help="Median latency, ms.")
@click.option("--max-size-mb", type=float, help="Size, MB (millions of bytes).")
@click.option("--baseline", type=REPORT, help="Run to check for regressions against.")
@click.option("--junit", type=FILE, help="Write the outcome as JUnit XML to this file.")
@click.option(
    "--markdown",
    type=FILE,
    help="Append the outcome to this file, such as $GITHUB_STEP_SUMMARY or a comment's text.",
)
@json_option
@click.pass_context
def check(
    context: click.Context,
    run: Path,
    max_drop: float | None,
    max_latency_ms: float | None,
    max_size_mb: float | None,
    baseline: Path | None,
    junit: Path | None,
    markdown: Path | None,
    json_out: TextIO | None,
) -> None:
    """Check the report of RUN (a run, a stage's folder, or a report.json), as in CI.

    Prints a line for each promise; ends with exit code 1 if one is broken. With --baseline, top-1,
    latency, and size must not be worse either.

    \b
    compress check runs/resnet18-digits --max-drop 0.5 --max-latency-ms 8 --max-size-mb 2
    """
    from compress.files import printable, write_text
    from compress.report.check import Limits, check_junit, check_markdown, judge
    from compress.run.check import read_judged

    limits = Limits(max_drop=max_drop, max_latency_ms=max_latency_ms, max_size_mb=max_size_mb)
    judged = read_judged(run)
    promises = judge(judged, limits, read_judged(baseline) if baseline else None)
    if json_out is not None:
        print_json(promises, json_out)
    else:
        for one in promises:
            click.echo(printable(f"{one.outcome:<7} {one.name}: {one.text}"))
    if junit is not None:
        write_text(junit, check_junit(judged.name, promises))
    if markdown is not None:
        with markdown.open("a", encoding="utf-8") as file:
            file.write(check_markdown(judged.name, promises))
    context.exit(int(any(one.outcome == "broken" for one in promises)))


@click.command()
@click.argument("runs", nargs=-1, required=True, type=REPORT, metavar="RUN [RUN]...")
@click.option("--html", type=FILE, help="Also write a page with the table and a plot to this file.")
@json_option
def compare(runs: Sequence[Path], html: Path | None, json_out: TextIO | None) -> None:
    """Compare runs (or stages' folders, or report.json files) with the first.

    \b
    compress compare runs/resnet18-digits runs/mobilenet_v2-digits --html compared.html
    """
    from compress.cli.terminal import print_table
    from compress.files import write_text
    from compress.report.compare import EXPLANATION, compare_html, compare_runs, compare_table
    from compress.run.check import read_judged

    compared = compare_runs([read_judged(run) for run in runs])
    if html is not None:
        write_text(html, compare_html(compared))
    if json_out is not None:
        print_json(compared, json_out)
        return
    print_table(compare_table(compared))
    click.echo(EXPLANATION)
    if html is not None:
        click.echo(html)


@click.command()
@click.argument("run", type=FOLDER)
@click.option(
    "--out",
    type=click.Path(path_type=Path, resolve_path=True),
    help="Folder, or file ending in .zip, to write.  [default: RUN-bundle]",
)
@click.option(
    "--images",
    default=200,
    show_default=True,
    type=click.IntRange(min=1),
    help="Number of test images to include, with their expected logits.",
)
@click.option(
    "--no-test-images",
    "noise",
    is_flag=True,
    help="Include random images in place of test images, which you may not be allowed to "
    "redistribute.",
)
@trust_option
def bundle(run: Path, out: Path | None, images: int, noise: bool) -> None:
    """Pack the exported files of RUN for other machines.

    The bundle contains the ONNX files, class names, a model card (README.md), predict.py, which
    needs only numpy, pillow, and onnxruntime, test images with their expected logits, and a
    manifest with the SHA-256 of every file. The test images are yours or your dataset's: leave them
    out with --no-test-images if you may not redistribute them.

    \b
    compress bundle runs/resnet18-fashion-mnist --out bundle.zip
    """
    with starting():
        from compress.bundle.write import write_bundle

    out = out or run.with_name(f"{run.name}-bundle")
    write_bundle(run, out, n_images=images, noise=noise)
    click.echo(out)


@click.command()
@click.argument("path", metavar="BUNDLE", type=click.Path(path_type=Path))
@json_option
def verify(path: Path, json_out: TextIO | None) -> None:
    """Verify BUNDLE (a folder or a zip) on this machine.

    Compares every file with its SHA-256, and the logits of the ONNX files with the expected ones.

    \b
    compress verify bundle.zip
    """
    with starting():
        from compress.bundle.verify import verify_bundle

    verified = verify_bundle(path)
    if json_out is not None:
        print_json(verified, json_out)
        return
    for one in verified:
        top1 = "" if one.top1 is None else f", top-1 {one.top1:.2f} %"
        click.echo(
            f"{printable(one.file)}: the expected class for {one.agreement:.1f} % of "
            f"{one.n_images} images, logits differ by {one.difference:.2g}{top1}"
        )


COMMANDS = (check, compare, bundle, verify)
