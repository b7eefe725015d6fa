/* What becomes of a request by its head alone: where it goes, or why it is refused. */
#ifndef SERVER_JUDGE_H
#define SERVER_JUDGE_H

#include "server/api.h"
#include "server/head.h"

/* Of the body limit: what is still read of a refused body, so that its sender hears why. */
enum { JUDGE_DISCARD_FACTOR = 4 };

struct judgement {
    const struct route *route; /* NULL: none; with refused = false: OPTIONS */
    const char *rest;          /* what the route's "*" took, within head->path */
    bool refused;
    bool close;                /* the connection must end with the reply */
    struct stream_error error; /* when refused */
    char allow[40];            /* for the Allow header; "" for none */
};

/* head->path must outlive the judgement. */
void judge_head(struct judgement *judgement, const struct head *head, const struct config *config,
                enum api_state state);
struct stream_error judge_too_large(const struct config *config);

#endif
