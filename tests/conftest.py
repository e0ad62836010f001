"""What every test stands on: shape checks on the package, hypothesis profiles, no network, few threads."""

from __future__ import annotations

import os

from drawn import examples

# The hub's client reads this on import; a test that would download something fails instead.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# What is computed must not depend on whether somebody has built the kernels here; their own tests build and use them.
os.environ.setdefault("PELLUCID_NATIVE", "0")

if os.environ.get("PELLUCID_SHAPE_CHECKS", "1") != "0":
    # Before anything imports pellucid: every signature's shapes and types are then checked at every call.
    from jaxtyping import install_import_hook

    install_import_hook("pellucid", "beartype.beartype")

import torch
from hypothesis import HealthCheck, settings

settings.register_profile(
    "local",
    deadline=None,  # the first call of a kernel is slow, and says nothing
    max_examples=examples(25),
    suppress_health_check=[HealthCheck.too_slow],  # building a model is a slow example
)
settings.register_profile("ci", settings.get_profile("local"), derandomize=True, database=None, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "local")

if "OMP_NUM_THREADS" not in os.environ:
    # The tensors of tests are small: more threads would only wait for each other, and for other pytest workers.
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    torch.set_num_threads(max(1, min(4, (os.cpu_count() or 1) // workers)))
