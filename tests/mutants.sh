#!/bin/sh
# Plants bugs in the deciding pillar, one at a time; the simulation must catch each.
#   mutants.sh [NAME]      all, or the one of that name
# A bug is a sed command that must change exactly one place. Copies are made below build/mutants;
# only the changed file is compiled anew.
set -u
cd "$(dirname "$0")/.." || exit 2
out=build/mutants
seed_count=${SEED_COUNT:-100}
only=${1:-}
cc=${CC:-gcc}
flags="-std=c11 -D_GNU_SOURCE -O1 -g -w"
passed=0 failed=0

rm -rf "$out"
mkdir -p "$out/base" "$out/logs"
sources="$(ls kvcache/*.c scheduler/*.c tests/sim/sim_scheduler.c) \
    $(ls tests/sim/*.c | grep -v '/sim_')"

object() { # path of a source's object in a folder
    echo "$1/$(echo "$2" | tr / _).o"
}

for source in $sources; do
    # shellcheck disable=SC2086
    $cc $flags -I. -c "$source" -o "$(object $out/base "$source")" || exit 2
done

link() { # folder, changed source
    objects=
    for source in $sources; do
        from=$out/base
        [ "$source" = "$2" ] && from=$1
        objects="$objects $(object "$from" "$source")"
    done
    # shellcheck disable=SC2086
    $cc -o "$1/sim_scheduler" $objects -lm
}

not_planted() {
    echo "NOT PLANTED $1: $2"
    failed=$((failed + 1))
}

# name, file, sed command, what is wrong then, seeds if the bug shows rarely
mutant() {
    [ -n "$only" ] && [ "$only" != "$1" ] && return
    folder=$out/$1
    mkdir -p "$folder/$(dirname "$2")"
    sed "$3" "$2" >"$folder/$2"
    places=$(diff "$2" "$folder/$2" | grep -c '^[0-9]')
    if [ "$places" -ne 1 ]; then
        not_planted "$1" "the command changes $places places of $2"
        return
    fi
    # shellcheck disable=SC2086
    if ! $cc $flags -I"$folder" -I. -c "$folder/$2" -o "$(object "$folder" "$2")" 2>>"$out/logs/$1" ||
        ! link "$folder" "$2" 2>>"$out/logs/$1"; then
        not_planted "$1" "does not compile: $(head -3 "$out/logs/$1")"
        return
    fi
    count=${5:-$seed_count}
    # The limit is of processor time; a seed that loops fails by itself.
    (ulimit -t 60 && exec "$folder/sim_scheduler" 1 "$count") 2>&1 | head -c 1000000 >"$out/logs/$1"
    seeds=$(grep -c '^FAILED seed' "$out/logs/$1")
    if [ "$seeds" -gt 0 ]; then
        printf 'caught by %3d of %d seeds: %s: %s\n' "$seeds" "$count" "$1" "$4"
        passed=$((passed + 1))
    else
        printf 'NOT CAUGHT: %s: %s\n' "$1" "$4"
        failed=$((failed + 1))
    fi
    rm -rf "$folder"
}

# The oracle itself: without a bug nothing fails.
mkdir -p "$out/none"
link "$out/none" none
if "$out/none/sim_scheduler" 1 "$seed_count" >"$out/logs/none" 2>&1; then
    echo "no bug: no seed of $seed_count fails"
else
    echo "NO BUG, and yet the simulation fails: $out/logs/none"
    exit 1
fi

# ---- kvcache ----
mutant parent_ignored kvcache/index.c \
    's/block->parent == parent && //' 'a match looks at the tokens of the block alone'
mutant hash_decides kvcache/index.c \
    's/if (block->hash == hash && block->parent == parent && block->group == group &&/if (block->hash == hash || /' \
    'an equal hash is enough'
mutant group_ignored kvcache/index.c \
    's/ && block->group == group &&/ \&\&/' "a block of another group's is found"
mutant salt_ignored kvcache/index.c \
    's/if (salt == 0 && adapter == 0)/if (adapter == 0)/' 'salts share blocks'
mutant whole_prompt_matched kvcache/kvcache.c \
    's/(token_count - 1) >> kv->token_shift/token_count >> kv->token_shift/' \
    'the last prompt token is not computed'
mutant match_without_pin kvcache/kvcache.c \
    '/pin(kv, found\[g\]);/d' 'a matched block can be taken by others'
mutant pinned_in_cached_list kvcache/kvcache.c \
    '/^static void pin/,/^}/s/cached_take(kv, index);/(void)kv;/' \
    'a pinned block stays in the list of cached ones'
mutant evicted_in_index kvcache/kvcache.c \
    '/^static void evict/,/^}/{/index_remove(kv, index);/d}' 'an evicted block is still found'
mutant evicted_in_index_quietly kvcache/kvcache.c \
    '/^static void evict/,/^}/s/index_remove(kv, index);/kv->block[index].identity = 0;/' \
    'an evicted block is still found, under no identity'
mutant copy_skipped kvcache/kvcache.c \
    's/if (source == BLOCK_NONE || kv->block\[source\].ref_count == 1)/if (source != BLOCK_NONE - 1)/' \
    'siblings write into the block that they share'
mutant copy_not_moved kvcache/kvcache.c \
    's/if (i << kv->token_shift < written) {/if (i << kv->token_shift > written) {/' \
    'the own block of a sibling lacks the prompt'
mutant fork_not_told kvcache/kvcache.c \
    's|child->forked_count = parent->forked_count = parent->block_count|child->forked_count = parent->block_count|' \
    'a parent thinks that its blocks are its own after a fork'
mutant fork_without_pin kvcache/kvcache.c \
    '/pin(kv, parent->block\[g\]\[i\]);/s/pin(kv/(void)(kv/' 'a sibling does not count as a holder'
mutant reset_while_pinned kvcache/kvcache.c \
    's/if (kvcache_available(kv) < kv->config.block_count)/if (kv->config.block_count < 0)/' \
    'reset says that all is forgotten while blocks are pinned'
mutant peek_forgets_pins kvcache/kvcache.c \
    's/peek.cached_count += /peek.cached_count += 0 \& /' 'admission counts cached blocks twice'
mutant identity_reused kvcache/kvcache.c \
    's/identity = kv->identity_next++;/identity = kv->identity_next;/' \
    'two blocks have one identity'
mutant published_twice kvcache/kvcache.c \
    '/^void kvcache_publish/,/^}/s/if (identity == IDENTITY_NONE)/if (i >= 0)/' \
    'a block that a sibling published enters the index again' 3000
mutant moves_ignore_holders kvcache/kvcache.c \
    's/need += block->ref_count - (retired ? 0 : block->leaving) > 1;/need += 0;/' \
    'a copy is not counted as a block that is needed'

# ---- scheduler ----
mutant published_before_commit scheduler/scheduler.c \
    '/^static void publish/,/^}/s/q->written_count < q->token_count ? q->written_count/q->planned_count < q->token_count ? q->planned_count/' \
    'what a plan in flight will write is published'
mutant published_unwritten scheduler/scheduler.c \
    '/^static void publish/,/^}/s/q->written_count < q->token_count ? q->written_count : q->token_count/q->token_count/' \
    'a token whose K and V come with the next step is published'
mutant released_in_flight scheduler/scheduler.c \
    '/^void scheduler_settle/,/^}/s/if (scheduler_named(s, q))/if (q->slot < 0)/' \
    'blocks and slots go while a plan names them'
mutant copy_source_released scheduler/plan.c \
    's/if (buffer->moves.count > move_count)/if (buffer->moves.count < move_count)/' \
    'the source of a copy is freed while the plan is in flight' 3000
mutant length_of_preempted scheduler/scheduler.c \
    's/else if (seq_output_count(q) == q->output_max)/else if (q->state == SEQ_RUNNING \&\& seq_output_count(q) == q->output_max)/' \
    'the end by length is forgotten for a preempted sequence'
mutant token_of_preempted scheduler/seq.c \
    '/^bool seq_alive/,/^}/s/ || q->state == SEQ_LEAVING//' \
    'the token in flight of a preempted sequence is dropped'
mutant ended_still_wants scheduler/scheduler.c \
    's/if (sample->kind != PLAN_DRAW || !seq_alive(q))/if (sample->kind != PLAN_DRAW)/' \
    'tokens planned before an end was known are kept'
mutant budget_off_by_one scheduler/plan.c \
    's/.token_left = s->config.step_token_max,/.token_left = s->config.step_token_max + 1,/' \
    'a step has one token too many'
mutant samples_off_by_one scheduler/plan.c \
    's/.sample_left = s->config.sample_max,/.sample_left = s->config.sample_max + 1,/' \
    'a step has one sample too many'
mutant chunk_limit_ignored scheduler/plan.c \
    's/if (s->config.chunk_token_max > 0 && count > s->config.chunk_token_max)/if (s->config.chunk_token_max < 0)/' \
    'a prompt takes more of a step than it may'
mutant extended_past_chunk_limit scheduler/plan.c \
    '/^static void extend_long_row/,/^}/s/s->config.chunk_token_max - row->token_count;/s->config.chunk_token_max;/' \
    'what others left makes a chunk longer than it may be'
mutant output_index_ignores_flight scheduler/plan.c \
    's/seq_output_count(q) + q->draw_count,/seq_output_count(q),/' \
    'draws of two steps in flight have one index'
mutant drawn_past_the_end scheduler/seq.c \
    's/return count < count_max ? count : count_max;/return count;/' \
    'a step is planned behind the last token'
mutant oldest_is_victim scheduler/order.c \
    's/return pool->running.last;/return pool->running.first;/' \
    'a sequence with a row in the plan loses its blocks'
mutant prompt_first scheduler/plan.c \
    '/^    plan_decode(s);/{N;N;s/plan_decode(s);\n *limit_prompts(s);\n *plan_prefill(s);/s->making.prompt_first = s->pool.running.first, limit_prompts(s), plan_prefill(s), plan_decode(s);/;}' \
    'a prompt takes the budget of decoding sequences'
mutant place_is_shared kvcache/kvcache.c \
    's/return i >= table->forked_count \&\& i < table->block_count;/return i < table->block_count;/' \
    'a sibling writes into the block that it shares'
mutant copy_not_told scheduler/plan.c \
    's/if (i >= block_count || q->table.block\[g\]\[i\] != before\[g\])/if (i >= block_count)/' \
    'the device keeps the shared block in its table'
mutant sibling_not_started scheduler/plan.c \
    '/^static void fork_siblings/,/^}/s/plan_add_start(s, i);/q->named_step = s->making.buffer->plan.step;/' \
    'the device does not know who has the slot'
mutant host_planned_ahead scheduler/plan.c \
    's/return q->host_dependent && /return false \&\& /' \
    'a step is planned before the host decided'
mutant admitted_without_room scheduler/admit.c \
    's/return need <= scheduler_available/return need > 0 || need <= scheduler_available/' \
    'a prompt is admitted though its blocks are not there'
mutant chunk_not_told scheduler/plan.c \
    's/for (int32_t i = first; i < q->table.block_count; i++) {/for (int32_t i = first; i < q->table.block_count \&\& i == first; i++) {/' \
    'the device knows only the first new block of a chunk'
mutant reserved_taken scheduler/plan.c \
    's/written + 1) > scheduler_available(s)) {/written + 1) > kvcache_available(s->kv)) {/' \
    'a decoding sequence takes a block that a prompt counts on'
mutant reserved_forgotten scheduler/scheduler.c \
    's/return kvcache_available(s->kv) - s->reserved_count;/return kvcache_available(s->kv);/' \
    'two prompts are admitted on the same blocks'
mutant reservation_kept scheduler/scheduler.c \
    '/^static void retire/,/^}/{/scheduler_reserve(s, q, 0);/d}' \
    'what a preempted prompt had reserved is lost'
mutant scored_prompt_matched scheduler/admit.c \
    's/return q->score_next < q->prompt_count ? q->score_next : q->token_count;/return q->token_count;/' \
    'tokens found in the cache get no score'
mutant prompt_not_handed_on scheduler/scheduler.c \
    '/^void scheduler_cancel/,/^}/{/hand_on(s, seq);/d}' \
    'siblings of a cancelled leader wait for ever'
mutant private_root_shared scheduler/scheduler.c \
    's/spec->private_root ? kvcache_root_unique(s->kv)/spec->private_root ? kvcache_root(s->kv, 0, 0)/' \
    'what is private is found by others'
echo "$passed passed, $failed failed"
[ $failed -eq 0 ]
