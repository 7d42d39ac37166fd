"""Saved training states."""

import io
import json
from pathlib import Path

import torch
from torch import nn

from compress.files import read_checked
from compress.train.prepare import make_ema
from compress.train.state import STATE, TrainState, read_state, restore, save
from tests.train.test_events import ROW


def new_state(value: float) -> TrainState:
    model = nn.Linear(2, 1)
    nn.init.constant_(model.weight, value)
    average = make_ema(model, 0.9)
    assert average is not None
    optimizer = torch.optim.SGD(model.parameters(), lr=value, momentum=0.9)
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    average.update_parameters(model)
    return TrainState(
        model=model, optimizer=optimizer, average=average, losses=torch.full((3,), value)
    )


def test_a_restored_state_equals_the_saved_one(tmp_path: Path) -> None:
    state, other = new_state(0.5), new_state(0.25)
    state.history.append(ROW)
    state.best.update(state.scored.state_dict())
    save(tmp_path, state, micro_batch=8)
    saved = read_state(tmp_path)
    assert saved is not None
    assert saved["micro_batch"] == 8
    restore(saved, other)
    torch.testing.assert_close(other.model.state_dict(), state.model.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(other.scored.state_dict(), state.scored.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(other.best, state.best, rtol=0, atol=0)
    assert other.optimizer.param_groups[0]["lr"] == 0.5
    assert other.losses.tolist() == [0.5] * 3
    assert other.history == [ROW]


def test_the_average_is_scored_if_there_is_one() -> None:
    state = new_state(0.5)
    assert state.average is not None
    assert state.scored is state.average.module
    plain = TrainState(
        model=state.model, optimizer=state.optimizer, average=None, losses=state.losses
    )
    assert plain.scored is state.model


def test_the_state_is_plain_data_and_the_history_json_lines(tmp_path: Path) -> None:
    state = new_state(0.5)
    state.history.append(ROW)
    save(tmp_path, state, micro_batch=8)
    packed = read_checked(tmp_path / STATE)
    assert packed is not None
    saved = torch.load(io.BytesIO(packed), weights_only=True)
    names = ["average", "best", "history", "losses", "micro_batch", "model", "optimizer"]
    assert sorted(saved) == names
    (line,) = (tmp_path / "history.jsonl").read_text().splitlines()
    assert json.loads(line)["validation_top1"] == 43.21


def test_missing_and_damaged_states_are_none(tmp_path: Path) -> None:
    assert read_state(tmp_path) is None
    save(tmp_path, new_state(0.5), micro_batch=8)
    path = tmp_path / STATE
    path.write_bytes(path.read_bytes()[:-1])
    assert read_state(tmp_path) is None
