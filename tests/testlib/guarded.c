/* Guarded memory by unmapped pages. The fuzz targets have their own, by the address sanitizer: fuzz/poisoned.c. */
#include "testlib/testlib.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

typedef struct mapping {
    struct mapping *next;
    void *base;
    size_t bytes;
} mapping;

static mapping *pool;

void *guarded(size_t bytes, flush at)
{
    const size_t page = (size_t)sysconf(_SC_PAGESIZE);
    const size_t inner = (bytes + page - 1) / page * page;
    mapping *m = malloc(sizeof *m);
    assert_non_null(m);
    m->bytes = inner + 2 * page;
    m->base = mmap(NULL, m->bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(m->base != MAP_FAILED);
    m->next = pool;
    pool = m;
    char *first = (char *)m->base + page;
    if (inner > 0) {
        assert_int_equal(mprotect(first, inner, PROT_READ | PROT_WRITE), 0);
        memset(first, POISON_BYTE, inner);
    }
    return at == FLUSH_LEFT ? first : first + (inner - bytes);
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
