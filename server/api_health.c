/* Whether and how it goes: /health, /health/live, /ping, /version, /load. */
#include "server/api.h"

void api_health(struct exchange *exchange)
{
    struct json empty = {0};
    struct stream_error error;

    switch (exchange_state(exchange)) {
    case API_READY:
        exchange_reply(exchange, 200, NULL, &empty);
        return;
    case API_LOADING:
        error = stream_error_make(503, "model_loading", NULL, "The model is still loading.");
        break;
    case API_DRAINING:
        error = stream_error_make(503, "shutting_down", NULL, "The server is shutting down.");
        break;
    default:
        error = stream_error_make(503, "engine_dead", NULL, "The engine has lost its device.");
    }
    exchange_error(exchange, &error);
}

void api_live(struct exchange *exchange)
{
    struct json empty = {0};
    struct stream_error error =
        stream_error_make(503, "engine_dead", NULL, "The engine has lost its device.");

    if (exchange_state(exchange) == API_DEAD)
        exchange_error(exchange, &error);
    else
        exchange_reply(exchange, 200, NULL, &empty);
}

void api_version(struct exchange *exchange)
{
    struct json body = {0};

    json_raw(&body, "{\"version\":\"" QUIRE_VERSION "\"}");
    exchange_json(exchange, &body);
}

void api_load(struct exchange *exchange)
{
    struct json body = {0};

    json_print(&body, "{\"server_load\":%lld}", (long long)exchange_load(exchange));
    exchange_json(exchange, &body);
}
