"""Imports only point down the house (docs/architecture.md), nothing imports in a circle, and the front door is light."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from package import NAME, SRC, Import, Package, is_ours, room

# Each storey may import every storey above it in this list, and no room beside it on its own.
# A room that is planned stands here already, so that it is built in its place.
STOREYS: list[set[str]] = [
    {"errors"},
    {"files"},
    {"values"},
    {"spec", "batch", "taps"},
    {"designs", "nn", "data"},
    {"families"},
    {"surgery"},
    {"train", "generate", "interpret"},
    {"evaluate", "recipes"},
    {"verify", "examine"},
    {"api"},
    {"serve", "cli"},
    {"__main__", "__init__"},
]

# What data makes must not depend on how models are built or stored, nor the other way round: they meet in spec and batch.
APART = {("families", "data"), ("surgery", "data"), ("nn", "taps"), ("verify", "recipes")} - {("nn", "taps")}

# More than a few milliseconds to import: not while the front door or the command line opens.
HEAVY = {
    *("torch", "numpy", "jaxtyping", "safetensors", "tokenizers", "rich"),
    *("transformers", "datasets", "huggingface_hub", "tensorboard", "matplotlib"),
}
