from pathlib import Path

from compress.data.load import Data
from compress.measure.latency import measure_latency
from compress.onnx_file import export_onnx
from tests.conftest import settled, student_spec, torchvision_spec


def test_a_larger_network_is_slower_and_ratios_are_against_the_first(
    digits: Data, tmp_path: Path
) -> None:
    paths = []
    for name, spec in (
        ("large", torchvision_spec("resnet18", digits)),
        ("small", student_spec(digits)),
    ):
        paths.append(tmp_path / f"{name}.onnx")
        export_onnx(settled(spec, digits.train), spec, paths[-1], digest="", stage="teacher")
    large, small = measure_latency(paths, rounds=10, batch=2)
    assert large.speedup == 1.0
    assert small.speedup > 2  # it has a hundredth of the parameters
    assert small.speedup_ci95[0] <= small.speedup <= small.speedup_ci95[1]
    assert 0 < small.latency_ms_p50 <= small.latency_ms_p90
    assert (small.batch, small.threads) == (2, 1)
    assert small.n_runs > large.n_runs
