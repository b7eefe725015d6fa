/* What is served, and under which names. */
#include "server/api.h"
#include "server/config.h"
#include "server/engine.h"
#include "server/json_read.h"

#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

enum { NAME_MAX_BYTES = 1024 };

const char *api_model_name(const struct config *config, int32_t index)
{
    return index < config->served_model_name.count ? config->served_model_name.item[index] : NULL;
}

/* The served name that equals `name`, or NULL. The model's path, as it was given, is one too where
 * nobody gave names: vLLM's clients ask for that. It is not listed. */
static const char *find_name(const struct config *config, const char *name, size_t bytes)
{
    bool named = config->origin[CONFIG_served_model_name].source != CONFIG_BY_DEFAULT;
    const char *served;

    for (int32_t i = 0; (served = api_model_name(config, i)) != NULL; i++) {
        if (strlen(served) == bytes && memcmp(served, name, bytes) == 0)
            return served;
    }
    if (!named && strlen(config->model) == bytes && memcmp(config->model, name, bytes) == 0)
        return config->model;
    return NULL;
}

static struct stream_error unknown_model(const char *name, size_t bytes)
{
    enum { SHOWN_MAX = 100 };
    int shown = bytes < SHOWN_MAX ? (int)bytes : SHOWN_MAX;

    return stream_error_make(404, "model_not_found", "model",
                             "The model '%.*s' does not exist here (invalid_request_error, "
                             "model_not_found); GET /v1/models lists the names.",
                             shown, name);
}

/* What a request's "model" names; "" for none. `text` has NAME_MAX_BYTES. False: too long. */
static bool asked_name(const struct json_value *model, char *text, size_t *bytes)
{
    *bytes = 0;
    if (model->text == NULL || model->kind != JSON_STRING)
        return true;
    if (model->bytes > NAME_MAX_BYTES)
        return false;
    *bytes = json_text(model, text);
    return true;
}

bool api_model_check(const struct config *config, const struct json_value *model,
                     struct stream_error *error)
{
    char name[NAME_MAX_BYTES];
    size_t bytes;
    bool fits = asked_name(model, name, &bytes);

    if (fits && (bytes == 0 || find_name(config, name, bytes) != NULL))
        return true;
    *error = unknown_model(fits ? name : "(a very long name)", fits ? bytes : 18);
    return false;
}

const char *api_model_called(const struct config *config, const struct json_value *model)
{
    char name[NAME_MAX_BYTES];
    size_t bytes;
    const char *found = NULL;

    if (asked_name(model, name, &bytes) && bytes > 0)
        found = find_name(config, name, bytes);
    return found != NULL ? found : api_model_name(config, 0);
}

void api_fingerprint(struct engine *engine, char *text, size_t max)
{
    const struct model_info *info = model_info(engine_model(engine));
    uint64_t hash = 0xcbf29ce484222325ULL; /* FNV-1a over what decides the numbers */
    char facts[512];

    int bytes = snprintf(facts, sizeof facts, "%s %s %s %s %lld %lld", info->name,
                         info->architecture, info->format, info->device,
                         (long long)info->parameter_count, (long long)info->file_bytes);
    for (int i = 0; i < bytes && i < (int)sizeof facts; i++)
        hash = (hash ^ (unsigned char)facts[i]) * 0x100000001b3ULL;
    snprintf(text, max, "quire-" QUIRE_VERSION "-%08x", (unsigned)(hash ^ hash >> 32));
}

/* When it was first asked for, near enough to when the model was loaded; constant from then. */
static int64_t created(void)
{
    static _Atomic int64_t first;
    int64_t none = 0;

    atomic_compare_exchange_strong(&first, &none, (int64_t)time(NULL));
    return first;
}

static void write_model(struct exchange *exchange, struct json *body, const char *name)
{
    const struct config *config = exchange_config(exchange);
    const struct model_info *info = model_info(engine_model(exchange_engine(exchange)));
    const char *root = api_model_name(config, 0);

    json_raw(body, "{\"id\":");
    json_string(body, name, strlen(name));
    json_print(body, ",\"object\":\"model\",\"created\":%lld,\"owned_by\":\"quire\",\"root\":",
               (long long)created());
    json_string(body, root, strlen(root));
    json_print(body, ",\"parent\":null,\"max_model_len\":%d}", info->context_max);
}

void api_models(struct exchange *exchange)
{
    struct json body = {0};
    const char *name;

    json_raw(&body, "{\"object\":\"list\",\"data\":[");
    for (int32_t i = 0; (name = api_model_name(exchange_config(exchange), i)) != NULL; i++) {
        if (i > 0)
            json_raw(&body, ",");
        write_model(exchange, &body, name);
    }
    json_raw(&body, "]}");
    exchange_json(exchange, &body);
}

void api_model(struct exchange *exchange)
{
    const char *name = exchange_rest(exchange);
    const char *found = find_name(exchange_config(exchange), name, strlen(name));
    struct json body = {0};

    if (found == NULL) {
        struct stream_error error = unknown_model(name, strlen(name));
        exchange_error(exchange, &error);
        return;
    }
    write_model(exchange, &body, found);
    exchange_json(exchange, &body);
}
