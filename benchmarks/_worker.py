"""One contestant in a process, and perhaps an environment, of its own: trains on request, and says how long it took.

Started by _harness.Worker with a Job as JSON. Answers, one JSON object a line: first what it is, after warming up;
then, for each ``{"seconds": s}`` that it reads, how many steps it made and in what time. With ``"follow": true`` the
number of threads follows the load, as in pellucid's trainer. Ends with its input.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from _contestants import CONTESTANTS, Contestant, Job, matrix_flops, package_version

WARM_UP = 2  # steps: the first compiles and makes the optimiser's state, the second finds the memory in place
LEAST_STEPS = 2  # in a turn, however short
BATCHES = 4  # of random ids, taken in turn
PEAK_SIZES = (1024, 2048)


def training(job: Job, contestant: Contestant) -> Callable[[], float]:
    """One step: forward, backward, clipping to norm 1, AdamW; returns its loss. A contestant may bring its own."""
    generator = torch.Generator().manual_seed(0)
    shape = (job.batch, job.context + 1)
    batches = [torch.randint(job.vocab_size, shape, generator=generator) for _ in range(BATCHES)]
    model = contestant.model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    done = 0

    def plain(ids: torch.Tensor) -> float:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype=torch.bfloat16) if job.precision == "bf16" else nullcontext():
            loss = contestant.loss(ids)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss.item()

    def step() -> float:
        nonlocal done
        ids = batches[done % BATCHES]
        done += 1
        return plain(ids) if contestant.update is None else contestant.update(optimizer, ids)

    return step


def turn(step: Callable[[], object], seconds: float, after: Callable[[float], None] | None = None) -> dict[str, float]:
    """Steps until ``seconds`` have passed, at least LEAST_STEPS; ``after`` each hears how long it took."""
    steps, start = 0, time.perf_counter()
    while steps < LEAST_STEPS or time.perf_counter() - start < seconds:
        began = time.perf_counter()
        step()
        steps += 1
        if after is not None:
            after(time.perf_counter() - began)
    return {"steps": steps, "seconds": time.perf_counter() - start}


def following(limit: int) -> Callable[[float], None]:
    """Sets the number of threads after each step, by the load."""
    from pellucid.train.threads import follower

    follow = follower(limit)

    def after(seconds: float) -> None:
        threads = torch.get_num_threads()
        if (wanted := follow.wanted(threads, seconds)) != threads:
            torch.set_num_threads(wanted)

    return after


def trainer(job: Job) -> tuple[Callable[[], object], dict[str, Any]]:
    """A contestant's step, warm, and what it is."""
    contestant = CONTESTANTS[job.contestant](job)
    step = training(job, contestant)
    start = time.perf_counter()
    losses = [step() for _ in range(WARM_UP)]
    return step, {
        "version": package_version(contestant),
        "torch": torch.__version__,
        "differs": contestant.differs,
        "parameters": sum(p.numel() for p in contestant.model.parameters()),
        "flops": matrix_flops(job, contestant),
        "first_loss": losses[0],
        "warm_up_seconds": time.perf_counter() - start,
    }


def peak(job: Job) -> tuple[Callable[[], object], dict[str, Any]]:
    """What utilisation is measured against: products of square matrices, of the size that goes fastest here."""
    dtype = torch.bfloat16 if job.precision == "bf16" else torch.float32
    best_rate, best = 0.0, PEAK_SIZES[0]
    for n in PEAK_SIZES:
        a = torch.randn(n, n).to(dtype)
        took = turn(lambda a=a: a @ a, 0.3)
        rate = took["steps"] * 2 * n**3 / took["seconds"]
        best_rate, best = max((best_rate, best), (rate, n))
    a = torch.randn(best, best).to(dtype)
    return lambda: a @ a, {"flops": 2 * best**3, "torch": torch.__version__}


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a package prints is not an answer
    job = Job(**json.loads(sys.argv[1]))
    torch.set_num_threads(job.threads)
    torch.manual_seed(0)
    step, facts = peak(job) if job.contestant == "peak" else trainer(job)
    print(json.dumps(facts), file=answers)
    for line in sys.stdin:
        asked = json.loads(line)
        took = turn(step, asked["seconds"], following(job.threads) if asked.get("follow") else None)
        torch.set_num_threads(job.threads)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        print(json.dumps(took | {"peak_bytes": memory}), file=answers)


if __name__ == "__main__":
    main()
