"""From text to batches: sources (read), split (hold out), tokenizer (learn), store (keep), packing (serve).

Import from the file that owns a name, e.g. ``from pellucid.data.tokenizer import Tokenizer``.
"""
