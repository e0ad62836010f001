// Products as operators: matrices as files have them, and matrices packed in tiles of sixteen rows. Part of operators.cpp.

struct Product { Matrix matrix; Numbers bias; float* y; bool packed; };

static void multiply_packed(const std::vector<Product>& products, const float* x, long m) {
  long tiles = 0, groups = m * products[0].matrix.d_in / 32;
  for (auto& each : products) tiles += (each.matrix.d_out + 15) / 16;
  std::vector<int8_t> bytes(64 * groups);
  std::vector<float> scales(groups), sums(groups);
  chosen->widen(x, 32 * groups, bytes.data(), scales.data(), sums.data());
  at::parallel_for(0, tiles, std::max(1L, 8192 / products[0].matrix.d_in), [&](long begin, long end) {
    for (auto& each : products) {
      long n = (each.matrix.d_out + 15) / 16, from = std::max(begin, 0L), to = std::min(end, n);
      if (from < to)
        chosen->packed(each.matrix, from, to, bytes.data(), m, scales.data(), sums.data(), each.bias, each.y,
                       each.matrix.d_out);
      begin -= n, end -= n;
    }
  });
}

static void multiply(const std::vector<Product>& products, const float* x, long m) {  // that read the same m rows x
  if (products[0].packed) return multiply_packed(products, x, m);
  long rows = 0, d_in = products[0].matrix.d_in;
  std::vector<float> sums;
  for (auto& each : products) {
    rows += each.matrix.d_out;
    if (BLOCKS[each.matrix.kind].offset) sums.resize(m * d_in / 32);
  }
  if (!sums.empty()) chosen->sums(x, m * d_in, sums.data());
  at::parallel_for(0, rows, std::max(1L, 32768 / d_in), [&](long begin, long end) {
    for (auto& each : products) {
      long from = std::max(begin, 0L), to = std::min(end, each.matrix.d_out);
      if (from < to)
        chosen->product(each.matrix, from, to, x, m, sums.data(), each.bias, each.y, each.matrix.d_out);
      begin -= each.matrix.d_out, end -= each.matrix.d_out;
    }
  });
}

static void check(const Tensor& blocks, Kind kind) {
  TORCH_CHECK(blocks.scalar_type() == at::kByte && blocks.device().is_cpu() && blocks.is_contiguous(), "blocks are bytes");
  TORCH_CHECK(blocks.size(-1) % BLOCKS[kind].bytes == 0, "rows are whole blocks");
}

static long width(const Tensor& blocks, Kind kind) {
  return blocks.size(-1) / BLOCKS[kind].bytes * BLOCKS[kind].numbers;
}

static Tensor open(const Tensor& blocks, std::string_view name) {
  Kind kind = kind_of(std::string(name));
  check(blocks, kind);
  auto shape = blocks.sizes().vec();
  shape.back() = width(blocks, kind);
  Tensor out = at::empty(shape, blocks.options().dtype(at::kFloat));
  const uint8_t* from = blocks.const_data_ptr<uint8_t>();
  float* to = out.mutable_data_ptr<float>();
  at::parallel_for(0, out.numel() / BLOCKS[kind].numbers, 1024, [&](long begin, long end) {
    chosen->open(kind, from + begin * BLOCKS[kind].bytes, end - begin, to + begin * BLOCKS[kind].numbers);
  });
  return out;
}

static bool packs(std::string_view name) { return chosen->packed && (name == "Q4_0" || name == "Q4_1"); }

// Blocks of 16 rows behind each other, as packed.inl reads them; rows that lack are zeros: (d_out / 16 up, 16 · bytes).
static Tensor pack(const Tensor& blocks, std::string_view name) {
  Kind kind = kind_of(std::string(name));
  check(blocks, kind);
  TORCH_CHECK(packs(name) && blocks.dim() == 2, "only matrices of Q4_0 and Q4_1 are packed, for AVX-512");
  long bytes = BLOCKS[kind].bytes, row = blocks.size(1), d_out = blocks.size(0);
  Tensor out = at::zeros({(d_out + 15) / 16, 16 * row}, blocks.options());
  const uint8_t* from = blocks.const_data_ptr<uint8_t>();
  uint8_t* to = out.mutable_data_ptr<uint8_t>();
  at::parallel_for(0, out.size(0), 8, [&](long begin, long end) {
    for (long i = 16 * begin; i < std::min(16 * end, d_out); i++)
      for (long j = 0; j < row / bytes; j++) {
        const uint8_t* block = from + i * row + j * bytes;
        uint8_t* tile = to + i / 16 * 16 * row + j * 16 * bytes;
        for (long part = 0; part < bytes - 16; part += 2) memcpy(tile + 16 * part + i % 16 * 2, block + part, 2);
        for (long k = 0; k < 4; k++) memcpy(tile + 16 * (bytes - 16) + 64 * k + i % 16 * 4, block + bytes - 16 + 4 * k, 4);
      }
  });
  return out;
}

static Tensor packed_linear(const Tensor& x, const Tensor& tiles, const std::optional<Tensor>& bias, int64_t d_out,
                            std::string_view name) {
  Kind kind = kind_of(std::string(name));
  check(tiles, kind);
  long d_in = width(tiles, kind) / 16;
  TORCH_CHECK(packs(name) && tiles.dim() == 2 && tiles.size(0) == (d_out + 15) / 16, "tiles are what pack makes");
  TORCH_CHECK(x.dim() == 2 && x.size(1) == d_in && x.scalar_type() == at::kFloat, "x is float32, as wide as rows");
  TORCH_CHECK(!bias || bias->numel() == d_out, "a bias has a number for each row");
  Tensor y = at::empty({x.size(0), d_out}, x.options()), flat = x.contiguous(), b = bias ? bias->contiguous() : Tensor();
  Product product{{tiles.const_data_ptr(), kind, d_out, d_in}, bias ? numbers(b) : Numbers{nullptr, false},
                  y.mutable_data_ptr<float>(), true};
  if (x.size(0) > 0) multiply({product}, flat.const_data_ptr<float>(), x.size(0));
  return y;
}

constexpr long FEW = 16;             // rows of x that are multiplied by codes as they are read
constexpr long AT_ONCE = 1L << 18;  // for more rows, so many numbers are opened at a time, and stay in a cache

static Tensor linear(const Tensor& x, const Tensor& blocks, const std::optional<Tensor>& bias, std::string_view name) {
  Kind kind = kind_of(std::string(name));
  check(blocks, kind);
  long d_in = width(blocks, kind), d_out = blocks.size(0);
  TORCH_CHECK(blocks.dim() == 2 && x.size(-1) == d_in && x.scalar_type() == at::kFloat, "x is float32, as wide as rows");
  auto shape = x.sizes().vec();
  shape.back() = d_out;
  Tensor y = at::empty(shape, x.options()), flat = x.reshape({-1, d_in}).contiguous();
  long m = flat.size(0);
  if (m <= FEW) {
    Tensor b = bias ? bias->contiguous() : Tensor();
    Product product{{blocks.const_data_ptr(), kind, d_out, d_in}, bias ? numbers(b) : Numbers{nullptr, false},
                    y.mutable_data_ptr<float>(), false};
    if (m > 0) multiply({product}, flat.const_data_ptr<float>(), m);
    return y;
  }
  Tensor columns = y.view({m, d_out});
  long some = std::max(1L, AT_ONCE / std::max(1L, d_in));
  for (long i = 0; i < d_out; i += some) {
    long end = std::min(d_out, i + some);
    Tensor opened = open(blocks.slice(0, i, end), name);
    Tensor made = bias ? at::addmm(bias->slice(0, i, end), flat, opened.t()) : at::mm(flat, opened.t());
    columns.slice(1, i, end).copy_(made);
  }
  return y;
}
