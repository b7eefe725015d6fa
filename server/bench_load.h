/* The throughput figure of `quire bench`: many requests, all at once or as they come in a Poisson
 * process, and when each saw its tokens. One thread. */
#ifndef SERVER_BENCH_LOAD_H
#define SERVER_BENCH_LOAD_H

struct bench;  /* server/bench.h */
struct config; /* server/config.h */
struct json;   /* server/json_write.h */

/* Runs config->requests requests and adds the figure's line of JSON: 0, -ENOMEM, or -EIO: the
 * device is lost. The same seed gives the same prompts and the same times of arrival. */
int bench_load(struct bench *bench, const struct config *config, struct json *text);

#endif
