// When what a stream is asked for is done, in one of three ways that the environment chooses. At once. Or as late as a driver may: when
// somebody waits, and then no more than what is waited for, so that memory of the host's that is changed, read or freed too early shows
// in the answers. Or never, while as much time passes as it might on a GPU (pace.h). What is recorded is done when it is played. All
// of it stands behind one lock. It knows no kernels.
#pragma once

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "buffers.h"
#include "pace.h"

// cuda.h.
enum Status {
  DONE = 0,
  INVALID_VALUE = 1,
  OUT_OF_MEMORY = 2,
  NOT_FOUND = 500,
  NOT_READY = 600,
  CAPTURE_INVALIDATED = 901,
};

enum class Mode { AT_ONCE, LATE, PACED };

static Mode mode() {
  static const Mode mode = [] {
    const char* late = std::getenv("EMULATED_LATE");
    const bool is_late = late != nullptr && std::strcmp(late, "1") == 0, is_paced = std::getenv("EMULATED_PACE") != nullptr;
    if (late != nullptr && !is_late) pace::refuse("EMULATED_LATE", "should be 1, or not be there");
    if (is_late && is_paced) pace::refuse("EMULATED_LATE", "nothing is computed with EMULATED_PACE, so nothing is late");
    return is_late ? Mode::LATE : is_paced ? Mode::PACED : Mode::AT_ONCE;
  }();
  return mode;
}

typedef std::function<void()> Work;
struct Stream;
struct Gpu;

// A place in what a stream was asked for, which an event may have and somebody may wait for.
struct Mark {
  // Is gone when this is reached and nobody wants it any more.
  Stream* stream;
  Gpu* gpu;
  // Where nothing is late: from the beginning.
  bool reached = false;
  // Where time passes: when it is reached.
  double moment = 0.0;
};
typedef std::shared_ptr<Mark> MarkOf;

struct Operation {
  // Nothing to do, or nothing but what the program must find, where nothing is computed.
  Work work;
  // Nothing where no time passes.
  pace::Seconds seconds;
  pace::Engine engine = pace::COMPUTING;
  // What must have been reached before, of another stream.
  MarkOf awaited;
};
typedef std::vector<Operation> Operations;

struct Stream {
  Gpu* gpu;
  bool recording = false, broken = false;
  Operations recorded;
  // What is not done yet, where all is late.
  std::deque<Operation> left;
  // When all is done that it was asked for, where time passes.
  double clock = 0.0;
};

struct Gpu {
  buffers::Room room;
  pace::Timeline timeline;
  // Without a name: who gives none means it.
  Stream standard;
  std::list<Stream*> streams;
  // Whoever made these wants them no more, but they have something left to do.
  std::list<Stream*> abandoned;
};

static std::mutex lock;

// All GPUs. Threads may still ask when the program ends, so they are never destroyed.
static std::deque<Gpu>& gpus() {
  static auto& gpus = *new std::deque<Gpu>;
  return gpus;
}

// The one that the calling thread has chosen; the first, where it chose none.
static thread_local Gpu* chosen_gpu = nullptr;
static Gpu& current() { return chosen_gpu == nullptr ? gpus().front() : *chosen_gpu; }

// The lock must be held for whatever follows.

static Stream& named(Stream* stream) { return stream == nullptr ? current().standard : *stream; }

// Does one operation: the stream's next one, or one that it waits for.
static void do_next(Stream& stream) {
  const MarkOf awaited = stream.left.front().awaited;
  if (awaited != nullptr && !awaited->reached) return do_next(*awaited->stream);
  const Operation next = std::move(stream.left.front());
  stream.left.pop_front();
  if (next.work) next.work();
}

// Lets its time pass.
static void pass(Stream& stream, const Operation& operation) {
  const double asked = pace::now();
  pace::Timeline& timeline = stream.gpu->timeline;
  if (operation.work) operation.work();
  if (!operation.seconds) return;
  const double launch = operation.engine == pace::COMPUTING ? pace::LAUNCH : 0.0;
  stream.clock = timeline.add(operation.engine, std::max(stream.clock, asked), operation.seconds() + launch);
  timeline.spent(pace::now() - asked);
}

static void ask_held(Stream& stream, Operation operation) {
  if (stream.recording) return stream.recorded.push_back(std::move(operation));
  switch (mode()) {
    case Mode::AT_ONCE: return operation.work ? operation.work() : void();
    case Mode::LATE: return stream.left.push_back(std::move(operation));
    case Mode::PACED: return pass(stream, operation);
  }
}

// The end of what the stream was asked for until now.
static MarkOf mark_held(Stream& stream) {
  const MarkOf mark = std::make_shared<Mark>(Mark{&stream, stream.gpu});
  mark->moment = stream.clock;
  if (mode() != Mode::LATE || stream.left.empty()) mark->reached = true;
  else stream.left.push_back({[mark] { mark->reached = true; }});
  return mark;
}

// Streams that nobody has any more do what they have left to do.
static void finish_abandoned(Gpu& gpu) {
  for (Stream* stream : gpu.abandoned) {
    while (!stream->left.empty()) do_next(*stream);
    delete stream;
  }
  gpu.abandoned.clear();
}

// The lock must not be held for whatever follows.

// Does it in its turn, or when the graph is played that is being recorded.
static int ask(Stream* stream, Operation operation) {
  std::lock_guard<std::mutex> held(lock);
  return ask_held(named(stream), std::move(operation)), DONE;
}

// Whether it may be done that must not be asked for while a graph is recorded, which is none then.
static bool refused(Stream* stream) {
  std::lock_guard<std::mutex> held(lock);
  Stream& asked = named(stream);
  if (asked.recording) asked.broken = true;
  return asked.recording;
}

static int never_recorded(Stream* stream, Operation operation) {
  return refused(stream) ? int(CAPTURE_INVALIDATED) : ask(stream, std::move(operation));
}

static MarkOf mark(Stream* stream) {
  std::lock_guard<std::mutex> held(lock);
  return mark_held(named(stream));
}

// Waits until it is reached: whoever waits does what is late. What was never recorded is nowhere.
static int wait_for(const MarkOf& mark) {
  if (mark == nullptr) return DONE;
  const bool slept = mode() == Mode::PACED && pace::sleep_until(mark->moment);
  std::lock_guard<std::mutex> held(lock);
  while (!mark->reached) do_next(*mark->stream);
  if (mode() == Mode::PACED) mark->gpu->timeline.waited(mark->moment, slept);
  return DONE;
}

// Whether it is reached. Whoever asks often enough is to be told so at some time, so each time one operation is done.
static int query(const MarkOf& mark) {
  if (mark == nullptr) return DONE;
  if (mode() == Mode::PACED) return pace::now() < mark->moment ? NOT_READY : DONE;
  std::lock_guard<std::mutex> held(lock);
  if (mark->reached) return DONE;
  return do_next(*mark->stream), NOT_READY;
}

// What the stream is asked for next is not to be begun before.
static int wait_on_stream(Stream* stream, const MarkOf& mark) {
  if (mark == nullptr) return DONE;
  std::lock_guard<std::mutex> held(lock);
  Stream& waiting = named(stream);
  waiting.clock = std::max(waiting.clock, mark->moment);
  if (!mark->reached) waiting.left.push_back({{}, {}, pace::COMPUTING, mark});
  return DONE;
}

// Recorded operations, to be done one after the other.
static Operation played(const std::shared_ptr<const Operations>& graph) {
  Operation all;
  all.work = [graph] {
    for (const Operation& operation : *graph)
      if (operation.work) operation.work();
  };
  if (mode() != Mode::PACED) return all;
  all.seconds = [graph] {
    double seconds = 0.0;
    for (const Operation& operation : *graph) seconds += pace::RECORDED_LAUNCH + (operation.seconds ? operation.seconds() : 0.0);
    return seconds;
  };
  return all;
}
