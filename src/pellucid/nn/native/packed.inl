// Products by sixteen rows of a matrix at once, a row in each lane: no sum across lanes, and no code becomes a float.
//
// A tile is sixteen rows by thirty-two numbers: sixteen halves d, for Q4_1 sixteen halves m, and the code bytes of each row,
// four at a time and row behind row (operators.cpp, pack). x is rounded to sixteen bits in groups of thirty-two:
// x ≈ scale (256 high + low), two bytes, so that a multiplication of bytes serves. The error of x is at most the largest
// |x| of its group / 64000.

#if LANES == 512

constexpr float SIXTEEN_BITS = 32512.0f;  // 256 · 127

// bytes: of each group 32 high and 32 low ones; scales, sums: one of each group. What is not finite makes its scale NaN.
void widen(const float* x, long n, int8_t* bytes, float* scales, float* sums) {
  for (long j = 0; j < n / 32; j++, x += 32, bytes += 64) {
    V a = load(x), b = load(x + 16);
    sums[j] = sum(add(a, b));
    float most = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(a.v), _mm512_abs_ps(b.v)));
    bool some = most > 1e-30f;
    scales[j] = (some ? most / SIXTEEN_BITS : 0.0f) + (sums[j] - sums[j]);
    V factor = all(some ? SIXTEEN_BITS / most : 0.0f);
    for (int k = 0; k < 2; k++) {
      __m512i code = _mm512_cvtps_epi32(mul(k ? b : a, factor).v);
      __m512i high = _mm512_srai_epi32(_mm512_add_epi32(code, _mm512_set1_epi32(128)), 8);
      _mm_storeu_si128((__m128i*)(bytes + 16 * k), _mm512_cvtepi32_epi8(high));
      __m512i low = _mm512_sub_epi32(code, _mm512_slli_epi32(high, 8));
      _mm_storeu_si128((__m128i*)(bytes + 32 + 16 * k), _mm512_cvtepi32_epi8(low));
    }
  }
}

INLINE __m512i four_bytes(const int8_t* p) {
  int32_t bytes;
  memcpy(&bytes, p, 4);
  return _mm512_set1_epi32(bytes);
}

template <bool OFFSET> INLINE V tiles(const uint8_t* tile, long n, const int8_t* x, const float* scales, const float* sums) {
  const __m512i nibble = _mm512_set1_epi8(15), ones = _mm512_set1_epi16(1), weight = _mm512_set1_epi16(256);
  constexpr long BYTES = OFFSET ? 320 : 288;
  V total = zero(), shift = zero();
  for (long j = 0; j < n; j++, tile += BYTES, x += 64) {
    for (long ahead = 0; ahead < BYTES; ahead += 64) __builtin_prefetch(tile + AHEAD + ahead);
    __m512i high = _mm512_setzero_si512(), low = high;  // sixteen bits: at most 8 · 2 · 15 · 128 < 32768
    for (int k = 0; k < 4; k++) {
      __m512i codes = _mm512_loadu_si512(tile + BYTES - 256 + 64 * k);
      __m512i first = _mm512_and_si512(codes, nibble), second = _mm512_and_si512(_mm512_srli_epi16(codes, 4), nibble);
      high = _mm512_add_epi16(high, _mm512_maddubs_epi16(first, four_bytes(x + 4 * k)));
      high = _mm512_add_epi16(high, _mm512_maddubs_epi16(second, four_bytes(x + 16 + 4 * k)));
      low = _mm512_add_epi16(low, _mm512_maddubs_epi16(first, four_bytes(x + 32 + 4 * k)));
      low = _mm512_add_epi16(low, _mm512_maddubs_epi16(second, four_bytes(x + 48 + 4 * k)));
    }
    __m512i both = _mm512_add_epi32(_mm512_madd_epi16(high, weight), _mm512_madd_epi16(low, ones));
    V d{_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)tile))};
    V m = OFFSET ? V{_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)(tile + 32)))} : mul(d, all(-8.0f));
    total = fma(V{_mm512_cvtepi32_ps(both)}, mul(d, all(scales[j])), total);
    shift = fma(m, all(sums[j]), shift);
  }
  return add(total, shift);
}

// For the tiles' rows begin <= 16 i < end, of m rows of x that ``widen`` has made.
void packed(const Matrix& w, long begin, long end, const int8_t* x, long m, const float* scales, const float* sums,
            Numbers bias, float* y, long y_stride) {
  long n = w.d_in / 32;
  for (long i = begin; i < end; i++) {
    const uint8_t* tile = (const uint8_t*)w.data + i * n * BLOCKS[w.kind].bytes * 16;
    long here = w.d_out - 16 * i < 16 ? w.d_out - 16 * i : 16;
    for (long r = 0; r < m; r++) {
      auto run = w.kind == Q4_1 ? tiles<true> : tiles<false>;
      float made[16];
      store(made, run(tile, n, x + r * n * 64, scales + r * n, sums + r * n));
      for (long k = 0; k < here; k++) y[r * y_stride + 16 * i + k] = made[k] + (bias.data ? at(bias, 16 * i + k) : 0.0f);
    }
  }
}

#else
constexpr decltype(Kernels::widen) widen = nullptr;
constexpr decltype(Kernels::packed) packed = nullptr;
#endif
