// Programs that touch the host's memory too early, on the driver on the host: where all is done at once they get the right answer, where
// all is late a wrong one. And programs that wait as they should, which get the right one in both. Where time passes, that it does, and
// that tokens are chosen that may be. `check` compiles it and starts it once for each of the three ways, which the environment chooses.
#include "driver_on_host.cpp"

#include "check_tools.h"

static const size_t COUNT = 1000, BYTES = COUNT * sizeof(float);

static bool late() { return mode() == Mode::LATE; }

// A stream of the first GPU, and memory of both sides.
struct Bed {
  Stream *stream, *other;
  float *pinned, *read, *device;

  Bed() {
    cuStreamCreate(&stream, 1);
    cuStreamCreate(&other, 1);
    cuMemHostAlloc(reinterpret_cast<void**>(&pinned), BYTES, 0);
    cuMemHostAlloc(reinterpret_cast<void**>(&read), BYTES, 0);
    cuMemAllocAsync(reinterpret_cast<void**>(&device), BYTES, stream);
    fill(1.0f);
  }

  void fill(float x) { std::fill_n(pinned, COUNT, x); }
  void to_gpu(const float* from, Stream* on) { cuMemcpyHtoDAsync_v2(reinterpret_cast<char*>(device), bytes(from), BYTES, on); }
  void from_gpu(float* to, Stream* on) { cuMemcpyDtoHAsync_v2(reinterpret_cast<char*>(to), reinterpret_cast<char*>(device), BYTES, on); }
  static const char* bytes(const float* at) { return reinterpret_cast<const char*>(at); }
};

// What both ends of a buffer must be; NaN is a number here.
static void expect_all(const char* what, const float* got, float wanted) {
  for (size_t at : {size_t(0), COUNT - 1}) {
    const bool same = got[at] == wanted || (std::isnan(got[at]) && std::isnan(wanted));
    expect(what, same ? 0.0 : 1.0, 0.0, 0.0);
  }
}

static Event* recorded(Stream* stream) {
  Event* event;
  cuEventCreate(&event, 2);
  cuEventRecord(event, stream);
  return event;
}

// ---- too early ----

static void pinned_memory_changes_before_its_copy() {
  Bed bed;
  bed.to_gpu(bed.pinned, bed.stream);
  bed.fill(2.0f);
  bed.from_gpu(bed.read, bed.stream);
  cuStreamSynchronize(bed.stream);
  expect_all("a change before the copy", bed.read, late() ? 2.0f : 1.0f);
}

static void pinned_memory_is_read_before_its_copy() {
  Bed bed;
  bed.to_gpu(bed.pinned, bed.stream);
  bed.from_gpu(bed.read, bed.stream);
  Event* done = recorded(bed.stream);
  expect_all("read before the event", bed.read, late() ? NAN : 1.0f);
  cuEventSynchronize(done);
  expect_all("read after the event", bed.read, 1.0f);
  // What came the time before is not there any more.
  bed.from_gpu(bed.read, bed.stream);
  Event* again = recorded(bed.stream);
  expect_all("read before the second event", bed.read, late() ? NAN : 1.0f);
  cuEventSynchronize(again);
  expect_all("read after the second event", bed.read, 1.0f);
}

static void pinned_memory_is_freed_before_its_copy() {
  Bed bed;
  bed.to_gpu(bed.pinned, bed.stream);
  cuMemFreeHost(bed.pinned);
  bed.from_gpu(bed.read, bed.stream);
  cuStreamSynchronize(bed.stream);
  expect_all("freed before the copy", bed.read, late() ? NAN : 1.0f);
}

static void another_stream_does_not_wait() {
  Bed bed;
  bed.to_gpu(bed.pinned, bed.stream);
  bed.from_gpu(bed.read, bed.other);
  cuStreamSynchronize(bed.other);
  expect_all("another stream's copy", bed.read, late() ? NAN : 1.0f);
}

static void another_stream_writes_before_memory_is_taken() {
  Bed bed;
  bed.to_gpu(bed.pinned, bed.other);
  cuStreamSynchronize(bed.other);
  bed.from_gpu(bed.read, bed.stream);
  cuStreamSynchronize(bed.stream);
  expect_all("written before its stream has taken it", bed.read, late() ? NAN : 1.0f);
}

// ---- as it should be ----

static void an_event_is_waited_for_and_nothing_behind_it() {
  Bed bed;
  float* later;
  cuMemHostAlloc(reinterpret_cast<void**>(&later), BYTES, 0);
  bed.to_gpu(bed.pinned, bed.stream);
  bed.from_gpu(bed.read, bed.stream);
  Event* done = recorded(bed.stream);
  bed.from_gpu(later, bed.stream);
  cuEventSynchronize(done);
  expect_all("before the event", bed.read, 1.0f);
  expect_all("behind the event", later, late() ? NAN : 1.0f);
  cuCtxSynchronize();
  expect_all("all streams", later, 1.0f);
}

static void another_stream_waits_for_an_event() {
  Bed bed;
  bed.to_gpu(bed.pinned, bed.stream);
  Event* done = recorded(bed.stream);
  cuStreamWaitEvent(bed.other, done, 0);
  // What is recorded later is not what was waited for.
  cuEventRecord(done, bed.stream);
  bed.from_gpu(bed.read, bed.other);
  cuEventDestroy_v2(done);
  cuStreamSynchronize(bed.other);
  expect_all("another stream behind an event", bed.read, 1.0f);
  expect("what is left of the first", double(bed.stream->left.size()), late() ? 1.0 : 0.0, 0.0);
}

static void whoever_asks_often_enough_is_told() {
  Bed bed;
  bed.to_gpu(bed.pinned, bed.stream);
  bed.from_gpu(bed.read, bed.stream);
  Event* done = recorded(bed.stream);
  int asked = 0;
  while (cuEventQuery(done) == NOT_READY && asked < 100) ++asked;
  // The memory's turn, two copies and the event.
  expect("questions", asked, late() ? 4 : 0, 0.0);
  expect_all("after the answer", bed.read, 1.0f);
}

static void what_is_not_pinned_is_the_drivers_at_once() {
  Bed bed;
  std::vector<float> plain(COUNT, 3.0f), back(COUNT, NAN);
  bed.to_gpu(plain.data(), bed.stream);
  std::fill(plain.begin(), plain.end(), 4.0f);
  bed.from_gpu(back.data(), bed.stream);
  expect_all("memory that is not pinned", back.data(), 3.0f);
}

static void kernels_keep_their_arguments_and_graphs_play() {
  Bed bed;
  Kernel* gather;
  Stream* const stream = bed.stream;
  uint32_t* rows;
  uint4* to;
  cuModuleGetFunction(&gather, nullptr, "gather");
  cuMemAllocAsync(reinterpret_cast<void**>(&rows), 4, stream);
  cuMemAllocAsync(reinterpret_cast<void**>(&to), 16, stream);
  cuMemsetD8Async(reinterpret_cast<char*>(rows), 0, 4, stream);
  bed.to_gpu(bed.pinned, stream);
  uint32_t count = 1, width = 1;
  void* from = bed.device;
  void* arguments[] = {&to, &from, &rows, &count, &width};
  Graph *graph, *ready;
  cuStreamBeginCapture_v2(stream, 1);
  cuLaunchKernel(gather, 1, 1, 1, 128, 1, 1, 0, stream, arguments, nullptr);
  count = width = 1000;
  cuStreamEndCapture(stream, &graph);
  cuGraphInstantiateWithFlags(&ready, graph, 0);
  cuGraphLaunch(ready, stream);
  cuGraphExecDestroy(ready);
  cuGraphDestroy(graph);
  char* const read = reinterpret_cast<char*>(bed.read);
  cuMemcpyDtoHAsync_v2(read, reinterpret_cast<char*>(to), 16, stream);
  cuMemFreeAsync(to, stream);
  expect("before anybody waits", std::isnan(bed.read[0]), late(), 0.0);
  cuStreamSynchronize(stream);
  expect("what a graph gathered", bed.read[3], 1.0, 0.0);
  expect("freed when its turn came", buffers::holding(to) == nullptr, 1.0, 0.0);
}

static void streams_that_nobody_has_end() {
  Bed bed;
  bed.to_gpu(bed.pinned, bed.stream);
  bed.from_gpu(bed.read, bed.stream);
  cuStreamDestroy_v2(bed.stream);
  expect_all("a stream without an owner", bed.read, late() ? NAN : 1.0f);
  cuCtxSynchronize();
  expect_all("the same, in the end", bed.read, 1.0f);
}

static void nothing_that_waits_is_recorded() {
  Bed bed;
  Event* event = recorded(bed.stream);
  const std::vector<std::function<int()>> refused = {[&] { return cuStreamSynchronize(bed.stream); },
                                                    [&] { return cuStreamWaitEvent(bed.stream, event, 0); },
                                                    [&] { return cuEventRecord(event, bed.stream); },
                                                    [&] { return cuMemFreeAsync(bed.device, bed.stream); }};
  for (const auto& ask : refused) {
    Graph* graph;
    cuStreamBeginCapture_v2(bed.stream, 1);
    expect("what cannot be recorded", ask(), CAPTURE_INVALIDATED, 0.0);
    expect("its recording", cuStreamEndCapture(bed.stream, &graph), CAPTURE_INVALIDATED, 0.0);
  }
}

// ---- where time passes ----

// A product that takes so long by its operations.
static void multiply(Bed& bed, double seconds) {
  Stream** blas;
  cublasCreate_v2(&blas);
  cublasSetStream_v2(blas, bed.stream);
  const float one = 1.0f, none = 0.0f;
  const int side = 4096, rows = int(seconds * pace::rates().operations / (2.0 * side * side));
  cublasGemmEx(blas, 1, 0, side, rows, side, &one, nullptr, 14, side, nullptr, 14, side, &none, bed.device, 14, side, 68, 99);
  cublasDestroy_v2(blas);
}

static void time_passes() {
  Bed bed;
  const double begun = pace::now();
  multiply(bed, 0.05);
  Event* done = recorded(bed.stream);
  expect("ready at once", cuEventQuery(done), NOT_READY, 0.0);
  cuStreamWaitEvent(bed.other, done, 0);
  bed.from_gpu(bed.read, bed.other);
  expect("asking is not waiting", pace::now() - begun < 0.04, 1.0, 0.0);
  cuStreamSynchronize(bed.other);
  const double seconds = pace::now() - begun;
  expect("long enough", seconds >= 0.0499, 1.0, 0.0);
  expect("not ready in the end", cuEventQuery(done), DONE, 0.0);
  expect_all("what nobody wrote", bed.read, 0.0f);
}

static void tokens_are_chosen_that_may_be() {
  Bed bed;
  const uint32_t vocab = 40000, words = vocab / 32, rows = 4, none = ~0u;
  // Every token, two of which one ends the row, only that one, none.
  std::vector<uint32_t> tables = {none, 0, 1, 2}, masks(3 * words, 0), chosen(rows, 7);
  masks[256 / 32] = masks[words + 256 / 32] = 1;
  masks[33333 / 32] = 1u << 33333 % 32;
  tables.insert(tables.end(), masks.begin(), masks.end());
  uint32_t *device, *out;
  cuMemAllocAsync(reinterpret_cast<void**>(&device), tables.size() * 4, bed.stream);
  cuMemAllocAsync(reinterpret_cast<void**>(&out), rows * 4, bed.stream);
  cuMemcpyHtoDAsync_v2(reinterpret_cast<char*>(device), reinterpret_cast<char*>(tables.data()), tables.size() * 4, bed.stream);
  Kernel* choose;
  cuModuleGetFunction(&choose, nullptr, "choose");
  uint32_t* bits = device + rows;
  void* logits = nullptr;
  uint32_t sizes[] = {vocab, words};
  void* arguments[] = {&out, &logits, &device, &bits, &sizes[0], &sizes[1]};
  cuLaunchKernel(choose, rows, 1, 1, 256, 1, 1, 0, bed.stream, arguments, nullptr);
  cuMemcpyDtoHAsync_v2(reinterpret_cast<char*>(chosen.data()), reinterpret_cast<char*>(out), rows * 4, bed.stream);
  expect("a row that may have any token", chosen[0] >= 32 && chosen[0] < 127, 1.0, 0.0);
  expect("a row that should not end", chosen[1], 33333, 0.0);
  expect("a row that must end", chosen[2], 256, 0.0);
  expect("a row that may have none", chosen[3], NONE_ALLOWED, 0.0);
}

int main(int count, char** arguments) {
  cuInit(0);
  const char* way = mode() == Mode::PACED ? "paced" : late() ? "late" : "done at once";
  // What is expected below is by the way that it is: it has to be the one that was wanted.
  if (count != 2 || std::strcmp(arguments[1], way) != 0) return std::printf("all is %s, and should not be\n", way), 1;
  if (mode() == Mode::PACED) {
    time_passes();
    tokens_are_chosen_that_may_be();
  } else {
    pinned_memory_changes_before_its_copy();
    pinned_memory_is_read_before_its_copy();
    pinned_memory_is_freed_before_its_copy();
    another_stream_does_not_wait();
    another_stream_writes_before_memory_is_taken();
    an_event_is_waited_for_and_nothing_behind_it();
    another_stream_waits_for_an_event();
    whoever_asks_often_enough_is_told();
    what_is_not_pinned_is_the_drivers_at_once();
    kernels_keep_their_arguments_and_graphs_play();
    streams_that_nobody_has_end();
    nothing_that_waits_is_recorded();
  }
  if (faults > 0) std::printf("%d faults of the driver on the host where all is %s\n", faults, way);
  else std::printf("the driver on the host is right where all is %s\n", way);
  return faults > 0;
}
