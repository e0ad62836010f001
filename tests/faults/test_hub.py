"""Models on the hub: what is fetched, what is refused and how, against a small server that answers as the hub does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import unquote, urlsplit

import pytest

import pellucid
from pellucid.api import locate
from pellucid.checkpoints.export import to_hf
from pellucid.checkpoints.hub import is_name
from pellucid.designs import modern
from pellucid.errors import CheckpointError

SHA = "a" * 40


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's interface as its client needs to list and fetch a model."""

    models: ClassVar[dict[str, dict[str, bytes]]] = {}
    refused: ClassVar[dict[str, tuple[int, str]]] = {}
    fetched: ClassVar[list[str]] = []

    def do_HEAD(self) -> None:
        self.answer(with_body=False)

    def do_GET(self) -> None:
        self.answer(with_body=True)

    def answer(self, with_body: bool) -> None:
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        is_api = parts[:2] == ["api", "models"]
        org, name, what, revision, *rest = [*(parts[2:] if is_api else parts), "", "", ""]
        repo = f"{org}/{name}"
        if repo in self.refused:
            return self.send(self.refused[repo][0], b"", {"X-Error-Code": self.refused[repo][1]})
        if repo not in self.models:
            return self.send(404, b"", {"X-Error-Code": "RepoNotFound"})
        if revision not in ("", "main", SHA):
            return self.send(404, b"", {"X-Error-Code": "RevisionNotFound"})
        files = self.models[repo]
        if is_api and what == "tree":
            listed = [{"type": "file", "path": f, "size": len(d), "oid": "b" * 40} for f, d in files.items()]
            return self.send(200, json.dumps(listed).encode(), {"Content-Type": "application/json"})
        if is_api:
            info = {"id": repo, "sha": SHA, "siblings": [{"rfilename": file} for file in files]}
            return self.send(200, json.dumps(info).encode(), {"Content-Type": "application/json"})
        file = "/".join(part for part in rest if part)
        if file not in files:
            return self.send(404, b"", {"X-Error-Code": "EntryNotFound"})
        if with_body:
            self.fetched.append(f"{repo}/{file}")
        return self.send(200, files[file], {"ETag": f'"{file}"', "X-Repo-Commit": SHA}, with_body)

    def send(self, code: int, body: bytes, headers: dict[str, str], with_body: bool = True) -> None:
        self.send_response(code)
        for key, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(key, value)
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """The test's output is no place for it."""


_ASK = """
import json, sys
from pellucid.errors import CheckpointError
from pellucid.checkpoints.hub import fetch, fetch_config
for name in sys.argv[2:]:
    try:
        print(json.dumps(str((fetch_config if sys.argv[1] == "config" else fetch)(name))))
    except CheckpointError as error:
        print(json.dumps([error.problem, error.remedy]))
"""


def ask(home: Path, *names: str, endpoint: str = "", offline: bool = False, what: str = "model") -> list[Any]:
    """What ``fetch`` gives for each name: a path, or problem and remedy; in a process with a cache of its own."""
    settings = {
        **{"HF_HOME": str(home), "HF_HUB_OFFLINE": str(int(offline)), "HF_HUB_DISABLE_XET": "1"},
        **({"HF_ENDPOINT": endpoint} if endpoint else {}),
        **{"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1", "HF_TOKEN": ""},
    }
    done = subprocess.run(
        [sys.executable, "-c", _ASK, what, *names],
        check=True,
        capture_output=True,
        text=True,
        env=os.environ | settings,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("model") / "model"
    to_hf(pellucid.build(modern(50, 32, 2, 16, 8)), folder)
    whole = {path.name: path.read_bytes() for path in folder.iterdir()}
    unwanted = {"pytorch_model.bin": b"x", "consolidated.safetensors": b"x", "onnx/model.onnx": b"x", "README.md": b"x"}
    Hub.models = {
        "org/whole": whole | unwanted,
        "org/ggufs": {"README.md": b"x", "small.Q4_0.gguf": b"GGUF", "large.Q8_0.gguf": b"GGUF"},
        "org/pickled": {"config.json": whole["config.json"], "pytorch_model.bin": b"x"},
        "org/empty": {"README.md": b"x"},
        "org/sentences": {
            "modules.json": b'[{"type": "x.Transformer", "path": "0_BERT"}]',
            "1_Pooling/config.json": b"{}",
            "config_sentence_transformers.json": b"{}",
            "0_BERT/sentence_bert_config.json": b"{}",
            "0_BERT/pytorch_model.bin": b"x",
            **{f"0_BERT/{name}": whole[name] for name in ("config.json", "model.safetensors")},
        },
    }
    Hub.refused = {"org/gated": (403, "GatedRepo"), "org/private": (401, "RepoNotFound"), "org/broken": (418, "")}
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_model_is_fetched_once_and_without_what_is_not_read(endpoint: str, tmp_path: Path) -> None:
    """Config, safetensors and tokenizer files, no pickle and no second copy of the weights; then from the cache."""
    Hub.fetched.clear()
    (folder,) = ask(tmp_path, "org/whole", endpoint=endpoint)
    wanted = {"config.json", "generation_config.json", "model.safetensors"}
    assert {path.name for path in Path(folder).iterdir()} == wanted
    assert sorted(Hub.fetched) == sorted(f"org/whole/{file}" for file in wanted)
    assert pellucid.load(folder).spec == modern(50, 32, 2, 16, 8)
    assert ask(tmp_path, "org/whole", "org/whole@main", endpoint=endpoint) == [folder, folder]
    assert ask(tmp_path, "org/whole", offline=True) == [folder]
    assert len(Hub.fetched) == len(wanted)


def test_encoder_in_a_folder_of_its_own_is_fetched_with_what_is_said_of_it(endpoint: str, tmp_path: Path) -> None:
    (folder,) = ask(tmp_path, "org/sentences", endpoint=endpoint)
    found = {str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file()}
    assert found == Hub.models["org/sentences"].keys() - {"0_BERT/pytorch_model.bin"}


def test_a_config_comes_without_the_weights(endpoint: str, tmp_path: Path) -> None:
    Hub.fetched.clear()
    (file,) = ask(tmp_path, "org/whole", endpoint=endpoint, what="config")
    assert json.loads(Path(file).read_text())["model_type"] == "qwen3"
    assert Hub.fetched == ["org/whole/config.json"]


def test_one_file_of_many_is_fetched(endpoint: str, tmp_path: Path) -> None:
    Hub.fetched.clear()
    (file,) = ask(tmp_path, "org/ggufs:small.Q4_0.gguf", endpoint=endpoint)
    assert Path(file).read_bytes() == b"GGUF" and Hub.fetched == ["org/ggufs/small.Q4_0.gguf"]


REFUSED = {
    "org/nosuch": ("there is no folder org/nosuch here, and no such model on the hub", "hf auth login"),
    "org/private": ("no such model on the hub that you may see", "hf auth login"),
    "org/gated": ("org/gated is gated", "ask for access at https://huggingface.co/org/gated"),
    "org/whole@v9": ("org/whole has no such revision", "tree/main"),
    "org/ggufs:other.gguf": ("org/ggufs has no such file", "tree/main"),
    "org/ggufs": (
        "org/ggufs has no model.safetensors, but large.Q8_0.gguf, small.Q4_0.gguf",
        "name one: org/ggufs:large.Q8_0.gguf",
    ),
    "org/pickled": ("pytorch_model.bin, a pickle, which can run code", "safetensors version"),
    "org/empty": ("org/empty has no model.safetensors", "it has: README.md"),
    "org/broken": ("the hub cannot be asked", "check the name and the network"),
}


def test_unreachable_model_is_refused_with_a_remedy(endpoint: str, tmp_path: Path) -> None:
    answers = dict(zip(REFUSED, ask(tmp_path, *REFUSED, endpoint=endpoint), strict=True))
    for name, (problem, remedy) in REFUSED.items():
        assert isinstance(answers[name], list) and problem in answers[name][0] and remedy in answers[name][1], name


def test_offline_only_the_cache_is_asked(tmp_path: Path) -> None:
    ((problem, remedy),) = ask(tmp_path, "org/whole", offline=True)
    assert "no folder org/whole here" in problem and "cache" in problem and "HF_HUB_OFFLINE" in remedy


def test_without_a_network_a_mistyped_path_is_refused_at_once(endpoint: str, tmp_path: Path) -> None:
    """The client alone would ask again and again for half a minute; what the cache has is found all the same."""
    (folder,) = ask(tmp_path, "org/whole", endpoint=endpoint)
    start = time.perf_counter()
    found, (problem, _) = ask(tmp_path, "org/whole", "rums/book", endpoint="http://no.such.host.invalid")
    assert time.perf_counter() - start < 20
    assert found == folder and "there is no folder rums/book here" in problem and "cannot be asked" in problem


# --- what is a name --------------------------------------------------------------------------------------------------


def test_names_of_hub_models_are_recognised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("org/name", "Org-1/name.v2", "org/name@abc123", "org/name:x.Q4_0.gguf", "hf://org/name"):
        assert is_name(name), name
    for name in ("name", "./org/name", "/org/name", "../name", "org/name/more", "org/name/", "org/na me", "~/name", ""):
        assert not is_name(name), name


def test_a_path_wins_over_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder ORG/NAME is that folder; where ORG is a folder here, a misspelt path is not asked of the hub."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert locate("org/name") == Path("org/name")
    with pytest.raises(CheckpointError, match=r"org/nane does not exist\n  did you mean 'org/name'"):
        locate("org/nane")
    assert is_name("hf://org/nane")
