"""fp32 or bf16: measured, not assumed; and the peak against which utilisation is reported.

bf16 here keeps float32 master weights and casts what matrix products read. A CPU without AMX does bf16 products more
slowly than float32 ones, a CPU with it many times faster: so a run of half a second decides, once a machine.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from pellucid.errors import PellucidError
from pellucid.files import read_json, write_json
from pellucid.train.parts import PrecisionName

DTYPES: dict[PrecisionName, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Peak:
    """Matrix-product speed of this machine, FLOP/s, by precision."""

    fp32: float
    bf16: float

    def of(self, precision: PrecisionName) -> float:
        """FLOP/s of one precision."""
        return self.fp32 if precision == "fp32" else self.bf16

    @property
    def faster(self) -> PrecisionName:
        """bf16 only where it is clearly faster: casting costs too, and a coin toss should not decide rounding."""
        return "bf16" if self.bf16 > 1.3 * self.fp32 else "fp32"


def _measure(dtype: torch.dtype, device: str, n: int = 1024, seconds: float = 0.25) -> float:
    a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
    sync: Callable[[], None] = torch.cuda.synchronize if device == "cuda" else lambda: None
    best, began = float("inf"), time.perf_counter()
    _ = a @ b
    while best == float("inf") or time.perf_counter() < began + seconds:  # once, however slow the first product was
        sync()
        start = time.perf_counter()
        _ = a @ b
        sync()
        best = min(best, time.perf_counter() - start)
    return 2 * n**3 / best


def cache_folder() -> Path:
    """Where measurements of this machine are kept: $PELLUCID_CACHE, or the user's cache folder."""
    base = os.environ.get("PELLUCID_CACHE") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "pellucid"
    )
    return Path(base)


def measure_peak(device: str = "cpu") -> Peak:
    """The machine's peak: the best of half a second now and what was ever seen here before.

    Other programs only ever slow a measurement down, so the maximum is kept, by machine, threads and torch version.
    """
    name = torch.cuda.get_device_name() if device == "cuda" else (platform.processor() or platform.machine())
    key = f"{platform.node()} · {name} · {torch.get_num_threads()} threads · torch {torch.__version__}"
    path = cache_folder() / "peak.json"
    try:
        known = read_json(path, PellucidError)
    except PellucidError:
        known = {}
    if not isinstance(known, dict):
        known = {}
    now = Peak(**{kind: _measure(dtype, device) for kind, dtype in DTYPES.items()})
    best = Peak(**known.get(key, {"fp32": 0.0, "bf16": 0.0}))
    peak = Peak(max(now.fp32, best.fp32), max(now.bf16, best.bf16))
    if peak != best:
        known[key] = asdict(peak)
        with suppress(PellucidError, OSError):  # a cache that cannot be written costs a worse number next time
            write_json(path, known)
    return peak


def autocast(precision: PrecisionName, device: str = "cpu") -> Callable[[], AbstractContextManager[object]]:
    """A factory of the context in which forwards run."""
    if precision == "fp32":
        return nullcontext
    return lambda: torch.autocast(device, dtype=torch.bfloat16)
