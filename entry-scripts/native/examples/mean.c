/* A native entry script: the mean of a body of float32 values in the machine's byte order.
 *
 *     cc -O2 -shared -fPIC -I entry-scripts/native/include -o libmean.so mean.c
 */

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "outrigger_script.h"

static OutriggerBytes bytes(const char *text) {
  OutriggerBytes bytes = {(const uint8_t *)text, strlen(text)};
  return bytes;
}

static int32_t fail(OutriggerMessage *message, int32_t code, const char *text) {
  size_t len = strlen(text);
  message->len = len < message->capacity ? len : message->capacity;
  memcpy(message->data, text, message->len);
  return code;
}

uint32_t outrigger_script_abi(void) { return OUTRIGGER_ABI; }

int32_t outrigger_script_init(const OutriggerHost *host, OutriggerScript *script, OutriggerMessage *message) {
  (void)message;
  /* There is no state, so nothing is shared between threads. */
  script->flags = OUTRIGGER_SCRIPT_THREAD_SAFE;
  host->log(host->context, OUTRIGGER_LEVEL_INFO, bytes("ready for float32 values"));
  return OUTRIGGER_CODE_OK;
}

int32_t outrigger_script_run(void *state, const OutriggerRequest *request, OutriggerResponse *response,
                             OutriggerMessage *message) {
  (void)state;
  size_t count = request->body.len / sizeof(float);
  if (count == 0 || request->body.len % sizeof(float) != 0) {
    return fail(message, OUTRIGGER_CODE_INPUT, "the body must be one or more float32 values");
  }
  double sum = 0;
  for (size_t i = 0; i < count; i++) {
    float value;
    /* The body may start anywhere; compilers make one load of this. */
    memcpy(&value, request->body.data + i * sizeof value, sizeof value);
    sum += value;
  }
  double mean = sum / (double)count;
  if (!isfinite(mean)) {
    return fail(message, OUTRIGGER_CODE_INPUT, "the mean is not a finite number, which JSON cannot write");
  }
  char *text = malloc(64);
  if (text == NULL) {
    return fail(message, OUTRIGGER_CODE_FAILED, "out of memory");
  }
  snprintf(text, 64, "{\"mean\": %.9g}", mean);
  response->content_type = bytes("application/json");
  response->body = bytes(text);
  response->free = free;
  response->owner = text;
  return OUTRIGGER_CODE_OK;
}

void outrigger_script_shutdown(void *state) { (void)state; }
