/* POST /v1/completions over a socket, against what the fake model must answer. */
#include "tests/e2e/ask.h"
#include "tests/fake_model.h"
#include "tests/test.h"

#include <math.h>

static struct server server;

/* Greedy text of a prompt, from the rule; good until the next call. */
static const struct ask_answer *expected(const char *text, int32_t token_max)
{
    static struct ask_answer answer;

    ask_expected(&answer, text, NULL, 0, token_max, true);
    return &answer;
}

/* The rest of a body that asks for `token_max` greedy tokens. */
#define GREEDY(token_max) "'temperature': 0, 'ignore_eos': true, 'max_tokens': " #token_max

static void a_prompt_is_continued_token_by_token(void)
{
    cJSON *root =
        ask_completion(&server, "{'model': 'fake', 'prompt': 'Hello world', " GREEDY(40) "}");
    const struct ask_answer *want = expected("Hello world", 40);

    EXPECT_STRING(ask_string(root, "choices/0/text"), want->text);
    EXPECT_STRING(ask_string(root, "choices/0/finish_reason"), "length");
    EXPECT_STRING(ask_string(root, "object"), "text_completion");
    EXPECT_STRING(ask_string(root, "model"), "fake");
    EXPECT(strncmp(ask_string(root, "id"), "cmpl-", 5) == 0);
    EXPECT(ask_number(root, "created") > 1e9);
    EXPECT(cJSON_IsNull(ask_at(root, "choices/0/logprobs")));
    EXPECT_INT(ask_number(root, "usage/prompt_tokens"), ==, want->prompt_count);
    EXPECT_INT(ask_number(root, "usage/completion_tokens"), ==, 40);
    EXPECT_INT(ask_number(root, "usage/total_tokens"), ==, want->prompt_count + 40);
    cJSON_Delete(root);
}

static void a_stream_says_what_the_whole_reply_says(void)
{
    static struct ask_stream stream;
    const struct ask_answer *want = expected("Once upon a time", 60);

    EXPECT(ask_streamed(&server,
                        "{'prompt': 'Once upon a time', 'stream': true, " GREEDY(
                            60) ", 'stream_options': {'include_usage': true}}",
                        &stream));
    EXPECT_STRING(stream.broken, "");
    EXPECT_STRING(stream.choice[0].text, want->text);
    EXPECT_STRING(stream.choice[0].finish, "length");
    EXPECT_INT(stream.choice[0].finish_count, ==, 1);
    EXPECT(stream.done);
    EXPECT_INT(stream.usage_count, ==, 1);
    EXPECT_INT(stream.prompt_tokens, ==, want->prompt_count);
    EXPECT_INT(stream.completion_tokens, ==, 60);
    EXPECT_INT(stream.total_tokens, ==, want->prompt_count + 60);
}

static void usage_comes_only_when_asked_for(void)
{
    static struct ask_stream stream;

    EXPECT(ask_streamed(&server, "{'prompt': 'a', 'stream': true, " GREEDY(4) "}", &stream));
    EXPECT_STRING(stream.broken, "");
    EXPECT_INT(stream.usage_count, ==, 0);
    EXPECT(stream.done);
    EXPECT(ask_streamed(
        &server,
        "{'prompt': 'a', 'stream': true, " GREEDY(4) ", 'stream_options': {'include_usage': true, "
                                                     "'continuous_usage_stats': true}}",
        &stream));
    EXPECT_INT(stream.usage_count, ==, stream.event_count - 1);
}

/* Of many prompts some end by themselves; text and reason are those of the rule. */
static void an_end_token_stops_and_is_counted(void)
{
    int ended = 0;

    for (int i = 0; i < 60; i++) {
        static struct ask_answer want;
        char prompt[32], body[128];
        snprintf(prompt, sizeof(prompt), "the %d of %d", i, i * i);
        snprintf(body, sizeof(body), "{'prompt': '%s', 'temperature': 0, 'max_tokens': 50}",
                 prompt);
        ask_expected(&want, prompt, NULL, 0, 50, false);
        cJSON *root = ask_completion(&server, body);
        EXPECT_STRING(ask_string(root, "choices/0/text"), want.text);
        EXPECT_STRING(ask_string(root, "choices/0/finish_reason"), want.finish);
        EXPECT_INT(ask_number(root, "usage/completion_tokens"), ==, want.token_count);
        EXPECT(cJSON_IsNull(ask_at(root, "choices/0/stop_reason")));
        ended += strcmp(want.finish, "stop") == 0;
        cJSON_Delete(root);
    }
    EXPECT(ended > 5 && ended < 55);
}

static void prompts_may_be_ids_and_lists(void)
{
    static struct ask_answer want;
    static const int32_t ids[] = {300, 301, 302, 7};
    cJSON *root = ask_completion(&server, "{'prompt': [300, 301, 302, 7], " GREEDY(12) "}");

    ask_expected(&want, NULL, ids, 4, 12, true);
    EXPECT_STRING(ask_string(root, "choices/0/text"), want.text);
    EXPECT_INT(ask_number(root, "usage/prompt_tokens"), ==, 4); /* no BOS is added */
    cJSON_Delete(root);

    root = ask_completion(&server, "{'prompt': [[300, 301, 302, 7], [300]], " GREEDY(12) "}");
    EXPECT_STRING(ask_string(root, "choices/0/text"), want.text);
    ask_expected(&want, NULL, ids, 1, 12, true);
    EXPECT_STRING(ask_string(root, "choices/1/text"), want.text);
    EXPECT_INT(ask_number(root, "choices/1/index"), ==, 1);
    EXPECT_INT(ask_number(root, "usage/prompt_tokens"), ==, 5);
    EXPECT_INT(ask_number(root, "usage/completion_tokens"), ==, 24);
    cJSON_Delete(root);

    root = ask_completion(&server, "{'prompt': ['one', 'two', 'one'], " GREEDY(12) "}");
    EXPECT_STRING(ask_string(root, "choices/0/text"), expected("one", 12)->text);
    EXPECT_STRING(ask_string(root, "choices/1/text"), expected("two", 12)->text);
    EXPECT_STRING(ask_string(root, "choices/2/text"), expected("one", 12)->text);
    cJSON_Delete(root);
}

static void n_answers_share_a_prompt_and_differ_by_their_seeds(void)
{
    cJSON *root = ask_completion(
        &server, "{'prompt': 'Hello', 'n': 4, 'seed': 7, 'ignore_eos': true, 'max_tokens': 30}");

    EXPECT_INT(cJSON_GetArraySize(ask_at(root, "choices")), ==, 4);
    EXPECT_INT(ask_number(root, "usage/completion_tokens"), ==, 120);
    EXPECT_INT(ask_number(root, "usage/prompt_tokens"), ==, expected("Hello", 1)->prompt_count);
    for (int i = 0; i < 4; i++) {
        char body[160], path[32];
        snprintf(body, sizeof(body),
                 "{'prompt': 'Hello', 'seed': %d, 'ignore_eos': true, 'max_tokens': 30}", 7 + i);
        snprintf(path, sizeof(path), "choices/%d/text", i);
        cJSON *alone = ask_completion(&server, body);
        EXPECT_STRING(ask_string(alone, "choices/0/text"), ask_string(root, path));
        cJSON_Delete(alone);
    }
    EXPECT(strcmp(ask_string(root, "choices/0/text"), ask_string(root, "choices/1/text")) != 0);
    cJSON_Delete(root);
}

static void greedy_answers_of_one_prompt_are_equal(void)
{
    static struct ask_stream stream;
    const struct ask_answer *want = expected("Hello the world and the rest of it", 50);

    EXPECT(ask_streamed(
        &server,
        "{'prompt': 'Hello the world and the rest of it', 'n': 5, 'stream': true, " GREEDY(50) "}",
        &stream));
    EXPECT_STRING(stream.broken, "");
    EXPECT_INT(stream.choice_count, ==, 5);
    for (int i = 0; i < 5; i++) {
        EXPECT_STRING(stream.choice[i].text, want->text);
        EXPECT_INT(stream.choice[i].finish_count, ==, 1);
    }
}

static void a_seed_repeats_its_draws(void)
{
    static const char body[] = "{'prompt': 'x', 'seed': 42, 'temperature': 1.5, 'top_p': 0.9, "
                               "'top_k': 50, 'ignore_eos': true, 'max_tokens': 40}";
    static const char none[] = "{'prompt': 'x', 'temperature': 1.5, 'max_tokens': 40, "
                               "'ignore_eos': true}";
    cJSON *first = ask_completion(&server, body), *second = ask_completion(&server, body);
    cJSON *third = ask_completion(&server, none), *fourth = ask_completion(&server, none);

    EXPECT_STRING(ask_string(first, "choices/0/text"), ask_string(second, "choices/0/text"));
    EXPECT(ask_string(first, "choices/0/text")[0] != '\0');
    EXPECT(strcmp(ask_string(third, "choices/0/text"), ask_string(fourth, "choices/0/text")) != 0);
    cJSON_Delete(first);
    cJSON_Delete(second);
    cJSON_Delete(third);
    cJSON_Delete(fourth);
}

/* ---- stop strings ---- */

/* Stops at every substring of a known text, whole and streamed. */
static void stop_strings_cut_across_tokens(void)
{
    const struct ask_answer *want = expected("Once", 80);
    size_t bytes = strlen(want->text);

    for (size_t at = 6; at + 9 < bytes && test_check_failed == 0; at += 5) {
        static struct ask_stream stream;
        char stop[16] = "", body[256], cut[ASK_TEXT_MAX];
        size_t part = 2 + at % 7;
        snprintf(stop, sizeof(stop), "%.*s", (int)part, want->text + at);
        if (strpbrk(stop, "\n\"'\\") != NULL || (want->text[at] & 0xC0) == 0x80 ||
            (want->text[at + part] & 0xC0) == 0x80)
            continue; /* would need escapes, or cuts a character */
        size_t found = (size_t)(strstr(want->text, stop) - want->text);
        snprintf(cut, sizeof(cut), "%.*s", (int)found, want->text);
        snprintf(body, sizeof(body),
                 "{'prompt': 'Once', 'stop': ['%s', 'never there'], " GREEDY(80) "}", stop);
        cJSON *root = ask_completion(&server, body);
        EXPECT_STRING(ask_string(root, "choices/0/text"), cut);
        EXPECT_STRING(ask_string(root, "choices/0/finish_reason"), "stop");
        EXPECT_STRING(ask_string(root, "choices/0/stop_reason"), stop);
        EXPECT(ask_number(root, "usage/completion_tokens") < 80);

        snprintf(body, sizeof(body),
                 "{'prompt': 'Once', 'stop': '%s', 'stream': true, 'stream_options': "
                 "{'include_usage': true}, " GREEDY(80) "}",
                 stop);
        EXPECT(ask_streamed(&server, body, &stream));
        EXPECT_STRING(stream.broken, "");
        EXPECT_STRING(stream.choice[0].text, cut);
        EXPECT_STRING(stream.choice[0].finish, "stop");
        EXPECT_INT(stream.completion_tokens, ==, ask_number(root, "usage/completion_tokens"));
        cJSON_Delete(root);
    }
}

static void the_stop_string_stays_in_the_text_when_asked(void)
{
    const struct ask_answer *want = expected("Once", 80);
    char stop[8] = "", body[256], cut[ASK_TEXT_MAX];
    size_t at = 20;

    while (strpbrk(stop, "\n\"'\\") != NULL || stop[0] == '\0' || (stop[0] & 0x80) != 0 ||
           (stop[3] & 0x80) != 0)
        snprintf(stop, 5, "%s", want->text + at++);
    size_t found = (size_t)(strstr(want->text, stop) - want->text);
    snprintf(cut, sizeof(cut), "%.*s", (int)(found + strlen(stop)), want->text);
    snprintf(body, sizeof(body),
             "{'prompt': 'Once', 'stop': '%s', 'include_stop_str_in_output': true, " GREEDY(80) "}",
             stop);
    cJSON *root = ask_completion(&server, body);
    EXPECT_STRING(ask_string(root, "choices/0/text"), cut);
    cJSON_Delete(root);
}

/* A stop string that is never completed is only held back, not lost. */
static void text_held_back_for_a_stop_comes_in_the_end(void)
{
    static struct ask_stream stream;
    const struct ask_answer *want = expected("Once", 30);
    char body[512], tail[64], *json_tail;

    snprintf(tail, sizeof(tail), "%s and then some", want->text + strlen(want->text) - 5);
    cJSON *string = cJSON_CreateString(tail);
    json_tail = cJSON_PrintUnformatted(string);
    snprintf(body, sizeof(body), "{'prompt': 'Once', 'stop': %s, 'stream': true, " GREEDY(30) "}",
             json_tail);
    EXPECT(ask_streamed(&server, body, &stream));
    EXPECT_STRING(stream.choice[0].text, want->text);
    EXPECT_STRING(stream.choice[0].finish, "length");
    free(json_tail);
    cJSON_Delete(string);
}

static void stop_ids_stop_and_are_named(void)
{
    const struct ask_answer *want = expected("two", 40);
    int32_t first = 0;
    char body[160];

    while (want->token[first] != want->token[20])
        first++;
    snprintf(body, sizeof(body), "{'prompt': 'two', 'stop_token_ids': [%d], " GREEDY(40) "}",
             want->token[20]);
    cJSON *root = ask_completion(&server, body);
    EXPECT_STRING(ask_string(root, "choices/0/finish_reason"), "stop");
    EXPECT_INT(ask_number(root, "choices/0/stop_reason"), ==, want->token[20]);
    EXPECT_INT(ask_number(root, "usage/completion_tokens"), ==, first + 1);
    cJSON_Delete(root);
}

/* ---- sampling fields ---- */

static void a_bias_forces_and_forbids_tokens(void)
{
    cJSON *root = ask_completion(
        &server,
        "{'prompt': 'x', 'logit_bias': {'300': 100}, 'return_token_ids': true, " GREEDY(3) "}");

    for (int i = 0; i < 3; i++) {
        char path[48];
        snprintf(path, sizeof(path), "choices/0/token_ids/%d", i);
        EXPECT_INT(ask_number(root, path), ==, 300);
    }
    EXPECT_INT(cJSON_GetArraySize(ask_at(root, "choices/0/prompt_token_ids")), ==, 2);
    EXPECT_INT(ask_number(root, "choices/0/prompt_token_ids/0"), ==, FAKE_BOS);
    cJSON_Delete(root);
}

static void no_end_comes_before_min_tokens(void)
{
    cJSON *root = ask_completion(
        &server, "{'prompt': 'x', 'logit_bias': {'2': 100}, 'temperature': 0, 'min_tokens': 9, "
                 "'max_tokens': 20}");

    EXPECT_INT(ask_number(root, "usage/completion_tokens"), ==, 10);
    EXPECT_STRING(ask_string(root, "choices/0/finish_reason"), "stop");
    cJSON_Delete(root);
}

static void penalties_keep_tokens_from_coming_back(void)
{
    cJSON *root = ask_completion(
        &server,
        "{'prompt': 'x', 'logit_bias': {'300': 5, '301': 5}, 'presence_penalty': 2, "
        "'frequency_penalty': 2, 'repetition_penalty': 3, 'return_token_ids': true, " GREEDY(
            30) "}");
    int count = 0;

    for (int i = 0; i < 30; i++) {
        char path[48];
        snprintf(path, sizeof(path), "choices/0/token_ids/%d", i);
        count += ask_number(root, path) == 300;
    }
    EXPECT(count >= 1 && count < 6);
    cJSON_Delete(root);
}

/* ---- log-probabilities ---- */

static void logprobs_are_those_of_the_model(void)
{
    static struct ask_answer want;
    static int32_t prefix[ASK_TOKEN_MAX];
    cJSON *root = ask_completion(
        &server,
        "{'prompt': 'Hello', 'logprobs': 3, 'return_tokens_as_token_ids': true, " GREEDY(10) "}");

    ask_expected(&want, "Hello", NULL, 0, 10, true);
    memcpy(prefix, want.prompt, sizeof(want.prompt));
    EXPECT_INT(cJSON_GetArraySize(ask_at(root, "choices/0/logprobs/tokens")), ==, 10);
    for (int i = 0; i < 10; i++) {
        char path[64], name[32];
        float logprob = fake_model_logprob(prefix, want.prompt_count + i, want.token[i]);
        snprintf(path, sizeof(path), "choices/0/logprobs/token_logprobs/%d", i);
        EXPECT(fabs(ask_number(root, path) - logprob) < 1e-5);
        snprintf(path, sizeof(path), "choices/0/logprobs/tokens/%d", i);
        snprintf(name, sizeof(name), "token_id:%d", want.token[i]);
        EXPECT_STRING(ask_string(root, path), name);
        snprintf(path, sizeof(path), "choices/0/logprobs/top_logprobs/%d", i);
        const cJSON *top = ask_at(root, path);
        EXPECT_INT(cJSON_GetArraySize(top), ==, 3);
        EXPECT(fabs(ask_number(top, name) - logprob) < 1e-5);
        for (const cJSON *entry = top != NULL ? top->child : NULL; entry; entry = entry->next)
            EXPECT(entry->valuedouble <= ask_number(top, name));
        prefix[want.prompt_count + i] = want.token[i];
    }
    cJSON_Delete(root);
}

/* The contract of lm-eval: prompt ids, echo, one token more. */
static void echo_scores_the_prompt(void)
{
    static const int32_t ids[] = {1, 305, 310, 299, 320, 268};
    cJSON *root = ask_completion(&server, "{'prompt': [1, 305, 310, 299, 320, 268], 'echo': true, "
                                          "'logprobs': 1, 'temperature': 0, 'max_tokens': 1}");
    const cJSON *logprobs = ask_at(root, "choices/0/logprobs");

    EXPECT_INT(cJSON_GetArraySize(ask_at(logprobs, "tokens")), ==, 7);
    EXPECT_INT(cJSON_GetArraySize(ask_at(logprobs, "token_logprobs")), ==, 7);
    EXPECT_INT(cJSON_GetArraySize(ask_at(logprobs, "top_logprobs")), ==, 7);
    EXPECT_INT(cJSON_GetArraySize(ask_at(logprobs, "text_offset")), ==, 7);
    EXPECT(cJSON_IsNull(ask_at(logprobs, "token_logprobs/0")));
    EXPECT(cJSON_IsNull(ask_at(logprobs, "top_logprobs/0")));
    for (int i = 1; i < 6; i++) {
        char path[48];
        snprintf(path, sizeof(path), "token_logprobs/%d", i);
        EXPECT(fabs(ask_number(logprobs, path) - fake_model_logprob(ids, i, ids[i])) < 1e-5);
    }
    cJSON_Delete(root);
}

static void echo_alone_puts_the_prompt_in_front(void)
{
    cJSON *root =
        ask_completion(&server, "{'prompt': 'Hello  world', 'echo': true, " GREEDY(10) "}");
    char want[ASK_TEXT_MAX + 64];

    snprintf(want, sizeof(want), "Hello  world%s", expected("Hello  world", 10)->text);
    EXPECT_STRING(ask_string(root, "choices/0/text"), want);
    EXPECT_INT(ask_number(root, "usage/completion_tokens"), ==, 10);
    cJSON_Delete(root);
    root = ask_completion(&server, "{'prompt': 'Hello', 'echo': true, 'max_tokens': 0, "
                                   "'logprobs': 0}");
    EXPECT_STRING(ask_string(root, "choices/0/text"), "Hello");
    EXPECT_INT(ask_number(root, "usage/completion_tokens"), ==, 0);
    cJSON_Delete(root);
}

/* ---- prefixes ---- */

static void a_prefix_is_found_again(void)
{
    char body[1200], prompt[800];
    cJSON *first, *second;

    for (size_t i = 0; i + 1 < sizeof(prompt); i++)
        prompt[i] = "etaoinshrdlu"[i * i % 12];
    prompt[sizeof(prompt) - 1] = '\0';
    snprintf(body, sizeof(body), "{'prompt': '%s', " GREEDY(20) "}", prompt);
    first = ask_completion(&server, body);
    second = ask_completion(&server, body);
    EXPECT_STRING(ask_string(second, "choices/0/text"), ask_string(first, "choices/0/text"));
    EXPECT_INT(ask_number(first, "usage/prompt_tokens_details/cached_tokens"), ==, 0);
    EXPECT(ask_number(second, "usage/prompt_tokens_details/cached_tokens") > 500);
    EXPECT_STRING(ask_string(first, "choices/0/text"), expected(prompt, 20)->text);
    cJSON_Delete(first);
    cJSON_Delete(second);
}

/* ---- without a tokenizer ---- */

static void ids_alone_stream_token_by_token(void)
{
    static struct ask_stream stream;
    static struct ask_answer want;
    const int32_t prompt[] = {40, 41, 42};
    struct server bare = server_start("--skip-tokenizer-init");
    int status = 0;

    ask_expected(&want, NULL, prompt, 3, 9, true);
    EXPECT(ask_streamed(&bare, "{'prompt': [40, 41, 42], 'stream': true, " GREEDY(9) "}", &stream));
    EXPECT_STRING(stream.broken, "");
    EXPECT_INT(stream.event_count, ==, 9 + 1);
    EXPECT_STRING(stream.choice[0].text, "");
    cJSON *root =
        ask_completion(&bare, "{'prompt': [40, 41, 42], 'return_token_ids': true, " GREEDY(9) "}");
    for (int i = 0; i < 9; i++) {
        char path[64];
        snprintf(path, sizeof(path), "choices/0/token_ids/%d", i);
        EXPECT_INT(ask_number(root, path), ==, want.token[i]);
    }
    cJSON_Delete(root);
    cJSON_Delete(ask(&bare, "/v1/completions", "{'prompt': 'text', " GREEDY(9) "}", &status));
    EXPECT_INT(status, ==, 400);
    EXPECT_INT(server_stop(&bare), ==, 0);
}

static void nothing_was_read_that_was_not_written(void)
{
    EXPECT_INT(fake_model_faults(), ==, 0);
    EXPECT(server_metric_becomes(&server, "quire_kv_blocks{state=\"used\"}", 0, 2000));
    EXPECT_INT(server_stop(&server), ==, 0);
}

int main(void)
{
    server = server_start("--max-num-seqs 16 --max-num-batched-tokens 64 --block-size 8 "
                          "--num-gpu-blocks-override 400");
    TEST(a_prompt_is_continued_token_by_token);
    TEST(a_stream_says_what_the_whole_reply_says);
    TEST(usage_comes_only_when_asked_for);
    TEST(an_end_token_stops_and_is_counted);
    TEST(prompts_may_be_ids_and_lists);
    TEST(n_answers_share_a_prompt_and_differ_by_their_seeds);
    TEST(greedy_answers_of_one_prompt_are_equal);
    TEST(a_seed_repeats_its_draws);
    TEST(stop_strings_cut_across_tokens);
    TEST(the_stop_string_stays_in_the_text_when_asked);
    TEST(text_held_back_for_a_stop_comes_in_the_end);
    TEST(stop_ids_stop_and_are_named);
    TEST(a_bias_forces_and_forbids_tokens);
    TEST(no_end_comes_before_min_tokens);
    TEST(penalties_keep_tokens_from_coming_back);
    TEST(logprobs_are_those_of_the_model);
    TEST(echo_scores_the_prompt);
    TEST(echo_alone_puts_the_prompt_in_front);
    TEST(a_prefix_is_found_again);
    TEST(ids_alone_stream_token_by_token);
    TEST(nothing_was_read_that_was_not_written);
    return test_report();
}
