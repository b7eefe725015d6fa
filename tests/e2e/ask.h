/* Asking a server for completions, and what the fake model must answer.
 *
 * JSON is written with ' for ", so that it can be read in C. Failed expectations are printed and
 * counted by the caller's test.
 */
#ifndef TESTS_E2E_ASK_H
#define TESTS_E2E_ASK_H

#include "tests/e2e/client.h"
#include "tests/e2e/server.h"

#include <cjson/cJSON.h>

enum { ASK_TEXT_MAX = 16384, ASK_TOKEN_MAX = 4096, ASK_CHOICE_MAX = 8 };

/* The text with " for ', to be freed. */
char *ask_json(const char *text);

/* POSTs and gives the reply's JSON (to be deleted) and status; NULL: no JSON came. */
cJSON *ask(const struct server *server, const char *path, const char *body, int *status);
/* POST /v1/completions that must be answered with 200; else NULL, and it is printed. */
cJSON *ask_completion(const struct server *server, const char *body);

/* The value at a path such as "choices/0/text": "" or NAN where there is none. */
const cJSON *ask_at(const cJSON *root, const char *path);
const char *ask_string(const cJSON *root, const char *path);
double ask_number(const cJSON *root, const char *path);

/* What greedy decoding gives after a prompt, computed here from the fake model's rule alone. */
struct ask_answer {
    int32_t prompt_count;
    int32_t prompt[ASK_TOKEN_MAX];
    int32_t token_count;
    int32_t token[ASK_TOKEN_MAX];
    char text[ASK_TEXT_MAX];
    const char *finish; /* "stop" or "length" */
};
/* `text` (with BOS) or, where that is NULL, `prompt` ids; until an end token unless ignore_eos. */
void ask_expected(struct ask_answer *answer, const char *text, const int32_t *prompt,
                  int32_t prompt_count, int32_t token_max, bool ignore_eos);

/* One choice of a stream, put together from its events. */
struct ask_choice {
    char text[ASK_TEXT_MAX];
    size_t text_bytes;
    int event_count;
    int finish_count;
    char finish[16];
    char stop_reason[64]; /* printed JSON */
};

struct ask_stream {
    struct ask_choice choice[ASK_CHOICE_MAX];
    int choice_count; /* seen */
    char id[160];
    int event_count; /* with [DONE] */
    int usage_count;
    int prompt_tokens, completion_tokens, total_tokens;
    bool done;        /* [DONE] came last */
    char error[512];  /* message of an error event, "" */
    char broken[256]; /* which rule of streams was broken first, "" for none */
};
/* Takes one event. */
void ask_take(struct ask_stream *stream, const char *event);
/* Sends the body and takes all events; false: the reply was no whole stream, and it is printed. */
bool ask_streamed(const struct server *server, const char *body, struct ask_stream *stream);

#endif
