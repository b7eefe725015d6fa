/* Writing the reply of POST /v1/completions: events of a stream, or one object.
 *
 * Events are put together from a prefix made once. A choice appears first only after all choices
 * before it: clients that build a list as events come would fail otherwise; what comes too early
 * waits in its choice.
 */
#include "server/api_completions.h"

#include "server/api.h"
#include "server/metrics.h"

#include "model/text/tokenizer.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { SPELLING_MAX = 1024 }; /* bytes of a token's spelling */

/* One choice on its way out. */
struct choice {
    struct piece *first, *final; /* not yet written */
    int64_t characters;          /* of its text so far, for text_offset */
    bool told_prompt;            /* its prompt_token_ids were written */
};

struct reply {
    struct completion_reply is;
    struct json prefix;        /* "data: {"id": ... "choices":[{"index":" */
    struct json head;          /* {"id": ..., "system_fingerprint":"..." */
    int32_t appeared;          /* choices below this one were written to */
    int64_t completion_tokens; /* written so far */
    struct choice choice[];    /* [choice_count] */
};

/* ---- parts of an event ---- */

static void write_usage(struct json *text, const struct stream_usage *usage)
{
    json_raw(text, "{\"prompt_tokens\":");
    json_int(text, usage->prompt_tokens);
    json_raw(text, ",\"completion_tokens\":");
    json_int(text, usage->completion_tokens);
    json_raw(text, ",\"total_tokens\":");
    json_int(text, usage->prompt_tokens + usage->completion_tokens);
    json_raw(text, ",\"prompt_tokens_details\":{\"cached_tokens\":");
    json_int(text, usage->cached_tokens);
    json_raw(text, "}}");
}

static void write_stop_reason(const struct reply *reply, struct json *text,
                              const struct piece *piece)
{
    if (piece->finish == FINISH_STOP && piece->stop_string >= 0 &&
        piece->stop_string < reply->is.stop_count) {
        const char *stop = reply->is.stop[piece->stop_string];
        json_string(text, stop, strlen(stop));
    } else if (piece->finish == FINISH_STOP && piece->stop_token >= 0) {
        json_int(text, piece->stop_token);
    } else {
        json_raw(text, "null");
    }
}

static const char *finish_name(enum finish finish)
{
    if (finish == FINISH_NONE)
        return "null";
    return finish == FINISH_STOP ? "\"stop\"" : "\"length\"";
}

/* ---- log-probabilities ---- */

/* Control tokens have a name, but add nothing to the text when they are skipped. */
static size_t shown_bytes(const struct reply *reply, int32_t token)
{
    const struct tokenizer *tokenizer = reply->is.tokenizer;

    if (tokenizer == NULL)
        return 0;
    if (reply->is.skip_special && tokenizer_kind(tokenizer, token) == TOKEN_CONTROL)
        return 0;
    return tokenizer_bytes(tokenizer, token, NULL, 0);
}

/* A token as a JSON string: its text; its bytes where they are no UTF-8 by themselves. */
static void write_token(const struct reply *reply, struct json *text, int32_t token)
{
    char spelling[SPELLING_MAX];
    size_t at = 0, bytes = 0;

    if (reply->is.tokens_as_ids || reply->is.tokenizer == NULL) {
        json_print(text, "\"token_id:%d\"", token);
        return;
    }
    bytes = tokenizer_bytes(reply->is.tokenizer, token, spelling, sizeof spelling);
    bytes = bytes < sizeof spelling ? bytes : sizeof spelling;
    while (at < bytes) {
        size_t sequence = json_utf8(spelling + at, bytes - at);
        if (sequence == 0)
            break;
        at += sequence;
    }
    if (at == bytes) {
        json_string(text, spelling, bytes);
        return;
    }
    json_raw(text, "\"bytes:");
    for (size_t i = 0; i < bytes; i++)
        json_print(text, "\\\\x%02x", (unsigned char)spelling[i]);
    json_raw(text, "\"");
}

static void write_logprob(struct json *text, float logprob)
{
    if (isinf(logprob) && logprob < 0)
        json_raw(text, "-9999.0");
    else
        json_float(text, logprob);
}

/* One member of top_logprobs, unless an earlier and so likelier one has the same name. */
struct names {
    size_t begin[SAMPLING_TOP_MAX + 2], end[SAMPLING_TOP_MAX + 2];
    int32_t count;
};

static void write_entry(const struct reply *reply, struct json *text, struct names *names,
                        int32_t token, float logprob)
{
    size_t before = text->bytes;

    if (names->count > 0)
        json_raw(text, ",");
    size_t begin = text->bytes;
    write_token(reply, text, token);
    if (text->lost)
        return;
    size_t bytes = text->bytes - begin;
    for (int32_t i = 0; i < names->count; i++) {
        if (names->end[i] - names->begin[i] == bytes &&
            memcmp(text->text + names->begin[i], text->text + begin, bytes) == 0) {
            text->bytes = before;
            return;
        }
    }
    names->begin[names->count] = begin;
    names->end[names->count++] = text->bytes;
    json_raw(text, ":");
    write_logprob(text, logprob);
}

/* The likeliest tokens and the token itself; an object, or null where nothing is known. */
static void write_top(const struct reply *reply, struct json *text,
                      const struct token_record *record)
{
    struct names names = {.count = 0};
    bool written = false;

    if (isnan(record->logprob)) {
        json_raw(text, "null");
        return;
    }
    json_raw(text, "{");
    for (int32_t i = 0; i < record->top_count && i < SAMPLING_TOP_MAX; i++) {
        /* In its place, so that of two with one name the likelier is kept. */
        if (!written && record->logprob > record->top[i].logprob &&
            record->token != record->top[i].token) {
            write_entry(reply, text, &names, record->token, record->logprob);
            written = true;
        }
        written |= record->token == record->top[i].token;
        write_entry(reply, text, &names, record->top[i].token, record->top[i].logprob);
    }
    if (!written)
        write_entry(reply, text, &names, record->token, record->logprob);
    json_raw(text, "}");
}

enum column { COLUMN_TOKENS, COLUMN_LOGPROBS, COLUMN_TOP };

static void write_column(const struct reply *reply, struct json *text, const struct piece *piece,
                         enum column column, bool *first)
{
    for (int32_t i = 0; i < piece->token_count; i++) {
        const struct token_record *record = &piece->token[i];
        if (!*first)
            json_raw(text, ",");
        *first = false;
        if (column == COLUMN_TOKENS)
            write_token(reply, text, record->token);
        else if (column == COLUMN_LOGPROBS)
            write_logprob(text, record->logprob);
        else
            write_top(reply, text, record);
    }
}

/* Where each token's text begins, in characters of the choice's text. */
static void write_offsets(const struct reply *reply, struct json *text, const struct piece *piece,
                          int64_t characters, bool *first)
{
    size_t bytes = 0, counted = 0;

    for (int32_t i = 0; i < piece->token_count; i++) {
        if (!*first)
            json_raw(text, ",");
        *first = false;
        size_t until = bytes < piece->text_bytes ? bytes : piece->text_bytes;
        characters += json_characters(piece->text + counted, until - counted);
        counted = until;
        json_int(text, characters);
        bytes += shown_bytes(reply, piece->token[i].token);
    }
}

/* The four arrays of a list of pieces of one choice. */
static void write_logprobs(const struct reply *reply, struct json *text, const struct piece *pieces,
                           int64_t characters)
{
    static const char *const name[] = {"{\"tokens\":[", "],\"token_logprobs\":[",
                                       "],\"top_logprobs\":["};

    for (int column = COLUMN_TOKENS; column <= COLUMN_TOP; column++) {
        bool first = true;
        json_raw(text, name[column]);
        for (const struct piece *piece = pieces; piece != NULL; piece = piece->next)
            write_column(reply, text, piece, (enum column)column, &first);
    }
    bool first = true;
    json_raw(text, "],\"text_offset\":[");
    for (const struct piece *piece = pieces; piece != NULL; piece = piece->next) {
        write_offsets(reply, text, piece, characters, &first);
        characters += json_characters(piece->text, piece->text_bytes);
    }
    json_raw(text, "]}");
}

/* ---- ids ---- */

static void write_ids(struct json *text, const struct piece *pieces)
{
    bool first = true;

    json_raw(text, "[");
    for (const struct piece *piece = pieces; piece != NULL; piece = piece->next) {
        for (int32_t i = 0; i < piece->token_count && !piece->prompt; i++) {
            if (!first)
                json_raw(text, ",");
            first = false;
            json_int(text, piece->token[i].token);
        }
    }
    json_raw(text, "]");
}

static void write_token_ids(struct reply *reply, struct json *text, struct stream *stream,
                            int32_t choice, const struct piece *pieces)
{
    int32_t token_count = 0;

    if (!reply->is.return_token_ids)
        return;
    json_raw(text, ",\"prompt_token_ids\":");
    if (reply->choice[choice].told_prompt) {
        json_raw(text, "null");
    } else {
        const int32_t *token =
            stream_prompt(stream, choice / reply->is.sibling_count, &token_count);
        json_ints(text, token, token_count);
        reply->choice[choice].told_prompt = true;
    }
    json_raw(text, ",\"token_ids\":");
    write_ids(text, pieces);
}

/* ---- one event ---- */

static void count_tokens(struct reply *reply, const struct piece *piece)
{
    if (!piece->prompt)
        reply->completion_tokens += piece->token_count;
}

/* Whether a piece says something: that a token came does, also where there is no text for it. */
static bool worth_an_event(const struct piece *piece)
{
    return piece->text_bytes > 0 || piece->token_count > 0 || piece->finish != FINISH_NONE;
}

static void write_event(struct reply *reply, struct json *text, struct stream *stream,
                        struct piece *piece)
{
    struct choice *choice = &reply->choice[piece->choice];

    count_tokens(reply, piece);
    if (!worth_an_event(piece))
        return;
    json_bytes(text, reply->prefix.text, reply->prefix.bytes);
    json_int(text, piece->choice);
    json_raw(text, ",\"text\":");
    json_string(text, piece->text, piece->text_bytes);
    json_raw(text, ",\"logprobs\":");
    if (reply->is.logprobs)
        write_logprobs(reply, text, piece, choice->characters);
    else
        json_raw(text, "null");
    json_raw(text, ",\"finish_reason\":");
    json_raw(text, finish_name(piece->finish));
    json_raw(text, ",\"stop_reason\":");
    write_stop_reason(reply, text, piece);
    write_token_ids(reply, text, stream, piece->choice, piece);
    json_raw(text, "}]");
    if (reply->is.continuous_usage && reply->is.include_usage) {
        struct stream_usage usage = stream_usage(stream);
        usage.completion_tokens = reply->completion_tokens;
        json_raw(text, ",\"usage\":");
        write_usage(text, &usage);
    } else if (reply->is.include_usage) {
        json_raw(text, ",\"usage\":null");
    }
    json_raw(text, "}\n\n");
    choice->characters += json_characters(piece->text, piece->text_bytes);
    metrics_add(METRIC_SSE_EVENTS, 1);
}

/* ---- a stream ---- */

static void keep(struct reply *reply, struct piece *piece)
{
    struct choice *choice = &reply->choice[piece->choice];

    piece->next = NULL;
    if (choice->final == NULL)
        choice->first = piece;
    else
        choice->final->next = piece;
    choice->final = piece;
}

static struct piece *unkeep(struct choice *choice)
{
    struct piece *piece = choice->first;

    if (piece != NULL) {
        choice->first = piece->next;
        if (choice->first == NULL)
            choice->final = NULL;
        piece->next = NULL;
    }
    return piece;
}

static void write_and_free(struct reply *reply, struct json *text, struct stream *stream,
                           struct piece *piece)
{
    write_event(reply, text, stream, piece);
    piece_free(piece);
}

/* A piece came: writes it, or keeps it while an earlier choice has not appeared. */
static void take(struct reply *reply, struct json *text, struct stream *stream, struct piece *piece)
{
    if (piece->choice > reply->appeared) {
        keep(reply, piece);
        return;
    }
    bool appears = piece->choice == reply->appeared && worth_an_event(piece);
    write_and_free(reply, text, stream, piece);
    if (!appears)
        return;
    reply->appeared++;
    /* The next ones may have waited for it. */
    while (reply->appeared < reply->is.choice_count &&
           reply->choice[reply->appeared].first != NULL) {
        struct choice *choice = &reply->choice[reply->appeared++];
        while ((piece = unkeep(choice)) != NULL)
            write_and_free(reply, text, stream, piece);
    }
}

static void write_end(const struct reply *reply, struct json *text, struct stream *stream)
{
    if (reply->is.include_usage) {
        struct stream_usage usage = stream_usage(stream);
        json_raw(text, "data: ");
        json_bytes(text, reply->head.text, reply->head.bytes);
        json_raw(text, ",\"choices\":[],\"usage\":");
        write_usage(text, &usage);
        json_raw(text, "}\n\n");
    }
    json_raw(text, "data: [DONE]\n\n");
}

static enum output_state write_stream(void *context, struct stream *stream, struct json *text)
{
    struct reply *reply = context;
    struct stream_error error;
    struct piece *piece;

    switch (stream_take(stream, &piece)) {
    case STREAM_PIECE:
        take(reply, text, stream, piece);
        return OUTPUT_MORE;
    case STREAM_END:
        write_end(reply, text, stream);
        return OUTPUT_END;
    case STREAM_ERROR:
        error = stream_error(stream);
        if (error.status == 499)
            return OUTPUT_GONE;
        metrics_error(error.code);
        json_raw(text, "data: ");
        api_error_write(text, &error);
        json_raw(text, "\n\n");
        return OUTPUT_FAILED;
    default:
        return OUTPUT_EMPTY;
    }
}

/* ---- a whole reply ---- */

static enum finish finish_of(const struct piece *pieces, const struct piece **final)
{
    assert(pieces != NULL);
    while (pieces->next != NULL)
        pieces = pieces->next;
    *final = pieces;
    return pieces->finish;
}

static void write_choice(struct reply *reply, struct json *text, struct stream *stream,
                         int32_t index)
{
    const struct piece *pieces = reply->choice[index].first;
    const struct piece *final;

    json_raw(text, "{\"index\":");
    json_int(text, index);
    json_raw(text, ",\"text\":\"");
    for (const struct piece *piece = pieces; piece != NULL; piece = piece->next)
        json_escaped(text, piece->text, piece->text_bytes);
    json_raw(text, "\",\"logprobs\":");
    if (reply->is.logprobs)
        write_logprobs(reply, text, pieces, 0);
    else
        json_raw(text, "null");
    json_raw(text, ",\"finish_reason\":");
    json_raw(text, finish_name(finish_of(pieces, &final)));
    json_raw(text, ",\"stop_reason\":");
    write_stop_reason(reply, text, final);
    write_token_ids(reply, text, stream, index, pieces);
    json_raw(text, "}");
}

static enum output_state write_whole(void *context, struct stream *stream, struct json *text)
{
    struct reply *reply = context;
    enum stream_state state;
    struct piece *piece;

    while ((state = stream_take(stream, &piece)) == STREAM_PIECE)
        keep(reply, piece);
    if (state != STREAM_END)
        return OUTPUT_FAILED;
    json_bytes(text, reply->head.text, reply->head.bytes);
    json_raw(text, ",\"choices\":[");
    for (int32_t i = 0; i < reply->is.choice_count; i++) {
        if (i > 0)
            json_raw(text, ",");
        write_choice(reply, text, stream, i);
    }
    struct stream_usage usage = stream_usage(stream);
    json_raw(text, "],\"usage\":");
    write_usage(text, &usage);
    json_raw(text, "}");
    return OUTPUT_END;
}

/* ---- life ---- */

static void reply_free(void *context)
{
    struct reply *reply = context;
    struct piece *piece;

    for (int32_t i = 0; i < reply->is.choice_count; i++) {
        while ((piece = unkeep(&reply->choice[i])) != NULL)
            piece_free(piece);
    }
    json_release(&reply->prefix);
    json_release(&reply->head);
    completion_stop_free(reply->is.stop, reply->is.stop_count);
    free(reply);
}

static void write_head(struct json *head, const struct completion_reply *is)
{
    json_raw(head, "{\"id\":\"cmpl-");
    json_escaped(head, is->id, strlen(is->id));
    json_raw(head, "\",\"object\":\"text_completion\",\"created\":");
    json_int(head, is->created);
    json_raw(head, ",\"model\":");
    json_string(head, is->model, strlen(is->model));
    json_raw(head, ",\"system_fingerprint\":");
    json_string(head, is->fingerprint, strlen(is->fingerprint));
}

bool completion_output(const struct completion_reply *is, struct output *output)
{
    size_t choices = (size_t)is->choice_count * sizeof(struct choice);
    struct reply *reply = calloc(1, sizeof *reply + choices);

    if (reply == NULL)
        return false;
    reply->is = *is;
    reply->is.id = reply->is.model = reply->is.fingerprint = NULL; /* the caller's */
    write_head(&reply->head, is);
    json_raw(&reply->prefix, "data: ");
    json_bytes(&reply->prefix, reply->head.text, reply->head.bytes);
    json_raw(&reply->prefix, ",\"choices\":[{\"index\":");
    if (reply->head.lost || reply->prefix.lost) {
        reply->is.stop_count = 0; /* still the caller's */
        reply->is.stop = NULL;
        reply_free(reply);
        return false;
    }
    *output = (struct output){
        .whole = !is->stream,
        .write = is->stream ? write_stream : write_whole,
        .free = reply_free,
        .context = reply,
    };
    return true;
}
