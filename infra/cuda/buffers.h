// Memory of GPUs that are not there, and the host's pinned memory. Each buffer ends where a page begins that nobody may touch, and is
// NaN until somebody writes there. Where nothing is computed, buffers are addresses that the system finds pages for when they are
// touched, so that there are as many as on an H200. When a buffer is given back is queue.h's to say.
#pragma once

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <map>
#include <utility>

namespace buffers {

enum class Kind { DEVICE, PINNED };

// How it is made: NaN and watched, or only addresses.
enum class Pages { ALL, TOUCHED };

// What a buffer's bytes are where nothing is computed: zeros, what was copied there, or ones for all floats.
enum class Holds { ZEROS, BYTES, ONES };

// A GPU's memory.
struct Room {
  size_t all = 0, taken = 0;
};

struct Buffer {
  char* begin;
  size_t mapped, bytes;
  Kind kind;
  // Where it counts; nowhere, if it is the host's.
  Room* room;
  Holds holds = Holds::ZEROS;
  bool leaving = false;
};

// What becomes of one that ends: whoever touches it is stopped; or it is NaN for good, because copies of it may still be under way; or
// the next buffer of its size gets it, as the driver's pool does, without asking the system.
enum class End { UNMAPPED, SPOILED, KEPT };

static const size_t PAGE_BYTES = 4096;
// Larger ones are not kept.
static const size_t KEPT_BYTES = size_t(64) << 20;

// By their addresses. Threads may still ask when the program ends, so it is never destroyed.
inline std::map<char*, Buffer>& all() {
  static auto& all = *new std::map<char*, Buffer>;
  return all;
}

// Memory that is kept, by its size.
inline std::multimap<size_t, char*>& kept() {
  static auto& kept = *new std::multimap<size_t, char*>;
  return kept;
}

inline char* map_pages(size_t mapped, Pages pages) {
  const auto found = kept().find(mapped);
  if (found != kept().end()) return kept().extract(found).mapped();
  const int flags = MAP_PRIVATE | MAP_ANONYMOUS | (pages == Pages::ALL ? 0 : MAP_NORESERVE);
  void* begin = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, flags, -1, 0);
  return begin == MAP_FAILED ? nullptr : static_cast<char*>(begin);
}

// A buffer, or nullptr if there is no such room.
inline char* take(size_t bytes, Kind kind, Room* room, Pages pages) {
  const size_t used = (bytes + 15) / 16 * 16, guard = pages == Pages::ALL ? PAGE_BYTES : 0;
  const size_t mapped = std::max((used + PAGE_BYTES - 1) / PAGE_BYTES, size_t(1)) * PAGE_BYTES + guard;
  if (room != nullptr && room->taken + mapped > room->all) return nullptr;
  char* begin = map_pages(mapped, pages);
  if (begin == nullptr) return nullptr;
  char* buffer = begin;
  if (pages == Pages::ALL) {
    mprotect(begin + mapped - PAGE_BYTES, PAGE_BYTES, PROT_NONE);
    buffer = begin + mapped - PAGE_BYTES - used;
  }
  if (pages == Pages::ALL || kind == Kind::PINNED) std::memset(buffer, 0xff, used);
  if (room != nullptr) room->taken += mapped;
  all()[buffer] = {begin, mapped, bytes, kind, room};
  return buffer;
}

// The buffer that has these bytes, or nullptr.
inline Buffer* holding(const void* address, size_t bytes = 1) {
  char* at = const_cast<char*>(static_cast<const char*>(address));
  auto found = all().upper_bound(at);
  if (found == all().begin()) return nullptr;
  --found;
  return at + bytes <= found->first + found->second.bytes ? &found->second : nullptr;
}

// Somebody has asked for its end: its room is anybody's from now on, the memory stays until `give_back`.
inline void leave(void* buffer) {
  const auto found = all().find(static_cast<char*>(buffer));
  if (found == all().end() || std::exchange(found->second.leaving, true)) std::abort();
  if (found->second.room != nullptr) found->second.room->taken -= found->second.mapped;
}

inline void give_back(void* buffer, End end) {
  const auto found = all().find(static_cast<char*>(buffer));
  const Buffer& known = found->second;
  if (end == End::SPOILED) std::memset(buffer, 0xff, known.bytes);
  else if (end == End::KEPT && known.mapped <= KEPT_BYTES) kept().emplace(known.mapped, known.begin);
  else munmap(known.begin, known.mapped);
  all().erase(found);
}
}  // namespace buffers
