"""Who takes part in train_step.py: pellucid and its peers, at the same shape, each in its fastest documented form.

All are GPT-2-like decoders: pre-norm LayerNorm, plain attention by scaled_dot_product_attention, feed-forward of
4 · d_model with GELU, tied head, no dropout. What a peer cannot be made to share is said in ``differs``. Peers are
imported by name, so that this file can be read, type-checked and run where some of them are not installed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

Precision = str  # "fp32" or "bf16": autocast over float32 weights
Mode = str  # "eager" or "compiled"


@dataclass(frozen=True)
class Job:
    """One measurement: who, at which shape, in which precision and mode. JSON in and out, by its fields."""

    contestant: str
    n_layers: int
    d_model: int
    n_heads: int
    context: int
    vocab_size: int
    batch: int
    precision: Precision
    mode: Mode
    threads: int

    @property
    def tokens(self) -> int:
        """Tokens read by one step."""
        return self.batch * self.context


@dataclass(frozen=True)
class Contestant:
    """loss: (batch, context + 1) ids -> mean loss, to go back through. update: a whole step of its own, or None.

    lookups: parameters that are only looked up, never multiplied with (position tables).
    """

    model: nn.Module
    loss: Callable[[Tensor], Tensor]
    package: str
    differs: str = ""
    lookups: tuple[str, ...] = ()
    update: Callable[[torch.optim.Optimizer, Tensor], float] | None = None


def draw(model: nn.Module) -> None:
    """Every matrix from N(0, 0.02²), as GPT-2: then all begin at a loss near ln(vocab_size), which is checked."""
    for parameter in model.parameters():
        if parameter.ndim >= 2:
            nn.init.normal_(parameter, std=0.02)


def compiled(job: Job, loss: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A peer's whole loss, through torch.compile where the job says so: that fuses more than compiling its model."""
    return torch.compile(loss) if job.mode == "compiled" else loss


def pellucid(job: Job) -> Contestant:
    """Our own ``step``, with its gradient norm, finite check and clipping; compiled as ``train`` does, by block."""
    from pellucid.batch import Batch, Tokens
    from pellucid.designs import classic
    from pellucid.engine.compiling import compilable, compile_each
    from pellucid.nn.models import Decoder
    from pellucid.train.memory import keep_freed_memory
    from pellucid.train.objectives import nll
    from pellucid.train.precision import autocast
    from pellucid.train.step import step

    keep_freed_memory()  # as every `pellucid train` does; it takes effect in this contestant's process only
    spec = classic(job.vocab_size, job.context, job.n_layers, job.d_model, job.d_model // job.n_heads)
    model = Decoder(spec)
    draw(model)
    if job.mode == "compiled":
        compile_each(compilable(model))
    context = autocast("bf16" if job.precision == "bf16" else "fp32")

    def batch(ids: Tensor) -> Batch:
        return Batch(ids[:, :-1], Tokens.plain(job.batch, job.context), ids[:, 1:])

    def update(optimizer: torch.optim.Optimizer, ids: Tensor) -> float:
        return step(model, [optimizer], nll, [batch(ids)], clip=1.0, autocast=context).loss

    def loss(ids: Tensor) -> Tensor:
        return nll(model, batch(ids)) / job.tokens

    return Contestant(model, loss, "pellucid", lookups=("embed.positions.weight",), update=update)


def hf_gpt2(job: Job) -> Contestant:
    """transformers.GPT2LMHeadModel; tanh-GELU as one kernel, not its default, which writes the formula out."""
    hf = import_module("transformers")
    config = hf.GPT2Config(
        vocab_size=job.vocab_size,
        n_positions=job.context,
        n_embd=job.d_model,
        n_layer=job.n_layers,
        n_head=job.n_heads,
        activation_function="gelu_pytorch_tanh",
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        use_cache=False,
        attn_implementation="sdpa",
    )
    model = hf.GPT2LMHeadModel(config)
    draw(model)

    def loss(ids: Tensor) -> Tensor:
        return model(input_ids=ids[:, :-1], labels=ids[:, :-1]).loss

    differs = "scores context - 1 positions a row (it shifts the labels itself)"
    return Contestant(model, compiled(job, loss), "transformers", differs, ("transformer.wpe.weight",))


def litgpt(job: Job) -> Contestant:
    """litgpt.GPT with the loss of its pretraining loop; the head tied as that loop's ``tie_embeddings`` does."""
    lit, utils = import_module("litgpt.model"), import_module("litgpt.utils")
    config = import_module("litgpt.config").Config(
        name="benchmark",
        block_size=job.context,
        vocab_size=job.vocab_size,
        padded_vocab_size=job.vocab_size,
        n_layer=job.n_layers,
        n_head=job.n_heads,
        n_embd=job.d_model,
        rotary_percentage=0.25,
        parallel_residual=False,
        bias=True,
        norm_class_name="LayerNorm",
        mlp_class_name="GptNeoxMLP",
        intermediate_size=4 * job.d_model,
        gelu_approximate="tanh",
    )
    model = lit.GPT(config)
    model.transformer.wte.weight = model.lm_head.weight
    draw(model)

    def loss(ids: Tensor) -> Tensor:
        return utils.chunked_cross_entropy(model(ids[:, :-1]), ids[:, 1:])

    differs = "rotary positions on a quarter of each head, its default: it has no learned ones"
    return Contestant(model, compiled(job, loss), "litgpt", differs)


def x_transformers(job: Job) -> Contestant:
    """x_transformers' TransformerWrapper in its AutoregressiveWrapper, with fused attention."""
    x = import_module("x_transformers")
    layers = x.Decoder(
        dim=job.d_model,
        depth=job.n_layers,
        heads=job.n_heads,
        attn_dim_head=job.d_model // job.n_heads,
        attn_flash=True,
    )
    net = x.TransformerWrapper(
        num_tokens=job.vocab_size,
        max_seq_len=job.context,
        attn_layers=layers,
        tie_embedding=True,
        tie_embedding_scale=1.0,
    )
    model: Any = x.AutoregressiveWrapper(net)
    draw(model)

    def loss(ids: Tensor) -> Tensor:
        return model(ids[:, :-1])

    differs = "no biases in attention and norms; exact GELU; scores context - 1 positions a row; bf16 loss kept in bf16"
    return Contestant(model, compiled(job, loss), "x-transformers", differs, ("net.pos_emb.emb.weight",))


CONTESTANTS: dict[str, Callable[[Job], Contestant]] = {
    "pellucid": pellucid,
    "hf-gpt2": hf_gpt2,
    "litgpt": litgpt,
    "x-transformers": x_transformers,
}
OURS = "pellucid"


def matrix_flops(job: Job, contestant: Contestant) -> int:
    """FLOPs of one step's matrix products, from the model's own parameters: two a weight and token, and two gradients.

    A tied table counts once, as the head. Attention counts the n (n + 1) / 2 pairs that a causal mask lets see each
    other, whatever a kernel computes beyond them. The same count as pellucid.nn.flops, made here for any model.
    """
    weights = sum(
        p.numel() for name, p in contestant.model.named_parameters() if p.ndim == 2 and name not in contestant.lookups
    )
    pairs = job.context * (job.context + 1) // 2
    attention = 2 * 2 * pairs * job.d_model * job.n_layers * job.batch
    return 3 * (2 * weights * job.tokens + attention)


def package_version(contestant: Contestant) -> str:
    return version(contestant.package)
