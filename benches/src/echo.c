/* The trivial native script: gives back what it gets. */

#include <string.h>

#include "outrigger_script.h"

uint32_t outrigger_script_abi(void) { return OUTRIGGER_ABI; }

int32_t outrigger_script_init(const OutriggerHost *host, OutriggerScript *script, OutriggerMessage *message) {
  (void)host;
  (void)message;
  script->flags = OUTRIGGER_SCRIPT_THREAD_SAFE;
  return OUTRIGGER_CODE_OK;
}

int32_t outrigger_script_run(void *state, const OutriggerRequest *request, OutriggerResponse *response,
                             OutriggerMessage *message) {
  (void)state;
  (void)message;
  uint8_t *answer = request->allocate(request->context, request->body.len);
  if (answer == NULL) {
    return OUTRIGGER_CODE_FAILED;
  }
  memcpy(answer, request->body.data, request->body.len);
  response->content_type = (OutriggerBytes){(const uint8_t *)"application/json", 16};
  response->body = (OutriggerBytes){answer, request->body.len};
  return OUTRIGGER_CODE_OK;
}

void outrigger_script_shutdown(void *state) { (void)state; }
