"""Tensors in and out: our own folder, published folders, GGUF files, the hub; ``load`` and ``export`` are the doors."""
