#include "lm/corpus.h"
#include "lm/arena.h"
#include "lm/error.h"
#include "lm/needle.h"
#include "lm/random.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- Reading ----------------------------------------------------------------------------------------------------- */

static bool read_bytes(int fd, const char *path, corpus_file *f)
{
    int64_t done = 0;
    while (done < f->n) {
        const ssize_t got = read(fd, f->bytes + done, (size_t)(f->n - done));
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return lm_fail_errno(path, "cannot read");
        if (got == 0)
            return lm_fail("%s: became shorter while it was read", path);
        done += got;
    }
    return memchr(f->bytes, 0, (size_t)f->n) == NULL ? true : lm_fail("%s: not text: it holds NUL bytes", path);
}

static bool read_open_file(int fd, const char *path, corpus_file *f)
{
    struct stat info;
    if (fstat(fd, &info) != 0)
        return lm_fail_errno(path, "cannot read");
    if (S_ISDIR(info.st_mode))
        return lm_fail("%s: is a directory, not a text file", path);
    if (!S_ISREG(info.st_mode))
        return lm_fail("%s: is not a regular file", path);
    if (info.st_size == 0)
        return lm_fail("%s: is empty", path);
    f->n = info.st_size;
    f->n_train = f->n - f->n / HELD_OUT_FRACTION;
    f->bytes = lm_alloc_zeroed(size_of(f->n, 1)); /* a file may be larger than the memory: it may have holes */
    return f->bytes != NULL ? read_bytes(fd, path, f) : lm_fail("%s: out of memory: %lld bytes", path, (long long)f->n);
}

static bool read_file(const char *path, corpus_file *f)
{
    /* Not blocking: a pipe without a writer is refused instead of waited for. */
    const int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0)
        return lm_fail_errno(path, "cannot open");
    const bool ok = read_open_file(fd, path, f);
    (void)close(fd);
    return ok;
}

/* FNV-1a, 64 bits. */
static uint64_t hash_bytes(uint64_t hash, const uint8_t *bytes, int64_t n)
{
    for (int64_t i = 0; i < n; i++)
        hash = (hash ^ bytes[i]) * 0x100000001b3U;
    return hash;
}

bool corpus_load(corpus *t, const char *const *paths, int32_t n_paths)
{
    *t = (corpus){.n_files = n_paths, .hash = 0xcbf29ce484222325U};
    t->files = calloc((size_t)n_paths, sizeof *t->files);
    if (t->files == NULL)
        return lm_out_of_memory("the text");
    for (int32_t i = 0; i < n_paths; i++) {
        if (!read_file(paths[i], &t->files[i])) {
            corpus_free(t);
            return false;
        }
        t->n_bytes += t->files[i].n;
        t->hash = hash_bytes(t->hash, t->files[i].bytes, t->files[i].n);
        t->hash = random_mix(t->hash); /* where a file ends matters */
    }
    return true;
}

void corpus_free(corpus *t)
{
    for (int32_t i = 0; t->files != NULL && i < t->n_files; i++)
        free(t->files[i].bytes);
    free(t->files);
    *t = (corpus){0};
}

/* ---- Windows ----------------------------------------------------------------------------------------------------- */

static int64_t part_start(const corpus_file *f, corpus_part part)
{
    return part == CORPUS_HELD_OUT ? f->n_train : 0;
}

static int64_t file_windows(const corpus_file *f, corpus_part part, int32_t n)
{
    const int64_t bytes = f->n - part_start(f, part);
    return bytes < 1 ? 0 : (bytes - 1) / n;
}

int64_t corpus_n_windows(const corpus *t, corpus_part part, int32_t n)
{
    int64_t windows = 0;
    for (int32_t i = 0; i < t->n_files; i++)
        windows += file_windows(&t->files[i], part, n);
    return windows;
}

const uint8_t *corpus_window(const corpus *t, corpus_part part, int32_t n, int64_t window)
{
    int32_t i = 0;
    for (; window >= file_windows(&t->files[i], part, n); i++)
        window -= file_windows(&t->files[i], part, n);
    return t->files[i].bytes + part_start(&t->files[i], part) + window * n;
}

/* ---- Training sequences ------------------------------------------------------------------------------------------ */

/* Places where a sequence of n tokens and the byte after it can start. */
static int64_t file_starts(const corpus_file *f, int32_t n)
{
    return f->n_train > n ? f->n_train - n : 0;
}

static int64_t n_starts(const corpus *t, int32_t n)
{
    int64_t starts = 0;
    for (int32_t i = 0; i < t->n_files; i++)
        starts += file_starts(&t->files[i], n);
    return starts;
}

bool corpus_check(const corpus *t, int32_t n)
{
    if (n_starts(t, n) == 0)
        return lm_fail("--data holds no %lld bytes of training text in one file, which --context %d needs",
                       (long long)n + 1, n);
    if (corpus_n_windows(t, CORPUS_HELD_OUT, n) == 0)
        return lm_fail("--data: the last tenth of each file is held out, and none holds the %lld bytes that --context "
                       "%d needs",
                       (long long)n + 1, n);
    return true;
}

void corpus_sample(const corpus *t, const train_config *cfg, int64_t step, int32_t row, int32_t n, uint8_t *bytes)
{
    const uint64_t seed = (uint64_t)cfg->seed;
    const uint64_t stream = RANDOM_TRAINING + (uint64_t)step;
    const uint64_t index = (uint64_t)row << 32;
    int64_t start = random_below(seed, stream, index, n_starts(t, n));
    int32_t i = 0;
    for (; start >= file_starts(&t->files[i], n); i++)
        start -= file_starts(&t->files[i], n);
    memcpy(bytes, t->files[i].bytes + start, (size_t)n + 1);
    if (random_unit(seed, stream, index + 1) < cfg->needle_share)
        needle_mix(bytes, (int64_t)n + 1, (double)step / cfg->steps, seed, stream, index + 2);
}
