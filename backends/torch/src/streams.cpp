// What libtorch's C interface lacks: streams, and the allocator of a device. Through the interfaces that all kinds of devices have in libc10.so,
// so that this is linked with no library of CUDA's: those register themselves when they are loaded.
//
// Each function returns null, or why it failed, as a text of `malloc` that is the caller's.

#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/Stream.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

#include <dlfcn.h>

#include <cstring>
#include <exception>
#include <functional>
#include <stdexcept>
#include <string>

namespace {

constexpr auto CUDA = c10::DeviceType::CUDA;

template <typename Call>
char *protect(Call call) noexcept {
    try {
        call();
        return nullptr;
    } catch (const std::exception &error) {
        return strdup(error.what());
    } catch (...) {
        return strdup("an exception that is none of the standard library's");
    }
}

const c10::impl::DeviceGuardImplInterface &guard() { return *c10::impl::getDeviceGuardImpl(CUDA); }

c10::Stream unpacked(const int64_t *stream) {
    return c10::Stream::unpack3(stream[0], static_cast<c10::DeviceIndex>(stream[1]), CUDA);
}

void pack(const c10::Stream &stream, int64_t *place) {
    place[0] = stream.id();
    place[1] = stream.device_index();
}

} // namespace

extern "C" {

// A stream on a device, out of libtorch's pool for it: two numbers.
char *outrigger_stream_of(int device, int64_t *stream) {
    return protect([&] {
        pack(guard().getStreamFromGlobalPool(c10::Device(CUDA, static_cast<c10::DeviceIndex>(device))), stream);
    });
}

// Makes a stream the one of this thread, and its device too. What was before goes to `before`: the device, and its stream on this one.
char *outrigger_stream_enter(const int64_t *stream, int64_t *before) {
    return protect([&] {
        const auto entered = unpacked(stream);
        const auto device = guard().exchangeDevice(entered.device());
        pack(guard().exchangeStream(entered), before);
        before[2] = device.index();
    });
}

// Puts back what was before.
char *outrigger_stream_leave(const int64_t *before) {
    return protect([&] {
        guard().exchangeStream(unpacked(before));
        guard().setDevice(c10::Device(CUDA, static_cast<c10::DeviceIndex>(before[2])));
    });
}

// Waits until all that was put into a stream is done.
char *outrigger_stream_wait(const int64_t *stream) {
    return protect([&] { guard().synchronizeStream(unpacked(stream)); });
}

// Whether libtorch's part for CUDA is loaded.
int outrigger_cuda_is_loaded() { return c10::impl::hasDeviceGuardImpl(CUDA); }

// Before the first use of a device: settings of its allocator, in the form of PYTORCH_CUDA_ALLOC_CONF.
//
// What libtorch has for that (c10/core/AllocatorConfig.h) is inline, and the hook in it, which CUDA's part has set, is a local of a function: a library
// that keeps its symbols to itself, as this one, has another, empty one. So libtorch's own is asked for by its name, which is that of this version.
char *outrigger_allocator_set(const char *settings) {
    return protect([&] {
        using Hook = std::function<void(const std::string &)>;
        constexpr auto NAME =
            "_ZZN3c1016CachingAllocator26AcceleratorAllocatorConfig19getConfigParserHookB5cxx11EvE4hook";
        const auto *hook = static_cast<const Hook *>(dlsym(RTLD_DEFAULT, NAME));
        if (!hook || !*hook) {
            throw std::runtime_error("libtorch's allocator for CUDA takes no settings");
        }
        (*hook)(settings);
    });
}

// Gives back to the driver what is not used.
char *outrigger_allocator_trim() {
    return protect([&] {
        auto *allocator = c10::getDeviceAllocator(CUDA);
        if (allocator->initialized()) {
            allocator->emptyCache();
        }
    });
}

} // extern "C"
