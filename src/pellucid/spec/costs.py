"""What one layer has and does: the numbers from which parameters, FLOPs and memory of whole models are added up."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Cost:
    """What one layer has and does. matrices: values that a token is multiplied with; others: biases and the like.

    norms: values of its inner norms. memory_matrices: the part of ``matrices`` that an encoder's tokens are multiplied
    with instead. pair_flops: for each pair of tokens that see each other. state_flops: for each token, beside matrices.
    idle: values of matrices that this token is not given (other experts). inner: activations a token leaves.
    """

    matrices: int
    others: int = 0
    norms: int = 0
    memory_matrices: int = 0
    pair_flops: int = 0
    state_flops: int = 0
    idle: int = 0
    inner: int = 0

    @property
    def parameters(self) -> int:
        """Trained values, those of inner norms excepted."""
        return self.matrices + self.others + self.idle

    def flops(self, time: int, pairs: int, memory: int = 0) -> int:
        """FLOPs of a forward over ``time`` tokens with ``pairs`` visible pairs; ``memory``: tokens of an encoder."""
        own = 2 * time * (self.matrices - self.memory_matrices) + 2 * memory * self.memory_matrices
        return own + pairs * self.pair_flops + time * self.state_flops
