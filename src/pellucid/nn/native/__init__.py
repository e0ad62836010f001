"""Kernels in C++, for a token's path on a processor: built once where a compiler is, and never needed."""
