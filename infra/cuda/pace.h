// How long a GPU would take for what it is asked, where nothing is computed: `EMULATED_PACE` of `emulate`. A GPU has one engine that
// computes and one for copies of each direction; an operation begins when its stream and its engine have done what they were asked for
// before. Whoever waits sleeps as long. It knows rates and clocks; what an operation moves and multiplies is costs.h's to say.
#pragma once

#include <sys/prctl.h>
#include <time.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <vector>

namespace pace {

// What a kernel's start takes of a GPU, as one of its own and in a recording.
static const double LAUNCH = 2e-6, RECORDED_LAUNCH = 1e-6;
// The bus: what a copy takes besides, and bytes by the second.
static const double COPY_BEGINS = 5e-6, BUS = 50e9;
// Half of what an H200 was measured to do with bf16, and half of what its memory was measured to move: infra/bench/gpu_parts/roofs.py.
static const double OPERATIONS = 790e12 / 2, BYTES = 4.3e12 / 2;
// The last part of a wait is not slept, because nobody wakes up that exactly.
static const double SPUN = 50e-6;

enum Engine { COMPUTING, COPYING_IN, COPYING_OUT, ENGINES };

// How long an operation takes; asked when it is begun, because what it does may stand in tables that are written until then.
typedef std::function<double()> Seconds;

// Ends the program: an environment that cannot be what was meant.
[[noreturn]] inline void refuse(const char* name, const char* why) {
  std::fprintf(stderr, "driver on the host: %s: %s\n", name, why);
  std::_Exit(2);
}

// A number above 0 from the environment.
inline double setting(const char* name, double otherwise) {
  const char* text = std::getenv(name);
  if (text == nullptr) return otherwise;
  char* end;
  const double value = std::strtod(text, &end);
  if (end == text || *end != 0 || !(value > 0.0) || std::isinf(value)) refuse(name, "should be a number above 0");
  return value;
}

// Of the GPU by the second.
struct Rates {
  double operations, bytes;
};

inline const Rates& rates() {
  static const double divided = setting("EMULATED_PACE", 1.0);
  static const Rates rates = {setting("EMULATED_FLOPS", OPERATIONS) / divided,
                              setting("EMULATED_BYTES_PER_SECOND", BYTES) / divided};
  return rates;
}

// Of what multiplies so often and moves so many bytes of the GPU's memory; the longer of both, for they overlap.
inline double seconds_of(double operations, double bytes) {
  return std::max(operations / rates().operations, bytes / rates().bytes);
}

// The host's clock, in seconds.
inline double now() {
  timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return double(time.tv_sec) + 1e-9 * double(time.tv_nsec);
}

// Whether there was anything to wait for.
inline bool sleep_until(double moment) {
  if (now() >= moment) return false;
  // Without this the system may be 50 us late.
  static thread_local const int exactly = prctl(PR_SET_TIMERSLACK, 1UL);
  static_cast<void>(exactly);
  for (double slept = moment - SPUN; now() < slept;) {
    timespec time;
    time.tv_sec = time_t(slept);
    time.tv_nsec = long((slept - double(time.tv_sec)) * 1e9);
    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &time, nullptr);
  }
  while (now() < moment) {
  }
  return true;
}

// What the engines of a GPU have before them, and had.
class Timeline {
 public:
  // Gives an engine so many seconds of work that cannot begin before `from`; when that is done.
  double add(Engine engine, double from, double seconds) {
    const double start = std::max(from, done_[engine]);
    done_[engine] = start + seconds;
    if (begun_ == 0.0 && engine == COMPUTING) begun_ = from;
    if (begun_ > 0.0) busy_[engine] += seconds;
    if (begun_ > 0.0 && engine == COMPUTING) note(start - begun_, done_[engine] - begun_);
    return done_[engine];
  }

  // Somebody has waited until now for what was done at this moment, and came later than it.
  void waited(double moment, bool slept) {
    const double ended = now();
    waited_ = std::max(waited_, ended);
    if (begun_ > 0.0 && slept) late_ += ended - moment;
  }

  // The host has spent so long in here, on what no GPU's driver would do.
  void spent(double seconds) { spent_ += begun_ > 0.0 ? seconds : 0.0; }

  void say(size_t gpu) const {
    const double all = waited_ - begun_;
    if (begun_ == 0.0 || all <= 0.0) return;
    std::fprintf(stderr,
                 "GPU %zu at %.4g Tflop/s and %.4g TB/s: %.2f s from the first kernel to the last wait, %.2f s of them busy (%.1f %%), "
                 "%.2f s of copies to it and %.2f s from it; pretending took %.2f s of the host's, and waits ended %.2f s late in all\n",
                 gpu, rates().operations / 1e12, rates().bytes / 1e12, all, busy_[COMPUTING], 100.0 * busy_[COMPUTING] / all,
                 busy_[COPYING_IN], busy_[COPYING_OUT], spent_, late_);
    // No more numbers than one reads.
    const size_t together = (size_t(all) + COLUMNS) / COLUMNS;
    std::fprintf(stderr, "busy, %% of every %zu s:", together);
    for (size_t at = 0; double(at) < all; at += together) {
      double busy = 0.0;
      for (size_t second = at; second < std::min(at + together, by_second_.size()); ++second) busy += by_second_[second];
      std::fprintf(stderr, " %.0f", 100.0 * busy / std::min(double(together), all - double(at)));
    }
    std::fprintf(stderr, "\n");
  }

 private:
  static const size_t COLUMNS = 60;

  void note(double from, double to) {
    if (by_second_.size() <= size_t(to)) by_second_.resize(size_t(to) + 1);
    for (size_t second = size_t(from); second <= size_t(to); ++second)
      by_second_[second] += std::max(0.0, std::min(to, double(second + 1)) - std::max(from, double(second)));
  }

  double begun_ = 0.0, waited_ = 0.0, spent_ = 0.0, late_ = 0.0;
  double done_[ENGINES] = {}, busy_[ENGINES] = {};
  std::vector<double> by_second_;
};
}  // namespace pace
