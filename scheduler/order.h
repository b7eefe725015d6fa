/* Who goes first: the lower priority value, then the earlier arrival.
 * Lists of sequences are kept in this order. */
#ifndef SCHEDULER_ORDER_H
#define SCHEDULER_ORDER_H

#include "scheduler/seq.h"

/* Whether `left` goes before `right`; no two sequences are equal. */
bool order_before(const struct seq_pool *pool, int32_t left, int32_t right);
/* Puts `seq` at its place; looks for it from the back. */
void order_insert(struct seq_pool *pool, struct seq_list *list, int32_t seq);
/* Who gives up its blocks next: the youngest of the lowest priority; SEQ_NONE: nobody runs. */
int32_t order_victim(const struct seq_pool *pool);

/* Any list, whatever its order. */
void list_init(struct seq_list *list);
void list_insert_after(struct seq_pool *pool, struct seq_list *list, int32_t prev, int32_t seq);
void list_append(struct seq_pool *pool, struct seq_list *list, int32_t seq);
void list_remove(struct seq_pool *pool, struct seq_list *list, int32_t seq);

#endif
