/* Requests from bodies: every field's types, ranges and refusals, each naming its culprit. */
#include "server/api.h"
#include "server/api_completions.h"
#include "server/defaults.h"
#include "server/engine.h"
#include "server/fields.h"
#include "tests/test.h"

enum { VOCAB = 1000, CONTEXT = 64 };

static struct config config;
static const struct completion_limits limits = {&config, VOCAB, CONTEXT, 8, NULL};

static bool parse(const char *body, struct completion *completion, struct stream_error *error)
{
    *error = (struct stream_error){0};
    return completion_parse(completion, body, strlen(body), &limits, error);
}

static void suspend(void *context)
{
    (void)context;
}

static struct job *jobs_of(const struct completion *completion, struct stream_error *error)
{
    struct stream_waiter waiter = {NULL, suspend, suspend};
    struct stream *stream = stream_create(completion->prompt_count * completion->n, &waiter);
    struct job *jobs = completion_jobs(completion, &limits, stream, 7, error);

    stream_release(stream);
    return jobs;
}

static void free_jobs(struct job *jobs)
{
    while (jobs != NULL) {
        struct job *next = jobs->next;
        job_free(jobs);
        jobs = next;
    }
}

/* The body is refused with this code and parameter, by the parser or for its prompts. */
static void refused(const char *body, const char *code, const char *param)
{
    static struct completion completion;
    struct stream_error error;

    if (parse(body, &completion, &error)) {
        struct job *jobs = jobs_of(&completion, &error);
        if (jobs != NULL)
            printf("taken: %s\n", body);
        EXPECT(jobs == NULL);
        free_jobs(jobs);
    }
    if (strcmp(error.code, code) != 0 || strcmp(error.param, param) != 0)
        printf("%s gives %s, %s: %s\n", body, error.code, error.param, error.message);
    EXPECT_STRING(error.code, code);
    EXPECT_STRING(error.param, param);
    EXPECT(error.status == 400 || error.status == 404);
    EXPECT(error.message[0] != '\0');
}

static void taken(const char *body)
{
    static struct completion completion;
    struct stream_error error;
    bool good = parse(body, &completion, &error);

    if (!good)
        printf("%s gives %s\n", body, error.message);
    EXPECT(good);
    if (!good)
        return;
    struct job *jobs = jobs_of(&completion, &error);
    EXPECT(jobs != NULL);
    free_jobs(jobs);
}

static void a_prompt_alone_gets_every_default(void)
{
    static struct completion completion;
    struct stream_error error;

    EXPECT(parse("{\"prompt\":\"a\"}", &completion, &error));
    EXPECT_INT(completion.n, ==, 1);
    EXPECT_INT(completion.max_tokens, ==, 16);
    EXPECT(!completion.max_tokens_given && !completion.logprobs_given && !completion.seed_given);
    EXPECT(completion.skip_special && completion.add_special);
    EXPECT(!completion.stream && !completion.echo && !completion.ignore_eos);
    EXPECT_INT(completion.sampling.top_count, ==, -1);
#define PARAMETER(type, field, fallback, least, greatest, help)                                    \
    EXPECT(completion.sampling.field == (__typeof__(completion.sampling.field))(fallback));
    SAMPLING_PARAMETERS(PARAMETER)
#undef PARAMETER
}

static void null_is_the_same_as_absent(void)
{
    static struct completion nulls, absent;
    struct stream_error error;

    EXPECT(parse("{\"prompt\":\"a\",\"max_tokens\":null,\"n\":null,\"temperature\":null,"
                 "\"stop\":null,\"stream\":null,\"logprobs\":null,\"seed\":null,\"suffix\":null,"
                 "\"logit_bias\":null,\"stream_options\":null,\"model\":null}",
                 &nulls, &error));
    EXPECT(parse("{\"prompt\":\"a\"}", &absent, &error));
    nulls.prompt = absent.prompt;
    EXPECT(memcmp(&nulls, &absent, sizeof nulls) == 0);
}

/* The body as a server reads it that was started with this override. */
static bool parse_with(const char *override, const char *body, struct completion *completion)
{
    struct config other = config;
    struct defaults defaults;
    struct completion_limits bound = limits;
    struct model_defaults own = {.has_top_k = true, .top_k = 20};
    struct stream_error error;
    char reason[256];

    other.override_generation_config = override;
    EXPECT_INT(defaults_make(&defaults, &other, &own, reason, sizeof reason), ==, 0);
    bound.defaults = &defaults;
    return completion_parse(completion, body, strlen(body), &bound, &error);
}

static void what_a_request_leaves_out_takes_the_servers_default(void)
{
    static struct completion completion;
    static const char given[] = "{\"temperature\":0.25,\"top_p\":0.5,\"min_p\":0.125,"
                                "\"repetition_penalty\":1.5}";

    EXPECT(parse_with(given, "{\"prompt\":\"a\",\"top_p\":null}", &completion));
    EXPECT(completion.sampling.temperature == 0.25f && completion.sampling.top_p == 0.5f);
    EXPECT(completion.sampling.min_p == 0.125f && completion.sampling.repetition_penalty == 1.5f);
    EXPECT_INT(completion.sampling.top_k, ==, 20); /* the model's own */
    EXPECT(completion.sampling.presence_penalty == 0 && completion.sampling.min_tokens == 0);
    EXPECT(parse_with(given,
                      "{\"prompt\":\"a\",\"temperature\":2,\"top_p\":1,\"min_p\":0,"
                      "\"top_k\":-1,\"repetition_penalty\":1}",
                      &completion));
    EXPECT(completion.sampling.temperature == 2 && completion.sampling.top_p == 1);
    EXPECT(completion.sampling.min_p == 0 && completion.sampling.repetition_penalty == 1);
    EXPECT_INT(completion.sampling.top_k, ==, -1);
}

static void an_operators_max_new_tokens_bounds_every_answer(void)
{
    static struct completion completion;
    static const char given[] = "{\"max_new_tokens\":8}";

    EXPECT(parse_with(given, "{\"prompt\":\"a\"}", &completion));
    EXPECT_INT(completion.max_tokens, ==, 8); /* 16 by itself */
    EXPECT(parse_with(given, "{\"prompt\":\"a\",\"max_tokens\":30}", &completion));
    EXPECT_INT(completion.max_tokens, ==, 8);
    EXPECT(parse_with(given, "{\"prompt\":\"a\",\"max_completion_tokens\":30}", &completion));
    EXPECT_INT(completion.max_tokens, ==, 8);
    EXPECT(parse_with(given, "{\"prompt\":\"a\",\"max_tokens\":3}", &completion));
    EXPECT_INT(completion.max_tokens, ==, 3);
    EXPECT(
        !parse_with(given, "{\"prompt\":\"a\",\"max_tokens\":30,\"min_tokens\":9}", &completion));
}

static void defaults_come_from_where_the_option_says(void)
{
    struct model_defaults own = {.has_temperature = true,
                                 .temperature = 0.6f,
                                 .has_max_new_tokens = true,
                                 .max_new_tokens = 5};
    struct config other = config;
    struct defaults defaults;
    char text[256];

    EXPECT_INT(defaults_make(&defaults, &other, &own, text, sizeof text), ==, 0);
    EXPECT_INT(defaults.output_limit, ==, 0); /* a model's own bounds nothing */
    defaults_describe(&defaults, text, sizeof text);
    EXPECT_STRING(text, "temperature=0.6");
    other.generation_config = "vllm";
    EXPECT_INT(defaults_make(&defaults, &other, &own, text, sizeof text), ==, 0);
    defaults_describe(&defaults, text, sizeof text);
    EXPECT_STRING(text, "none");
    other.override_generation_config = "{\"top_k\":7,\"temperature\":null}";
    EXPECT_INT(defaults_make(&defaults, &other, &own, text, sizeof text), ==, 0);
    defaults_describe(&defaults, text, sizeof text);
    EXPECT_STRING(text, "top_k=7");
    other.override_generation_config = "";
    other.generation_config = "/a/folder";
    EXPECT_STRING(defaults_folder(&other), "/a/folder");
    EXPECT_INT(defaults_make(&defaults, &other, &own, text, sizeof text), ==, 0);
    defaults_describe(&defaults, text, sizeof text);
    EXPECT_STRING(text, "temperature=0.6 max_new_tokens=5");
}

static void parameters_are_held_to_their_ranges(void)
{
    char body[256];

#define PARAMETER(type, field, fallback, least, greatest, help)                                    \
    snprintf(body, sizeof body, "{\"prompt\":\"a\",\"max_tokens\":2147483647,\"%s\":%.17g}",       \
             #field, (double)(least));                                                             \
    taken(body);                                                                                   \
    snprintf(body, sizeof body, "{\"prompt\":\"a\",\"%s\":%.17g}", #field, (double)(least)-1);     \
    refused(body, "invalid_value", #field);                                                        \
    snprintf(body, sizeof body, "{\"prompt\":\"a\",\"%s\":%.17g}", #field,                         \
             (double)(greatest) + 1);                                                              \
    refused(body, "invalid_value", #field);                                                        \
    snprintf(body, sizeof body, "{\"prompt\":\"a\",\"%s\":\"1\"}", #field);                        \
    refused(body, "invalid_type", #field);                                                         \
    snprintf(body, sizeof body, "{\"prompt\":\"a\",\"%s\":1e400}", #field);                        \
    refused(body, "invalid_value", #field);
    SAMPLING_PARAMETERS(PARAMETER)
#undef PARAMETER
}

static void wrong_types_are_refused_with_their_path(void)
{
    static const char *const strict[] = {"stream",
                                         "echo",
                                         "ignore_eos",
                                         "skip_special_tokens",
                                         "add_special_tokens",
                                         "include_stop_str_in_output",
                                         "return_token_ids",
                                         "return_tokens_as_token_ids"};
    char body[128];

    for (size_t i = 0; i < sizeof strict / sizeof strict[0]; i++) {
        snprintf(body, sizeof body, "{\"prompt\":\"a\",\"%s\":\"true\"}", strict[i]);
        refused(body, "invalid_type", strict[i]);
        snprintf(body, sizeof body, "{\"prompt\":\"a\",\"%s\":1}", strict[i]);
        refused(body, "invalid_type", strict[i]);
    }
    refused("{\"prompt\":\"a\",\"n\":true}", "invalid_type", "n");
    refused("{\"prompt\":\"a\",\"n\":1.5}", "invalid_type", "n");
    refused("{\"prompt\":\"a\",\"seed\":\"1\"}", "invalid_type", "seed");
    refused("{\"prompt\":\"a\",\"model\":1}", "invalid_type", "model");
    refused("{\"prompt\":{}}", "invalid_type", "prompt");
    refused("{\"prompt\":[\"a\",1]}", "invalid_type", "prompt[1]");
    refused("{\"prompt\":[1,\"a\"]}", "invalid_type", "prompt[1]");
    refused("{\"prompt\":[[1],[true]]}", "invalid_type", "prompt[1][0]");
    refused("{\"prompt\":\"a\",\"stop\":{}}", "invalid_type", "stop");
    refused("{\"prompt\":\"a\",\"stop\":[1]}", "invalid_type", "stop[0]");
    refused("{\"prompt\":\"a\",\"stop_token_ids\":1}", "invalid_type", "stop_token_ids");
    refused("{\"prompt\":\"a\",\"logit_bias\":[]}", "invalid_type", "logit_bias");
    refused("{\"prompt\":\"a\",\"logit_bias\":{\"1\":\"1\"}}", "invalid_type", "logit_bias.1");
    refused("{\"prompt\":\"a\",\"stream\":true,\"stream_options\":{\"include_usage\":1}}",
            "invalid_type", "stream_options.include_usage");
    refused("{\"prompt\":\"a\",\"response_format\":\"text\"}", "invalid_type", "response_format");
}

static void bad_values_are_refused_with_their_path(void)
{
    refused("{}", "missing_required_parameter", "prompt");
    refused("{\"prompt\":[]}", "invalid_value", "prompt");
    refused("{\"prompt\":[[]]}", "invalid_value", "prompt[0]");
    refused("{\"prompt\":[0,1000]}", "invalid_value", "prompt[1]");
    refused("{\"prompt\":[[0],[-1]]}", "invalid_value", "prompt[1][0]");
    refused("{\"prompt\":[1.5]}", "invalid_type", "prompt[0]");
    refused("{\"prompt\":\"a\",\"model\":\"other\"}", "model_not_found", "model");
    refused("{\"prompt\":\"a\",\"n\":0}", "invalid_value", "n");
    refused("{\"prompt\":\"a\",\"n\":129}", "invalid_value", "n");
    refused("{\"prompt\":\"a\",\"n\":1000000000}", "invalid_value", "n");
    refused("{\"prompt\":\"a\",\"n\":3,\"best_of\":2}", "invalid_value", "best_of");
    refused("{\"prompt\":\"a\",\"best_of\":2}", "unsupported_parameter", "best_of");
    refused("{\"prompt\":\"a\",\"max_tokens\":0}", "invalid_value", "max_tokens");
    refused("{\"prompt\":\"a\",\"max_tokens\":9223372036854775808}", "invalid_value", "max_tokens");
    refused("{\"prompt\":\"a\",\"min_tokens\":17}", "invalid_value", "min_tokens");
    refused("{\"prompt\":\"a\",\"logprobs\":21}", "invalid_value", "logprobs");
    refused("{\"prompt\":\"a\",\"logprobs\":-1}", "invalid_value", "logprobs");
    refused("{\"prompt\":\"a\",\"seed\":9223372036854775808}", "invalid_value", "seed");
    refused("{\"prompt\":\"a\",\"stop\":\"\"}", "invalid_value", "stop");
    refused("{\"prompt\":\"a\",\"stop\":[\"b\",\"\"]}", "invalid_value", "stop[1]");
    refused("{\"prompt\":\"a\",\"stop\":\"a\\u0000\"}", "invalid_value", "stop");
    refused("{\"prompt\":\"a\",\"stop_token_ids\":[1000]}", "invalid_value", "stop_token_ids[0]");
    refused("{\"prompt\":\"a\",\"logit_bias\":{\"1000\":1}}", "invalid_value", "logit_bias");
    refused("{\"prompt\":\"a\",\"logit_bias\":{\"-1\":1}}", "invalid_value", "logit_bias");
    refused("{\"prompt\":\"a\",\"logit_bias\":{\"\":1}}", "invalid_value", "logit_bias");
    refused("{\"prompt\":\"a\",\"logit_bias\":{\"1\":100.5}}", "invalid_value", "logit_bias.1");
    refused("{\"prompt\":\"a\",\"logit_bias\":{\"1\":1e400}}", "invalid_value", "logit_bias.1");
    refused("{\"prompt\":\"a\",\"stream_options\":{}}", "invalid_value", "stream_options");
    refused("{\"prompt\":\"a\",\"cache_salt\":\"\"}", "invalid_value", "cache_salt");
    refused("{\"prompt\":\"a\",\"response_format\":{}}", "missing_required_parameter",
            "response_format.type");
    refused("{\"prompt\":\"a\",\"response_format\":{\"type\":\"json_object\"}}",
            "unsupported_value", "response_format");
}

static void what_is_not_supported_is_refused_by_name(void)
{
    static const char *const name[] = {"suffix",
                                       "prompt_embeds",
                                       "prompt_logprobs",
                                       "use_beam_search",
                                       "structured_outputs",
                                       "guided_json",
                                       "guided_regex",
                                       "guided_choice",
                                       "guided_grammar",
                                       "bad_words",
                                       "allowed_token_ids",
                                       "logprob_token_ids",
                                       "truncate_prompt_tokens",
                                       "tools",
                                       "tool_choice",
                                       "functions",
                                       "messages"};
    char body[128];

    for (size_t i = 0; i < sizeof name / sizeof name[0]; i++) {
        snprintf(body, sizeof body, "{\"prompt\":\"a\",\"%s\":[1]}", name[i]);
        refused(body, "unsupported_parameter", name[i]);
        snprintf(body, sizeof body, "{\"prompt\":\"a\",\"%s\":\"x\"}", name[i]);
        refused(body, "unsupported_parameter", name[i]);
    }
}

static void refused_fields_that_ask_for_nothing_are_taken(void)
{
    taken("{\"prompt\":\"a\",\"suffix\":\"\",\"tools\":[],\"use_beam_search\":false,"
          "\"length_penalty\":1.0,\"guided_json\":null,\"prompt_logprobs\":null,\"best_of\":1,"
          "\"response_format\":{\"type\":\"text\"},\"structured_outputs\":{}}");
    refused("{\"prompt\":\"a\",\"length_penalty\":2}", "unsupported_parameter", "length_penalty");
}

static void unknown_fields_are_ignored(void)
{
    taken("{\"prompt\":\"a\",\"user\":{\"x\":[1]},\"metadata\":{},\"zzz\":1e400}");
}

static void whole_floats_are_integers(void)
{
    static struct completion completion;
    struct stream_error error;

    EXPECT(
        parse("{\"prompt\":\"a\",\"max_tokens\":3.0,\"n\":2e0,\"seed\":1e3}", &completion, &error));
    EXPECT_INT(completion.max_tokens, ==, 3);
    EXPECT_INT(completion.n, ==, 2);
    EXPECT_INT(completion.seed, ==, 1000);
    EXPECT(parse("{\"prompt\":\"a\",\"seed\":9007199254740993}", &completion, &error));
    EXPECT_INT(completion.seed, ==, 9007199254740993);
}

static void the_last_of_equal_names_counts(void)
{
    static struct completion completion;
    struct stream_error error;

    EXPECT(parse("{\"prompt\":\"a\",\"n\":9,\"n\":2,\"pro\\u006dpt\":[1,2]}", &completion, &error));
    EXPECT_INT(completion.n, ==, 2);
    EXPECT_INT(completion.prompt.kind, ==, JSON_LIST);
    /* Also when the first would have been an error. */
    EXPECT(parse("{\"n\":\"x\",\"prompt\":\"a\",\"n\":2}", &completion, &error));
}

static void every_prompt_becomes_a_job_in_order(void)
{
    static struct completion completion;
    struct stream_error error;

    EXPECT(parse("{\"prompt\":[\"a\\u0000b\",[3,4,5]],\"n\":2,\"stop\":[\"x\",\"yy\"],\"echo\":"
                 "true,\"logprobs\":3,\"stop_token_ids\":[9],\"logit_bias\":{\"5\":-1,\"6\":2,"
                 "\"5\":3},\"priority\":-4,\"cache_salt\":\"s\",\"max_tokens\":5}",
                 &completion, &error));
    struct job *first = jobs_of(&completion, &error);
    EXPECT(first != NULL);
    if (first == NULL)
        return;
    EXPECT_INT(first->text_bytes, ==, 3);
    EXPECT(memcmp(first->text, "a\0b", 3) == 0);
    EXPECT_INT(first->sampling.seed, ==, 7);
    EXPECT_INT(first->sampling.top_count, ==, 3);
    EXPECT_INT(first->sampling.bias_count, ==, 2);
    EXPECT(first->sampling.bias_token[0] == 5 && first->sampling.bias_value[0] == 3);
    EXPECT_INT(first->sampling.stop_token[0], ==, 9);
    EXPECT_INT(first->stop_token_count, ==, 1);
    EXPECT_INT(first->stop_count, ==, 2);
    EXPECT_STRING(first->stop[1], "yy");
    EXPECT(first->score_prompt && first->echo && first->output_max_given);
    EXPECT_INT(first->output_max, ==, 5);
    EXPECT_INT(first->priority, ==, -4);
    EXPECT(first->salt != 0);
    struct job *second = first->next;
    EXPECT(second != NULL);
    if (second == NULL)
        return;
    EXPECT(second->text == NULL && second->next == NULL);
    EXPECT_INT(second->token_count, ==, 3);
    EXPECT_INT(second->token[2], ==, 5);
    EXPECT_INT(second->prompt_index, ==, 1);
    EXPECT(second->salt == first->salt);
    free_jobs(first);
}

static void the_models_path_is_its_name_unless_it_has_others(void)
{
    char *name[] = {(char *)"tiny"};

    taken("{\"prompt\":\"a\",\"model\":\"/models/tiny.gguf\"}");
    refused("{\"prompt\":\"a\",\"model\":\"/models/tiny\"}", "model_not_found", "model");
    config.served_model_name.item = name;
    config.served_model_name.count = 1;
    taken("{\"prompt\":\"a\",\"model\":\"tiny\"}");
    taken("{\"prompt\":\"a\",\"model\":\"/models/tiny.gguf\"}");
    config.origin[CONFIG_served_model_name].source = CONFIG_BY_FLAG;
    taken("{\"prompt\":\"a\",\"model\":\"tiny\"}");
    refused("{\"prompt\":\"a\",\"model\":\"/models/tiny.gguf\"}", "model_not_found", "model");
    config.origin[CONFIG_served_model_name].source = CONFIG_BY_DEFAULT;
    config.served_model_name = (struct config_list){0};
}

static void long_prompts_are_refused_before_they_are_tokenised(void)
{
    char body[4096];
    size_t bytes = (size_t)sprintf(body, "{\"prompt\":[0");

    for (int i = 1; i < CONTEXT + 1; i++)
        bytes += (size_t)sprintf(body + bytes, ",%d", i);
    sprintf(body + bytes, "]}");
    refused(body, "context_length_exceeded", "prompt");
    body[bytes - 3] = ']';
    strcpy(body + bytes - 2, "}");
    taken(body);

    /* Text that is longer than a context full of the longest tokens. */
    bytes = (size_t)sprintf(body, "{\"prompt\":\"");
    memset(body + bytes, 'a', CONTEXT * 8 + 8);
    strcpy(body + bytes + CONTEXT * 8 + 8, "\"}");
    refused(body, "context_length_exceeded", "prompt");
    strcpy(body + bytes + CONTEXT * 8, "\"}");
    taken(body);
}

static void counts_are_capped_before_work_starts(void)
{
    size_t max = 1 << 20;
    char *body = malloc(max);
    size_t bytes = (size_t)sprintf(body, "{\"prompt\":[\"\"");

    for (int i = 0; i < 1024; i++)
        bytes += (size_t)sprintf(body + bytes, ",\"\"");
    strcpy(body + bytes, "]}");
    refused(body, "invalid_value", "prompt");

    bytes = (size_t)sprintf(body, "{\"prompt\":\"\",\"stop\":[\"a\"");
    for (int i = 0; i < 64; i++)
        bytes += (size_t)sprintf(body + bytes, ",\"a\"");
    strcpy(body + bytes, "]}");
    refused(body, "invalid_value", "stop");

    bytes = (size_t)sprintf(body, "{\"prompt\":\"\",\"stop_token_ids\":[1");
    for (int i = 0; i < 112; i++)
        bytes += (size_t)sprintf(body + bytes, ",1");
    strcpy(body + bytes, "]}");
    refused(body, "invalid_value", "stop_token_ids");

    bytes = (size_t)sprintf(body, "{\"prompt\":\"\",\"stop\":\"");
    memset(body + bytes, 'a', 5000);
    strcpy(body + bytes + 5000, "\"}");
    refused(body, "invalid_value", "stop");

    bytes = (size_t)sprintf(body, "{\"prompt\":\"\"");
    for (int i = 0; i < 4096; i++)
        bytes += (size_t)sprintf(body + bytes, ",\"x%d\":1", i);
    strcpy(body + bytes, "}");
    refused(body, "invalid_value", "");

    refused("{\"prompt\":[\"\",\"\",\"\",\"\",\"\",\"\",\"\",\"\",\"\"],\"n\":128}",
            "invalid_value", "n");
    free(body);
}

static void bodies_that_are_no_object_are_refused(void)
{
    refused("", "invalid_json", "");
    refused("[]", "invalid_json", "");
    refused("{\"prompt\":\"a\"} x", "invalid_json", "");
    refused("{\"prompt\":\"\xff\"}", "invalid_json", "");
}

static void documents_name_every_field(void)
{
    struct json text = {0};

    route_document(&text);
    json_bytes(&text, "", 1);
    EXPECT(strstr(text.text, "`max_tokens`") != NULL);
    EXPECT(strstr(text.text, "`stream_options.include_usage`") != NULL);
    EXPECT(strstr(text.text, "`repetition_penalty`") != NULL);
    EXPECT(strstr(text.text, "| `suffix` | refused |") != NULL);
    EXPECT(strstr(text.text, "`/v1/models/*`") != NULL);
    EXPECT(strstr(text.text, "`quire_requests_running`") != NULL);
    json_release(&text);
}

int main(void)
{
    if (config_defaults(&config, CONFIG_SERVE) < 0)
        return 1;
    config.model = "/models/tiny.gguf";
    TEST(a_prompt_alone_gets_every_default);
    TEST(null_is_the_same_as_absent);
    TEST(what_a_request_leaves_out_takes_the_servers_default);
    TEST(an_operators_max_new_tokens_bounds_every_answer);
    TEST(defaults_come_from_where_the_option_says);
    TEST(parameters_are_held_to_their_ranges);
    TEST(wrong_types_are_refused_with_their_path);
    TEST(bad_values_are_refused_with_their_path);
    TEST(what_is_not_supported_is_refused_by_name);
    TEST(refused_fields_that_ask_for_nothing_are_taken);
    TEST(unknown_fields_are_ignored);
    TEST(whole_floats_are_integers);
    TEST(the_last_of_equal_names_counts);
    TEST(every_prompt_becomes_a_job_in_order);
    TEST(the_models_path_is_its_name_unless_it_has_others);
    TEST(long_prompts_are_refused_before_they_are_tokenised);
    TEST(counts_are_capped_before_work_starts);
    TEST(bodies_that_are_no_object_are_refused);
    TEST(documents_name_every_field);
    config_release(&config);
    return test_report();
}
