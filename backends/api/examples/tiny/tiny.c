/* A backend for Outrigger in one file of C99, to be read by whoever writes one.
 *
 *     cc -std=c99 -O2 -shared -fPIC -pthread -I backends/api/include -o liboutrigger_tiny.so tiny.c
 *
 * Its models are text files that say what to do: `add`, `identity FP32`, `nonzero`, `outer`, `weights BYTES`, `slow MILLISECONDS`.
 * Its device is the processor, which plays one with memory of its own: bytes behind numbers that are no addresses, so that a host
 * that read through one would crash. It can do all that the table has: strings, results that stay on the device, runs that finish
 * later, runs that are cancelled, and it runs out of memory in good order.
 *
 * The order of this file: memory of the device; tensors that we give away; models; runs; the entries; the table.
 *
 * SPDX-License-Identifier: Apache-2.0 OR MIT */

#define _POSIX_C_SOURCE 200809L

#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "outrigger_backend.h"

/* Shorter names for what is used often. */
#define OK OUTRIGGER_BACKEND_CODE_OK
typedef OutriggerBackendText Text;
typedef OutriggerBackendMessage Message;
typedef OutriggerBackendOutput Output;

/* One lock for the whole library. Entries may be called from any thread, at the same time and for the same handle.
 *
 * RULE: a deleter is never called under it. The host's deleter of an input may call one of ours, if the input came from us in the
 * first place, and ours take this lock. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
/* Something that somebody may wait for has changed: a run was cancelled, or is over. */
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;

static Text text(const char *words) {
  Text text = {(const uint8_t *)words, strlen(words)};
  return text;
}

static int is(Text text, const char *word) {
  return text.len == strlen(word) && memcmp(text.data, word, text.len) == 0;
}

/* Texts from the host have a length and no terminator. NULL if there is no memory. */
static char *copy_of(Text text) {
  char *copy = malloc(text.len + 1);
  if (copy != NULL) {
    if (text.len > 0) {
      memcpy(copy, text.data, text.len);
    }
    copy[text.len] = '\0';
  }
  return copy;
}

/* Writes why something failed, and returns the code. The message is the host's: no more than its capacity, and it may be null. */
static int32_t fail(Message *message, int32_t code, const char *format, ...) {
  char words[512];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(words, sizeof words, format, arguments);
  va_end(arguments);
  if (message != NULL) {
    size_t len = strlen(words);
    message->len = len < message->capacity ? len : message->capacity;
    if (message->len > 0) {
      memcpy(message->data, words, message->len);
    }
  }
  return code;
}

/* ---- The device's memory ------------------------------------------------------------------------------------------------- */

/* Bytes on the device. What the outside sees of them is `handle` alone. */
typedef struct Block {
  uintptr_t handle;
  size_t size;
  unsigned char *bytes;
  struct Block *next;
} Block;

struct OutriggerBackendHandle {
  OutriggerBackendDescription description;
  OutriggerBackendDevice device;
  Text formats[1];
  /* Why there is no device, if it was asked that there be none. */
  char *absent;
  /* Under the lock, from here on. */
  uint64_t held;
  uintptr_t next_handle;
  Block *blocks;
};

struct OutriggerBackendDeviceHandle {
  OutriggerBackendHandle *backend;
};

/* No processor of today maps what lies here. */
#define FIRST_HANDLE ((uintptr_t)1 << (sizeof(uintptr_t) * CHAR_BIT - 9))

/* Counts bytes of the device's memory as taken. */
static int32_t take(OutriggerBackendHandle *backend, uint64_t bytes, Message *message) {
  pthread_mutex_lock(&lock);
  uint64_t left = backend->device.memory_total - backend->held;
  int fits = bytes <= left;
  if (fits) {
    backend->held += bytes;
  }
  pthread_mutex_unlock(&lock);
  if (!fits) {
    return fail(message, OUTRIGGER_BACKEND_CODE_OUT_OF_MEMORY, "%llu bytes do not fit into the %llu left",
                (unsigned long long)bytes, (unsigned long long)left);
  }
  return OK;
}

static void give_back(OutriggerBackendHandle *backend, uint64_t bytes) {
  pthread_mutex_lock(&lock);
  backend->held -= bytes;
  pthread_mutex_unlock(&lock);
}

static int32_t block_make(OutriggerBackendHandle *backend, size_t size, Block **out, Message *message) {
  int32_t code = take(backend, size, message);
  if (code != OK) {
    return code;
  }
  Block *block = malloc(sizeof *block);
  unsigned char *bytes = calloc(size + 1, 1); /* never of 0 bytes, for which calloc may return NULL */
  if (block == NULL || bytes == NULL) {
    free(block);
    free(bytes);
    give_back(backend, size);
    return fail(message, OUTRIGGER_BACKEND_CODE_OUT_OF_MEMORY, "the host has no %zu bytes for the device", size);
  }
  block->size = size;
  block->bytes = bytes;
  pthread_mutex_lock(&lock);
  block->handle = backend->next_handle;
  backend->next_handle += size + 64;
  block->next = backend->blocks;
  backend->blocks = block;
  pthread_mutex_unlock(&lock);
  *out = block;
  return OK;
}

static void block_end(OutriggerBackendHandle *backend, Block *block) {
  pthread_mutex_lock(&lock);
  Block **place = &backend->blocks;
  while (*place != block) {
    place = &(*place)->next;
  }
  *place = block->next;
  backend->held -= block->size;
  pthread_mutex_unlock(&lock);
  free(block->bytes);
  free(block);
}

/* The bytes behind a handle; NULL if it is not one of ours. The block stays, for whoever passes its tensor keeps that. */
static unsigned char *block_bytes(OutriggerBackendHandle *backend, uintptr_t handle, size_t size) {
  unsigned char *bytes = NULL;
  pthread_mutex_lock(&lock);
  for (Block *block = backend->blocks; block != NULL; block = block->next) {
    if (block->handle == handle && block->size == size) {
      bytes = block->bytes;
    }
  }
  pthread_mutex_unlock(&lock);
  return bytes;
}

/* ---- Tensors that we give away --------------------------------------------------------------------------------------------- */

/* OWNERSHIP: from the moment that the host has the pointer to `managed` it owns all of this, and ends it by `managed.deleter`, on
 * any thread. Shape and bytes live as long, and not shorter. */
typedef struct Given {
  DLManagedTensor managed;
  int64_t shape[2];
  /* Of a tensor in host memory. */
  void *bytes;
  /* Of a tensor on the device. */
  OutriggerBackendHandle *backend;
  Block *block;
} Given;

static void given_end(DLManagedTensor *managed) {
  Given *given = managed->manager_ctx;
  if (given->block != NULL) {
    block_end(given->backend, given->block);
  }
  free(given->bytes);
  free(given);
}

/* NULL if there is no memory. */
static Given *given_make(DLDataType type, int32_t rank, const int64_t *shape) {
  Given *given = calloc(1, sizeof *given);
  if (given == NULL) {
    return NULL;
  }
  memcpy(given->shape, shape, (size_t)rank * sizeof *shape);
  given->managed.dl_tensor.device.device_type = OUTRIGGER_BACKEND_DL_CPU;
  given->managed.dl_tensor.ndim = rank;
  given->managed.dl_tensor.dtype = type;
  given->managed.dl_tensor.shape = given->shape; /* strides stay null: dense and row-major */
  given->managed.manager_ctx = given;
  given->managed.deleter = given_end;
  return given;
}

static void given_lies_in(Given *given, OutriggerBackendHandle *backend, Block *block) {
  given->backend = backend;
  given->block = block;
  given->managed.dl_tensor.device.device_type = OUTRIGGER_BACKEND_DL_EXT_DEV;
  given->managed.dl_tensor.data = (void *)block->handle;
}

/* ---- Models ------------------------------------------------------------------------------------------------------------------ */

typedef enum Task { ADD, IDENTITY, NONZERO, OUTER } Task;

struct OutriggerBackendModelHandle {
  OutriggerBackendHandle *backend;
  Task task;
  /* A run takes so long, unless it is cancelled; also then, if it is stubborn. */
  long milliseconds;
  int stubborn;
  /* What it takes of the device's memory. */
  uint64_t weights;
  OutriggerBackendSignature signature;
  OutriggerBackendTensorType inputs[2];
  OutriggerBackendTensorType outputs[1];
};

/* Free extents of one name are equal in one call; an extent without a name is whatever it is. */
static const uint8_t BATCH[] = "batch", N[] = "n", M[] = "m";
static const Text BATCH_AND_NONE[] = {{BATCH, 5}, {NULL, 0}};
static const Text N_AND_NONE[] = {{N, 1}, {NULL, 0}}, NONE_AND_M[] = {{NULL, 0}, {M, 1}}, N_AND_M[] = {{N, 1}, {M, 1}};
static const int64_t ROWS_OF_3[] = {-1, 3}, ROWS_OF_2[] = {-1, 2}, FREE[] = {-1}, ONE_FREE[] = {1, -1};
static const int64_t COLUMN[] = {-1, 1}, FREE_FREE[] = {-1, -1};

static const DLDataType FP32 = {OUTRIGGER_BACKEND_TYPE_CODE_FLOAT, 32, 1};
static const DLDataType INT64 = {OUTRIGGER_BACKEND_TYPE_CODE_INT, 64, 1};
static const struct {
  const char *name;
  DLDataType type;
} TYPES[] = {
    {"FP32", {OUTRIGGER_BACKEND_TYPE_CODE_FLOAT, 32, 1}},
    {"FP64", {OUTRIGGER_BACKEND_TYPE_CODE_FLOAT, 64, 1}},
    {"UINT8", {OUTRIGGER_BACKEND_TYPE_CODE_UINT, 8, 1}},
    {"INT64", {OUTRIGGER_BACKEND_TYPE_CODE_INT, 64, 1}},
    {"BYTES", {OUTRIGGER_BACKEND_TYPE_CODE_TEXT, sizeof(Text) * CHAR_BIT, 1}},
};

static OutriggerBackendTensorType tensor(const char *name, DLDataType type, uint32_t rank, const int64_t *shape,
                                         const Text *symbols) {
  OutriggerBackendTensorType tensor = {text(name), type, rank, shape, symbols};
  return tensor;
}

/* Reads `word argument`. 0 if that is no model. */
static int model_parse(OutriggerBackendModelHandle *model, char *words) {
  char *space = strchr(words, ' ');
  if (space == NULL) {
    return 0;
  }
  const char *argument = space + 1;
  model->weights = strlen(words);
  *space = '\0';
  model->signature.input_count = 2;
  model->inputs[0] = tensor("x", FP32, 2, ROWS_OF_3, BATCH_AND_NONE);
  model->inputs[1] = tensor("y", FP32, 2, ROWS_OF_3, BATCH_AND_NONE);
  model->outputs[0] = tensor("z", FP32, 2, ROWS_OF_3, BATCH_AND_NONE);
  if (strcmp(words, "add") == 0) {
    return 1;
  }
  if (strcmp(words, "weights") == 0) {
    unsigned long long weights = 0;
    int found = sscanf(argument, "%llu", &weights);
    model->weights = weights;
    return found == 1;
  }
  model->stubborn = strcmp(words, "stubborn") == 0;
  if (strcmp(words, "slow") == 0 || model->stubborn) {
    return sscanf(argument, "%ld", &model->milliseconds) == 1;
  }
  if (strcmp(words, "outer") == 0) {
    model->task = OUTER;
    model->inputs[0] = tensor("x", FP32, 2, COLUMN, N_AND_NONE);
    model->inputs[1] = tensor("y", FP32, 2, ONE_FREE, NONE_AND_M);
    model->outputs[0] = tensor("z", FP32, 2, FREE_FREE, N_AND_M);
    return 1;
  }
  model->signature.input_count = 1;
  if (strcmp(words, "nonzero") == 0) {
    model->task = NONZERO;
    model->inputs[0] = tensor("x", FP32, 1, FREE, NULL);
    model->outputs[0] = tensor("y", INT64, 2, ONE_FREE, NULL);
    return 1;
  }
  for (size_t i = 0; strcmp(words, "identity") == 0 && i < sizeof TYPES / sizeof *TYPES; i++) {
    if (strcmp(argument, TYPES[i].name) == 0) {
      model->task = IDENTITY;
      model->inputs[0] = tensor("x", TYPES[i].type, 2, ROWS_OF_2, BATCH_AND_NONE);
      model->outputs[0] = tensor("y", TYPES[i].type, 2, ROWS_OF_2, BATCH_AND_NONE);
      return 1;
    }
  }
  return 0;
}

/* Reads a model's file. The messages name the file: whoever reads the log has many. */
static int32_t model_read(const OutriggerBackendLoadRequest *request, OutriggerBackendModelHandle *model,
                          Message *message) {
  char words[256] = "";
  char *path = copy_of(request->path);
  if (path == NULL) {
    return fail(message, OUTRIGGER_BACKEND_CODE_OUT_OF_MEMORY, "no memory for a path");
  }
  int32_t code = OK;
  FILE *file = fopen(path, "rb");
  if (request->setting_count > 0) {
    const Text key = request->settings[0].key;
    code = fail(message, OUTRIGGER_BACKEND_CODE_LOAD, "%s: unknown setting `%.*s`", path, (int)key.len, (const char *)key.data);
  } else if (request->format.len > 0 && !is(request->format, "text")) {
    code = fail(message, OUTRIGGER_BACKEND_CODE_LOAD, "%s: the format is not `text`", path);
  } else if (file == NULL) {
    code = fail(message, OUTRIGGER_BACKEND_CODE_LOAD, "%s: %s", path, strerror(errno));
  } else {
    size_t len = fread(words, 1, sizeof words - 1, file);
    if (ferror(file)) {
      code = fail(message, OUTRIGGER_BACKEND_CODE_LOAD, "%s: %s", path, strerror(errno));
    } else if (memchr(words, '\0', len) != NULL || !model_parse(model, words)) {
      code = fail(message, OUTRIGGER_BACKEND_CODE_LOAD, "%s: no model", path);
    }
  }
  if (file != NULL) {
    fclose(file);
  }
  free(path);
  return code;
}

/* ---- Runs -------------------------------------------------------------------------------------------------------------------- */

/* A run that is under way. */
typedef struct Run {
  uint64_t id;
  int cancelled;
  struct Run *next;
} Run;

struct OutriggerBackendInstanceHandle {
  OutriggerBackendModelHandle *model;
  /* Under the lock. */
  Run *runs;
  /* Threads that have not let go of this instance. */
  size_t threads;
};

static void run_begin(OutriggerBackendInstanceHandle *instance, Run *run, const OutriggerBackendRun *asked) {
  run->id = asked == NULL ? 0 : asked->id;
  run->cancelled = 0;
  pthread_mutex_lock(&lock);
  run->next = instance->runs;
  instance->runs = run;
  pthread_mutex_unlock(&lock);
}

static void run_end(OutriggerBackendInstanceHandle *instance, Run *run) {
  pthread_mutex_lock(&lock);
  Run **place = &instance->runs;
  while (*place != run) {
    place = &(*place)->next;
  }
  *place = run->next;
  pthread_mutex_unlock(&lock);
}

/* Takes the model's time. A real backend would look at `cancelled` between its kernels. */
static int32_t run_wait(long milliseconds, const Run *run, Message *message) {
  struct timespec end;
  clock_gettime(CLOCK_REALTIME, &end);
  end.tv_sec += milliseconds / 1000;
  end.tv_nsec += milliseconds % 1000 * 1000000;
  if (end.tv_nsec >= 1000000000) {
    end.tv_sec += 1;
    end.tv_nsec -= 1000000000;
  }
  pthread_mutex_lock(&lock);
  while (!run->cancelled && pthread_cond_timedwait(&changed, &lock, &end) == 0) {
  }
  int cancelled = run->cancelled;
  pthread_mutex_unlock(&lock);
  return cancelled ? fail(message, OUTRIGGER_BACKEND_CODE_CANCELLED, "cancelled") : OK;
}

static size_t elements(const DLTensor *tensor) {
  size_t count = 1;
  for (int32_t i = 0; i < tensor->ndim; i++) {
    count *= (size_t)tensor->shape[i];
  }
  return count;
}

static size_t size_of(const DLTensor *tensor) { return elements(tensor) * (tensor->dtype.bits / 8); }

static int is_on_device(const DLTensor *tensor) {
  return tensor->device.device_type != OUTRIGGER_BACKEND_DL_CPU;
}

/* Where a tensor's bytes are for us; NULL if it is on another device. They may lie at any address: read by memcpy. */
static unsigned char *bytes_of(OutriggerBackendHandle *backend, const DLTensor *tensor) {
  /* A tensor without elements may have a null address; so may not what we return. */
  static unsigned char none;
  if (!is_on_device(tensor)) {
    return tensor->data == NULL ? &none : (unsigned char *)tensor->data + tensor->byte_offset;
  }
  return block_bytes(backend, (uintptr_t)tensor->data + (uintptr_t)tensor->byte_offset, size_of(tensor));
}

/* The host checks nothing of this for us: whoever sends a request chooses its count, types and shapes. */
static int32_t check(const OutriggerBackendModelHandle *model, DLManagedTensor *const *inputs, size_t input_count,
                     const Output *outputs, size_t output_count, Message *message) {
  const OutriggerBackendSignature *signature = &model->signature;
  if (input_count != signature->input_count) {
    return fail(message, OUTRIGGER_BACKEND_CODE_INPUT, "%zu inputs given, the model takes %zu", input_count,
                signature->input_count);
  }
  int64_t batch = -1;
  for (size_t i = 0; i < input_count; i++) {
    const OutriggerBackendTensorType *type = &signature->inputs[i];
    const DLTensor *tensor = &inputs[i]->dl_tensor;
    const char *name = (const char *)type->name.data;
    if (tensor->dtype.code != type->data_type.code || tensor->dtype.bits != type->data_type.bits || tensor->dtype.lanes != 1) {
      return fail(message, OUTRIGGER_BACKEND_CODE_INPUT, "input `%s` has another type than the model takes", name);
    }
    if (tensor->ndim != (int32_t)type->rank) {
      return fail(message, OUTRIGGER_BACKEND_CODE_INPUT, "input `%s` has rank %d, the model takes %u", name,
                  (int)tensor->ndim, (unsigned)type->rank);
    }
    for (uint32_t axis = 0; axis < type->rank; axis++) {
      int64_t extent = tensor->shape[axis];
      if (type->shape[axis] >= 0 ? extent != type->shape[axis] : extent < 0) {
        return fail(message, OUTRIGGER_BACKEND_CODE_INPUT, "input `%s` has the extent %lld", name, (long long)extent);
      }
      if (type->symbols != NULL && type->symbols[axis].data == BATCH) {
        if (batch >= 0 && extent != batch) {
          return fail(message, OUTRIGGER_BACKEND_CODE_INPUT, "`batch` is %lld and %lld", (long long)batch, (long long)extent);
        }
        batch = extent;
      }
    }
  }
  for (size_t i = 0; i < output_count; i++) {
    if (outputs[i].index != 0 || i > 0) {
      return fail(message, OUTRIGGER_BACKEND_CODE_INPUT, "there is one output, number 0");
    }
  }
  return OK;
}

/* Puts a result where it was asked for. `bytes` is ours before and, unless the output takes it over, afterwards: the caller frees
 * what `*bytes` is then. */
static int32_t deliver(OutriggerBackendHandle *backend, Output *output, DLDataType type, const int64_t *shape,
                       unsigned char **bytes, size_t size, Message *message) {
  const DLTensor *place = output->place;
  if (place != NULL && place->ndim == 2 && place->shape[0] == shape[0] && place->shape[1] == shape[1] &&
      place->dtype.code == type.code && place->dtype.bits == type.bits) {
    /* Lent to us until the run is over; nobody else looks at it before. */
    memcpy((unsigned char *)place->data + place->byte_offset, *bytes, size);
    return OK;
  }
  /* No place, or a result that does not fit it. */
  Given *given = given_make(type, 2, shape);
  if (given == NULL) {
    return fail(message, OUTRIGGER_BACKEND_CODE_OUT_OF_MEMORY, "no memory for a result");
  }
  if (output->memory == OUTRIGGER_BACKEND_MEMORY_DEVICE) {
    Block *block;
    int32_t code = block_make(backend, size, &block, message);
    if (code != OK) {
      given_end(&given->managed);
      return code;
    }
    memcpy(block->bytes, *bytes, size);
    given_lies_in(given, backend, block);
  } else {
    given->managed.dl_tensor.data = given->bytes = *bytes;
    *bytes = NULL;
  }
  /* The last thing that can fail is behind us: after a failure the host would not look at this, and nobody would end it. */
  output->allocated = &given->managed;
  return OK;
}

static float float_at(const unsigned char *bytes, size_t number) {
  float value;
  memcpy(&value, bytes + number * sizeof value, sizeof value);
  return value;
}

/* Computes the one output from inputs that have been checked. `kept` gets the input that was handed back, if one was. */
static int32_t compute(const OutriggerBackendModelHandle *model, DLManagedTensor *const *inputs, Output *output,
                       DLManagedTensor **kept, Message *message) {
  OutriggerBackendHandle *backend = model->backend;
  const DLTensor *first = &inputs[0]->dl_tensor;
  if (model->task == IDENTITY) {
    int is_text = first->dtype.code == OUTRIGGER_BACKEND_TYPE_CODE_TEXT;
    int wants_device = output->memory == OUTRIGGER_BACKEND_MEMORY_DEVICE;
    if (output->place == NULL && (is_text || wants_device == is_on_device(first))) {
      /* The input itself is the answer, and goes back to the host as it came: nothing is copied. */
      output->allocated = *kept = inputs[0];
      return OK;
    }
  }
  const unsigned char *x = bytes_of(backend, first);
  const unsigned char *y = model->signature.input_count > 1 ? bytes_of(backend, &inputs[1]->dl_tensor) : x;
  if (x == NULL || y == NULL) {
    return fail(message, OUTRIGGER_BACKEND_CODE_INPUT, "an input lies in memory of another device");
  }
  size_t count = elements(first);
  size_t others = model->task == OUTER ? elements(&inputs[1]->dl_tensor) : 1;
  size_t width = model->task == NONZERO ? sizeof(int64_t) : first->dtype.bits / 8;
  /* Shapes come from whoever sends the request, so the product may be any number. */
  if (others != 0 && count > SIZE_MAX / width / others) {
    return fail(message, OUTRIGGER_BACKEND_CODE_OUT_OF_MEMORY, "a result of %zu times %zu elements", count, others);
  }
  size_t size = count * others * width;
  if (size > backend->device.memory_total) {
    return fail(message, OUTRIGGER_BACKEND_CODE_OUT_OF_MEMORY, "a result of %zu bytes", size);
  }
  unsigned char *bytes = malloc(size + 1);
  if (bytes == NULL) {
    return fail(message, OUTRIGGER_BACKEND_CODE_OUT_OF_MEMORY, "no memory for a result of %zu bytes", size);
  }
  int64_t shape[2] = {first->shape[0], first->ndim > 1 ? first->shape[1] : 1};
  DLDataType type = model->outputs[0].data_type;
  switch (model->task) {
    case ADD:
      for (size_t i = 0; i < count; i++) {
        float sum = float_at(x, i) + float_at(y, i);
        memcpy(bytes + i * sizeof sum, &sum, sizeof sum);
      }
      break;
    case IDENTITY:
      memcpy(bytes, x, size);
      break;
    case OUTER:
      shape[1] = (int64_t)others;
      for (size_t i = 0; i < count * others; i++) {
        float sum = float_at(x, i / others) + float_at(y, i % others);
        memcpy(bytes + i * sizeof sum, &sum, sizeof sum);
      }
      break;
    case NONZERO: {
      int64_t found = 0;
      for (size_t i = 0; i < count; i++) {
        int64_t index = (int64_t)i;
        if (float_at(x, i) != 0) {
          memcpy(bytes + (size_t)found++ * sizeof index, &index, sizeof index);
        }
      }
      shape[0] = 1;
      shape[1] = found;
      size = (size_t)found * sizeof found;
      break;
    }
  }
  int32_t code = deliver(backend, output, type, shape, &bytes, size, message);
  free(bytes);
  return code;
}

/* One run from beginning to end, on whichever thread.
 *
 * OWNERSHIP: the inputs are ours since the entry was called, whatever comes of the run. Each is ended here, once, but for one that
 * was handed back. */
static int32_t run(const OutriggerBackendModelHandle *model, DLManagedTensor *const *inputs, size_t input_count,
                   Output *outputs, size_t output_count, const Run *run, Message *message) {
  DLManagedTensor *kept = NULL;
  int32_t code = check(model, inputs, input_count, outputs, output_count, message);
  if (code == OK && model->milliseconds > 0) {
    code = run_wait(model->milliseconds, run, message);
  }
  if (code == OK && output_count > 0) {
    code = compute(model, inputs, &outputs[0], &kept, message);
  }
  for (size_t i = 0; i < input_count; i++) {
    if (inputs[i] != kept && inputs[i]->deleter != NULL) {
      inputs[i]->deleter(inputs[i]);
    }
  }
  return code;
}

/* A run that finishes later. */
typedef struct Job {
  OutriggerBackendInstanceHandle *instance;
  Run run;
  Output *outputs; /* the host's, and valid until `finished` has been called */
  size_t output_count;
  OutriggerBackendFinished finished;
  void *context;
  size_t input_count;
  DLManagedTensor *inputs[2]; /* a copy: the host's list is valid only while `instance_submit` is called */
} Job;

static void *job_main(void *argument) {
  Job *job = argument;
  OutriggerBackendInstanceHandle *instance = job->instance;
  uint8_t room[512];
  Message message = {room, sizeof room, 0};
  int32_t code = run(instance->model, job->inputs, job->input_count, job->outputs, job->output_count, &job->run, &message);
  /* Before the host hears of the end, after which the same number may come again. */
  run_end(instance, &job->run);
  /* Outputs and places are the host's again from here on. It may already be ending the instance, on another thread: that waits for
   * the count below. */
  job->finished(job->context, code, &message);
  free(job);
  pthread_mutex_lock(&lock);
  instance->threads--;
  pthread_cond_broadcast(&changed);
  pthread_mutex_unlock(&lock);
  return NULL;
}

/* ---- The entries ------------------------------------------------------------------------------------------------------------- */

static void backend_close(OutriggerBackendHandle *backend) {
  /* The host has ended all that was made from it, so there are no blocks left. */
  free(backend->absent);
  free(backend);
}

static int32_t backend_open(const OutriggerBackendSetting *settings, size_t count, OutriggerBackendHandle **out,
                            Message *message) {
  OutriggerBackendHandle *backend = calloc(1, sizeof *backend);
  if (backend == NULL) {
    return fail(message, OUTRIGGER_BACKEND_CODE_OUT_OF_MEMORY, "no memory for a backend");
  }
  backend->device.memory_total = 64 << 20;
  int32_t code = OK;
  for (size_t i = 0; i < count && code == OK; i++) {
    char *value = copy_of(settings[i].value);
    unsigned long long memory;
    if (value == NULL) {
      code = fail(message, OUTRIGGER_BACKEND_CODE_OUT_OF_MEMORY, "no memory for a setting");
    } else if (is(settings[i].key, "memory") && sscanf(value, "%llu", &memory) == 1) {
      backend->device.memory_total = memory;
    } else if (is(settings[i].key, "absent")) {
      /* How a backend says that its driver is missing: it opens, describes no devices, and tells what it looked for. */
      free(backend->absent);
      backend->absent = value;
      value = NULL;
    } else {
      Text key = settings[i].key;
      code = fail(message, OUTRIGGER_BACKEND_CODE_UNAVAILABLE, "setting `%.*s` is not known, or not with this value",
                  (int)key.len, (const char *)key.data);
    }
    free(value);
  }
  if (code != OK) {
    backend_close(backend);
    return code;
  }
  backend->next_handle = FIRST_HANDLE;
  backend->formats[0] = text("text");
  backend->device.name = text("cpu:0");
  backend->device.kind = OUTRIGGER_BACKEND_KIND_CPU;
  backend->device.resident = 1;
  backend->description.name = text("tiny");
  backend->description.version = text("1");
  backend->description.formats = backend->formats;
  backend->description.format_count = 1;
  backend->description.devices = &backend->device;
  backend->description.device_count = backend->absent == NULL;
  backend->description.reason = text(backend->absent == NULL ? "" : backend->absent);
  *out = backend;
  return OK;
}

static int32_t backend_describe(OutriggerBackendHandle *backend, const OutriggerBackendDescription **out, Message *message) {
  (void)message;
  *out = &backend->description;
  return OK;
}

static int32_t device_open(OutriggerBackendHandle *backend, size_t index, OutriggerBackendDeviceHandle **out,
                           Message *message) {
  if (index >= backend->description.device_count) {
    return fail(message, OUTRIGGER_BACKEND_CODE_INPUT, "there is no device number %zu", index);
  }
  OutriggerBackendDeviceHandle *device = malloc(sizeof *device);
  if (device == NULL) {
    return fail(message, OUTRIGGER_BACKEND_CODE_OUT_OF_MEMORY, "no memory for a device");
  }
  device->backend = backend;
  *out = device;
  return OK;
}

static void device_close(OutriggerBackendDeviceHandle *device) { free(device); }

static int32_t device_status(OutriggerBackendDeviceHandle *device, OutriggerBackendDeviceStatus *out, Message *message) {
  /* A device that is not well would write the reason here, and still return OK. */
  (void)message;
  memset(out, 0, sizeof *out);
  pthread_mutex_lock(&lock);
  out->memory_held = device->backend->held;
  pthread_mutex_unlock(&lock);
  out->memory_total = device->backend->device.memory_total;
  out->memory_free = out->memory_total - out->memory_held;
  out->health = OUTRIGGER_BACKEND_HEALTH_HEALTHY;
  return OK;
}

static int32_t buffer_allocate(OutriggerBackendDeviceHandle *device, uint32_t memory, size_t bytes, DLManagedTensor **out,
                               Message *message) {
  static const DLDataType UINT8 = {OUTRIGGER_BACKEND_TYPE_CODE_UINT, 8, 1};
  if (bytes > PTRDIFF_MAX - 64) {
    return fail(message, OUTRIGGER_BACKEND_CODE_OUT_OF_MEMORY, "no memory is as large as %zu bytes", bytes);
  }
  int64_t extent = (int64_t)bytes;
  Given *given = given_make(UINT8, 1, &extent);
  if (given == NULL) {
    return fail(message, OUTRIGGER_BACKEND_CODE_OUT_OF_MEMORY, "no memory for a buffer");
  }
  int32_t code = OK;
  if (memory == OUTRIGGER_BACKEND_MEMORY_DEVICE) {
    Block *block;
    code = block_make(device->backend, bytes, &block, message);
    if (code == OK) {
      given_lies_in(given, device->backend, block);
    }
  } else {
    /* A real one would be pinned here. The alignment is the table's. */
    if (posix_memalign(&given->bytes, 64, bytes + 1) != 0) {
      given->bytes = NULL;
      code = fail(message, OUTRIGGER_BACKEND_CODE_OUT_OF_MEMORY, "no %zu bytes of pinned memory", bytes);
    }
    given->managed.dl_tensor.data = given->bytes;
  }
  if (code != OK) {
    given_end(&given->managed);
    return code;
  }
  *out = &given->managed;
  return OK;
}

static int32_t buffer_copy(OutriggerBackendDeviceHandle *device, const DLTensor *from, const DLTensor *to, Message *message) {
  if (size_of(from) != size_of(to)) {
    return fail(message, OUTRIGGER_BACKEND_CODE_INPUT, "%zu bytes are to be copied to %zu", size_of(from), size_of(to));
  }
  const unsigned char *source = bytes_of(device->backend, from);
  unsigned char *target = bytes_of(device->backend, to);
  if (source == NULL || target == NULL) {
    return fail(message, OUTRIGGER_BACKEND_CODE_INPUT, "the memory is not this device's");
  }
  memcpy(target, source, size_of(from));
  return OK;
}

static int32_t model_estimate(OutriggerBackendDeviceHandle *device, const OutriggerBackendLoadRequest *request, uint64_t *out,
                              Message *message) {
  OutriggerBackendModelHandle model;
  (void)device;
  memset(&model, 0, sizeof model);
  int32_t code = model_read(request, &model, message);
  if (code == OK) {
    *out = model.weights;
  }
  return code;
}

static int32_t model_load(OutriggerBackendDeviceHandle *device, const OutriggerBackendLoadRequest *request,
                          OutriggerBackendModelHandle **out, Message *message) {
  OutriggerBackendModelHandle *model = calloc(1, sizeof *model);
  if (model == NULL) {
    return fail(message, OUTRIGGER_BACKEND_CODE_OUT_OF_MEMORY, "no memory for a model");
  }
  int32_t code = model_read(request, model, message);
  if (code == OK) {
    code = take(device->backend, model->weights, message);
  }
  if (code != OK) {
    free(model);
    return code;
  }
  model->backend = device->backend;
  model->signature.inputs = model->inputs;
  model->signature.outputs = model->outputs;
  model->signature.output_count = 1;
  *out = model;
  return OK;
}

static void model_unload(OutriggerBackendModelHandle *model) {
  give_back(model->backend, model->weights);
  free(model);
}

static int32_t model_info(OutriggerBackendModelHandle *model, const OutriggerBackendSignature **out, Message *message) {
  (void)message;
  *out = &model->signature;
  return OK;
}

static int32_t instance_create(OutriggerBackendModelHandle *model, OutriggerBackendInstanceHandle **out, Message *message) {
  OutriggerBackendInstanceHandle *instance = calloc(1, sizeof *instance);
  if (instance == NULL) {
    return fail(message, OUTRIGGER_BACKEND_CODE_OUT_OF_MEMORY, "no memory for an instance");
  }
  instance->model = model;
  *out = instance;
  return OK;
}

static void instance_destroy(OutriggerBackendInstanceHandle *instance) {
  /* Every run has been finished, but a thread may still be on its way back from saying so. */
  pthread_mutex_lock(&lock);
  while (instance->threads > 0) {
    pthread_cond_wait(&changed, &lock);
  }
  pthread_mutex_unlock(&lock);
  free(instance);
}

static int32_t instance_status(OutriggerBackendInstanceHandle *instance, OutriggerBackendInstanceStatus *out, Message *message) {
  (void)message;
  out->bytes_held = instance->model->weights;
  /* A library that cannot end runs says 0 here and has no `instance_cancel`. */
  out->can_cancel = !instance->model->stubborn;
  out->reserved = 0;
  return OK;
}

static int32_t instance_infer(OutriggerBackendInstanceHandle *instance, DLManagedTensor *const *inputs, size_t input_count,
                              Output *outputs, size_t output_count, const OutriggerBackendRun *asked, Message *message) {
  Run under_way;
  run_begin(instance, &under_way, asked);
  int32_t code = run(instance->model, inputs, input_count, outputs, output_count, &under_way, message);
  run_end(instance, &under_way);
  return code;
}

static int32_t instance_submit(OutriggerBackendInstanceHandle *instance, DLManagedTensor *const *inputs, size_t input_count,
                               Output *outputs, size_t output_count, const OutriggerBackendRun *asked,
                               OutriggerBackendFinished finished, void *context, Message *message) {
  Job *job = calloc(1, sizeof *job);
  int32_t code = OK;
  if (job == NULL) {
    code = fail(message, OUTRIGGER_BACKEND_CODE_OUT_OF_MEMORY, "no memory for a run");
  } else if (input_count > 2) {
    code = fail(message, OUTRIGGER_BACKEND_CODE_INPUT, "%zu inputs given, no model takes more than 2", input_count);
  } else {
    job->instance = instance;
    job->outputs = outputs;
    job->output_count = output_count;
    job->finished = finished;
    job->context = context;
    job->input_count = input_count;
    if (input_count > 0) {
      memcpy(job->inputs, inputs, input_count * sizeof *inputs);
    }
    /* From here on it can be cancelled: the host may do so as soon as we have returned. */
    run_begin(instance, &job->run, asked);
    pthread_mutex_lock(&lock);
    instance->threads++;
    pthread_mutex_unlock(&lock);
    pthread_t thread;
    if (pthread_create(&thread, NULL, job_main, job) == 0) {
      /* `finished` tells the rest; it may have been called already, so nothing of the job may be touched any more. */
      pthread_detach(thread);
      return OK;
    }
    pthread_mutex_lock(&lock);
    instance->threads--;
    pthread_mutex_unlock(&lock);
    run_end(instance, &job->run);
    code = fail(message, OUTRIGGER_BACKEND_CODE_RUN, "no thread for a run");
  }
  /* We return a failure, so `finished` is not called. The inputs were ours all the same. */
  for (size_t i = 0; i < input_count; i++) {
    if (inputs[i]->deleter != NULL) {
      inputs[i]->deleter(inputs[i]);
    }
  }
  free(job);
  return code;
}

static void instance_cancel(OutriggerBackendInstanceHandle *instance, uint64_t id) {
  /* A number that is not under way is nothing to do, and not remembered: the host may use it again. */
  pthread_mutex_lock(&lock);
  for (Run *run = instance->runs; run != NULL; run = run->next) {
    if (run->id == id && !instance->model->stubborn) {
      run->cancelled = 1;
    }
  }
  pthread_cond_broadcast(&changed);
  pthread_mutex_unlock(&lock);
}

/* ---- The table --------------------------------------------------------------------------------------------------------------- */

/* Valid and unchanged for the life of the process. Entries that a library does not have stay null, where the table allows it. */
static const OutriggerBackendTable TABLE = {
    .major = OUTRIGGER_BACKEND_MAJOR,
    .minor = OUTRIGGER_BACKEND_MINOR,
    .size = sizeof(OutriggerBackendTable),
    .backend_open = backend_open,
    .backend_close = backend_close,
    .backend_describe = backend_describe,
    .device_open = device_open,
    .device_close = device_close,
    .device_status = device_status,
    .buffer_allocate = buffer_allocate,
    .buffer_copy = buffer_copy,
    .model_estimate = model_estimate,
    .model_load = model_load,
    .model_unload = model_unload,
    .model_info = model_info,
    .instance_create = instance_create,
    .instance_destroy = instance_destroy,
    .instance_status = instance_status,
    .instance_infer = instance_infer,
    .instance_submit = instance_submit,
    .instance_cancel = instance_cancel,
};

const OutriggerBackendTable *outrigger_backend_v1(void) { return &TABLE; }
