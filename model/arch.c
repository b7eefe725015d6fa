/* The architectures: a line each. */
#include "model/arch.h"

#include <stdio.h>
#include <string.h>

static const struct arch *const table[] = {
    &arch_llama, &arch_mistral, &arch_qwen2, &arch_qwen3, &arch_gemma3,
};

enum { ARCH_COUNT = sizeof(table) / sizeof(*table) };

const struct arch *arch_find(const char *name)
{
    for (int i = 0; i < ARCH_COUNT; i++)
        if (strcmp(table[i]->name, name) == 0)
            return table[i];
    return NULL;
}

void arch_names(char *names, size_t max)
{
    size_t used = 0;

    names[0] = '\0';
    for (int i = 0; i < ARCH_COUNT && used < max; i++)
        used +=
            (size_t)snprintf(names + used, max - used, "%s%s", i > 0 ? ", " : "", table[i]->name);
}
