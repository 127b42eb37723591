/* CUDA's runtime without a GPU behind it: the device's memory is the host's, copies are copies, and kernels do nothing. So models that only
 * copy run on ONNX Runtime's real provider and on libtorch. The functions that are not here are made by `cuda.rs`: they do nothing and succeed. */
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

/* What waiting for a stream fails with, if it does; the blocks of device memory that there are; the streams that something
 * was copied in; and the recordings that were played. */
int pretended_runtime_failure = 0;
int pretended_runtime_blocks = 0;
int pretended_runtime_streams = 0;
int pretended_runtime_launches = 0;

/* Whether something was copied in each. */
static char streams[1024];
static size_t made = 0;

static int take(void **place, size_t bytes) {
    if (bytes > (size_t)1 << 30) return 2;
    *place = aligned_alloc(256, (bytes + 255) / 256 * 256);
    memset(*place, 0xff, bytes);
    return 0;
}

int cudaMalloc(void **place, size_t bytes) { pretended_runtime_blocks++; return take(place, bytes); }
int cudaFree(void *memory) { if (memory) pretended_runtime_blocks--; free(memory); return 0; }
int cudaMallocHost(void **place, size_t bytes) { return take(place, bytes); }
int cudaHostAlloc(void **place, size_t bytes, unsigned flags) { return take(place, bytes); }
int cudaFreeHost(void *memory) { free(memory); return 0; }
int cudaMemcpy(void *to, const void *from, size_t bytes, int kind) { memcpy(to, from, bytes); return 0; }
int cudaMemcpyAsync(void *to, const void *from, size_t bytes, int kind, void *stream) {
    if (stream && !*(char *)stream) {
        *(char *)stream = 1;
        pretended_runtime_streams++;
    }
    memcpy(to, from, bytes);
    return 0;
}
int cudaMemset(void *memory, int value, size_t bytes) { memset(memory, value, bytes); return 0; }
int cudaMemsetAsync(void *memory, int value, size_t bytes, void *stream) { memset(memory, value, bytes); return 0; }
int cudaMemGetInfo(size_t *available, size_t *total) { *available = *total = (size_t)1 << 30; return 0; }
int cudaGetDeviceCount(int *count) { *count = 1; return 0; }
int cudaGetDevice(int *device) { *device = 0; return 0; }
int cudaDeviceGetAttribute(int *value, int attribute, int device) { *value = 0; return 0; }
int cudaRuntimeGetVersion(int *version) { *version = 13000; return 0; }
int cudaDriverGetVersion(int *version) { *version = 13010; return 0; }
/* The beginning of `cudaDeviceProp`; the rest is not looked at here. */
int cudaGetDeviceProperties(char *properties, int device) {
    memset(properties, 0, 768);
    strcpy(properties, "Pretended GPU");
    *(size_t *)(properties + 288) = (size_t)1 << 30; /* totalGlobalMem */
    *(int *)(properties + 308) = 32;                 /* warpSize */
    *(int *)(properties + 320) = 1024;               /* maxThreadsPerBlock */
    *(int *)(properties + 360) = 9;                  /* major */
    return 0;
}
int cudaStreamCreate(void **stream) {
    if (made == sizeof streams) return 2;
    *stream = &streams[made++];
    return 0;
}
int cudaStreamCreateWithFlags(void **stream, unsigned flags) { return cudaStreamCreate(stream); }
int cudaStreamCreateWithPriority(void **stream, unsigned flags, int priority) { return cudaStreamCreate(stream); }
int cudaDeviceGetStreamPriorityRange(int *least, int *greatest) { *least = *greatest = 0; return 0; }
int cudaStreamIsCapturing(void *stream, int *status) { *status = 0; return 0; }
int cudaStreamSynchronize(void *stream) { return pretended_runtime_failure; }
int cudaEventCreate(void **event) { *event = &pretended_runtime_failure; return 0; }
int cudaEventCreateWithFlags(void **event, unsigned flags) { return cudaEventCreate(event); }
/* What is recorded runs as well; what is played does nothing. */
int cudaStreamEndCapture(void *stream, void **graph) { *graph = &pretended_runtime_launches; return 0; }
int cudaGraphInstantiate(void **exec, void *graph, unsigned long long flags) { *exec = graph; return 0; }
int cudaGraphLaunch(void *exec, void *stream) { pretended_runtime_launches++; return 0; }
int cudaLaunchHostFunc(void *stream, void (*call)(void *), void *data) { call(data); return 0; }
const char *cudaGetErrorName(int status) { return "cudaErrorPretended"; }
const char *cudaGetErrorString(int status) { return status == 700 ? "an illegal memory access was encountered" : "pretended"; }
