/* What a client sends wrong: the right status and code, the name of the culprit, always JSON; and
 * the server goes on.
 */
#include "tests/e2e/ask.h"
#include "tests/fake_model.h"
#include "tests/test.h"

static struct server server;

/* All four members, as clients read them; `param` NULL: must be null. */
static void expect_error(const char *what, const struct client *client, int status,
                         const char *code, const char *param)
{
    cJSON *root = client->body != NULL ? cJSON_Parse(client->body) : NULL;
    const cJSON *error = ask_at(root, "error");
    char *type = client->head != NULL ? client_field(client, "Content-Type") : NULL;
    char *id = client->head != NULL ? client_field(client, "x-request-id") : NULL;
    bool good = client->status == status && cJSON_IsString(ask_at(error, "message")) &&
                ask_string(error, "message")[0] != '\0' && cJSON_IsString(ask_at(error, "type")) &&
                strcmp(ask_string(error, "code"), code) == 0 && type != NULL &&
                strncmp(type, "application/json", 16) == 0 && id != NULL;

    if (param != NULL)
        good = good && strcmp(ask_string(error, "param"), param) == 0;
    else
        good = good && cJSON_IsNull(ask_at(error, "param"));
    if (!good)
        printf("%.200s: wanted %d %s %s, got %d %.400s\n", what, status, code,
               param != NULL ? param : "null", client->status,
               client->body != NULL ? client->body : "nothing");
    EXPECT(good);
    free(type);
    free(id);
    cJSON_Delete(root);
}

static void expect_refused(const char *body, int status, const char *code, const char *param)
{
    struct client client;
    char *json = ask_json(body);

    client_call(&client, server.port, "POST", "/v1/completions", "", json);
    expect_error(body, &client, status, code, param);
    client_close(&client);
    free(json);
}

static void wrong_fields_are_named(void)
{
    static const struct {
        const char *body;
        const char *code;
        const char *param;
    } wrong[] = {
        {"{}", "missing_required_parameter", "prompt"},
        {"{'prompt': 5}", "invalid_type", "prompt"},
        {"{'prompt': {'a': 1}}", "invalid_type", "prompt"},
        {"{'prompt': []}", "invalid_value", "prompt"},
        {"{'prompt': [[]]}", "invalid_value", "prompt[0]"},
        {"{'prompt': ['a', 5]}", "invalid_type", "prompt[1]"},
        {"{'prompt': [1, 'a']}", "invalid_type", "prompt[1]"},
        {"{'prompt': [1, 2.5]}", "invalid_type", "prompt[1]"},
        {"{'prompt': [1, -1]}", "invalid_value", "prompt[1]"},
        {"{'prompt': [1, 100000]}", "invalid_value", "prompt[1]"},
        {"{'prompt': [[1], [2, 1e9]]}", "invalid_value", "prompt[1][1]"},
        {"{'prompt': 'a', 'max_tokens': 0}", "invalid_value", "max_tokens"},
        {"{'prompt': 'a', 'max_tokens': -1}", "invalid_value", "max_tokens"},
        {"{'prompt': 'a', 'max_tokens': '5'}", "invalid_type", "max_tokens"},
        {"{'prompt': 'a', 'max_tokens': 1.5}", "invalid_type", "max_tokens"},
        {"{'prompt': 'a', 'temperature': 2.5}", "invalid_value", "temperature"},
        {"{'prompt': 'a', 'temperature': -0.1}", "invalid_value", "temperature"},
        {"{'prompt': 'a', 'temperature': true}", "invalid_type", "temperature"},
        {"{'prompt': 'a', 'temperature': '1'}", "invalid_type", "temperature"},
        {"{'prompt': 'a', 'top_p': 1.01}", "invalid_value", "top_p"},
        {"{'prompt': 'a', 'top_k': -2}", "invalid_value", "top_k"},
        {"{'prompt': 'a', 'top_k': [1]}", "invalid_type", "top_k"},
        {"{'prompt': 'a', 'min_p': 2}", "invalid_value", "min_p"},
        {"{'prompt': 'a', 'repetition_penalty': 0}", "invalid_value", "repetition_penalty"},
        {"{'prompt': 'a', 'presence_penalty': 3}", "invalid_value", "presence_penalty"},
        {"{'prompt': 'a', 'frequency_penalty': -3}", "invalid_value", "frequency_penalty"},
        {"{'prompt': 'a', 'n': 0}", "invalid_value", "n"},
        {"{'prompt': 'a', 'n': 1000}", "invalid_value", "n"},
        {"{'prompt': 'a', 'best_of': 3}", "unsupported_parameter", "best_of"},
        {"{'prompt': 'a', 'stream': 'true'}", "invalid_type", "stream"},
        {"{'prompt': 'a', 'stream_options': {'include_usage': true}}", "invalid_value",
         "stream_options"},
        {"{'prompt': 'a', 'stream': true, 'stream_options': {'include_usage': 1}}", "invalid_type",
         "stream_options.include_usage"},
        {"{'prompt': 'a', 'stop': 5}", "invalid_type", "stop"},
        {"{'prompt': 'a', 'stop': ''}", "invalid_value", "stop"},
        {"{'prompt': 'a', 'stop': ['x', '']}", "invalid_value", "stop[1]"},
        {"{'prompt': 'a', 'stop': ['x', 7]}", "invalid_type", "stop[1]"},
        {"{'prompt': 'a', 'stop_token_ids': [-1]}", "invalid_value", "stop_token_ids[0]"},
        {"{'prompt': 'a', 'logit_bias': {'x': 1}}", "invalid_value", "logit_bias"},
        {"{'prompt': 'a', 'logit_bias': {'5': 101}}", "invalid_value", "logit_bias.5"},
        {"{'prompt': 'a', 'logit_bias': {'5': 'a'}}", "invalid_type", "logit_bias.5"},
        {"{'prompt': 'a', 'logit_bias': {'99999': 1}}", "invalid_value", "logit_bias"},
        {"{'prompt': 'a', 'logprobs': 100}", "invalid_value", "logprobs"},
        {"{'prompt': 'a', 'logprobs': true}", "invalid_type", "logprobs"},
        {"{'prompt': 'a', 'seed': 'x'}", "invalid_type", "seed"},
        {"{'prompt': 'a', 'suffix': 'b'}", "unsupported_parameter", "suffix"},
        {"{'prompt': 'a', 'use_beam_search': true}", "unsupported_parameter", "use_beam_search"},
        {"{'prompt': 'a', 'min_tokens': 9, 'max_tokens': 4}", "invalid_value", "min_tokens"},
        {"{'prompt': 'a', 'echo': 1}", "invalid_type", "echo"},
    };

    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++)
        expect_refused(wrong[i].body, 400, wrong[i].code, wrong[i].param);
}

static void what_is_no_json_object_is_refused(void)
{
    static const char *const wrong[] = {
        "",
        "{",
        "[]",
        "5",
        "null",
        "{'prompt': 'a'",
        "{'prompt': 'a',}",
        "{'prompt': 'a'} x",
        "{'prompt': NaN}",
        "{'prompt': '\x01'}",
        "{prompt: 'a'}",
        "{'prompt': '\xFF\xFE'}",
        "{'prompt': '\\ud800'}",
    };

    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++)
        expect_refused(wrong[i], 400, "invalid_json", NULL);
    char deep[4001];
    memset(deep, '[', 4000);
    deep[4000] = '\0';
    expect_refused(deep, 400, "invalid_json", NULL);
}

static void absent_null_and_unknown_fields_change_nothing(void)
{
    static const char *const good[] = {
        "{'prompt': 'a', 'max_tokens': 2, 'temperature': 0}",
        "{'prompt': 'a', 'max_tokens': 2.0, 'temperature': 0, 'stop': null, 'logprobs': null, "
        "'n': null, 'seed': null, 'stream': null, 'logit_bias': null, 'suffix': null}",
        "{'prompt': 'a', 'max_tokens': 2, 'temperature': 0, 'store': true, 'metadata': {'x': [1]}, "
        "'user': 'me', 'service_tier': 'auto'}",
        "{'model': '', 'prompt': 'a', 'max_tokens': 2, 'temperature': 0}",
    };
    char text[64] = "";

    for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
        cJSON *root = ask_completion(&server, good[i]);
        if (i == 0)
            snprintf(text, sizeof(text), "%s", ask_string(root, "choices/0/text"));
        EXPECT(root != NULL);
        EXPECT_STRING(ask_string(root, "choices/0/text"), text);
        cJSON_Delete(root);
    }
}

static void an_unknown_model_is_not_found(void)
{
    expect_refused("{'model': 'other', 'prompt': 'a'}", 404, "model_not_found", "model");
}

static void what_does_not_fit_the_context_is_refused_in_known_words(void)
{
    struct client client;
    char *body = malloc(40000);
    size_t at = (size_t)sprintf(body, "{\"prompt\": [300");

    for (int i = 0; i < 600; i++)
        at += (size_t)sprintf(body + at, ",300");
    sprintf(body + at, "]}");
    client_call(&client, server.port, "POST", "/v1/completions", "", body);
    expect_error("a long prompt", &client, 400, "context_length_exceeded", "prompt");
    EXPECT(client_body_has(&client, "maximum context length is 512 tokens"));
    client_close(&client);
    expect_refused("{'prompt': 'a', 'max_tokens': 600}", 400, "context_length_exceeded", "prompt");
    memset(body, 'a', 30000);
    memcpy(body, "{\"prompt\": \"", 12);
    strcpy(body + 30000, "\"}");
    client_call(&client, server.port, "POST", "/v1/completions", "", body);
    expect_error("a long text", &client, 400, "context_length_exceeded", "prompt");
    client_close(&client);
    free(body);
}

static void expect_call(const char *method, const char *path, const char *fields, const char *body,
                        int status, const char *code)
{
    struct client client;

    client_call(&client, server.port, method, path, fields, body);
    expect_error(path, &client, status, code, NULL);
    client_close(&client);
}

static void wrong_paths_methods_types_and_sizes_have_their_status(void)
{
    struct client client;
    char *allow, *large = malloc(200001);

    expect_call("GET", "/v1/nothing", "", NULL, 404, "unknown_url");
    expect_call("POST", "/", "", "{}", 404, "unknown_url");
    expect_call("POST", "/v1/completions", "Content-Type: text/plain\r\n", "{}", 415,
                "unsupported_media_type");
    expect_call("POST", "/v1/completions", "Content-Type: application/x-www-form-urlencoded\r\n",
                "{\"prompt\": \"a\"}", 415, "unsupported_media_type");
    client_call(&client, server.port, "DELETE", "/v1/completions", "", NULL);
    expect_error("DELETE", &client, 405, "method_not_allowed", NULL);
    allow = client_field(&client, "Allow");
    EXPECT(allow != NULL && strstr(allow, "POST") != NULL);
    free(allow);
    client_close(&client);
    memset(large, ' ', 200000);
    large[200000] = '\0';
    expect_call("POST", "/v1/completions", "", large, 413, "request_too_large");
    free(large);
}

static void a_caller_without_the_key_stays_outside(void)
{
    struct server guarded = server_start("--api-key right");
    struct client client;

    client_call(&client, guarded.port, "POST", "/v1/completions", "", "{\"prompt\": \"a\"}");
    expect_error("no key", &client, 401, "invalid_api_key", NULL);
    EXPECT(client_body_has(&client, "Incorrect API key provided"));
    client_close(&client);
    client_call(&client, guarded.port, "POST", "/v1/completions", "Authorization: Bearer wrong\r\n",
                "{\"prompt\": \"a\"}");
    expect_error("a wrong key", &client, 401, "invalid_api_key", NULL);
    client_close(&client);
    client_call(&client, guarded.port, "POST", "/v1/completions", "Authorization: bearer right\r\n",
                "{\"prompt\": \"a\", \"max_tokens\": 1}");
    EXPECT_INT(client.status, ==, 200);
    client_close(&client);
    client_call(&client, guarded.port, "GET", "/health", "", NULL);
    EXPECT_INT(client.status, ==, 200);
    client_close(&client);
    EXPECT_INT(server_stop(&guarded), ==, 0);
}

/* Bytes that are no HTTP, or only half of it: the connection ends, the server does not. */
static void rubbish_on_the_wire_harms_nobody(void)
{
    static const char *const rubbish[] = {
        "\r\n\r\n\r\n",
        "GET\r\n\r\n",
        "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n",
        "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999999\r\n\r\n{",
        "POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        "POST /load HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n{}",
        "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    };
    struct client client;

    for (size_t i = 0; i < sizeof(rubbish) / sizeof(rubbish[0]); i++) {
        EXPECT(client_open(&client, server.port));
        client_send_raw(&client, rubbish[i], strlen(rubbish[i]));
        client_feed(&client);
        EXPECT(client.status == 0 || client.status >= 400);
        client_close(&client);
    }
    client_call(&client, server.port, "GET", "/health", "", NULL);
    EXPECT_INT(client.status, ==, 200);
    client_close(&client);
}

static void errors_are_counted_by_their_codes(void)
{
    static const char wrong[] = "quire_request_errors_total{code=\"invalid_type\"}";
    static const char unknown[] = "quire_request_errors_total{code=\"unknown_url\"}";
    double before = server_metric(&server, wrong), others = server_metric(&server, unknown);
    struct client client;

    expect_refused("{'prompt': {}}", 400, "invalid_type", "prompt");
    expect_refused("{'prompt': {}}", 400, "invalid_type", "prompt");
    EXPECT(before >= 0 && server_metric(&server, wrong) == before + 2);
    client_call(&client, server.port, "GET", "/nothing/here", "", NULL);
    client_close(&client);
    EXPECT(others >= 0 && server_metric(&server, unknown) == others + 1);
    EXPECT(server_metric(&server, "quire_request_errors_total{code=\"other\"}") == 0);
}

/* ---- the smaller endpoints ---- */

static void models_health_and_version_answer(void)
{
    struct client client;
    cJSON *root;

    client_call(&client, server.port, "GET", "/v1/models", "", NULL);
    EXPECT_INT(client.status, ==, 200);
    root = cJSON_Parse(client.body);
    EXPECT_STRING(ask_string(root, "object"), "list");
    EXPECT_STRING(ask_string(root, "data/0/id"), "fake");
    EXPECT_INT(ask_number(root, "data/0/max_model_len"), ==, 512);
    cJSON_Delete(root);
    client_close(&client);
    client_call(&client, server.port, "GET", "/v1/models/fake", "", NULL);
    EXPECT_INT(client.status, ==, 200);
    client_close(&client);
    client_call(&client, server.port, "GET", "/version", "", NULL);
    EXPECT_INT(client.status, ==, 200);
    client_close(&client);
    client_call(&client, server.port, "HEAD", "/health", "Connection: close\r\n", NULL);
    EXPECT_INT(client.status, ==, 200);
    client_close(&client);
}

static void texts_become_ids_and_ids_texts(void)
{
    int status;
    cJSON *root = ask(&server, "/tokenize", "{'prompt': 'Hello world!'}", &status);
    static struct ask_answer want;
    char body[512];
    size_t at = 0;

    ask_expected(&want, "Hello world!", NULL, 0, 1, true);
    EXPECT_INT(status, ==, 200);
    EXPECT_INT(ask_number(root, "count"), ==, want.prompt_count);
    EXPECT_INT(ask_number(root, "max_model_len"), ==, 512);
    for (int32_t i = 0; i < want.prompt_count; i++) {
        char path[32];
        snprintf(path, sizeof(path), "tokens/%d", i);
        EXPECT_INT(ask_number(root, path), ==, want.prompt[i]);
        at += (size_t)snprintf(body + at, sizeof(body) - at, "%s%d", i > 0 ? "," : "",
                               want.prompt[i]);
    }
    cJSON_Delete(root);
    char list[600];
    snprintf(list, sizeof(list), "{'tokens': [%s]}", body);
    root = ask(&server, "/detokenize", list, &status);
    EXPECT_INT(status, ==, 200);
    EXPECT_STRING(ask_string(root, "prompt"), "<s>Hello world!");
    cJSON_Delete(root);
}

static void after_all_that_nothing_is_left(void)
{
    EXPECT(server_metric_becomes(&server, "quire_kv_blocks{state=\"used\"}", 0, 2000));
    EXPECT_INT(fake_model_faults(), ==, 0);
    EXPECT_INT(server_stop(&server), ==, 0);
}

int main(void)
{
    server = server_start("--max-model-len 512 --max-body-bytes 100000");
    TEST(wrong_fields_are_named);
    TEST(what_is_no_json_object_is_refused);
    TEST(absent_null_and_unknown_fields_change_nothing);
    TEST(an_unknown_model_is_not_found);
    TEST(what_does_not_fit_the_context_is_refused_in_known_words);
    TEST(wrong_paths_methods_types_and_sizes_have_their_status);
    TEST(a_caller_without_the_key_stays_outside);
    TEST(rubbish_on_the_wire_harms_nobody);
    TEST(errors_are_counted_by_their_codes);
    TEST(models_health_and_version_answer);
    TEST(texts_become_ids_and_ids_texts);
    TEST(after_all_that_nothing_is_left);
    return test_report();
}
