// Runs the engine's kernels on the host against plain loops over doubles: every head size, ragged rows, grouped heads, pages out of
// order, windows, prompts in pieces, rows that hold NaN where nothing may be read. `check` compiles and starts it.
#include "answers.cu"
#include "attention.cu"
#include "check_products.h"
#include "layers.cu"

struct Row {
  uint32_t tokens, before;
};

struct Case {
  const char* name;
  uint32_t size, heads, kv_heads, window;
  bool causal, paged, biased;
  float softcap;
  std::vector<Row> rows;
};

template <int D>
static void attend(bool step, const Attention& a, uint32_t tiles, uint32_t kv_heads) {
  const std::function<void()> run = [&] { step ? attend_step<D>(a) : attend_prompt<D>(a); };
  launch({tiles, kv_heads}, step ? 32 * STEP_WARPS<D> : 128, run);
}

static void attention(const Case& c) {
  const uint32_t group = c.heads / c.kv_heads, width = (c.heads + 2 * c.kv_heads) * c.size;
  uint32_t tokens = 0, pages = 1;
  std::vector<uint32_t> rows, tables, prompts, steps;
  for (const Row& row : c.rows) {
    const uint32_t index = rows.size() / 4;
    rows.insert(rows.end(), {tokens, row.tokens, row.before, uint32_t(tables.size())});
    tokens += row.tokens;
    for (uint32_t page = 0; page * 32 < row.before + row.tokens; ++page) tables.push_back(pages++);
    const bool step = row.tokens * group <= 16;
    auto& tiles = step ? steps : prompts;
    for (uint32_t at = 0; at < row.tokens; at += (step ? 16 : 64) / group) tiles.insert(tiles.end(), {index, at});
  }
  std::vector<uint32_t> shuffled(pages);
  for (uint32_t i = 0; i < pages; ++i) shuffled[i] = i;
  std::shuffle(shuffled.begin(), shuffled.end(), dice);
  for (uint32_t& page : tables) page = shuffled[page];
  const uint32_t head = 32 * c.size, layer = 2 * c.kv_heads * head, page = 3 * layer;
  // Whatever no token has written is NaN.
  std::vector<bf16> pool(size_t(pages) * page, 0x7fff), qkv = halves(size_t(tokens) * width, 2.0f);
  const std::vector<float> bias = floats(c.heads * c.size);
  std::vector<std::vector<float>> keys, values;
  for (size_t r = 0; r < c.rows.size(); ++r) {
    const uint32_t whole = c.rows[r].before + c.rows[r].tokens;
    keys.push_back({});
    values.push_back({});
    for (uint32_t t = 0; t < whole; ++t)
      for (uint32_t h = 0; h < c.kv_heads; ++h)
        for (uint32_t i = 0; i < c.size; ++i) {
          bf16 k = bf16(rounded(number(2.0f))), v = bf16(rounded(number(2.0f)));
          if (c.paged) {
            const size_t at = size_t(tables[rows[4 * r + 3] + t / 32]) * page + layer + h * head + t % 32 * c.size + i;
            pool[at] = k;
            pool[at + layer / 2] = v;
          } else {
            const size_t at = size_t(rows[4 * r] + t) * width + (c.heads + h) * c.size + i;
            k = qkv[at];
            v = qkv[at + c.kv_heads * c.size];
          }
          keys.back().push_back(wide(k));
          values.back().push_back(wide(v));
        }
  }
  std::vector<bf16> out(size_t(tokens) * c.heads * c.size, 0x7fff);
  Attention a = {};
  a.queries = qkv.data();
  a.query_bias = c.biased ? bias.data() : nullptr;
  a.keys = c.paged ? pool.data() + layer : qkv.data() + c.heads * c.size;
  a.values = c.paged ? a.keys + layer / 2 : a.keys + c.kv_heads * c.size;
  a.out = out.data();
  a.rows = rows.data();
  a.tables = tables.data();
  a.page_stride = c.paged ? page : 0;
  a.query_stride = width;
  a.key_stride = c.paged ? c.size : width;
  a.head_stride = c.paged ? head : c.size;
  a.heads = c.heads;
  a.group = group;
  a.window = c.window;
  a.causal = c.causal;
  a.scale = 1.0f / std::sqrt(float(c.size));
  a.softcap = c.softcap;
  for (bool step : {false, true}) {
    const auto& tiles = step ? steps : prompts;
    a.tiles = tiles.data();
    const uint32_t count = tiles.size() / 2;
    if (count == 0) continue;
    switch (c.size) {
      case 32: attend<32>(step, a, count, c.kv_heads); break;
      case 64: attend<64>(step, a, count, c.kv_heads); break;
      case 96: attend<96>(step, a, count, c.kv_heads); break;
      case 128: attend<128>(step, a, count, c.kv_heads); break;
      default: attend<256>(step, a, count, c.kv_heads);
    }
  }
  for (size_t r = 0; r < c.rows.size(); ++r)
    for (uint32_t t = 0; t < c.rows[r].tokens; ++t)
      for (uint32_t h = 0; h < c.heads; ++h) {
        const uint32_t position = c.rows[r].before + t, whole = c.rows[r].before + c.rows[r].tokens;
        const size_t token = rows[4 * r] + t;
        std::vector<double> weights(whole, 0.0), wanted(c.size, 0.0);
        double sum = 0.0;
        for (uint32_t k = 0; k < whole; ++k) {
          if (c.causal && k > position) continue;
          if (c.window && (k + c.window <= position || position + c.window <= k)) continue;
          double score = 0.0;
          for (uint32_t i = 0; i < c.size; ++i) {
            double q = wide(qkv[token * width + h * c.size + i]);
            if (c.biased) q = wide(bf16(rounded(float(q) + bias[h * c.size + i])));
            score += q * keys[r][(k * c.kv_heads + h / group) * c.size + i];
          }
          score *= a.scale;
          if (c.softcap > 0.0f) score = c.softcap * std::tanh(score / c.softcap);
          sum += weights[k] = std::exp(score);
        }
        for (uint32_t k = 0; k < whole; ++k)
          for (uint32_t i = 0; i < c.size; ++i)
            wanted[i] += weights[k] / sum * values[r][(k * c.kv_heads + h / group) * c.size + i];
        for (uint32_t i = 0; i < c.size; ++i)
          expect(c.name, wide(out[(token * c.heads + h) * c.size + i]), wanted[i], 0.012);
      }
}

static void norms(uint32_t hidden) {
  const uint32_t tokens = 6;
  const auto h = floats(tokens * hidden), weight = floats(hidden), bias = floats(hidden), branch = floats(tokens * hidden);
  const auto mean_and_scale = [&](const std::vector<double>& row, bool centred) {
    double mean = 0.0, squares = 0.0;
    for (double x : row) mean += x / hidden;
    if (!centred) mean = 0.0;
    for (double x : row) squares += (x - mean) * (x - mean) / hidden;
    return std::pair<double, double>{mean, 1.0 / std::sqrt(squares + 1e-5)};
  };
  for (bool centred : {false, true}) {
    std::vector<bf16> x(tokens * hidden);
    launch({2}, 128, [&] {
      norm_rows(x.data(), h.data(), weight.data(), centred ? bias.data() : nullptr, tokens, hidden, 1e-5f);
    });
    std::vector<float> sum = h;
    launch({2}, 128, [&] {
      add_branch(sum.data(), branch.data(), bias.data(), weight.data(), centred ? bias.data() : nullptr, tokens, hidden,
                 1e-5f, 0.5f);
    });
    for (uint32_t r = 0; r < tokens; ++r) {
      const std::vector<double> row(h.begin() + r * hidden, h.begin() + (r + 1) * hidden);
      const auto [mean, scale] = mean_and_scale(row, centred);
      for (uint32_t i = 0; i < hidden; ++i)
        expect("norm", wide(x[r * hidden + i]), (row[i] - mean) * scale * weight[i] + (centred ? bias[i] : 0.0), 0.005);
    }
    for (uint32_t t = 0; t < tokens; ++t) {
      std::vector<double> row(hidden);
      for (uint32_t i = 0; i < hidden; ++i) row[i] = branch[t * hidden + i] + bias[i];
      const auto [mean, scale] = mean_and_scale(row, centred);
      for (uint32_t i = 0; i < hidden; ++i) {
        const double normed = (row[i] - mean) * scale * weight[i] + (centred ? bias[i] : 0.0);
        expect("add_branch", sum[t * hidden + i], h[t * hidden + i] + 0.5 * normed, 1e-4);
      }
    }
  }
  // What is neither normed nor has a bias is only added.
  std::vector<float> plain = h;
  launch({2}, 128, [&] { add_branch(plain.data(), branch.data(), nullptr, nullptr, nullptr, tokens, hidden, 0.0f, 0.5f); });
  std::vector<float> biased = h;
  launch({2}, 128, [&] { add_branch(biased.data(), branch.data(), bias.data(), nullptr, nullptr, tokens, hidden, 0.0f, 0.5f); });
  for (uint32_t i = 0; i < tokens * hidden; ++i) {
    expect("add_branch without a norm", biased[i], h[i] + 0.5 * (branch[i] + bias[i % hidden]), 1e-5);
    expect("add_branch, a sum", plain[i], h[i] + 0.5 * branch[i], 1e-5);
  }
  const auto words = halves(40 * hidden), y = halves(tokens * hidden);
  const auto table = floats(10 * hidden), type = floats(hidden);
  const std::vector<uint32_t> ids = {3, 39, 0, 7, 7, 21}, positions = {0, 1, 2, 0, 9, 4};
  std::vector<bf16> x(tokens * hidden);
  launch({2}, 128, [&] {
    embed_normed(x.data(), ids.data(), positions.data(), words.data(), table.data(), type.data(), weight.data(),
                 bias.data(), tokens, hidden, 1e-5f);
  });
  const std::vector<bf16> before = x;
  std::vector<float> embedded(tokens * hidden);
  launch({2}, 128, [&] {
    embed(embedded.data(), ids.data(), positions.data(), words.data(), table.data(), tokens, hidden, 3.0f);
  });
  std::vector<float> placeless(tokens * hidden);
  launch({2}, 128, [&] {
    embed(placeless.data(), ids.data(), nullptr, words.data(), nullptr, tokens, hidden, 3.0f);
  });
  std::vector<bf16> placeless_x(tokens * hidden);
  launch({2}, 128, [&] {
    embed_normed(placeless_x.data(), ids.data(), nullptr, words.data(), nullptr, type.data(), weight.data(), bias.data(),
                 tokens, hidden, 1e-5f);
  });
  launch({2}, 128, [&] {
    add_norm(x.data(), y.data(), type.data(), weight.data(), bias.data(), tokens, hidden, 1e-5f);
  });
  for (uint32_t t = 0; t < tokens; ++t) {
    std::vector<double> row(hidden), sum(hidden), typed(hidden);
    for (uint32_t i = 0; i < hidden; ++i) {
      const double word = wide(words[ids[t] * hidden + i]), position = table[positions[t] * hidden + i];
      row[i] = word + position + type[i];
      typed[i] = word + type[i];
      sum[i] = double(wide(before[t * hidden + i])) + wide(y[t * hidden + i]) + type[i];
      expect("embed", embedded[t * hidden + i], 3.0 * word + position, 1e-5);
      expect("embed without positions", placeless[t * hidden + i], 3.0 * word, 1e-5);
    }
    const auto [mean, scale] = mean_and_scale(row, true);
    const auto [sum_mean, sum_scale] = mean_and_scale(sum, true);
    const auto [typed_mean, typed_scale] = mean_and_scale(typed, true);
    for (uint32_t i = 0; i < hidden; ++i) {
      expect("embed_normed", wide(before[t * hidden + i]), (row[i] - mean) * scale * weight[i] + bias[i], 0.006);
      expect("embed_normed without positions", wide(placeless_x[t * hidden + i]),
             (typed[i] - typed_mean) * typed_scale * weight[i] + bias[i], 0.006);
      expect("add_norm", wide(x[t * hidden + i]), (sum[i] - sum_mean) * sum_scale * weight[i] + bias[i], 0.006);
    }
  }
}

static void activations() {
  const uint32_t tokens = 3, width = 40;
  const auto biases = floats(2 * width);
  const std::vector<std::function<double(double)>> functions = {
      [](double x) { return x / (1.0 + std::exp(-x)); }, [](double x) { return 0.5 * x * (1.0 + std::erf(x / std::sqrt(2.0))); },
      [](double x) { return 0.5 * x * (1.0 + std::tanh(std::sqrt(2.0 / M_PI) * (x + 0.044715 * x * x * x))); },
      [](double x) { return std::max(x, 0.0); }};
  for (uint32_t activation = 0; activation < functions.size(); ++activation)
    for (uint32_t kind = 0; kind < 4; ++kind) {
      const uint32_t gated = kind % 2;
      const float* bias = kind < 2 ? biases.data() : nullptr;
      const auto at = [&](uint32_t i) { return bias == nullptr ? 0.0 : double(bias[i]); };
      const auto in = halves(tokens * width * (1 + gated), 3.0f);
      std::vector<bf16> out(tokens * width);
      launch({1}, 32, [&] { activate(out.data(), in.data(), bias, tokens, width, gated, activation); });
      for (uint32_t t = 0; t < tokens; ++t)
        for (uint32_t i = 0; i < width; ++i) {
          const bf16* row = in.data() + t * width * (1 + gated);
          double wanted = functions[activation](wide(row[i]) + at(i));
          if (gated) wanted *= wide(row[width + i]) + at(width + i);
          expect("activate", wide(out[t * width + i]), wanted, 0.006);
        }
    }
}

static void preparation(bool whole, bool normed, uint32_t size, uint32_t rotary, bool biased = true) {
  const uint32_t tokens = 5, heads = 6, kv_heads = 2, width = (heads + 2 * kv_heads) * size, half = rotary / 2;
  const auto before = halves(tokens * width);
  auto qkv = before;
  const std::vector<float> bias = biased ? floats(width) : std::vector<float>(width, 0.0f);
  const auto query_norm = floats(heads * size), key_norm = floats(kv_heads * size);
  const auto angles = floats(20 * rotary);
  const std::vector<uint32_t> positions = {4, 5, 19, 0, 1};
  // The third token goes to two pages.
  const std::vector<uint32_t> writes = {0, 36, 1, 37, 2, 3, 2, 64, 3, 95, 4, 0};
  const uint32_t layer = 2 * kv_heads * 32 * size;
  std::vector<bf16> pool(3 * layer, 0x7fff);
  Prepare p = {};
  p.qkv = qkv.data();
  p.bias = biased ? bias.data() : nullptr;
  p.query_norm = normed ? query_norm.data() : nullptr;
  p.key_norm = normed ? key_norm.data() : nullptr;
  p.angles = rotary > 0 ? angles.data() : nullptr;
  p.positions = positions.data();
  p.writes = writes.data();
  p.keys = pool.data();
  p.values = pool.data() + layer / 2;
  p.page_stride = layer;
  p.tokens = tokens;
  p.written = writes.size() / 2;
  p.heads = heads;
  p.kv_heads = kv_heads;
  p.size = size;
  p.rotary = rotary;
  p.whole = whole;
  p.epsilon = 1e-6f;
  launch({tokens + p.written}, 128, [&] { prepare(p); });
  const auto wanted = [&](uint32_t token, uint32_t first, uint32_t count, uint32_t head, const std::vector<float>& weight) {
    std::vector<double> row(count * size), out(size);
    for (uint32_t i = 0; i < count * size; ++i)
      row[i] = double(wide(before[token * width + first * size + i])) + bias[first * size + i];
    double squares = 0.0;
    for (uint32_t i = 0; i < (whole ? count * size : size); ++i) squares += std::pow(row[whole ? i : head * size + i], 2);
    const double inverse = 1.0 / std::sqrt(squares / (whole ? count * size : size) + 1e-6);
    const auto one = [&](uint32_t i) {
      return row[head * size + i] * (normed ? inverse * weight[whole ? head * size + i : i] : 1.0);
    };
    const float* turn = angles.data() + positions[token] * rotary;
    for (uint32_t i = 0; i < size; ++i)
      out[i] = i >= rotary ? one(i)
               : i < half  ? one(i) * turn[i] - one(i + half) * turn[half + i]
                           : one(i) * turn[i - half] + one(i - half) * turn[i];
    return out;
  };
  for (uint32_t t = 0; t < tokens; ++t)
    for (uint32_t h = 0; h < heads; ++h) {
      const auto out = wanted(t, 0, heads, h, query_norm);
      for (uint32_t i = 0; i < size; ++i) expect("queries", wide(qkv[t * width + h * size + i]), out[i], 0.006);
    }
  for (uint32_t w = 0; w < p.written; ++w)
    for (uint32_t h = 0; h < kv_heads; ++h) {
      const uint32_t token = writes[2 * w], slot = writes[2 * w + 1];
      const auto out = wanted(token, heads, kv_heads, h, key_norm);
      for (uint32_t i = 0; i < size; ++i) {
        const size_t at = slot / 32 * layer + (h * 32 + slot % 32) * size + i, column = (heads + kv_heads + h) * size + i;
        expect("keys", wide(pool[at]), out[i], 0.006);
        expect("values", wide(pool[at + layer / 2]), wide(before[token * width + column]) + bias[column], 0.006);
      }
    }
}

static void answers() {
  const uint32_t rows = 5, vocab = 1000, words = 32;
  auto logits = floats(rows * vocab);
  logits[0 * vocab + 700] = logits[0 * vocab + 300] = 5.0f;
  logits[1 * vocab + 999] = 7.0f;
  logits[1 * vocab + 998] = 6.0f;
  logits[2 * vocab + 500] = NAN;
  logits[4 * vocab + 20] = -INFINITY;
  // The second row may have any token but 999, the fourth none, the others all.
  std::vector<uint32_t> masks(2 * words, 0), places = {~0u, 0, ~0u, 1, ~0u}, chosen(rows);
  for (uint32_t i = 0; i < 999; ++i) masks[i / 32] |= 1u << i % 32;
  launch({rows}, THREADS, [&] { choose(chosen.data(), logits.data(), places.data(), masks.data(), vocab, words); });
  const uint32_t wanted[] = {300, 998, NOT_FINITE, NONE_ALLOWED, NOT_FINITE};
  for (uint32_t r = 0; r < rows; ++r) expect("choose", chosen[r], wanted[r], 0.0);

  const uint32_t hidden = 300;
  const auto states = halves(20 * hidden);
  const std::vector<uint32_t> spans = {0, 7, 0, 0, 7, 1, 0, 0, 8, 12, 0, 0};
  for (uint32_t pooling = 0; pooling < 4; ++pooling) {
    std::vector<float> out(3 * hidden);
    launch({3, 2}, THREADS, [&] { pool(out.data(), states.data(), spans.data(), hidden, pooling); });
    for (uint32_t r = 0; r < 3; ++r)
      for (uint32_t i = 0; i < hidden; ++i) {
        const uint32_t first = spans[4 * r], tokens = spans[4 * r + 1];
        const auto one = [&](uint32_t t) { return double(wide(states[(first + t) * hidden + i])); };
        double pooled = pooling == LAST ? one(tokens - 1) : one(0);
        for (uint32_t t = 1; t < tokens; ++t)
          pooled = pooling == MEAN ? pooled + one(t) : pooling == HIGHEST ? std::max(pooled, one(t)) : pooled;
        expect("pool", out[r * hidden + i], pooling == MEAN ? pooled / tokens : pooled, 1e-5);
      }
  }

  std::vector<uint4> pages(4 * 10), rows_of(3 * 10);
  for (uint32_t i = 0; i < pages.size(); ++i) pages[i] = {i, i, i, i};
  const std::vector<uint32_t> copies = {0, 2, 1, 3}, order = {3, 0, 1};
  launch({2, 2}, 4, [&] { copy_pages(pages.data(), copies.data(), 10); });
  launch({1}, 128, [&] { gather(rows_of.data(), pages.data(), order.data(), 3, 10); });
  for (uint32_t i = 0; i < 10; ++i) {
    expect("copy_pages", pages[20 + i].w, i, 0.0);
    expect("gather", rows_of[i].x, 10 + i, 0.0);
    expect("gather", rows_of[20 + i].y, 10 + i, 0.0);
  }
}

int main() {
  const std::vector<Row> ragged = {{1, 0}, {70, 0}, {1, 100}, {33, 31}, {2, 63}, {129, 5}, {1, 300}};
  for (uint32_t size : {32u, 64u, 96u, 128u, 256u})
    attention({"paged, grouped", size, 8, 2, 0, true, true, false, 0.0f, ragged});
  attention({"paged, groups of 7", 64, 14, 2, 0, true, true, false, 0.0f, ragged});
  attention({"paged, one head a key", 64, 3, 3, 0, true, true, false, 0.0f, ragged});
  attention({"paged, window and softcap", 64, 4, 2, 40, true, true, false, 5.0f, ragged});
  attention({"paged, long heads, window and softcap", 256, 4, 2, 40, true, true, false, 5.0f, ragged});
  const std::vector<Row> texts = {{1, 0}, {128, 0}, {17, 0}, {64, 0}, {200, 0}};
  for (uint32_t size : {32u, 64u}) attention({"texts", size, 4, 4, 0, false, false, true, 0.0f, texts});
  attention({"texts, window", 64, 2, 2, 24, false, false, false, 0.0f, texts});
  for (uint32_t hidden : {8u, 384u, 1024u}) norms(hidden);
  activations();
  preparation(false, false, 64, 64);
  preparation(false, true, 128, 128);
  preparation(false, true, 32, 8);
  preparation(true, true, 96, 96);
  preparation(false, true, 256, 256);
  preparation(false, false, 64, 0);
  preparation(false, true, 64, 64, false);
  answers();
  stored();
  eight_bits();
  std::printf(faults == 0 ? "all kernels compute what they should\n" : "%d numbers are wrong\n", faults);
  return faults == 0 ? 0 : 1;
}
