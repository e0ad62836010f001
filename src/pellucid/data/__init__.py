"""What a model learns from, and in which order: sources (read), split (hold out), store (keep), packing (serve).

Import from the file that owns a name, e.g. ``from pellucid.data.store import TokenStore``.
"""
