// The blocks of nn/formats.py: scales, and codes as floats, thirty-two at a time.
//
// NUMBERS in BYTES; GROUP: how many neighbours share a scale d (and, with OFFSET, an m): number = d · code + m.
// values(): which number each code of four bits is. scales(blocks, n, d, m) writes those of n blocks, sixteen groups at
// most. codes(block, table of the values, f) calls f(i, a, b) with the codes 32 i to 32 i + 31.

inline constexpr int8_t SIGNED4[16] = {-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7};
inline constexpr int8_t UNSIGNED4[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
inline constexpr int8_t SIGNED5[16] = {-16, -15, -14, -13, -12, -11, -10, -9, -8, -7, -6, -5, -4, -3, -2, -1};
inline constexpr int8_t IQ4[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

template <int N, int B, int G, bool M, const int8_t* VALUES = UNSIGNED4> struct Layout {
  static INLINE Table values() { return table_of(VALUES); }
  static constexpr int NUMBERS = N, BYTES = B, GROUP = G;
  static constexpr bool OFFSET = M;
};

// Blocks of one group begin with d, and m where there is one.
template <int BYTES, bool OFFSET> INLINE void first_halves(const uint8_t* b, long n, float* d, float* m) {
  if (n == 16) return pairs_of_halves<BYTES>(b, d, m);
  for (long i = 0; i < n; i++, b += BYTES) {
    d[i] = half(b);
    if (OFFSET) m[i] = half(b + 2);
  }
}

struct Q8_0 : Layout<32, 34, 32, false> {
  static INLINE void scales(const uint8_t* b, long n, float* d, float* m) { first_halves<34, false>(b, n, d, m); }
  template <class F> static INLINE void codes(const uint8_t* b, Table table, F f) {
    f(0, signed_bytes(b + 2), signed_bytes(b + 18));
  }
};

template <const int8_t* VALUES, int BYTES_, int FIRST, bool OFFSET_> struct FourBits : Layout<32, BYTES_, 32, OFFSET_, VALUES> {
  static INLINE void scales(const uint8_t* b, long n, float* d, float* m) {
    first_halves<BYTES_, OFFSET_>(b, n, d, m);
  }
  template <class F> static INLINE void codes(const uint8_t* b, Table table, F f) {
    V low, high;
    nibbles(b + FIRST, table, low, high);
    f(0, low, high);
  }
};
using Q4_0 = FourBits<SIGNED4, 18, 2, false>;
using Q4_1 = FourBits<UNSIGNED4, 20, 4, true>;
using IQ4_NL = FourBits<IQ4, 18, 2, false>;

template <const int8_t* VALUES, int BYTES_, int FIRST, bool OFFSET_> struct FiveBits : Layout<32, BYTES_, 32, OFFSET_, VALUES> {
  static INLINE void scales(const uint8_t* b, long n, float* d, float* m) {
    first_halves<BYTES_, OFFSET_>(b, n, d, m);
  }
  template <class F> static INLINE void codes(const uint8_t* b, Table table, F f) {
    V low, high;
    uint32_t fifth;
    memcpy(&fifth, b + FIRST, 4);
    nibbles(b + FIRST + 4, table, low, high);
    f(0, add_where(low, fifth, 16.0f), add_where(high, fifth >> 16, 16.0f));
  }
};
using Q5_0 = FiveBits<SIGNED5, 22, 2, false>;
using Q5_1 = FiveBits<UNSIGNED4, 24, 4, true>;

// Eight scales and eight offsets of six bits each, as Q4_K and Q5_K begin: four bytes at a time.
template <int BYTES> INLINE void six_bit_scales(const uint8_t* b, long n, float* d, float* m) {
  for (; n > 0; n--, b += BYTES, d += 8, m += 8) {
    uint32_t s, o, both, codes[4];
    memcpy(&s, b + 4, 4), memcpy(&o, b + 8, 4), memcpy(&both, b + 12, 4);
    codes[0] = s & 0x3f3f3f3f, codes[1] = (both & 0x0f0f0f0f) | (s >> 2 & 0x30303030);
    codes[2] = o & 0x3f3f3f3f, codes[3] = (both >> 4 & 0x0f0f0f0f) | (o >> 2 & 0x30303030);
    float made[16];
    store(made, signed_bytes((const uint8_t*)codes));
    float scale = half(b), least = half(b + 2);
    for (int i = 0; i < 8; i++) d[i] = scale * made[i], m[i] = -(least * made[i + 8]);
  }
}

struct Q4_K : Layout<256, 144, 32, true> {
  static INLINE void scales(const uint8_t* b, long n, float* d, float* m) { six_bit_scales<BYTES>(b, n, d, m); }
  template <class F> static INLINE void codes(const uint8_t* b, Table table, F f) {
    for (int i = 0; i < 4; i++) {
      V a, c, e, g;
      nibbles(b + 16 + 32 * i, table, a, c);
      nibbles(b + 32 + 32 * i, table, e, g);
      f(2 * i, a, e);
      f(2 * i + 1, c, g);
    }
  }
};

struct Q5_K : Layout<256, 176, 32, true> {
  static INLINE void scales(const uint8_t* b, long n, float* d, float* m) { six_bit_scales<BYTES>(b, n, d, m); }
  template <class F> static INLINE void codes(const uint8_t* b, Table table, F f) {
    for (int i = 0; i < 4; i++) {
      V a, c, e, g;
      nibbles(b + 48 + 32 * i, table, a, c);
      nibbles(b + 64 + 32 * i, table, e, g);
      for (int k = 0; k < 2; k++) {
        uint32_t first = bit_of_bytes(b + 16, 2 * i + k), second = bit_of_bytes(b + 32, 2 * i + k);
        f(2 * i + k, add_where(k ? c : a, first, 16.0f), add_where(k ? g : e, second, 16.0f));
      }
    }
  }
};

struct Q6_K : Layout<256, 210, 16, false> {
  static INLINE void scales(const uint8_t* b, long, float* d, float*) {  // one block is sixteen groups
    store(d, mul(signed_bytes(b + 192), all(half(b + 208))));
  }
  template <class F> static INLINE void codes(const uint8_t* b, Table table, F f) {
    for (int i = 0; i < 8; i += 4) {  // each half of 128: 64 bytes of low bits, 32 of high ones
      const uint8_t *low = b + 16 * i, *high = b + 128 + 8 * i;
      V a, c;
      six_bits<0, 0>(low, high, a, c), f(i, a, c);
      six_bits<0, 2>(low + 32, high, a, c), f(i + 1, a, c);
      six_bits<4, 4>(low, high, a, c), f(i + 2, a, c);
      six_bits<4, 6>(low + 32, high, a, c), f(i + 3, a, c);
    }
  }
};

struct IQ4_XS : Layout<256, 136, 32, false, IQ4> {
  static INLINE void scales(const uint8_t* b, long n, float* d, float*) {
    for (; n > 0; n--, b += BYTES, d += 8)
      for (int i = 0; i < 8; i++) {
        int low = b[4 + i / 2] >> (i % 2 * 4) & 15, high = b[2 + i / 4] >> (i % 4 * 2) & 3;
        d[i] = half(b) * (float)((low | high << 4) - 32);
      }
  }
  template <class F> static INLINE void codes(const uint8_t* b, Table table, F f) {
    for (int i = 0; i < 8; i++) {
      V low, high;
      nibbles(b + 8 + 16 * i, table, low, high);
      f(i, low, high);
    }
  }
};
