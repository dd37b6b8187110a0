// What stands between the matrix products of a layer, each in one pass over memory: embeddings, norms with the sums before
// them, activations, and queries, keys and values on their way to attention and into the cache; and rows and pages that are copied.
// Each kernel says which thread, warp or block has what. Sizes of rows are multiples of 8, which the host checks at load.
#include "device.cuh"

#define WARPS 4

// The token of this warp, and the lane.
__device__ __forceinline__ uint32_t warp_index() { return blockIdx.x * WARPS + threadIdx.x / 32; }
__device__ __forceinline__ uint32_t lane_index() { return threadIdx.x % 32; }

// As `Activation` in launch.rs.
enum Activation { SILU = 0, GELU = 1, GELU_TANH = 2, RELU = 3 };

__device__ __forceinline__ float activated(float x, uint32_t activation) {
  switch (activation) {
    case SILU: return x / (1.0f + __expf(-x));
    case GELU: return 0.5f * x * (1.0f + erff(x * 0.70710678118654752f));
    case GELU_TANH: return 0.5f * x * (1.0f + tanhf(0.79788456080286536f * (x + 0.044715f * x * x * x)));
    default: return x < 0.0f ? 0.0f : x;
  }
}

// Eight neighbours.
struct Eight {
  float x[8];
};

__device__ __forceinline__ Eight load_eight(const bf16* from) {
  const uint4 words = *reinterpret_cast<const uint4*>(from);
  return {{low(words.x), high(words.x), low(words.y), high(words.y), low(words.z), high(words.z), low(words.w),
           high(words.w)}};
}

__device__ __forceinline__ Eight load_eight(const float* from) {
  const float4 a = *reinterpret_cast<const float4*>(from), b = *reinterpret_cast<const float4*>(from + 4);
  return {{a.x, a.y, a.z, a.w, b.x, b.y, b.z, b.w}};
}

__device__ __forceinline__ void store_eight(bf16* to, const Eight& e) {
  uint4 words;
  words.x = narrow2(e.x[0], e.x[1]);
  words.y = narrow2(e.x[2], e.x[3]);
  words.z = narrow2(e.x[4], e.x[5]);
  words.w = narrow2(e.x[6], e.x[7]);
  *reinterpret_cast<uint4*>(to) = words;
}

__device__ __forceinline__ void store_eight(float* to, const Eight& e) {
  *reinterpret_cast<float4*>(to) = make_float4(e.x[0], e.x[1], e.x[2], e.x[3]);
  *reinterpret_cast<float4*>(to + 4) = make_float4(e.x[4], e.x[5], e.x[6], e.x[7]);
}

// Mean and the inverse of the deviation (a bias says that it is a layer norm), or 0 and the inverse of the root of the mean
// square, of a row that lanes read by `read(column)`.
struct Scale {
  float mean, inverse;
};

template <typename Read>
__device__ __forceinline__ Scale scale_of(Read read, uint32_t size, bool centred, float epsilon) {
  float mean = 0.0f, squares = 0.0f;
  if (centred) {
    for (uint32_t i = lane_index() * 8; i < size; i += 256) {
      const Eight e = read(i);
      for (int j = 0; j < 8; ++j) mean += e.x[j];
    }
    mean = warp_sum(mean) / float(size);
  }
  for (uint32_t i = lane_index() * 8; i < size; i += 256) {
    const Eight e = read(i);
    for (int j = 0; j < 8; ++j) squares += (e.x[j] - mean) * (e.x[j] - mean);
  }
  return {mean, rsqrtf(warp_sum(squares) / float(size) + epsilon)};
}

__device__ __forceinline__ Eight normed(const Eight& e, Scale s, const float* weight, const float* bias, uint32_t at) {
  const Eight w = load_eight(weight + at);
  Eight out;
  for (int j = 0; j < 8; ++j) out.x[j] = (e.x[j] - s.mean) * s.inverse * w.x[j];
  if (bias != nullptr) {
    const Eight b = load_eight(bias + at);
    for (int j = 0; j < 8; ++j) out.x[j] += b.x[j];
  }
  return out;
}

extern "C" {

// ids[token] = chosen[place] for each of the `count` pairs of token and place; the first id where nothing of the vocabulary was
// chosen, because somebody must stand there. Grid: a thread a pair.
__global__ void follow(uint32_t* ids, const uint32_t* chosen, const uint32_t* pairs, uint32_t count, uint32_t vocab) {
  const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= count) return;
  const uint32_t id = chosen[pairs[2 * i + 1]];
  ids[pairs[2 * i]] = id < vocab ? id : 0;
}

// h[token] = words[ids[token]] * multiplier, and the vector of its position where there are any. Grid: a warp a token.
__global__ void embed(float* h, const uint32_t* ids, const uint32_t* positions, const bf16* words, const float* table,
                      uint32_t tokens, uint32_t hidden, float multiplier) {
  const uint32_t token = warp_index();
  if (token >= tokens) return;
  for (uint32_t i = lane_index() * 8; i < hidden; i += 256) {
    Eight e = load_eight(words + uint64_t(ids[token]) * hidden + i);
    for (int j = 0; j < 8; ++j) e.x[j] *= multiplier;
    if (table != nullptr) {
      const Eight p = load_eight(table + uint64_t(positions[token]) * hidden + i);
      for (int j = 0; j < 8; ++j) e.x[j] += p.x[j];
    }
    store_eight(h + uint64_t(token) * hidden + i, e);
  }
}

// x[token] = norm(words + position + type), for encoders. Grid: a warp a token.
__global__ void embed_normed(bf16* x, const uint32_t* ids, const uint32_t* positions, const bf16* words,
                             const float* table, const float* type, const float* weight, const float* bias,
                             uint32_t tokens, uint32_t hidden, float epsilon) {
  const uint32_t token = warp_index();
  if (token >= tokens) return;
  auto read = [&](uint32_t i) {
    Eight e = load_eight(words + uint64_t(ids[token]) * hidden + i);
    const Eight t = load_eight(type + i);
    for (int j = 0; j < 8; ++j) e.x[j] += t.x[j];
    if (table != nullptr) {
      const Eight p = load_eight(table + uint64_t(positions[token]) * hidden + i);
      for (int j = 0; j < 8; ++j) e.x[j] += p.x[j];
    }
    return e;
  };
  const Scale s = scale_of(read, hidden, true, epsilon);
  for (uint32_t i = lane_index() * 8; i < hidden; i += 256)
    store_eight(x + uint64_t(token) * hidden + i, normed(read(i), s, weight, bias, i));
}

// x[token] = norm(h[token]); `bias` is null where it is of the root mean square. Grid: a warp a token.
__global__ void norm_rows(bf16* x, const float* h, const float* weight, const float* bias, uint32_t tokens,
                          uint32_t hidden, float epsilon) {
  const uint32_t token = warp_index();
  if (token >= tokens) return;
  const float* from = h + uint64_t(token) * hidden;
  auto read = [&](uint32_t i) { return load_eight(from + i); };
  const Scale s = scale_of(read, hidden, bias != nullptr, epsilon);
  for (uint32_t i = lane_index() * 8; i < hidden; i += 256)
    store_eight(x + uint64_t(token) * hidden + i, normed(read(i), s, weight, bias, i));
}

// h[token] += multiplier * norm(branch[token] + add); `weight` is null where what a half of a layer gives is not normed, `add`
// where it has no bias. Grid: a warp a token.
__global__ void add_branch(float* h, const float* branch, const float* add, const float* weight, const float* bias,
                           uint32_t tokens, uint32_t hidden, float epsilon, float multiplier) {
  const uint32_t token = warp_index();
  if (token >= tokens) return;
  const uint64_t row = uint64_t(token) * hidden;
  auto read = [&](uint32_t i) {
    Eight e = load_eight(branch + row + i);
    if (add != nullptr) {
      const Eight b = load_eight(add + i);
      for (int j = 0; j < 8; ++j) e.x[j] += b.x[j];
    }
    return e;
  };
  const Scale s = weight == nullptr ? Scale{0.0f, 1.0f} : scale_of(read, hidden, bias != nullptr, epsilon);
  for (uint32_t i = lane_index() * 8; i < hidden; i += 256) {
    const Eight e = weight == nullptr ? read(i) : normed(read(i), s, weight, bias, i);
    Eight out = load_eight(h + row + i);
    for (int j = 0; j < 8; ++j) out.x[j] += multiplier * e.x[j];
    store_eight(h + row + i, out);
  }
}

// x[token] = norm(x[token] + y[token] + add), for encoders whose norms stand after. The sum is kept in registers: rows have
// 1024 numbers at most. Grid: a warp a token.
__global__ void add_norm(bf16* x, const bf16* y, const float* add, const float* weight, const float* bias,
                         uint32_t tokens, uint32_t hidden, float epsilon) {
  const uint32_t token = warp_index();
  if (token >= tokens) return;
  const uint64_t row = uint64_t(token) * hidden;
  Eight sums[4];
#pragma unroll
  for (int part = 0; part < 4; ++part) {
    const uint32_t i = lane_index() * 8 + part * 256;
    if (i >= hidden) continue;
    sums[part] = load_eight(x + row + i);
    const Eight more = load_eight(y + row + i), b = load_eight(add + i);
    for (int j = 0; j < 8; ++j) sums[part].x[j] += more.x[j] + b.x[j];
  }
  float mean = 0.0f, squares = 0.0f;
#pragma unroll
  for (int part = 0; part < 4; ++part)
    if (lane_index() * 8 + part * 256 < hidden)
      for (int j = 0; j < 8; ++j) mean += sums[part].x[j];
  mean = warp_sum(mean) / float(hidden);
#pragma unroll
  for (int part = 0; part < 4; ++part)
    if (lane_index() * 8 + part * 256 < hidden)
      for (int j = 0; j < 8; ++j) squares += (sums[part].x[j] - mean) * (sums[part].x[j] - mean);
  const Scale s = {mean, rsqrtf(warp_sum(squares) / float(hidden) + epsilon)};
#pragma unroll
  for (int part = 0; part < 4; ++part) {
    const uint32_t i = lane_index() * 8 + part * 256;
    if (i < hidden) store_eight(x + row + i, normed(sums[part], s, weight, bias, i));
  }
}

// out[token] = f(up + bias), or f(gate + bias) * (up + bias) where a row of `in` is a gate and then what it gates. Grid: a
// thread for eight numbers of `out`.
__global__ void activate(bf16* out, const bf16* in, const float* bias, uint32_t tokens, uint32_t width, uint32_t gated,
                         uint32_t activation) {
  const uint64_t at = (uint64_t(blockIdx.x) * blockDim.x + threadIdx.x) * 8;
  if (at >= uint64_t(tokens) * width) return;
  const uint64_t token = at / width;
  const uint32_t column = at % width;
  const bf16* row = in + token * width * (gated ? 2 : 1);
  Eight e = load_eight(row + column);
  if (bias != nullptr) {
    const Eight b = load_eight(bias + column);
    for (int j = 0; j < 8; ++j) e.x[j] += b.x[j];
  }
  for (int j = 0; j < 8; ++j) e.x[j] = activated(e.x[j], activation);
  if (gated) {
    Eight up = load_eight(row + width + column);
    if (bias != nullptr) {
      const Eight b = load_eight(bias + width + column);
      for (int j = 0; j < 8; ++j) up.x[j] += b.x[j];
    }
    for (int j = 0; j < 8; ++j) e.x[j] *= up.x[j];
  }
  store_eight(out + token * width + column, e);
}

// As `PrepareArguments` in launch.rs.
struct Prepare {
  bf16* qkv;                   // [tokens, (heads + 2 * kv_heads) * size]; queries are changed in place
  const float* bias;           // of a row of it, or null
  const float* query_norm;     // [size], or [heads * size] where `whole`, or null
  const float* key_norm;
  const float* angles;         // [context, rotary]: cosines, then sines; null where nothing is rotated
  const uint32_t* positions;   // [tokens]
  const uint32_t* writes;      // [written, 2]: token, slot; a page has 32 slots
  bf16* keys;                  // the layer's part of page 0
  bf16* values;
  uint64_t page_stride;        // from page to page
  uint32_t tokens, written, heads, kv_heads, size, rotary, whole;
  float epsilon;
};
static_assert(sizeof(Prepare) == 112, "launch.rs has another layout");

// Numbers of a head, at most.
#define HEAD_MAX 256

// Bias, norm and rotation of queries, in place, and of keys and values on their way into the pages: [kv_heads, 32, size] each.
// Grid [tokens + written]; 128 threads, each warp takes every fourth head.
__global__ void prepare(Prepare p) {
  __shared__ float turning[WARPS][HEAD_MAX];
  __shared__ float parts[WARPS];
  const bool writes = blockIdx.x >= p.tokens;
  const uint32_t write = blockIdx.x - p.tokens;
  const uint32_t token = writes ? p.writes[2 * write] : blockIdx.x;
  const uint32_t slot = writes ? p.writes[2 * write + 1] : 0;
  const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32, size = p.size;
  const uint32_t first = writes ? p.heads : 0, turned = writes ? p.kv_heads : p.heads;
  bf16* row = p.qkv + uint64_t(token) * (p.heads + 2 * p.kv_heads) * size;
  const float* weight = writes ? p.key_norm : p.query_norm;
  const float* turns = p.angles == nullptr ? nullptr : p.angles + uint64_t(p.positions[token]) * p.rotary;
  auto value_of = [&](uint32_t column) {
    return wide(row[column]) + (p.bias == nullptr ? 0.0f : p.bias[column]);
  };
  float inverse = 1.0f;
  if (weight != nullptr && p.whole) {
    float squares = 0.0f;
    for (uint32_t i = threadIdx.x; i < turned * size; i += 128) {
      const float x = value_of(first * size + i);
      squares += x * x;
    }
    squares = warp_sum(squares);
    if (lane == 0) parts[warp] = squares;
    __syncthreads();
    inverse = rsqrtf((parts[0] + parts[1] + parts[2] + parts[3]) / float(turned * size) + p.epsilon);
  }
  for (uint32_t head = warp; head < turned; head += WARPS) {
    const uint32_t column = (first + head) * size;
    float squares = 0.0f;
    for (uint32_t i = lane; i < size; i += 32) {
      const float x = value_of(column + i);
      turning[warp][i] = x;
      squares += x * x;
    }
    if (weight != nullptr) {
      if (!p.whole) inverse = rsqrtf(warp_sum(squares) / float(size) + p.epsilon);
      for (uint32_t i = lane; i < size; i += 32)
        turning[warp][i] *= inverse * weight[p.whole ? head * size + i : i];
    }
    __syncwarp();
    bf16* out = writes ? p.keys + uint64_t(slot / 32) * p.page_stride + (uint64_t(head) * 32 + slot % 32) * size
                       : row + column;
    const uint32_t half = p.rotary / 2;
    for (uint32_t i = lane; i < size; i += 32) {
      float x = turning[warp][i];
      if (turns != nullptr && i < p.rotary) {
        const float cosine = turns[i % half], sine = turns[half + i % half];
        x = i < half ? x * cosine - turning[warp][i + half] * sine : x * cosine + turning[warp][i - half] * sine;
      }
      out[i] = narrow(x);
    }
    __syncwarp();
  }
  if (!writes) return;
  for (uint32_t head = warp; head < p.kv_heads; head += WARPS) {
    bf16* out = p.values + uint64_t(slot / 32) * p.page_stride + (uint64_t(head) * 32 + slot % 32) * size;
    for (uint32_t i = lane; i < size; i += 32) out[i] = narrow(value_of((p.heads + p.kv_heads + head) * size + i));
  }
}

// to[i] = from[rows[i]], rows of `width` 16-byte words. Grid: a warp a row.
__global__ void gather(uint4* to, const uint4* from, const uint32_t* rows, uint32_t count, uint32_t width) {
  const uint32_t row = warp_index();
  if (row >= count) return;
  for (uint32_t i = lane_index(); i < width; i += 32)
    to[uint64_t(row) * width + i] = from[uint64_t(rows[row]) * width + i];
}

// Copies pages of `width` 16-byte words: `copies` is [count, 2], from and to. Grid [count, parts].
__global__ void copy_pages(uint4* pages, const uint32_t* copies, uint64_t width) {
  const uint4* from = pages + copies[2 * blockIdx.x] * width;
  uint4* to = pages + copies[2 * blockIdx.x + 1] * width;
  for (uint64_t i = uint64_t(blockIdx.y) * blockDim.x + threadIdx.x; i < width; i += uint64_t(gridDim.y) * blockDim.x)
    to[i] = from[i];
}
}
