/* Streams and the notifier: parking, waking, hang-ups, holds. */
#include "server/notifier.h"
#include "server/stream.h"
#include "server/stream_private.h"
#include "tests/test.h"

#include <pthread.h>
#include <stdatomic.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

struct sleeper {
    atomic_int suspended;
    atomic_int resumed;
};

static void sleeper_suspend(void *context)
{
    atomic_fetch_add(&((struct sleeper *)context)->suspended, 1);
}

static void sleeper_resume(void *context)
{
    atomic_fetch_add(&((struct sleeper *)context)->resumed, 1);
}

static struct stream *make_stream(struct sleeper *sleeper, int32_t choice_count)
{
    struct stream_waiter waiter = {sleeper, sleeper_suspend, sleeper_resume};
    return stream_create(choice_count, &waiter);
}

static void append(struct stream *stream, int32_t choice, const char *text, enum finish finish)
{
    struct piece *piece = piece_create(strlen(text), 0, 0);
    memcpy(piece->text, text, strlen(text));
    piece->choice = choice;
    piece->finish = finish;
    stream_append(stream, piece);
}

static bool wait_for(atomic_int *value, int wanted)
{
    for (int i = 0; i < 5000 && atomic_load(value) < wanted; i++)
        nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL);
    return atomic_load(value) == wanted;
}

static void an_empty_stream_parks_its_reader_once_and_a_piece_wakes_it(void)
{
    struct sleeper sleeper = {0};
    struct stream *stream = make_stream(&sleeper, 1);
    struct piece *piece = NULL;

    EXPECT_INT(stream_take(stream, &piece), ==, STREAM_EMPTY);
    EXPECT_INT(stream_wait(stream, false), ==, STREAM_PARKED);
    EXPECT_INT(sleeper.suspended, ==, 1);
    stream_wake(stream);
    EXPECT_INT(sleeper.resumed, ==, 0);
    append(stream, 0, "a", FINISH_NONE);
    stream_wake(stream);
    stream_wake(stream);
    EXPECT_INT(sleeper.resumed, ==, 1);
    EXPECT_INT(stream_wait(stream, false), ==, STREAM_READY);
    EXPECT_INT(stream_take(stream, &piece), ==, STREAM_PIECE);
    EXPECT_STRING(piece->text, "a");
    piece_free(piece);
    stream_release(stream);
}

static void pieces_come_in_order_and_end_after_every_choice_finished(void)
{
    struct sleeper sleeper = {0};
    struct stream *stream = make_stream(&sleeper, 2);
    struct piece *piece = NULL;
    const char *wanted[] = {"a", "b", "c"};

    append(stream, 0, "a", FINISH_NONE);
    append(stream, 1, "b", FINISH_LENGTH);
    EXPECT_INT(stream_wait(stream, true), ==, STREAM_PARKED);
    append(stream, 0, "c", FINISH_STOP);
    stream_wake(stream);
    EXPECT_INT(sleeper.resumed, ==, 1);
    for (int i = 0; i < 3; i++) {
        EXPECT_INT(stream_take(stream, &piece), ==, STREAM_PIECE);
        EXPECT_STRING(piece->text, wanted[i]);
        piece_free(piece);
    }
    EXPECT_INT(stream_take(stream, &piece), ==, STREAM_END);
    stream_release(stream);
}

static void a_reader_of_the_whole_is_not_woken_by_a_part(void)
{
    struct sleeper sleeper = {0};
    struct stream *stream = make_stream(&sleeper, 1);

    EXPECT_INT(stream_wait(stream, true), ==, STREAM_PARKED);
    append(stream, 0, "a", FINISH_NONE);
    stream_wake(stream);
    EXPECT_INT(sleeper.resumed, ==, 0);
    append(stream, 0, "b", FINISH_LENGTH);
    stream_wake(stream);
    EXPECT_INT(sleeper.resumed, ==, 1);
    stream_release(stream);
}

static void a_failure_is_read_after_what_came_before_and_the_first_one_counts(void)
{
    struct sleeper sleeper = {0};
    struct stream *stream = make_stream(&sleeper, 1);
    struct piece *piece = NULL;
    struct stream_error first = {.status = 503, .code = "first"};
    struct stream_error second = {.status = 500, .code = "second"};

    append(stream, 0, "a", FINISH_NONE);
    stream_fail(stream, &first);
    stream_fail(stream, &second);
    EXPECT_INT(stream_take(stream, &piece), ==, STREAM_PIECE);
    piece_free(piece);
    EXPECT_INT(stream_take(stream, &piece), ==, STREAM_ERROR);
    EXPECT_INT(stream_error(stream).status, ==, 503);
    EXPECT_STRING(stream_error(stream).code, "first");
    stream_release(stream);
}

static int cancel_count;

static void count_cancel(void *context, struct stream *stream)
{
    (void)context;
    (void)stream;
    cancel_count++;
}

static void a_cancel_tells_the_engine_once_and_not_after_the_end(void)
{
    struct sleeper sleeper = {0};
    struct stream *stream = make_stream(&sleeper, 1);
    struct piece *piece = NULL;

    cancel_count = 0;
    stream_set_cancel(stream, count_cancel, NULL);
    stream_cancel(stream);
    stream_cancel(stream);
    EXPECT_INT(cancel_count, ==, 1);
    EXPECT(stream_cancelled(stream));
    EXPECT_INT(stream_take(stream, &piece), ==, STREAM_ERROR);
    EXPECT_INT(stream_error(stream).status, ==, 499);
    stream_release(stream);

    stream = make_stream(&sleeper, 1);
    stream_set_cancel(stream, count_cancel, NULL);
    append(stream, 0, "a", FINISH_LENGTH);
    stream_cancel(stream);
    EXPECT_INT(cancel_count, ==, 1);
    stream_release(stream);
}

/* What failed in one choice goes on in the others until someone says that nobody reads them. */
static void a_failed_stream_can_be_cancelled_and_keeps_its_reason(void)
{
    const struct stream_error error = {.status = 503, .code = "out_of_memory"};
    struct sleeper sleeper = {0};
    struct stream *stream = make_stream(&sleeper, 2);

    cancel_count = 0;
    stream_set_cancel(stream, count_cancel, NULL);
    stream_fail(stream, &error);
    stream_cancel(stream);
    stream_cancel(stream);
    EXPECT_INT(cancel_count, ==, 1);
    EXPECT_STRING(stream_error(stream).code, "out_of_memory");
    stream_release(stream);
}

static void prompts_count_once_and_are_kept(void)
{
    struct sleeper sleeper = {0};
    struct stream *stream = make_stream(&sleeper, 4);
    int32_t token[3] = {7, 8, 9};
    int32_t count = 0;

    EXPECT(stream_prompt(stream, 0, &count) == NULL);
    EXPECT(stream_set_prompt(stream, 1, token, 3));
    EXPECT(stream_set_prompt(stream, 0, token, 2));
    EXPECT(!stream_set_prompt(stream, 0, token, 2));
    EXPECT_INT(stream_usage(stream).prompt_tokens, ==, 5);
    EXPECT_INT(stream_prompt(stream, 1, &count)[2], ==, 9);
    EXPECT_INT(count, ==, 3);
    stream_release(stream);
}

/* A response that is cut short is logged with what it had cost until then. */
static void tokens_count_when_they_are_appended_but_the_prompts_do_not(void)
{
    struct sleeper sleeper = {0};
    struct stream *stream = make_stream(&sleeper, 1);
    struct piece *prompt = piece_create(0, 5, 0);
    struct piece *answer = piece_create(0, 2, 0);

    prompt->prompt = true;
    stream_append(stream, prompt);
    stream_append(stream, answer);
    stream_cancel(stream);
    EXPECT_INT(stream_usage(stream).completion_tokens, ==, 2);
    stream_release(stream);
}

static void the_notifier_wakes_what_it_is_given(void)
{
    struct notifier *notifier = notifier_start();
    struct sleeper sleeper[100] = {0};
    struct stream *stream[100];

    for (int i = 0; i < 100; i++) {
        stream[i] = make_stream(&sleeper[i], 1);
        EXPECT_INT(stream_wait(stream[i], false), ==, STREAM_PARKED);
        append(stream[i], 0, "a", FINISH_LENGTH);
        stream_hold(stream[i]);
    }
    notifier_wake(notifier, stream, 60);
    notifier_wake(notifier, stream + 60, 40);
    for (int i = 0; i < 100; i++)
        EXPECT(wait_for(&sleeper[i].resumed, 1));
    notifier_stop(notifier);
    for (int i = 0; i < 100; i++)
        stream_release(stream[i]);
}

static void a_hang_up_cancels_and_wakes_a_parked_stream(void)
{
    struct notifier *notifier = notifier_start();
    struct sleeper sleeper = {0};
    struct stream *stream = make_stream(&sleeper, 1);
    int pair[2];

    EXPECT_INT(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), ==, 0);
    notifier_watch(notifier, pair[0], stream);
    EXPECT_INT(stream_wait(stream, true), ==, STREAM_PARKED);
    close(pair[1]);
    EXPECT(wait_for(&sleeper.resumed, 1));
    EXPECT(stream_cancelled(stream));
    notifier_unwatch(notifier, pair[0], stream);
    close(pair[0]);
    notifier_stop(notifier);
    stream_release(stream);
}

static void a_descriptor_used_again_does_not_cancel_its_former_stream(void)
{
    struct notifier *notifier = notifier_start();
    struct sleeper sleeper[2] = {0};
    struct stream *former = make_stream(&sleeper[0], 1);
    struct stream *latter = make_stream(&sleeper[1], 1);
    int pair[2];

    EXPECT_INT(socketpair(AF_UNIX, SOCK_STREAM, 0, pair), ==, 0);
    notifier_watch(notifier, pair[0], former);
    notifier_unwatch(notifier, pair[0], former);
    notifier_watch(notifier, pair[0], latter);
    EXPECT_INT(stream_wait(latter, false), ==, STREAM_PARKED);
    close(pair[1]);
    EXPECT(wait_for(&sleeper[1].resumed, 1));
    EXPECT(!stream_cancelled(former));
    EXPECT(stream_cancelled(latter));
    notifier_stop(notifier);
    close(pair[0]);
    stream_release(former);
    stream_release(latter);
}

static void *write_pieces(void *context)
{
    struct stream *stream = context;

    for (int i = 0; i < 20000; i++) {
        append(stream, 0, "x", i == 19999 ? FINISH_LENGTH : FINISH_NONE);
        stream_wake(stream);
    }
    stream_release(stream);
    return NULL;
}

static void a_reader_and_a_writer_on_two_threads_lose_nothing(void)
{
    struct sleeper sleeper = {0};
    struct stream *stream = make_stream(&sleeper, 1);
    struct piece *piece = NULL;
    pthread_t writer;
    int count = 0;
    int parked = 0;

    stream_hold(stream);
    pthread_create(&writer, NULL, write_pieces, stream);
    for (;;) {
        enum stream_state state = stream_take(stream, &piece);
        if (state == STREAM_PIECE) {
            count++;
            piece_free(piece);
        } else if (state == STREAM_EMPTY && stream_wait(stream, false) == STREAM_PARKED) {
            EXPECT(wait_for(&sleeper.resumed, ++parked));
        } else if (state == STREAM_END) {
            break;
        }
    }
    pthread_join(writer, NULL);
    EXPECT_INT(count, ==, 20000);
    EXPECT_INT(sleeper.suspended, ==, sleeper.resumed);
    stream_release(stream);
}

int main(void)
{
    TEST(an_empty_stream_parks_its_reader_once_and_a_piece_wakes_it);
    TEST(pieces_come_in_order_and_end_after_every_choice_finished);
    TEST(a_reader_of_the_whole_is_not_woken_by_a_part);
    TEST(a_failure_is_read_after_what_came_before_and_the_first_one_counts);
    TEST(a_cancel_tells_the_engine_once_and_not_after_the_end);
    TEST(a_failed_stream_can_be_cancelled_and_keeps_its_reason);
    TEST(prompts_count_once_and_are_kept);
    TEST(tokens_count_when_they_are_appended_but_the_prompts_do_not);
    TEST(the_notifier_wakes_what_it_is_given);
    TEST(a_hang_up_cancels_and_wakes_a_parked_stream);
    TEST(a_descriptor_used_again_does_not_cancel_its_former_stream);
    TEST(a_reader_and_a_writer_on_two_threads_lose_nothing);
    return test_report();
}
