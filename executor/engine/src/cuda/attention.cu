// Attention of packed rows over pages of keys and values, or over the batch itself: exact softmax in one pass (Milakov and
// Gimelshein, 2018; Dao et al., 2022), no padding, no mask in memory. Queries of heads that share keys stand in one tile, so
// each key is read once for all of them. Two kernels: long tiles whose warps share the keys, for prompts; short ones whose warps
// share out the keys among them, for rows that grow by a token. They refuse nothing: the host checks shapes at load.
#include "device.cuh"

// As `AttentionArguments` in launch.rs.
struct Attention {
  const bf16* queries;       // [tokens, query_stride], `heads` heads of D first
  const float* query_bias;   // [heads * D], or null
  const bf16* keys;          // paged: of the layer, in page 0; else of the batch's first token
  const bf16* values;        // likewise
  bf16* out;                 // [tokens, heads * D]
  const uint32_t* tiles;     // [grid.x, 2]: row, its first query token in the tile
  const uint32_t* rows;      // [rows, 4]: first token, tokens, tokens before, place of its first page in `tables`
  const uint32_t* tables;    // page numbers
  uint64_t page_stride;      // from page to page; 0 where keys are the batch's own
  uint32_t query_stride;     // from token to token
  uint32_t key_stride;       // from key to key
  uint32_t head_stride;      // from key head to key head
  uint32_t heads;
  uint32_t group;            // query heads of a key head
  uint32_t window;           // a token sees only tokens less than so many positions away; 0: all
  uint32_t causal;           // a token sees none after it
  float scale;
  float softcap;             // 0: none
};
static_assert(sizeof(Attention) == 112, "launch.rs has another layout");

#define PAGE 32
#define LOG2_E 1.4426950408889634f
#define NOTHING (-INFINITY)

// What a block works on.
struct Tile {
  uint32_t first_token, tokens, before, table;  // the row
  uint32_t first_query, queries;                // tokens of the row in the tile
  uint32_t key_begin, key_end;                  // keys that any of them sees
};

template <int QUERIES>
__device__ __forceinline__ Tile tile_of(const Attention& a) {
  const uint32_t* tile = a.tiles + 2 * blockIdx.x;
  const uint32_t* row = a.rows + 4 * tile[0];
  Tile t;
  t.first_token = row[0];
  t.tokens = row[1];
  t.before = row[2];
  t.table = row[3];
  t.first_query = tile[1];
  t.queries = min(uint32_t(QUERIES) / a.group, t.tokens - t.first_query);
  const uint32_t first = t.before + t.first_query, last = first + t.queries - 1;
  const uint32_t whole = t.before + t.tokens;
  t.key_begin = a.window != 0 && first + 1 > a.window ? first + 1 - a.window : 0;
  t.key_end = a.causal ? last + 1 : (a.window != 0 ? min(whole, last + a.window) : whole);
  return t;
}

// The first of the keys from `key` on, which is a multiple of a page's part; `first` is that of the page or the row.
__device__ __forceinline__ uint64_t place_of(const Attention& a, const Tile& t, uint32_t key) {
  const uint64_t head = uint64_t(blockIdx.y) * a.head_stride;
  if (a.page_stride == 0) return uint64_t(t.first_token + key) * a.key_stride + head;
  return a.tables[t.table + key / PAGE] * a.page_stride + uint64_t(key % PAGE) * a.key_stride + head;
}

// Queries of a warp's 16 rows of the tile as left sides of products. `position` and `place` are those of the lane's two rows;
// a row without a query has the place `~0`.
template <int D>
__device__ __forceinline__ void load_queries(const Attention& a, const Tile& t, uint32_t first, uint32_t (&q)[D / 16][4],
                                             uint32_t (&position)[2], uint64_t (&place)[2]) {
  const uint32_t lane = threadIdx.x % 32, column = 2 * (lane % 4);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const uint32_t index = first + lane / 4 + 8 * half, token = index / a.group;
    const bool there = token < t.queries;
    const uint32_t head = blockIdx.y * a.group + index % a.group;
    const uint64_t at = t.first_token + t.first_query + (there ? token : 0);
    position[half] = t.before + t.first_query + (there ? token : 0);
    place[half] = there ? at * a.heads * D + uint64_t(head) * D : ~uint64_t(0);
    const bf16* from = a.queries + at * a.query_stride + uint64_t(head) * D;
    const float* bias = a.query_bias == nullptr ? nullptr : a.query_bias + head * D;
#pragma unroll
    for (int part = 0; part < D / 8; ++part) {
      uint32_t pair = 0;
      if (there) {
        const int at_column = part * 8 + column;
        pair = *reinterpret_cast<const uint32_t*>(from + at_column);
        if (bias != nullptr) pair = narrow2(low(pair) + bias[at_column], high(pair) + bias[at_column + 1]);
      }
      q[part / 2][half + 2 * (part % 2)] = pair;
    }
  }
}

// Softmax under way: of the lane's two rows the highest score so far, its own part of the sum, and the weighted values.
template <int D>
struct State {
  float top[2], sum[2];
  float values[D / 8][4];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      top[half] = NOTHING;
      sum[half] = 0.0f;
    }
#pragma unroll
    for (int n = 0; n < D / 8; ++n)
      for (int i = 0; i < 4; ++i) values[n][i] = 0.0f;
  }
};

// Takes `KEYS` keys and values from shared memory, rows of `STRIDE`, the first of them being the row's `key`-th.
template <int D, int KEYS, int STRIDE>
__device__ __forceinline__ void take_keys(const Attention& a, const Tile& t, uint32_t key, const bf16* keys,
                                          const bf16* values, const uint32_t (&q)[D / 16][4],
                                          const uint32_t (&position)[2], State<D>& state) {
  const uint32_t lane = threadIdx.x % 32;
  float scores[KEYS / 8][4];
#pragma unroll
  for (int n = 0; n < KEYS / 8; ++n) {
    for (int i = 0; i < 4; ++i) scores[n][i] = 0.0f;
#pragma unroll
    for (int k = 0; k < D / 32; ++k) {
      uint32_t b[4];
      load_matrices(b, keys + (n * 8 + lane % 8) * STRIDE + k * 32 + lane / 8 * 8);
      multiply_add(scores[n], q[2 * k], b[0], b[1]);
      multiply_add(scores[n], q[2 * k + 1], b[2], b[3]);
    }
  }
  const uint32_t first = t.before + t.first_query;
  const bool masked = key + KEYS > t.key_end || a.window != 0 || (a.causal && key + KEYS > first + 1);
  float top[2] = {state.top[0], state.top[1]};
#pragma unroll
  for (int n = 0; n < KEYS / 8; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      float score = scores[n][i] * a.scale;
      if (a.softcap != 0.0f) score = a.softcap * tanhf(score / a.softcap);
      score *= LOG2_E;
      if (masked) {
        const uint32_t at = key + n * 8 + 2 * (lane % 4) + i % 2, query = position[i / 2];
        const bool seen = at < t.key_end && !(a.causal && at > query) &&
                          !(a.window != 0 && (at + a.window <= query || query + a.window <= at));
        if (!seen) score = NOTHING;
      }
      scores[n][i] = score;
      top[i / 2] = fmaxf(top[i / 2], score);
    }
  float base[2];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    top[half] = quad_max(top[half]);
    // A row that has seen no key yet must not subtract infinity from infinity.
    base[half] = top[half] == NOTHING ? 0.0f : top[half];
    const float shrink = exp2f(state.top[half] - base[half]);
    state.top[half] = top[half];
    state.sum[half] *= shrink;
#pragma unroll
    for (int n = 0; n < D / 8; ++n) {
      state.values[n][2 * half] *= shrink;
      state.values[n][2 * half + 1] *= shrink;
    }
  }
#pragma unroll
  for (int n = 0; n < KEYS / 8; ++n)
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      scores[n][i] = exp2f(scores[n][i] - base[i / 2]);
      state.sum[i / 2] += scores[n][i];
    }
#pragma unroll
  for (int k = 0; k < KEYS / 16; ++k) {
    const uint32_t weights[4] = {
        narrow2(scores[2 * k][0], scores[2 * k][1]), narrow2(scores[2 * k][2], scores[2 * k][3]),
        narrow2(scores[2 * k + 1][0], scores[2 * k + 1][1]), narrow2(scores[2 * k + 1][2], scores[2 * k + 1][3])};
#pragma unroll
    for (int n = 0; n < D / 16; ++n) {
      uint32_t b[4];
      load_matrices_transposed(b, values + (k * 16 + lane % 16) * STRIDE + n * 16 + lane / 16 * 8);
      multiply_add(state.values[2 * n], weights, b[0], b[1]);
      multiply_add(state.values[2 * n + 1], weights, b[2], b[3]);
    }
  }
}

// Starts to copy `KEYS` keys and values from the row's `key`-th on, by `threads` threads of which this is number `thread`.
template <int D, int KEYS, int STRIDE>
__device__ __forceinline__ void begin_keys(const Attention& a, const Tile& t, uint32_t key, bf16* keys, bf16* values,
                                           uint32_t thread, uint32_t threads) {
  const uint64_t place = place_of(a, t, key);
  for (uint32_t piece = thread; piece < KEYS * (D / 8); piece += threads) {
    const uint32_t row = piece / (D / 8), column = piece % (D / 8) * 8;
    const bool there = key + row < t.key_end;
    const uint64_t from = there ? place + uint64_t(row) * a.key_stride + column : 0;
    copy_begin(keys + row * STRIDE + column, a.keys + from, there);
    copy_begin(values + row * STRIDE + column, a.values + from, there);
  }
  copies_commit();
}

// Of heads so long that what is held of them would not fit elsewhere.
template <int D>
constexpr bool LONG = D > 128;
// Warps of a block in the kernel for short steps.
template <int D>
constexpr int STEP_WARPS = LONG<D> ? 2 : 4;

// 64 queries, 16 of each warp; a page at a time, or half of one, the next on its way. Grid [tiles, key heads], 128 threads.
template <int D>
__device__ __forceinline__ void attend_prompt(const Attention& a) {
  constexpr int STRIDE = D + 8;  // spreads the rows that one instruction reads over all banks
  constexpr int KEYS = LONG<D> ? PAGE / 2 : PAGE;
  __shared__ __align__(16) bf16 memory[2][2][KEYS * STRIDE];
  const Tile t = tile_of<64>(a);
  uint32_t q[D / 16][4], position[2];
  uint64_t place[2];
  load_queries<D>(a, t, threadIdx.x / 32 * 16, q, position, place);
  State<D> state;
  state.clear();
  const uint32_t begin = t.key_begin / KEYS, end = (t.key_end + KEYS - 1) / KEYS;
  begin_keys<D, KEYS, STRIDE>(a, t, begin * KEYS, memory[0][0], memory[0][1], threadIdx.x, 128);
  for (uint32_t run = begin; run < end; ++run) {
    const uint32_t now = (run - begin) % 2;
    if (run + 1 < end) {
      begin_keys<D, KEYS, STRIDE>(a, t, (run + 1) * KEYS, memory[1 - now][0], memory[1 - now][1], threadIdx.x, 128);
      copies_wait<1>();
    } else {
      copies_wait<0>();
    }
    __syncthreads();
    take_keys<D, KEYS, STRIDE>(a, t, run * KEYS, memory[now][0], memory[now][1], q, position, state);
    __syncthreads();
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const float sum = quad_sum(state.sum[half]);
    if (place[half] == ~uint64_t(0)) continue;
    bf16* out = a.out + place[half] + 2 * (threadIdx.x % 4);
#pragma unroll
    for (int n = 0; n < D / 8; ++n)
      *reinterpret_cast<uint32_t*>(out + n * 8) =
          narrow2(state.values[n][2 * half] / sum, state.values[n][2 * half + 1] / sum);
  }
}

// 16 queries; the warps take turns at runs of 16 keys, and their states are joined at the end. Grid [tiles, key heads],
// STEP_WARPS warps.
template <int D>
__device__ __forceinline__ void attend_step(const Attention& a) {
  constexpr int STRIDE = D + 8, KEYS = 16, WARPS = STEP_WARPS<D>;
  // Keys and values of each warp; then its state: 16 rows of D floats take less.
  __shared__ __align__(16) bf16 memory[WARPS][2][KEYS * STRIDE];
  __shared__ float tops[WARPS][16], sums[WARPS][16];
  const uint32_t warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const Tile t = tile_of<16>(a);
  uint32_t q[D / 16][4], position[2];
  uint64_t place[2];
  load_queries<D>(a, t, 0, q, position, place);
  State<D> state;
  state.clear();
  const uint32_t begin = t.key_begin / KEYS, end = (t.key_end + KEYS - 1) / KEYS;
  for (uint32_t run = begin + warp; run < end; run += WARPS) {
    begin_keys<D, KEYS, STRIDE>(a, t, run * KEYS, memory[warp][0], memory[warp][1], lane, 32);
    copies_wait<0>();
    __syncwarp();
    take_keys<D, KEYS, STRIDE>(a, t, run * KEYS, memory[warp][0], memory[warp][1], q, position, state);
    __syncwarp();
  }
  __syncthreads();
  float* joined = reinterpret_cast<float*>(&memory[0][0][0]);
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const uint32_t row = lane / 4 + 8 * half;
    const float sum = quad_sum(state.sum[half]);
    if (lane % 4 == 0) {
      tops[warp][row] = state.top[half];
      sums[warp][row] = sum;
    }
#pragma unroll
    for (int n = 0; n < D / 8; ++n)
      for (int i = 0; i < 2; ++i)
        joined[(warp * 16 + row) * D + n * 8 + 2 * (lane % 4) + i] = state.values[n][2 * half + i];
  }
  __syncthreads();
  const uint32_t count = t.queries * a.group;
  for (uint32_t i = threadIdx.x; i < count * (D / 2); i += 32 * WARPS) {
    const uint32_t row = i / (D / 2), column = i % (D / 2) * 2;
    float top = NOTHING;
    for (int w = 0; w < WARPS; ++w) top = fmaxf(top, tops[w][row]);
    float sum = 0.0f, first = 0.0f, second = 0.0f;
    for (int w = 0; w < WARPS; ++w) {
      // A warp without keys has a top of minus infinity, and so no weight; one that met NaN must be heard.
      const float weight = exp2f(tops[w][row] - (top == NOTHING ? 0.0f : top));
      sum += weight * sums[w][row];
      first += weight * joined[(w * 16 + row) * D + column];
      second += weight * joined[(w * 16 + row) * D + column + 1];
    }
    const uint64_t token = t.first_token + t.first_query + row / a.group;
    const uint64_t head = blockIdx.y * a.group + row % a.group;
    *reinterpret_cast<uint32_t*>(a.out + (token * a.heads + head) * D + column) = narrow2(first / sum, second / sum);
  }
}

extern "C" {
__global__ void __launch_bounds__(128) attend_prompt_32(Attention a) { attend_prompt<32>(a); }
__global__ void __launch_bounds__(128) attend_prompt_64(Attention a) { attend_prompt<64>(a); }
__global__ void __launch_bounds__(128) attend_prompt_96(Attention a) { attend_prompt<96>(a); }
__global__ void __launch_bounds__(128) attend_prompt_128(Attention a) { attend_prompt<128>(a); }
__global__ void __launch_bounds__(128) attend_prompt_256(Attention a) { attend_prompt<256>(a); }
__global__ void __launch_bounds__(128) attend_step_32(Attention a) { attend_step<32>(a); }
__global__ void __launch_bounds__(128) attend_step_64(Attention a) { attend_step<64>(a); }
__global__ void __launch_bounds__(128) attend_step_96(Attention a) { attend_step<96>(a); }
__global__ void __launch_bounds__(128) attend_step_128(Attention a) { attend_step<128>(a); }
__global__ void __launch_bounds__(32 * STEP_WARPS<256>) attend_step_256(Attention a) { attend_step<256>(a); }
}
