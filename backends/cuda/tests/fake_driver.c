/* A driver of NVIDIA's without a GPU behind it, for tests of what is said where something else is missing. */
#include <stddef.h>
#include <string.h>

#ifndef VERSION
#define VERSION 13010
#endif
#ifndef COUNT
#define COUNT 1
#endif
#define UNUSED(name) int name(void) { return 801; /* not supported */ }

int cuInit(unsigned flags) { return flags != 0; }
int cuDriverGetVersion(int *version) { *version = VERSION; return 0; }
int cuGetErrorName(int status, const char **text) { *text = "CUDA_ERROR_NOT_SUPPORTED"; return 0; }
int cuGetErrorString(int status, const char **text) { *text = "operation not supported"; return 0; }
int cuDeviceGetCount(int *count) { *count = COUNT; return 0; }
int cuDeviceGet(int *device, int index) { *device = index; return 0; }
int cuDeviceGetName(char *name, int room, int device) { strncpy(name, "Pretended GPU", room); return 0; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = 1u << 30; return 0; }
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    *value = attribute == 75 ? CAPABILITY : 0;
    return 0;
}
UNUSED(cuDevicePrimaryCtxRetain)
UNUSED(cuDevicePrimaryCtxRelease_v2)
UNUSED(cuCtxPushCurrent_v2)
UNUSED(cuCtxPopCurrent_v2)
UNUSED(cuStreamSynchronize)
UNUSED(cuMemGetInfo_v2)
UNUSED(cuMemAlloc_v2)
UNUSED(cuMemFree_v2)
UNUSED(cuMemsetD8_v2)
UNUSED(cuMemcpyHtoD_v2)
UNUSED(cuMemcpyDtoH_v2)
UNUSED(cuMemHostAlloc)
UNUSED(cuMemFreeHost)
