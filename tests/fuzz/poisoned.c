/* testlib's guarded memory, faster and exact at both ends: pieces of one arena, all else of which is poisoned for the
 * address sanitizer. Linked in the place of testlib/guarded.c where that sanitizer is there. */
#include "testlib/unit.h"
#include "testlib/testlib.h"

#include <sanitizer/asan_interface.h>
#include <string.h>

enum { ARENA_BYTES = 1 << 26, GAP = 1 << 10 };

static _Alignas(64) char memory[ARENA_BYTES];
static size_t used = ARENA_BYTES; /* nothing is poisoned yet */

void testlib_reset(void)
{
    ASAN_POISON_MEMORY_REGION(memory, used);
    used = GAP;
}

/* Flush with poison on the right whatever `at`: on the left the sanitizer sees no further than 8 bytes, and an element
 * may need less. So the left end lies at a multiple of 64, and the right one where it falls. */
void *guarded(size_t bytes, flush at)
{
    (void)at;
    const size_t rounded = (bytes + ARENA_ALIGN - 1) & ~(size_t)(ARENA_ALIGN - 1);
    assert_true(rounded >= bytes && used < ARENA_BYTES && rounded < ARENA_BYTES - used - GAP);
    char *p = memory + used;
    ASAN_UNPOISON_MEMORY_REGION(p, bytes);
    memset(p, POISON_BYTE, bytes);
    used += rounded + GAP;
    return p;
}

void *guarded_within(size_t bytes, size_t before)
{
    (void)before;
    return guarded(bytes, FLUSH_RIGHT);
}

void assert_slack_intact(void) /* the sanitizer has looked at every access */
{
}
