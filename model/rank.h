/* One device: its thread, weights, buffers and graphs.
 *
 * The rank's thread makes every call of the device. It opens and loads; then it issues steps as
 * they are started and waits for the device only when somebody waits for a step's results, so that
 * a second step can be queued while the first one runs. The other functions belong to one thread.
 */
#ifndef MODEL_RANK_H
#define MODEL_RANK_H

#include "model/arch.h"
#include "model/ledger.h"
#include "model/model.h"

struct rank; /* opaque */

struct rank_options {
    const struct device_ops *ops;      /* tried first */
    const struct device_ops *fallback; /* where ops finds no device (-ENODEV); NULL: none */
    struct device_options device;
    const struct arch *arch;
    const struct shape *shape; /* borrowed until rank_close */
    struct source *source;     /* borrowed until loaded; refusals go there */
    struct ledger_wish wish;   /* all but what the device and the model decide: bytes */
    bool measure;              /* open, add up, and stop there: nothing is loaded */
    bool read_rate;            /* measure it, see rank_read_rate */
    const char *tune_table;    /* file to be followed (tune.h), or NULL; borrowed until loaded */
};

/* Starts the thread. NULL: no memory or no thread. */
struct rank *rank_create(const struct rank_options *options);
/* Waits until it is loaded, calling progress (which may be NULL) from this thread: 0, or the
 * refusal that is in the source. */
int rank_load(struct rank *rank, void (*progress)(void *context, double share, const char *what),
              void *context);
const struct ledger *rank_ledger(const struct rank *rank); /* once loaded */
int64_t rank_block_bytes(const struct rank *rank);         /* once loaded */
int64_t rank_step_bytes(const struct rank *rank); /* of weights that a step reads; once loaded */
double rank_read_rate(const struct rank *rank);   /* of the device; 0: not measured */
void rank_describe(const struct rank *rank, char *text, size_t max); /* once loaded */
/* Which tables of products are followed, and what to warn of; "" where there is nothing to say.
 * Once loaded, while the path of options is there. */
void rank_describe_table(const struct rank *rank, char *text, size_t max, char *warning,
                         size_t warning_max);

int64_t rank_graph_count(const struct rank *rank); /* any thread */

/* At most STEP_DEPTH batches between start and wait; they are waited for in order. */
void rank_start(struct rank *rank, struct batch *batch);
int rank_wait(struct rank *rank);                /* the oldest one: 0, or -EIO */
const char *rank_fault(const struct rank *rank); /* after -EIO: why, in a line */
/* Between steps, once loaded: tune_measure of its weights. Waits for it; `line` is called on the
 * rank's thread. */
int rank_tune(struct rank *rank, void (*line)(void *context, const char *text), void *context);
void rank_close(struct rank *rank); /* NULL is fine; batches not waited for are finished */

#endif
