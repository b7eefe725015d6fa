/* One sequence's way from tokens to the pieces of its stream.
 *
 * Detokenises, holds back what may become a stop string, keeps the records of tokens until their
 * text goes out, and ends the text at a stop. Created by the engine thread, from then on used by
 * the stream's text thread alone; freed by its TEXT_END.
 */
#ifndef SERVER_ANSWER_H
#define SERVER_ANSWER_H

#include "server/text.h"

/* Streams to wake, each held once. */
struct answer_wakes {
    struct stream **stream; /* [count] */
    int32_t count;
    int32_t max;
};

/* Adds a hold of `stream` unless it is the latest one already. */
void answer_wake(struct answer_wakes *wakes, struct stream *stream);

/* One item from the engine; `top` are the likeliest tokens handed over with it. */
void answer_take(const struct text_item *item, const struct token_top *top,
                 const struct text_sink *sink, struct answer_wakes *wakes);

#endif
