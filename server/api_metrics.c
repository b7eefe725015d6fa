/* The metrics page, and the one action that operators take on the cache. */
#include "server/api.h"
#include "server/engine.h"
#include "server/metrics.h"

#include <string.h>

void api_metrics(struct exchange *exchange)
{
    const char *names = exchange_query(exchange, "names");
    unsigned wanted = METRICS_OWN | METRICS_VLLM;
    struct json page = {0};

    if (names != NULL && strcmp(names, "quire") == 0)
        wanted = METRICS_OWN;
    if (names != NULL && strcmp(names, "vllm") == 0)
        wanted = METRICS_VLLM;
    metrics_set(METRIC_LOAD, (double)exchange_load(exchange));
    metrics_write(&page, wanted);
    exchange_reply(exchange, 200, "text/plain; version=0.0.4; charset=utf-8", &page);
}

void api_reset_cache(struct exchange *exchange)
{
    struct json body = {0};

    json_raw(&body, "{\"success\":");
    json_bool(&body, engine_reset_cache(exchange_engine(exchange)));
    json_raw(&body, "}");
    exchange_json(exchange, &body);
}
