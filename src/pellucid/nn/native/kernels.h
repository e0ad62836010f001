// What the three forms of the kernels share: names of number formats, and a table of functions.
#pragma once
#include <cstdint>
#include <cstring>

namespace pellucid {

enum Kind { FLOAT32, BFLOAT16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K, Q6_K, IQ4_NL, IQ4_XS, N_KINDS };

struct Block { const char* name; long numbers, bytes; bool offset; };  // offset: a product needs the sums of x by 32

constexpr Block BLOCKS[N_KINDS] = {
    {"float32", 1, 4, false}, {"bfloat16", 1, 2, false}, {"Q8_0", 32, 34, false},   {"Q4_0", 32, 18, false},
    {"Q4_1", 32, 20, true},   {"Q5_0", 32, 22, false},   {"Q5_1", 32, 24, true},    {"Q4_K", 256, 144, true},
    {"Q5_K", 256, 176, true}, {"Q6_K", 256, 210, false}, {"IQ4_NL", 32, 18, false}, {"IQ4_XS", 256, 136, false},
};

struct Matrix { const void* data; Kind kind; long d_out, d_in; };

struct Numbers { const void* data; bool narrow; };  // float32, or bfloat16 where narrow; null: none

// One query of some heads that share keys. k, v: (n, head_dim), bfloat16 where narrow. seen: whether each key is; null:
// all are. cap: 0 is none. scores: room for n floats.
struct Attention {
  const float* q;
  const void *k, *v;
  bool narrow;
  const bool* seen;
  long n, heads, head_dim;
  float scale, cap;
  float *scores, *out;
};

struct Kernels {
  const char* name;
  // y[r][i] = bias[i] + sum_j w[i][j] x[r][j] for rows begin <= i < end of a matrix and m rows x. sums: those of x, by 32
  void (*product)(const Matrix&, long begin, long end, const float* x, long m, const float* sums, Numbers bias, float* y,
                  long y_stride);
  void (*sums)(const float* x, long n, float* out);                         // of 32 neighbours each
  void (*open)(Kind, const uint8_t* blocks, long n_blocks, float* out);     // the very numbers of nn/formats.py
  void (*norm)(const float* x, float* y, long n, Numbers weight, Numbers bias, float eps, float offset, bool centred);
  void (*rotate)(float* x, const float* cos, const float* sin, long half);  // of one head
  void (*activate)(float* gate, const float* up, long n, int activation);   // gate = act(gate) * up; up may be null
  void (*join)(float* x, const float* y, long n, float skip, float branch, Numbers gain);  // x = skip x + branch gain y
  void (*attend)(const Attention&);
  // packed.inl: x in sixteen bits, and products by sixteen rows at once; null where a form has none
  void (*widen)(const float* x, long n, int8_t* bytes, float* scales, float* sums);
  void (*packed)(const Matrix&, long begin, long end, const int8_t* x, long m, const float* scales, const float* sums,
                 Numbers bias, float* y, long y_stride);
};

namespace portable { extern const Kernels kernels; }
#if defined(__x86_64__)
namespace avx2 { extern const Kernels kernels; }
namespace avx512 { extern const Kernels kernels; }
#endif

}  // namespace pellucid
