"""Our own model folders: read tensor by tensor, and never believed before the hash inside has been compared."""

from __future__ import annotations

import json
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import pellucid
from pellucid.checkpoints import tensors as tensor_files
from pellucid.checkpoints.native import RUN
from pellucid.designs import language_models
from pellucid.errors import CheckpointError, UsageError


def folder_of_a_model(folder: Path) -> Path:
    pellucid.save(pellucid.build(language_models.modern(61, 32, 3, 32, 16)), folder)
    return folder


def test_folder_is_read_with_one_tensor_beside_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file's float32 tensors are dropped one after the other where the model is to be in another type."""
    alive: list[weakref.ref[Tensor]] = []
    most = 0
    read = tensor_files.read_tensor

    def recorded(*arguments: Any) -> Tensor:
        nonlocal most
        tensor = read(*arguments)
        alive.append(weakref.ref(tensor))
        most = max(most, sum(each() is not None for each in alive))
        return tensor

    folder = folder_of_a_model(tmp_path)
    monkeypatch.setattr(tensor_files, "read_tensor", recorded)
    model = pellucid.load(folder, torch.bfloat16)
    assert len(alive) == len(model.state_dict()) > 20 and most <= 2


def test_damaged_byte_is_refused_though_tensors_are_read_one_by_one(tmp_path: Path) -> None:
    file = folder_of_a_model(tmp_path) / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-3] ^= 1  # in the last number: no exponent, so that it stays finite
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match="do not match the hash inside"):
        pellucid.load(tmp_path)


def test_numbers_that_are_none_are_called_damage_where_the_hash_says_so(tmp_path: Path) -> None:
    file = folder_of_a_model(tmp_path) / "model.safetensors"
    data = bytearray(file.read_bytes())
    begin = 8 + int.from_bytes(data[:8], "little")
    data[begin : begin + 4] = b"\xff\xff\xff\xff"
    file.write_bytes(data)
    with pytest.raises(CheckpointError, match="do not match the hash inside"):
        pellucid.load(tmp_path)


def test_saved_numbers_that_are_none_are_refused_by_name(tmp_path: Path) -> None:
    model = pellucid.build(language_models.modern(61, 32, 3, 32, 16))
    with torch.no_grad():
        assert isinstance(model.final_norm.weight, Tensor)
        model.final_norm.weight[0] = torch.nan
    pellucid.save(model, tmp_path)
    with pytest.raises(CheckpointError, match=r"final_norm\.weight holds NaN"):
        pellucid.load(tmp_path)


def test_folder_of_a_run_is_not_replaced_by_a_conversion(tmp_path: Path) -> None:
    folder = folder_of_a_model(tmp_path / "run")
    (folder / RUN).write_text(json.dumps({}))
    with pytest.raises(UsageError, match="is not empty"):
        pellucid.convert(folder, folder, to="native", force=True)
