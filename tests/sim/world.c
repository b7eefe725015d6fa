/* Random configurations and lives, and the truth about tokens. */
#include "tests/sim/world.h"

#include <stdio.h>
#include <string.h>

struct scheduler_config config;
struct swarm swarm;
struct scheduler *s;
struct life lives[LIVE_LIMIT];
struct flight flights[PLAN_DEPTH];
int32_t flight_first, flight_count;
sigjmp_buf seed_failed;
struct past past[PAST_LIMIT];
int32_t past_count;
static uint64_t random_state;

void fail(const char *file, int line, const char *condition)
{
    printf("%s:%d: not true: %s\n", file, line, condition);
    siglongjmp(seed_failed, 1);
}

/* ---- random numbers ---- */

uint64_t mix(uint64_t a, uint64_t b)
{
    uint64_t x = (a ^ (b + 0x9e3779b97f4a7c15u)) * 0xbf58476d1ce4e5b9u;

    x ^= x >> 29;
    x *= 0x94d049bb133111ebu;
    return x ^ (x >> 32);
}

void random_start(uint64_t seed)
{
    random_state = seed * 0x2545f4914f6cdd1du + 1;
}

uint64_t random_next(void)
{
    random_state += 0x9e3779b97f4a7c15u;
    return mix(random_state, 0x5851f42d4c957f2du);
}

int32_t between(int32_t low, int32_t high)
{
    return low + (int32_t)(random_next() % (uint64_t)(high - low + 1));
}

bool chance(int32_t percent)
{
    return between(0, 99) < percent;
}

/* ---- truth ---- */

uint64_t value_next(uint64_t before, int32_t token)
{
    return mix(before, (uint64_t)(uint32_t)token);
}

static int32_t true_draw(const struct life *life, int32_t position)
{
    uint64_t x = mix(life->value[0][position - 1], life->seed + (uint64_t)position);

    return (int32_t)(x % (uint64_t)swarm.alphabet);
}

/* Entry CONTEXT_LIMIT of the values keeps what makes the root. */
uint64_t root_value(const struct life *life, int32_t group)
{
    return mix(life->value[group][CONTEXT_LIMIT], 7);
}

void extend_truth(struct life *life, int32_t count)
{
    CHECK(count <= CONTEXT_LIMIT);
    for (int32_t p = life->truth_count; p < count; p++) {
        if (p >= life->prompt_count)
            life->token[p] = true_draw(life, p);
        for (int32_t g = 0; g < config.kv.group_count; g++) {
            uint64_t before = p == 0 ? root_value(life, g) : life->value[g][p - 1];
            life->value[g][p] = value_next(before, life->token[p]);
        }
        life->truth_count = p + 1;
    }
}

/* ---- configuration ---- */

static void choose_pool(void)
{
    static const int32_t most[] = {3, 8, 24, 80};
    int32_t kind = between(0, 3);

    config.kv.block_tokens = 1 << between(0, 5);
    config.kv.group_count = chance(12) ? 2 : 1;
    config.kv.block_count = between(1, most[kind]) * config.kv.group_count;
    if (chance(30)) /* room for few or many tokens, whatever the size of a block */
        config.kv.block_count =
            (between(8, 300) / config.kv.block_tokens + 1) * config.kv.group_count;
    config.kv.matching = chance(90);
    config.kv.hash_constant = chance(30);
}

/* Many siblings of scored prompts that are cached already, in chunks, two plans in flight and a
 * pool that evicts: twins of all kinds. The rarest of them needs slots for the siblings and a long
 * run: one seed in a hundred then meets it, so that 2,000 seeds are sure to. */
static void choose_twins(void)
{
    config.kv.block_tokens = 1 << between(0, 1);
    config.kv.block_count = between(10, 40) * config.kv.group_count;
    config.kv.matching = true;
    config.plan_depth = PLAN_DEPTH;
    config.slot_max = between(4, SLOT_LIMIT);
    config.step_token_max = between(4, 12);
    config.sample_max = between(8, 20);
    config.chunk_token_max = between(2, 6);
    swarm.job_count = JOB_LIMIT - 1;
    swarm.sibling = 70;
    swarm.score = 60;
    swarm.score_only = 0;
    swarm.salt = swarm.private_root = 0;
    swarm.reuse = 90;
    swarm.alphabet = 2;
}

/* Groups that are sent away in the middle of a long prompt, and clients that leave. */
static void choose_crowd(void)
{
    config.kv.block_tokens = 1 << between(0, 2);
    config.kv.block_count = between(12, 40) * config.kv.group_count;
    config.plan_depth = PLAN_DEPTH;
    config.slot_max = between(3, SLOT_LIMIT);
    config.waiting_max = LIVE_LIMIT - SLOT_LIMIT;
    config.step_token_max = between(3, 10);
    config.chunk_token_max = between(1, 3);
    config.sample_max = chance(50) ? between(2, 4) : between(4, 20);
    swarm.sibling = 70;
    swarm.priority = 90;
    swarm.long_prompts = true;
    swarm.cancel = between(2, 20);
    swarm.commit = between(30, 60);
}

void choose_config(void)
{
    memset(&config, 0, sizeof(config));
    choose_pool();
    config.slot_max = chance(50) ? between(1, 4) : between(3, SLOT_LIMIT);
    config.waiting_max = between(1, LIVE_LIMIT - SLOT_LIMIT);
    if (chance(70))
        config.waiting_max = between(SIBLING_LIMIT, LIVE_LIMIT - SLOT_LIMIT);
    config.step_token_max = chance(30) ? between(1, 6) : between(4, 80);
    config.sample_max = chance(30) ? between(1, 4) : between(2, 40);
    config.context_max = chance(30) ? between(2, 24) : between(8, CONTEXT_LIMIT - 2);
    config.chunk_token_max = chance(60) ? 0 : between(1, 24);
    config.plan_depth = chance(30) ? 1 : PLAN_DEPTH;
    config.order_reversed = chance(20);
}

/* Off in half of the seeds, else up to `most`. */
static int32_t some(int32_t most)
{
    return chance(50) ? 0 : between(1, most);
}

void choose_swarm(void)
{
    swarm = (struct swarm){
        .job_count = chance(50) ? between(3, 20) : between(10, JOB_LIMIT - 1),
        .add = between(5, 90),
        .plan = between(40, 100),
        .commit = between(30, 100),
        .early = chance(40) ? 100 : between(0, 100),
        .cancel = some(6),
        .sibling = some(80),
        .score = some(40),
        .score_only = some(60),
        .salt = some(60),
        .private_root = some(30),
        .host = some(40),
        .priority = some(80),
        .reset = some(4),
        .salt_count = chance(30) ? 40 : between(1, 4),
        .reuse = chance(70) ? between(30, 100) : 0,
        .identical = between(0, 80),
        .stop_in = chance(60) ? between(2, 30) : 0,
        .alphabet = chance(50) ? between(1, 3) : between(2, 50),
        .burst = chance(50) ? 1 : between(2, 12),
        .big = some(10),
        .long_prompts = chance(40),
        .short_outputs = chance(40),
    };
    int32_t theme = between(0, 9);
    if (theme < 2)
        choose_twins();
    else if (theme < 4)
        choose_crowd();
    config.step_token_low = chance(50) ? 0 : between(0, config.step_token_max);
}

int32_t room(void)
{
    int64_t pool =
        (int64_t)(config.kv.block_count / config.kv.group_count) * config.kv.block_tokens + 1;

    return pool < config.context_max ? (int32_t)pool : config.context_max;
}
