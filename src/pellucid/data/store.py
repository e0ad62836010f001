"""Tokens on the disk, made once: a folder that is whole or absent, and says exactly what it was made from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int64, UInt, UInt16

from pellucid.data.corpus import Text, fingerprint
from pellucid.errors import DataError
from pellucid.files import read_json, sha256, write_folder, write_json
from pellucid.text.pieces import pieces_of
from pellucid.text.tokenizer import Progress, Tokenizer

VERSION = 2
_MANIFEST = "manifest.json"
_TOKENS = "tokens.bin"
_FILES = (_TOKENS, "offsets.npy", "document_bytes.npy", "token_bytes.npy")
_BATCH = 1 << 22  # characters encoded in one call: enough for every core, little enough for any memory
_REMEDY = "remove the folder: it is made again from the text"


@dataclass(frozen=True)
class Manifest:
    """What a store holds and what it was made from; JSON in and out.

    sources: ``fingerprint`` of the documents. origin: what whoever divided them says of all texts and of the division.
    tokenizer: ``Tokenizer.hash``.
    files: length in bytes and sha256 of each file beside the manifest. eot: the id that begins every document.
    """

    version: int
    dtype: str
    n_tokens: int
    n_documents: int
    n_bytes: int
    eot: int
    tokenizer: str
    sources: str
    origin: str
    files: dict[str, dict[str, Any]]

    @property
    def hash(self) -> str:
        """sha256 of everything above, kept beside it: a damaged manifest is found."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


@runtime_checkable  # the shape checks of the tests look
class Encoded(Protocol):
    """What rows of a text have in common: a vocabulary, and what they were cut from."""

    @property
    def eot(self) -> int: ...

    @property
    def token_bytes(self) -> UInt16[np.ndarray, " vocab"]: ...

    @property
    def hash(self) -> str: ...


@dataclass(frozen=True, eq=False)
class TokenStore:
    """One stream: ``<|endoftext|>`` and the tokens of each document in turn, and one ``<|endoftext|>`` after the last.

    So the label of every token is simply the next one: each document is begun by, and has to predict, that token.

    tokens: the stream, memory-mapped. offsets: where each document begins, at its ``<|endoftext|>``.
    document_bytes: length of each document's text in bytes.
    token_bytes: how many bytes each id of the vocabulary stands for.
    """

    folder: Path
    manifest: Manifest
    tokens: UInt[np.ndarray, " tokens"]
    offsets: Int64[np.ndarray, " documents"]
    document_bytes: Int64[np.ndarray, " documents"]
    token_bytes: UInt16[np.ndarray, " vocab"]

    @property
    def eot(self) -> int:
        """Id of ``<|endoftext|>``."""
        return self.manifest.eot

    @property
    def n_tokens(self) -> int:
        """Length of the stream."""
        return self.manifest.n_tokens

    @property
    def n_bytes(self) -> int:
        """Bytes of text that the stream stands for."""
        return self.manifest.n_bytes

    @property
    def hash(self) -> str:
        """Equal for two stores exactly when a run reads the same tokens, of the same vocabulary, from both."""
        content = f"{self.manifest.tokenizer} {self.manifest.files[_TOKENS]['sha256']}"
        return hashlib.sha256(content.encode()).hexdigest()

    def __repr__(self) -> str:
        m = self.manifest
        return (
            f"TokenStore({m.n_documents:,} documents, {m.n_tokens:,} tokens, {m.n_bytes:,} bytes, {str(self.folder)!r})"
        )


def build_store(
    documents: Sequence[Text],
    tokenizer: Tokenizer,
    folder: str | Path,
    progress: Progress | None = None,
    origin: str = "",
) -> TokenStore:
    """Encode ``documents`` on all cores into ``folder``, or open it when it holds just these, intact.

    ``progress`` is told the bytes of text as they are done; ``origin`` is kept in the manifest. Raises DataError when
    there is no document, when the folder holds anything that is not a store, or when the tokenizer loses bytes;
    RunError when it cannot be written.
    """
    folder = Path(folder)
    if not documents:
        raise DataError("there is no document to encode", "name at least one text")
    if tokenizer.bos_id is None:
        raise DataError("the tokenizer has no token that begins a text", "use the tokenizer of a model that writes")
    sources = fingerprint(documents)
    known = open_intact(folder, tokenizer)
    if known is not None and (known.manifest.sources, known.manifest.origin) == (sources, origin):
        if progress:
            progress(known.n_bytes)
        return known
    strangers = sorted(path.name for path in folder.glob("*") if path.name not in (*_FILES, _MANIFEST))
    if strangers:
        raise DataError(f"{folder} holds {strangers[0]!r}, which is no part of a token store", "choose another folder")

    def fill(aside: Path) -> None:
        made = _fill(aside, documents, tokenizer, progress)
        manifest = Manifest(VERSION, **made, tokenizer=tokenizer.hash, sources=sources, origin=origin)
        write_json(aside / _MANIFEST, asdict(manifest) | {"hash": manifest.hash})

    write_folder(folder, fill)
    return open_store(folder)


def open_intact(folder: Path, tokenizer: Tokenizer) -> TokenStore | None:
    """The store in ``folder`` if every byte of it is as it was written, and ``tokenizer`` made it; else None."""
    try:
        store = open_store(folder, verify=True)
    except DataError:
        return None
    return store if store.manifest.tokenizer == tokenizer.hash else None


def _fill(folder: Path, documents: Sequence[Text], tokenizer: Tokenizer, progress: Progress | None) -> dict[str, Any]:
    """Write all files but the manifest; the answer is what the manifest says of them."""
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
    lengths = [len(tokenizer.bytes_of(number)) for number in range(tokenizer.vocab_size)]
    token_bytes = np.array(lengths, dtype=np.uint16)
    assert tokenizer.bos_id is not None
    eot = np.array([tokenizer.bos_id], dtype=dtype)
    offsets = np.zeros(len(documents), dtype=np.int64)
    found_bytes = np.zeros(len(documents), dtype=np.int64)
    n_tokens, running = 0, hashlib.sha256()
    with (folder / _TOKENS).open("wb") as stream:

        def write(array: np.ndarray) -> int:
            data = array.tobytes()
            running.update(data)
            return stream.write(data) // dtype.itemsize

        for batch in _batches(documents):
            encoded = tokenizer.encode_batch([piece for _, _, piece in batch])
            for (number, is_first, _), ids in zip(batch, encoded, strict=True):
                if is_first:
                    offsets[number] = n_tokens
                    n_tokens += write(eot)
                array = np.array(ids, dtype=dtype)
                n_tokens += write(array)
                n_bytes = int(token_bytes[array].sum(dtype=np.int64))
                found_bytes[number] += n_bytes
                if progress:
                    progress(n_bytes)
        n_tokens += write(eot)
    for document, found in zip(documents, found_bytes.tolist(), strict=True):
        if document.n_bytes != found:  # bits per byte would be a lie
            problem = f"{document.name} has {document.n_bytes} bytes, but its tokens stand for {found}"
            raise DataError(problem, "use a tokenizer that keeps every byte (no normalizer)")
    np.save(folder / "offsets.npy", offsets)
    np.save(folder / "document_bytes.npy", found_bytes)
    np.save(folder / "token_bytes.npy", token_bytes)
    digests = {_TOKENS: running.hexdigest()} | {name: sha256(folder / name) for name in _FILES[1:]}
    return {
        "dtype": dtype.str,
        "n_tokens": n_tokens,
        "n_documents": len(documents),
        "n_bytes": int(found_bytes.sum()),
        "eot": tokenizer.bos_id,
        "files": {name: {"bytes": (folder / name).stat().st_size, "sha256": digests[name]} for name in _FILES},
    }


def _batches(documents: Sequence[Text]) -> Iterator[list[tuple[int, bool, str]]]:
    """(document, is its first piece, piece), about _BATCH characters at a time: long documents span several batches."""
    batch: list[tuple[int, bool, str]] = []
    size = 0
    for number, document in enumerate(documents):
        for index, piece in enumerate(pieces_of(document.blocks())):
            batch.append((number, index == 0, piece))
            size += len(piece)
            if size >= _BATCH:
                yield batch
                batch, size = [], 0
    yield batch


def open_store(folder: str | Path, verify: bool = False) -> TokenStore:
    """The store that ``build_store`` left in ``folder``; with ``verify`` every byte of it is hashed.

    Raises DataError when it is missing, of another version, or not what its manifest says.
    """
    folder = Path(folder)
    manifest = _read_manifest(folder)
    for name in _FILES:
        path, said = folder / name, manifest.files.get(name, {})
        if not path.is_file():
            raise DataError(f"{path} is missing", _REMEDY)
        if (size := path.stat().st_size) != said.get("bytes"):
            raise DataError(f"{path} has {size} bytes, its manifest says {said.get('bytes')}", _REMEDY)
        if verify and sha256(path) != said.get("sha256"):
            raise DataError(f"{path} is damaged: its sha256 is not the one in its manifest", _REMEDY)
    tokens = np.memmap(folder / _TOKENS, dtype=np.dtype(manifest.dtype), mode="r").view(np.ndarray)
    try:
        offsets, document_bytes, token_bytes = (np.load(folder / name, allow_pickle=False) for name in _FILES[1:])
    except (OSError, ValueError) as error:
        raise DataError(f"{folder} is damaged: {error}", _REMEDY) from error
    return TokenStore(folder, manifest, tokens, offsets, document_bytes, token_bytes)


def _read_manifest(folder: Path) -> Manifest:
    path = folder / _MANIFEST
    said = read_json(path, DataError)
    version = said.get("version") if isinstance(said, dict) else None
    if version != VERSION:
        raise DataError(f"{path}: version is {version!r}, not {VERSION}", _REMEDY)
    if set(said) != {field.name for field in fields(Manifest)} | {"hash"}:
        raise DataError(f"{path} does not have the fields of a token store", _REMEDY)
    expected = said.pop("hash")
    manifest = Manifest(**said)
    if manifest.hash != expected:
        raise DataError(f"{path} is damaged: its hash is not that of its content", _REMEDY)
    return manifest
