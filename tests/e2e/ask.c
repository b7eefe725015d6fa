/* Completions asked for and expected: see ask.h. */
#include "tests/e2e/ask.h"

#include "model/text/detokenizer.h"
#include "model/text/tokenizer.h"
#include "tests/fake_model.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- JSON ---- */

char *ask_json(const char *text)
{
    char *json = strdup(text);

    for (char *byte = json; *byte != '\0'; byte++)
        if (*byte == '\'')
            *byte = '"';
    return json;
}

const cJSON *ask_at(const cJSON *root, const char *path)
{
    char step[64];

    while (root != NULL && *path != '\0') {
        size_t bytes = strcspn(path, "/");
        snprintf(step, sizeof(step), "%.*s", (int)bytes, path);
        root = cJSON_IsArray(root) ? cJSON_GetArrayItem(root, atoi(step))
                                   : cJSON_GetObjectItemCaseSensitive(root, step);
        path += bytes + (path[bytes] == '/');
    }
    return root;
}

const char *ask_string(const cJSON *root, const char *path)
{
    const cJSON *found = ask_at(root, path);

    return cJSON_IsString(found) ? found->valuestring : "";
}

double ask_number(const cJSON *root, const char *path)
{
    const cJSON *found = ask_at(root, path);

    return cJSON_IsNumber(found) ? found->valuedouble : NAN;
}

cJSON *ask(const struct server *server, const char *path, const char *body, int *status)
{
    struct client client;
    char *json = ask_json(body);

    client_call(&client, server->port, "POST", path, "Connection: close\r\n", json);
    cJSON *root = client.done && client.body != NULL ? cJSON_Parse(client.body) : NULL;
    *status = client.status;
    if (root == NULL)
        printf("no JSON for %.200s: status %d, %.300s\n", json, client.status,
               client.body != NULL ? client.body : "nothing");
    client_close(&client);
    free(json);
    return root;
}

cJSON *ask_completion(const struct server *server, const char *body)
{
    int status;
    cJSON *root = ask(server, "/v1/completions", body, &status);

    if (root == NULL || status == 200)
        return root;
    char *text = cJSON_PrintUnformatted(root);
    printf("status %d for %.200s: %s\n", status, body, text);
    free(text);
    cJSON_Delete(root);
    return NULL;
}

/* ---- what must come ---- */

static struct tokenizer *tokenizer_of_fake(void)
{
    static struct tokenizer *tokenizer;

    if (tokenizer == NULL)
        tokenizer = fake_tokenizer_create();
    return tokenizer;
}

static void put_text(const struct tokenizer *tokenizer, struct ask_answer *answer)
{
    struct detokenizer detokenizer;
    size_t bytes = 0;

    detokenizer_init(&detokenizer, tokenizer, true);
    for (int32_t i = 0; i < answer->token_count; i++)
        detokenizer_put(&detokenizer, answer->token[i], answer->text, &bytes, ASK_TEXT_MAX - 1);
    detokenizer_end(&detokenizer, answer->text, &bytes, ASK_TEXT_MAX - 1);
    answer->text[bytes] = '\0';
}

void ask_expected(struct ask_answer *answer, const char *text, const int32_t *prompt,
                  int32_t prompt_count, int32_t token_max, bool ignore_eos)
{
    const struct tokenizer *tokenizer = tokenizer_of_fake();
    int32_t all[2 * ASK_TOKEN_MAX], *encoded = NULL;

    *answer = (struct ask_answer){.prompt_count = prompt_count, .finish = "length"};
    if (text != NULL) {
        answer->prompt_count =
            (int32_t)tokenizer_encode(tokenizer, text, strlen(text),
                                      TOKENIZER_ADD_SPECIAL | TOKENIZER_PARSE_SPECIAL, &encoded);
        prompt = encoded;
    }
    if (answer->prompt_count > ASK_TOKEN_MAX || token_max > ASK_TOKEN_MAX)
        abort();
    memcpy(answer->prompt, prompt, (size_t)answer->prompt_count * sizeof(*prompt));
    memcpy(all, prompt, (size_t)answer->prompt_count * sizeof(*prompt));
    free(encoded);
    while (answer->token_count < token_max) {
        int32_t count = answer->prompt_count + answer->token_count;
        int32_t token = fake_model_greedy(all, count);
        all[count] = token;
        answer->token[answer->token_count++] = token;
        if (token == FAKE_EOS && !ignore_eos) {
            answer->finish = "stop";
            break;
        }
    }
    put_text(tokenizer, answer);
}

/* ---- streams ---- */

static void breaks(struct ask_stream *stream, const char *rule)
{
    if (stream->broken[0] == '\0')
        snprintf(stream->broken, sizeof(stream->broken), "%s, at event %d", rule,
                 stream->event_count);
}

static void take_usage(struct ask_stream *stream, const cJSON *usage)
{
    stream->usage_count++;
    stream->prompt_tokens = (int)ask_number(usage, "prompt_tokens");
    stream->completion_tokens = (int)ask_number(usage, "completion_tokens");
    stream->total_tokens = (int)ask_number(usage, "total_tokens");
}

static void take_choice(struct ask_stream *stream, const cJSON *from)
{
    int index = (int)ask_number(from, "index");
    const char *text = ask_string(from, "text");
    const cJSON *reason = ask_at(from, "stop_reason");

    if (index < 0 || index >= ASK_CHOICE_MAX || index > stream->choice_count) {
        breaks(stream, "a choice comes before one of a lower index");
        return;
    }
    if (index == stream->choice_count)
        stream->choice_count++;
    struct ask_choice *choice = &stream->choice[index];
    choice->event_count++;
    if (choice->finish_count > 0)
        breaks(stream, "a choice goes on behind its finish_reason");
    if (choice->text_bytes + strlen(text) >= ASK_TEXT_MAX)
        abort();
    choice->text_bytes += (size_t)sprintf(choice->text + choice->text_bytes, "%s", text);
    if (!cJSON_IsString(ask_at(from, "finish_reason")))
        return;
    choice->finish_count++;
    snprintf(choice->finish, sizeof(choice->finish), "%s", ask_string(from, "finish_reason"));
    char *printed = reason != NULL ? cJSON_PrintUnformatted(reason) : strdup("");
    snprintf(choice->stop_reason, sizeof(choice->stop_reason), "%s", printed);
    free(printed);
}

static void take_object(struct ask_stream *stream, const cJSON *root)
{
    const cJSON *choices = ask_at(root, "choices");
    const cJSON *usage = ask_at(root, "usage");

    if (ask_at(root, "error") != NULL) {
        snprintf(stream->error, sizeof(stream->error), "%s", ask_string(root, "error/message"));
        return;
    }
    if (strcmp(ask_string(root, "object"), "text_completion") != 0)
        breaks(stream, "an event is no text_completion");
    if (stream->id[0] == '\0')
        snprintf(stream->id, sizeof(stream->id), "%s", ask_string(root, "id"));
    if (strcmp(ask_string(root, "id"), stream->id) != 0 || strncmp(stream->id, "cmpl-", 5) != 0)
        breaks(stream, "the id changes or is none");
    if (cJSON_IsObject(usage))
        take_usage(stream, usage);
    if (!cJSON_IsArray(choices) || cJSON_GetArraySize(choices) > 1)
        breaks(stream, "an event has more than one choice");
    if (cJSON_GetArraySize(choices) == 1)
        take_choice(stream, cJSON_GetArrayItem(choices, 0));
    else if (!cJSON_IsObject(usage))
        breaks(stream, "an event has neither a choice nor usage");
}

void ask_take(struct ask_stream *stream, const char *event)
{
    if (stream->done || stream->error[0] != '\0')
        breaks(stream, "an event comes behind the last one");
    stream->event_count++;
    if (strcmp(event, "[DONE]") == 0) {
        stream->done = true;
        return;
    }
    cJSON *root = cJSON_Parse(event);
    if (root != NULL)
        take_object(stream, root);
    else
        breaks(stream, "an event is no JSON");
    cJSON_Delete(root);
}

bool ask_streamed(const struct server *server, const char *body, struct ask_stream *stream)
{
    struct client client;
    char *json = ask_json(body), *event;

    memset(stream, 0, sizeof(*stream));
    client_call(&client, server->port, "POST", "/v1/completions", "", json);
    char *type = client.head != NULL ? client_field(&client, "Content-Type") : NULL;
    bool good = client.done && client.status == 200 && type != NULL &&
                strncmp(type, "text/event-stream", 17) == 0;
    while (good && (event = client_event_ready(&client)) != NULL) {
        ask_take(stream, event);
        free(event);
    }
    if (good && client.event_at != client.body_bytes)
        breaks(stream, "the body does not end with an event");
    if (client.split)
        breaks(stream, "an event was split");
    if (!good)
        printf("no stream for %.200s: status %d, %.300s\n", json, client.status,
               client.body != NULL ? client.body : "nothing");
    free(type);
    client_close(&client);
    free(json);
    return good;
}
