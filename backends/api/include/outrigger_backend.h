/* Backends for Outrigger: the C ABI.
 * Made by `cargo xtask headers` from backends/api/src/abi.rs: change that and not this.
 * SPDX-License-Identifier: Apache-2.0 OR MIT */

#ifndef OUTRIGGER_BACKEND_H
#define OUTRIGGER_BACKEND_H

// The table of functions that a backend library exports, and what its entries take and give.
//
// A library exports `outrigger_backend_v1`, of type `const OutriggerBackendTable *(void)`. It takes nothing and returns a `OutriggerBackendTable` that stays valid and
// unchanged for the life of the process; the host never unloads the library.
//
// # Versions
// `major` must be equal on both sides. Within a major version `OutriggerBackendTable` only grows at its end, and `minor` counts
// that growth; every other struct here is frozen. The host copies the smaller of the two sizes over a table of nulls, so
// that an entry which the library does not know is null. Each entry names the minor version since which it exists; those
// since 0 must not be null, unless they say that they may.
//
// # What holds for every entry
// - It returns a `OUTRIGGER_BACKEND_CODE_...`, and on failure writes why into the `OutriggerBackendMessage`, in one line. The message is the host's and may be null.
// - What an `out` pointer points to is written on success and left alone on failure. No `out` pointer is null.
// - Pointers given to the library are valid for the time of the call only, unless the entry says otherwise. A list or text of length
//   0 may have any address.
// - It may be called from any thread. Calls may overlap, also on the same handle, with one exception: the entry that
//   ends a handle runs alone, when no other call on that handle or on anything made from it is under way, and after
//   all that was made from it has been ended: instances before their model, models and buffers before their device, devices
//   before their backend. No entry is called out of a function of the host's that the library has called.
// - It neither unwinds nor jumps out of its frame.
//
// # Tensors
// They are DLPack's, dense and row-major; null strides say the same. A tensor without elements may have any address, null too.
// What describes a tensor is only read by whoever it was given to.
// - Host memory has the device `OUTRIGGER_BACKEND_DL_CPU`, also where it is pinned. Inputs in it are of any alignment. Places of outputs are aligned to
//   64 bytes, and so is pinned memory. What a library allocates for an output need not be aligned.
// - Any other device is memory of the device, of which the host knows nothing but what the library gave it: it adds
//   `byte_offset` to `data`, never reads through the sum, and gives it to the same device handle again, with an offset of 0. So `data` may
//   be a handle, if the library's own offset is 0.
// - The elements of a tensor of strings are `OutriggerBackendText`s, aligned as such, of any bytes and in host memory: the code of their type is
//   `OUTRIGGER_BACKEND_TYPE_CODE_TEXT`, its bits are those of a `Text` (128 where pointers have 64). The bytes belong to the tensor as the texts do.
//
// # Who ends a tensor
// Whoever has been given a `DLManagedTensor` owns it and ends it once, by its deleter if that is not null, on any thread. A deleter may call
// a deleter of the other side's, whose tensor it had kept: so no lock is held around one that one's own deleters take.


#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* DLPack's structs, for those who have not included dlpack.h before. */
#if !defined(DLPACK_DLPACK_H_) && !defined(DLPACK_VERSION) && !defined(DLPACK_MAJOR_VERSION)

// Where the data is.
typedef struct DLDevice {
  // What kind of memory.
  int32_t device_type;
  // Which of that kind.
  int32_t device_id;
} DLDevice;

// The type of one element.
typedef struct DLDataType {
  // One of `OUTRIGGER_BACKEND_TYPE_CODE_...`.
  uint8_t code;
  // Bits of one element.
  uint8_t bits;
  // Always 1 here.
  uint16_t lanes;
} DLDataType;

// A tensor that somebody else owns.
typedef struct DLTensor {
  // The allocation.
  void *data;
  // Where it is.
  struct DLDevice device;
  // Dimensions.
  int32_t ndim;
  // The element type.
  struct DLDataType dtype;
  // One extent for each dimension.
  int64_t *shape;
  // Elements from one index to the next for each dimension; null for dense and row-major.
  int64_t *strides;
  // Bytes from `data` to the first element.
  uint64_t byte_offset;
} DLTensor;

// A tensor that owns itself, and ends by its deleter.
typedef struct DLManagedTensor {
  // The tensor.
  struct DLTensor dl_tensor;
  // For whoever made it.
  void *manager_ctx;
  // Ends it; null if nothing is to be done.
  void (*deleter)(struct DLManagedTensor*);
} DLManagedTensor;

#endif


// DLPack's device type for host memory.
#define OUTRIGGER_BACKEND_DL_CPU 1

// DLPack's device type for a device that has none of its own.
#define OUTRIGGER_BACKEND_DL_EXT_DEV 12

// The version whose tables are understood; the symbol's name carries it too.
#define OUTRIGGER_BACKEND_MAJOR 1

// How far the table has grown within `OUTRIGGER_BACKEND_MAJOR`.
#define OUTRIGGER_BACKEND_MINOR 0

// It worked.
#define OUTRIGGER_BACKEND_CODE_OK 0

// The library, its driver or something it needs is not there.
#define OUTRIGGER_BACKEND_CODE_UNAVAILABLE 1

// The model's files cannot be read, or are no model for this backend.
#define OUTRIGGER_BACKEND_CODE_LOAD 2

// An input has the wrong count, type or shape.
#define OUTRIGGER_BACKEND_CODE_INPUT 3

// The device has not enough memory.
#define OUTRIGGER_BACKEND_CODE_OUT_OF_MEMORY 4

// The model failed while it ran.
#define OUTRIGGER_BACKEND_CODE_RUN 5

// A bug in the backend. The host reads every code that it does not know as this one.
#define OUTRIGGER_BACKEND_CODE_INTERNAL 6

// The run was asked to end by `instance_cancel`, and did.
#define OUTRIGGER_BACKEND_CODE_CANCELLED 7

// The device is lost: nothing on it succeeds any more in this process.
#define OUTRIGGER_BACKEND_CODE_LOST 8

// Something that the backend cannot do, however often it is tried.
#define OUTRIGGER_BACKEND_CODE_UNSUPPORTED 9

// The processor.
#define OUTRIGGER_BACKEND_KIND_CPU 0

// An NVIDIA GPU.
#define OUTRIGGER_BACKEND_KIND_CUDA 1

// A GPU reached through Vulkan, Metal or DX12.
#define OUTRIGGER_BACKEND_KIND_GPU 2

// An FPGA.
#define OUTRIGGER_BACKEND_KIND_FPGA 3

// It can be used.
#define OUTRIGGER_BACKEND_HEALTH_HEALTHY 0

// It can be used, but something is wrong with it.
#define OUTRIGGER_BACKEND_HEALTH_DEGRADED 1

// Nothing on it succeeds any more.
#define OUTRIGGER_BACKEND_HEALTH_LOST 2

// It cannot be used now, and will be able to be again.
#define OUTRIGGER_BACKEND_HEALTH_RECOVERING 3

// Any memory of the host.
#define OUTRIGGER_BACKEND_MEMORY_HOST 0

// Memory of the host that the device reads and writes fastest.
#define OUTRIGGER_BACKEND_MEMORY_PINNED 1

// The device's own.
#define OUTRIGGER_BACKEND_MEMORY_DEVICE 2

// Signed integers of 8, 16, 32 and 64 bits.
#define OUTRIGGER_BACKEND_TYPE_CODE_INT 0

// Unsigned integers of 8, 16, 32 and 64 bits.
#define OUTRIGGER_BACKEND_TYPE_CODE_UINT 1

// IEEE 754, of 16, 32 and 64 bits.
#define OUTRIGGER_BACKEND_TYPE_CODE_FLOAT 2

// A `OutriggerBackendText`, with as many bits as that has.
#define OUTRIGGER_BACKEND_TYPE_CODE_TEXT 3

// The upper half of an IEEE 754 single: 16 bits.
#define OUTRIGGER_BACKEND_TYPE_CODE_BFLOAT 4

// A byte of 0 or 1: 8 bits.
#define OUTRIGGER_BACKEND_TYPE_CODE_BOOL 6

// An open backend; the library's own.
typedef struct OutriggerBackendHandle OutriggerBackendHandle;

// An open device; the library's own.
typedef struct OutriggerBackendDeviceHandle OutriggerBackendDeviceHandle;

// That which runs a model; the library's own.
typedef struct OutriggerBackendInstanceHandle OutriggerBackendInstanceHandle;

// A loaded model; the library's own.
typedef struct OutriggerBackendModelHandle OutriggerBackendModelHandle;

// UTF-8 text with a length and no terminator. Whoever made it owns it.
typedef struct OutriggerBackendText {
  // The first byte; may be null if `len` is 0.
  const uint8_t *data;
  // Bytes.
  size_t len;
} OutriggerBackendText;

// One setting.
typedef struct OutriggerBackendSetting {
  // Its name.
  struct OutriggerBackendText key;
  // Its value.
  struct OutriggerBackendText value;
} OutriggerBackendSetting;

// Room for the reason of a failure. The host owns it; the library writes at most `capacity` bytes of UTF-8 to `data`
// and sets `len` to how many it wrote.
typedef struct OutriggerBackendMessage {
  // The first byte of the room.
  uint8_t *data;
  // Bytes of room.
  size_t capacity;
  // Bytes written; 0 at first.
  size_t len;
} OutriggerBackendMessage;

// See `backend_open`.
typedef int32_t (*OutriggerBackendOpen)(const struct OutriggerBackendSetting *settings,
                                        size_t count,
                                        struct OutriggerBackendHandle **out,
                                        struct OutriggerBackendMessage *message);

// See `backend_close`.
typedef void (*OutriggerBackendClose)(struct OutriggerBackendHandle *backend);

// One device.
typedef struct OutriggerBackendDevice {
  // `cpu:0`, `cuda:1`.
  struct OutriggerBackendText name;
  // One of `OUTRIGGER_BACKEND_KIND_...`.
  uint32_t kind;
  // Runs that it is worth having under way at once; 0 if that is left to the host.
  uint32_t lanes;
  // Memory in all, in bytes; 0 if not known.
  uint64_t memory_total;
  // 1 if tensors can stay in memory of its own, else 0; then `buffer_allocate` and `buffer_copy` are not null.
  uint32_t resident;
  // Zero.
  uint32_t reserved;
} OutriggerBackendDevice;

// What a backend says of itself. All that it points to belongs to the backend's handle.
typedef struct OutriggerBackendDescription {
  // Short name: `cpu`, `cuda`, `gpu`, `fpga`.
  struct OutriggerBackendText name;
  // The backend's version, and that of the library it drives.
  struct OutriggerBackendText version;
  // File formats it takes. One whose name ends in `+steps` is another with steps before and after the model, which the setting `steps` has, as
  // TOML; `OutriggerBackendLoadRequest::signature` then says what callers send and want.
  const struct OutriggerBackendText *formats;
  // How many.
  size_t format_count;
  // The devices that are there.
  const struct OutriggerBackendDevice *devices;
  // How many.
  size_t device_count;
  // Why there are no devices; of length 0 where there are some.
  struct OutriggerBackendText reason;
} OutriggerBackendDescription;

// See `backend_describe`.
typedef int32_t (*OutriggerBackendDescribe)(struct OutriggerBackendHandle *backend,
                                            const struct OutriggerBackendDescription **out,
                                            struct OutriggerBackendMessage *message);

// See `device_open`.
typedef int32_t (*OutriggerBackendDeviceOpen)(struct OutriggerBackendHandle *backend,
                                              size_t index,
                                              struct OutriggerBackendDeviceHandle **out,
                                              struct OutriggerBackendMessage *message);

// See `device_close`.
typedef void (*OutriggerBackendDeviceClose)(struct OutriggerBackendDeviceHandle *device);

// A device, now. Why it is not healthy goes into the entry's `OutriggerBackendMessage`.
typedef struct OutriggerBackendDeviceStatus {
  // Memory in all, in bytes; 0 if not known.
  uint64_t memory_total;
  // Memory free, in bytes; 0 if not known.
  uint64_t memory_free;
  // Bytes that models and buffers of this backend hold; 0 if not known.
  uint64_t memory_held;
  // One of `OUTRIGGER_BACKEND_HEALTH_...`.
  uint32_t health;
  // Zero.
  uint32_t reserved;
} OutriggerBackendDeviceStatus;

// See `device_status`.
typedef int32_t (*OutriggerBackendDeviceStatusEntry)(struct OutriggerBackendDeviceHandle *device,
                                                     struct OutriggerBackendDeviceStatus *out,
                                                     struct OutriggerBackendMessage *message);

// See `buffer_allocate`.
typedef int32_t (*OutriggerBackendBufferAllocate)(struct OutriggerBackendDeviceHandle *device,
                                                  uint32_t memory,
                                                  size_t bytes,
                                                  DLManagedTensor **out,
                                                  struct OutriggerBackendMessage *message);

// See `buffer_copy`.
typedef int32_t (*OutriggerBackendBufferCopy)(struct OutriggerBackendDeviceHandle *device,
                                              const DLTensor *from,
                                              const DLTensor *to,
                                              struct OutriggerBackendMessage *message);

// Name, type and shape of an input or output.
typedef struct OutriggerBackendTensorType {
  // The name.
  struct OutriggerBackendText name;
  // The element type.
  DLDataType data_type;
  // Dimensions, at most 32.
  uint32_t rank;
  // One extent for each dimension, −1 where free.
  const int64_t *shape;
  // A name for each dimension, of length 0 where it has none; may be null if none has one.
  const struct OutriggerBackendText *symbols;
} OutriggerBackendTensorType;

// Inputs and outputs of a model. All that it points to belongs to the model's handle.
typedef struct OutriggerBackendSignature {
  // In the order in which `instance_infer` takes them.
  const struct OutriggerBackendTensorType *inputs;
  // How many.
  size_t input_count;
  // In the order of `OutriggerBackendOutput::index`.
  const struct OutriggerBackendTensorType *outputs;
  // How many.
  size_t output_count;
} OutriggerBackendSignature;

// What to load, and how.
typedef struct OutriggerBackendLoadRequest {
  // The model file, as the bytes of a path of the operating system (on Unix any bytes but 0; elsewhere UTF-8).
  struct OutriggerBackendText path;
  // One of `OutriggerBackendDescription::formats`, or of length 0: the library sees for itself.
  struct OutriggerBackendText format;
  // Settings for this model; one that is not known is `OUTRIGGER_BACKEND_CODE_LOAD`.
  const struct OutriggerBackendSetting *settings;
  // How many.
  size_t setting_count;
  // Threads inside one run; 0 lets the backend decide.
  uint32_t intra_threads;
  // Zero.
  uint32_t reserved;
  // What is said of inputs and outputs beside the file, for formats that do not say it themselves; others ignore it. Null, or of
  // no inputs or no outputs, where nothing is said.
  const struct OutriggerBackendSignature *signature;
} OutriggerBackendLoadRequest;

// See `model_estimate`.
typedef int32_t (*OutriggerBackendModelEstimate)(struct OutriggerBackendDeviceHandle *device,
                                                 const struct OutriggerBackendLoadRequest *request,
                                                 uint64_t *out,
                                                 struct OutriggerBackendMessage *message);

// See `model_load`.
typedef int32_t (*OutriggerBackendModelLoad)(struct OutriggerBackendDeviceHandle *device,
                                             const struct OutriggerBackendLoadRequest *request,
                                             struct OutriggerBackendModelHandle **out,
                                             struct OutriggerBackendMessage *message);

// See `model_unload`.
typedef void (*OutriggerBackendModelUnload)(struct OutriggerBackendModelHandle *model);

// See `model_info`.
typedef int32_t (*OutriggerBackendModelInfo)(struct OutriggerBackendModelHandle *model,
                                             const struct OutriggerBackendSignature **out,
                                             struct OutriggerBackendMessage *message);

// See `instance_create`.
typedef int32_t (*OutriggerBackendInstanceCreate)(struct OutriggerBackendModelHandle *model,
                                                  struct OutriggerBackendInstanceHandle **out,
                                                  struct OutriggerBackendMessage *message);

// See `instance_destroy`.
typedef void (*OutriggerBackendInstanceDestroy)(struct OutriggerBackendInstanceHandle *instance);

// An instance, now.
typedef struct OutriggerBackendInstanceStatus {
  // Bytes of device memory that it holds, its share of the weights counted in; 0 if not known.
  uint64_t bytes_held;
  // 1 if `instance_cancel` ends its runs early, else 0; does not change. A run that goes on long after its cancel is then
  // taken to hang, and its process may be ended for that. Not looked at where that entry is null.
  uint32_t can_cancel;
  // Zero.
  uint32_t reserved;
} OutriggerBackendInstanceStatus;

// See `instance_status`.
typedef int32_t (*OutriggerBackendInstanceStatusEntry)(struct OutriggerBackendInstanceHandle *instance,
                                                       struct OutriggerBackendInstanceStatus *out,
                                                       struct OutriggerBackendMessage *message);

// One output asked for.
typedef struct OutriggerBackendOutput {
  // Which of `OutriggerBackendSignature::outputs`.
  size_t index;
  // Where to write it: memory of the host's, dense, aligned to 64 bytes, which nobody else touches until the run is over.
  // It is to be written as a whole: what lies there before may be an older result, of somebody else's.
  // Null if the library is to allocate, as it always is for strings.
  const DLTensor *place;
  // Set by the library where it allocated: always if `place` is null, and otherwise only if the result does not have
  // the shape of the place. The host owns it after success and ends it by its deleter, from any thread, at any
  // time before the model is unloaded. After a failure the host does not look at it, so that a library which had allocated
  // some of the outputs ends those itself. Null when called.
  DLManagedTensor *allocated;
  // Where the library is to allocate: `OUTRIGGER_BACKEND_MEMORY_HOST`, or `OUTRIGGER_BACKEND_MEMORY_DEVICE` for a result that stays there; where the device has
  // no memory of its own that is `OUTRIGGER_BACKEND_CODE_UNSUPPORTED`. Strings are in host memory whatever this says.
  uint32_t memory;
  // Zero.
  uint32_t reserved;
} OutriggerBackendOutput;

// What belongs to a run beside its tensors.
typedef struct OutriggerBackendRun {
  // The number by which `instance_cancel` names it, unlike that of any other run under way on the instance; 0 if it
  // will not be cancelled.
  uint64_t id;
  // Zero.
  uint64_t reserved;
} OutriggerBackendRun;

// See `instance_infer`.
typedef int32_t (*OutriggerBackendInstanceInfer)(struct OutriggerBackendInstanceHandle *instance,
                                                 DLManagedTensor *const *inputs,
                                                 size_t input_count,
                                                 struct OutriggerBackendOutput *outputs,
                                                 size_t output_count,
                                                 const struct OutriggerBackendRun *run,
                                                 struct OutriggerBackendMessage *message);

// Hears the end of a submitted run: the context that came with it, a `OUTRIGGER_BACKEND_CODE_...`, and the reason of a failure, which may be null and is
// valid during the call only. Called once for each run, from any thread.
typedef void (*OutriggerBackendFinished)(void *context,
                                         int32_t code,
                                         const struct OutriggerBackendMessage *message);

// See `instance_submit`.
typedef int32_t (*OutriggerBackendInstanceSubmit)(struct OutriggerBackendInstanceHandle *instance,
                                                  DLManagedTensor *const *inputs,
                                                  size_t input_count,
                                                  struct OutriggerBackendOutput *outputs,
                                                  size_t output_count,
                                                  const struct OutriggerBackendRun *run,
                                                  OutriggerBackendFinished finished,
                                                  void *context,
                                                  struct OutriggerBackendMessage *message);

// See `instance_cancel`.
typedef void (*OutriggerBackendInstanceCancel)(struct OutriggerBackendInstanceHandle *instance,
                                               uint64_t id);

// What a library exports. What holds for all entries stands at the top.
typedef struct OutriggerBackendTable {
  // Must be `OUTRIGGER_BACKEND_MAJOR`.
  uint32_t major;
  // The `OUTRIGGER_BACKEND_MINOR` that the library was made with.
  uint32_t minor;
  // The size of the library's table in bytes.
  size_t size;
  // Opens the backend. The host owns the handle and ends it with `backend_close`. A library that lacks its driver
  // opens all the same and describes no devices and the reason; a setting that it does not know is
  // `OUTRIGGER_BACKEND_CODE_UNAVAILABLE`. Since 1.0.
  OutriggerBackendOpen backend_open;
  // Ends a backend. The handle is gone afterwards. Since 1.0.
  OutriggerBackendClose backend_close;
  // Describes the backend. What `out` gets belongs to the backend, does not change, and is valid until
  // `backend_close`. Since 1.0.
  OutriggerBackendDescribe backend_describe;
  // Opens device number `index` of the description. The host owns the handle and ends it with `device_close`. No
  // such device is `OUTRIGGER_BACKEND_CODE_INPUT`. Since 1.0.
  OutriggerBackendDeviceOpen device_open;
  // Ends a device. The handle is gone afterwards. Since 1.0.
  OutriggerBackendDeviceClose device_close;
  // Tells memory and health, now; cheap enough to be asked every second. Since 1.0.
  OutriggerBackendDeviceStatusEntry device_status;
  // Gives memory as a tensor of `bytes` elements of 8 bits, which may be 0: `OUTRIGGER_BACKEND_MEMORY_PINNED`, which the host may read and write, or
  // `OUTRIGGER_BACKEND_MEMORY_DEVICE`. What is in it does not matter. The host ends it by its deleter, before the device is closed. May be null: then
  // there is neither. Since 1.0.
  OutriggerBackendBufferAllocate buffer_allocate;
  // Copies the bytes of one tensor to another that has as many, one in the host's memory and one in the device's, and returns when
  // they are there. Another number of bytes, or memory that is not this device's, is `OUTRIGGER_BACKEND_CODE_INPUT`. May be null as
  // `buffer_allocate`. Since 1.0.
  OutriggerBackendBufferCopy buffer_copy;
  // Tells the bytes of device memory that an instance of the model would take, before it is loaded; 0 if not known. May be
  // null: not known. Since 1.0.
  OutriggerBackendModelEstimate model_estimate;
  // Loads a model. The host owns the handle and ends it with `model_unload`. Since 1.0.
  OutriggerBackendModelLoad model_load;
  // Ends a model and everything it holds. The handle is gone afterwards. Since 1.0.
  OutriggerBackendModelUnload model_unload;
  // Tells inputs and outputs. What `out` gets belongs to the model, does not change, and is valid until
  // `model_unload`. Since 1.0.
  OutriggerBackendModelInfo model_info;
  // Makes an instance. The host owns the handle and ends it with `instance_destroy`. Since 1.0.
  OutriggerBackendInstanceCreate instance_create;
  // Ends an instance. The handle is gone afterwards. Since 1.0.
  OutriggerBackendInstanceDestroy instance_destroy;
  // Tells what the instance holds, now, and whether its runs can be ended early. Since 1.0.
  OutriggerBackendInstanceStatusEntry instance_status;
  // Runs the model and returns when the results are there. `run` may be null: nothing belongs to it. Since 1.0.
  //
  // The library owns each of `inputs` from the call on, whether it succeeds or fails, and ends each by its deleter
  // exactly once, on any thread: at the latest when the instance is ended, or with an output that is made of it. An input may also
  // be handed back itself as an output, without a copy. Inputs are only read, for others may read them too; they are in host memory, or in
  // the device's if this device handle gave them. Count, type and shape of inputs and outputs are the library's to check: another is
  // `OUTRIGGER_BACKEND_CODE_INPUT`. A placed output is written in its place; see `OutriggerBackendOutput` for who owns the others.
  OutriggerBackendInstanceInfer instance_infer;
  // Begins a run and returns, after which `finished` is called, or before: once, on any thread. Inputs, outputs and places are
  // as for `instance_infer`, except that `outputs` and the places stay valid until then. `inputs` and `run` do not. If this returns a failure
  // `finished` is not called. `finished` does not block, though it may end tensors. A run counts as a call that is
  // under way until `finished` has been called: the instance may be ended on another thread before that call has
  // returned, and its end waits for whatever is left of it. May be null: the host runs on threads of its own, as it should where
  // the run would be over before this returns. Since 1.0.
  OutriggerBackendInstanceSubmit instance_submit;
  // Asks for the run `id` of the instance, which is not 0, to end soon with `OUTRIGGER_BACKEND_CODE_CANCELLED`, and returns without waiting. The run may
  // still succeed; one that is not under way is nothing to do and nothing to remember, and so is every run of an instance whose
  // `OutriggerBackendInstanceStatus::can_cancel` is 0. May be null: no run can be ended. Since 1.0.
  OutriggerBackendInstanceCancel instance_cancel;
} OutriggerBackendTable;

#if defined(__GNUC__)
#pragma GCC visibility push(default)
#endif

// The one symbol that a library exports. What it returns stays valid and unchanged for the life of the process.
const OutriggerBackendTable *outrigger_backend_v1(void);

#if defined(__GNUC__)
#pragma GCC visibility pop
#endif

#ifdef __cplusplus
} /* extern "C" */
#endif

#endif /* OUTRIGGER_BACKEND_H */
