/* Native entry scripts for Outrigger: the C ABI.
 * Made by `cargo xtask headers` from entry-scripts/native/abi/src/lib.rs: change that and not this.
 * SPDX-License-Identifier: Apache-2.0 OR MIT */

#ifndef OUTRIGGER_SCRIPT_H
#define OUTRIGGER_SCRIPT_H

#if defined(__GNUC__)
#pragma GCC visibility push(default)
#endif

// The C ABI of native entry scripts: a shared library that answers requests.
//
// `include/outrigger_script.h` is made from `abi/src/lib.rs` by `cargo xtask headers`, texts included.
//
// # Versions
// The library says by `outrigger_script_abi` which version it was made with. The host takes the same major
// version with the same minor version or an older one. Within a major version structs only grow at their
// ends and minor counts that growth; `size` is what the struct has at the host. Each member says since when
// it exists, if not since 1.0.
//
// # What holds for every function and callback
// - Pointers are valid for the time of the call only, unless it says otherwise. None is null unless it says
//   so; a `Bytes` of length 0 may have a null `data`.
// - Functions return a code. On failure they write why into the `Message`, which is the host's.
// - They neither unwind nor jump out of their frame.


#include <stddef.h>
#include <stdint.h>

// Versions with another major number are another ABI.
#define OUTRIGGER_MAJOR 1

// How far the structs have grown within the major version.
#define OUTRIGGER_MINOR 0

// What `outrigger_script_abi` returns: major version in the upper 16 bits, minor version in the lower.
#define OUTRIGGER_ABI ((OUTRIGGER_MAJOR << 16) | OUTRIGGER_MINOR)

// It worked.
#define OUTRIGGER_CODE_OK 0

// The script failed; the message is for the log. The host reads every code that it does not know as this
// one.
#define OUTRIGGER_CODE_FAILED 1

// The request cannot be answered, which is the caller's fault; the message is for the caller, with status
// 400.
#define OUTRIGGER_CODE_INPUT 2

// A request's method.
#define OUTRIGGER_METHOD_GET 0

// A request's method.
#define OUTRIGGER_METHOD_POST 1

// A request's method.
#define OUTRIGGER_METHOD_OPTIONS 2

// A request's method.
#define OUTRIGGER_METHOD_HEAD 3

// What `cancelled` says: the call goes on.
#define OUTRIGGER_CANCELLED_NO 0

// What `cancelled` says: the client has gone.
#define OUTRIGGER_CANCELLED_CLIENT_GONE 1

// What `cancelled` says: the call is out of time.
#define OUTRIGGER_CANCELLED_OUT_OF_TIME 2

// How important a line of the log is.
#define OUTRIGGER_LEVEL_DEBUG 10

// How important a line of the log is.
#define OUTRIGGER_LEVEL_INFO 20

// How important a line of the log is.
#define OUTRIGGER_LEVEL_WARNING 30

// How important a line of the log is.
#define OUTRIGGER_LEVEL_ERROR 40

// How important a line of the log is.
#define OUTRIGGER_LEVEL_CRITICAL 50

// Flag of a script: `outrigger_script_run` may be called from several threads at once.
#define OUTRIGGER_SCRIPT_THREAD_SAFE 1

// Bytes with a length and no terminator; text is UTF-8 unless said otherwise. Whoever made them owns them.
typedef struct OutriggerBytes {
  // The first byte, of any alignment; may be null if `len` is 0.
  const uint8_t *data;
  // Bytes.
  size_t len;
} OutriggerBytes;

// What a script is told when it starts. It and all that it points to is valid until
// `outrigger_script_shutdown` returns.
typedef struct OutriggerHost {
  // Bytes of this struct at the host.
  size_t size;
  // The host's `MAJOR`.
  uint32_t major;
  // The host's `MINOR`.
  uint32_t minor;
  // The directory of the script's code, as the bytes of a path.
  struct OutriggerBytes app_root;
  // The directory of the models, as the bytes of a path; of length 0 if there is none.
  struct OutriggerBytes model_dir;
  // The script's arguments, as the operator gave them.
  const struct OutriggerBytes *args;
  // How many.
  size_t arg_count;
  // For `log`.
  void *context;
  // Writes to the replica's log: `level` is one of the `LEVEL` values, `text` is copied, each of its lines
  // is a line of the log. From any thread, until `outrigger_script_shutdown` returns. Never null.
  void (*log)(void *context, int32_t level, struct OutriggerBytes text);
} OutriggerHost;

// What a script says of itself. The host owns it and has set all members but `size` to zero.
typedef struct OutriggerScript {
  // Bytes of this struct at the host; not to be changed.
  size_t size;
  // The script's own; handed to `outrigger_script_run` and `outrigger_script_shutdown`. May be null.
  void *state;
  // Any of the `SCRIPT` flags.
  uint32_t flags;
  // The methods that it takes, a bit for each: `1 << METHOD_GET` and so on. 0 means GET and POST.
  uint32_t methods;
} OutriggerScript;

// Room for the reason of a failure. The host owns it; the library writes at most `capacity` bytes of UTF-8
// to `data` and sets `len` to how many it wrote.
typedef struct OutriggerMessage {
  // The first byte of the room.
  uint8_t *data;
  // Bytes of room: 16384 or more.
  size_t capacity;
  // Bytes written; 0 at first.
  size_t len;
} OutriggerMessage;

// One header of a request or a response. Values are Latin-1.
typedef struct OutriggerHeader {
  // Name.
  struct OutriggerBytes name;
  // Value.
  struct OutriggerBytes value;
} OutriggerHeader;

// A response. The host owns the struct and has set `size`, and `status` to 200, everything else to zero; all
// that it points to is the library's.
//
// After `CODE_OK` the host calls `free(owner)` exactly once, when it is done with all that the response
// points to: from any thread, also while other calls run, before it calls `outrigger_script_shutdown`. If
// `free` is null, all of it is valid until this thread calls `outrigger_script_run` or
// `outrigger_script_shutdown` again, or is static. After any other code, and after `begin`, the host does
// not look at it.
typedef struct OutriggerResponse {
  // Bytes of this struct at the host; not to be changed.
  size_t size;
  // The HTTP status, 200 to 599.
  uint32_t status;
  // Zero.
  uint32_t reserved;
  // Headers. Those of the connection (`content-length`, `transfer-encoding`, `connection`) are the host's
  // business.
  const struct OutriggerHeader *headers;
  // How many, at most 256; their names and values together have at most 65536 bytes.
  size_t header_count;
  // The body's type; of length 0 for `application/octet-stream`, or if `headers` name it.
  struct OutriggerBytes content_type;
  // The body.
  struct OutriggerBytes body;
  // Ends what the response points to. May be null.
  void (*free)(void *owner);
  // For `free`. May be null.
  void *owner;
} OutriggerResponse;

// A request. It and all that it points to is the host's, read only, and valid until `outrigger_script_run`
// returns.
typedef struct OutriggerRequest {
  // Bytes of this struct at the host.
  size_t size;
  // One of the `METHOD` values.
  uint32_t method;
  // Zero.
  uint32_t reserved;
  // The request's id, ASCII.
  struct OutriggerBytes id;
  // The query string as it stands in the URL, without the question mark.
  struct OutriggerBytes query;
  // All headers but the caller's credentials. Names are in lower case, a name may repeat.
  const struct OutriggerHeader *headers;
  // How many.
  size_t header_count;
  // The body, where it was received: it has not been copied for this call.
  struct OutriggerBytes body;
  // When the call is out of time, in nanoseconds of `CLOCK_MONOTONIC`; 0 if it never is.
  uint64_t deadline;
  // For the callbacks. Valid until `outrigger_script_run` returns.
  void *context;
  // Whether a call goes on: one of the `CANCELLED` values. From any thread until `outrigger_script_run`
  // returns. Costs about as much as a system call. Never null.
  int32_t (*cancelled)(void *context);
  // As the host's `log`, with the request's id. From any thread until `outrigger_script_run` returns.
  // Never null.
  void (*log)(void *context, int32_t level, struct OutriggerBytes text);
  // Lends `len` bytes to build the response's body in, where the host can send them from without copying
  // them. They are the host's, and the library's to write until `outrigger_script_run` returns. If the
  // response's body lies inside them, the host sends it from there; the host ends them in any case. What
  // they hold at first is not said: write all that you send. Null if there is no memory, if more than 16
  // are lent to this call, or for a length of 0. From any thread. Never null.
  uint8_t *(*allocate)(void *context, size_t len);
  // Begins a streamed response: `status`, `headers` and `content_type` of `response` are copied and sent,
  // its body and `free` are not looked at. At most once in a call. Returns 0; else the head cannot be sent
  // or the client has gone, and nothing will be sent. From the thread that runs the call. Never null.
  int32_t (*begin)(void *context, const struct OutriggerResponse *response);
  // Sends a piece of a streamed response that `begin` has begun, and waits while the client takes in what
  // it was sent. `bytes` are copied. Returns 0; anything else means that the client has gone or the call
  // was cancelled: nothing more can be sent, the library had better return. From the thread that runs the
  // call. Never null.
  int32_t (*write)(void *context, struct OutriggerBytes bytes);
} OutriggerRequest;

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

// Returns `ABI`. Called before anything else, from any thread.
extern uint32_t outrigger_script_abi(void);

// Starts the script: called once, before all others. On success the host calls
// `outrigger_script_shutdown` with `script->state` at the end; after a failure it calls nothing more.
extern int32_t outrigger_script_init(const struct OutriggerHost *host,
                                     struct OutriggerScript *script,
                                     struct OutriggerMessage *message);

// Answers a request. In a worker process all calls come one after the other from the thread that called
// `outrigger_script_init`. In the replica's own process they come from any thread: at once if the script
// has the flag `SCRIPT_THREAD_SAFE`, else one after the other.
extern int32_t outrigger_script_run(void *state,
                                    const struct OutriggerRequest *request,
                                    struct OutriggerResponse *response,
                                    struct OutriggerMessage *message);

// Ends the script: called once, when no call is under way and all responses have been freed. The library
// stays loaded.
extern void outrigger_script_shutdown(void *state);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#if defined(__GNUC__)
#pragma GCC visibility pop
#endif

#endif /* OUTRIGGER_SCRIPT_H */
