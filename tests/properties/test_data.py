"""Text to batches: nothing lost, nothing seen twice, nothing mixed, and an order that a number decides."""

from __future__ import annotations

import argparse
import bz2
import gzip
import importlib.util
import inspect
import io
import itertools
import json
import lzma
import sys
import tempfile
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from drawn import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from pellucid.batch import IGNORE, Batch
from pellucid.data.corpus import Document
from pellucid.data.packing import Packed, evaluation
from pellucid.data.sources import Skipped, documents
from pellucid.data.split import split
from pellucid.data.store import TokenStore, build_store, open_store
from pellucid.errors import CheckpointError, DataError, UsageError
from pellucid.text import pieces as pieces_module
from pellucid.text.pieces import pieces, pieces_of, sample
from pellucid.text.tokenizer import END_OF_TEXT, Tokenizer

quick = settings(deadline=None, max_examples=examples(60))
few = settings(deadline=None, max_examples=examples(25))  # where every example builds a store
SOURCE = inspect.getsource(argparse) + inspect.getsource(textwrap)
TOKENIZER = Tokenizer.train([SOURCE], 400)
WORDS = SOURCE.split(" ")

texts = st.one_of(
    st.text(max_size=80),
    st.lists(st.sampled_from([END_OF_TEXT, "<|", " \n", "\r\n", "é", "👩‍👩‍👧", "'ll", "12345", "\x00", "self."])).map(
        "".join
    ),
)


def stream_of(sizes: list[int]) -> list[Document]:
    """Documents of as many words as asked for, all different."""
    words = itertools.cycle(WORDS)
    return [
        Document(f"d{n}", f"{n} " + " ".join(itertools.islice(words, size)) if size else "")
        for n, size in enumerate(sizes)
    ]


def store_of(sizes: list[int]) -> TokenStore:
    """Its files are gone, but stay readable as long as they are mapped."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda _: None)  # hundreds of stores that need not survive a power cut
        return build_store(stream_of(sizes), TOKENIZER, Path(folder) / "store")


STORE = store_of([200, 3, 0, 57, 1, 400, 90])
sizes = st.lists(st.integers(0, 40), min_size=1, max_size=8)


# --- tokenizer -------------------------------------------------------------------------------------------------------


@quick
@given(texts)
def test_round_trip_is_exact(text: str) -> None:
    ids = TOKENIZER.encode(text)
    assert TOKENIZER.decode(ids) == text
    assert b"".join(map(TOKENIZER.bytes_of, ids)) == text.encode()
    assert TOKENIZER.eos_id not in ids
    assert TOKENIZER.encode(text, bos=True) == [TOKENIZER.bos_id, *ids]
    assert TOKENIZER.encode_batch([text, "", text]) == [ids, [], ids]


def test_every_single_byte_and_code_point_block_round_trips() -> None:
    text = "".join(chr(code) for code in range(0x110000) if code % 37 == 0 and not 0xD800 <= code < 0xE000)
    assert TOKENIZER.decode(TOKENIZER.encode(text)) == text
    assert {TOKENIZER.bytes_of(number) for number in range(1, 257)} == {bytes([byte]) for byte in range(256)}


@quick
@given(texts)
def test_pieces_are_bounded_and_join_to_the_text(text: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces_module, "_PIECE", 4)
        cut = list(pieces(text))
        assert "".join(cut) == text
        assert all(len(piece) <= 8 for piece in cut)
        assert [again for piece in cut for again in pieces(piece)] == cut
        assert TOKENIZER.decode(TOKENIZER.encode(text)) == text


@quick
@given(texts, st.integers(1, 9))
def test_pieces_of_blocks_are_those_of_the_whole_text(text: str, size: int) -> None:
    blocks = [text[at : at + size] for at in range(0, len(text), size)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces_module, "_PIECE", 4)
        assert list(pieces_of(blocks)) == list(pieces(text))


spaced = st.lists(
    st.sampled_from([*"a.é_\t\n\r", "bc", " ", "\n\n", "  ", "'s", "1234", ",\n", "\x1c", "\u2028"]), max_size=60
)


@quick
@given(spaced.map("".join))
def test_a_cut_between_words_changes_no_token(text: str) -> None:
    places = [match.start() for match in pieces_module._BETWEEN_WORDS.finditer(text)]
    parts = [text[start:stop] for start, stop in itertools.pairwise([0, *places, len(text)])]
    assert list(itertools.chain(*TOKENIZER.encode_batch(parts))) == TOKENIZER.encode(text)


def test_long_text_is_encoded_as_a_whole() -> None:
    text = SOURCE[:60_000]
    whole = TOKENIZER.inner.encode(text, add_special_tokens=False).ids
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces_module, "_PIECE", 512)
        assert len(list(pieces(text))) > 80
        assert TOKENIZER.encode(text) == whole


def test_training_is_deterministic_and_honest_about_its_size() -> None:
    assert Tokenizer.train([SOURCE], 400).hash == TOKENIZER.hash
    assert Tokenizer.train([SOURCE], 401).hash != TOKENIZER.hash
    assert TOKENIZER.vocab_size == 400
    assert Tokenizer.train(["ab ab"], 5000).vocab_size < 270
    assert Tokenizer.train([], 5000).vocab_size == 257
    done: list[int] = []
    Tokenizer.train(["é" * 10, SOURCE], 300, progress=done.append)
    assert sum(done) == 20 + len(SOURCE.encode())
    with pytest.raises(UsageError, match="vocab_size=256"):
        Tokenizer.train([SOURCE], 256)


def test_sample_is_spread_evenly_and_about_as_long_as_asked() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces_module, "_PIECE", 100)
        parts = itertools.chain(pieces(SOURCE), pieces(SOURCE[::-1]))
        taken = list(sample(parts, 2 * len(SOURCE), 20_000))
        assert abs(sum(map(len, taken)) - 20_000) <= 200
        places = [SOURCE.find(piece) for piece in taken if piece in SOURCE]
        assert min(places) < len(SOURCE) / 10
        assert max(places) > len(SOURCE) * 0.9
        assert "".join(sample(pieces(SOURCE), len(SOURCE), len(SOURCE))) == SOURCE


def test_saved_tokenizer_is_the_same_and_a_damaged_one_is_refused(tmp_path: Path) -> None:
    TOKENIZER.save(tmp_path / "tokenizer.json")
    again = Tokenizer.load(tmp_path / "tokenizer.json")
    assert again.hash == TOKENIZER.hash
    assert again.encode(END_OF_TEXT) == TOKENIZER.encode(END_OF_TEXT)
    good = (tmp_path / "tokenizer.json").read_text()
    for damaged in (good[:1000], good.replace(END_OF_TEXT, "<|end|>"), good.replace('"Ġ"', '"\u4e00"'), "[]"):
        (tmp_path / "damaged.json").write_text(damaged)
        with pytest.raises(CheckpointError, match=r"damaged\.json"):
            Tokenizer.load(tmp_path / "damaged.json")
    with pytest.raises(CheckpointError, match=r"missing\.json"):
        Tokenizer.load(tmp_path / "missing.json")


def test_tokens_are_shown_one_by_one_and_bad_ids_are_refused() -> None:
    ids = TOKENIZER.encode("if €", bos=True)
    assert TOKENIZER.tokens_as_text(ids)[0] == END_OF_TEXT
    assert "".join(TOKENIZER.tokens_as_text(ids)[1:]) == r"if \xe2\x82\xac"
    assert TOKENIZER.decode(ids[:-1]) == "if \ufffd"
    for bad in (-1, 400):
        with pytest.raises(DataError, match=rf"token id {bad} is not in 0…399"):
            TOKENIZER.decode([bad])
    assert "vocab_size=400" in repr(TOKENIZER)


# --- sources ---------------------------------------------------------------------------------------------------------


def test_every_kind_of_file_is_read_in_the_same_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "texts"
    (folder / "sub").mkdir(parents=True)
    (folder / "b.txt").write_bytes("\ufeffbé\r\n".encode())
    (folder / "a.txt.gz").write_bytes(gzip.compress(b"one\n<|endoftext|>\n two <|endoftext|> \n<|endoftext|>\r\n\n"))
    (folder / "c.xz").write_bytes(lzma.compress(b"c"))
    (folder / "d.bz2").write_bytes(bz2.compress(b"d"))
    rows = [{"text": "r1"}, {"text": ""}, {"text": None}, {"text": "r4"}]
    (folder / "e.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    (folder / "sub" / "z.py").write_text("z = 1")
    (folder / ".hidden").write_text("hidden")
    (folder / "picture.png").write_bytes(b"\x89PNG\0\0")
    (folder / "empty.txt").touch()
    (folder / "latin.txt").write_bytes("é".encode("latin-1"))
    (folder / "gone.txt").symlink_to("nowhere")
    skipped: list[Skipped] = []
    found = [(document.name, document.text) for document in documents("texts", on_skip=skipped.append)]
    assert found == [
        ("texts/a.txt.gz#1", "one\n"),
        ("texts/a.txt.gz#2", " two <|endoftext|> \n"),
        ("texts/b.txt", "bé\r\n"),
        ("texts/c.xz", "c"),
        ("texts/d.bz2", "d"),
        ("texts/e.jsonl.gz#1", "r1"),
        ("texts/e.jsonl.gz#4", "r4"),
        ("texts/sub/z.py", "z = 1"),
    ]
    reasons = {Path(one.name).name: one.reason for one in skipped}
    assert reasons.keys() == {"e.jsonl.gz", "picture.png", "empty.txt", "latin.txt", "gone.txt"}
    assert reasons["e.jsonl.gz"] == "2 rows without text"
    assert "NUL" in reasons["picture.png"]
    assert "UTF-8" in reasons["latin.txt"]
    assert "empty" in reasons["empty.txt"]
    by_glob = documents(["texts/*.xz", "texts/**/*.py"])
    assert [document.text for document in by_glob] == ["c", "z = 1"]
    with pytest.warns(UserWarning, match=r"picture\.png"):
        assert [document.text for document in documents("texts/[pc]*")] == ["c"]


def test_standard_input_is_a_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("één".encode())))
    assert [(document.name, document.text, document.n_bytes) for document in documents("-")] == [
        ("standard input", "één", 5)
    ]


def test_hugging_face_dataset_is_a_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("datasets") is None:
        pytest.skip("the optional extra 'hf' is not installed")
    (tmp_path / "org" / "name").mkdir(parents=True)  # the library reads a folder of this name as it reads the hub
    rows = [{"text": "one", "n": 1}, {"text": "", "n": 2}, {"text": "three", "n": 3}]
    (tmp_path / "org" / "name" / "train.jsonl").write_text("\n".join(map(json.dumps, rows)))
    monkeypatch.chdir(tmp_path)
    skipped: list[Skipped] = []
    found = [(d.name, d.text) for d in documents("hf://org/name?split=train", on_skip=skipped.append)]
    assert found == [("hf://org/name?split=train#0", "one"), ("hf://org/name?split=train#2", "three")]
    assert [one.reason for one in skipped] == ["1 rows without text"]
    assert [d.text for d in documents("hf://org/name?limit=1")] == ["one"]
    with pytest.raises(DataError, match=r"no field 'txt'\n.*did you mean 'text'"):
        list(documents("hf://org/name?field=txt"))
    with pytest.raises(DataError, match="split=nope cannot be read"):
        list(documents("hf://org/name?split=nope"))


# --- split -----------------------------------------------------------------------------------------------------------


@quick
@given(st.lists(st.integers(0, 300), min_size=1, max_size=12), st.floats(0.02, 0.5), st.integers(0, 9))
def test_split_loses_nothing_and_holds_out_what_was_asked(lengths: list[int], fraction: float, seed: int) -> None:
    whole = stream_of([length + 40 for length in lengths])
    training, validation = split(whole, fraction, seed)
    assert split(whole, fraction, seed) == (training, validation)
    total = sum(len(document.text) for document in whole)
    assert sorted("".join(d.text for d in [*training, *validation])) == sorted("".join(d.text for d in whole))
    held = sum(len(document.text) for document in validation)
    assert fraction * total <= held <= 2 * fraction * total + 1
    assert training
    for part in [*training, *validation]:
        (origin,) = (d for d in whole if part.name == d.name or part.name.startswith(d.name + "["))
        if part.name != origin.name:
            start, stop = part.name.removeprefix(origin.name).strip("[]").split(":")
            assert origin.text[int(start) : int(stop)] == part.text
            assert len(origin.text) > fraction * total  # a document that fits is never cut


def test_split_cuts_a_single_document_at_line_ends() -> None:
    training, validation = split([Document("book", SOURCE)], 0.1)
    assert len(validation) > 1
    assert all(part.text.endswith("\n") for part in [*training, *validation])


def test_split_keeps_copies_together() -> None:
    distinct = stream_of([50] * 30)
    copies = [Document(f"copy of {document.name}", document.text) for document in distinct]
    for seed in range(5):
        training, validation = split(distinct + copies, 0.1, seed)
        assert {d.text for d in validation}
        assert not {d.text for d in validation} & {d.text for d in training}
    same = [Document(str(number), SOURCE[:500]) for number in range(50)]
    training, validation = split(same, 0.1)
    assert not {d.text for d in validation} & {d.text for d in training}


def test_split_by_name() -> None:
    names = ["lib/json/decoder.py", "lib/json/encoder.py", "lib/decoder.py", "book.txt#1", "book.txt#2"]
    whole = [Document(name, name) for name in names] + [Document("lib/copy.py", "lib/json/decoder.py")]
    held = [d.name for d in split(whole, held_out=["json/decoder.py", "book.txt"])[1]]
    assert held == ["lib/json/decoder.py", "book.txt#1", "book.txt#2", "lib/copy.py"]
    assert len(split(whole, held_out=["*coder.py"])[1]) == 4
    with pytest.raises(DataError, match=r"did you mean 'lib/json/decoder.py'"):
        split(whole, held_out=["json/decodr.py"])
    with pytest.raises(DataError, match="every document"):
        split(whole, held_out=["*"])


@pytest.mark.parametrize("fraction", [-0.1, 1.0, float("nan")])
def test_split_refuses_an_impossible_fraction(fraction: float) -> None:
    with pytest.raises(UsageError, match="fraction="):
        split(stream_of([10]), fraction)
    assert split(stream_of([10]), 0.0) == (stream_of([10]), [])
    with pytest.raises(DataError, match="too short"):
        split([Document("x", "x")])


# --- store -----------------------------------------------------------------------------------------------------------


@few
@given(sizes)
def test_stream_is_every_document_between_ends_of_text(lengths: list[int]) -> None:
    whole, store = stream_of(lengths), store_of(lengths)
    expected = [[store.eot, *TOKENIZER.encode(document.text)] for document in whole]
    assert store.tokens.tolist() == [*itertools.chain(*expected), store.eot]
    assert (store.tokens[store.offsets] == store.eot).all()
    assert (store.tokens == store.eot).sum() == len(whole) + 1
    assert store.document_bytes.tolist() == [document.n_bytes for document in whole]
    assert store.n_bytes == sum(document.n_bytes for document in whole)
    assert store.n_tokens == len(store.tokens)


def test_long_documents_span_batches_of_the_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = stream_of([300, 0, 20, 500])
    plain = build_store(whole, TOKENIZER, tmp_path / "plain")
    monkeypatch.setattr(pieces_module, "_PIECE", 64)
    monkeypatch.setattr("pellucid.data.store._BATCH", 256)
    done: list[int] = []
    cut = build_store(whole, TOKENIZER, tmp_path / "cut", progress=done.append)
    assert cut.hash == plain.hash
    assert (cut.tokens == plain.tokens).all()
    assert (cut.offsets == plain.offsets).all()
    assert sum(done) == cut.n_bytes
    assert len(done) > 10


def test_store_is_never_built_twice(tmp_path: Path) -> None:
    folder = tmp_path / "store"

    def state() -> dict[str, tuple[int, int]]:
        return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.iterdir()}

    first = build_store(stream_of([30, 20]), TOKENIZER, folder)
    before = state()
    done: list[int] = []
    again = build_store(stream_of([30, 20]), TOKENIZER, folder, progress=done.append)
    assert state() == before
    assert again.hash == first.hash
    assert done == [first.n_bytes]
    other = build_store(stream_of([30, 21]), TOKENIZER, folder)
    assert state() != before
    assert other.hash != first.hash
    assert build_store(stream_of([30, 20]), TOKENIZER, folder).hash == first.hash
    assert build_store(stream_of([30, 20]), Tokenizer.train([SOURCE], 300), folder).hash != first.hash


def test_any_flipped_byte_is_found(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    build_store(stream_of([30, 20]), TOKENIZER, folder)
    good = open_store(folder, verify=True).hash
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        for place in (0, len(data) // 2, len(data) - 2):
            path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
            with pytest.raises(DataError, match=path.name):
                open_store(folder, verify=True)
        assert build_store(stream_of([30, 20]), TOKENIZER, folder).hash == good  # made again
        assert path.read_bytes() == data
        path.write_bytes(data[: len(data) // 2])
        with pytest.raises(DataError, match=path.name):
            open_store(folder)
        assert build_store(stream_of([30, 20]), TOKENIZER, folder).hash == good  # made again
    (folder / "offsets.npy").unlink()
    with pytest.raises(DataError, match=r"offsets\.npy is missing"):
        open_store(folder)


def test_store_replaces_nothing_but_a_store(tmp_path: Path) -> None:
    (tmp_path / "novel.txt").write_text("the only copy")
    with pytest.raises(DataError, match=r"novel\.txt"):
        build_store(stream_of([5]), TOKENIZER, tmp_path)
    assert (tmp_path / "novel.txt").read_text() == "the only copy"


def test_interrupted_build_leaves_the_old_store(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    first = build_store(stream_of([30]), TOKENIZER, folder)

    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_store(stream_of([60]), TOKENIZER, folder, progress=interrupt)
    assert open_store(folder, verify=True).hash == first.hash
    assert [path.name for path in tmp_path.iterdir()] == ["store"]


# --- packing ---------------------------------------------------------------------------------------------------------


def places_in(store: TokenStore, ids: np.ndarray) -> int:
    """Where this row stands in the stream (rows of STORE occur once)."""
    windows = np.lib.stride_tricks.sliding_window_view(store.tokens, len(ids))
    (places,) = np.nonzero((windows == ids).all(1))
    return int(places[0])


def check_places(store: TokenStore, batch: Batch, row: int, start: int) -> None:
    """Segments and positions are those of the documents as ``offsets`` gives them, not as the tokens suggest."""
    valid = batch.tokens.pos[row] >= 0
    n = int(valid.sum())
    assert valid[:n].all()
    document = np.searchsorted(store.offsets, np.arange(start, start + n), side="right")
    begin = np.maximum(store.offsets[document - 1], start)
    assert batch.tokens.pos[row, :n].tolist() == (np.arange(start, start + n) - begin).tolist()
    seg = batch.tokens.segments[row, :n]
    assert torch.equal(seg[:, None] == seg[None, :], torch.from_numpy(document[:, None] == document[None, :]))
    if batch.tokens.start is not None:
        assert batch.tokens.seg is None
        assert len(set(document)) == 1
        assert n == len(valid)


@few
@given(sizes, st.integers(1, 20), st.integers(0, 3), st.integers(0, 2))
def test_an_epoch_has_every_token_as_a_label_once(lengths: list[int], context: int, seed: int, epoch: int) -> None:
    store = store_of(lengths)
    if store.n_tokens <= context:
        with pytest.raises(DataError, match=f"{store.n_tokens} tokens.*context of {context}"):
            Packed(store, context, seed)
        return
    packed = Packed(store, context, seed)
    starts = sorted(packed._start(epoch * packed.rows + index) for index in range(packed.rows))
    assert starts == list(range(starts[0], starts[0] + packed.rows * context, context))
    assert 0 <= starts[0] < context
    assert starts[-1] + context < store.n_tokens
    assert store.n_tokens - 1 - packed.rows * context < 2 * context
    batch = packed.samples(epoch * packed.rows, packed.rows)
    order = [packed._start(epoch * packed.rows + index) for index in range(packed.rows)]
    for row, start in enumerate(order):
        assert batch.ids[row].tolist() == store.tokens[start : start + context].tolist()
        assert batch.labels[row].tolist() == store.tokens[start + 1 : start + context + 1].tolist()
        check_places(store, batch, row, start)
    scored = np.concatenate([store.tokens[start + 1 : start + context + 1] for start in order])
    assert batch.n_bytes == sum(len(TOKENIZER.bytes_of(int(number))) for number in scored)


def test_epochs_differ_and_cover_the_ends() -> None:
    packed = Packed(STORE, 16, seed=0)
    epochs = [[packed._start(e * packed.rows + i) for i in range(packed.rows)] for e in range(40)]
    assert len({tuple(epoch) for epoch in epochs}) == 40
    assert len({min(epoch) for epoch in epochs}) > 10
    assert max(max(epoch) for epoch in epochs) + 17 >= STORE.n_tokens - 4
    assert min(min(e) for e in epochs) <= 3
    assert Packed(STORE, 16, seed=1).samples(0, 8).ids.tolist() != packed.samples(0, 8).ids.tolist()


@quick
@given(st.integers(0, 200), st.integers(1, 16), st.integers(1, 4), st.integers(1, 4))
def test_order_is_pure_and_the_same_however_it_is_shared(step: int, batch_size: int, micro: int, world: int) -> None:
    packed = Packed(STORE, 16, seed=3)
    whole = packed.batch(step, 0, batch_size)
    if batch_size < micro * world:
        with pytest.raises(UsageError, match=f"batch_size={batch_size}"):
            packed.batches(step, batch_size, micro, 0, world)
        return
    packed.samples(10_000, 3)  # having read something else must not matter; nor must being another object
    other = Packed(STORE, 16, seed=3)
    shares = [b for rank in range(world) for b in other.batches(step, batch_size, micro, rank, world)]
    for name in ("ids", "labels"):
        assert torch.equal(torch.cat([getattr(share, name) for share in shares]), getattr(whole, name))
    assert torch.equal(torch.cat([share.tokens.pos for share in shares]), whole.tokens.pos)
    assert sum(share.n_bytes for share in shares) == whole.n_bytes
    sizes = {len(share.ids) for share in shares}
    assert max(sizes) - min(sizes) <= 1
    assert torch.equal(packed.samples((step + 1) * batch_size, 1).ids[0], packed.batch(step + 1, 0, batch_size).ids[0])


def test_rows_of_one_document_are_plain_and_others_are_not() -> None:
    plain = Packed(store_of([400]), 16, seed=0).samples(1, 1)
    assert plain.tokens.start == 0
    assert plain.tokens.seg is None
    mixed = Packed(STORE, 256, seed=0).samples(0, 2)
    assert mixed.tokens.start is None
    assert mixed.tokens.seg is not None
    mixed.refuse_unshifted()


@few
@given(sizes, st.integers(1, 20), st.data(), st.integers(1, 5))
def test_evaluation_scores_every_token_once(lengths: list[int], context: int, data: st.DataObject, rows: int) -> None:
    store = store_of(lengths)
    stride = data.draw(st.integers(1, context))
    scored: list[int] = []
    n_bytes = 0
    number = 0
    for batch in evaluation(store, context, rows, stride):
        assert batch.ids.shape[0] <= rows
        assert batch.ids.shape[1] == context
        n_bytes += batch.n_bytes
        for row in range(len(batch.ids)):
            start = number * stride
            check_places(store, batch, row, start)
            (counted,) = np.nonzero((batch.labels[row] != IGNORE).numpy())
            assert batch.labels[row][counted].tolist() == store.tokens[start + counted + 1].tolist()
            assert batch.ids[row][counted].tolist() == store.tokens[start + counted].tolist()
            assert number == 0 or counted.min() == context - stride
            scored += (start + counted + 1).tolist()
            number += 1
    assert scored == list(range(1, store.n_tokens))
    assert n_bytes == store.n_bytes


@pytest.mark.parametrize(("stride", "batch_size"), [(0, 4), (17, 4), (4, 0)])
def test_evaluation_refuses_an_impossible_window(stride: int, batch_size: int) -> None:
    with pytest.raises(UsageError):
        next(evaluation(STORE, 16, batch_size, stride))


def test_stores_of_large_vocabularies_use_wide_integers(tmp_path: Path) -> None:
    class Wide(Tokenizer):
        """The same tokens under ids that need more than 16 bits."""

        @property
        def vocab_size(self) -> int:
            return 70_000

        def bytes_of(self, number: int) -> bytes:
            return super().bytes_of(number - 69_000) if 69_000 < number < 69_400 else b""

        def encode_batch(self, texts: object) -> list[list[int]]:
            assert isinstance(texts, list)
            return [[number + 69_000 for number in ids] for ids in super().encode_batch(texts)]

    store = build_store(stream_of([30]), Wide(TOKENIZER.inner), tmp_path / "wide")
    assert store.tokens.dtype == np.uint32
    assert store.tokens.max() > 69_000
    assert store.tokens[1:-1].tolist() == [69_000 + n for n in TOKENIZER.encode(stream_of([30])[0].text)]


def test_evaluation_of_a_stream_shorter_than_the_context_is_padded() -> None:
    store = store_of([2])
    (batch,) = evaluation(store, 64, 4)
    assert int((batch.labels != IGNORE).sum()) == store.n_tokens - 1
    assert (batch.tokens.pos[0, store.n_tokens - 1 :] == -1).all()
    assert (batch.labels[0, store.n_tokens - 1 :] == IGNORE).all()
