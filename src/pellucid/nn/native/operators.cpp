// The kernels as operators of torch, spread over its threads, in the form that the processor knows.
//
// ``step`` runs a program: the instructions of all blocks for one new token in each of some rows (nn/native/step.py writes
// it). Numbers between two products are float32, in a workspace of buffers (rows, width), one behind the other.
#include <ATen/Parallel.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros.h>
#include <torch/library.h>

#include <cmath>
#include <string>
#include <vector>

#include "kernels.h"

namespace pellucid {

using at::Tensor;
using at::TensorList;

static std::vector<const Kernels*> forms() {  // those that run here, the best one first
  std::vector<const Kernels*> known;
#if defined(__x86_64__)
  bool two = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (two && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
    known.push_back(&avx512::kernels);
  if (two) known.push_back(&avx2::kernels);
#endif
  known.push_back(&portable::kernels);
  return known;
}

static const Kernels* chosen = forms()[0];

static std::vector<std::string> instructions() {
  std::vector<std::string> names;
  for (auto form : forms()) names.push_back(form->name);
  return names;
}

static void use(const std::string& name) {
  for (auto form : forms())
    if (name == form->name) return void(chosen = form);
  TORCH_CHECK(false, "this processor has no ", name);
}

static Kind kind_of(const std::string& name) {
  for (int kind = Q8_0; kind < N_KINDS; kind++)
    if (name == BLOCKS[kind].name) return (Kind)kind;
  TORCH_CHECK(false, "no kernel multiplies by ", name);
}

static Numbers numbers(const Tensor& t) { return {t.const_data_ptr(), t.scalar_type() == at::kBFloat16}; }

#include "products.inl"

// --- one token through all blocks -----------------------------------------------------------------------------------

enum Instruction { NORM, PRODUCT, ROTATE, ATTEND, ACTIVATE, JOIN };
constexpr long FIELDS = 12;

struct Line {  // an instruction and its fields
  const int64_t* at;
  long operator[](int i) const { return at[i]; }
  float real(int i) const { double x; memcpy(&x, at + i, 8); return (float)x; }
  Numbers numbers(int i) const { return {(const void*)at[i], at[i + 1] != 0}; }
};

// Of each layer: its store of keys and values (rows, kv_heads, slots, head_dim), in which slot each row's new token goes
// (rows,), and how many slots are read. Of each view: whether a key is seen, (rows or 1, 1, 1, keys) or nothing where all
// are, and cos and sin of the rotation, (rows or 1, 1, 1, half).
struct Step {
  long rows;
  float* workspace;
  TensorList keys, values, places;
  at::IntArrayRef counts;
  TensorList seen, cos, sin;
  float* buffer(long column) const { return workspace + rows * column; }
};

static void attend(const Step& s, const Line& line) {
  long layer = line[5], heads = line[6], kv_heads = line[7], head_dim = line[8], group = heads / kv_heads;
  const Tensor &k = s.keys[layer], &v = s.values[layer], &seen = s.seen[line[11]];
  long slots = k.size(2), n = s.counts[layer], size = k.element_size();
  bool narrow = k.scalar_type() == at::kBFloat16;
  TORCH_CHECK(n <= slots && (seen.numel() == 0 || seen.size(-1) == n), "keys and what is seen of them differ");
  const bool* all_seen = seen.numel() ? seen.const_data_ptr<bool>() : nullptr;
  const int64_t* places = s.places[layer].const_data_ptr<int64_t>();
  for (long row = 0; row < s.rows; row++) TORCH_CHECK(places[row] >= 0 && places[row] < slots, "no such slot");
  char *kept_k = (char*)k.mutable_data_ptr(), *kept_v = (char*)v.mutable_data_ptr();
  at::parallel_for(0, s.rows * kv_heads, n * group * head_dim > 16384 ? 1 : kv_heads, [&](long begin, long end) {
    std::vector<float> scores(n);
    for (long i = begin; i < end; i++) {
      long row = i / kv_heads, head = i % kv_heads, first = i * slots * head_dim;
      for (int which = 0; which < 2; which++) {  // what is new is kept
        const float* made = s.buffer(line[2 + which]) + i * head_dim;
        char* to = (which ? kept_v : kept_k) + (first + places[row] * head_dim) * size;
        if (narrow)
          for (long j = 0; j < head_dim; j++) ((at::BFloat16*)to)[j] = made[j];
        else
          memcpy(to, made, head_dim * sizeof(float));
      }
      long here = row * heads * head_dim + head * group * head_dim;
      chosen->attend({s.buffer(line[1]) + here, kept_k + first * size, kept_v + first * size, narrow,
                      all_seen ? all_seen + (seen.size(0) > 1 ? row * n : 0) : nullptr, n, group, head_dim,
                      line.real(9), line.real(10), scores.data(), s.buffer(line[4]) + here});
    }
  });
}

static void between(const Step& s, const Line& line) {
  for (long row = 0; row < s.rows; row++) {
    if (line[0] == NORM) {
      float *x = s.buffer(line[1]) + row * line[3] * line[4], *y = s.buffer(line[2]) + row * line[3] * line[4];
      for (long i = 0; i < line[3]; i++, x += line[4], y += line[4])
        chosen->norm(x, y, line[4], line.numbers(5), line.numbers(7), line.real(9), line.real(10), line[11]);
    } else if (line[0] == ROTATE) {
      const Tensor &cos = s.cos[line[5]], &sin = s.sin[line[5]];
      long from = cos.size(0) > 1 ? row * line[4] : 0;
      for (long i = 0; i < line[2]; i++)
        chosen->rotate(s.buffer(line[1]) + (row * line[2] + i) * line[3], cos.const_data_ptr<float>() + from,
                       sin.const_data_ptr<float>() + from, line[4]);
    } else if (line[0] == ACTIVATE) {
      float* up = line[2] < 0 ? nullptr : s.buffer(line[2]) + row * line[3];
      chosen->activate(s.buffer(line[1]) + row * line[3], up, line[3], line[4]);
    } else {
      long n = line[3];
      chosen->join(s.buffer(line[1]) + row * n, s.buffer(line[2]) + row * n, n, line.real(4), line.real(5),
                   line.numbers(6));
    }
  }
}

static void step(const Tensor& x, const Tensor& program, int64_t width, TensorList keys, TensorList values,
                 TensorList places, at::IntArrayRef counts, TensorList seen, TensorList cos, TensorList sin) {
  std::vector<float> workspace(x.size(0) * width);
  Step s{x.size(0), workspace.data(), keys, values, places, counts, seen, cos, sin};
  memcpy(s.workspace, x.const_data_ptr<float>(), x.numel() * sizeof(float));
  const int64_t* lines = program.const_data_ptr<int64_t>();
  std::vector<Product> products;
  for (long i = 0, n = program.size(0); i < n; i++) {
    Line line{lines + i * FIELDS};
    if (line[0] == PRODUCT) {
      TORCH_CHECK(line[9] == 0 || chosen->packed, "tiles were made for another set of instructions");
      products.push_back({{(const void*)line[3], (Kind)line[4], line[5], line[6]}, line.numbers(7), s.buffer(line[2]),
                          line[9] != 0});
      const int64_t* next = lines + (i + 1) * FIELDS;
      if (i + 1 < n && next[0] == PRODUCT && next[1] == line[1] && next[9] == line[9]) continue;  // they read the same, and run together
      multiply(products, s.buffer(line[1]), s.rows);
      products.clear();
    } else if (line[0] == ATTEND) {
      attend(s, line);
    } else {
      between(s, line);
    }
  }
  memcpy(x.mutable_data_ptr<float>(), s.workspace, x.numel() * sizeof(float));
}

TORCH_LIBRARY(pellucid_native, m) {
  m.def("linear(Tensor x, Tensor blocks, Tensor? bias, str kind) -> Tensor");
  m.def("open(Tensor blocks, str kind) -> Tensor");
  m.def("pack(Tensor blocks, str kind) -> Tensor");
  m.def("packed_linear(Tensor x, Tensor tiles, Tensor? bias, int d_out, str kind) -> Tensor");
  m.def("packs(str kind) -> bool", packs);
  m.def("step(Tensor(a!) x, Tensor program, int width, Tensor[] keys, Tensor[] values, Tensor[] places, int[] counts, "
        "Tensor[] seen, Tensor[] cos, Tensor[] sin) -> ()");
  m.def("instructions() -> str[]", instructions);
  m.def("use(str name) -> ()", [](std::string_view name) { use(std::string(name)); });
}

TORCH_LIBRARY_IMPL(pellucid_native, CPU, m) {
  m.impl("linear", linear);
  m.impl("open", open);
  m.impl("step", step);
  m.impl("pack", pack);
  m.impl("packed_linear", packed_linear);
}

}  // namespace pellucid
