// A driver for a GPU that is not there: what the engine asks of CUDA's driver, of cuBLAS, of cuBLASLt, of cuRAND and of candle's kernels for GGUF's
// blocks (blocks_on_host.h), done on the host by the engine's own kernels (on_host.h) and by plain loops. So a whole program of the build for GPUs can be run, slowly, on any machine: `emulate`
// does. Memory that nobody has written is NaN, and what lies behind a buffer cannot be touched; a recorded graph knows nothing but
// the arguments that its kernels had. It says nothing of speed or of races, and refuses what the engine does not use.
#include <sys/mman.h>

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

// cuda.h.
enum Status { DONE = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, CAPTURE_INVALIDATED = 901, NOT_FOUND = 500 };
enum { WARP = 10, MULTIPROCESSORS = 16, COMPUTE_MAJOR = 75, SHARED_BYTES = 97, MEMORY_POOLS = 115 };
static const size_t MEMORY = size_t(2) << 30;

typedef std::function<void()> Work;

struct Stream {
  bool recording = false, broken = false;
  std::vector<Work> recorded;
};

static std::mutex lock;
static size_t taken = 0;
static unsigned long launches = 0, played = 0, multiplied = 0;
// Where a kernel of the runtime's is about to be started.
static thread_local Stream* called_on = nullptr;

// Does it now, or when the graph is played that is being recorded.
static int ask(Stream* stream, Work work) {
  std::lock_guard<std::mutex> held(lock);
  if (stream != nullptr && stream->recording) stream->recorded.push_back(std::move(work));
  else work();
  return DONE;
}

// What must not be asked for while a graph is recorded.
static int never_recorded(Stream* stream, Work work) {
  if (stream == nullptr || !stream->recording) return ask(stream, std::move(work));
  stream->broken = true;
  return CAPTURE_INVALIDATED;
}

// ---- memory: each buffer ends where a page begins that nobody may touch ----

static const size_t PAGE_BYTES = 4096;
static std::unordered_map<char*, std::pair<char*, size_t>> buffers;

static int take(void** out, size_t bytes) {
  std::lock_guard<std::mutex> held(lock);
  const size_t used = (bytes + 15) / 16 * 16, whole = (used + PAGE_BYTES - 1) / PAGE_BYTES * PAGE_BYTES + PAGE_BYTES;
  if (taken + whole > MEMORY) return OUT_OF_MEMORY;
  char* begin = static_cast<char*>(mmap(nullptr, whole, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  if (begin == MAP_FAILED) return OUT_OF_MEMORY;
  mprotect(begin + whole - PAGE_BYTES, PAGE_BYTES, PROT_NONE);
  char* buffer = begin + whole - PAGE_BYTES - used;
  std::memset(buffer, 0xff, used);
  buffers[buffer] = {begin, whole};
  taken += whole;
  *out = buffer;
  return DONE;
}

static void give_back(void* buffer) {
  const auto found = buffers.find(static_cast<char*>(buffer));
  if (found == buffers.end()) std::abort();
  munmap(found->second.first, found->second.second);
  taken -= found->second.second;
  buffers.erase(found);
}

// ---- kernels by name ----

struct Kernel {
  // Takes the arguments' addresses, gives what runs with their values.
  std::function<Work(void**)> bind;
};

template <typename... Arguments, size_t... Places>
static Work bound(void (*function)(Arguments...), void** from, std::index_sequence<Places...>) {
  return std::bind(function, *static_cast<Arguments*>(from[Places])...);
}

template <typename... Arguments>
static Kernel kernel(void (*function)(Arguments...)) {
  return {[function](void** from) { return bound(function, from, std::index_sequence_for<Arguments...>()); }};
}

#define KERNEL(name) {#name, kernel(name)}
static std::map<std::string, Kernel> kernels = {
    KERNEL(attend_prompt_32), KERNEL(attend_prompt_64), KERNEL(attend_prompt_96), KERNEL(attend_prompt_128),
    KERNEL(attend_prompt_256), KERNEL(attend_step_32), KERNEL(attend_step_64), KERNEL(attend_step_96),
    KERNEL(attend_step_128), KERNEL(attend_step_256), KERNEL(follow), KERNEL(embed), KERNEL(embed_normed), KERNEL(norm_rows),
    KERNEL(add_branch), KERNEL(add_norm), KERNEL(activate), KERNEL(prepare), KERNEL(gather), KERNEL(copy_pages),
    KERNEL(choose), KERNEL(pool), KERNEL(widen), KERNEL(settle), KERNEL(gather_blocks), KERNEL(eights)};

extern "C" {

// ---- the driver ----

int cuInit(unsigned) { return DONE; }
int cuDeviceGetCount(int* count) {
  const char* gpus = std::getenv("EMULATED_GPUS");
  return *count = gpus == nullptr ? 1 : std::atoi(gpus), DONE;
}
int cuDeviceGet(int* device, int ordinal) { return *device = ordinal, DONE; }
int cuDeviceGetAttribute(int* value, int attribute, int) {
  // As an H200 has it.
  static const std::map<int, int> known = {
      {MEMORY_POOLS, 1}, {COMPUTE_MAJOR, 9}, {MULTIPROCESSORS, 132}, {WARP, 32}, {SHARED_BYTES, 232448}};
  const auto found = known.find(attribute);
  return *value = found == known.end() ? 0 : found->second, DONE;
}
int cuDevicePrimaryCtxRetain(void** context, int) { return *context = &lock, DONE; }
int cuDevicePrimaryCtxRelease_v2(int) { return DONE; }
int cuCtxGetCurrent(void** context) { return *context = &lock, DONE; }
int cuCtxSetCurrent(void*) { return DONE; }
int cuCtxSynchronize() { return DONE; }
int cuGetErrorString(int, const char** text) { return *text = "an error of the driver on the host", DONE; }
int cuGetErrorName(int, const char** text) { return *text = "ERROR", DONE; }

int cuStreamCreate(Stream** stream, unsigned) { return *stream = new Stream, DONE; }
int cuStreamDestroy_v2(Stream* stream) { return delete stream, DONE; }
int cuStreamSynchronize(Stream* stream) { return never_recorded(stream, [] {}); }
int cuStreamWaitEvent(Stream*, void*, unsigned) { return DONE; }
int cuEventCreate(void** event, unsigned) { return *event = new char, DONE; }
int cuEventRecord(void*, Stream*) { return DONE; }
int cuEventSynchronize(void*) { return DONE; }
int cuEventQuery(void*) { return DONE; }
int cuEventDestroy_v2(void* event) { return delete static_cast<char*>(event), DONE; }

int cuMemGetInfo_v2(size_t* left, size_t* all) { return *left = MEMORY - taken, *all = MEMORY, DONE; }
int cuDeviceGetDefaultMemPool(void** pool, int) { return *pool = &lock, DONE; }
int cuMemPoolSetAttribute(void*, int, void*) { return DONE; }
int cuMemPoolGetAttribute(void*, int, size_t* bytes) { return *bytes = taken, DONE; }
int cuMemAllocAsync(void** out, size_t bytes, Stream* stream) {
  return stream != nullptr && stream->recording ? never_recorded(stream, {}) : take(out, bytes);
}
int cuMemFreeAsync(void* buffer, Stream* stream) { return ask(stream, [=] { give_back(buffer); }); }
int cuMemHostAlloc(void** out, size_t bytes, unsigned) { return take(out, bytes); }
int cuMemFreeHost(void* buffer) { return ask(nullptr, [=] { give_back(buffer); }); }
int cuMemsetD8Async(char* to, unsigned char byte, size_t bytes, Stream* stream) {
  return ask(stream, [=] { std::memset(to, byte, bytes); });
}
int cuMemcpyHtoDAsync_v2(char* to, const char* from, size_t bytes, Stream* stream) {
  return never_recorded(stream, [=] { std::memcpy(to, from, bytes); });
}
int cuMemcpyDtoHAsync_v2(char* to, const char* from, size_t bytes, Stream* stream) {
  return never_recorded(stream, [=] { std::memcpy(to, from, bytes); });
}

int cuModuleLoadData(void** module, const void*) { return *module = &lock, DONE; }
int cuModuleUnload(void*) { return DONE; }
int cuModuleGetFunction(Kernel** out, void*, const char* name) {
  const auto found = kernels.find(name);
  if (found == kernels.end()) return NOT_FOUND;
  return *out = &found->second, DONE;
}
int cuLaunchKernel(Kernel* kernel, unsigned x, unsigned y, unsigned, unsigned threads, unsigned, unsigned, unsigned,
                   Stream* stream, void** arguments, void**) {
  const Work bound = kernel->bind(arguments);
  ++launches;
  return ask(stream, [=] { launch({x, y}, threads, bound); });
}

// ---- graphs ----

int cuStreamBeginCapture_v2(Stream* stream, int) { return stream->recording = true, stream->broken = false, DONE; }
int cuStreamEndCapture(Stream* stream, std::vector<Work>** graph) {
  stream->recording = false;
  *graph = stream->broken ? nullptr : new std::vector<Work>(std::move(stream->recorded));
  stream->recorded.clear();
  return stream->broken ? CAPTURE_INVALIDATED : DONE;
}
int cuGraphInstantiateWithFlags(std::vector<Work>** out, std::vector<Work>* graph, unsigned long long) {
  return *out = new std::vector<Work>(*graph), DONE;
}
int cuGraphLaunch(std::vector<Work>* graph, Stream* stream) {
  ++played;
  return ask(stream, [=] { for (const Work& work : *graph) work(); });
}
int cuGraphDestroy(std::vector<Work>* graph) { return delete graph, DONE; }
int cuGraphExecDestroy(std::vector<Work>* graph) { return delete graph, DONE; }

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
  return ask(stream, bound);
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
  return ask(*handle, [=] {
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
  });
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
  std::vector<float> numbers(256);
  for (int byte = 0; byte < 256; ++byte) {
    const float size = (byte >> 3 & 15) == 0 ? std::ldexp(float(byte & 7), -9) : std::ldexp(float(8 + (byte & 7)), (byte >> 3 & 15) - 10);
    numbers[byte] = (byte & 0x7f) == 0x7f ? NAN : byte & 0x80 ? -size : size;
  }
  return ask(stream, [=] {
    std::memset(workspace, 0xff, bytes);
    for (size_t column = 0; column < n; ++column)
      for (size_t row = 0; row < m; ++row) {
        float sum = 0.0f;
        for (size_t i = 0; i < k; ++i) sum += numbers[a[row * k + i]] * numbers[b[column * k + i]];
        d[column * m + row] = sum;
      }
  });
}

int curandCreateGenerator(void** generator, int) { return *generator = &lock, DONE; }
int curandDestroyGenerator(void*) { return DONE; }
int curandSetStream(void*, Stream*) { return DONE; }
int curandSetPseudoRandomGeneratorSeed(void*, unsigned long long) { return DONE; }
}

__attribute__((destructor)) static void say() {
  std::fprintf(stderr, "driver on the host: %lu kernels asked for (%lu of them candle's), %lu recordings played\n", launches, multiplied,
               played);
}
