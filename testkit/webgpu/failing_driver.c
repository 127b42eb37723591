// A driver of Vulkan's that is another one, but for what fails: while there is a file `lost` or `memory` in the folder FOLDER, submissions lose
// the device, or 16 MiB of memory and more cannot be had at once. OTHER is the other one's library. Both are texts, given to the compiler.

#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

// vulkan_core.h
#define OUT_OF_DEVICE_MEMORY (-2)
#define DEVICE_LOST (-4)
#define INCOMPATIBLE_DRIVER (-9)

#define LARGE (16 << 20)

typedef void (*function)(void);
typedef function (*get)(void *, const char *);

static get device_functions;
static int (*submit)(void *, uint32_t, const void *, uint64_t);
static int (*allocate)(void *, const void *, const void *, uint64_t *);

static void *other(const char *name) {
    static void *library;
    if (!library) library = dlopen(OTHER, RTLD_NOW | RTLD_LOCAL);
    return library ? dlsym(library, name) : NULL;
}

static int is_failing(const char *what) {
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", FOLDER, what);
    return access(path, F_OK) == 0;
}

static int submit_or_fail(void *queue, uint32_t count, const void *submits, uint64_t fence) {
    return is_failing("lost") ? DEVICE_LOST : submit(queue, count, submits, fence);
}

static int allocate_or_fail(void *device, const void *info, const void *allocator, uint64_t *memory) {
    // VkMemoryAllocateInfo: its type, what follows, and the bytes.
    uint64_t bytes = ((const uint64_t *)info)[2];
    if (bytes >= LARGE && is_failing("memory")) return OUT_OF_DEVICE_MEMORY;
    return allocate(device, info, allocator, memory);
}

static function in_place_of(const char *name, function found) {
    if (found && !strcmp(name, "vkQueueSubmit")) {
        submit = (int (*)(void *, uint32_t, const void *, uint64_t))found;
        return (function)submit_or_fail;
    }
    if (found && !strcmp(name, "vkAllocateMemory")) {
        allocate = (int (*)(void *, const void *, const void *, uint64_t *))found;
        return (function)allocate_or_fail;
    }
    return found;
}

static function get_of_device(void *device, const char *name) {
    return in_place_of(name, device_functions(device, name));
}

function vk_icdGetInstanceProcAddr(void *instance, const char *name) {
    get functions = (get)other("vk_icdGetInstanceProcAddr");
    if (!functions) return NULL;
    function found = functions(instance, name);
    if (found && !strcmp(name, "vkGetDeviceProcAddr")) {
        device_functions = (get)found;
        return (function)get_of_device;
    }
    return in_place_of(name, found);
}

function vk_icdGetPhysicalDeviceProcAddr(void *instance, const char *name) {
    get functions = (get)other("vk_icdGetPhysicalDeviceProcAddr");
    return functions ? functions(instance, name) : NULL;
}

int vk_icdNegotiateLoaderICDInterfaceVersion(uint32_t *version) {
    int (*negotiate)(uint32_t *) = (int (*)(uint32_t *))other("vk_icdNegotiateLoaderICDInterfaceVersion");
    return negotiate ? negotiate(version) : INCOMPATIBLE_DRIVER;
}
