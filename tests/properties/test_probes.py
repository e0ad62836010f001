"""Probes read what is planted and tell reading from memorising; steering moves a model, and files keep its vectors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from planted_models import OUT, VOCAB, empty, with_induction
from strategies import EXAMPLE, build, close

from pellucid.batch import IGNORE
from pellucid.errors import CheckpointError, UsageError
from pellucid.interpret.probes import probe
from pellucid.interpret.record import capture
from pellucid.interpret.steering import Steering, contrast
from pellucid.nn.models import Decoder

# --- probes ----------------------------------------------------------------------------------------------------------


def texts(n: int = 50, time: int = 6) -> list[list[int]]:
    return torch.randint(VOCAB, (n, time), generator=torch.Generator().manual_seed(0)).tolist()


def test_the_token_before_is_read_behind_the_head_that_fetches_it_and_not_in_a_model_without_it() -> None:
    read = texts()
    before = [[IGNORE, *text[:-1]] for text in read]
    found = probe(with_induction(), read, before)
    assert found.accuracy.min() > 0.95 and found.chance < 0.3
    assert found.control.max() > 0.95 and found.seen == 1.0  # the token itself is there as well
    none = probe(empty(), read, before)
    assert none.accuracy.max() < 0.3


def test_a_property_of_single_tokens_has_no_selectivity() -> None:
    read = texts()
    odd = [[token % 2 for token in text] for text in read]
    found = probe(with_induction(), read, odd)
    assert found.accuracy.min() > 0.99 and found.selectivity.abs().max() < 0.01


def test_a_control_task_of_other_types_cannot_be_learned_where_they_are_not_read() -> None:
    read = texts()
    odd = [[token % 2 for token in text] for text in read]
    drawn = torch.randint(50, (50, 6), generator=torch.Generator().manual_seed(1)).tolist()
    found = probe(with_induction(), read, odd, types=drawn)
    assert found.selectivity.min() > 0.3


def test_a_probe_points_along_the_channel_that_it_reads() -> None:
    found = probe(empty(), texts(), [[int(token == 3) for token in text] for text in texts()], layers=[0])
    assert int(found.probes[0].direction(1, 0)[:VOCAB].argmax()) == 3


def test_labels_that_do_not_fit_are_refused() -> None:
    model = empty()
    cases: list[tuple[list[Any], list[Any], dict[str, Any], str]] = [
        ([[1, 2], [3, 4]], [0], {}, "2 texts, 1 labels"),
        ([[1, 2], [3, 4]], [[0], [1]], {}, "text 0 has 2 tokens and 1 labels"),
        ([[1, 2], [3, 4]], [0, 0], {}, "fewer than two classes"),
        ([[1, 2], [3, 4], [5, 6]], [0, 1, -3], {}, "a label is -3"),
        ([[1, 2], [3, 4]], [IGNORE, IGNORE], {}, "no label is asked for"),
        ([[1, 2], [3, 4]], [0, 1], {"point": "attn.pattern"}, "one vector a token"),
        ([[1, 2], [3, 4]], [0, 1], {"layers": [2]}, "layer 2 of the model"),
    ]
    for read, labels, options, message in cases:
        with pytest.raises(UsageError, match=message):
            probe(model, read, labels, **options)


# --- steering --------------------------------------------------------------------------------------------------------


def test_a_contrast_is_the_difference_of_means() -> None:
    model = build(EXAMPLE)
    sides = [[[1, 2, 3], [4, 5]], [[6, 7]]]
    found = contrast(model, *sides)
    assert list(found.vectors) == [1]
    ends = [
        torch.stack(
            [capture(model, torch.tensor([t]), "blocks.1.resid_post")["blocks.1.resid_post"][0, -1] for t in side]
        )
        for side in sides
    ]
    close(found.vectors[1], ends[0].mean(0) - ends[1].mean(0))
    whole = contrast(model, *sides, read=None)
    assert not torch.allclose(whole.vectors[1], found.vectors[1])


@torch.no_grad()
def test_a_planted_direction_steers_what_is_said_and_leaves_no_trace() -> None:
    model, ids = empty(), torch.tensor([[1, 2, 3]])
    vector = torch.zeros(model.spec.d_model)
    vector[OUT + 7] = 3
    before = model(ids)
    for strength in (1.0, 2.0):
        with Steering({1: vector}).applied(model, strength):
            close(model(ids)[..., 7], before[..., 7] + 3 * strength)
    assert torch.equal(model(ids), before)
    with Steering({1: vector}).applied(model, -1.0):
        assert float(model(ids)[0, 0, 7]) < 0


@torch.no_grad()
def test_scores_are_lengths_along_the_direction() -> None:
    model = build(EXAMPLE)
    steering = contrast(model, [[1, 2, 3]], [[3, 2, 1]])
    plain = steering.scores(model, [4, 5])[1]
    with steering.applied(model):
        moved = steering.scores(model, [4, 5])[1]
    close(moved, plain + 1)


def test_a_control_vector_is_written_with_the_fields_of_llama_cpp_and_read_back(tmp_path: Path) -> None:
    model = build(EXAMPLE)
    steering, path = contrast(model, [[1, 2, 3]], [[3, 2, 1]]), tmp_path / "steer.gguf"
    steering.save(path, model)
    read = gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in read.fields.items()}
    assert fields["general.architecture"] == "controlvector"
    assert fields["controlvector.layer_count"] == 2 and "controlvector.model_hint" in fields
    assert [(tensor.name, tensor.tensor_type.name, list(tensor.shape)) for tensor in read.tensors] == [
        ("direction.1", "F32", [model.spec.d_model])
    ]
    back = Steering.open(path)
    assert torch.equal(back.vectors[1], steering.vectors[1].float())


def test_vectors_that_no_file_or_model_can_have_are_refused(tmp_path: Path) -> None:
    model, path = build(EXAMPLE), tmp_path / "steer.gguf"
    assert isinstance(model, Decoder)
    for vectors, message in (
        ({0: torch.ones(model.spec.d_model)}, "layers \\[0\\]"),
        ({}, "layers \\[\\]"),
        ({1: torch.ones(3)}, "finite numbers"),
        ({1: torch.full((model.spec.d_model,), torch.nan)}, "finite numbers"),
    ):
        with pytest.raises(UsageError, match=message):
            Steering(vectors).save(path, model)
        assert not path.exists()
    with pytest.raises(UsageError, match="a vector of 3 numbers"), Steering({1: torch.ones(3)}).applied(model):
        pass
    with pytest.raises(UsageError, match="0 texts on one side"):
        contrast(model, [], [[1]])
    writer = gguf.GGUFWriter(path, "llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(CheckpointError, match="no control vector"):
        Steering.open(path)
