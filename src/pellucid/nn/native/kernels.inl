// The kernels, written once on the sixteen lanes of lanes.h. Included by one file for each set of instructions, which
// defines LANES, FORM (a namespace) and NAME. No product is fused with a sum unless it says fma: an opened number is
// rounded as often as torch rounds it.

#define INLINE inline __attribute__((always_inline))

namespace pellucid {
namespace FORM {

INLINE float from_bits(uint32_t bits) { float r; memcpy(&r, &bits, 4); return r; }
INLINE uint32_t to_bits(float x) { uint32_t r; memcpy(&r, &x, 4); return r; }
INLINE float number(const float* p) { return *p; }
INLINE float number(const uint16_t* p) { return from_bits((uint32_t)*p << 16); }
INLINE float at(Numbers n, long i) { return n.narrow ? number((const uint16_t*)n.data + i) : ((const float*)n.data)[i]; }

#include "lanes.h"
namespace formats {
#include "formats.inl"
}

// --- products ------------------------------------------------------------------------------------------------------

constexpr long AHEAD = 2048;  // bytes: memory is asked for what comes next while this is multiplied, also across pages

// Sixteen groups of neighbours at a time, or what is left of a row: their scales first, then their codes.
template <class F, int M>
INLINE void quantised_row(const uint8_t* w, long d_in, const float* x, const float* sums, float* y) {
  const Table table = F::values();
  V total[M], shift[M];
  for (int r = 0; r < M; r++) total[r] = shift[r] = zero();
  float rest[M] = {};
  constexpr long AT_ONCE = 16 * F::GROUP / F::NUMBERS;  // blocks
  for (long j = 0, left = d_in / F::NUMBERS; left > 0; left -= AT_ONCE) {
    float d[16], m[16];
    long some = left < AT_ONCE ? left : AT_ONCE;
    for (long ahead = 0; ahead < some * F::BYTES; ahead += 64) __builtin_prefetch(w + AHEAD + ahead);
    F::scales(w, some, d, m);
    if (F::OFFSET)
      for (int r = 0; r < M; r++) {
        const float* here = sums + (r * d_in + j) / 32;
        if (some == AT_ONCE)
          shift[r] = fma(load(m), load(here), shift[r]);
        else
          for (long i = 0; i < some * F::NUMBERS / 32; i++) rest[r] += m[i] * here[i];
      }
    for (long n = 0; n < some; n++, w += F::BYTES, j += F::NUMBERS) {
      const float* scale = d + n * (F::NUMBERS / F::GROUP);
      F::codes(w, table, [&](int i, V a, V b) __attribute__((always_inline)) {
        for (int r = 0; r < M; r++) {
          const float* here = x + r * d_in + j + 32 * i;
          if (F::GROUP == 32) {
            total[r] = fma(fma(b, load(here + 16), mul(a, load(here))), all(scale[i]), total[r]);
          } else {
            total[r] = fma(mul(a, load(here)), all(scale[2 * i]), total[r]);
            total[r] = fma(mul(b, load(here + 16)), all(scale[2 * i + 1]), total[r]);
          }
        }
      });
    }
  }
  for (int r = 0; r < M; r++) y[r] = sum(add(total[r], shift[r])) + rest[r];
}

template <class T, int M> INLINE void plain_row(const T* w, long d_in, const float* x, float* y) {
  V one[M], two[M];
  for (int r = 0; r < M; r++) one[r] = two[r] = zero();
  long j = 0;
  for (; j + 32 <= d_in; j += 32) {
    if (M == 1) __builtin_prefetch((const char*)(w + j) + AHEAD), __builtin_prefetch((const char*)(w + j) + AHEAD + 64);
    V a = load(w + j), b = load(w + j + 16);
    for (int r = 0; r < M; r++) {
      one[r] = fma(a, load(x + r * d_in + j), one[r]);
      two[r] = fma(b, load(x + r * d_in + j + 16), two[r]);
    }
  }
  for (int r = 0; r < M; r++) y[r] = sum(add(one[r], two[r]));
  for (; j < d_in; j++)
    for (int r = 0; r < M; r++) y[r] += number(w + j) * x[r * d_in + j];
}

template <class F, int M> struct Row {
  static INLINE void run(const Matrix& w, long i, const float* x, const float* sums, float* y) {
    quantised_row<F, M>((const uint8_t*)w.data + i * (w.d_in / F::NUMBERS * F::BYTES), w.d_in, x, sums, y);
  }
};
template <int M> struct Row<float, M> {
  static INLINE void run(const Matrix& w, long i, const float* x, const float*, float* y) {
    plain_row<float, M>((const float*)w.data + i * w.d_in, w.d_in, x, y);
  }
};
template <int M> struct Row<uint16_t, M> {
  static INLINE void run(const Matrix& w, long i, const float* x, const float*, float* y) {
    plain_row<uint16_t, M>((const uint16_t*)w.data + i * w.d_in, w.d_in, x, y);
  }
};

template <class F, int M>
void some_rows(const Matrix& w, long begin, long end, const float* x, const float* sums, Numbers bias, float* y,
               long y_stride) {
  for (long i = begin; i < end; i++) {
    float made[M];
    Row<F, M>::run(w, i, x, sums, made);
    float b = bias.data ? at(bias, i) : 0.0f;
    for (int r = 0; r < M; r++) y[r * y_stride + i] = made[r] + b;
  }
}

constexpr int MANY = LANES == 1 ? 1 : 4;  // rows of x that share the opened codes: as many sums as there are registers

template <class F>
void all_rows(const Matrix& w, long begin, long end, const float* x, long m, const float* sums, Numbers bias, float* y,
              long y_stride) {
  for (long to; begin < end; begin = to) {  // few rows of the matrix at a time, which stay near for the next rows of x
    to = m == 1 || begin + 16 > end ? end : begin + 16;
    for (long r = 0, some; r < m; r += some) {
      some = m - r >= MANY ? MANY : 1;
      auto run = some == MANY ? some_rows<F, MANY> : some_rows<F, 1>;
      run(w, begin, to, x + r * w.d_in, sums ? sums + r * (w.d_in / 32) : nullptr, bias, y + r * y_stride, y_stride);
    }
  }
}

void product(const Matrix& w, long begin, long end, const float* x, long m, const float* sums, Numbers bias, float* y,
             long y_stride) {
  switch (w.kind) {
#define CASE(kind, F) \
  case kind: return all_rows<F>(w, begin, end, x, m, sums, bias, y, y_stride);
    CASE(FLOAT32, float)
    CASE(BFLOAT16, uint16_t)
#define EACH_FORMAT(CASE)                                                                                          \
  CASE(Q8_0, formats::Q8_0) CASE(Q4_0, formats::Q4_0) CASE(Q4_1, formats::Q4_1) CASE(Q5_0, formats::Q5_0)          \
  CASE(Q5_1, formats::Q5_1) CASE(Q4_K, formats::Q4_K) CASE(Q5_K, formats::Q5_K) CASE(Q6_K, formats::Q6_K)          \
  CASE(IQ4_NL, formats::IQ4_NL) CASE(IQ4_XS, formats::IQ4_XS)
    EACH_FORMAT(CASE)
#undef CASE
    default: return;
  }
}

void sums(const float* x, long n, float* out) {
  for (long j = 0; j < n; j += 32) out[j / 32] = sum(add(load(x + j), load(x + j + 16)));
}

template <class F> void open_blocks(const uint8_t* w, long n_blocks, float* out) {
  const Table table = F::values();
  for (long n = 0; n < n_blocks; n++, w += F::BYTES, out += F::NUMBERS) {
    float d[16], m[16];
    F::scales(w, 1, d, m);
    F::codes(w, table, [&](int i, V a, V b) __attribute__((always_inline)) {
      constexpr int per = 32 / F::GROUP;
      a = mul(a, all(d[per * i])), b = mul(b, all(d[per * i + per - 1]));
      if (F::OFFSET) a = add(a, all(m[i])), b = add(b, all(m[i]));
      store(out + 32 * i, a);
      store(out + 32 * i + 16, b);
    });
  }
}

void open(Kind kind, const uint8_t* blocks, long n_blocks, float* out) {
  switch (kind) {
#define CASE(kind, F) \
  case kind: return open_blocks<F>(blocks, n_blocks, out);
    EACH_FORMAT(CASE)
#undef CASE
    default: return;
  }
}

// --- what stands between products ----------------------------------------------------------------------------------

template <class T> INLINE float dot(const float* x, const T* w, long n) {
  float y;
  plain_row<T, 1>(w, n, x, &y);
  return y;
}

template <class T> INLINE void add_scaled(float* y, const T* x, float s, long n) {
  long i = 0;
  for (; i + 16 <= n; i += 16) store(y + i, fma(all(s), load(x + i), load(y + i)));
  for (; i < n; i++) y[i] += s * number(x + i);
}

void norm(const float* x, float* y, long n, Numbers weight, Numbers bias, float eps, float offset, bool centred) {
  float mean = 0.0f, squares = 0.0f;
  if (centred) {
    for (long i = 0; i < n; i++) mean += x[i];
    mean /= (float)n;
    for (long i = 0; i < n; i++) squares += (x[i] - mean) * (x[i] - mean);
  } else {
    squares = dot(x, x, n);
  }
  float factor = 1.0f / sqrtf(squares / (float)n + eps);
  for (long i = 0; i < n; i++) {
    float made = (x[i] - mean) * factor * (at(weight, i) + offset);
    y[i] = bias.data ? made + at(bias, i) : made;
  }
}

void rotate(float* x, const float* cos, const float* sin, long half) {
  for (long i = 0; i < half; i++) {
    float a = x[i], b = x[i + half];
    x[i] = a * cos[i] - b * sin[i];
    x[i + half] = b * cos[i] + a * sin[i];
  }
}

void activate(float* gate, const float* up, long n, int activation) {  // numbered as in step.py
  for (long i = 0; i < n; i++) {
    float x = gate[i], y = x;
    if (activation == 0) y = x > 0.0f ? x : 0.0f;
    if (activation == 1) y = x > 0.0f ? x * x : 0.0f;
    if (activation == 2) y = 0.5f * x * (1.0f + erff(x * 0.70710678f));
    if (activation == 3) y = 0.5f * x * (1.0f + tanhf(0.79788456f * (x + 0.044715f * x * x * x)));
    if (activation == 4) y = x / (1.0f + expf(-x));
    gate[i] = up ? y * up[i] : y;
  }
}

void join(float* x, const float* y, long n, float skip, float branch, Numbers gain) {
  for (long i = 0; i < n; i++) {
    float added = gain.data ? y[i] * at(gain, i) : y[i];
    x[i] = skip * x[i] + branch * added;
  }
}

template <class T> void attend_to(const Attention& a) {
  const T *k = (const T*)a.k, *v = (const T*)a.v;
  for (long h = 0; h < a.heads; h++) {
    const float* q = a.q + h * a.head_dim;
    float *s = a.scores, *out = a.out + h * a.head_dim, most = -INFINITY, total = 0.0f;
    for (long i = 0; i < a.n; i++) {
      s[i] = -INFINITY;
      if (a.seen && !a.seen[i]) continue;
      s[i] = dot(q, k + i * a.head_dim, a.head_dim) * a.scale;
      if (a.cap > 0.0f) s[i] = a.cap * tanhf(s[i] / a.cap);
      most = s[i] > most ? s[i] : most;
    }
    for (long i = 0; i < a.head_dim; i++) out[i] = 0.0f;
    for (long i = 0; i < a.n; i++) {
      if (a.seen && !a.seen[i]) continue;
      float p = expf(s[i] - most);
      total += p;
      add_scaled(out, v + i * a.head_dim, p, a.head_dim);
    }
    for (long i = 0; total > 0.0f && i < a.head_dim; i++) out[i] /= total;  // zeros where nobody is seen
  }
}

void attend(const Attention& a) { a.narrow ? attend_to<uint16_t>(a) : attend_to<float>(a); }

#include "packed.inl"

extern const Kernels kernels;
const Kernels kernels{NAME, product, sums, open, norm, rotate, activate, join, attend, widen, packed};

}  // namespace FORM
}  // namespace pellucid
