// The GPU driver's library as programs built here are linked with it: every function that one may call, passed on to the driver's
// own libcuda.so.1, which is looked for when the program begins. So the program starts where there is no driver, too, and every
// call says that there is none. `setup` compiles it, with `names.h` listing the functions as FUNCTION(name, number). Computes nothing.
#include <dlfcn.h>
#include <stddef.h>

// cuda.h, CUDA_ERROR_STUB_LIBRARY.
#define NO_DRIVER 34

static const char *const names[] = {
#define FUNCTION(name, number) #name,
#include "names.h"
#undef FUNCTION
};
#define COUNT (sizeof(names) / sizeof(names[0]))

enum {
#define FUNCTION(name, number) PLACE_##name = number,
#include "names.h"
#undef FUNCTION
};

// Where each function is.
__attribute__((visibility("hidden"))) void *rowmill_driver[COUNT];

static int no_driver(void) { return NO_DRIVER; }

// cuGetErrorString and cuGetErrorName.
static int no_driver_text(int error, const char **text) {
  *text = error == NO_DRIVER ? "no NVIDIA driver: libcuda.so.1 was not found" : "no NVIDIA driver";
  return 0;
}

__attribute__((constructor)) static void find_driver(void) {
  void *driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_GLOBAL);
  for (size_t i = 0; i < COUNT; ++i) {
    rowmill_driver[i] = driver == NULL ? NULL : dlsym(driver, names[i]);
    if (rowmill_driver[i] == NULL) rowmill_driver[i] = (void *)no_driver;
  }
  if (driver == NULL) {
    rowmill_driver[PLACE_cuGetErrorString] = (void *)no_driver_text;
    rowmill_driver[PLACE_cuGetErrorName] = (void *)no_driver_text;
  }
}

// A jump leaves arguments where they are, whatever they are.
#if defined(__x86_64__)
#define JUMP(number) "jmp *rowmill_driver+8*" #number "(%rip)\n"
#elif defined(__aarch64__)
#define JUMP(number) \
  "adrp x16, rowmill_driver+8*" #number "\nldr x16, [x16, #:lo12:rowmill_driver+8*" #number "]\nbr x16\n"
#else
#error "jumps are written for x86-64 and 64-bit Arm only"
#endif
#define FUNCTION(name, number) \
  __asm__(".text\n.globl " #name "\n.type " #name ", %function\n" #name ":\n" JUMP(number) ".size " #name ", .-" #name "\n");
#include "names.h"
