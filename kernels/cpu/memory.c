/* How much memory may still be taken: what the machine has available, or less where a control
 * group (a container, a systemd service with MemoryMax) is limited.
 *
 * A group's page cache counts as used in its figures but is given back when it is needed, so that
 * a model file that was just read does not count against the memory that it will be packed into. */
#include "kernels/cpu/device.h"

#include <stdio.h>
#include <string.h>

enum { LINE_BYTES = 256, GROUP_BYTES = 2048, PATH_BYTES = GROUP_BYTES + 64 };

/* The two kinds of control groups: where they are, and what they call things. */
struct hierarchy {
    const char *root;
    const char *marker; /* in /proc/self/cgroup, before the group's path */
    const char *limit, *used, *inactive, *active;
};

static const struct hierarchy hierarchies[] = {
    {"/sys/fs/cgroup", "0::", "memory.max", "memory.current", "inactive_file", "active_file"},
    {"/sys/fs/cgroup/memory", ":memory:", "memory.limit_in_bytes", "memory.usage_in_bytes",
     "total_inactive_file", "total_active_file"},
};

/* The first number in a file, or `otherwise` where there is no file or no number ("max"). */
static size_t number_in(const char *path, size_t otherwise)
{
    FILE *file = fopen(path, "r");
    unsigned long long number = 0;

    if (file == NULL)
        return otherwise;
    int fields = fscanf(file, "%llu", &number);
    (void)fclose(file);
    return fields == 1 ? (size_t)number : otherwise;
}

/* The sum of the numbers behind two keys at the beginnings of lines. */
static size_t numbers_behind(const char *path, const char *first, const char *second)
{
    FILE *file = fopen(path, "r");
    char line[LINE_BYTES];
    size_t sum = 0;

    while (file != NULL && fgets(line, sizeof(line), file) != NULL) {
        char key[LINE_BYTES];
        unsigned long long number = 0;
        if (sscanf(line, "%255s %llu", key, &number) != 2)
            continue;
        if (strcmp(key, first) == 0 || strcmp(key, second) == 0)
            sum += (size_t)number;
    }
    if (file != NULL)
        (void)fclose(file);
    return sum;
}

static size_t group_left(const struct hierarchy *h, const char *group)
{
    char path[PATH_BYTES];

    (void)snprintf(path, sizeof(path), "%s/%s", group, h->limit);
    size_t limit = number_in(path, SIZE_MAX);
    if (limit == SIZE_MAX)
        return SIZE_MAX;
    (void)snprintf(path, sizeof(path), "%s/%s", group, h->used);
    size_t used = number_in(path, 0);
    (void)snprintf(path, sizeof(path), "%s/memory.stat", group);
    size_t cache = numbers_behind(path, h->inactive, h->active);
    used = used > cache ? used - cache : 0;
    return limit > used ? limit - used : 0;
}

/* The least that this process's group and those above it have left. */
static size_t groups_left(const struct hierarchy *h)
{
    FILE *file = fopen("/proc/self/cgroup", "r");
    char line[GROUP_BYTES / 2], group[GROUP_BYTES];
    size_t least = SIZE_MAX;

    (void)snprintf(group, sizeof(group), "%s", h->root);
    while (file != NULL && fgets(line, sizeof(line), file) != NULL) {
        const char *marker = strstr(line, h->marker);
        line[strcspn(line, "\n")] = '\0';
        if (marker != NULL)
            (void)snprintf(group, sizeof(group), "%s%s", h->root, marker + strlen(h->marker));
    }
    if (file != NULL)
        (void)fclose(file);
    while (strlen(group) >= strlen(h->root)) {
        size_t left = group_left(h, group);
        least = left < least ? left : least;
        *strrchr(group, '/') = '\0';
    }
    return least;
}

size_t cpu_memory_free(struct device *device)
{
    size_t bytes = numbers_behind("/proc/meminfo", "MemAvailable:", "") * 1024;

    (void)device;
    for (size_t i = 0; i < sizeof(hierarchies) / sizeof(*hierarchies); i++) {
        size_t left = groups_left(&hierarchies[i]);
        bytes = left < bytes ? left : bytes;
    }
    return bytes;
}
