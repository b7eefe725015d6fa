/* Replies of /v1/completions from streams: events, order, usage, log-probabilities, failures. */
#include "server/api.h"
#include "server/api_completions.h"
#include "server/json_read.h"
#include "server/stream_private.h"
#include "tests/test.h"

#include <math.h>

static void nothing(void *context)
{
    (void)context;
}

static struct stream *new_stream(int32_t choice_count)
{
    struct stream_waiter waiter = {NULL, nothing, nothing};
    return stream_create(choice_count, &waiter);
}

static void put(struct stream *stream, int32_t choice, const char *text, enum finish finish)
{
    size_t bytes = strlen(text);
    struct piece *piece = piece_create(bytes, 1, 0);

    memcpy(piece->text, text, bytes + 1);
    piece->choice = choice;
    piece->finish = finish;
    piece->token[0] = (struct token_record){.token = 7, .logprob = NAN};
    stream_append(stream, piece);
}

static struct completion_reply plain_reply(int32_t choice_count, bool stream)
{
    return (struct completion_reply){
        .id = "x\"1",
        .model = "m",
        .fingerprint = "f",
        .created = 5,
        .choice_count = choice_count,
        .sibling_count = choice_count,
        .stream = stream,
    };
}

/* Writes until nothing more comes; the text is NUL-terminated. */
static enum output_state write_all(const struct output *output, struct stream *stream,
                                   struct json *text)
{
    enum output_state state;

    do
        state = output->write(output->context, stream, text);
    while (state == OUTPUT_MORE);
    json_bytes(text, "", 1);
    text->bytes--;
    return state;
}

#define HEAD                                                                                       \
    "{\"id\":\"cmpl-x\\\"1\",\"object\":\"text_completion\",\"created\":5,\"model\":\"m\","        \
    "\"system_fingerprint\":\"f\",\"choices\":["

static void a_stream_has_an_event_a_piece_and_ends_with_done(void)
{
    struct stream *stream = new_stream(1);
    struct completion_reply reply = plain_reply(1, true);
    struct output output;
    struct json text = {0};

    EXPECT(completion_output(&reply, &output));
    EXPECT(!output.whole);
    EXPECT_INT(write_all(&output, stream, &text), ==, OUTPUT_EMPTY);
    EXPECT_INT(text.bytes, ==, 0);
    put(stream, 0, "a\n", FINISH_NONE);
    put(stream, 0, "", FINISH_LENGTH);
    EXPECT_INT(write_all(&output, stream, &text), ==, OUTPUT_END);
    EXPECT_STRING(text.text, "data: " HEAD "{\"index\":0,\"text\":\"a\\n\",\"logprobs\":null,"
                             "\"finish_reason\":null,\"stop_reason\":null}]}\n\n"
                             "data: " HEAD "{\"index\":0,\"text\":\"\",\"logprobs\":null,"
                             "\"finish_reason\":\"length\",\"stop_reason\":null}]}\n\n"
                             "data: [DONE]\n\n");
    json_release(&text);
    output.free(output.context);
    stream_release(stream);
}

static void usage_comes_last_and_only_when_asked_for(void)
{
    struct stream *stream = new_stream(1);
    struct completion_reply reply = plain_reply(1, true);
    struct output output;
    struct json text = {0};

    reply.include_usage = true;
    EXPECT(completion_output(&reply, &output));
    stream_set_prompt(stream, 0, (int32_t[]){1, 2, 3}, 3);
    put(stream, 0, "a", FINISH_NONE);
    stream_add_cached(stream, 1);
    put(stream, 0, "b", FINISH_STOP);
    EXPECT_INT(write_all(&output, stream, &text), ==, OUTPUT_END);
    EXPECT(strstr(text.text, "\"text\":\"a\",\"logprobs\":null,\"finish_reason\":null,"
                             "\"stop_reason\":null}],\"usage\":null}\n\n") != NULL);
    EXPECT(strstr(text.text, "\"finish_reason\":\"stop\",\"stop_reason\":null}],"
                             "\"usage\":null}\n\ndata: ") != NULL);
    EXPECT(strstr(text.text, "\"choices\":[],\"usage\":{\"prompt_tokens\":3,"
                             "\"completion_tokens\":2,\"total_tokens\":5,"
                             "\"prompt_tokens_details\":{\"cached_tokens\":1}}}\n\n"
                             "data: [DONE]\n\n") != NULL);
    json_release(&text);
    output.free(output.context);
    stream_release(stream);
}

/* The choices of the events in `text`, in order, as digits. */
static void order_of(const char *text, char *order)
{
    for (const char *at = text; (at = strstr(at, "\"index\":")) != NULL; at += 8)
        *order++ = at[8];
    *order = '\0';
}

static void choices_appear_in_order(void)
{
    struct stream *stream = new_stream(3);
    struct completion_reply reply = plain_reply(3, true);
    struct output output;
    struct json text = {0};
    char order[32];

    EXPECT(completion_output(&reply, &output));
    put(stream, 2, "c", FINISH_NONE);
    put(stream, 1, "b", FINISH_NONE);
    put(stream, 2, "", FINISH_STOP);
    EXPECT_INT(write_all(&output, stream, &text), ==, OUTPUT_EMPTY);
    EXPECT_INT(text.bytes, ==, 0);
    put(stream, 0, "a", FINISH_NONE);
    put(stream, 1, "", FINISH_STOP);
    put(stream, 0, "", FINISH_STOP);
    EXPECT_INT(write_all(&output, stream, &text), ==, OUTPUT_END);
    order_of(text.text, order);
    EXPECT_STRING(order, "012210");
    json_release(&text);
    output.free(output.context);
    stream_release(stream);
}

static void a_failure_is_one_event_and_no_done(void)
{
    struct stream *stream = new_stream(1);
    struct completion_reply reply = plain_reply(1, true);
    struct stream_error error = stream_error_make(500, "internal_error", NULL, "It broke: \"so\".");
    struct output output;
    struct json text = {0};

    EXPECT(completion_output(&reply, &output));
    put(stream, 0, "a", FINISH_NONE);
    stream_fail(stream, &error);
    EXPECT_INT(write_all(&output, stream, &text), ==, OUTPUT_FAILED);
    EXPECT(strstr(text.text,
                  "\n\ndata: {\"error\":{\"message\":\"It broke: \\\"so\\\".\",\"type\":"
                  "\"server_error\",\"param\":null,\"code\":\"internal_error\"}}\n\n") != NULL);
    EXPECT(strstr(text.text, "[DONE]") == NULL);
    json_release(&text);
    output.free(output.context);
    stream_release(stream);
}

static void a_client_that_left_gets_nothing(void)
{
    struct stream *stream = new_stream(2);
    struct completion_reply reply = plain_reply(2, true);
    struct output output;
    struct json text = {0};

    EXPECT(completion_output(&reply, &output));
    put(stream, 1, "held", FINISH_NONE);
    EXPECT_INT(write_all(&output, stream, &text), ==, OUTPUT_EMPTY);
    stream_cancel(stream);
    EXPECT_INT(write_all(&output, stream, &text), ==, OUTPUT_GONE);
    EXPECT_INT(text.bytes, ==, 0);
    json_release(&text);
    output.free(output.context); /* with what is held */
    stream_release(stream);
}

static struct piece *scored_piece(int32_t choice, const char *text)
{
    size_t bytes = strlen(text);
    struct piece *piece = piece_create(bytes, 2, 3);
    struct token_top *top = piece_top(piece);

    memcpy(piece->text, text, bytes + 1);
    piece->choice = choice;
    top[0] = (struct token_top){11, -0.25F};
    top[1] = (struct token_top){12, -1.5F};
    top[2] = (struct token_top){13, -INFINITY};
    piece->token[0] = (struct token_record){11, -0.25F, 2, top};
    piece->token[1] = (struct token_record){9, -3, 1, top + 2};
    return piece;
}

static void log_probabilities_keep_their_shape(void)
{
    struct stream *stream = new_stream(1);
    struct completion_reply reply = plain_reply(1, false);
    struct output output;
    struct json text = {0};
    struct piece *echo = piece_create(2, 1, 0);

    reply.logprobs = true;
    EXPECT(completion_output(&reply, &output));
    EXPECT(output.whole);
    memcpy(echo->text, "\xc3\xa9", 3);
    echo->prompt = true;
    echo->token[0] = (struct token_record){.token = 2, .logprob = NAN};
    stream_append(stream, echo);
    struct piece *piece = scored_piece(0, "ab");
    piece->finish = FINISH_STOP;
    piece->stop_token = 9;
    stream_append(stream, piece);
    EXPECT_INT(write_all(&output, stream, &text), ==, OUTPUT_END);
    EXPECT(strstr(text.text,
                  "\"text\":\"\xc3\xa9"
                  "ab\",\"logprobs\":{\"tokens\":[\"token_id:2\",\"token_id:11\","
                  "\"token_id:9\"],\"token_logprobs\":[null,-0.25,-3.0],\"top_logprobs\":[null,"
                  "{\"token_id:11\":-0.25,\"token_id:12\":-1.5},"
                  "{\"token_id:9\":-3.0,\"token_id:13\":-9999.0}],"
                  "\"text_offset\":[0,1,1]},\"finish_reason\":\"stop\",\"stop_reason\":9}") !=
           NULL);
    json_release(&text);
    output.free(output.context);
    stream_release(stream);
}

static void a_whole_reply_has_all_choices_in_order_and_is_json(void)
{
    struct stream *stream = new_stream(2);
    struct completion_reply reply = plain_reply(2, false);
    struct output output;
    struct json text = {0};
    struct json_value value;
    size_t offset;
    const char *why;
    char order[8];

    reply.return_token_ids = true;
    reply.stop_count = 1;
    reply.stop = malloc(sizeof *reply.stop);
    reply.stop[0] = strdup("END");
    EXPECT(completion_output(&reply, &output));
    stream_set_prompt(stream, 0, (int32_t[]){1, 2}, 2);
    put(stream, 1, "b", FINISH_LENGTH);
    put(stream, 0, "a1", FINISH_NONE);
    struct piece *piece = piece_create(2, 0, 0);
    memcpy(piece->text, "a2", 3);
    piece->finish = FINISH_STOP;
    piece->stop_string = 0;
    stream_append(stream, piece);
    EXPECT_INT(write_all(&output, stream, &text), ==, OUTPUT_END);
    EXPECT(json_check(text.text, text.bytes, &value, &offset, &why));
    order_of(text.text, order);
    EXPECT_STRING(order, "01");
    EXPECT(strstr(text.text, "\"text\":\"a1a2\",\"logprobs\":null,\"finish_reason\":\"stop\","
                             "\"stop_reason\":\"END\",\"prompt_token_ids\":[1,2],"
                             "\"token_ids\":[7]}") != NULL);
    EXPECT(strstr(text.text, "\"usage\":{\"prompt_tokens\":2,") != NULL);
    json_release(&text);
    output.free(output.context);
    stream_release(stream);
}

static void every_event_is_json_whatever_the_text(void)
{
    struct stream *stream = new_stream(1);
    struct completion_reply reply = plain_reply(1, true);
    struct output output;
    struct json text = {0};
    char odd[300];

    reply.logprobs = true;
    reply.include_usage = true;
    reply.continuous_usage = true;
    reply.return_token_ids = true;
    EXPECT(completion_output(&reply, &output));
    for (int i = 0; i < 255; i++)
        odd[i] = (char)(i + 1);
    odd[255] = '\0';
    put(stream, 0, odd, FINISH_NONE);
    stream_append(stream, scored_piece(0, "x"));
    put(stream, 0, "", FINISH_STOP);
    EXPECT_INT(write_all(&output, stream, &text), ==, OUTPUT_END);
    int events = 0;
    for (char *at = text.text, *end; (end = strstr(at, "\n\n")) != NULL; at = end + 2) {
        struct json_value value;
        size_t offset;
        const char *why;
        EXPECT(strncmp(at, "data: ", 6) == 0);
        if (strncmp(at + 6, "[DONE]", 6) != 0)
            EXPECT(json_check(at + 6, (size_t)(end - at - 6), &value, &offset, &why));
        events++;
    }
    EXPECT_INT(events, ==, 5);
    json_release(&text);
    output.free(output.context);
    stream_release(stream);
}

int main(void)
{
    TEST(a_stream_has_an_event_a_piece_and_ends_with_done);
    TEST(usage_comes_last_and_only_when_asked_for);
    TEST(choices_appear_in_order);
    TEST(a_failure_is_one_event_and_no_done);
    TEST(a_client_that_left_gets_nothing);
    TEST(log_probabilities_keep_their_shape);
    TEST(a_whole_reply_has_all_choices_in_order_and_is_json);
    TEST(every_event_is_json_whatever_the_text);
    return test_report();
}
