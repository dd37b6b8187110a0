// Memory of GPUs and of the host as streams are asked for it, and copies between both, in their turn. What is pinned a copy reads and
// writes when it is done; of all other memory the driver has a copy of its own, or waits. Copies within a GPU are kernels.
#pragma once

#include <algorithm>
#include <cstring>
#include <memory>
#include <mutex>
#include <vector>

#include "buffers.h"
#include "costs.h"
#include "pace.h"
#include "queue.h"

static int take(void** out, size_t bytes, buffers::Kind kind) {
  std::lock_guard<std::mutex> held(lock);
  const bool is_paced = mode() == Mode::PACED;
  *out = buffers::take(bytes, kind, kind == buffers::Kind::DEVICE ? &current().room : nullptr,
                       is_paced ? buffers::Pages::TOUCHED : buffers::Pages::ALL);
  return *out == nullptr ? int(OUT_OF_MEMORY) : int(DONE);
}

// Memory of a GPU is the stream's from its turn on: what others write there before is lost.
static int take_on_stream(void** out, size_t bytes, Stream* stream) {
  if (refused(stream)) return CAPTURE_INVALIDATED;
  const int status = take(out, bytes, buffers::Kind::DEVICE);
  if (status != DONE || mode() != Mode::LATE) return status;
  void* const buffer = *out;
  return ask(stream, {[=] { std::memset(buffer, 0xff, bytes); }});
}

static int leave(void* buffer, Stream* stream) {
  if (refused(stream)) return CAPTURE_INVALIDATED;
  std::lock_guard<std::mutex> held(lock);
  buffers::leave(buffer);
  const buffers::End end = mode() == Mode::PACED ? buffers::End::KEPT : buffers::End::UNMAPPED;
  return ask_held(named(stream), {[=] { buffers::give_back(buffer, end); }}), DONE;
}

static int leave_pinned(void* buffer) {
  std::lock_guard<std::mutex> held(lock);
  buffers::leave(buffer);
  return buffers::give_back(buffer, mode() == Mode::LATE ? buffers::End::SPOILED : buffers::End::UNMAPPED), DONE;
}

static bool is_pinned(const void* memory, size_t bytes) {
  std::lock_guard<std::mutex> held(lock);
  const buffers::Buffer* buffer = buffers::holding(memory, bytes);
  return buffer != nullptr && buffer->kind == buffers::Kind::PINNED;
}

static pace::Seconds over_the_bus(size_t bytes) { return costs::takes(pace::COPY_BEGINS + double(bytes) / pace::BUS); }

// Where nothing is computed, a buffer has what was copied there, or what a kernel is said to leave.
static void copy_in(char* to, const char* from, size_t bytes) {
  ++costs::copies_made();
  std::memcpy(to, from, bytes);
  if (buffers::Buffer* buffer = buffers::holding(to)) buffer->holds = buffers::Holds::BYTES;
}

static void copy_out(char* to, const char* from, size_t bytes) {
  const buffers::Buffer* buffer = mode() == Mode::PACED ? buffers::holding(from) : nullptr;
  const buffers::Holds holds = buffer == nullptr ? buffers::Holds::BYTES : buffer->holds;
  if (holds == buffers::Holds::BYTES) std::memcpy(to, from, bytes);
  else if (holds == buffers::Holds::ZEROS) std::memset(to, 0, bytes);
  else std::fill_n(reinterpret_cast<float*>(to), bytes / sizeof(float), 1.0f);
}

// What is not pinned the driver has read when it returns.
static int copy_to_gpu(char* to, const char* from, size_t bytes, Stream* stream) {
  if (mode() != Mode::LATE || is_pinned(from, bytes))
    return never_recorded(stream, {[=] { copy_in(to, from, bytes); }, over_the_bus(bytes), pace::COPYING_IN});
  const auto read = std::make_shared<const std::vector<char>>(from, from + bytes);
  return never_recorded(stream, {[=] { copy_in(to, read->data(), bytes); }});
}

// What is not pinned the driver has written when it returns. What is may change from now on: nothing that stood there is to be read.
static int copy_from_gpu(char* to, const char* from, size_t bytes, Stream* stream) {
  if (mode() == Mode::LATE && is_pinned(to, bytes)) std::memset(to, 0xff, bytes);
  const int status = never_recorded(stream, {[=] { copy_out(to, from, bytes); }, over_the_bus(bytes), pace::COPYING_OUT});
  return status != DONE || mode() == Mode::AT_ONCE || is_pinned(to, bytes) ? status : wait_for(mark(stream));
}

// Fresh memory is zero where nothing is computed, without a page that anybody would have to write.
static int set_bytes(char* to, unsigned char byte, size_t bytes, Stream* stream) {
  const Work work = [=] {
    const buffers::Buffer* buffer = mode() == Mode::PACED ? buffers::holding(to) : nullptr;
    if (byte != 0 || buffer == nullptr || buffer->holds != buffers::Holds::ZEROS) std::memset(to, byte, bytes);
  };
  // Beside what the GPU computes: models are loaded so.
  return ask(stream, {work, costs::moves(double(bytes)), pace::COPYING_IN});
}
