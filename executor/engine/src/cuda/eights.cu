// Rows of bf16 as rows of 8-bit floats (E4M3) with a scale each: what a row's largest number becomes is 448, the largest there is.
#include "device.cuh"

#define LARGEST 448.0f
// Rows of smaller numbers become zeros: what they would have to be multiplied with is infinite.
#define SMALLEST_ROW 1e-30f

// The nearest number of E4M3, even ones where two are as near; larger ones become the largest, and what is no number stays none.
__device__ __forceinline__ uint8_t eight(float x) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 890
  uint16_t pair;
  asm("cvt.rn.satfinite.e4m3x2.f32 %0, %1, %2;" : "=h"(pair) : "f"(0.0f), "f"(x));
  return pair & 0xff;
#else
  const uint8_t sign = x < 0.0f ? 0x80 : 0;
  const float size = fabsf(x);
  if (!(size <= LARGEST)) return sign | (isnan(x) ? 0x7f : 0x7e);
  // Numbers below 2^-6 have one exponent, so steps of 2^-9.
  int exponent = -6;
  while (exponent < 8 && size >= ldexpf(1.0f, exponent + 1)) ++exponent;
  const int steps = int(rintf(ldexpf(size, 3 - exponent)));
  // 16 steps are the next exponent's first number, which is what the sum makes of them.
  return sign | uint8_t((exponent + 6) * 8 + steps);
#endif
}

extern "C" {

// out[row] = x[row] / scales[row], rows of `width` numbers, a multiple of 8. Grid: a warp a row, four of them a block.
__global__ void eights(uint8_t* out, float* scales, const bf16* x, uint32_t rows, uint32_t width) {
  const uint32_t row = blockIdx.x * 4 + threadIdx.x / 32, lane = threadIdx.x % 32;
  if (row >= rows) return;
  const bf16* from = x + uint64_t(row) * width;
  float most = 0.0f;
  for (uint32_t i = lane * 8; i < width; i += 256) {
    const uint4 words = *reinterpret_cast<const uint4*>(from + i);
    const uint32_t pairs[4] = {words.x, words.y, words.z, words.w};
    for (int j = 0; j < 4; ++j) most = fmaxf(most, fmaxf(fabsf(low(pairs[j])), fabsf(high(pairs[j]))));
  }
  for (int step = 16; step > 0; step /= 2) most = fmaxf(most, __shfl_xor_sync(EVERY_LANE, most, step));
  const bool is_zero = most < SMALLEST_ROW;
  const float inverse = is_zero ? 0.0f : LARGEST / most;
  if (lane == 0) scales[row] = is_zero ? 0.0f : most / LARGEST;
  for (uint32_t i = lane * 8; i < width; i += 256) {
    const uint4 words = *reinterpret_cast<const uint4*>(from + i);
    const uint32_t pairs[4] = {words.x, words.y, words.z, words.w};
    uint32_t halves[2] = {0, 0};
    for (int j = 0; j < 4; ++j) {
      const uint32_t pair = eight(low(pairs[j]) * inverse) | uint32_t(eight(high(pairs[j]) * inverse)) << 8;
      halves[j / 2] |= pair << (j % 2 * 16);
    }
    uint32_t* to = reinterpret_cast<uint32_t*>(out + uint64_t(row) * width + i);
    to[0] = halves[0];
    to[1] = halves[1];
  }
}
}
