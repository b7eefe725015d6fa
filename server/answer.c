/* Tokens to pieces; see answer.h.
 *
 * Offsets count bytes of the text that the sequence's tokens make, from 0. What was made but not
 * sent yet lies in `text`; a token's record goes out with the piece that completes its text.
 */
#include "server/answer.h"
#include "server/stop_match.h"
#include "server/stream_private.h"

#include "model/text/detokenizer.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

struct pending {
    int32_t token;
    float logprob;
    int32_t top_first;
    int32_t top_count;
    int64_t end; /* offset behind its text; -1: parts of its text are still held back */
};

struct answer {
    struct job *job;
    const struct tokenizer *tokenizer;
    int32_t choice;
    int32_t sibling;
    int32_t seq;
    int64_t serial;

    struct detokenizer detokenizer;
    struct stop_match match;
    int64_t match_base; /* offset at which matching began (min_tokens) */
    char *text;         /* bytes sent ... made - 1 */
    size_t text_max;
    int64_t sent;
    int64_t made;
    struct pending *pending; /* [pending_count] */
    int32_t pending_count, pending_max;
    struct token_top *top; /* [top_count] of the pending records */
    int32_t top_count, top_max;
    int64_t token_count; /* put out, up to the cut */
    bool begun;          /* the prompt was echoed, if wanted */
    bool finished;
};

struct answer *answer_create(struct text *text, struct job *job, int32_t sibling, int32_t seq,
                             int64_t serial)
{
    struct answer *answer = calloc(1, sizeof *answer);

    if (answer == NULL)
        return NULL;
    answer->job = job;
    answer->tokenizer = text_tokenizer(text);
    answer->choice = job->prompt_index * job->sibling_count + sibling;
    answer->sibling = sibling;
    answer->seq = seq;
    answer->serial = serial;
    answer->match.set = job->stop_set;
    if (answer->tokenizer != NULL) {
        detokenizer_init(&answer->detokenizer, answer->tokenizer, job->skip_special);
        detokenizer_continue(&answer->detokenizer); /* the prompt's text is in front */
    }
    return answer;
}

static void answer_free(struct answer *answer)
{
    free(answer->text);
    free(answer->pending);
    free(answer->top);
    free(answer);
}

void answer_wake(struct answer_wakes *wakes, struct stream *stream)
{
    if (wakes->count > 0 && wakes->stream[wakes->count - 1] == stream)
        return;
    if (wakes->count == wakes->max) {
        int32_t max = wakes->max * 2 + 64;
        struct stream **grown = realloc(wakes->stream, (size_t)max * sizeof(struct stream *));
        if (grown == NULL) { /* wake it ourselves: slower, and never lost */
            stream_wake(stream);
            return;
        }
        wakes->stream = grown;
        wakes->max = max;
    }
    stream_hold(stream);
    wakes->stream[wakes->count++] = stream;
}

/* ---- making text ---- */

/* Room for `more` bytes behind what was made. */
static bool text_room(struct answer *answer, size_t more)
{
    size_t need = (size_t)(answer->made - answer->sent) + more;

    if (need <= answer->text_max)
        return true;
    char *grown = realloc(answer->text, need * 2);
    if (grown == NULL)
        return false;
    answer->text = grown;
    answer->text_max = need * 2;
    return true;
}

/* The text of one token, or with token -1 what the detokenizer still holds. */
static bool make_text(struct answer *answer, int32_t token)
{
    if (answer->tokenizer == NULL)
        return true;
    size_t more = DETOKENIZER_TEXT_MAX;
    if (token >= 0)
        more += tokenizer_bytes(answer->tokenizer, token, NULL, 0);
    if (!text_room(answer, more))
        return false;

    size_t bytes = (size_t)(answer->made - answer->sent);
    bool fits =
        token >= 0
            ? detokenizer_put(&answer->detokenizer, token, answer->text, &bytes, answer->text_max)
            : detokenizer_end(&answer->detokenizer, answer->text, &bytes, answer->text_max);
    assert(fits);
    answer->made = answer->sent + (int64_t)bytes;
    return true;
}

static bool keep_record(struct answer *answer, const struct text_item *item,
                        const struct token_top *top)
{
    if (answer->pending_count == answer->pending_max) {
        int32_t max = answer->pending_max * 2 + 8;
        struct pending *grown = realloc(answer->pending, (size_t)max * sizeof *grown);
        if (grown == NULL)
            return false;
        answer->pending = grown;
        answer->pending_max = max;
    }
    if (answer->top_count + item->top_count > answer->top_max) {
        int32_t max = (answer->top_count + item->top_count) * 2;
        struct token_top *grown = realloc(answer->top, (size_t)max * sizeof *grown);
        if (grown == NULL)
            return false;
        answer->top = grown;
        answer->top_max = max;
    }
    answer->pending[answer->pending_count++] = (struct pending){
        .token = item->token,
        .logprob = answer->job->sampling.top_count >= 0 ? item->logprob : NAN,
        .top_first = answer->top_count,
        .top_count = item->top_count,
        .end = -1,
    };
    if (item->top_count > 0)
        memcpy(answer->top + answer->top_count, top + item->top_first,
               (size_t)item->top_count * sizeof *top);
    answer->top_count += item->top_count;
    return true;
}

/* Records whose text is all there learn where it ends. */
static void settle_records(struct answer *answer)
{
    if (answer->tokenizer != NULL && answer->detokenizer.held_count > 0)
        return;
    for (int32_t i = answer->pending_count - 1; i >= 0 && answer->pending[i].end < 0; i--)
        answer->pending[i].end = answer->made;
}

/* ---- sending it ---- */

/* This response ends, and its sequence need not go on. */
static void out_of_memory(struct answer *answer, const struct text_sink *sink)
{
    struct stream_error error =
        stream_error_make(503, "out_of_memory", NULL, "The server is out of memory.");

    stream_fail(answer->job->stream, &error);
    sink->stop(sink->context, answer->seq, answer->serial);
    answer->finished = true;
}

/* Echo: the prompt's own text, and what the model says of its tokens if that was asked for. */
static bool send_prompt(struct answer *answer)
{
    const struct job *job = answer->job;
    struct detokenizer whole;
    size_t bytes = job->text_bytes;
    size_t max = bytes;
    int32_t width = job->sampling.top_count > 0 ? job->sampling.top_count : 0;

    if (job->text == NULL && answer->tokenizer != NULL)
        for (int32_t i = 0; i < job->token_count; i++)
            max += tokenizer_bytes(answer->tokenizer, job->token[i], NULL, 0) + 4;
    max += DETOKENIZER_TEXT_MAX;
    struct piece *piece = piece_create(max, job->score_prompt ? job->token_count : 0,
                                       job->score_prompt ? job->token_count * width : 0);
    if (piece == NULL)
        return false;
    piece->choice = answer->choice;
    piece->prompt = true;
    if (job->text != NULL) {
        memcpy(piece->text, job->text, bytes);
    } else if (answer->tokenizer != NULL) {
        bytes = 0;
        detokenizer_init(&whole, answer->tokenizer, job->skip_special);
        for (int32_t i = 0; i < job->token_count; i++)
            (void)detokenizer_put(&whole, job->token[i], piece->text, &bytes, max);
        (void)detokenizer_end(&whole, piece->text, &bytes, max);
    }
    piece->text_bytes = bytes;
    piece->text[bytes] = '\0';
    struct token_top *top = piece_top(piece);
    for (int32_t i = 0; i < piece->token_count; i++) {
        const struct token_score *score = &job->score[i];
        piece->token[i] = (struct token_record){
            .token = job->token[i],
            .logprob = score->known ? score->logprob : NAN,
            .top_count = score->top_count,
            .top = top + (size_t)i * width,
        };
        memcpy(top + (size_t)i * width, job->score_top + (size_t)i * width,
               (size_t)score->top_count * sizeof *top);
    }
    stream_append(job->stream, piece);
    return true;
}

/* Takes the records that end at or before offset `until` (all, with the last piece). */
static void move_records(struct answer *answer, struct piece *piece, int32_t count)
{
    struct token_top *top = piece_top(piece);
    int32_t top_count = 0;

    for (int32_t i = 0; i < count; i++) {
        const struct pending *from = &answer->pending[i];
        piece->token[i] = (struct token_record){
            .token = from->token,
            .logprob = from->logprob,
            .top_count = from->top_count,
            .top = top + top_count,
        };
        if (from->top_count > 0)
            memcpy(top + top_count, answer->top + from->top_first,
                   (size_t)from->top_count * sizeof *top);
        top_count += from->top_count;
    }
    answer->pending_count -= count;
    answer->top_count -= top_count;
    if (answer->pending_count > 0)
        memmove(answer->pending, answer->pending + count,
                (size_t)answer->pending_count * sizeof *answer->pending);
    if (answer->top_count > 0)
        memmove(answer->top, answer->top + top_count,
                (size_t)answer->top_count * sizeof *answer->top);
    for (int32_t i = 0; i < answer->pending_count; i++)
        answer->pending[i].top_first -= top_count;
}

/* Sends the text up to offset `until` and the records that it completes; with `finish`, all
 * records and the end. No piece goes out without text, but for the last one, and where there is no
 * tokenizer to make any: there tokens go out as they come. */
static bool send(struct answer *answer, int64_t until, enum finish finish, int32_t stop_token,
                 int32_t stop_string)
{
    size_t bytes = (size_t)(until - answer->sent);
    int32_t count = 0;
    int32_t top_count = 0;

    assert(until >= answer->sent && until <= answer->made);
    if (bytes == 0 && finish == FINISH_NONE && answer->tokenizer != NULL)
        return true;
    while (count < answer->pending_count &&
           (finish != FINISH_NONE ||
            (answer->pending[count].end >= 0 && answer->pending[count].end <= until)))
        top_count += answer->pending[count++].top_count;
    struct piece *piece = piece_create(bytes, count, top_count);
    if (piece == NULL)
        return false;
    piece->choice = answer->choice;
    piece->finish = finish;
    piece->stop_token = stop_token;
    piece->stop_string = stop_string;
    if (bytes > 0)
        memcpy(piece->text, answer->text, bytes);
    move_records(answer, piece, count);
    if (answer->made > until)
        memmove(answer->text, answer->text + bytes, (size_t)(answer->made - until));
    answer->sent = until;
    if (finish != FINISH_NONE) {
        answer->finished = true;
        if (answer->sibling == 0 && answer->job->cached_count > 0)
            stream_add_cached(answer->job->stream, answer->job->cached_count);
    }
    stream_append(answer->job->stream, piece);
    return true;
}

/* ---- items ---- */

/* New text from offset `from` on was made: sends what is safe; at a stop string, the end. */
static bool pass_text(struct answer *answer, int64_t from, const struct text_sink *sink)
{
    if (answer->match.set == NULL)
        return send(answer, answer->made, FINISH_NONE, -1, -1);
    if (answer->token_count < answer->job->sampling.min_tokens) {
        answer->match_base = answer->made;
        return send(answer, answer->made, FINISH_NONE, -1, -1);
    }
    struct stop_result result = stop_match_feed(
        &answer->match, answer->text + (from - answer->sent), (size_t)(answer->made - from));
    int64_t safe = answer->match_base + result.safe_bytes;
    if (result.string < 0)
        return send(answer, safe, FINISH_NONE, -1, -1);
    sink->stop(sink->context, answer->seq, answer->serial);
    if (answer->job->keep_stop)
        safe = answer->match_base + result.end_bytes;
    return send(answer, safe, FINISH_STOP, -1, result.string);
}

static bool take_token(struct answer *answer, const struct text_item *item,
                       const struct token_top *top, const struct text_sink *sink)
{
    /* The token that stops a sequence is counted and recorded; its text is not part of the
     * answer unless asked for. */
    bool shown = item->finish != FINISH_STOP || answer->job->keep_stop;
    int64_t from = answer->made;

    answer->token_count++;
    if (!keep_record(answer, item, top) || (shown && !make_text(answer, item->token)))
        return false;
    settle_records(answer);
    if (answer->tokenizer == NULL) /* each token is a piece of its own */
        return send(answer, answer->made, item->finish, item->stop_token, -1);
    if (!pass_text(answer, from, sink))
        return false;
    if (answer->finished || item->finish == FINISH_NONE)
        return true;

    from = answer->made;
    if (!make_text(answer, -1))
        return false;
    if (answer->made > from && !pass_text(answer, from, sink))
        return false;
    return answer->finished || send(answer, answer->made, item->finish, item->stop_token, -1);
}

static void take_score(struct answer *answer, const struct text_item *item,
                       const struct token_top *top)
{
    struct job *job = answer->job;
    int32_t width = job->sampling.top_count > 0 ? job->sampling.top_count : 0;

    assert(item->token_index > 0 && item->token_index < job->token_count);
    struct token_score *score = &job->score[item->token_index];
    score->known = true;
    score->logprob = item->logprob;
    score->top_count = item->top_count < width ? item->top_count : width;
    if (score->top_count > 0)
        memcpy(job->score_top + (size_t)item->token_index * width, top + item->top_first,
               (size_t)score->top_count * sizeof *top);
}

static void take_end(struct answer *answer, const struct text_item *item,
                     const struct text_sink *sink)
{
    struct job *job = answer->job;

    if (!answer->finished && item->finish != FINISH_NONE && !stream_dead(job->stream) &&
        !send(answer, answer->made, item->finish, -1, -1))
        out_of_memory(answer, sink);
    answer_free(answer);
    if (atomic_fetch_sub(&job->open_count, 1) == 1)
        sink->ended(sink->context, job);
}

void answer_take(const struct text_item *item, const struct token_top *top,
                 const struct text_sink *sink, struct answer_wakes *wakes)
{
    struct answer *answer = item->answer;

    if (item->kind == TEXT_SCORE) {
        take_score(answer, item, top);
        return;
    }
    answer_wake(wakes, answer->job->stream);
    bool ends_well = item->kind == TEXT_TOKEN || item->finish != FINISH_NONE;
    if (answer->job->echo && !answer->begun && ends_well) {
        answer->begun = true;
        if (!send_prompt(answer))
            out_of_memory(answer, sink);
    }
    if (item->kind == TEXT_END)
        take_end(answer, item, sink);
    else if (!answer->finished && !take_token(answer, item, top, sink))
        out_of_memory(answer, sink);
}
