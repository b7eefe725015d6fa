/* The option table as data, and finding names in it: exactly, by alias, or nearly. */
#include "server/config_table.h"

#include "kernels/sampling.h"

#include <assert.h>
#include <string.h>

const struct config_entry config_table[CONFIG_OPTION_COUNT] = {
#define OPTION(group_, kind_, member_, fallback_, least_, greatest_, choices_, help_)              \
    {                                                                                              \
        .member = #member_,                                                                        \
        .group = CONFIG_GROUP_##group_,                                                            \
        .kind = CONFIG_KIND_##kind_,                                                               \
        .offset = offsetof(struct config, member_),                                                \
        .fallback = (fallback_),                                                                   \
        .least = (int64_t)(least_),                                                                \
        .greatest = (int64_t)(greatest_),                                                          \
        .least_real = (double)(least_),                                                            \
        .greatest_real = (double)(greatest_),                                                      \
        .choices = (choices_),                                                                     \
        .help = (help_),                                                                           \
    },
    CONFIG_OPTIONS(OPTION)
#undef OPTION
};

const char *const config_group_title[CONFIG_GROUP_COUNT] = {
#define GROUP(constant, title) title,
    CONFIG_GROUPS(GROUP)
#undef GROUP
};

/* Other spellings of an option. */
static const struct {
    const char *name;
    enum config_option option;
} aliases[] = {
    {"drain-timeout", CONFIG_shutdown_timeout},
};

#define NO_COUNTERPART "a flag of vLLM's that has no counterpart here; leave it out"
#define NOT_YET        "a flag of vLLM's that this version cannot follow yet"

const struct config_refusal config_refused[] = {
    {"disable-cascade-attn", NO_COUNTERPART},
    {"disable-hybrid-kv-cache-manager", NO_COUNTERPART},
    {"decode-context-parallel-size", NO_COUNTERPART},
    {"distributed-executor-backend", NO_COUNTERPART},
    {"all2all-backend", NO_COUNTERPART},
    {"moe-backend", NO_COUNTERPART},
    {"linear-backend", NO_COUNTERPART},
    {"attention-backend", NO_COUNTERPART},
    {"compilation-config", NO_COUNTERPART},
    {"enable-dbo", NO_COUNTERPART},
    {"enable-eplb", NO_COUNTERPART},
    {"api-server-count", NO_COUNTERPART},
    {"headless", NO_COUNTERPART},
    {"limit-mm-per-prompt", NO_COUNTERPART},
    {"language-model-only", NO_COUNTERPART},
    {"kv-transfer-config", NO_COUNTERPART},
    {"kv-events-config", NO_COUNTERPART},
    {"grpc", NO_COUNTERPART},
    {"enable-prompt-embeds", NO_COUNTERPART},
    {"prefix-caching-hash-algo", "blocks are matched by their tokens, not by a hash; leave it out"},
    {"trust-remote-code", "code that comes with a model never runs here; leave it out"},
    {"download-dir", "models are not downloaded; give the path of a file"},
    {"revision", "models are not downloaded; give the path of a file"},
    {"dtype", "the formats of the model's weights decide; leave it out"},
    {"quantization", "the formats of the model's weights decide; leave it out"},
    {"uds", NOT_YET},
    {"ssl-keyfile", "TLS is not served yet; put a proxy in front"},
    {"ssl-certfile", "TLS is not served yet; put a proxy in front"},
    {"ssl-ca-certs", "TLS is not served yet; put a proxy in front"},
    {"ssl-cert-reqs", "TLS is not served yet; put a proxy in front"},
    {"ssl-ciphers", "TLS is not served yet; put a proxy in front"},
    {"allowed-origins", NOT_YET},
    {"allowed-methods", NOT_YET},
    {"allowed-headers", NOT_YET},
    {"root-path", NOT_YET},
    {"max-num-scheduled-tokens", NOT_YET},
    {"max-num-queued-tokens", NOT_YET},
    {"kv-cache-dtype-skip-layers", NOT_YET},
    {"kv-offloading-size", NOT_YET},
    {"kv-offloading-backend", NOT_YET},
    {"cpu-offload-gb", NOT_YET},
    {"scheduling-policy", NOT_YET},
    {"stream-interval", NOT_YET},
    {"watermark", NOT_YET},
    {"performance-mode", NOT_YET},
    {"hf-overrides", NOT_YET},
    {"tokenizer", NOT_YET},
    {"tokenizer-mode", NOT_YET},
    {"logprobs-mode", NOT_YET},
    {"response-role", NOT_YET},
    {"chat-template", NOT_YET},
    {"chat-template-content-format", NOT_YET},
    {"default-chat-template-kwargs", NOT_YET},
    {"trust-request-chat-template", NOT_YET},
    {"enable-auto-tool-choice", NOT_YET},
    {"tool-call-parser", NOT_YET},
    {"reasoning-parser", NOT_YET},
    {"structured-outputs-config", NOT_YET},
    {"tensor-parallel-size", NOT_YET},
    {"pipeline-parallel-size", NOT_YET},
    {"data-parallel-size", NOT_YET},
    {"enable-expert-parallel", NOT_YET},
    {"nnodes", NOT_YET},
    {"node-rank", NOT_YET},
    {"master-addr", NOT_YET},
    {"master-port", NOT_YET},
    {"enable-lora", NOT_YET},
    {"max-loras", NOT_YET},
    {"max-lora-rank", NOT_YET},
    {"max-cpu-loras", NOT_YET},
    {"lora-modules", NOT_YET},
    {"speculative-config", NOT_YET},
    {"spec-method", NOT_YET},
    {"spec-model", NOT_YET},
    {"spec-tokens", NOT_YET},
    {"enforce-eager", NOT_YET},
    {"cudagraph-capture-sizes", NOT_YET},
    {"max-cudagraph-capture-size", NOT_YET},
    {"enable-sleep-mode", NOT_YET},
    {"runner", NOT_YET},
    {"convert", NOT_YET},
    {"pooler-config", NOT_YET},
    {"enable-force-include-usage", NOT_YET},
    {"return-tokens-as-token-ids", "a field of each request here; leave it out"},
    {"enable-log-requests", "prompts are never logged; access-log has a line for each request"},
    {"enable-log-outputs", "outputs are never logged; access-log has a line for each request"},
    {"max-log-len", "prompts are never logged; leave it out"},
    {"disable-uvicorn-access-log", "written --no-access-log here"},
    {"uvicorn-log-level", "written --log-level here"},
    {"otlp-traces-endpoint", NOT_YET},
    {"kv-cache-metrics", NOT_YET},
    {"enable-mfu-metrics", NOT_YET},
    {"enable-logging-iteration-details", "written --step-log FILE here"},
    {"tp", NOT_YET},
    {"pp", NOT_YET},
    {"dp", NOT_YET},
    {"q", "the formats of the model's weights decide; leave it out"},
    {"O", NO_COUNTERPART},
    {"cc", NO_COUNTERPART},
    {NULL, NULL},
};

const struct config_refusal config_always[] = {
    {"enable-chunked-prefill", "prompts are always computed in chunks"},
    {"enable-request-id-headers", "replies always carry x-request-id"},
    {"enable-prompt-tokens-details", "usage always has the cached tokens"},
    {"enable-server-load-tracking", "/load always counts"},
    {NULL, NULL},
};

static_assert(SAMPLING_TOP_MAX == 32, "the greatest max_logprobs is SAMPLING_TOP_MAX");

const char *config_name(int32_t option, char *name)
{
    assert(option >= 0 && option < CONFIG_OPTION_COUNT);
    const char *member = config_table[option].member;
    size_t length = strlen(member);

    assert(length < CONFIG_NAME_MAX);
    for (size_t i = 0; i <= length; i++)
        name[i] = (char)(member[i] == '_' ? '-' : member[i]);
    return name;
}

bool config_takes(enum config_command command, const struct config_entry *entry)
{
    switch (entry->group) {
    case CONFIG_GROUP_MODEL:
    case CONFIG_GROUP_DEVICE:
    case CONFIG_GROUP_SCHEDULER:
        return true;
    case CONFIG_GROUP_BENCH:
        return command == CONFIG_BENCH;
    default:
        return command == CONFIG_SERVE;
    }
}

static bool same_name(const char *left, const char *right)
{
    while (*left != '\0' && (*left == *right || (*left == '_' && *right == '-') ||
                             (*left == '-' && *right == '_'))) {
        left++;
        right++;
    }
    return *left == *right;
}

int32_t config_find(enum config_command command, const char *name)
{
    for (int32_t i = 0; i < CONFIG_OPTION_COUNT; i++)
        if (same_name(config_table[i].member, name))
            return config_takes(command, &config_table[i]) ? i : -1;
    for (size_t i = 0; i < sizeof aliases / sizeof aliases[0]; i++)
        if (same_name(aliases[i].name, name))
            return config_takes(command, &config_table[aliases[i].option])
                       ? (int32_t)aliases[i].option
                       : -1;
    return -1;
}

bool config_is_always(const char *name)
{
    for (const struct config_refusal *entry = config_always; entry->name != NULL; entry++)
        if (same_name(entry->name, name))
            return true;
    return false;
}

static int32_t least_of(int32_t left, int32_t right)
{
    return left < right ? left : right;
}

/* Insertions, deletions, replacements and swaps of neighbours that make `right` of `left`; both
 * are at most CONFIG_NAME_MAX long. */
static int32_t edit_distance(const char *left, const char *right)
{
    int32_t row[3][CONFIG_NAME_MAX + 1]; /* the one before the last, the last, this one */
    int32_t left_length = (int32_t)strlen(left), right_length = (int32_t)strlen(right);
    int32_t *before = row[0], *last = row[1], *now = row[2];

    for (int32_t j = 0; j <= right_length; j++)
        last[j] = j;
    for (int32_t i = 1; i <= left_length; i++) {
        now[0] = i;
        for (int32_t j = 1; j <= right_length; j++) {
            int32_t cost = left[i - 1] == right[j - 1] ? 0 : 1;

            now[j] = least_of(least_of(last[j] + 1, now[j - 1] + 1), last[j - 1] + cost);
            if (i > 1 && j > 1 && left[i - 1] == right[j - 2] && left[i - 2] == right[j - 1])
                now[j] = least_of(now[j], before[j - 2] + 1);
        }
        int32_t *oldest = before;
        before = last;
        last = now;
        now = oldest;
    }
    return last[right_length];
}

const char *config_nearest(const char *word, const char *const *name, int32_t count)
{
    size_t word_length = strlen(word);
    const char *nearest = NULL;
    /* A third of the letters wrong is a slip; more is another word. */
    int32_t least = (int32_t)(word_length / 3 < 2 ? 2 : word_length / 3) + 1;

    if (word_length > CONFIG_NAME_MAX)
        return NULL;
    for (int32_t i = 0; i < count; i++) {
        assert(strlen(name[i]) <= CONFIG_NAME_MAX);
        int32_t distance = edit_distance(word, name[i]);
        if (distance < least && distance < (int32_t)strlen(name[i])) {
            least = distance;
            nearest = name[i];
        }
    }
    return nearest;
}

/* A flag of vLLM's that is refused: why; or NULL. */
static const char *refusal(const char *name)
{
    for (const struct config_refusal *entry = config_refused; entry->name != NULL; entry++)
        if (same_name(entry->name, name))
            return entry->why;
    return NULL;
}

/* The nearest option that the command takes, as users write it, or NULL. */
static const char *nearest_option(enum config_command command, const char *name, char *nearest)
{
    char names[CONFIG_OPTION_COUNT][CONFIG_NAME_MAX], word[CONFIG_NAME_MAX + 1];
    const char *name_of[CONFIG_OPTION_COUNT];
    int32_t count = 0;

    if (strlen(name) > CONFIG_NAME_MAX)
        return NULL;
    for (size_t i = 0; i <= strlen(name); i++)
        word[i] = (char)(name[i] == '_' ? '-' : name[i]);
    for (int32_t i = 0; i < CONFIG_OPTION_COUNT; i++) {
        if (config_takes(command, &config_table[i])) {
            name_of[count] = config_name(i, names[count]);
            count++;
        }
    }
    const char *found = config_nearest(word, name_of, count);
    if (found != NULL)
        memcpy(nearest, found, strlen(found) + 1);
    return found;
}

int config_unknown(struct config_reader *reader, const char *name, struct config_place place)
{
    const char *positive = strncmp(name, "no-", 3) == 0 ? name + 3 : name;
    const char *why = refusal(positive);
    char nearest[CONFIG_NAME_MAX];

    if (why != NULL)
        return config_refuse(reader, name, place, "%s", why);
    if (config_is_always(positive))
        return config_refuse(reader, name, place, "cannot be turned off");
    if (nearest_option(reader->config->command, positive, nearest) != NULL)
        return config_refuse(reader, name, place, "unknown option; did you mean %s%s?",
                             place.source == CONFIG_BY_FLAG ? "--" : "", nearest);
    return config_refuse(reader, name, place, "unknown option; --help has all of them");
}
