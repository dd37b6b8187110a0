// What leaves the device: of each row's logits the best token that is allowed, and of each row's states one vector. A block has a
// row, or a part of its columns.
#include "device.cuh"

#define THREADS 256
// As in launch.rs: no token is allowed; a logit is not finite.
#define NONE_ALLOWED 0xffffffffu
#define NOT_FINITE 0xfffffffeu

// As `Gpu::pool` in launch.rs has them.
enum Pooling { MEAN = 0, FIRST = 1, LAST = 2, HIGHEST = 3 };

extern "C" {

// chosen[row] = the highest of `logits` ([rows, vocab]) whose bit is set in the row's mask, the first of equals. `places` says which
// of `masks` ([_, words]) is the row's; `~0`: every token is allowed. All logits must be finite, allowed or not. Grid [rows],
// THREADS threads.
__global__ void choose(uint32_t* chosen, const float* logits, const uint32_t* places, const uint32_t* masks,
                       uint32_t vocab, uint32_t words) {
  __shared__ float tops[THREADS];
  __shared__ uint32_t tokens[THREADS];
  const float* row = logits + uint64_t(blockIdx.x) * vocab;
  const uint32_t place = places[blockIdx.x];
  const uint32_t* mask = place == ~0u ? nullptr : masks + uint64_t(place) * words;
  float top = -INFINITY;
  uint32_t token = NONE_ALLOWED;
  for (uint32_t i = threadIdx.x; i < vocab; i += THREADS) {
    const float logit = row[i];
    if (!isfinite(logit)) {
      token = NOT_FINITE;
      break;
    }
    const bool allowed = mask == nullptr || (i / 32 < words && (mask[i / 32] >> (i % 32) & 1) != 0);
    if (allowed && (token == NONE_ALLOWED || logit > top)) {
      top = logit;
      token = i;
    }
  }
  tops[threadIdx.x] = top;
  tokens[threadIdx.x] = token;
  __syncthreads();
  for (uint32_t step = THREADS / 2; step > 0; step /= 2) {
    if (threadIdx.x < step) {
      const uint32_t mine = tokens[threadIdx.x], other = tokens[threadIdx.x + step];
      const float x = tops[threadIdx.x], y = tops[threadIdx.x + step];
      const bool better = y > x || (y == x && other < mine);
      if (mine == NOT_FINITE || other == NOT_FINITE) {
        tokens[threadIdx.x] = NOT_FINITE;
      } else if (other != NONE_ALLOWED && (mine == NONE_ALLOWED || better)) {
        tokens[threadIdx.x] = other;
        tops[threadIdx.x] = y;
      }
    }
    __syncthreads();
  }
  if (threadIdx.x == 0) chosen[blockIdx.x] = tokens[0];
}

// out[row] ([rows, hidden]) is the mean, the first, the last or the highest of a row's states; `rows` is [rows, 4] as for
// attention. Grid [rows, parts of THREADS columns].
__global__ void pool(float* out, const bf16* states, const uint32_t* rows, uint32_t hidden, uint32_t pooling) {
  const uint32_t column = blockIdx.y * THREADS + threadIdx.x;
  if (column >= hidden) return;
  const uint32_t first = rows[4 * blockIdx.x], tokens = rows[4 * blockIdx.x + 1];
  const bf16* from = states + uint64_t(first) * hidden + column;
  float pooled;
  if (pooling == FIRST || pooling == LAST) {
    pooled = wide(from[pooling == FIRST ? 0 : uint64_t(tokens - 1) * hidden]);
  } else {
    pooled = wide(from[0]);
    for (uint32_t i = 1; i < tokens; ++i) {
      const float x = wide(from[uint64_t(i) * hidden]);
      // A value that is not a number must stay to be seen.
      if (pooling == MEAN) pooled += x;
      else pooled = x <= pooled || isnan(pooled) ? pooled : x;
    }
    if (pooling == MEAN) pooled /= float(tokens);
  }
  out[uint64_t(blockIdx.x) * hidden + column] = pooled;
}
}
