/* UTF-8 as this engine accepts it: shortest form, no surrogates, up to U+10FFFF. */
#ifndef MODEL_TEXT_UNICODE_H
#define MODEL_TEXT_UNICODE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum unicode_form {
    UNICODE_COMPLETE,   /* the bytes begin with a whole code point */
    UNICODE_INCOMPLETE, /* all bytes are the beginning of one that needs more */
    UNICODE_BROKEN,     /* no continuation can make them well-formed */
};

/* What text[0 ... bytes - 1] (bytes from 1) begins with. *taken: COMPLETE: the code point's bytes;
 * INCOMPLETE: `bytes`; BROKEN: the ill-formed part that one U+FFFD stands for, from 1. */
enum unicode_form unicode_next(const char *text, size_t bytes, size_t *taken);

/* Whether all of the text is well-formed. */
bool unicode_valid(const char *text, size_t bytes);

enum { UNICODE_REPLACEMENT_BYTES = 3 };
/* U+FFFD at `target`, which has room for its three bytes; how many they are. */
size_t unicode_put_replacement(char *target);

/* The code point that text[0 ... bytes - 1] (bytes from 1) begins with, and the one that ends right
 * before text[at] (at from 1); -1 where the bytes are none. */
int32_t unicode_at(const char *text, size_t bytes);
int32_t unicode_before(const char *text, size_t at);

/* Unicode's White_Space, and what a regex calls a word character (Alphabetic, marks, decimal
 * digits, connectors); false for -1. */
bool unicode_is_space(int32_t code);
bool unicode_is_word(int32_t code);

/* The code point in UTF-8 at `target`, which has room for four bytes; how many they are. */
size_t unicode_put(char *target, int32_t code);

#endif
