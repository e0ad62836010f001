"""A model of the transformers library as a subject: asked as its own ``generate`` and ``Trainer`` would."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from pellucid.checkpoints.load import open_checkpoint
from pellucid.engine.modes import evaluating
from pellucid.errors import CheckpointError, UsageError
from pellucid.verify import hugging_face_facts as facts
from pellucid.verify import hugging_face_paths as paths
from pellucid.verify.hugging_face_text import TheirSpeller, load_speller, stop_ids_of
from pellucid.verify.modules import compiled_blocks, embedding_gradient, roughen, sensitivity, turbulence
from pellucid.verify.reading import Reading, Side
from pellucid.verify.subject import Kind, Pairs, Subject, Written
from pellucid.verify.trial import LONGEST


class HuggingFace(Subject):
    """Any model of transformers that reads token ids; told of padding by a mask, and by positions if it takes them."""

    maker = "transformers"
    pooled = False  # whether a model without a head is asked for one vector a row

    def __init__(self, model: Any, name: str = "", tokenizer: Any = None, kind: Kind | None = None):
        self.model, self.config = model, model.config.get_text_config()
        if not isinstance(getattr(self.config, "vocab_size", None), int):
            raise UsageError(f"{type(model).__name__} reads no token ids", "name a model of text")
        if type(model).__name__.endswith("ForMultipleChoice"):
            raise UsageError(f"{type(model).__name__} reads several texts a row", "name a model that reads one")
        self.name = name or type(model).__name__
        self.kind = kind or facts.kind_of(model)
        ready = tokenizer is None or isinstance(tokenizer, TheirSpeller)
        self.tokenizer = tokenizer if ready else TheirSpeller(tokenizer, stop_ids_of(model))
        self.vocab = self.config.vocab_size
        self.width = getattr(self.config, "hidden_size", 1024)
        self.depth = getattr(self.config, "num_hidden_layers", 24)
        context = getattr(self.config, "max_position_embeddings", None)
        self.context = context if context is not None and context > 0 else None
        pad = getattr(self.config, "pad_token_id", None)
        self.pad_id = 0 if pad is None or not 0 <= pad < self.vocab else pad
        self.start_id = getattr(self.config, "decoder_start_token_id", None)
        self.dtype = model.dtype
        self.arguments = facts.arguments(model)
        self.takes_positions = "position_ids" in self.arguments and not self._counts_positions
        self.per_token = not type(model).__name__.endswith(facts.ONE_A_ROW)

    # --- forwards ------------------------------------------------------------------------------------------------

    def _arguments(self, reading: Reading) -> dict[str, Any]:
        """What the forward is called with."""
        mask = None if reading.valid is None else reading.valid.long()
        if reading.source is not None:
            there = reading.source.there.long()
            given = {"input_ids": reading.source.ids, "attention_mask": there, "decoder_input_ids": reading.ids}
            return given | ({} if mask is None else {"decoder_attention_mask": mask})
        given: dict[str, Any] = {"input_ids": reading.ids}
        if mask is not None:
            given["attention_mask"] = mask
            if self.takes_positions:
                given["position_ids"] = (mask.cumsum(-1) - 1).clamp(min=0)
        return given

    def _call(self, **given: Any) -> Any:
        device = self.model.device
        given = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in given.items()}
        if "use_cache" in self.arguments:
            given.setdefault("use_cache", False)
        with evaluating(self.model):
            return self.model(**given)

    def _outputs(self, out: Any) -> Tensor:
        """Logits, or the last states of a model without a head, or what its pooler makes of them."""
        if self.pooled:
            return out.pooler_output[:, None].cpu()
        names = ("logits", "prediction_logits", "last_hidden_state")
        found = next((out[name] for name in names if out.get(name) is not None), None)
        if found is None and out.get("start_logits") is not None:
            found = torch.stack([out["start_logits"], out["end_logits"]], -1)
        if found is None:
            raise UsageError(f"{self.name} gives {', '.join(out)}", "name a model that gives logits or states")
        if found.ndim == 2:  # one number a token, or the classes of a row
            found = found[:, :, None] if self.per_token else found[:, None]
        return found.cpu()

    @torch.no_grad()
    def run(self, reading: Reading) -> Float[Tensor, "batch places features"]:
        return self._outputs(self._call(**self._arguments(reading)))

    def refuse_padding(self, side: Side) -> None:
        if "attention_mask" not in self.arguments:
            super().refuse_padding(side)
        if side == "middle" and facts.windowed(self.config, LONGEST):
            self._cannot("counts its window in columns, not in positions: padding inside a text shortens it")
        if side == "middle" and facts.relative(self.config):
            self._cannot("counts distances in columns, not in positions: padding inside a text makes them longer")
        if side == "left" and not self.per_token and self.kind == "encoder":
            self._cannot("takes its result from the first column, which padding before a text would fill")
        if self.takes_positions or self._counts_positions or side == "right":
            return
        if side == "middle" or (self.kind != "decoder" and not facts.relative(self.config)):
            self._cannot("takes no positions, so it cannot be told that padding here moves no token")

    @cached_property
    def _counts_positions(self) -> bool:
        return facts.counts_positions(self.model)

    @property
    def _tables(self) -> list[nn.Module]:
        """The vectors of what it reads; the side that writes comes last."""
        pair = self.kind == "encoder-decoder"
        sides = [self.model.get_encoder(), self.model.get_decoder()] if pair else [self.model]
        return [side.get_input_embeddings() for side in sides]

    @cached_property
    def sensitivity(self) -> float:
        return sensitivity(self, self._tables[-1:])

    @cached_property
    def turbulence(self) -> float:
        return turbulence(self, self._tables)

    def gradient(self, reading: Reading, score: Callable[[Tensor], Tensor]) -> Float[Tensor, "batch time d_model"]:
        given = self._arguments(reading)
        return embedding_gradient(self._tables[-1], reading.ids, lambda: self._outputs(self._call(**given)), score)

    @torch.no_grad()
    def in_pieces(self, reading: Reading, cuts: Sequence[int]) -> Float[Tensor, "batch places features"]:
        name = facts.cache_name(self.arguments)
        if name is None or self.kind == "encoder":
            self._cannot("takes no cache, by any name that the library has had for it, so it cannot read in pieces")
        if self._counts_positions and reading.valid is not None:
            self._cannot("counts positions in each piece by itself, and the padding that a cache holds as tokens")
        whole, past, out = self._arguments(reading), None, list[Tensor]()
        own = "decoder_input_ids" if reading.source is not None else "input_ids"
        for start, end in pairwise([0, *cuts]):
            piece = whole | {own: reading.ids[:, start:end]}
            if "position_ids" in whole:
                piece["position_ids"] = whole["position_ids"][:, start:end]
            mask = "decoder_attention_mask" if reading.source is not None else "attention_mask"
            if reading.valid is not None:
                piece[mask] = whole[mask][:, :end]
            step = self._call(**piece, **{name: past}, use_cache=True)
            past = facts.cache_of(step)
            if past is None and start == 0:
                self._cannot("gives no cache back, though it takes one")
            out.append(self._outputs(step))
        return torch.cat(out, 1)

    @torch.no_grad()
    def packed(self, documents: Sequence[Tensor]) -> list[Tensor]:
        """Told apart as the library does it: by positions that begin again."""
        told = self.takes_positions and self.per_token and facts.tells_documents(self.model)
        if self.kind != "decoder" or not told:
            self._cannot("does not tell documents of one row apart")
        lengths = [len(document) for document in documents]
        places = torch.cat([torch.arange(length) for length in lengths])[None]
        out = self._outputs(self._call(input_ids=torch.cat(list(documents))[None], position_ids=places))
        return list(out[0].split(lengths))

    def generate(self, reading: Reading, n: int, seed: int | None) -> list[Written]:
        """Sampling as it is by itself: without the penalties, beams and ends that its own configuration may ask for."""
        if self.kind == "encoder" or not self.model.can_generate():
            self._cannot("does not generate")
        if self.kind == "encoder-decoder" and self.start_id is None:
            self._cannot("does not say what its decoder reads first")
        from transformers import GenerationConfig

        own = self.model.generation_config
        plain = GenerationConfig(
            do_sample=seed is not None, max_new_tokens=n, pad_token_id=self.pad_id,
            decoder_start_token_id=self.start_id, output_logits=True, return_dict_in_generate=True,
        )  # fmt: skip
        given = reading if reading.source is None else reading.source
        self.model.generation_config = plain
        try:
            with evaluating(self.model), torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed or 0)
                there = given.there.long().to(self.model.device)
                out = self.model.generate(given.ids.to(self.model.device), attention_mask=there)
        finally:
            self.model.generation_config = own
        ids = out.sequences[:, 1 if reading.source is not None else given.ids.shape[1] :]
        logprobs = torch.stack(out.logits, 1).float().log_softmax(-1).gather(-1, ids[:, :, None])[:, :, 0]
        return [Written(*row) for row in zip(ids.tolist(), logprobs.tolist(), strict=True)]

    @contextmanager
    def compiled(self) -> Iterator[Subject]:
        with compiled_blocks(self.model):
            yield self

    @torch.no_grad()
    def loss(self, reading: Reading, labels: Int[Tensor, "batch time"]) -> float:
        if "labels" not in self.arguments:
            self._cannot("computes no loss")
        given = self._arguments(reading)
        given.pop("decoder_input_ids", None)  # it makes them of the labels
        with paths.quietly():
            loss = self._call(**given, labels=labels).loss
        if loss is None:
            self._cannot("computes no loss of these labels alone")
        return float(loss)

    def in_dtype(self, dtype: torch.dtype) -> Subject:
        return HuggingFace(paths.in_dtype(self.model, dtype), self.name, self.tokenizer, self.kind)

    def roughened(self) -> Subject:
        return HuggingFace(roughen(copy.deepcopy(self.model)), self.name, self.tokenizer, self.kind)

    def saved(self, folder: Path) -> Subject:
        return HuggingFace(*paths.saved(self.model, self.name, self.tokenizer, folder), self.kind)

    def exports(self) -> dict[str, Callable[[Path], Subject]]:
        how = {"use_cache": False} if "use_cache" in self.arguments else {}

        def arguments(reading: Reading) -> dict[str, Any]:
            return self._arguments(reading.to(self.model.device)) | how

        return {"graph": lambda folder: paths.graph(self, self.model, arguments, self._outputs)}

    def quantised(self, folder: Path) -> Subject:
        self._cannot("is of transformers, which writes no GGUF: --through pellucid tries that")

    def tied(self) -> Pairs:
        return paths.tied(self.model)


# --- from a folder or a name ---------------------------------------------------------------------------------------


def load_hugging_face(folder: Path, name: str, kind: Kind | None = None) -> HuggingFace:
    """A folder's model in float32, in the class that its config names, with its tokenizer if it has one.

    Raises UsageError without transformers; CheckpointError where the model cannot be loaded, needs code of its own
    (which is never run), or comes as pickle.
    """
    try:
        import transformers
    except ImportError as error:
        raise UsageError("this needs the transformers library", "pip install transformers") from error
    open_checkpoint(folder)  # what a stranger's folder may hold is checked here, and not there
    try:
        with paths.quietly():
            config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
            how = {
                "dtype": torch.float32,
                "use_safetensors": True,
                "output_loading_info": True,
                "trust_remote_code": False,
            }
            model, seen = _class_of(config).from_pretrained(folder, **how)
    except Exception as error:  # whatever the library makes of a stranger's config and weights
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise CheckpointError(
            f"transformers cannot load {folder}: {reason}", "safetensors only, and no code"
        ) from error
    drawn = [name for name in seen["missing_keys"] if "pooler" not in name]  # no check reads what a pooler says
    if drawn:
        raise CheckpointError(
            f"{folder} has no weight {sorted(drawn)[0]!r}: transformers would draw it at random", "name another folder"
        )
    with paths.quietly():
        speller = load_speller(folder, stop_ids_of(model))
    return HuggingFace(model, name, speller, kind)


def _class_of(config: Any) -> Any:
    """The class that a config names, where the library has it; otherwise the model without a head."""
    import transformers

    for name in config.architectures or []:
        found = getattr(transformers, str(name), None)
        if isinstance(found, type) and issubclass(found, transformers.PreTrainedModel):
            return found
    return transformers.AutoModel
