// The kernels for processors with AVX-512 (F, BW, VL and DQ); only this code is compiled for them.
#if defined(__x86_64__)
#include <immintrin.h>

#include <cmath>

#include "kernels.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")
#endif
#define LANES 512
#define FORM avx512
#define NAME "AVX-512"
#include "kernels.inl"
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
