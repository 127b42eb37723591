/* A driver of NVIDIA's without a GPU behind it: the device's memory is the host's. For tests of what is said where something else is
 * missing, and, with runtime.c, of ONNX Runtime's provider and of libtorch. */
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#ifndef VERSION
#define VERSION 13010
#endif
#ifndef COUNT
#define COUNT 1
#endif
#ifndef CAPABILITY
#define CAPABILITY 9
#endif

/* What every call fails with, if it does. */
int pretended_driver_failure = 0;

#define TRY if (pretended_driver_failure) return pretended_driver_failure
#define TAKE(place, bytes)                                                     \
    if ((bytes) > (size_t)1 << 30) return 2;                                   \
    void *memory = aligned_alloc(256, ((bytes) + 255) / 256 * 256);            \
    memset(memory, 0xff, bytes);                                               \
    *(place) = (void *)memory

int cuInit(unsigned flags) { return flags != 0; }
int cuDriverGetVersion(int *version) { *version = VERSION; return 0; }
int cuGetErrorName(int status, const char **text) { *text = "CUDA_ERROR_PRETENDED"; return 0; }
int cuGetErrorString(int status, const char **text) { *text = "a pretended error"; return 0; }
int cuDeviceGetCount(int *count) { *count = COUNT; return 0; }
int cuDeviceGet(int *device, int index) { *device = index; return 0; }
int cuDeviceGetName(char *name, int room, int device) { strncpy(name, "Pretended GPU", room); return 0; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = (size_t)1 << 30; return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    *value = attribute == 75 ? CAPABILITY : 0;
    return 0;
}
int cuDevicePrimaryCtxRetain(void **context, int device) { TRY; *context = &pretended_driver_failure; return 0; }
int cuDevicePrimaryCtxRelease_v2(int device) { return 0; }
int cuCtxPushCurrent_v2(void *context) { return 0; }
int cuCtxPopCurrent_v2(void **context) { *context = &pretended_driver_failure; return 0; }
int cuStreamSynchronize(void *stream) { TRY; return 0; }
int cuMemGetInfo_v2(size_t *available, size_t *total) { TRY; *available = *total = (size_t)1 << 30; return 0; }
int cuMemAlloc_v2(void **place, size_t bytes) { TRY; TAKE(place, bytes); return 0; }
int cuMemFree_v2(void *memory) { free(memory); return 0; }
int cuMemsetD8_v2(void *memory, unsigned char value, size_t bytes) { TRY; memset(memory, value, bytes); return 0; }
int cuMemcpyHtoD_v2(void *to, const void *from, size_t bytes) { TRY; memcpy(to, from, bytes); return 0; }
int cuMemcpyDtoH_v2(void *to, const void *from, size_t bytes) { TRY; memcpy(to, from, bytes); return 0; }
int cuMemcpyDtoD_v2(void *to, const void *from, size_t bytes) { TRY; memcpy(to, from, bytes); return 0; }
int cuMemHostAlloc(void **place, size_t bytes, unsigned flags) { TRY; TAKE(place, bytes); return 0; }
int cuMemFreeHost(void *memory) { free(memory); return 0; }
/* libtorch asks for this one, and ONNX Runtime's provider names the other. */
int cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) { *flags = 0; *active = 1; return 0; }
int cuTensorMapEncodeTiled(void) { return 801; }
