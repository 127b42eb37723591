/* A native script for tests: what it does stands in the query. Arguments: `serial`, `post`, `all`, `refuse`. */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "outrigger_script.h"

static const OutriggerHost *the_host;

static OutriggerBytes text(const char *text) { return (OutriggerBytes){(const uint8_t *)text, strlen(text)}; }

static int is(OutriggerBytes bytes, const char *text) {
  return bytes.len == strlen(text) && memcmp(bytes.data, text, bytes.len) == 0;
}

static int32_t fail(OutriggerMessage *message, int32_t code, const char *text) {
  message->len = strlen(text);
  memcpy(message->data, text, message->len);
  return code;
}

/* Whether a file of this name is in the root of the code. */
static int there(const char *name) {
  char path[4096];
  snprintf(path, sizeof path, "%.*s/%s", (int)the_host->app_root.len, (const char *)the_host->app_root.data, name);
  return access(path, F_OK) == 0;
}

#ifndef ABI
#define ABI OUTRIGGER_ABI
#endif
uint32_t outrigger_script_abi(void) { return ABI; }

int32_t outrigger_script_init(const OutriggerHost *host, OutriggerScript *script, OutriggerMessage *message) {
  the_host = host;
  script->flags = OUTRIGGER_SCRIPT_THREAD_SAFE;
  for (size_t i = 0; i < host->arg_count; i++) {
    if (is(host->args[i], "serial")) script->flags = 0;
    if (is(host->args[i], "post")) script->methods = 1 << OUTRIGGER_METHOD_POST;
    if (is(host->args[i], "all")) script->methods = 15;
    if (is(host->args[i], "refuse")) return fail(message, OUTRIGGER_CODE_FAILED, "no such weights");
    if (is(host->args[i], "hang")) for (;;) pause();
  }
  host->log(host->context, OUTRIGGER_LEVEL_WARNING, text("init was here"));
  return OUTRIGGER_CODE_OK;
}

#ifndef RUN
#define RUN outrigger_script_run
#endif
int32_t RUN(void *state, const OutriggerRequest *request, OutriggerResponse *response, OutriggerMessage *message) {
  (void)state;
  response->content_type = text("text/plain");
  if (is(request->query, "fail")) return fail(message, OUTRIGGER_CODE_FAILED, "a detail of the inside");
  if (is(request->query, "input")) return fail(message, OUTRIGGER_CODE_INPUT, "say it otherwise");
  if (is(request->query, "crash")) abort();
  if (is(request->query, "loop")) for (volatile int i = 0;; i++) continue;
  if (is(request->query, "hold")) {
    while (!there("go")) usleep(1000);
    return OUTRIGGER_CODE_OK;
  }
  if (is(request->query, "patient")) {
    request->log(request->context, OUTRIGGER_LEVEL_INFO, text("waiting"));
    int32_t why;
    while ((why = request->cancelled(request->context)) == OUTRIGGER_CANCELLED_NO) usleep(1000);
    request->log(request->context, OUTRIGGER_LEVEL_INFO,
                 text(why == OUTRIGGER_CANCELLED_OUT_OF_TIME ? "out of time" : "client gone"));
    return OUTRIGGER_CODE_OK;
  }
  if (is(request->query, "what")) {
    char *answer = malloc(65536);
    size_t len = (size_t)snprintf(answer, 4096, "method %u\n", request->method);
    for (size_t i = 0; i < request->header_count; i++) {
      OutriggerHeader header = request->headers[i];
      len += (size_t)snprintf(answer + len, 4096, "%.*s: %.*s\n", (int)header.name.len, (const char *)header.name.data,
                              (int)header.value.len, (const char *)header.value.data);
    }
    response->body = (OutriggerBytes){(uint8_t *)answer, len};
    response->free = free;
    response->owner = answer;
    return OUTRIGGER_CODE_OK;
  }
  if (is(request->query, "stream") || is(request->query, "flood") || is(request->query, "broken")) {
    char piece[1000];
    memset(piece, 'x', sizeof piece);
    if (request->begin(request->context, response) != 0) return OUTRIGGER_CODE_OK;
    for (int i = 0; i < 2000 || is(request->query, "flood"); i++) {
      snprintf(piece, sizeof piece, "%07d", i);
      piece[7] = 'x';
      if (request->write(request->context, (OutriggerBytes){(uint8_t *)piece, sizeof piece}) != 0) {
        request->log(request->context, OUTRIGGER_LEVEL_INFO, text("nobody reads"));
        return OUTRIGGER_CODE_OK;
      }
    }
    if (is(request->query, "broken")) return fail(message, OUTRIGGER_CODE_FAILED, "half way");
    return OUTRIGGER_CODE_OK;
  }
  uint8_t *answer = request->allocate(request->context, request->body.len);
  if (answer == NULL) return fail(message, OUTRIGGER_CODE_FAILED, "no memory");
  memcpy(answer, request->body.data, request->body.len);
  response->body = (OutriggerBytes){answer, request->body.len};
  return OUTRIGGER_CODE_OK;
}

void outrigger_script_shutdown(void *state) {
  (void)state;
  the_host->log(the_host->context, OUTRIGGER_LEVEL_WARNING, text("shutdown was here"));
}
