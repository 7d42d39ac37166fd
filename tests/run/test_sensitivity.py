import math
from pathlib import Path

import pytest

from compress.quantize.config import QuantizeConfig
from compress.run.sensitivity import analyze_layers
from tests.cli.test_json import content, printed


def test_layers_are_timed_again_only_when_asked(
    run_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("compress.cache.STEADY", math.inf)

    def all_cached(*, remeasure: bool) -> bool:
        report = analyze_layers(
            run_copy / "2-prune", QuantizeConfig(calib=16), images=16, remeasure=remeasure
        )
        assert len({row.cached for row in report.measurements}) == 1
        return report.measurements[0].cached

    assert not all_cached(remeasure=True)
    assert all_cached(remeasure=False)
    assert not all_cached(remeasure=True)
    report = printed("sensitivity", run_copy / "2-prune", "--images", 16, "--calib", 16)
    assert report == content(run_copy / "2-prune/sensitivity.json")
