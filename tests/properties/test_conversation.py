"""A conversation: what was read once is not read again, and nothing else changes; commands do what they say."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

import pellucid
from pellucid import build
from pellucid.checkpoints.native import save_model
from pellucid.cli.chat import COMMANDS, command
from pellucid.cli.main import main
from pellucid.errors import DataError, UsageError, shown
from pellucid.generate.chat import Chat, chat, conversation_ids
from pellucid.generate.decode import Completion, generate, stream
from pellucid.generate.sample import Sampling
from pellucid.generate.speculate import Speculation
from pellucid.nn.models import Decoder
from pellucid.spec import (
    AttentionSpec,
    BlockSpec,
    Causal,
    DecoderSpec,
    EmbedSpec,
    EncoderSpec,
    FFNSpec,
    Full,
    LMHeadSpec,
    RecurrentSpec,
    RMSNormSpec,
    RotarySpec,
    StackSpec,
    Window,
)
from pellucid.text.chat import ChatTemplate
from pellucid.text.tokenizer import END_OF_TEXT, Tokenizer
from pellucid.text.tokenizer_roles import Roles

SOURCE = (
    "{% for m in messages %}{% if m.role not in ['system', 'user', 'assistant'] %}{{ raise_exception('who?') }}"
    "{% endif %}<|turn|>{{ m.role }}:{{ m.content }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|turn|>assistant:{% endif %}"
)
GREEDY = Sampling(temperature=0.0)
CONTEXT = 400


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    inner = Tokenizer.train(["no merges: a text has one encoding"], 257).inner
    inner.add_special_tokens(["<|turn|>", "<|end|>"])
    begin, end = inner.token_to_id(END_OF_TEXT), inner.token_to_id("<|end|>")
    assert end is not None
    return Tokenizer(inner, Roles(bos_id=begin, stop_ids=(end,), chat_template=SOURCE))


def decoder(tokenizer: Tokenizer | None, mixer: AttentionSpec | RecurrentSpec | None = None) -> Decoder:
    mixer = mixer or AttentionSpec(4, 2, 8, rotary=RotarySpec())
    stack = StackSpec(32, (BlockSpec(mixer, FFNSpec(48), RMSNormSpec()),) * 2, RMSNormSpec())
    model = build(DecoderSpec(300, CONTEXT, EmbedSpec(), stack, LMHeadSpec(tied=False, bias=True)))
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.4)
        assert model.head.bias is not None
        model.head.bias.fill_(-1e9)  # it writes letters only
        if tokenizer is not None:
            model.head.bias[tokenizer.encode("abcdefghijklmnopqrstuvwxyz ")] = 0.0
    model.tokenizer = tokenizer
    return model


MIXERS = {
    "attention": AttentionSpec(4, 2, 8, rotary=RotarySpec()),
    "window": AttentionSpec(4, 2, 8, Causal() & Window(24), rotary=RotarySpec()),
    "recurrent": RecurrentSpec("gru", 32),
}
QUESTIONS = ["the cat?", "and the dog<|end|>", "a", "the mat; the log"]


@pytest.mark.parametrize("name", MIXERS)
def test_replies_are_those_of_reading_everything_anew(name: str, tokenizer: Tokenizer) -> None:
    model = decoder(tokenizer, MIXERS[name])
    talk = Chat(model, "be brief", sampling=GREEDY, max_new_tokens=12)
    read: list[int] = []
    hidden = model.states
    model.states = lambda ids, *rest: read.append(ids.shape[1]) or hidden(ids, *rest)  # type: ignore[method-assign]
    reused = 0
    for question in QUESTIONS:
        asked = [*talk.messages, {"role": "user", "content": question}]
        read.clear()
        reply = "".join(talk.reply(question))
        n_read = sum(read)
        read.clear()
        alone = chat(model, asked, sampling=GREEDY, max_new_tokens=12)
        assert reply == alone.text
        assert talk.messages[-1] == {"role": "assistant", "content": alone.text}
        reused += sum(read) - n_read
    assert reused > 0, "control: something was not read a second time"


@pytest.mark.parametrize("name", MIXERS)
def test_replies_by_looked_up_guesses_are_those_of_plain_sampling(name: str, tokenizer: Tokenizer) -> None:
    model = decoder(tokenizer, MIXERS[name])
    plain = Chat(model, "be brief", sampling=GREEDY, max_new_tokens=12)
    guessing = Chat(model, "be brief", policy=Speculation(sampling=GREEDY), max_new_tokens=12)
    for question in QUESTIONS[:3]:
        assert "".join(guessing.reply(question)) == "".join(plain.reply(question))


def test_a_changed_conversation_is_read_as_it_is_now(tokenizer: Tokenizer) -> None:
    model = decoder(tokenizer)
    talk = Chat(model, "be brief", sampling=GREEDY, max_new_tokens=10)
    list(talk.reply("the cat?"))
    talk.system = "be long"
    asked = [*talk.messages, {"role": "user", "content": "why"}]
    assert "".join(talk.reply("why")) == chat(model, asked, sampling=GREEDY, max_new_tokens=10).text
    assert talk.system == "be long"
    assert [message["role"] for message in talk.messages].count("system") == 1
    assert talk.undo()
    assert len(talk.messages) == 3
    talk.reset()
    assert talk.messages == [{"role": "system", "content": "be long"}]
    assert not talk.undo()
    talk.system = None
    assert talk.messages == []
    assert "".join(talk.reply("the cat?")) == chat(model, "the cat?", sampling=GREEDY, max_new_tokens=10).text


class Thinks(Decoder):
    """Writes a fixed answer, whatever it reads."""

    script: list[int]

    def forward(self, ids: torch.Tensor, *rest: Any, **more: Any) -> torch.Tensor:
        logits = super().forward(ids, *rest, **more)
        following, self.script = self.script[0], self.script[1:]
        return logits.fill_(-9.0).index_fill_(-1, torch.tensor([following]), 9.0)


def thinking(source: str) -> Thinks:
    inner = Tokenizer.train(["no merges: a text has one encoding"], 257).inner
    inner.add_special_tokens(["<|turn|>", "<|end|>", "<think>", "</think>"])
    end = inner.token_to_id("<|end|>")
    read = Tokenizer(inner, Roles(stop_ids=(end,), chat_template=source))  # pyright: ignore[reportArgumentType]
    block = BlockSpec(AttentionSpec(2, 1, 8, rotary=RotarySpec()), FFNSpec(8), RMSNormSpec())
    model = Thinks(DecoderSpec(300, CONTEXT, EmbedSpec(), StackSpec(16, (block,), RMSNormSpec())))
    model.tokenizer, model.script = read, read.encode_marked("<think>a</think>b</think><|end|>")
    model.script = [*model.script, *read.encode("c<think>"), end]  # the second answer spells a marker in letters  # pyright: ignore[reportAttributeAccessIssue]
    return model.eval()


def test_markers_that_a_model_writes_are_shown_and_taken_apart_later() -> None:
    source = SOURCE.replace("{{ m.content }}", "{{ m.content.split('</think>', 1)[-1] }}{# <think> #}")
    model = thinking(source)
    talk = Chat(model, sampling=GREEDY)
    assert "".join(talk.reply("x")) == talk.messages[-1]["content"] == "<think>a</think>b</think>"
    assert "".join(talk.reply("y")) == "c<think>"
    ids = conversation_ids(model, talk.messages)
    written = "".join(model.tokenizer.tokens_as_text(ids))
    assert written == "<|turn|>user:x<|end|>\n<|turn|>assistant:b</think><|end|>\n" + (
        "<|turn|>user:y<|end|>\n<|turn|>assistant:c<think><|end|>\n<|turn|>assistant:"
    )
    special = model.tokenizer.special
    assert (ids.count(special["</think>"]), ids.count(special["<think>"])) == (1, 0), "what it wrote stays what it was"


def test_markers_that_a_template_refuses_are_left_out_of_the_conversation() -> None:
    source = "{% for m in messages %}{% if '<think>' in m.content %}{{ raise_exception('no') }}{% endif %}{% endfor %}"
    talk = Chat(thinking(source + SOURCE + "{# </think> #}"), sampling=GREEDY)
    assert "".join(talk.reply("x")) == "<think>a</think>b</think>"
    assert talk.messages[-1]["content"] == "ab"


def test_an_interrupted_reply_stays_as_far_as_it_came(tokenizer: Tokenizer) -> None:
    model = decoder(tokenizer)
    talk = Chat(model, sampling=GREEDY, max_new_tokens=20)
    whole = chat(model, "the cat?", sampling=GREEDY, max_new_tokens=20).text
    reply = talk.reply("the cat?")
    part = next(reply) + next(reply)
    reply.close()
    assert whole.startswith(part)
    assert len(part) < len(whole)
    assert talk.messages[-1] == {"role": "assistant", "content": part}
    asked = [*talk.messages, {"role": "user", "content": "go on"}]
    assert "".join(talk.reply("go on")) == chat(model, asked, sampling=GREEDY, max_new_tokens=20).text


def test_an_interruption_inside_a_forward_leaves_no_half_read_cache(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = decoder(tokenizer)
    talk = Chat(model, sampling=GREEDY, max_new_tokens=10)
    list(talk.reply("the cat?"))
    with monkeypatch.context() as patch:
        patch.setattr(model.blocks[1], "forward", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            list(talk.reply("the dog?"))
    assert talk.messages[-1] == {"role": "assistant", "content": ""}
    assert talk.undo()
    asked = [*talk.messages, {"role": "user", "content": "the dog?"}]
    assert "".join(talk.reply("the dog?")) == chat(model, asked, sampling=GREEDY, max_new_tokens=10).text


def test_a_turn_ends_at_any_stop_token(tokenizer: Tokenizer) -> None:
    model = decoder(tokenizer)
    end = tokenizer.special["<|end|>"]
    assert model.head.weight is not None
    free = chat(model, "the cat?", sampling=GREEDY, max_new_tokens=10)
    assert free.finish_reason == "length", "control"
    with torch.no_grad():
        assert model.head.bias is not None
        model.head.weight[end] = model.head.weight[free.ids[3]]
        model.head.bias[end] = 0.01  # a little likelier than that one
    cut = chat(model, "the cat?", sampling=GREEDY, max_new_tokens=10)
    assert cut.finish_reason == "eos"
    assert cut.ids[-1] == end
    assert "<|end|>" not in cut.text


def finished(reply: Generator[str, None, Completion]) -> Completion:
    try:
        while True:
            next(reply)
    except StopIteration as end:
        return end.value


def test_a_full_context_says_so_and_keeps_the_conversation(tokenizer: Tokenizer) -> None:
    talk = Chat(decoder(tokenizer), sampling=GREEDY, max_new_tokens=10_000)
    assert finished(talk.reply("the cat")).finish_reason == "context"
    before = list(talk.messages)
    with pytest.raises(UsageError, match=rf"tokens long, but the model's context is {CONTEXT}"):
        next(talk.reply("and now?"))
    assert talk.messages == before


def test_models_that_cannot_chat_are_refused(tokenizer: Tokenizer) -> None:
    plain = decoder(Tokenizer.train(["the cat"], 260))
    with pytest.raises(UsageError, match=r"(?s)no chat template.*pellucid generate.*--template"):
        Chat(plain)
    with pytest.raises(UsageError, match="no tokenizer"):
        chat(decoder(None), "hello")
    everywhere = StackSpec(32, (BlockSpec(AttentionSpec(4, 4, 8, Full()), FFNSpec(48), RMSNormSpec()),), RMSNormSpec())
    with pytest.raises(UsageError, match="an encoder reads whole texts and cannot answer"):
        chat(build(EncoderSpec(300, 64, EmbedSpec(), everywhere)), "hello")
    with pytest.raises(UsageError, match="cannot write"):  # rather than that it has no tokenizer, which would not help
        stream(build(EncoderSpec(300, 64, EmbedSpec(), everywhere)), "hello")
    with pytest.raises(DataError, match="refuses this conversation at line 1: who"):
        chat(decoder(tokenizer), [{"role": "judge", "content": "hello"}])
    other = ChatTemplate("{{ messages[0].content }}!")
    assert chat(plain, "the cat", sampling=GREEDY, max_new_tokens=4, template=other).n_prompt > 0


def test_chat_is_generate_on_the_written_conversation(tokenizer: Tokenizer) -> None:
    model = decoder(tokenizer)
    written = "<|turn|>user:the cat?<|end|>\n<|turn|>assistant:"
    expected = generate(model, [tokenizer.encode_marked(written)], max_new_tokens=8, sampling=GREEDY)[0]
    assert pellucid.chat(model, "the cat?", max_new_tokens=8, sampling=GREEDY).ids == expected.ids


# --- the command -----------------------------------------------------------------------------------------------------


@pytest.fixture
def talk(tokenizer: Tokenizer) -> Chat:
    return Chat(decoder(tokenizer), sampling=GREEDY, max_new_tokens=5)


def said(talk: Chat, line: str) -> tuple[bool, str]:
    console = Console(file=io.StringIO(), width=100)
    goes_on = command(talk, line, console)
    assert isinstance(console.file, io.StringIO)
    return goes_on, console.file.getvalue()


def test_commands_do_what_they_say(talk: Chat, tmp_path: Path) -> None:
    goes_on, text = said(talk, "/help")
    assert goes_on
    assert all(name in text for name in COMMANDS)
    assert "nothing" in said(talk, "/system")[1]
    assert "[bold]be brief" in said(talk, "/system [bold]be brief")[1], "what is typed is no markup"
    list(talk.reply("the cat?"))
    file = tmp_path / "talk.json"
    assert "3 messages" in said(talk, f"/save {file}")[1]
    assert json.loads(file.read_text()) == talk.messages
    assert "needs the name of a file" in said(talk, "/save")[1]
    assert "error" in said(talk, f"/save {file}/inside")[1]
    assert "taken back" in said(talk, "/undo")[1]
    assert len(talk.messages) == 1
    assert "nothing to undo" in said(talk, "/undo")[1]
    assert "did you mean '/reset'" in said(talk, "/rest")[1]
    assert said(talk, "/reset") == (True, "")
    assert said(talk, "/quit") == (False, "")


def test_a_reply_has_no_power_over_the_terminal() -> None:
    assert shown("a\x1b[31mb\r\n\tc\u202e\x9b") == "a\\u001b[31mb\\u000d\n\tc\\u202e\\u009b"
    assert shown("naïve 👨\u200d👩\u200d👧 漢字\u3000") == "naïve 👨\u200d👩\u200d👧 漢字\u3000"


@pytest.fixture
def folder(tokenizer: Tokenizer, tmp_path: Path) -> Path:
    save_model(decoder(tokenizer), tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def piped(monkeypatch: pytest.MonkeyPatch) -> io.TextIOWrapper:
    lines = io.TextIOWrapper(io.BytesIO(b"the cat?\r\n\nand the dog?\n"))
    monkeypatch.setattr(sys, "stdin", lines)
    return lines


def run(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    told = capsys.readouterr()
    assert isinstance(stop.value.code, int)
    return stop.value.code, told.out, told.err


def test_lines_of_a_pipe_are_turns_and_only_answers_are_written(
    folder: Path, piped: io.TextIOWrapper, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["chat", str(folder), "--temperature", "0", "--max-new-tokens", "6", "--system", "be brief"]
    code, out, err = run(arguments, capsys)
    assert (code, err) == (0, "")
    talk = Chat(pellucid.load(folder), "be brief", sampling=GREEDY, max_new_tokens=6)
    expected = [shown("".join(talk.reply(question))) + "\n" for question in ("the cat?", "and the dog?")]
    assert out == "".join(expected)


def test_another_template_may_be_given(
    folder: Path, piped: io.TextIOWrapper, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    template = tmp_path / "template.jinja"
    template.write_text("{{ raise_exception('not with me') }}")
    code, _, err = run(["chat", str(folder), "--template", str(template)], capsys)
    assert code == 1
    assert "not with me" in err
    code, _, err = run(["chat", str(folder), "--template", str(tmp_path / "none.jinja")], capsys)
    assert code == 2
    assert "none.jinja cannot be read" in err
