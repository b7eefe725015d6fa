/* model.h without weights: a model whose next token is a function of the whole prefix, as read
 * back through the block tables. A wrong table, a missing copy or a block given away too early
 * shows as wrong text, and is counted.
 *
 * Link fake_model.c before libmodel.a. The path given to model_open is not opened. All functions
 * here may be called from any thread; the settings hold for all fake models of the process.
 */
#ifndef TESTS_FAKE_MODEL_H
#define TESTS_FAKE_MODEL_H

#include <stdbool.h>
#include <stdint.h>

struct tokenizer;

enum {
    FAKE_BOS = 1,
    FAKE_EOS = 2,
    FAKE_FIRST_BYTE = 3,
    FAKE_FIRST_WORD = 259,
    FAKE_CONTEXT = 8192,       /* what the model allows */
    FAKE_WEIGHT_BYTES = 10000, /* what it says that a step reads, and of KV for each token */
    FAKE_KV_BYTES = 10,
    FAKE_READ_RATE = 1000000000, /* and how fast */
};

/* The tokenizer of every fake model: all bytes, letters, digits, and some words. No memory:
 * aborts. Freed by tokenizer_free. */
struct tokenizer *fake_tokenizer_create(void);

/* The likeliest token after a prefix, and the log-probability of `token` there. */
int32_t fake_model_greedy(const int32_t *token, int32_t token_count);
float fake_model_logprob(const int32_t *prefix, int32_t prefix_count, int32_t token);

/* Before a fork: from now on settings and counters are the children's and the parent's alike. */
void fake_model_share(void);
void fake_model_delay(int64_t step_us); /* every step takes that long; 0 at first */
void fake_model_load(int64_t load_us);  /* model_open takes that long; 0 at first */
void fake_model_lose(bool lost);        /* the device fails at the next step */
int64_t fake_model_steps(void);         /* computed so far */
int64_t fake_model_faults(void);        /* tokens read back that were not those written */

#endif
