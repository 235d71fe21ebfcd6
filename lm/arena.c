#include "lm/arena.h"

#include <stdio.h>
#include <string.h>

/* Linux grants memory that it does not have and kills whoever touches it: what it could still give, or SIZE_MAX where
 * it does not say. */
static size_t available_memory(void)
{
    FILE *file = fopen("/proc/meminfo", "r");
    if (file == NULL)
        return SIZE_MAX;
    char line[256];
    unsigned long long kib = 0;
    bool found = false;
    while (!found && fgets(line, sizeof line, file) != NULL)
        found = sscanf(line, "MemAvailable: %llu kB", &kib) == 1;
    (void)fclose(file);
    return found && kib < SIZE_MAX / 1024 ? (size_t)kib * 1024 : SIZE_MAX;
}

void *lm_alloc_zeroed(size_t bytes)
{
    enum { SMALL = 1 << 20 };
    const size_t rounded = bytes == 0 ? LM_ALIGN : size_round_up(bytes, LM_ALIGN);
    if (rounded == SIZE_MAX || (rounded > SMALL && rounded > available_memory()))
        return NULL;
    void *p = aligned_alloc(LM_ALIGN, rounded);
    return p == NULL ? NULL : memset(p, 0, rounded);
}
