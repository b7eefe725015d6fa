/* The text threads: tokenise prompts, turn tokens into text, match stop strings.
 *
 * A stream's work is always on the same thread, so its text state needs no lock. Each thread has
 * an inbox: the engine appends all tokens of a step in one go and never waits. Clients' sockets
 * play no part here: a stop string ends its sequence however slowly its client reads.
 */
#ifndef SERVER_TEXT_H
#define SERVER_TEXT_H

#include "server/engine.h"

struct text;   /* all text threads */
struct answer; /* one sequence's way from tokens to text; text.c's own */

/* What the engine tells of a sequence, in order; TEXT_END is the last of each. */
enum text_kind { TEXT_TOKEN, TEXT_SCORE, TEXT_END };

struct text_item {
    enum text_kind kind;
    struct answer *answer;
    int32_t token;
    float logprob;
    int32_t token_index; /* TEXT_SCORE: of the prompt, from 1 */
    int32_t top_count;
    int32_t top_first;  /* into the tops handed over with the items */
    enum finish finish; /* TEXT_TOKEN: this one is the last; TEXT_END: why, FINISH_NONE: cancel */
    int32_t stop_token; /* TEXT_TOKEN with FINISH_STOP: the caller's id, or -1 for an end token */
};

/* Items of one step for one thread. */
struct text_batch {
    struct text_item *item; /* [item_count] */
    int32_t item_count;
    int32_t item_max;
    struct token_top *top; /* [top_count] */
    int32_t top_count;
    int32_t top_max;
};

/* What the text threads call; the engine gives its own. */
struct text_sink {
    void *context;
    /* Takes tokenised jobs. */
    void (*submit)(void *context, struct job *jobs);
    /* A stop string was found: the sequence need not go on. */
    void (*stop)(void *context, int32_t seq, int64_t serial);
    /* Streams that have something new; takes one hold of each. */
    void (*wake)(void *context, struct stream *const *stream, int32_t count);
    /* All answers of a job have ended, or it was never submitted; takes it. */
    void (*ended)(void *context, struct job *job);
};

struct text *text_start(struct model *model, int32_t thread_count, const struct text_sink *sink);
/* Finishes what lies in the inboxes, then joins; NULL is fine. */
void text_stop(struct text *text);

/* Tokenises, checks the context, submits. Takes the jobs; false: out of memory, not taken. Any
 * thread. */
bool text_submit(struct text *text, struct job *jobs);
/* Appends a copy of the batch to the inbox of thread `index`. The engine's thread. */
void text_append(struct text *text, int32_t index, const struct text_batch *batch);
int32_t text_thread_count(const struct text *text);
const struct tokenizer *text_tokenizer(const struct text *text); /* NULL: there is none */
/* A job that the scheduler refused; one sibling of a job that got no answer. Takes it. */
void text_drop(struct text *text, struct job *job);
void text_drop_one(struct text *text, struct job *job);

/* Sequence `seq` of a job; NULL: out of memory. Freed by its TEXT_END. */
struct answer *answer_create(struct text *text, struct job *job, int32_t sibling, int32_t seq,
                             int64_t serial);

/* Room for one more item with `top_count` tops; false: out of memory. */
bool text_batch_room(struct text_batch *batch, int32_t top_count);

#endif
