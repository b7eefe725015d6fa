/* Sampling defaults of a server: where they come from, and that a request's own fields win. */
#include "server/command.h"
#include "tests/e2e/ask.h"
#include "tests/fake_model.h"
#include "tests/test.h"

#include <unistd.h>

static char folder[] = "/tmp/quire-defaults-XXXXXX";

static void save(const char *json)
{
    char path[64];

    snprintf(path, sizeof(path), "%s/generation_config.json", folder);
    FILE *file = fopen(path, "w");
    if (file == NULL || fputs(json, file) < 0 || fclose(file) != 0)
        abort();
}

static char *text_of(const struct server *server, const char *body)
{
    cJSON *root = ask_completion(server, body);
    char *text = strdup(ask_string(root, "choices/0/text"));

    cJSON_Delete(root);
    return text;
}

static const struct ask_answer *greedy(int32_t token_max)
{
    static struct ask_answer answer;

    ask_expected(&answer, "Hello", NULL, 0, token_max, true);
    return &answer;
}

#define HELLO "'prompt': 'Hello', 'ignore_eos': true, 'seed': 5"

static void an_override_is_what_requests_leave_out(void)
{
    struct server plain = server_start(""),
                  given = server_start("--override-generation-config {\"temperature\":0}");
    char *own = text_of(&plain, "{" HELLO "}"), *cold = text_of(&given, "{" HELLO "}");
    char *warm = text_of(&given, "{" HELLO ", 'temperature': 1}");

    EXPECT_STRING(cold, greedy(16)->text);
    EXPECT_STRING(warm, own);
    EXPECT(strcmp(own, cold) != 0);
    EXPECT(server_logged(&plain, "sampling defaults none generation_config=auto"));
    EXPECT(server_logged(&given, "sampling defaults temperature=0 generation_config=auto"));
    free(own);
    free(cold);
    free(warm);
    EXPECT_INT(server_stop(&plain), ==, 0);
    EXPECT_INT(server_stop(&given), ==, 0);
}

static void a_folder_gives_defaults_a_bound_and_ends(void)
{
    char options[256], json[160];
    int32_t end = greedy(20)->token[5];

    snprintf(json, sizeof(json),
             "{\"temperature\": 0, \"top_k\": 30, \"max_new_tokens\": 9, \"eos_token_id\": %d}",
             end);
    save(json);
    snprintf(options, sizeof(options), "--generation-config %s", folder);
    struct server server = server_start(options);
    cJSON *root = ask_completion(&server, "{" HELLO ", 'max_tokens': 20}");

    EXPECT(server_logged(&server, "sampling defaults temperature=0 top_k=30 max_new_tokens=9 "));
    EXPECT_STRING(ask_string(root, "choices/0/text"), greedy(9)->text);
    EXPECT_STRING(ask_string(root, "choices/0/finish_reason"), "length");
    cJSON_Delete(root);
    root = ask_completion(&server, "{'prompt': 'Hello', 'max_tokens': 20}");
    EXPECT_STRING(ask_string(root, "choices/0/finish_reason"), "stop");
    EXPECT(ask_number(root, "usage/completion_tokens") <= 6);
    cJSON_Delete(root);
    EXPECT_INT(server_stop(&server), ==, 0);
}

static void what_cannot_be_read_is_told_before_the_model_loads(void)
{
    char log[4096], options[256];

    EXPECT_INT(server_run("--generation-config /no/such/folder", log, sizeof(log)), ==,
               EXIT_CODE_INPUT);
    EXPECT(strstr(log, "could not read /no/such/folder: generation_config.json: No such file") !=
           NULL);
    save("{\"temperature\": \"hot\"}");
    snprintf(options, sizeof(options), "--generation-config %s", folder);
    EXPECT_INT(server_run(options, log, sizeof(log)), ==, EXIT_CODE_INPUT);
    EXPECT(strstr(log, "temperature") != NULL);
    EXPECT_INT(server_run("--override-generation-config {\"temperatur\":1}", log, sizeof(log)), ==,
               EXIT_CODE_USAGE);
    EXPECT(strstr(log, "override-generation-config: temperatur is no default") != NULL);
}

int main(void)
{
    char path[64];

    if (mkdtemp(folder) == NULL)
        return 1;
    TEST(an_override_is_what_requests_leave_out);
    TEST(a_folder_gives_defaults_a_bound_and_ends);
    TEST(what_cannot_be_read_is_told_before_the_model_loads);
    snprintf(path, sizeof(path), "%s/generation_config.json", folder);
    unlink(path);
    rmdir(folder);
    return test_report();
}
