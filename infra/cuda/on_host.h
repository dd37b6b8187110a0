// Stands in for a GPU, so that the engine's kernels can be run on any machine: threads of a block are fibers that take turns, and
// what the lanes of a warp do together is done with what each of them has put down. It says what kernels compute, nothing of how
// fast, and nothing of races that one thread at a time cannot have.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

using std::isfinite;
using std::isnan;
using std::max;
using std::min;

#define __global__
#define __device__
#define __forceinline__ inline
#define __shared__ static
#define __align__(n) __attribute__((aligned(n)))
#define __launch_bounds__(n)

struct dim3 {
  uint32_t x = 1, y = 1, z = 1;
};
struct uint4 {
  uint32_t x, y, z, w;
};
struct float4 {
  float x, y, z, w;
};
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

namespace host {
// Threads that wait for each other.
struct Group {
  uint32_t size = 0, arrived = 0;
  uint64_t round = 0;
};

struct Put {
  const void* pointer;
  uint32_t words[6];
};

struct Fiber {
  ucontext_t context;
  // Where it goes on: a jump asks the system for nothing, as changing contexts does.
  jmp_buf place;
  std::unique_ptr<char[]> stack;
  bool begun = false, done = false;
};

struct Block {
  std::vector<Fiber> fibers;
  std::vector<Group> warps;
  Group all;
  std::vector<Put> puts;
  jmp_buf scheduler;
  uint32_t now = 0;
  const std::function<void()>* kernel = nullptr;
};

inline Block block;

// Lets the other threads go on.
__attribute__((noinline)) inline void pause() {
  if (_setjmp(block.fibers[block.now].place) == 0) _longjmp(block.scheduler, 1);
}

// Goes on with a thread until it waits or has returned.
__attribute__((noinline)) inline void resume(Fiber& fiber) {
  if (_setjmp(block.scheduler) != 0) return;
  if (fiber.begun) _longjmp(fiber.place, 1);
  fiber.begun = true;
  setcontext(&fiber.context);
}

inline void wait(Group& group) {
  const uint64_t round = group.round;
  if (++group.arrived == group.size) {
    group.arrived = 0;
    ++group.round;
    return;
  }
  while (group.round == round) pause();
}

inline Group& warp() { return block.warps[block.now / 32]; }
inline Put& mine() { return block.puts[block.now]; }
inline const Put& of_lane(uint32_t lane) { return block.puts[block.now / 32 * 32 + lane]; }

inline void enter() {
  (*block.kernel)();
  Fiber& fiber = block.fibers[block.now];
  fiber.done = true;
  // A thread that has returned is waited for by nobody.
  for (Group* group : {&block.all, &warp()})
    if (--group->size > 0 && group->arrived == group->size) {
      group->arrived = 0;
      ++group->round;
    }
  _longjmp(block.scheduler, 1);
}
}  // namespace host

inline dim3 gridDim, blockDim, blockIdx, threadIdx;

// Runs a kernel, block after block.
inline void launch(dim3 grid, uint32_t threads, const std::function<void()>& kernel) {
  using host::block;
  gridDim = grid;
  blockDim.x = threads;
  block.kernel = &kernel;
  for (uint32_t y = 0; y < grid.y; ++y)
    for (uint32_t x = 0; x < grid.x; ++x) {
      blockIdx.x = x;
      blockIdx.y = y;
      block.all = {threads, 0, 0};
      block.warps.assign((threads + 31) / 32, {});
      for (uint32_t i = 0; i < threads; ++i) ++block.warps[i / 32].size;
      block.puts.resize(threads);
      block.fibers.resize(threads);
      for (auto& fiber : block.fibers) {
        getcontext(&fiber.context);
        if (!fiber.stack) fiber.stack.reset(new char[1 << 17]);
        fiber.context.uc_stack.ss_sp = fiber.stack.get();
        fiber.context.uc_stack.ss_size = 1 << 17;
        fiber.begun = fiber.done = false;
        makecontext(&fiber.context, host::enter, 0);
      }
      for (bool left = true; left;) {
        left = false;
        for (uint32_t i = 0; i < threads; ++i) {
          if (block.fibers[i].done) continue;
          block.now = i;
          threadIdx.x = i;
          resume(block.fibers[i]);
          left = left || !block.fibers[i].done;
        }
      }
    }
}

inline void __syncthreads() { host::wait(host::block.all); }
inline void __syncwarp() { host::wait(host::warp()); }

inline float __shfl_xor_sync(uint32_t, float x, int step) {
  std::memcpy(host::mine().words, &x, 4);
  host::wait(host::warp());
  std::memcpy(&x, host::of_lane(host::block.now % 32 ^ step).words, 4);
  host::wait(host::warp());
  return x;
}

inline float __expf(float x) { return std::exp(x); }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }

typedef unsigned short bf16;

inline float wide(bf16 x) {
  const uint32_t bits = uint32_t(x) << 16;
  float out;
  std::memcpy(&out, &bits, 4);
  return out;
}

inline uint32_t rounded(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  if (std::isnan(x)) return 0x7fff;
  return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

inline uint32_t narrow2(float low, float high) { return rounded(low) | rounded(high) << 16; }

inline float half_of(uint32_t pair, int which) { return wide(bf16(which ? pair >> 16 : pair)); }

// As in device.cuh, from what the PTX manual says of mma.m16n8k16: which lane has which number.
inline void multiply_add(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  std::memcpy(host::mine().words, a, 16);
  host::mine().words[4] = b0;
  host::mine().words[5] = b1;
  host::wait(host::warp());
  const uint32_t lane = host::block.now % 32;
  for (int i = 0; i < 4; ++i) {
    const uint32_t row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
    for (uint32_t k = 0; k < 16; ++k) {
      const uint32_t* left = host::of_lane(row % 8 * 4 + k % 8 / 2).words;
      const uint32_t* right = host::of_lane(column * 4 + k % 8 / 2).words;
      c[i] += half_of(left[row / 8 + k / 8 * 2], k % 2) * half_of(right[4 + k / 8], k % 2);
    }
  }
  host::wait(host::warp());
}

inline void load_matrices(uint32_t (&r)[4], const bf16* row) {
  host::mine().pointer = row;
  host::wait(host::warp());
  const uint32_t lane = host::block.now % 32;
  for (int i = 0; i < 4; ++i)
    std::memcpy(&r[i], static_cast<const bf16*>(host::of_lane(i * 8 + lane / 4).pointer) + lane % 4 * 2, 4);
  host::wait(host::warp());
}

inline void load_matrices_transposed(uint32_t (&r)[4], const bf16* row) {
  host::mine().pointer = row;
  host::wait(host::warp());
  const uint32_t lane = host::block.now % 32;
  for (int i = 0; i < 4; ++i) {
    const bf16* upper = static_cast<const bf16*>(host::of_lane(i * 8 + lane % 4 * 2).pointer);
    const bf16* lower = static_cast<const bf16*>(host::of_lane(i * 8 + lane % 4 * 2 + 1).pointer);
    r[i] = upper[lane / 4] | uint32_t(lower[lane / 4]) << 16;
  }
  host::wait(host::warp());
}

inline void copy_begin(bf16* to, const bf16* from, bool there) {
  if (reinterpret_cast<uintptr_t>(to) % 16 != 0 || reinterpret_cast<uintptr_t>(from) % 16 != 0) std::abort();
  if (there) std::memcpy(to, from, 16);
  else std::memset(to, 0, 16);
}
inline void copies_commit() {}
template <int GROUPS>
inline void copies_wait() {}
