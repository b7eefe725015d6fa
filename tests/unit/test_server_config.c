/* Options: values, ranges, sources and their order, the file, and what is printed. */
#include "server/config.h"
#include "server/config_table.h"
#include "tests/test.h"

#include <errno.h>
#include <glob.h>
#include <sys/stat.h>
#include <unistd.h>

enum { ARGUMENT_MAX = 16 };

static struct config config;
static char error[1024];

/* config_read with the words of `line` (blanks part them) behind the command's name. */
static int read_line(enum config_command command, const char *line)
{
    static char copy[4096];
    char *word[ARGUMENT_MAX + 1] = {(char *)"serve"}, *save;
    int count = 1;

    snprintf(copy, sizeof copy, "%s", line);
    for (char *next = strtok_r(copy, " ", &save); next != NULL && count < ARGUMENT_MAX;
         next = strtok_r(NULL, " ", &save))
        word[count++] = next;
    return config_read(&config, command, count, word, error, sizeof error);
}

/* A file in the folder for temporary files; its path is good until the next call. */
static const char *write_file(const char *text, size_t bytes)
{
    static char path[64];
    static int serial;

    snprintf(path, sizeof path, "/tmp/quire-config-%d-%d", (int)getpid(), serial++);
    FILE *file = fopen(path, "w");
    if (file == NULL || fwrite(text, 1, bytes, file) != bytes || fclose(file) != 0)
        abort();
    return path;
}

static int read_yaml(const char *text)
{
    config_defaults(&config, CONFIG_SERVE);
    return config_read_yaml(&config, "q.yaml", text, strlen(text), error, sizeof error);
}

#define EXPECT_REFUSED(call, text)                                                                 \
    do {                                                                                           \
        EXPECT_INT(call, <, 0);                                                                    \
        EXPECT_STRING(error, text);                                                                \
        config_release(&config);                                                                   \
    } while (0)

static void every_default_is_a_value_of_its_own_option(void)
{
    EXPECT_INT(config_defaults(&config, CONFIG_SERVE), ==, 0);
    EXPECT_STRING(config.host, "127.0.0.1");
    EXPECT_INT(config.port, ==, 8000);
    EXPECT_INT(config.max_body_bytes, ==, 32 << 20);
    EXPECT(config.gpu_memory_utilization == 0);
    EXPECT(config.enable_prefix_caching);
    EXPECT_INT(config.log_level, ==, CONFIG_LOG_INFO);
    EXPECT_INT(config.batch.count, ==, 6);
    EXPECT_INT(config.max_model_len, ==, 0);
    config_release(&config);
}

static void every_name_is_found_with_dashes_and_with_underscores(void)
{
    for (int32_t i = 0; i < CONFIG_OPTION_COUNT; i++) {
        char name[CONFIG_NAME_MAX];
        enum config_command command =
            config_table[i].group == CONFIG_GROUP_BENCH ? CONFIG_BENCH : CONFIG_SERVE;
        EXPECT_INT(config_find(command, config_table[i].member), ==, i);
        EXPECT_INT(config_find(command, config_name(i, name)), ==, i);
    }
}

static void flags_take_values_behind_blanks_and_behind_equals_signs(void)
{
    EXPECT_INT(read_line(CONFIG_SERVE, "m.gguf --port 81 --max_num_seqs=7 --no-access-log "
                                       "--log-level=debug --gpu-memory-utilization 0.5"),
               ==, 0);
    EXPECT_STRING(config.model, "m.gguf");
    EXPECT_INT(config.port, ==, 81);
    EXPECT_INT(config.max_num_seqs, ==, 7);
    EXPECT(!config.access_log);
    EXPECT_INT(config.log_level, ==, CONFIG_LOG_DEBUG);
    EXPECT(config.gpu_memory_utilization == 0.5);
    EXPECT_INT(config.origin[CONFIG_port].source, ==, CONFIG_BY_FLAG);
    EXPECT_INT(config.origin[CONFIG_host].source, ==, CONFIG_BY_DEFAULT);
    config_release(&config);
}

static void whole_numbers_take_the_suffixes_of_vllm(void)
{
    static const struct {
        const char *text;
        int32_t value;
    } cases[] = {{"auto", 0},      {"-1", 0},       {"32k", 32000}, {"32K", 32768},
                 {"25.6k", 25600}, {"1M", 1 << 20}, {"4096", 4096}, {"1", 1}};

    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char line[64];
        snprintf(line, sizeof line, "m --max-model-len %s", cases[i].text);
        EXPECT_INT(read_line(CONFIG_SERVE, line), ==, 0);
        EXPECT_INT(config.max_model_len, ==, cases[i].value);
        config_release(&config);
    }
}

static void what_is_no_number_is_refused(void)
{
    static const char *const bad[] = {"",
                                      "x",
                                      "1x",
                                      "0x10",
                                      "1.5",
                                      "1.5K",
                                      "-2",
                                      "2.0001k",
                                      "k",
                                      "1kk",
                                      "1 ",
                                      "+1",
                                      "1e3",
                                      ".5k",
                                      "99999999999999999999",
                                      "9999999999G",
                                      "1.k",
                                      "0"};

    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        struct config_reader reader = {&config, error, sizeof error};
        EXPECT_INT(config_defaults(&config, CONFIG_SERVE), ==, 0);
        EXPECT_INT(config_set(&reader, CONFIG_max_model_len, bad[i],
                              (struct config_place){.source = CONFIG_BY_FLAG}),
                   <, 0);
        EXPECT_INT(config.max_model_len, ==, 0);
        config_release(&config);
    }
}

static void what_is_no_share_is_refused(void)
{
    static const char *const bad[] = {"", "nan", "inf", "1.01", "-0.5", "0.5x", "0x1p-1", "1e9"};

    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        struct config_reader reader = {&config, error, sizeof error};
        EXPECT_INT(config_defaults(&config, CONFIG_SERVE), ==, 0);
        EXPECT_INT(config_set(&reader, CONFIG_gpu_memory_utilization, bad[i],
                              (struct config_place){.source = CONFIG_BY_FLAG}),
                   <, 0);
        EXPECT(config.gpu_memory_utilization == 0);
        config_release(&config);
    }
}

static void a_refusal_names_option_range_and_value(void)
{
    EXPECT_REFUSED(read_line(CONFIG_SERVE, "m --port 99999"),
                   "--port: must be 0 to 65535, not \"99999\"");
    EXPECT_REFUSED(read_line(CONFIG_SERVE, "m --log-level loud"),
                   "--log-level: must be one of error, warn, info, debug, not \"loud\"");
    EXPECT_REFUSED(read_line(CONFIG_SERVE, "m --max-body-bytes 1"),
                   "--max-body-bytes: must be 1K to 4G, not \"1\"");
    EXPECT_REFUSED(read_line(CONFIG_SERVE, "m --gpu-memory-utilization 2"),
                   "--gpu-memory-utilization: must be 0 to 1, not \"2\"");
    EXPECT_REFUSED(read_line(CONFIG_SERVE, "m --port \x1b[31m\n"),
                   "--port: a control character is in \"?[31m?\"");
    EXPECT_REFUSED(read_line(CONFIG_SERVE, "m --port"), "--port: a value is missing");
    EXPECT_REFUSED(read_line(CONFIG_SERVE, "m --port --host x"), "--port: a value is missing");
    EXPECT_REFUSED(read_line(CONFIG_SERVE, "m n"),
                   "unexpected argument \"n\": the model was named already");
    EXPECT_REFUSED(read_line(CONFIG_SERVE, "m --block-size 24"),
                   "block-size: must be a power of two from 1 to 256, not 24");
    EXPECT_REFUSED(read_line(CONFIG_SERVE, "m --max-num-seqs 8 --max-num-batched-tokens 7"),
                   "max-num-batched-tokens: must be at least max-num-seqs (8), not 7");
}

static void an_unknown_option_brings_the_nearest_name(void)
{
    EXPECT_REFUSED(read_line(CONFIG_SERVE, "m --max-num-seq 8"),
                   "--max-num-seq: unknown option; did you mean --max-num-seqs?");
    EXPECT_REFUSED(read_line(CONFIG_SERVE, "m --prot 8"),
                   "--prot: unknown option; did you mean --port?");
    EXPECT_REFUSED(read_line(CONFIG_SERVE, "m --gpu_memory_utilisation 0.5"),
                   "--gpu_memory_utilisation: unknown option; did you mean "
                   "--gpu-memory-utilization?");
    EXPECT_REFUSED(read_line(CONFIG_SERVE, "m --xyzzy"),
                   "--xyzzy: unknown option; --help has all of them");
    EXPECT_REFUSED(read_line(CONFIG_SERVE, "m --no-port"),
                   "--no-port: unknown option; did you mean --port?");
    EXPECT_REFUSED(read_line(CONFIG_SERVE, "m --repeat 3"),
                   "--repeat: unknown option; --help has all of them");
}

static void flags_of_vllm_without_counterpart_are_refused_by_name(void)
{
    EXPECT_REFUSED(read_line(CONFIG_SERVE, "m --enable-dbo"),
                   "--enable-dbo: a flag of vLLM's that has no counterpart here; leave it out");
    EXPECT_REFUSED(read_line(CONFIG_SERVE, "m --tensor-parallel-size 2"),
                   "--tensor-parallel-size: a flag of vLLM's that this version cannot follow yet");
    EXPECT_REFUSED(read_line(CONFIG_SERVE, "m -tp 2"),
                   "-tp: a flag of vLLM's that this version cannot follow yet");
    EXPECT_REFUSED(read_line(CONFIG_SERVE, "m -tp=2"),
                   "-tp: a flag of vLLM's that this version cannot follow yet");
    EXPECT_INT(read_line(CONFIG_SERVE, "m --enable-chunked-prefill"), ==, 0);
    config_release(&config);
    EXPECT_REFUSED(read_line(CONFIG_SERVE, "m --no-enable-chunked-prefill"),
                   "--no-enable-chunked-prefill: cannot be turned off");
}

static void no_refused_flag_is_an_option(void)
{
    for (const struct config_refusal *entry = config_refused; entry->name != NULL; entry++)
        EXPECT_INT(config_find(CONFIG_SERVE, entry->name), ==, -1);
    for (const struct config_refusal *entry = config_always; entry->name != NULL; entry++)
        EXPECT_INT(config_find(CONFIG_SERVE, entry->name), ==, -1);
}

static void lists_take_words_commas_and_repeated_flags(void)
{
    EXPECT_INT(read_line(CONFIG_SERVE, "m --served-model-name a b,c --api-key k1 "
                                       "--served-model-name d --api-key k2,k3"),
               ==, 0);
    EXPECT_INT(config.served_model_name.count, ==, 4);
    EXPECT_STRING(config.served_model_name.item[2], "c");
    EXPECT_STRING(config.served_model_name.item[3], "d");
    EXPECT_INT(config.api_key.count, ==, 2); /* a key may hold a comma */
    EXPECT_STRING(config.api_key.item[1], "k2,k3");
    config_release(&config);
}

static void a_model_without_a_name_is_called_as_its_file(void)
{
    EXPECT_INT(read_line(CONFIG_SERVE, "/models/gemma-3,b.gguf"), ==, 0);
    EXPECT_INT(config.served_model_name.count, ==, 1);
    EXPECT_STRING(config.served_model_name.item[0], "gemma-3_b");
    config_release(&config);
}

static void a_flag_beats_the_environment_beats_the_file_beats_the_default(void)
{
    char line[256];
    static const char text[] = "port: 1\nhost: 0.0.0.0\nthreads: 3\napi-key: [file1, file2]\n";
    const char *path = write_file(text, strlen(text));

    setenv("QUIRE_PORT", "2", 1);
    setenv("QUIRE_THREADS", "4", 1);
    setenv("QUIRE_API_KEY", "e1,e2,e3", 1);
    setenv("QUIRE_MAX_N", "", 1); /* empty: not set */
    snprintf(line, sizeof line, "m --port 3 --config %s", path);
    EXPECT_INT(read_line(CONFIG_SERVE, line), ==, 0);
    EXPECT_INT(config.port, ==, 3);
    EXPECT_INT(config.threads, ==, 4);
    EXPECT_STRING(config.host, "0.0.0.0");
    EXPECT_INT(config.max_n, ==, 128);
    EXPECT_INT(config.api_key.count, ==, 3); /* the stronger source replaces a list */
    EXPECT_INT(config.origin[CONFIG_threads].source, ==, CONFIG_BY_ENVIRONMENT);
    EXPECT_INT(config.origin[CONFIG_host].source, ==, CONFIG_BY_FILE);
    EXPECT_INT(config.origin[CONFIG_host].line, ==, 2);
    config_release(&config);
    unsetenv("QUIRE_PORT");
    unsetenv("QUIRE_THREADS");
    unsetenv("QUIRE_API_KEY");
    unsetenv("QUIRE_MAX_N");
    unlink(path);
}

static void slips_in_the_environment_are_refused_and_strangers_are_not(void)
{
    setenv("QUIRE_MAX_NUM_SEQ", "2", 1);
    EXPECT_REFUSED(read_line(CONFIG_SERVE, "m"),
                   "QUIRE_MAX_NUM_SEQ: unknown option; did you mean QUIRE_MAX_NUM_SEQS?");
    unsetenv("QUIRE_MAX_NUM_SEQ");
    setenv("QUIRE_SERVICE_HOST", "10.0.0.1", 1); /* Kubernetes, for a service of that name */
    setenv("QUIRE_PORT_8000_TCP", "tcp://10.0.0.1:8000", 1);
    EXPECT_INT(read_line(CONFIG_SERVE, "m"), ==, 0);
    config_release(&config);
    setenv("QUIRE_PORT", "tcp://10.0.0.1:8000", 1);
    EXPECT_REFUSED(read_line(CONFIG_SERVE, "m"),
                   "QUIRE_PORT: must be 0 to 65535, not \"tcp://10.0.0.1:8000\" (Kubernetes sets "
                   "this for a service named quire: set enableServiceLinks: false)");
    unsetenv("QUIRE_SERVICE_HOST");
    unsetenv("QUIRE_PORT_8000_TCP");
    unsetenv("QUIRE_PORT");
}

static void the_file_tells_the_line_of_a_mistake(void)
{
    EXPECT_REFUSED(read_yaml("port: 80\nmax-num-seq: 3\n"),
                   "q.yaml:2: max-num-seq: unknown option; did you mean max-num-seqs?");
    EXPECT_REFUSED(read_yaml("\n\nport: 99999\n"),
                   "q.yaml:3: port: must be 0 to 65535, not \"99999\"");
    EXPECT_REFUSED(read_yaml("port: 1\nhost: x\nport: 2\n"),
                   "q.yaml:3: port: said already in line 1");
    EXPECT_REFUSED(read_yaml("port:\n"), "q.yaml:1: port: has no value; leave the line out");
    EXPECT_REFUSED(read_yaml("port: [1, 2]\n"), "q.yaml:1: port: must be one value, not a list");
    EXPECT_REFUSED(read_yaml("port: {a: 1}\n"),
                   "q.yaml:1: port: must be one value, not a list or a mapping");
    EXPECT_REFUSED(read_yaml("api-key: [[a]]\n"),
                   "q.yaml:1: api-key: must be one value, not a list or a mapping");
    EXPECT_REFUSED(read_yaml("- port\n"), "q.yaml:1: must be lines of \"name: value\"");
    EXPECT_REFUSED(read_yaml("enable-dbo: true\n"),
                   "q.yaml:1: enable-dbo: a flag of vLLM's that has no counterpart here; leave it "
                   "out");
    EXPECT_REFUSED(read_yaml("repeat: 3\n"),
                   "q.yaml:1: repeat: unknown option; --help has all of them");
}

static void a_hostile_file_is_refused(void)
{
    static char deep[200001];

    EXPECT_REFUSED(read_yaml("port: &a 80\n"), "q.yaml:1: port: anchors and tags are not taken");
    EXPECT_REFUSED(read_yaml("host: *a\n"), "q.yaml:1: host: anchors and aliases are not taken");
    EXPECT_REFUSED(read_yaml("port: !!int 80\n"), "q.yaml:1: port: anchors and tags are not taken");
    EXPECT_REFUSED(read_yaml("host: \"a\\0b\"\n"), "q.yaml:1: host: a zero byte is in the value");
    EXPECT_REFUSED(read_yaml("port: 1\n---\nport: 2\n"), "q.yaml:2: a second document");
    memset(deep, '[', 200000);
    EXPECT_INT(read_yaml(deep), ==, -EBADMSG);
    config_release(&config);
    memset(deep, 'a', 200000);
    EXPECT_INT(read_yaml(deep), ==, -EBADMSG);
    config_release(&config);
    EXPECT_INT(read_yaml("\xff\xfe\xff"), ==, -EBADMSG);
    config_release(&config);
    EXPECT_INT(read_yaml("a: \"\\"), ==, -EBADMSG);
    config_release(&config);
}

static void an_empty_file_changes_nothing(void)
{
    static const char *const empty[] = {"", "\n", "# only this\n", "---\n", "{}\n"};

    for (size_t i = 0; i < sizeof empty / sizeof empty[0]; i++) {
        EXPECT_INT(read_yaml(empty[i]), ==, 0);
        EXPECT_INT(config.port, ==, 8000);
        config_release(&config);
    }
}

static void the_printed_file_reads_back_as_the_defaults(void)
{
    char *text = NULL;
    size_t bytes;
    FILE *out = open_memstream(&text, &bytes);

    config_print_yaml(out);
    fclose(out);
    EXPECT_INT(config_defaults(&config, CONFIG_SERVE), ==, 0);
    EXPECT_INT(config_read_yaml(&config, "q.yaml", text, bytes, error, sizeof error), ==, 0);
    for (int32_t i = 0; i < CONFIG_OPTION_COUNT; i++) {
        struct config fresh;
        char left[4096], right[4096];
        EXPECT_INT(config_defaults(&fresh, CONFIG_SERVE), ==, 0);
        config_value(&config, i, left, sizeof left);
        config_value(&fresh, i, right, sizeof right);
        EXPECT_STRING(left, right);
        config_release(&fresh);
    }
    config_release(&config);
    free(text);
}

static void the_dump_reads_back_as_itself_and_hides_secrets(void)
{
    char *text = NULL, *again = NULL;
    size_t bytes, again_bytes;
    FILE *out = open_memstream(&text, &bytes);

    EXPECT_INT(read_line(CONFIG_SERVE, "a:b#c.gguf --api-key canary --served-model-name x,y "
                                       "--max-body-bytes 3K --port 9"),
               ==, 0);
    config_resolve(&config, false);
    config_print_dump(out, &config);
    fclose(out);
    config_release(&config);
    EXPECT(strstr(text, "canary") == NULL);
    EXPECT(strstr(text, "# api-key: 1 given, not shown") != NULL);
    EXPECT_INT(read_yaml(text), ==, 0);
    EXPECT_STRING(config.model, "a:b#c.gguf");
    EXPECT_INT(config.served_model_name.count, ==, 2);
    EXPECT_INT(config.max_body_bytes, ==, 3072);
    EXPECT_INT(config.max_num_seqs, ==, 64);
    out = open_memstream(&again, &again_bytes);
    config_print_dump(out, &config);
    fclose(out);
    EXPECT(strstr(again, "port: 9") != NULL);
    config_release(&config);
    free(text);
    free(again);
}

static void sampling_defaults_are_checked_before_the_model_is_opened(void)
{
    char *text = NULL;
    size_t bytes;

    EXPECT_INT(read_line(CONFIG_SERVE, "m --generation-config=vllm --override-generation-config "
                                       "{\"temperature\":0.5,\"max_new_tokens\":9}"),
               ==, 0);
    EXPECT_STRING(config.generation_config, "vllm");
    FILE *out = open_memstream(&text, &bytes);
    config_print_dump(out, &config);
    fclose(out);
    config_release(&config);
    EXPECT_INT(read_yaml(text), ==, 0);
    EXPECT_STRING(config.override_generation_config, "{\"temperature\":0.5,\"max_new_tokens\":9}");
    config_release(&config);
    free(text);
    EXPECT_REFUSED(read_line(CONFIG_SERVE, "m --generation-config="),
                   "generation-config: must be auto, vllm or the path of a folder");
    EXPECT_REFUSED(read_line(CONFIG_SERVE, "m --override-generation-config [1]"),
                   "override-generation-config: no JSON object");
    EXPECT_REFUSED(read_line(CONFIG_SERVE, "m --override-generation-config {\"top_p\":1.5}"),
                   "override-generation-config: top_p is 1.5, not from 0 to 1");
    EXPECT_REFUSED(read_line(CONFIG_SERVE, "m --override-generation-config {\"top_k\":1.5}"),
                   "override-generation-config: top_k is 1.5, no whole number");
    EXPECT_REFUSED(read_line(CONFIG_SERVE, "m --override-generation-config {\"top_q\":1}"),
                   "override-generation-config: top_q is no default that applies; those are "
                   "temperature, top_p, top_k, min_p, repetition_penalty, max_new_tokens");
    EXPECT_INT(read_line(CONFIG_SERVE, "m --override-generation-config {\"top_k\":"), <, 0);
    EXPECT(strncmp(error, "override-generation-config: ", 28) == 0);
    config_release(&config);
    EXPECT_INT(read_line(CONFIG_BENCH, "m --generation-config vllm"), <, 0); /* it draws nothing */
    config_release(&config);
}

static void the_device_fills_what_was_left_to_it(void)
{
    EXPECT_INT(read_line(CONFIG_SERVE, "m"), ==, 0);
    config_resolve(&config, false);
    EXPECT_INT(config.device, ==, CONFIG_DEVICE_CPU);
    EXPECT_INT(config.max_num_seqs, ==, 64);
    EXPECT_INT(config.max_num_batched_tokens, ==, 512);
    EXPECT_INT(config.origin[CONFIG_max_num_seqs].source, ==, CONFIG_BY_DEVICE);
    EXPECT(config.gpu_memory_utilization == 0.5);
    config_release(&config);

    EXPECT_INT(read_line(CONFIG_SERVE, "m --gpu-memory-utilization 0.92"), ==, 0);
    config_resolve(&config, false);
    EXPECT(config.gpu_memory_utilization == 0.92);
    config_release(&config);

    EXPECT_INT(read_line(CONFIG_SERVE, "m --max-num-batched-tokens 7"), ==, 0);
    config_resolve(&config, true);
    EXPECT_INT(config.device, ==, CONFIG_DEVICE_CUDA);
    EXPECT_INT(config.max_num_seqs, ==, 7);
    config_release(&config);

    EXPECT_INT(read_line(CONFIG_SERVE, "m --max-num-seqs 600"), ==, 0);
    config_resolve(&config, false);
    EXPECT_INT(config.max_num_batched_tokens, ==, 600);
    EXPECT_INT(config.origin[CONFIG_max_num_seqs].source, ==, CONFIG_BY_FLAG);
    config_release(&config);
}

static void keys_come_from_a_file_too(void)
{
    static const char text[] = "# ours\nfirst\n\r\nsecond\r\n";
    char line[256];
    const char *path = write_file(text, strlen(text));

    snprintf(line, sizeof line, "m --api-key zero --api-key-file %s", path);
    chmod(path, 0600);
    EXPECT_INT(read_line(CONFIG_SERVE, line), ==, 0);
    EXPECT_INT(config.api_key.count, ==, 3);
    EXPECT_STRING(config.api_key.item[0], "zero");
    EXPECT_STRING(config.api_key.item[2], "second");
    EXPECT_STRING(config.warning, "");
    config_release(&config);
    chmod(path, 0644);
    EXPECT_INT(read_line(CONFIG_SERVE, line), ==, 0);
    EXPECT(strstr(config.warning, "can be read by everyone") != NULL);
    config_release(&config);
    unlink(path);
    EXPECT_INT(read_line(CONFIG_SERVE, line), ==, -EBADMSG);
    config_release(&config);
    path = write_file("# none\n", 7);
    snprintf(line, sizeof line, "m --api-key-file %s", path);
    EXPECT_INT(read_line(CONFIG_SERVE, line), ==, -EBADMSG);
    config_release(&config);
    unlink(path);
}

static void a_file_that_cannot_be_read_is_one_line(void)
{
    char *big = malloc((1 << 20) + 1), line[256];

    EXPECT_REFUSED(read_line(CONFIG_SERVE, "m --config /nowhere/q.yaml"),
                   "--config: could not read /nowhere/q.yaml: No such file or directory");
    EXPECT_REFUSED(read_line(CONFIG_SERVE, "m --config /tmp"),
                   "--config: could not read /tmp: Is a directory");
    memset(big, '#', (1 << 20) + 1);
    const char *path = write_file(big, (1 << 20) + 1);
    snprintf(line, sizeof line, "m --config %s", path);
    EXPECT_INT(read_line(CONFIG_SERVE, line), ==, -EBADMSG);
    EXPECT(strstr(error, "File too large") != NULL);
    config_release(&config);
    unlink(path);
    free(big);
}

/* Options that `command` takes and its help does not show. */
static int missing_in_help(enum config_command command)
{
    char *text = NULL;
    size_t bytes;
    FILE *out = open_memstream(&text, &bytes);
    int missing = 0;

    config_print_help(out, command);
    fclose(out);
    for (int32_t i = 0; i < CONFIG_OPTION_COUNT; i++) {
        char name[CONFIG_NAME_MAX], flag[CONFIG_NAME_MAX + 4];
        bool boolean = config_table[i].kind == CONFIG_KIND_BOOL;
        snprintf(flag, sizeof flag, "  --%s%s", config_name(i, name), boolean ? "," : " ");
        bool shown = strstr(text, flag) != NULL;
        missing += shown != config_takes(command, &config_table[i]) ? 1 : 0;
    }
    free(text);
    return missing;
}

static void help_shows_every_option_of_its_command_and_no_other(void)
{
    EXPECT_INT(missing_in_help(CONFIG_SERVE), ==, 0);
    EXPECT_INT(missing_in_help(CONFIG_BENCH), ==, 0);
}

static void actions_win_over_what_is_missing(void)
{
    EXPECT_INT(read_line(CONFIG_SERVE, "--help"), ==, 0);
    EXPECT_INT(config.action, ==, CONFIG_HELP);
    config_release(&config);
    EXPECT_INT(read_line(CONFIG_SERVE, "-V"), ==, 0);
    EXPECT_INT(config.action, ==, CONFIG_VERSION);
    config_release(&config);
    EXPECT_INT(read_line(CONFIG_SERVE, "m --dump-config"), ==, 0);
    EXPECT_INT(config.action, ==, CONFIG_DUMP);
    config_release(&config);
}

static void every_file_in_configs_is_taken(void)
{
    glob_t files;

    EXPECT_INT(glob("configs/*.yaml", 0, NULL, &files), ==, 0);
    EXPECT_INT(files.gl_pathc, >=, 4);
    for (size_t i = 0; i < files.gl_pathc; i++) {
        char line[256];
        snprintf(line, sizeof line, "m --config %s", files.gl_pathv[i]);
        EXPECT_INT(read_line(CONFIG_SERVE, line), ==, 0);
        EXPECT_STRING(error, "");
        config_release(&config);
    }
    globfree(&files);
}

int main(void)
{
    TEST(every_default_is_a_value_of_its_own_option);
    TEST(every_name_is_found_with_dashes_and_with_underscores);
    TEST(flags_take_values_behind_blanks_and_behind_equals_signs);
    TEST(whole_numbers_take_the_suffixes_of_vllm);
    TEST(what_is_no_number_is_refused);
    TEST(what_is_no_share_is_refused);
    TEST(a_refusal_names_option_range_and_value);
    TEST(an_unknown_option_brings_the_nearest_name);
    TEST(flags_of_vllm_without_counterpart_are_refused_by_name);
    TEST(no_refused_flag_is_an_option);
    TEST(lists_take_words_commas_and_repeated_flags);
    TEST(a_model_without_a_name_is_called_as_its_file);
    TEST(a_flag_beats_the_environment_beats_the_file_beats_the_default);
    TEST(slips_in_the_environment_are_refused_and_strangers_are_not);
    TEST(the_file_tells_the_line_of_a_mistake);
    TEST(a_hostile_file_is_refused);
    TEST(an_empty_file_changes_nothing);
    TEST(the_printed_file_reads_back_as_the_defaults);
    TEST(the_dump_reads_back_as_itself_and_hides_secrets);
    TEST(sampling_defaults_are_checked_before_the_model_is_opened);
    TEST(the_device_fills_what_was_left_to_it);
    TEST(keys_come_from_a_file_too);
    TEST(a_file_that_cannot_be_read_is_one_line);
    TEST(help_shows_every_option_of_its_command_and_no_other);
    TEST(actions_win_over_what_is_missing);
    TEST(every_file_in_configs_is_taken);
    return test_report();
}
