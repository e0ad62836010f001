"""What attention needs to know about positions, worked out once a forward and shared by every block that sees alike."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from pellucid.batch import Tokens
from pellucid.nn.masks import Visible
from pellucid.nn.rope import Rotation


@dataclass(frozen=True)
class View:
    """tokens: the queries' places. visible: the keys they see. rotation: their rotary angles. bias: the score term.

    memory: the states of an encoder where the keys are its tokens; None where the queries attend to each other.
    """

    tokens: Tokens
    visible: Visible
    rotation: Rotation | None
    bias: Float[Tensor, "rows heads query key"] | None
    memory: Float[Tensor, "batch key d_model"] | None = None
