/* Judging requests; see judge.h. The gravest fault first: what could be smuggled, then who asks,
 * then what for.
 */
#include "server/judge.h"

#include "server/metrics.h"

#include <string.h>

static void refuse(struct judgement *judgement, const struct stream_error error)
{
    judgement->refused = true;
    judgement->error = error;
}

struct stream_error judge_too_large(const struct config *config)
{
    return stream_error_make(413, "request_too_large", NULL,
                             "The body is too large: the limit is %lld bytes.",
                             (long long)config->max_body_bytes);
}

static void refuse_state(struct judgement *judgement, enum api_state state)
{
    metrics_add(METRIC_REJECT_UNREADY, 1);
    if (state == API_LOADING)
        refuse(judgement,
               stream_error_make(503, "model_loading", NULL, "The model is still loading."));
    else if (state == API_DRAINING)
        refuse(judgement,
               stream_error_make(503, "shutting_down", NULL, "The server is shutting down."));
    else
        refuse(judgement,
               stream_error_make(503, "engine_dead", NULL, "The engine has lost its device."));
}

/* No route takes this method and path. */
static void judge_unknown(struct judgement *judgement, const struct head *head, unsigned allow,
                          bool options)
{
    if (allow == 0) {
        if (!options || strcmp(head->path, "*") != 0)
            refuse(judgement,
                   stream_error_make(404, "unknown_url", NULL, "Nothing is served at this URL."));
        return;
    }
    route_methods(allow, judgement->allow, sizeof judgement->allow);
    if (!options)
        refuse(judgement, stream_error_make(405, "method_not_allowed", NULL,
                                            "This method is not allowed here; allowed are %s.",
                                            judgement->allow));
}

static void judge_request(struct judgement *judgement, const struct head *head,
                          const struct config *config, enum api_state state)
{
    bool options = strcmp(head->method, "OPTIONS") == 0;
    unsigned allow;

    judgement->route = route_find(head->method, head->path, &judgement->rest, &allow);
    bool open = options || (judgement->route != NULL && judgement->route->flags & ROUTE_OPEN);
    if (config->api_key.count > 0 && !open && !head_key_good(head, &config->api_key)) {
        metrics_add(METRIC_REJECT_KEY, 1);
        refuse(judgement,
               stream_error_make(401, "invalid_api_key", NULL,
                                 "Incorrect API key provided: send 'Authorization: Bearer KEY'."));
    } else if (judgement->route == NULL) {
        judge_unknown(judgement, head, allow, options);
    } else if (state != API_READY && !(judgement->route->flags & ROUTE_EARLY)) {
        refuse_state(judgement, state);
    } else if (judgement->route->flags & ROUTE_TEXT && !head_media_good(head)) {
        refuse(judgement, stream_error_make(415, "unsupported_media_type", NULL,
                                            "The body must be JSON: send it with -H 'Content-Type: "
                                            "application/json'."));
    }
}

void judge_head(struct judgement *judgement, const struct head *head, const struct config *config,
                enum api_state state)
{
    const char *fault = head_fault(head);
    int64_t bytes = head_body_bytes(head);

    *judgement = (struct judgement){.rest = ""};
    if (fault != NULL) {
        judgement->close = true;
        refuse(judgement,
               stream_error_make(400, "invalid_request", NULL, "Bad request head: %s.", fault));
        return;
    }
    judge_request(judgement, head, config, state);
    if (!judgement->refused && bytes > config->max_body_bytes)
        refuse(judgement, judge_too_large(config));
    /* No use reading the body when too much of it would come, or its sender waits for leave. */
    if (judgement->refused && (bytes / JUDGE_DISCARD_FACTOR > config->max_body_bytes ||
                               head_value(head, "Expect") != NULL))
        judgement->close = true;
}
