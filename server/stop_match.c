/* Aho-Corasick: a trie of the strings whose nodes know the longest proper suffix that is a node.
 *
 * The state is the longest end of the text that begins a stop string, so its depth is exactly
 * what must be held back. A byte costs a constant on average: a step down the trie, or as many
 * steps up as there were down before.
 */
#include "server/stop_match.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

struct node {
    int32_t child;   /* first one, 0: none (the root is nobody's child) */
    int32_t sibling; /* 0: none */
    int32_t suffix;  /* node of the longest proper suffix; the root's is the root */
    int32_t depth;
    int32_t string; /* the longest that ends here, -1: none */
    unsigned char byte;
};

struct stop_set {
    int32_t node_count;
    int32_t root[256]; /* children of node 0 by byte, 0: none */
    int32_t *string_bytes;
    struct node *node; /* [node_count], in the order of their making */
};

static int32_t child_of(const struct stop_set *set, int32_t node, unsigned char byte)
{
    if (node == 0)
        return set->root[byte];
    int32_t child = set->node[node].child;
    while (child != 0 && set->node[child].byte != byte)
        child = set->node[child].sibling;
    return child;
}

static int32_t add_child(struct stop_set *set, int32_t parent, unsigned char byte)
{
    int32_t child = set->node_count++;

    set->node[child] = (struct node){.sibling = set->node[parent].child,
                                     .depth = set->node[parent].depth + 1,
                                     .string = -1,
                                     .byte = byte};
    set->node[parent].child = child;
    if (parent == 0)
        set->root[byte] = child;
    return child;
}

static void add_string(struct stop_set *set, const char *string, int32_t index)
{
    int32_t node = 0;

    assert(string[0] != '\0');
    for (const char *byte = string; *byte != '\0'; byte++) {
        int32_t child = child_of(set, node, (unsigned char)*byte);
        node = child != 0 ? child : add_child(set, node, (unsigned char)*byte);
    }
    if (set->node[node].string < 0) /* of equal strings, the first */
        set->node[node].string = index;
}

/* From `node` by `byte`: the longest end of the text, this byte included, that is a node. */
static int32_t next_of(const struct stop_set *set, int32_t node, unsigned char byte)
{
    int32_t next = child_of(set, node, byte);

    while (next == 0 && node != 0) {
        node = set->node[node].suffix;
        next = child_of(set, node, byte);
    }
    return next;
}

/* Suffixes, shallow nodes first. False: out of memory. */
static bool link_suffixes(struct stop_set *set)
{
    int32_t *queue = malloc((size_t)set->node_count * sizeof(*queue));
    int32_t count = 1;

    if (queue == NULL)
        return false;
    queue[0] = 0;
    for (int32_t i = 0; i < count; i++) {
        int32_t parent = queue[i];
        for (int32_t at = set->node[parent].child; at != 0; at = set->node[at].sibling) {
            struct node *node = &set->node[at];
            queue[count++] = at;
            if (parent != 0)
                node->suffix = next_of(set, set->node[parent].suffix, node->byte);
            if (node->string < 0)
                node->string = set->node[node->suffix].string;
        }
    }
    free(queue);
    return true;
}

struct stop_set *stop_set_create(const char *const *string, int32_t count)
{
    size_t bytes = 0;

    for (int32_t i = 0; i < count; i++)
        bytes += strlen(string[i]);
    if (bytes >= INT32_MAX)
        return NULL;
    struct stop_set *set = calloc(1, sizeof(*set));
    if (set == NULL)
        return NULL;
    set->node = malloc((bytes + 1) * sizeof(*set->node));
    set->string_bytes = malloc(((size_t)count + 1) * sizeof(*set->string_bytes));
    if (set->node == NULL || set->string_bytes == NULL)
        goto failed;
    set->node[0] = (struct node){.string = -1};
    set->node_count = 1;
    for (int32_t i = 0; i < count; i++) {
        set->string_bytes[i] = (int32_t)strlen(string[i]);
        add_string(set, string[i], i);
    }
    if (!link_suffixes(set))
        goto failed;
    return set;
failed:
    stop_set_free(set);
    return NULL;
}

void stop_set_free(struct stop_set *set)
{
    if (set == NULL)
        return;
    free(set->node);
    free(set->string_bytes);
    free(set);
}

struct stop_result stop_match_feed(struct stop_match *match, const char *text, size_t text_bytes)
{
    const struct stop_set *set = match->set;
    int64_t start = match->seen_bytes;

    match->seen_bytes += (int64_t)text_bytes;
    if (set == NULL)
        return (struct stop_result){.string = -1, .safe_bytes = match->seen_bytes};
    for (size_t i = 0; i < text_bytes; i++) {
        match->state = next_of(set, match->state, (unsigned char)text[i]);
        int32_t string = set->node[match->state].string;
        if (string < 0)
            continue;
        match->seen_bytes = start + (int64_t)i + 1;
        return (struct stop_result){.string = string,
                                    .safe_bytes = match->seen_bytes - set->string_bytes[string],
                                    .end_bytes = match->seen_bytes};
    }
    int32_t held = set->node[match->state].depth;
    return (struct stop_result){.string = -1, .safe_bytes = match->seen_bytes - held};
}
