// What all kernels share: bf16 as 16 bits, matrix instructions of a warp, copies into shared memory, sums over a warp.
// infra/cuda/check compiles the same kernels for the host, where `on_host.h` stands in for a GPU.
#pragma once

#ifdef ROWMILL_ON_HOST
#include "on_host.h"
#else
#include <cstdint>

// Upper half of a float.
typedef unsigned short bf16;

__device__ __forceinline__ float wide(bf16 x) { return __uint_as_float(uint32_t(x) << 16); }

// Two floats rounded to the nearest, the first in the lower half.
__device__ __forceinline__ uint32_t narrow2(float low, float high) {
  uint32_t both;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
}

// c += a * b: 16 rows by 16, times 16 by 8 columns (PTX ISA, "mma.m16n8k16"). With g = lane / 4 and i = 2 * (lane % 4) a lane holds
// of a (g, i), (g + 8, i), (g, i + 8), (g + 8, i + 8), of b (i, g), (i + 8, g), each with its neighbour in k, and of c
// (g, i), (g, i + 1), (g + 8, i), (g + 8, i + 1).
__device__ __forceinline__ void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Four matrices of 8 by 8; lanes 8 i to 8 i + 7 name the rows of the i-th. A lane gets of each (lane / 4, 2 * (lane % 4)) and its
// right neighbour.
__device__ __forceinline__ void load_matrices(uint32_t (&r)[4], const bf16* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(uint32_t(__cvta_generic_to_shared(row)))
               : "memory");
}

// The same, transposed: a lane gets (2 * (lane % 4), lane / 4) and its lower neighbour.
__device__ __forceinline__ void load_matrices_transposed(uint32_t (&r)[4], const bf16* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(uint32_t(__cvta_generic_to_shared(row)))
               : "memory");
}

// Starts a copy of 16 bytes into shared memory, of zeros where there is nothing to read.
__device__ __forceinline__ void copy_begin(bf16* to, const bf16* from, bool there) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(uint32_t(__cvta_generic_to_shared(to))), "l"(from),
               "r"(there ? 16 : 0)
               : "memory");
}

// Closes a group of copies.
__device__ __forceinline__ void copies_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until all groups but the last `GROUPS` are there, for this thread.
template <int GROUPS>
__device__ __forceinline__ void copies_wait() {
  asm volatile("cp.async.wait_group %0;" ::"n"(GROUPS) : "memory");
}
#endif

#define EVERY_LANE 0xffffffffu

__device__ __forceinline__ bf16 narrow(float x) { return bf16(narrow2(x, 0.0f) & 0xffffu); }
__device__ __forceinline__ float low(uint32_t pair) { return wide(bf16(pair & 0xffffu)); }
__device__ __forceinline__ float high(uint32_t pair) { return wide(bf16(pair >> 16)); }

// Sum of all lanes, in all lanes.
__device__ __forceinline__ float warp_sum(float x) {
  for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(EVERY_LANE, x, step);
  return x;
}

// Of the four lanes that hold parts of the same rows of an accumulator.
__device__ __forceinline__ float quad_sum(float x) {
  x += __shfl_xor_sync(EVERY_LANE, x, 1);
  return x + __shfl_xor_sync(EVERY_LANE, x, 2);
}

__device__ __forceinline__ float quad_max(float x) {
  x = fmaxf(x, __shfl_xor_sync(EVERY_LANE, x, 1));
  return fmaxf(x, __shfl_xor_sync(EVERY_LANE, x, 2));
}
