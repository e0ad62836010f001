"""A model of pellucid's as a subject."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pellucid.batch import Tokens
from pellucid.engine.modes import evaluating
from pellucid.errors import UsageError
from pellucid.nn.models import AnyModel, Decoder, Encoder, EncoderDecoder
from pellucid.nn.quantised import open_weights
from pellucid.predicates import ORDINARY, PREFIX
from pellucid.spec import MaskedLMHeadSpec, TaggerHeadSpec
from pellucid.verify import ours_paths as paths
from pellucid.verify.modules import compiled_blocks, embedding_gradient, roughen, sensitivity, turbulence
from pellucid.verify.reading import Reading, Side
from pellucid.verify.subject import Pairs, Subject, Written
from pellucid.verify.text import OurSpeller


def places(reading: Reading) -> Tokens | None:
    """Where the tokens stand; None: one after the other, none of them marked as a prompt's."""
    if not reading.prefix:
        return None if reading.valid is None else Tokens.padded(reading.valid)
    tokens = Tokens.padded(reading.there)
    inside = (tokens.pos >= 0) & (tokens.pos < reading.prefix)
    return replace(tokens, part=torch.where(inside, PREFIX, ORDINARY))


def pad_of(model: AnyModel) -> int:
    """The tokenizer's token for padding; without one, what a table of positions left its last unused row for, or 0.

    Some exported models give this token no position, wherever it stands.
    """
    pad = None if model.tokenizer is None else model.tokenizer.pad_id
    if pad is None and isinstance(model, Encoder):
        pad = getattr(model.spec.embed.positions, "offset", 0) - 1
    return pad if pad is not None and 0 <= pad < model.spec.vocab_size else 0


class Ours(Subject):
    """Every check can be tried; the model's spec says what kind it is."""

    maker = "pellucid"

    def __init__(self, model: AnyModel, name: str = "the model"):
        self.model, self.name = model, name
        self.tokenizer = None if model.tokenizer is None else OurSpeller(model.tokenizer)
        spec = model.spec
        if not spec.vocab_size:
            raise UsageError(f"{name} reads no token ids, but images", "name a model of text")
        self.vocab, self.context = spec.vocab_size, spec.context
        self.pad_id = pad_of(model)
        if isinstance(model, EncoderDecoder):
            self.context = min(self.context, model.spec.encoder.context)
        self.width, self.depth = spec.d_model, spec.n_layers
        self.dtype = next(model.parameters()).dtype
        if isinstance(model, Encoder):
            self.kind = "encoder"
            self.per_token = model.spec.head is None or isinstance(model.spec.head, MaskedLMHeadSpec | TaggerHeadSpec)
            return
        self.kind = "decoder" if isinstance(model, Decoder) else "encoder-decoder"
        self.start_id = model.spec.start_id if isinstance(model, EncoderDecoder) else None
        writer = model.decoder if isinstance(model, EncoderDecoder) else model
        self.prefix, self.marked = writer.spec.ahead

    @property
    def source_vocab(self) -> int:
        return self.model.spec.encoder.vocab_size if isinstance(self.model, EncoderDecoder) else self.vocab

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def _forward(self, reading: Reading) -> Tensor:
        model, reading = self.model, reading.to(self.device)
        with evaluating(model):
            if isinstance(model, EncoderDecoder):
                assert reading.source is not None
                return model(reading.source.ids, reading.ids, places(reading.source), places(reading)).cpu()
            out = model(reading.ids, places(reading))
        return (out if out.ndim == 3 else out[:, None]).cpu()

    @torch.no_grad()
    def run(self, reading: Reading) -> Float[Tensor, "batch places features"]:
        return self._forward(reading)

    def refuse_padding(self, side: Side) -> None:
        """Any side will do: a place without a token is position -1."""

    @property
    def choices(self) -> int:
        return self.vocab if self.model.tokenizer is None else min(self.vocab, self.model.tokenizer.vocab_size)

    @property
    def refused(self) -> Sequence[int]:
        never = () if self.model.tokenizer is None else self.model.tokenizer.never_ids
        return [number for number in never if number < self.choices]

    @property
    def _tables(self) -> list[nn.Module]:
        """The vectors of what it reads; the side that writes comes last."""
        sides = [self.model.encoder, self.model.decoder] if isinstance(self.model, EncoderDecoder) else [self.model]
        return [side.embed.tokens for side in sides]

    @cached_property
    def sensitivity(self) -> float:
        return sensitivity(self, self._tables[-1:])

    @cached_property
    def turbulence(self) -> float:
        return turbulence(self, self._tables)

    def gradient(self, reading: Reading, score: Callable[[Tensor], Tensor]) -> Float[Tensor, "batch time d_model"]:
        return embedding_gradient(self._tables[-1], reading.ids, lambda: self._forward(reading), score)

    @torch.no_grad()
    def in_pieces(self, reading: Reading, cuts: Sequence[int]) -> Float[Tensor, "batch places features"]:
        model, reading, (rows, time) = self.model, reading.to(self.device), reading.shape
        if isinstance(model, Encoder):
            self._cannot("reads a whole text at once: it has no cache")
        with evaluating(model):
            if isinstance(model, EncoderDecoder):
                assert reading.source is not None
                writer, cache = model.decoder, model.new_cache(reading.source.ids, places(reading.source), time)
            else:
                writer, cache = model, model.new_cache(rows, time)
            whole, out = places(reading), list[Tensor]()
            for start, end in pairwise([0, *cuts]):
                tokens = None if whole is None else Tokens(whole.pos[:, start:end])
                out.append(writer(reading.ids[:, start:end], tokens, cache))
        return torch.cat(out, 1).cpu()

    @torch.no_grad()
    def packed(self, documents: Sequence[Tensor]) -> list[Tensor]:
        if isinstance(self.model, EncoderDecoder):
            self._cannot("reads a source for each row: a packed row would need several")
        if not self.per_token:
            self._cannot("gives one result a row")
        lengths = torch.tensor([len(document) for document in documents])
        seg = torch.arange(len(documents)).repeat_interleave(lengths)[None]
        with evaluating(self.model):
            out = self.model(torch.cat(list(documents))[None].to(self.device), Tokens.packed(seg.to(self.device)))
        return list(out[0].cpu().split(lengths.tolist()))

    def generate(self, reading: Reading, n: int, seed: int | None) -> list[Written]:
        from pellucid.generate.decode import generate
        from pellucid.generate.sample import Sampling

        if isinstance(self.model, Encoder):
            self._cannot("does not generate")
        read = reading if reading.source is None else reading.source
        prompts = [ids[valid].tolist() for ids, valid in zip(read.ids, read.there, strict=True)]
        sampling = Sampling(temperature=0.0 if seed is None else 1.0)
        written = generate(self.model, prompts, max_new_tokens=n, sampling=sampling, seed=seed or 0, ignore_eos=True)
        return [Written(completion.ids, completion.logprobs) for completion in written]

    @contextmanager
    def compiled(self) -> Iterator[Subject]:
        with compiled_blocks(self.model):
            yield self

    def loss(self, reading: Reading, labels: Int[Tensor, "batch time"]) -> float:
        return paths.loss(self.model, reading, labels)

    def in_dtype(self, dtype: torch.dtype) -> Subject:
        return Ours(copy.deepcopy(self.model).to(dtype), self.name)

    def roughened(self) -> Subject:
        plain = copy.deepcopy(self.model)
        open_weights(plain, self.dtype)
        return Ours(roughen(plain), self.name)

    def saved(self, folder: Path) -> Subject:
        return Ours(paths.saved(self.model, folder), self.name)

    def exports(self) -> dict[str, Callable[[Path], Subject]]:
        return {
            "transformers": lambda folder: paths.through_transformers(self.model, folder, self.name),
            "gguf": lambda folder: Ours(paths.through_gguf(self.model, folder / "whole.gguf", "f32"), self.name),
            "graph": lambda folder: paths.graph(self, self.model),
        }

    def quantised(self, folder: Path) -> Subject:
        return Ours(paths.through_gguf(self.model, folder / "model.gguf", "q8_0"), self.name)

    def tied(self) -> Pairs:
        return paths.tied(self.model)
