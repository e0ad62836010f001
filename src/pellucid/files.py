"""Files that are whole or absent: write aside, fsync, rename; the lock that one run holds on its folder; and reading
texts and JSON that may be anybody's, within bounds."""

from __future__ import annotations

import difflib
import errno
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pellucid.errors import PellucidError, RunError

# beyond any published file: the largest tokenizers have about 40 MB and two million values
MOST_BYTES, MOST_VALUES, DEEPEST = 1 << 28, 1 << 22, 100


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def nearest(path: Path) -> Path | None:
    """What stands in the folder of ``path`` under nearly its name; None where nothing does."""
    try:
        close = difflib.get_close_matches(path.name, os.listdir(path.parent), n=1, cutoff=0.5)
    except OSError:
        return None
    return path.with_name(close[0]) if close else None


@contextmanager
def explain_os_errors(path: Path) -> Iterator[None]:
    """Turn what the disk answers (full, read-only, not permitted, ...) into a RunError that names path and remedy."""
    remedies = {
        errno.ENOSPC: "free some space or choose another folder with --out",
        errno.EDQUOT: "your disk quota is used up: free some space or choose another folder with --out",
        errno.EACCES: "choose a folder you may write to with --out",
        errno.EPERM: "choose a folder you may write to with --out",
        errno.EROFS: "the file system is read-only: choose another folder with --out",
        errno.ENOTDIR: "a part of this path is a file: choose another folder with --out",
        errno.EEXIST: "a file stands where a folder should be: choose another folder with --out",
    }
    try:
        yield
    except OSError as error:
        remedy = remedies.get(error.errno or 0, "check the path and the disk, or choose another folder with --out")
        raise RunError(f"cannot write {path}: {error.strerror or error}", remedy) from error


def write_file(path: Path, write: Callable[[Path], None]) -> None:
    """Call ``write(aside)`` and put the result in the place of ``path`` only once it is safely on the disk.

    Raises RunError where the disk is full or the folder not writable; the old file is then untouched.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with explain_os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(aside)
            _sync(aside)
            os.replace(aside, path)
            _sync(path.parent)
        finally:
            aside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """``write_file`` for a string (UTF-8)."""

    def write(aside: Path) -> None:
        aside.write_text(text, encoding="utf-8")

    write_file(path, write)


def write_json(path: Path, value: Any) -> None:
    """``write_file`` for a JSON value, indented, one trailing newline."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_bytes(path: Path, error: type[PellucidError], most: int = MOST_BYTES) -> bytes:
    """The bytes of a file. Raises ``error`` where it is missing, longer than ``most``, or no plain file.

    A pipe would be waited for, and a device has no end.
    """
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            raise error(f"{path} cannot be read: it is no plain file", "restore it from a copy")
        if found.st_size > most:
            raise error(f"{path} is {found.st_size:,} bytes long", f"no such file has more than {most:,}")
        with path.open("rb") as stream:
            return stream.read(found.st_size)  # no more, should it grow meanwhile
    except FileNotFoundError as cause:
        raise error(f"{path} does not exist", "check the path, or restore it from a copy") from cause
    except OSError as cause:
        raise error(f"{path} cannot be read: {cause.strerror or cause}", "check the path, or restore it") from cause


def read_text(path: Path, error: type[PellucidError], most: int = MOST_BYTES) -> str:
    """The text of a file, line ends as they are. Raises ``error`` as ``read_bytes`` does, and where it is not UTF-8."""
    try:
        return read_bytes(path, error, most).decode("utf-8")
    except UnicodeDecodeError as cause:
        raise error(f"{path} cannot be read: {cause}", "it must be UTF-8: restore it from a copy") from cause


def read_json(path: Path, error: type[PellucidError], most: int = MOST_BYTES, unique: bool = False) -> Any:
    """The JSON value in a file. Raises ``error`` as ``read_text`` and ``parse_json`` do."""
    return parse_json(read_text(path, error, most), str(path), error, unique)


def parse_json(text: str, where: str, error: type[PellucidError], unique: bool = False) -> Any:
    """The JSON value that ``text`` is.

    unique: refuse an object that repeats a key, since parsers disagree about which value counts.
    Raises ``error``, naming ``where``, for what is no JSON, or could not be worked with: more values than memory should
    hold, deeper than Python recurses, text that has no UTF-8 form.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        values = dict(pairs)
        if len(values) < len(pairs):
            twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
            raise error(f"{where} says {twice!r} twice", "keep one: readers differ in which they believe")
        return values

    remedy = "restore it from a copy"
    if sum(map(text.count, "[{,")) > MOST_VALUES:
        raise error(f"{where} holds more than {MOST_VALUES:,} values", "no such file has so many")
    try:
        value = json.loads(text, object_pairs_hook=once if unique else None)
        if re.search(r"\\u[dD]", text):
            json.dumps(value, ensure_ascii=False).encode()
    except error:
        raise
    except UnicodeEncodeError as cause:
        raise error(f"{where} holds half of a surrogate pair, which is no character", remedy) from cause
    except (ValueError, RecursionError) as cause:
        raise error(f"{where} is not readable JSON: {cause}", remedy) from cause
    level, depth = [value], 0
    while level:
        if (depth := depth + 1) > DEEPEST:
            raise error(f"{where} nests more than {DEEPEST} values in each other", remedy)
        inside = (each.values() if isinstance(each, dict) else each for each in level if isinstance(each, dict | list))
        level = [each for values in inside for each in values if isinstance(each, dict | list)]
    return value


def write_folder(path: Path, fill: Callable[[Path], None]) -> None:
    """``write_file`` for a folder of files: ``fill(aside)`` first, then every file is synced and the folder renamed.

    An older folder of the same name is replaced; where that fails, it stands as it was.
    """
    with explain_os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
        older = aside.with_name(f"{aside.name}.older.tmp")
        try:
            aside.chmod(0o755)
            fill(aside)
            for file in aside.iterdir():
                _sync(file)
            _sync(aside)
            if path.exists():
                os.replace(path, older)
            os.replace(aside, path)
            _sync(path.parent)
        finally:
            if older.exists() and not path.exists():  # it failed, or was interrupted, just between
                os.replace(older, path)
            for left in (aside, older):
                shutil.rmtree(left, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Remove what a killed process left half-written in ``folder``. Call it only under the folder's lock."""
    for leftover in folder.glob(".*.tmp"):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def sha256(path: Path) -> str:
    """Hex digest of the file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold ``folder/.lock``; the kernel lets go of it when the process dies, however it dies.

    Raises RunError when another process holds it.
    """
    with explain_os_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise RunError(
                f"{folder} is in use by another run", "wait for it to end, or choose another folder with --out"
            ) from error
    try:
        yield
    finally:
        lock.release()
