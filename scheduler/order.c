/* Order of sequences and the lists that keep it. Insertion looks from the back, where new
 * arrivals belong; a preempted sequence, which belongs to the front, is rare. */
#include "scheduler/order.h"

#include <assert.h>

bool order_before(const struct seq_pool *pool, int32_t left, int32_t right)
{
    const struct seq *a = &pool->seq[left];
    const struct seq *b = &pool->seq[right];

    assert(left != right);
    if (a->priority != b->priority)
        return a->priority < b->priority;
    return (a->arrival < b->arrival) != pool->order_reversed;
}

void list_init(struct seq_list *list)
{
    *list = (struct seq_list){.first = SEQ_NONE, .last = SEQ_NONE};
}

/* `prev` SEQ_NONE: at the front. */
void list_insert_after(struct seq_pool *pool, struct seq_list *list, int32_t prev, int32_t seq)
{
    struct seq *q = &pool->seq[seq];

    q->prev = prev;
    q->next = prev == SEQ_NONE ? list->first : pool->seq[prev].next;
    if (prev == SEQ_NONE)
        list->first = seq;
    else
        pool->seq[prev].next = seq;
    if (q->next == SEQ_NONE)
        list->last = seq;
    else
        pool->seq[q->next].prev = seq;
    list->count++;
}

void list_append(struct seq_pool *pool, struct seq_list *list, int32_t seq)
{
    list_insert_after(pool, list, list->last, seq);
}

void list_remove(struct seq_pool *pool, struct seq_list *list, int32_t seq)
{
    struct seq *q = &pool->seq[seq];

    if (q->prev == SEQ_NONE)
        list->first = q->next;
    else
        pool->seq[q->prev].next = q->next;
    if (q->next == SEQ_NONE)
        list->last = q->prev;
    else
        pool->seq[q->next].prev = q->prev;
    q->prev = SEQ_NONE;
    q->next = SEQ_NONE;
    list->count--;
    assert(list->count >= 0);
}

void order_insert(struct seq_pool *pool, struct seq_list *list, int32_t seq)
{
    int32_t prev = list->last;

    while (prev != SEQ_NONE && order_before(pool, seq, prev))
        prev = pool->seq[prev].prev;
    list_insert_after(pool, list, prev, seq);
}

int32_t order_victim(const struct seq_pool *pool)
{
    return pool->running.last;
}
