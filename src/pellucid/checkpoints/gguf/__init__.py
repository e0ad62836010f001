"""GGUF, the file of llama.cpp: the file itself, its names, layouts, metadata; doors are ``read`` and ``write``."""
