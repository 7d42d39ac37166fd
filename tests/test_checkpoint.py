import json
from pathlib import Path

import pytest
import torch

from compress.checkpoint import DESCRIPTION, TENSORS, load_checkpoint
from compress.errors import CheckpointError
from compress.files import atomic_write, write_json
from compress.int8.restore import load_model

STAGE_FOLDERS = ("0-teacher", "1-distill", "2-prune", "3-quantize", "4-export")


@pytest.mark.parametrize("stage", STAGE_FOLDERS)
def test_each_stage_loads_and_runs(finished_run: Path, stage: str) -> None:
    model = load_model(load_checkpoint(finished_run / stage))
    images = torch.randint(0, 256, (3, 1, 16, 16), dtype=torch.uint8)
    assert model(images).shape == (3, 10)


def test_lineage_names_every_stage_on_the_way(finished_run: Path) -> None:
    steps = load_checkpoint(finished_run / "3-quantize").description.lineage
    assert [step.stage for step in steps] == ["teacher", "distill", "prune", "quantize"]
    for place, step in enumerate(steps[1:]):
        assert step.parent == load_checkpoint(finished_run / STAGE_FOLDERS[place]).digest
    assert steps[-1].config["calib"] == 512


def test_a_truncated_file_is_refused(run_copy: Path) -> None:
    tensors = run_copy / "2-prune" / TENSORS
    tensors.write_bytes(tensors.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="truncated, or changed"):
        load_checkpoint(run_copy / "2-prune")


def test_one_changed_bit_is_refused(run_copy: Path) -> None:
    tensors = run_copy / "2-prune" / TENSORS
    content = bytearray(tensors.read_bytes())
    content[-1] ^= 1
    tensors.write_bytes(content)
    with pytest.raises(CheckpointError, match="truncated, or changed"):
        load_checkpoint(run_copy / "2-prune")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 1}'])
def test_a_damaged_description_is_refused(run_copy: Path, text: str) -> None:
    (run_copy / "2-prune" / DESCRIPTION).write_text(text)
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(run_copy / "2-prune")


def test_the_order_of_a_description_s_entries_does_not_matter(run_copy: Path) -> None:
    path = run_copy / "2-prune" / DESCRIPTION
    before = load_checkpoint(path.parent).digest
    path.write_text(json.dumps(json.loads(path.read_text()), sort_keys=True))
    assert load_checkpoint(path.parent).digest == before


def test_another_format_version_is_refused(run_copy: Path) -> None:
    path = run_copy / "2-prune" / DESCRIPTION
    write_json(path, {**json.loads(path.read_text()), "format": 99})
    with pytest.raises(CheckpointError, match="format 99"):
        load_checkpoint(run_copy / "2-prune")


def test_a_run_is_not_a_checkpoint(finished_run: Path) -> None:
    with pytest.raises(CheckpointError, match="choose one of its stages: 0-teacher, 1-distill"):
        load_checkpoint(finished_run)


def test_a_failing_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(KeyError), atomic_write(path) as partial:
        partial.write_text("half")
        raise KeyError
    assert path.read_text() == "old"
