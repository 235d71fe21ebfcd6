/*
 * For LD_PRELOAD: counts a program's allocations of memory and makes one of them fail.
 *
 *     NSA_FAULT_MODULES="nsa libnsa.so ..."   whose calls count: the files that the calling code lies in, by the start
 *                                             of their names; what the C library allocates, its caller does
 *     NSA_FAULT_AT=N                          the Nth call returns NULL
 *     NSA_FAULT_FROM=N                        the Nth and all after it return NULL
 *     NSA_FAULT_REPORT=FILE                   gets at exit a line "live MODULE OFFSET BYTES" for every block not freed
 *                                             and, if none failed, "call HASH" for every call: of the stack that led
 *                                             to it
 *
 * The hash is of the frames inside the counted modules, by their offsets there: the same in every run.
 */
#include <dlfcn.h>
#include <errno.h>
#include <execinfo.h>
#include <link.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_MODULES = 16, MAX_CALLS = 1 << 16, MAX_LIVE = 1 << 17, MAX_FRAMES = 64, NAME = 64 };

typedef struct module {
    char name[NAME];
    uintptr_t begin, end;
} module;

typedef struct block {
    void *address; /* NULL: free; &tombstone: was used */
    const module *owner;
    size_t offset, bytes;
} block;

static module modules[MAX_MODULES], libc;
static int n_modules; /* 0 until the program starts: nothing counts */
static uint64_t calls[MAX_CALLS];
static long n_calls, fail_at, fail_from;
static const char *report;
static block live[MAX_LIVE];
static char tombstone;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static void *(*real_malloc)(size_t);
static void *(*real_calloc)(size_t, size_t);
static void *(*real_realloc)(void *, size_t);
static void *(*real_aligned_alloc)(size_t, size_t);
static int (*real_posix_memalign)(void **, size_t, size_t);
static void (*real_free)(void *);

/* ISO C has no cast from an object pointer to a function pointer; POSIX promises that the bits are right. */
static void find(void *function, const char *name)
{
    void *found = dlsym(RTLD_NEXT, name);
    if (found == NULL)
        abort();
    memcpy(function, &found, sizeof found);
}

static void find_all(void)
{
    if (real_free != NULL)
        return;
    find(&real_malloc, "malloc");
    find(&real_calloc, "calloc");
    find(&real_realloc, "realloc");
    find(&real_aligned_alloc, "aligned_alloc");
    find(&real_posix_memalign, "posix_memalign");
    find(&real_free, "free");
}

/* ---- Who calls --------------------------------------------------------------------------------------------------- */

static bool lies_in(const module *m, const void *code)
{
    return (uintptr_t)code >= m->begin && (uintptr_t)code < m->end;
}

static const module *module_of(const void *code)
{
    for (int i = 0; i < n_modules; i++)
        if (lies_in(&modules[i], code))
            return &modules[i];
    return NULL;
}

/* Of a call inside the C library: the code that called the library. */
static const void *outside_libc(const void *code)
{
    void *frames[MAX_FRAMES];
    if (n_modules == 0 || !lies_in(&libc, code))
        return code;
    const int n = backtrace(frames, MAX_FRAMES);
    int i = 0;
    while (i < n && frames[i] != code)
        i++;
    while (i < n && lies_in(&libc, frames[i]))
        i++;
    return i < n ? frames[i] : NULL;
}

static bool wanted(const char *name)
{
    const char *words = getenv("NSA_FAULT_MODULES");
    while (words != NULL && *words != '\0') {
        const size_t n = strcspn(words, " ");
        if (n > 0 && strncmp(name, words, n) == 0)
            return true;
        words += n + strspn(words + n, " ");
    }
    return false;
}

static int add_module(struct dl_phdr_info *info, size_t size, void *count)
{
    (void)size;
    int *n = count;
    const char *slash = strrchr(info->dlpi_name, '/');
    const char *name = slash != NULL ? slash + 1 : info->dlpi_name;
    if (*name == '\0' && *n == 0)
        name = "nsa"; /* the program itself, which has no name here and comes first */
    const bool is_libc = strncmp(name, "libc.so", 7) == 0;
    if ((!is_libc && !wanted(name)) || *n == MAX_MODULES)
        return 0;
    module *m = is_libc ? &libc : &modules[(*n)++];
    snprintf(m->name, NAME, "%s", name);
    m->begin = UINTPTR_MAX;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *segment = &info->dlpi_phdr[i];
        if (segment->p_type != PT_LOAD)
            continue;
        const uintptr_t begin = info->dlpi_addr + segment->p_vaddr, end = begin + segment->p_memsz;
        m->begin = begin < m->begin ? begin : m->begin;
        m->end = end > m->end ? end : m->end;
    }
    return 0;
}

static uint64_t stack_hash(void)
{
    void *frames[MAX_FRAMES];
    const int n = backtrace(frames, MAX_FRAMES);
    uint64_t hash = 14695981039346656037U; /* FNV-1a, by words */
    for (int i = 0; i < n; i++) {
        const module *m = module_of(frames[i]);
        if (m != NULL)
            hash = (hash ^ ((uint64_t)(m - modules) << 48 | ((uintptr_t)frames[i] - m->begin))) * 1099511628211U;
    }
    return hash;
}

/* Counts a call from `code` and says whether it must fail. */
static bool fails(const void *code)
{
    if (module_of(code) == NULL)
        return false;
    pthread_mutex_lock(&lock);
    const long n = ++n_calls;
    if (report != NULL && n <= MAX_CALLS && fail_at == 0 && fail_from == 0)
        calls[n - 1] = stack_hash();
    pthread_mutex_unlock(&lock);
    const bool fail = n == fail_at || (fail_from > 0 && n >= fail_from);
    if (fail)
        errno = ENOMEM;
    return fail;
}

/* ---- What lives -------------------------------------------------------------------------------------------------- */

static size_t slot_of(const void *p)
{
    return (size_t)((uintptr_t)p / 16 * 11400714819323198485U >> 47); /* 17 bits */
}

static void *born(void *p, size_t bytes, const void *code)
{
    const module *owner = module_of(code);
    if (p == NULL || owner == NULL || report == NULL)
        return p;
    pthread_mutex_lock(&lock);
    size_t i = slot_of(p);
    for (int tries = 0; live[i].address != NULL && live[i].address != &tombstone; i = (i + 1) % MAX_LIVE)
        if (++tries == MAX_LIVE)
            abort();
    live[i] = (block){p, owner, (uintptr_t)code - owner->begin, bytes};
    pthread_mutex_unlock(&lock);
    return p;
}

static void dies(const void *p)
{
    if (p == NULL || report == NULL)
        return;
    pthread_mutex_lock(&lock);
    for (size_t i = slot_of(p); live[i].address != NULL; i = (i + 1) % MAX_LIVE) {
        if (live[i].address == p) {
            live[i] = (block){.address = &tombstone};
            break;
        }
    }
    pthread_mutex_unlock(&lock);
}

/* ---- The calls --------------------------------------------------------------------------------------------------- */

#define EXPORT __attribute__((visibility("default")))
#define CALLER outside_libc(__builtin_return_address(0))

EXPORT void *malloc(size_t bytes)
{
    find_all();
    const void *caller = CALLER;
    return fails(caller) ? NULL : born(real_malloc(bytes), bytes, caller);
}

EXPORT void *calloc(size_t n, size_t size)
{
    find_all();
    const void *caller = CALLER;
    return fails(caller) ? NULL : born(real_calloc(n, size), n * size, caller);
}

EXPORT void *realloc(void *old, size_t bytes)
{
    find_all();
    const void *caller = CALLER;
    if (fails(caller))
        return NULL;
    dies(old);
    return born(real_realloc(old, bytes), bytes, caller);
}

EXPORT void *aligned_alloc(size_t alignment, size_t bytes)
{
    find_all();
    const void *caller = CALLER;
    return fails(caller) ? NULL : born(real_aligned_alloc(alignment, bytes), bytes, caller);
}

EXPORT int posix_memalign(void **p, size_t alignment, size_t bytes)
{
    find_all();
    const void *caller = CALLER;
    if (fails(caller))
        return ENOMEM;
    const int status = real_posix_memalign(p, alignment, bytes);
    if (status == 0)
        (void)born(*p, bytes, caller);
    return status;
}

EXPORT void free(void *p)
{
    find_all();
    dies(p);
    real_free(p);
}

/* ---- Start and end ----------------------------------------------------------------------------------------------- */

static long number(const char *name)
{
    const char *text = getenv(name);
    return text != NULL ? strtol(text, NULL, 10) : 0;
}

/* Runs when every library is ready, just before the program. */
__attribute__((constructor)) static void start(void)
{
    void *frame[1];
    (void)backtrace(frame, 1); /* the first one allocates */
    find_all();
    fail_at = number("NSA_FAULT_AT");
    fail_from = number("NSA_FAULT_FROM");
    report = getenv("NSA_FAULT_REPORT");
    int n = 0;
    (void)dl_iterate_phdr(add_module, &n);
    n_modules = n;
}

__attribute__((destructor)) static void end(void)
{
    n_modules = 0;
    FILE *file = report != NULL ? fopen(report, "w") : NULL;
    if (file == NULL)
        return;
    for (long i = 0; i < n_calls && i < MAX_CALLS && calls[i] != 0; i++)
        fprintf(file, "call %016llx\n", (unsigned long long)calls[i]);
    for (size_t i = 0; i < MAX_LIVE; i++)
        if (live[i].owner != NULL)
            fprintf(file, "live %s 0x%zx %zu\n", live[i].owner->name, live[i].offset, live[i].bytes);
    fclose(file);
}
