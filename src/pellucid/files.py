"""Files that are whole or absent: write aside, fsync, rename; and the lock that one run holds on its folder."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from pellucid.errors import PellucidError, RunError


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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


def read_json(path: Path, error: type[PellucidError]) -> Any:
    """The JSON value in ``path``; raises ``error`` when the file is missing or is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as cause:
        raise error(f"{path} does not exist", "check the path, or restore it from a copy") from cause
    except (OSError, ValueError, RecursionError) as cause:
        raise error(f"{path} is not readable JSON: {cause}", "restore it from a copy, or remove it") from cause


def write_folder(path: Path, fill: Callable[[Path], None]) -> None:
    """``write_file`` for a folder of files: ``fill(aside)`` first, then every file is synced and the folder renamed.

    An older folder of the same name is replaced.
    """
    with explain_os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent))
        try:
            aside.chmod(0o755)
            fill(aside)
            for file in aside.iterdir():
                _sync(file)
            _sync(aside)
            if path.exists():
                shutil.rmtree(path)
            os.replace(aside, path)
            _sync(path.parent)
        finally:
            shutil.rmtree(aside, ignore_errors=True)


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
