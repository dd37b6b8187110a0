// What kernels cost a GPU, by their names and arguments, and what they leave where nothing is computed, so that a program goes on: any
// token that its row may have, and ones for vectors. Costs are the bytes that a kernel cannot but move, and what it multiplies where
// that is more; no kernel is as good as that. driver_on_host.cpp includes it behind the kernels.
#pragma once

#include <map>
#include <string>
#include <tuple>

#include "blocks_on_host.h"
#include "buffers.h"
#include "pace.h"

namespace costs {

// A kernel's time, and what it leaves. Both take the arguments' addresses, and keep the values.
struct Charge {
  std::function<pace::Seconds(dim3, void**)> seconds;
  std::function<std::function<void()>(dim3, void**)> leaves;
};

// Counts copies to GPUs: what was worked out of tables holds until the next.
inline uint64_t& copies_made() {
  static uint64_t made = 0;
  return made;
}

inline double number(void** a, int at) { return double(*static_cast<uint32_t*>(a[at])); }

template <typename T>
T* place(void** a, int at) {
  return *static_cast<T**>(a[at]);
}

inline pace::Seconds takes(double seconds) {
  return [seconds] { return seconds; };
}
inline pace::Seconds moves(double bytes) { return takes(pace::seconds_of(0.0, bytes)); }

// ---- products: matrix, other side, and what comes out, which is read as well where it is added to ----

struct Sides {
  double outputs, inputs, rows;
  // Of one number of the matrix, of the other side and of the product.
  double matrix_bytes, other_bytes, product_bytes;
};

inline pace::Seconds multiplies(const Sides& s) {
  const double bytes =
      s.outputs * s.inputs * s.matrix_bytes + s.rows * s.inputs * s.other_bytes + s.rows * s.outputs * s.product_bytes;
  return takes(pace::seconds_of(2.0 * s.outputs * s.inputs * s.rows, bytes));
}

// candle's kernels, as blocks::bind tells them apart.
inline pace::Seconds of_blocks(const std::string& name, dim3 grid, void** a) {
  const auto has = [&](const char* part) { return name.find(part) != std::string::npos; };
  const auto real = [&](int at) { return double(blocks::argument<int>(a, at)); };
  const auto matrix_bytes = [](int type) { return double(blocks::size_of(type).bytes) / blocks::size_of(type).numbers; };
  if (name == "mmvq_gguf_quantize_q8_1_bf16") return moves(grid.y * (real(2) * 2.0 + real(3) * 36.0 / 32.0));
  if (has("mmvq_gguf_")) {
    const double others = blocks::number_behind(name, "plain_cuda");
    return multiplies({real(4), real(3), others, matrix_bytes(blocks::type_of(name)), 36.0 / 32.0, has("_bf16_") ? 2.0 : 4.0});
  }
  if (has("quantize_mmq_q8_1"))
    return moves(real(8) * (double(blocks::argument<int64_t>(a, 3)) * 4.0 + double(blocks::argument<int64_t>(a, 7)) * 144.0 / 128.0));
  if (has("mul_mat_q_stream_k_fixup")) return takes(0.0);
  return multiplies({real(7), real(6), real(8), matrix_bytes(blocks::number_behind(name, "ggml_type")), 144.0 / 128.0, 4.0});
}

// ---- attention ----

// By the step's tables: each tile multiplies all of its queries, asked for or not, with all keys that any of them sees, and then with
// their values. Those are moved once for a row's tiles, which find them in the cache; queries and what comes out are, too.
template <int D, int QUERIES>
double attended(const Attention& a, dim3 grid) {
  typedef std::tuple<uint64_t, const uint32_t*, uint32_t, uint32_t, uint32_t, uint32_t> Key;
  static std::map<Key, double> known;
  const Key key = {copies_made(), a.tiles, grid.x, grid.y, a.window, a.causal};
  const auto found = known.find(key);
  if (found != known.end()) return found->second;
  // Layers have the same tables, so few are known at a time.
  if (known.size() >= 8) known.clear();
  double keys = 0.0, moved = 0.0, queries = 0.0;
  for (uint32_t x = 0; x < grid.x; ++x) {
    blockIdx.x = x;
    const Tile tile = tile_of<QUERIES>(a);
    const double seen = tile.key_end - tile.key_begin;
    keys += seen;
    queries += tile.queries * a.group;
    if (tile.first_query + tile.queries == tile.tokens) moved += seen;
  }
  const double bytes = 2.0 * D * sizeof(bf16) * (moved + queries);
  return known[key] = pace::seconds_of(4.0 * D * QUERIES * keys * grid.y, bytes * grid.y);
}

template <int D, int QUERIES>
Charge attention() {
  return {[](dim3 grid, void** a) -> pace::Seconds {
            const Attention arguments = *static_cast<Attention*>(a[0]);
            return [=] { return attended<D, QUERIES>(arguments, grid); };
          },
          nullptr};
}

// ---- answers ----

// Tokens that end a row, which no row is to have before its grammar says so.
inline const std::vector<uint32_t>& ends() {
  static const std::vector<uint32_t> ends = [] {
    const char* text = std::getenv("EMULATED_ENDS");
    std::vector<uint32_t> ends;
    for (const char* at = text == nullptr ? "256" : text; *at != 0;) {
      char* behind;
      ends.push_back(uint32_t(std::strtoul(at, &behind, 10)));
      if (behind == at || (*behind != ',' && *behind != 0)) pace::refuse("EMULATED_ENDS", "should be token ids with commas between them");
      at = *behind == ',' ? behind + 1 : behind;
    }
    return ends;
  }();
  return ends;
}

inline bool is_end(uint32_t token) {
  for (uint32_t end : ends())
    if (token == end) return true;
  return false;
}

static const uint32_t SIGNS = 48;

// Bits that look like chance (splitmix64).
inline uint64_t scattered(uint64_t x) {
  x += 0x9e3779b97f4a7c15;
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
  x = (x ^ x >> 27) * 0x94d049bb133111eb;
  return x ^ x >> 31;
}

// Where no mask says otherwise, a letter or a sign of ASCII in most vocabularies.
inline uint32_t any_token(uint64_t chance, uint32_t vocab) {
  const uint32_t first = vocab > 127 ? 32 : 0, count = vocab > 127 ? 95 : vocab;
  for (uint32_t i = 0; i < count; ++i)
    if (!is_end(first + (chance + i) % count)) return first + (chance + i) % count;
  return first;
}

// One of the allowed tokens from a place anywhere on; one that ends the row only where there is no other. The first ids of most
// vocabularies are signs of ASCII: if any of those are allowed it is one of them, so that quotes, commas and brackets come soon that
// end what a grammar begins.
inline uint32_t allowed_token(uint64_t chance, const uint32_t* mask, uint32_t vocab, uint32_t words) {
  const uint32_t count = min(vocab, 32 * words), signs = min(count, SIGNS);
  const auto is_allowed = [&](uint32_t token) { return (mask[token / 32] >> token % 32 & 1) != 0; };
  for (uint32_t i = 0; i < signs; ++i) {
    const uint32_t token = (chance + i) % signs;
    if (is_allowed(token) && !is_end(token)) return token;
  }
  uint32_t last = NONE_ALLOWED;
  const uint32_t used = (count + 31) / 32;
  for (uint32_t i = 0; i < used; ++i) {
    const uint32_t word = (chance % used + i) % used;
    for (uint32_t bits = mask[word]; bits != 0; bits &= bits - 1) {
      const uint32_t token = word * 32 + __builtin_ctz(bits);
      if (token >= count) break;
      if (!is_end(token)) return token;
      last = token;
    }
  }
  return last;
}

inline void choose_any(uint32_t rows, uint32_t* chosen, const uint32_t* places, const uint32_t* masks, uint32_t vocab, uint32_t words) {
  static uint64_t steps = 0;
  const uint64_t step = ++steps << 32;
  for (uint32_t row = 0; row < rows; ++row) {
    const uint64_t chance = scattered(step + row);
    const uint32_t* mask = places[row] == ~0u ? nullptr : masks + uint64_t(places[row]) * words;
    chosen[row] = mask == nullptr ? any_token(chance, vocab) : allowed_token(chance, mask, vocab, words);
  }
  if (buffers::Buffer* buffer = buffers::holding(chosen)) buffer->holds = buffers::Holds::BYTES;
}

inline Charge chooses() {
  return {[](dim3 grid, void** a) { return moves(4.0 * grid.x * (number(a, 4) + number(a, 5))); },
          [](dim3 grid, void** a) {
            return std::bind(choose_any, grid.x, place<uint32_t>(a, 0), place<const uint32_t>(a, 2), place<const uint32_t>(a, 3),
                             *static_cast<uint32_t*>(a[4]), *static_cast<uint32_t*>(a[5]));
          }};
}

inline double pooled(const uint32_t* rows, uint32_t count, uint32_t hidden, uint32_t pooling) {
  double tokens = count;
  for (uint32_t row = 0; row < count && (pooling == MEAN || pooling == HIGHEST); ++row) tokens += rows[4 * row + 1] - 1;
  return pace::seconds_of(0.0, hidden * (tokens * sizeof(bf16) + count * sizeof(float)));
}

inline Charge pools() {
  return {[](dim3 grid, void** a) -> pace::Seconds {
            return std::bind(pooled, place<const uint32_t>(a, 2), grid.x, *static_cast<uint32_t*>(a[3]), *static_cast<uint32_t*>(a[4]));
          },
          [](dim3, void** a) -> std::function<void()> {
            float* out = place<float>(a, 0);
            return [out] {
              if (buffers::Buffer* buffer = buffers::holding(out)) buffer->holds = buffers::Holds::ONES;
            };
          }};
}

// ---- all others ----

// `bytes` of each of as many numbers as two arguments say when multiplied; more of them, where a third place is an address.
inline Charge by_numbers(int rows, int width, double bytes, int optional = -1, double more = 0.0) {
  return {[=](dim3, void** a) {
            const bool has_more = optional >= 0 && place<void>(a, optional) != nullptr;
            return moves(number(a, rows) * number(a, width) * (bytes + (has_more ? more : 0.0)));
          },
          nullptr};
}

inline Charge moved_by(std::function<double(dim3, void**)> bytes) {
  return {[=](dim3 grid, void** a) { return moves(bytes(grid, a)); }, nullptr};
}

inline double prepared(const Prepare& p) {
  return 4.0 * p.size * (double(p.tokens) * p.heads + 2.0 * double(p.written) * p.kv_heads);
}

// A product in floats, and what it becomes: bf16, floats, or floats that are read and written.
inline double settled(dim3 grid, void** a) {
  const uint32_t form = *static_cast<uint32_t*>(a[7]);
  return grid.x * number(a, 4) * (4.0 + (form == ROUNDED ? 2.0 : form == FLOATS ? 4.0 : 8.0));
}

// By name; a kernel that has none is one that somebody forgot here.
inline Charge charge(const std::string& name) {
  static const std::map<std::string, Charge> charges = {
      {"attend_prompt_32", attention<32, 64>()},   {"attend_prompt_64", attention<64, 64>()},
      {"attend_prompt_96", attention<96, 64>()},   {"attend_prompt_128", attention<128, 64>()},
      {"attend_prompt_256", attention<256, 64>()}, {"attend_step_32", attention<32, 16>()},
      {"attend_step_64", attention<64, 16>()},     {"attend_step_96", attention<96, 16>()},
      {"attend_step_128", attention<128, 16>()},   {"attend_step_256", attention<256, 16>()},
      {"follow", moved_by([](dim3, void** a) { return 16.0 * number(a, 3); })},
      // bf16 to floats, with the positions' floats.
      {"embed", by_numbers(5, 6, 6.0, 4, 4.0)},
      {"embed_normed", by_numbers(8, 9, 4.0, 4, 4.0)},
      {"norm_rows", by_numbers(4, 5, 6.0)},
      {"add_branch", by_numbers(5, 6, 12.0)},
      {"add_norm", by_numbers(5, 6, 6.0)},
      {"activate", moved_by([](dim3, void** a) { return number(a, 3) * number(a, 4) * (number(a, 5) != 0.0 ? 6.0 : 4.0); })},
      {"prepare", moved_by([](dim3, void** a) { return prepared(*static_cast<Prepare*>(a[0])); })},
      {"gather", by_numbers(3, 4, 32.0)},
      {"copy_pages", moved_by([](dim3 grid, void** a) { return 32.0 * grid.x * double(*static_cast<uint64_t*>(a[2])); })},
      {"choose", chooses()},
      {"pool", pools()},
      {"widen", moved_by([](dim3, void** a) { return 6.0 * double(*static_cast<uint64_t*>(a[2])); })},
      {"settle", moved_by(settled)},
      {"gather_blocks", by_numbers(3, 4, 4.0)},
      {"eights", by_numbers(3, 4, 3.0)},
  };
  return charges.at(name);
}
}  // namespace costs
