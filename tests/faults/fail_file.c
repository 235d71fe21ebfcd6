/*
 * For LD_PRELOAD: counts the calls by which a program changes files, and has one of them end badly.
 *
 *     NSA_FAULT_AT=N          which one
 *     NSA_FAULT_KIND=kill     the program is killed instead of the call
 *                    half     the same, but of a write the first half is done
 *                    full     the disk is full from then on: a write still puts its first half, whatever else needs
 * room fails with ENOSPC broken   that one call fails with EIO NSA_FAULT_REPORT=FILE   gets a line "NAME PATH" for
 * every call
 *
 * Only what lies in the current folder counts: the program's own files, not the caches of its libraries. What stdio
 * writes goes past these functions.
 */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

enum { MAX_FD = 256, MAX_PATH = 512 };

typedef enum fault { NONE, KILL, HALF, FULL, BROKEN } fault;

static fault kind;
static long n_calls, fault_at;
static int report = -1;
static char folder[MAX_PATH];         /* the current one, with a slash at its end */
static char opened[MAX_FD][MAX_PATH]; /* by descriptor: files that are written, and folders; "": does not count */
static bool is_folder[MAX_FD];

static int (*real_open)(const char *, int, ...);
static ssize_t (*real_write)(int, const void *, size_t);
static int (*real_fsync)(int);
static int (*real_ftruncate)(int, off_t);
static int (*real_close)(int);
static int (*real_rename)(const char *, const char *);
static int (*real_unlink)(const char *);
static int (*real_rmdir)(const char *);
static int (*real_mkdir)(const char *, mode_t);

/* ISO C has no cast from an object pointer to a function pointer; POSIX promises that the bits are right. */
static void find(void *function, const char *name)
{
    void *found = dlsym(RTLD_NEXT, name);
    if (found == NULL)
        abort();
    memcpy(function, &found, sizeof found);
}

__attribute__((constructor)) static void start(void)
{
    static const char *const kinds[] = {"none", "kill", "half", "full", "broken"};
    find(&real_open, "open");
    find(&real_write, "write");
    find(&real_fsync, "fsync");
    find(&real_ftruncate, "ftruncate");
    find(&real_close, "close");
    find(&real_rename, "rename");
    find(&real_unlink, "unlink");
    find(&real_rmdir, "rmdir");
    find(&real_mkdir, "mkdir");
    const char *at = getenv("NSA_FAULT_AT"), *name = getenv("NSA_FAULT_KIND"), *path = getenv("NSA_FAULT_REPORT");
    fault_at = at != NULL ? strtol(at, NULL, 10) : 0;
    for (int i = NONE; name != NULL && i <= BROKEN; i++)
        if (strcmp(name, kinds[i]) == 0)
            kind = (fault)i;
    if (getcwd(folder, sizeof folder - 1) != NULL)
        strcat(folder, "/");
    if (path != NULL)
        report = real_open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
}

static bool counts(const char *path)
{
    return path[0] != '/' || strncmp(path, folder, strlen(folder)) == 0;
}

static const char *path_of(int fd)
{
    return fd >= 0 && fd < MAX_FD ? opened[fd] : "";
}

/* The fault that this call meets. needs_room: a full disk stops it. */
static fault next_call(const char *name, const char *path, bool needs_room)
{
    n_calls++;
    if (report >= 0) {
        char line[MAX_PATH + 32];
        const int n = snprintf(line, sizeof line, "%s %s\n", name, path + (*path == '/' ? strlen(folder) : 0));
        (void)!real_write(report, line, (size_t)n);
    }
    if (kind == NONE || fault_at == 0 || n_calls < fault_at)
        return NONE;
    if (kind == FULL)
        return needs_room ? FULL : NONE;
    if (n_calls > fault_at)
        return NONE;
    if (kind == KILL || (kind == HALF && strcmp(name, "write") != 0))
        (void)raise(SIGKILL);
    return kind;
}

static int refuse(fault met)
{
    errno = met == FULL ? ENOSPC : EIO;
    return -1;
}

/* ---- The calls --------------------------------------------------------------------------------------------------- */

#define EXPORT __attribute__((visibility("default")))

EXPORT int open(const char *path, int flags, ...)
{
    va_list args;
    va_start(args, flags);
    const mode_t mode = (flags & O_CREAT) != 0 ? va_arg(args, mode_t) : 0;
    va_end(args);
    if (!counts(path))
        return real_open(path, flags, mode);
    if ((flags & (O_CREAT | O_TRUNC)) != 0) {
        const fault met = next_call("open", path, access(path, F_OK) != 0);
        if (met != NONE)
            return refuse(met);
    }
    const int fd = real_open(path, flags, mode);
    if (fd >= 0 && fd < MAX_FD && ((flags & O_ACCMODE) != O_RDONLY || (flags & O_DIRECTORY) != 0)) {
        snprintf(opened[fd], MAX_PATH, "%s", path);
        is_folder[fd] = (flags & O_DIRECTORY) != 0;
    }
    return fd;
}

EXPORT ssize_t write(int fd, const void *data, size_t bytes)
{
    if (*path_of(fd) == '\0')
        return real_write(fd, data, bytes);
    const bool was_full = kind == FULL && fault_at > 0 && n_calls >= fault_at;
    const fault met = next_call("write", path_of(fd), true);
    const bool puts_half = met == HALF || (met == FULL && !was_full && bytes > 1);
    const ssize_t put = puts_half ? real_write(fd, data, bytes / 2) : 0;
    if (met == HALF)
        (void)raise(SIGKILL);
    if (met == NONE)
        return real_write(fd, data, bytes);
    return puts_half ? put : refuse(met);
}

EXPORT int fsync(int fd)
{
    const fault met = *path_of(fd) != '\0' ? next_call("fsync", path_of(fd), true) : NONE;
    return met == NONE ? real_fsync(fd) : refuse(met);
}

EXPORT int ftruncate(int fd, off_t length)
{
    const fault met = *path_of(fd) != '\0' ? next_call("ftruncate", path_of(fd), false) : NONE;
    return met == NONE ? real_ftruncate(fd, length) : refuse(met);
}

/* Whatever it returns, the descriptor is closed. */
EXPORT int close(int fd)
{
    fault met = NONE;
    if (*path_of(fd) != '\0') {
        met = is_folder[fd] ? NONE : next_call("close", path_of(fd), false);
        opened[fd][0] = '\0';
    }
    const int status = real_close(fd);
    return met == NONE ? status : refuse(met);
}

EXPORT int rename(const char *from, const char *to)
{
    const fault met = counts(from) ? next_call("rename", from, false) : NONE;
    return met == NONE ? real_rename(from, to) : refuse(met);
}

EXPORT int unlink(const char *path)
{
    const fault met = counts(path) ? next_call("unlink", path, false) : NONE;
    return met == NONE ? real_unlink(path) : refuse(met);
}

EXPORT int rmdir(const char *path)
{
    const fault met = counts(path) ? next_call("rmdir", path, false) : NONE;
    return met == NONE ? real_rmdir(path) : refuse(met);
}

EXPORT int mkdir(const char *path, mode_t mode)
{
    const fault met = counts(path) ? next_call("mkdir", path, true) : NONE;
    return met == NONE ? real_mkdir(path, mode) : refuse(met);
}
