"""The int8 sensitivity of each layer of a float checkpoint."""

from pathlib import Path
from tempfile import TemporaryDirectory

from compress.cache import measuring_for, now
from compress.checkpoint import load_checkpoint
from compress.errors import CompressError
from compress.host import describe_host
from compress.int8.ptq import fit_to_cpu, without_corrections
from compress.kd.context import Context
from compress.quantize.calibration import calibrate, plan_of
from compress.quantize.config import QuantizeConfig
from compress.quantize.layer_timing import time_layers
from compress.quantize.sensitivity import analyze
from compress.report.layers import LayersReport, write_layers_report
from compress.run.single_stage import data_of, measure_of
from compress.train.evaluate import evaluate


def analyze_layers(
    folder: Path, config: QuantizeConfig, images: int, *, remeasure: bool = False
) -> LayersReport:
    """Measures each layer of a float checkpoint and writes the report into its folder.

    The layers are scored on a number of validation images.

    Raises:
        CompressError: the checkpoint is quantized already.
    """
    checkpoint = load_checkpoint(folder)
    if checkpoint.description.quantized is not None:
        raise CompressError(f"{folder} is already quantized; use a float checkpoint")
    data, measure = data_of(checkpoint), measure_of(folder)
    since = now() if remeasure else ""
    with TemporaryDirectory() as scratch, measuring_for(Path(scratch), since=since) as measurements:
        context = Context(
            data=data,
            seed=checkpoint.description.step.seed,
            measure=measure,
            folder=Path(scratch),
            store=Path(scratch),
            teachers=(),
        )
        calibration = calibrate(checkpoint, config, context)
        plan = fit_to_cpu(without_corrections(plan_of(config)), calibration)
        costs = time_layers(calibration, plan, checkpoint, measure).costs
        rows = analyze(
            calibration,
            plan,
            lambda network: evaluate(network, data.validation, images=images),
            costs,
        )
    report = LayersReport(
        checkpoint=checkpoint.digest,
        n_images=min(images, len(data.validation)),
        calibration_images=min(config.calib, len(data.train)),
        threads=measure.threads,
        host=describe_host(),
        rows=tuple(rows),
        measurements=tuple(measurements()),
    )
    write_layers_report(folder, report)
    return report
