/* Guarded memory by unmapped pages. The fuzz targets have their own, by the address sanitizer: fuzz/poisoned.c. */
#include "testlib/testlib.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

typedef struct mapping {
    struct mapping *next;
    char *base;
    size_t bytes;
    char *first, *end;     /* the pages between the two that are not mapped */
    char *data, *data_end; /* the buffer */
} mapping;

static mapping *pool;

/* Pages for so many bytes. */
static mapping *map(size_t bytes)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    const size_t inner = (bytes + page - 1) / page * page;
    mapping *m = malloc(sizeof *m);
    require(m != NULL);
    *m = (mapping){.next = pool, .bytes = inner + 2 * page};
    void *base = mmap(NULL, m->bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    require(base != MAP_FAILED);
    m->base = base;
    m->first = m->base + page;
    m->end = m->first + inner;
    pool = m;
    if (inner > 0)
        require(mprotect(m->first, inner, PROT_READ | PROT_WRITE) == 0);
    if (is_sparse(bytes))
        madvise(m->first, inner, MADV_NOHUGEPAGE); /* a page for what is touched, not 2 MiB */
    else
        memset(m->first, POISON_BYTE, inner);
    return m;
}

static void *place(mapping *m, char *data, size_t bytes)
{
    m->data = data;
    m->data_end = data + bytes;
    return data;
}

void *guarded(size_t bytes, flush at)
{
    mapping *m = map(bytes);
    return place(m, at == FLUSH_LEFT ? m->first : m->end - bytes, bytes);
}

void *guarded_within(size_t bytes, size_t before)
{
    mapping *m = map(before + bytes);
    return place(m, m->first + before, bytes);
}

static bool is_poison(const char *from, const char *to)
{
    return from == to ||
           (*(const unsigned char *)from == POISON_BYTE && memcmp(from, from + 1, (size_t)(to - from - 1)) == 0);
}

void assert_slack_intact(void)
{
    for (const mapping *m = pool; m != NULL; m = m->next) {
        const size_t bytes = (size_t)(m->data_end - m->data);
        if (is_sparse(bytes))
            continue;
        if (!is_poison(m->first, m->data))
            test_fail("written before the start of a buffer of %zu bytes", bytes);
        if (!is_poison(m->data_end, m->end))
            test_fail("written past the end of a buffer of %zu bytes", bytes);
    }
}

void each_buffer(void (*visit)(void *to, char *first, size_t bytes), void *to)
{
    for (const mapping *m = pool; m != NULL; m = m->next)
        visit(to, m->first, (size_t)(m->end - m->first));
}

void testlib_reset(void)
{
    while (pool != NULL) {
        mapping *m = pool;
        pool = m->next;
        munmap(m->base, m->bytes);
        free(m);
    }
}
