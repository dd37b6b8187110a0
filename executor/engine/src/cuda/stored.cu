// What stands around products that cuBLAS does not put where they are to go, of matrices as GGUF stores them and of 8-bit floats: states
// widened for candle's kernels, products put in their place, and rows of a stored matrix. A thread has eight numbers, one, or a lane's part of a row.
#include "device.cuh"

// As `Form` in stored.rs.
enum Form { ROUNDED = 0, FLOATS = 1, ADDED = 2 };

extern "C" {

// out[i] = in[i], of `count` numbers, a multiple of 8. Grid: a thread for eight numbers.
__global__ void widen(float* out, const bf16* in, uint64_t count) {
  const uint64_t at = (uint64_t(blockIdx.x) * blockDim.x + threadIdx.x) * 8;
  if (at >= count) return;
  const uint4 words = *reinterpret_cast<const uint4*>(in + at);
  *reinterpret_cast<float4*>(out + at) = make_float4(low(words.x), high(words.x), low(words.y), high(words.y));
  *reinterpret_cast<float4*>(out + at + 4) = make_float4(low(words.z), high(words.z), low(words.w), high(words.w));
}

// A product ([rows, width]) times a factor, and the scales of its rows and of its columns where there are any, into columns `column`
// and following of `to` ([rows, stride]): as bf16, as floats, or added to floats that are there. `to` may be the product itself.
// Grid [rows, parts of as many columns as a block has threads].
__global__ void settle(void* to, const float* product, const float* row_scales, const float* column_scales, uint32_t width,
                       uint32_t stride, uint32_t column, uint32_t form, float factor) {
  const uint32_t i = blockIdx.y * blockDim.x + threadIdx.x;
  if (i >= width) return;
  float x = factor * product[uint64_t(blockIdx.x) * width + i];
  if (row_scales != nullptr) x *= row_scales[blockIdx.x];
  if (column_scales != nullptr) x *= column_scales[i];
  const uint64_t at = uint64_t(blockIdx.x) * stride + column + i;
  if (form == ROUNDED) static_cast<bf16*>(to)[at] = narrow(x);
  else if (form == FLOATS) static_cast<float*>(to)[at] = x;
  else static_cast<float*>(to)[at] += x;
}

// to[i] = from[rows[i]], rows of `width` 2-byte words. Grid: a warp a row, four of them a block.
__global__ void gather_blocks(uint16_t* to, const uint16_t* from, const uint32_t* rows, uint32_t count, uint32_t width) {
  const uint32_t row = blockIdx.x * 4 + threadIdx.x / 32;
  if (row >= count) return;
  for (uint32_t i = threadIdx.x % 32; i < width; i += 32)
    to[uint64_t(row) * width + i] = from[uint64_t(rows[row]) * width + i];
}
}
