/* What the text and engine side see of a stream besides stream.h; no HTTP file includes this. */
#ifndef SERVER_STREAM_PRIVATE_H
#define SERVER_STREAM_PRIVATE_H

#include "server/stream.h"

typedef void stream_cancel_hook(void *context, struct stream *stream);

/* A piece with room for its text, records and all their likeliest tokens in one allocation;
 * fields zeroed, no stop. NULL: out of memory. */
struct piece *piece_create(size_t text_bytes, int32_t token_count, int32_t top_count);
/* Where the records' likeliest tokens go, [top_count] as created. */
struct token_top *piece_top(struct piece *piece);

/* Called once, by the first stream_cancel before the end; outside the stream's lock. */
void stream_set_cancel(struct stream *stream, stream_cancel_hook *hook, void *context);
/* Cancelled or failed: nothing more need be computed for it. */
bool stream_dead(struct stream *stream);

#endif
