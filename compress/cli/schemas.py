"""The JSON Schema of what each command prints with `--json`, derived from its type."""

from types import GenericAlias
from typing import Any

from pydantic import ConfigDict, TypeAdapter

from compress.bundle.verify import Agreement
from compress.doctor.examine import Diagnosis
from compress.errors import CompressError
from compress.measure.benchmark import BenchmarkResult
from compress.measure.results import RunReport, StageReport
from compress.report.check import Promise
from compress.report.compare import Comparison
from compress.report.layers import LayersReport
from compress.run.evaluate import Evaluation, Prediction
from compress.run.recipe import Listed, RecipeSetting
from compress.run.stages import STAGES
from compress.settings import nearest

RESULTS: dict[str, Any] = {
    "run": RunReport,
    "report": RunReport,
    **{stage.command: StageReport for stage in STAGES.values()},
    "sensitivity": LayersReport,
    "evaluate": Evaluation,
    "predict": tuple[Prediction, ...],
    "benchmark": BenchmarkResult,
    "doctor": Diagnosis,
    "check": tuple[Promise, ...],
    "compare": tuple[Comparison, ...],
    "verify": tuple[Agreement, ...],
    "models": tuple[Listed, ...],
    "pipelines": tuple[Listed, ...] | tuple[RecipeSetting, ...],
}
"""What commands print with `--json`."""
CONFIG = ConfigDict(
    extra="forbid",
    json_schema_serialization_defaults_required=True,
    use_attribute_docstrings=True,
)
"""All fields are printed, and no others; their docstrings are their descriptions."""


def json_schema(command: str) -> dict[str, Any]:
    """Returns the schema of what a command prints with `--json`.

    Raises:
        CompressError: the command has no `--json`.
    """
    if command not in RESULTS:
        raise CompressError(f"no command {command!r} with --json; {nearest(command, RESULTS)}")
    schema = _schema(RESULTS[command])
    if "StageReport" in schema["$defs"]:
        schema = _schema(RESULTS[command], *(stage.result for stage in STAGES.values()))
        result = schema["$defs"]["StageReport"]["properties"]["result"]
        result["anyOf"] = schema["prefixItems"][1:]
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"compress {command} --json",
        **schema["prefixItems"][0],
        "$defs": schema["$defs"],
    }


def _schema(*kinds: Any) -> Any:
    """Returns the schema of a tuple: dataclasses take the configuration of what they are in."""
    together: Any = GenericAlias(tuple, kinds)
    adapter: TypeAdapter[Any] = TypeAdapter(together, config=CONFIG)
    return adapter.json_schema(mode="serialization")
