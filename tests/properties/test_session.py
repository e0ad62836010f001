"""A session says of each row what the model says of it alone, whatever the other rows do."""

from __future__ import annotations

import pytest
import torch
from strategies import EXAMPLE, build, close, with_mask

from pellucid.engine.session import Session
from pellucid.errors import DataError
from pellucid.nn.models import Decoder
from pellucid.spec import Causal, Window

PLAIN, WINDOWED = (build(with_mask(EXAMPLE, mask)) for mask in (Causal(), Causal() & Window(3)))


def alone(model: Decoder, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return model(torch.tensor([ids]))[0, -1]


@pytest.mark.parametrize("model", [PLAIN, WINDOWED])
def test_rows_of_a_session_read_as_each_row_alone(model: Decoder) -> None:
    session = Session(model, capacity=12)
    a, b = session.add([1, 2, 3]), session.add([4])
    logits = session.read()
    close(logits[0, 0], alone(model, [1, 2, 3]))
    close(logits[1, 0], alone(model, [4]))
    logits = session.read([[5], [6, 7]])
    close(logits[0, 0], alone(model, [1, 2, 3, 5]))
    close(logits[1], torch.stack([alone(model, [4, 6]), alone(model, [4, 6, 7])]))
    session.rewind(b, 1)
    c = session.fork(a)
    session.drop(a)
    assert session.rows == [b, c]
    logits = session.read(torch.tensor([[8], [9]]))
    close(logits[0, 0], alone(model, [4, 6, 8]))
    close(logits[1, 0], alone(model, [1, 2, 3, 5, 9]))


def test_session_refuses_more_tokens_than_its_capacity_and_stays_as_it_was() -> None:
    session = Session(PLAIN, capacity=3)
    row = session.add([1, 2])
    with pytest.raises(DataError, match="holds 3 tokens, but this call needs 4"):
        session.read([[1, 2]])
    assert row.ids == [1, 2]
