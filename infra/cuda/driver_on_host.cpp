// A driver for a GPU that is not there: what the engine asks of CUDA's driver, of cuBLAS, of cuBLASLt, of cuRAND and of candle's
// kernels for GGUF's blocks (blocks_on_host.h), done on the host by the engine's own kernels (on_host.h) and by plain loops. So a whole
// program of the build for GPUs can be run, slowly, on any machine: `emulate` does. When it is done is queue.h's to say; where nothing
// is computed but time passes, pace.h and costs.h say how much. Memory that nobody has written is NaN, and what lies behind a buffer
// cannot be touched (buffers.h); a recorded graph knows nothing but the arguments that its kernels had. It says nothing of races
// between kernels, and refuses what the engine does not use.
#include <cstdio>
#include <cstdlib>
#include <map>
#include <mutex>
#include <string>
#include <unordered_map>
#include <utility>

#include "answers.cu"
#include "attention.cu"
#include "eights.cu"
#include "layers.cu"
#include "stored.cu"

#include "blocks_on_host.h"
#include "copies.h"
#include "costs.h"
#include "queue.h"

// cuda.h.
enum { WARP = 10, MULTIPROCESSORS = 16, COMPUTE_MAJOR = 75, SHARED_BYTES = 97, MEMORY_POOLS = 115 };
// Of a GPU: what is computed here needs little, and gets pages at once; what is not has as much as on an H200.
static const size_t MEMORY = size_t(2) << 30, MEMORY_PACED = size_t(139) << 30;
static const int GPUS_MAX = 16;

static std::atomic<unsigned long> launches = 0, played_graphs = 0, multiplied = 0;
// Where a kernel of the runtime's is about to be started.
static thread_local Stream* called_on = nullptr;

struct Event {
  // What was last recorded.
  MarkOf mark;
};

static MarkOf mark_of(Event* event) {
  std::lock_guard<std::mutex> held(lock);
  return event->mark;
}

static int record(Event* event, Stream* stream) {
  if (refused(stream)) return CAPTURE_INVALIDATED;
  std::lock_guard<std::mutex> held(lock);
  return event->mark = mark_held(named(stream)), DONE;
}

struct Graph {
  std::shared_ptr<const Operations> operations;
};

// ---- kernels by name ----

struct Kernel {
  // Takes the arguments' addresses, gives what runs with their values.
  std::function<Work(void**)> bind;
  costs::Charge charge;
};

template <typename... Arguments, size_t... Places>
static Work bound(void (*function)(Arguments...), void** from, std::index_sequence<Places...>) {
  return std::bind(function, *static_cast<Arguments*>(from[Places])...);
}

template <typename... Arguments>
static Kernel kernel(const char* name, void (*function)(Arguments...)) {
  return {[function](void** from) { return bound(function, from, std::index_sequence_for<Arguments...>()); }, costs::charge(name)};
}

#define KERNEL(name) {#name, kernel(#name, name)}
static std::map<std::string, Kernel> kernels = {
    KERNEL(attend_prompt_32), KERNEL(attend_prompt_64), KERNEL(attend_prompt_96), KERNEL(attend_prompt_128),
    KERNEL(attend_prompt_256), KERNEL(attend_step_32), KERNEL(attend_step_64), KERNEL(attend_step_96),
    KERNEL(attend_step_128), KERNEL(attend_step_256), KERNEL(follow), KERNEL(embed), KERNEL(embed_normed), KERNEL(norm_rows),
    KERNEL(add_branch), KERNEL(add_norm), KERNEL(activate), KERNEL(prepare), KERNEL(gather), KERNEL(copy_pages),
    KERNEL(choose), KERNEL(pool), KERNEL(widen), KERNEL(settle), KERNEL(gather_blocks), KERNEL(eights)};

extern "C" {

// ---- the driver ----

int cuInit(unsigned) {
  std::lock_guard<std::mutex> held(lock);
  if (!gpus().empty()) return DONE;
  const char* given = std::getenv("EMULATED_GPUS");
  const int count = given == nullptr ? 1 : std::atoi(given);
  if (count < 0 || count > GPUS_MAX) pace::refuse("EMULATED_GPUS", "should be 0 to 16");
  // What cannot be meant is found before anything is loaded.
  if (mode() == Mode::PACED) static_cast<void>(pace::rates()), static_cast<void>(costs::ends());
  gpus().resize(count);
  for (Gpu& gpu : gpus()) {
    gpu.room.all = mode() == Mode::PACED ? MEMORY_PACED : MEMORY;
    gpu.standard.gpu = &gpu;
  }
  return DONE;
}
int cuDeviceGetCount(int* count) { return *count = int(gpus().size()), DONE; }
int cuDeviceGet(int* device, int ordinal) { return *device = ordinal, DONE; }
int cuDeviceGetAttribute(int* value, int attribute, int) {
  // As an H200 has it.
  static const std::map<int, int> known = {
      {MEMORY_POOLS, 1}, {COMPUTE_MAJOR, 9}, {MULTIPROCESSORS, 132}, {WARP, 32}, {SHARED_BYTES, 232448}};
  const auto found = known.find(attribute);
  return *value = found == known.end() ? 0 : found->second, DONE;
}
int cuDevicePrimaryCtxRetain(Gpu** context, int device) { return *context = &gpus().at(device), DONE; }
int cuDevicePrimaryCtxRelease_v2(int) { return DONE; }
int cuCtxGetCurrent(Gpu** context) { return *context = chosen_gpu, DONE; }
int cuCtxSetCurrent(Gpu* context) { return chosen_gpu = context, DONE; }
int cuCtxSynchronize() {
  std::vector<MarkOf> ends;
  {
    std::lock_guard<std::mutex> held(lock);
    finish_abandoned(current());
    ends.push_back(mark_held(current().standard));
    for (Stream* stream : current().streams) ends.push_back(mark_held(*stream));
  }
  for (const MarkOf& end : ends) wait_for(end);
  return DONE;
}
int cuGetErrorString(int, const char** text) { return *text = "an error of the driver on the host", DONE; }
int cuGetErrorName(int, const char** text) { return *text = "ERROR", DONE; }

int cuStreamCreate(Stream** stream, unsigned) {
  std::lock_guard<std::mutex> held(lock);
  finish_abandoned(current());
  *stream = new Stream{&current()};
  return current().streams.push_back(*stream), DONE;
}
int cuStreamDestroy_v2(Stream* stream) {
  std::lock_guard<std::mutex> held(lock);
  stream->gpu->streams.remove(stream);
  return stream->gpu->abandoned.push_back(stream), DONE;
}
int cuStreamSynchronize(Stream* stream) { return refused(stream) ? int(CAPTURE_INVALIDATED) : wait_for(mark(stream)); }
int cuStreamWaitEvent(Stream* stream, Event* event, unsigned) {
  return refused(stream) ? int(CAPTURE_INVALIDATED) : wait_on_stream(stream, mark_of(event));
}
int cuEventCreate(Event** event, unsigned) { return *event = new Event, DONE; }
int cuEventRecord(Event* event, Stream* stream) { return record(event, stream); }
int cuEventSynchronize(Event* event) { return wait_for(mark_of(event)); }
int cuEventQuery(Event* event) { return query(mark_of(event)); }
int cuEventDestroy_v2(Event* event) { return delete event, DONE; }

int cuMemGetInfo_v2(size_t* left, size_t* all) {
  std::lock_guard<std::mutex> held(lock);
  const buffers::Room& room = current().room;
  return *left = room.all - room.taken, *all = room.all, DONE;
}
int cuDeviceGetDefaultMemPool(Gpu** pool, int device) { return *pool = &gpus().at(device), DONE; }
int cuMemPoolSetAttribute(Gpu*, int, void*) { return DONE; }
int cuMemPoolGetAttribute(Gpu* pool, int, size_t* bytes) { return *bytes = pool->room.taken, DONE; }
int cuMemAllocAsync(void** out, size_t bytes, Stream* stream) { return take_on_stream(out, bytes, stream); }
int cuMemFreeAsync(void* buffer, Stream* stream) { return leave(buffer, stream); }
int cuMemHostAlloc(void** out, size_t bytes, unsigned) { return take(out, bytes, buffers::Kind::PINNED); }
int cuMemFreeHost(void* buffer) { return leave_pinned(buffer); }
int cuMemsetD8Async(char* to, unsigned char byte, size_t bytes, Stream* stream) { return set_bytes(to, byte, bytes, stream); }
int cuMemcpyHtoDAsync_v2(char* to, const char* from, size_t bytes, Stream* stream) { return copy_to_gpu(to, from, bytes, stream); }
int cuMemcpyDtoHAsync_v2(char* to, const char* from, size_t bytes, Stream* stream) { return copy_from_gpu(to, from, bytes, stream); }

int cuModuleLoadData(void** module, const void*) { return *module = &lock, DONE; }
int cuModuleUnload(void*) { return DONE; }
int cuModuleGetFunction(Kernel** out, void*, const char* name) {
  const auto found = kernels.find(name);
  if (found == kernels.end()) return NOT_FOUND;
  return *out = &found->second, DONE;
}
int cuLaunchKernel(Kernel* kernel, unsigned x, unsigned y, unsigned, unsigned threads, unsigned, unsigned, unsigned,
                   Stream* stream, void** arguments, void**) {
  const dim3 grid = {x, y};
  ++launches;
  if (mode() == Mode::PACED) {
    const auto& leaves = kernel->charge.leaves;
    return ask(stream, {leaves ? leaves(grid, arguments) : Work(), kernel->charge.seconds(grid, arguments)});
  }
  const Work bound = kernel->bind(arguments);
  return ask(stream, {[=] { launch(grid, threads, bound); }});
}

// ---- graphs ----

int cuStreamBeginCapture_v2(Stream* stream, int) { return stream->recording = true, stream->broken = false, DONE; }
int cuStreamEndCapture(Stream* stream, Graph** graph) {
  std::lock_guard<std::mutex> held(lock);
  stream->recording = false;
  const auto operations = std::make_shared<const Operations>(std::exchange(stream->recorded, {}));
  *graph = stream->broken ? nullptr : new Graph{operations};
  return stream->broken ? CAPTURE_INVALIDATED : DONE;
}
int cuGraphInstantiateWithFlags(Graph** out, Graph* graph, unsigned long long) { return *out = new Graph(*graph), DONE; }
int cuGraphLaunch(Graph* graph, Stream* stream) {
  ++played_graphs;
  return ask(stream, played(graph->operations));
}
int cuGraphDestroy(Graph* graph) { return delete graph, DONE; }
int cuGraphExecDestroy(Graph* graph) { return delete graph, DONE; }

// ---- the CUDA runtime, as far as it starts candle's kernels for blocks ----

static int last_error = DONE;
static thread_local std::vector<std::pair<dim3, dim3>> called;

void* __cudaRegisterFatBinary(void*) {
  static void* handle;
  return &handle;
}
void __cudaRegisterFatBinaryEnd(void*) {}
void __cudaUnregisterFatBinary(void*) {}
void __cudaRegisterFunction(void*, const void* place, void*, const char* name) { blocks::names()[place] = name; }
void __cudaRegisterVar() {}
unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t, void* stream) {
  called.push_back({grid, block});
  called_on = static_cast<Stream*>(stream);
  return 0;
}
int __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void** stream) {
  *grid = called.back().first;
  *block = called.back().second;
  *shared = 0;
  *stream = called_on;
  return called.pop_back(), DONE;
}
int __cudaGetKernel(const void** kernel, const void* place) { return *kernel = place, DONE; }
int __cudaLaunchKernel_ptsz(const void* kernel, dim3 grid, dim3, void** arguments, size_t, Stream* stream) {
  const Work bound = blocks::bind(blocks::names()[kernel], grid, arguments);
  if (!bound) return last_error = NOT_FOUND;
  ++launches;
  ++multiplied;
  return mode() == Mode::PACED ? ask(stream, {Work(), costs::of_blocks(blocks::names()[kernel], grid, arguments)}) : ask(stream, {bound});
}
int cudaGetDevice(int* device) { return *device = 0, DONE; }
int cudaFuncSetAttribute(const void*, int, int) { return DONE; }
int cudaGetLastError() { return std::exchange(last_error, DONE); }

// ---- cuBLAS and cuRAND: what candle's device and the engine call ----

int cublasCreate_v2(Stream*** handle) { return *handle = new Stream*(nullptr), DONE; }
int cublasDestroy_v2(Stream** handle) { return delete handle, DONE; }
int cublasSetStream_v2(Stream** handle, Stream* stream) { return *handle = stream, DONE; }
int cublasSetWorkspace_v2(Stream**, void*, size_t) { return DONE; }
int cublasGemmEx(Stream** handle, int left, int right, int m, int n, int k, const float* alpha, const bf16* a, int,
                 int lda, const bf16* b, int, int ldb, const float* beta, void* c, int kind, int ldc, int, int) {
  enum { TRANSPOSED = 1, PLAIN = 0, FLOAT = 0 };
  if (left != TRANSPOSED || right != PLAIN) return INVALID_VALUE;
  const float times = *alpha, kept = *beta;
  const double product_bytes = kind != FLOAT ? 2.0 : kept == 0.0f ? 4.0 : 8.0;
  if (mode() == Mode::PACED) return ask(*handle, {Work(), costs::multiplies({double(m), double(k), double(n), 2.0, 2.0, product_bytes})});
  return ask(*handle, {[=] {
    for (int column = 0; column < n; ++column)
      for (int row = 0; row < m; ++row) {
        float sum = 0.0f;
#pragma omp simd reduction(+ : sum)
        for (int i = 0; i < k; ++i) sum += wide(a[size_t(row) * lda + i]) * wide(b[size_t(column) * ldb + i]);
        const size_t at = size_t(column) * ldc + row;
        if (kind == FLOAT) {
          float* to = static_cast<float*>(c) + at;
          *to = times * sum + (kept == 0.0f ? 0.0f : kept * *to);
        } else {
          static_cast<bf16*>(c)[at] = narrow(times * sum);
        }
      }
  }});
}

// ---- cuBLASLt: the one product that the engine asks for, of 8-bit floats ----

struct Layout {
  int kind;
  uint64_t rows, columns;
  int64_t lead;
};

int cublasLtCreate(void** handle) { return *handle = &lock, DONE; }
int cublasLtDestroy(void*) { return DONE; }
int cublasLtMatrixLayoutCreate(Layout** layout, int kind, uint64_t rows, uint64_t columns, int64_t lead) {
  return *layout = new Layout{kind, rows, columns, lead}, DONE;
}
int cublasLtMatrixLayoutDestroy(Layout* layout) { return delete layout, DONE; }
int cublasLtMatmulDescCreate(int** product, int, int) { return *product = new int(0), DONE; }
int cublasLtMatmulDescSetAttribute(int* product, int attribute, const int* value, size_t) {
  enum { TRANSPOSE_LEFT = 3 };
  return attribute == TRANSPOSE_LEFT ? *product = *value, DONE : INVALID_VALUE;
}
int cublasLtMatmulDescDestroy(int* product) { return delete product, DONE; }
int cublasLtMatmulPreferenceCreate(void** preference) { return *preference = &lock, DONE; }
int cublasLtMatmulPreferenceSetAttribute(void*, int, const void*, size_t) { return DONE; }
int cublasLtMatmulPreferenceDestroy(void*) { return DONE; }
int cublasLtMatmulAlgoGetHeuristic(void*, int*, Layout*, Layout*, Layout*, Layout*, void*, int, void* found, int* count) {
  // cublasLtMatmulHeuristicResult_t: an algorithm, its workspace, and whether all is well.
  return std::memset(found, 0, 96), *count = 1, DONE;
}
int cublasLtMatmul(void*, const int* product, const float* alpha, const uint8_t* a, const Layout* left, const uint8_t* b,
                   const Layout* right, const float* beta, const void*, const Layout*, float* d, const Layout* to, const void*,
                   void* workspace, size_t bytes, Stream* stream) {
  enum { TRANSPOSED = 1, FLOAT = 0, EIGHT = 28 };
  const size_t m = left->columns, n = right->columns, k = left->rows;
  const bool fits = *product == TRANSPOSED && left->kind == EIGHT && right->kind == EIGHT && to->kind == FLOAT && right->rows == k &&
                    to->rows == m && to->columns == n && m % 16 == 0 && k % 16 == 0 && *alpha == 1.0f && *beta == 0.0f;
  if (!fits) return INVALID_VALUE;
  if (mode() == Mode::PACED) return ask(stream, {Work(), costs::multiplies({double(m), double(k), double(n), 1.0, 1.0, 4.0})});
  std::vector<float> numbers(256);
  for (int byte = 0; byte < 256; ++byte) {
    const float size = (byte >> 3 & 15) == 0 ? std::ldexp(float(byte & 7), -9) : std::ldexp(float(8 + (byte & 7)), (byte >> 3 & 15) - 10);
    numbers[byte] = (byte & 0x7f) == 0x7f ? NAN : byte & 0x80 ? -size : size;
  }
  return ask(stream, {[=] {
    std::memset(workspace, 0xff, bytes);
    for (size_t column = 0; column < n; ++column)
      for (size_t row = 0; row < m; ++row) {
        float sum = 0.0f;
        for (size_t i = 0; i < k; ++i) sum += numbers[a[row * k + i]] * numbers[b[column * k + i]];
        d[column * m + row] = sum;
      }
  }});
}

int curandCreateGenerator(void** generator, int) { return *generator = &lock, DONE; }
int curandDestroyGenerator(void*) { return DONE; }
int curandSetStream(void*, Stream*) { return DONE; }
int curandSetPseudoRandomGeneratorSeed(void*, unsigned long long) { return DONE; }
}

__attribute__((destructor)) static void say() {
  std::fprintf(stderr, "driver on the host: %lu kernels asked for (%lu of them candle's), %lu recordings played\n", launches.load(),
               multiplied.load(), played_graphs.load());
  for (size_t gpu = 0; gpu < gpus().size(); ++gpu) gpus()[gpu].timeline.say(gpu);
}
