"""How long does it take to open a published model, and how much memory at its peak, beside ``transformers``?

Each load has a process of its own, and they take turns; what is imported is imported before the clock starts. Memory is
the peak of what the process holds, pages of files counted, above what it held before; "once used", after 16 ids as
well, since weights may be left in a mapped file until they are read. How far the two are then apart is printed: fast
and wrong would be no use.

    python benchmarks/loading.py SmolLM2-135M-Instruct.Q4_1.gguf all-MiniLM-L6-v2/ --rounds 3
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from _harness import Spread, processor, save_json

LOADERS = ("pellucid", "transformers")
TARGET, MOST_MEMORY = 5.0, 1.2  # times as fast, on a GGUF; times the model's own size
LENGTH = 16  # ids that both read
IMPORTED = (  # before the clock starts, by either
    *("gguf.quants", "transformers.models.auto", "transformers.models.auto.modeling_auto"),
    *("transformers.models.llama.modeling_llama", "transformers.models.bert.modeling_bert"),
    *("pellucid.api", "pellucid.families.bert", "pellucid.checkpoints.gguf.read", "pellucid.families.llama"),
)


def peak() -> int:
    """The most bytes that this process has held so far."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):  # kilobytes, but on macOS bytes; never below what the parent held
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


# --- one load, in a process of its own -------------------------------------------------------------------------------


def load_ours(path: Path) -> tuple[Any, Callable[[], Any]]:
    """The model, and a function that loads its tokenizer."""
    import pellucid
    from pellucid.checkpoints.load import open_checkpoint
    from pellucid.text.tokenizer_files import load_tokenizer
    from pellucid.text.tokenizer_gguf import from_metadata

    def tokenizer() -> Any:
        if path.is_dir():
            return load_tokenizer(path)
        source: Any = open_checkpoint(path).source
        return from_metadata(source.metadata, str(path))

    return pellucid.load(path, tokenizer=False), tokenizer


def load_theirs(path: Path) -> tuple[Any, Callable[[], Any]]:
    """The same, by the peer: of the class that the config names, in float32."""
    import torch
    import transformers
    from transformers.utils import logging

    logging.disable_progress_bar()
    folder, file = (path, {}) if path.is_dir() else (path.parent, {"gguf_file": path.name})
    name = "AutoModelForCausalLM"
    if path.is_dir():
        name = json.loads((path / "config.json").read_text(encoding="utf-8"))["architectures"][0]

    def tokenizer() -> Any:
        return transformers.AutoTokenizer.from_pretrained(folder, **file)

    return getattr(transformers, name).from_pretrained(folder, dtype=torch.float32, **file).eval(), tokenizer


def run_one(loader: str, path: Path) -> dict[str, Any]:
    """Import, then load and time; what the model makes of some ids."""
    import torch

    for module in IMPORTED:
        import_module(module)
    before, start = peak(), time.perf_counter()
    model, tokenizer = load_ours(path) if loader == "pellucid" else load_theirs(path)
    seconds, held = time.perf_counter() - start, peak() - before
    start = time.perf_counter()
    tokenizer()
    with_tokenizer = seconds + time.perf_counter() - start
    size = sum(weight.nbytes for weight in model.parameters())
    with torch.no_grad():
        ids = torch.arange(100, 100 + LENGTH)[None]
        out = model.states(ids) if hasattr(model, "states") and not hasattr(model, "new_cache") else model(ids)
    used = peak() - before
    if not isinstance(out, torch.Tensor):
        out = out.logits if "logits" in out else out.last_hidden_state
    return {
        "seconds": seconds,
        "with_tokenizer": with_tokenizer,
        "peak": held,
        "used": max(used, held),
        "size": size,
        "numbers": out[0, -1, :64].tolist(),
    }


# --- all of them -----------------------------------------------------------------------------------------------------


def measure(loader: str, path: Path) -> dict[str, Any]:
    """``run_one`` in a new process. Raises CalledProcessError, its message printed, where it fails."""
    command = [sys.executable, __file__, str(path), "--one", loader]
    settings = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=os.environ | settings)
    return json.loads(done.stdout.splitlines()[-1])


def compare(path: Path, rounds: int) -> dict[str, Any]:
    """Rounds of both loaders, in turns; prints a table and gives what it says."""
    found: dict[str, list[dict[str, Any]]] = {loader: [] for loader in LOADERS}
    for _ in range(rounds):
        for loader in LOADERS:
            found[loader].append(measure(loader, path))
    ours, theirs = found["pellucid"], found["transformers"]
    size = ours[0]["size"]
    print(f"{path.name}: {size / 2**20:,.0f} MiB as float32\n")
    print(f"  {'':13} {'seconds':>22} {'with its tokenizer':>22} {'peak MiB':>9} {'÷ model':>8} {'once used':>10}")
    for loader, turns in found.items():
        seconds, whole = (Spread.of([turn[key] for turn in turns]) for key in ("seconds", "with_tokenizer"))
        held, used = (max(turn[key] for turn in turns) for key in ("peak", "used"))
        print(f"  {loader:13} {seconds.show():>22} {whole.show():>22}", end="")
        print(f" {held / 2**20:9,.0f} {held / size:8.2f} {used / 2**20:10,.0f}")
    ratios = {
        key: Spread.of([b[key] / a[key] for a, b in zip(ours, theirs, strict=True)])
        for key in ("seconds", "with_tokenizer", "peak")
    }
    memory = max(turn["peak"] for turn in ours) / size
    apart = max(abs(a - b) for a, b in zip(ours[0]["numbers"], theirs[0]["numbers"], strict=True))
    speed = "" if path.is_dir() else f" (≥ {TARGET:.0f}: {'met' if ratios['seconds'].median >= TARGET else 'MISSED'})"
    print(f"\n  transformers ÷ pellucid: seconds {ratios['seconds'].show()}{speed}, ", end="")
    print(f"with tokenizer {ratios['with_tokenizer'].show()}, peak {ratios['peak'].show()}")
    print(
        f"  peak ÷ model ≤ {MOST_MEMORY}: {'met' if memory <= MOST_MEMORY else 'MISSED'}; outputs apart: {apart:.1e}\n"
    )
    return {
        "file": path.name,
        "size": size,
        "turns": found,
        "ratios": ratios,
        "peak_over_model": memory,
        "apart": apart,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, nargs="+", help="a .gguf file, or a folder with config.json")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every measurement to FILE")
    parser.add_argument("--one", choices=LOADERS, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.one is not None:
        print(json.dumps(run_one(chosen.one, chosen.models[0])))
        return
    print(f"{processor()}, Python {sys.version.split()[0]}; {chosen.rounds} rounds\n")
    records = [compare(path, chosen.rounds) for path in chosen.models]
    if chosen.json is not None:
        save_json(chosen.json, {"machine": processor(), "models": records})


if __name__ == "__main__":
    main()
