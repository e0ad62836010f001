// The kernels for processors with AVX2, FMA and half precision; only this code is compiled for them.
#if defined(__x86_64__)
#include <immintrin.h>

#include <cmath>

#include "kernels.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif
#define LANES 256
#define FORM avx2
#define NAME "AVX2"
#include "kernels.inl"
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
