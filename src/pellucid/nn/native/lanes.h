// Sixteen floats at a time, three times over: AVX-512, AVX2, and plain C++. Included once for each, inside a namespace of
// its own (kernels.inl), with LANES naming the form; the code above these functions is the same for all three.
//
// pairs_of_halves: the first two halves of sixteen blocks. nibbles(p, table, low, high): sixteen bytes hold thirty-two codes of four bits; ``table`` says which number each is.

#if LANES == 512

struct V { __m512 v; };
struct Table { __m512 v; };
INLINE V zero() { return {_mm512_setzero_ps()}; }
INLINE V all(float s) { return {_mm512_set1_ps(s)}; }
INLINE V load(const float* p) { return {_mm512_loadu_ps(p)}; }
INLINE V load(const uint16_t* p) {  // bfloat16: the upper half of a float
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p)), 16))};
}
INLINE void store(float* p, V a) { _mm512_storeu_ps(p, a.v); }
INLINE V add(V a, V b) { return {_mm512_add_ps(a.v, b.v)}; }
INLINE V mul(V a, V b) { return {_mm512_mul_ps(a.v, b.v)}; }
INLINE V fma(V a, V b, V c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
INLINE float sum(V a) { return _mm512_reduce_add_ps(a.v); }
INLINE V widened(__m128i codes) { return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(codes))}; }
INLINE Table table_of(const int8_t* values) { return {widened(_mm_loadu_si128((const __m128i*)values)).v}; }
INLINE void nibbles(const uint8_t* p, Table table, V& low, V& high) {  // a permutation reads the lowest four bits only
  __m512i bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i*)p));
  low.v = _mm512_permutexvar_ps(bytes, table.v);
  high.v = _mm512_permutexvar_ps(_mm512_srli_epi32(bytes, 4), table.v);
}
INLINE V add_where(V a, uint32_t bits, float s) {
  return {_mm512_mask_add_ps(a.v, (__mmask16)bits, a.v, _mm512_set1_ps(s))};
}

#elif LANES == 256

struct V { __m256 a, b; };
struct Table { __m128i v; };
INLINE V zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
INLINE V all(float s) { return {_mm256_set1_ps(s), _mm256_set1_ps(s)}; }
INLINE V load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
INLINE __m256 half_of_load(const uint16_t* p) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16));
}
INLINE V load(const uint16_t* p) { return {half_of_load(p), half_of_load(p + 8)}; }
INLINE void store(float* p, V x) { _mm256_storeu_ps(p, x.a), _mm256_storeu_ps(p + 8, x.b); }
INLINE V add(V x, V y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
INLINE V mul(V x, V y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
INLINE V fma(V x, V y, V z) { return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
INLINE float sum(V x) {
  __m256 y = _mm256_add_ps(x.a, x.b);
  __m128 z = _mm_add_ps(_mm256_castps256_ps128(y), _mm256_extractf128_ps(y, 1));
  z = _mm_add_ps(z, _mm_movehl_ps(z, z));
  return _mm_cvtss_f32(_mm_add_ss(z, _mm_shuffle_ps(z, z, 1)));
}
INLINE V widened(__m128i codes) {
  return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(codes)),
          _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(codes, 8)))};
}
INLINE Table table_of(const int8_t* values) { return {_mm_loadu_si128((const __m128i*)values)}; }
INLINE void nibbles(const uint8_t* p, Table table, V& low, V& high) {
  __m128i bytes = _mm_loadu_si128((const __m128i*)p), mask = _mm_set1_epi8(15);
  low = widened(_mm_shuffle_epi8(table.v, _mm_and_si128(bytes, mask)));
  high = widened(_mm_shuffle_epi8(table.v, _mm_and_si128(_mm_srli_epi16(bytes, 4), mask)));
}
INLINE V add_where(V x, uint32_t bits, float s) {
  const __m256i each = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  __m256 some = _mm256_set1_ps(s);
  __m256i a = _mm256_and_si256(_mm256_set1_epi32((int)bits), each);
  __m256i b = _mm256_and_si256(_mm256_set1_epi32((int)(bits >> 8)), each);
  return {_mm256_add_ps(x.a, _mm256_and_ps(some, _mm256_castsi256_ps(_mm256_cmpeq_epi32(a, each)))),
          _mm256_add_ps(x.b, _mm256_and_ps(some, _mm256_castsi256_ps(_mm256_cmpeq_epi32(b, each))))};
}

#else

struct V { float v[16]; };
struct Table { float v[16]; };
#define EACH for (int i = 0; i < 16; i++)
INLINE V all(float s) { V r; EACH r.v[i] = s; return r; }
INLINE V zero() { return all(0.0f); }
INLINE V load(const float* p) { V r; EACH r.v[i] = p[i]; return r; }
INLINE V load(const uint16_t* p) { V r; EACH r.v[i] = from_bits((uint32_t)p[i] << 16); return r; }
INLINE void store(float* p, V a) { EACH p[i] = a.v[i]; }
INLINE V add(V a, V b) { EACH a.v[i] += b.v[i]; return a; }
INLINE V mul(V a, V b) { EACH a.v[i] *= b.v[i]; return a; }
INLINE V fma(V a, V b, V c) { EACH c.v[i] += a.v[i] * b.v[i]; return c; }
INLINE float sum(V a) {
  for (int half = 8; half; half /= 2)
    for (int i = 0; i < half; i++) a.v[i] += a.v[i + half];
  return a.v[0];
}
INLINE Table table_of(const int8_t* values) { Table r; EACH r.v[i] = values[i]; return r; }
INLINE void nibbles(const uint8_t* p, const Table& table, V& low, V& high) {
  EACH low.v[i] = table.v[p[i] & 15], high.v[i] = table.v[p[i] >> 4];
}
INLINE V add_where(V a, uint32_t bits, float s) { EACH a.v[i] += (float)(bits >> i & 1) * s; return a; }
#endif

#if LANES >= 256

INLINE V signed_bytes(const uint8_t* p) { return widened(_mm_loadu_si128((const __m128i*)p)); }
INLINE uint32_t bit_of_bytes(const uint8_t* p, int bit) {  // bit number ``bit`` of each of sixteen bytes
  return (uint32_t)_mm_movemask_epi8(_mm_slli_epi16(_mm_loadu_si128((const __m128i*)p), 7 - bit));
}
template <int LOW, int HIGH> INLINE void six_bits(const uint8_t* low, const uint8_t* high, V& a, V& b) {
  __m256i lower = _mm256_srli_epi16(_mm256_loadu_si256((const __m256i*)low), LOW);
  __m256i upper = _mm256_srli_epi16(_mm256_loadu_si256((const __m256i*)high), HIGH);
  lower = _mm256_and_si256(lower, _mm256_set1_epi8(15));
  upper = _mm256_slli_epi16(_mm256_and_si256(upper, _mm256_set1_epi8(3)), 4);
  __m256i codes = _mm256_sub_epi8(_mm256_or_si256(lower, upper), _mm256_set1_epi8(32));
  a = widened(_mm256_castsi256_si128(codes)), b = widened(_mm256_extracti128_si256(codes, 1));
}
INLINE float half(const uint8_t* p) {
  uint16_t bits;
  memcpy(&bits, p, 2);
  return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(bits)));
}
template <int BYTES> INLINE void pairs_of_halves(const uint8_t* b, float* d, float* m) {
  for (int i = 0; i < 16; i += 8) {
    uint32_t near[8];
    for (int k = 0; k < 8; k++) memcpy(near + k, b + (i + k) * BYTES, 4);
    __asm__ volatile("" ::: "memory");  // through memory: quicker than a gather, and than seven insertions
    __m256i pairs = _mm256_loadu_si256((const __m256i*)near);
    __m256i split = _mm256_shuffle_epi8(pairs, _mm256_setr_epi8(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15, 0, 1, 4,
                                                                5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15));
    split = _mm256_permute4x64_epi64(split, 0xd8);
    _mm256_storeu_ps(d + i, _mm256_cvtph_ps(_mm256_castsi256_si128(split)));
    _mm256_storeu_ps(m + i, _mm256_cvtph_ps(_mm256_extracti128_si256(split, 1)));
  }
}

#else

INLINE V signed_bytes(const uint8_t* p) { V r; EACH r.v[i] = (int8_t)p[i]; return r; }
INLINE uint32_t bit_of_bytes(const uint8_t* p, int bit) {
  uint32_t r = 0;
  EACH r |= (uint32_t)(p[i] >> bit & 1) << i;
  return r;
}
template <int LOW, int HIGH> INLINE void six_bits(const uint8_t* low, const uint8_t* high, V& a, V& b) {
  EACH a.v[i] = (float)((low[i] >> LOW & 15) | (high[i] >> HIGH & 3) << 4) - 32.0f;
  EACH b.v[i] = (float)((low[i + 16] >> LOW & 15) | (high[i + 16] >> HIGH & 3) << 4) - 32.0f;
}
INLINE float half(const uint8_t* p) {
  uint32_t bits = p[0] | p[1] << 8, sign = (bits & 0x8000) << 16, rest = bits & 0x7fff;
  if (rest >= 0x7c00) return from_bits(sign | 0x7f800000 | (rest & 0x3ff) << 13);  // infinite, or no number
  // the exponent is moved by a product, which also makes the smallest halves right
  return from_bits(sign | to_bits(from_bits(rest << 13) * from_bits(0x77800000)));
}
template <int BYTES> INLINE void pairs_of_halves(const uint8_t* b, float* d, float* m) {
  EACH d[i] = half(b + i * BYTES), m[i] = half(b + i * BYTES + 2);
}
#undef EACH
#endif
