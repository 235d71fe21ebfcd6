#include "lm/fileio.h"
#include "lm/arena.h"
#include "lm/error.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

bool path_join(char path[LM_PATH_MAX], const char *directory, const char *name)
{
    const int n = snprintf(path, LM_PATH_MAX, "%s/%s", directory, name);
    return n > 0 && n < LM_PATH_MAX ? true : lm_fail("%.100s...: the path is too long", directory);
}

bool file_read_at(int fd, const char *path, void *data, size_t bytes, int64_t offset)
{
    for (size_t done = 0; done < bytes;) {
        const ssize_t got = pread(fd, (char *)data + done, bytes - done, (off_t)(offset + (int64_t)done));
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return lm_fail_errno(path, "cannot read");
        if (got == 0)
            return lm_fail("%s: ends too early", path);
        done += (size_t)got;
    }
    return true;
}

bool file_write(int fd, const char *path, const void *data, size_t bytes)
{
    for (size_t done = 0; done < bytes;) {
        const ssize_t put = write(fd, (const char *)data + done, bytes - done);
        if (put < 0 && errno == EINTR)
            continue;
        if (put < 0)
            return lm_fail_errno(path, "cannot write");
        done += (size_t)put;
    }
    return true;
}

static bool read_text(int fd, const char *path, size_t max, char **text)
{
    struct stat info;
    if (fstat(fd, &info) != 0)
        return lm_fail_errno(path, "cannot read");
    if (!S_ISREG(info.st_mode))
        return lm_fail("%s: is not a regular file", path);
    if ((uint64_t)info.st_size > max)
        return lm_fail("%s: is larger than %zu bytes", path, max);
    const size_t n = (size_t)info.st_size;
    char *bytes = malloc(size_add(n, 1));
    if (bytes == NULL)
        return lm_fail("%s: out of memory", path);
    bytes[n] = '\0';
    if (!file_read_at(fd, path, bytes, n, 0) || (strlen(bytes) != n && !lm_fail("%s: holds NUL bytes", path))) {
        free(bytes);
        return false;
    }
    *text = bytes;
    return true;
}

bool file_read_text(const char *path, size_t max, char **text)
{
    const int fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0)
        return lm_fail_errno(path, "cannot open");
    const bool ok = read_text(fd, path, max, text);
    (void)close(fd);
    return ok;
}

bool file_create(const char *path, int *fd)
{
    *fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    return *fd >= 0 ? true : lm_fail_errno(path, "cannot create");
}

bool file_finish(int fd, const char *path)
{
    const bool synced = fsync(fd) == 0 ? true : lm_fail_errno(path, "cannot write");
    const bool closed = close(fd) == 0 || !synced ? true : lm_fail_errno(path, "cannot write");
    return synced && closed;
}

static bool write_new(const char *path, const void *data, size_t bytes)
{
    int fd = -1;
    LM_TRY(file_create(path, &fd));
    if (file_write(fd, path, data, bytes))
        return file_finish(fd, path);
    (void)close(fd);
    return false;
}

bool file_write_text(const char *path, const char *text)
{
    return write_new(path, text, strlen(text));
}

static bool write_device(const char *path, const void *data, size_t bytes)
{
    const int fd = open(path, O_WRONLY | O_NOCTTY | O_CLOEXEC);
    if (fd < 0)
        return lm_fail_errno(path, "cannot open");
    const bool written = file_write(fd, path, data, bytes);
    const bool closed = close(fd) == 0 || !written ? true : lm_fail_errno(path, "cannot write");
    return written && closed;
}

bool file_replace(const char *path, const void *data, size_t bytes)
{
    struct stat info;
    char target[LM_PATH_MAX]; /* of a link: the file that it points to, or else the link would be replaced */
    char part[LM_PATH_MAX];
    if (stat(path, &info) == 0 && !S_ISREG(info.st_mode))
        return write_device(path, data, bytes);
    if (lstat(path, &info) != 0 || !S_ISLNK(info.st_mode) || realpath(path, target) == NULL)
        (void)snprintf(target, sizeof target, "%s", path);
    const int n = snprintf(part, sizeof part, "%s.part", target);
    if (n < 0 || n >= (int)sizeof part)
        return lm_fail("%.100s...: the path is too long", path);
    if (unlink(part) != 0 && errno != ENOENT) /* what a killed run has left */
        return lm_fail_errno(part, "cannot remove");
    const bool ok = write_new(part, data, bytes) && (rename(part, target) == 0 || lm_fail_errno(path, "cannot write"));
    if (!ok)
        (void)unlink(part);
    return ok;
}

bool directory_sync(const char *path)
{
    const int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0)
        return lm_fail_errno(path, "cannot open");
    const bool ok = fsync(fd) == 0 ? true : lm_fail_errno(path, "cannot write");
    (void)close(fd);
    return ok;
}

bool directory_walk(const char *path, bool (*visit)(void *arg, const char *name), void *arg)
{
    DIR *directory = opendir(path);
    if (directory == NULL)
        return lm_fail_errno(path, "cannot open");
    bool ok = true;
    errno = 0;
    for (struct dirent *entry = NULL; ok && (entry = readdir(directory)) != NULL; errno = 0) {
        if (strcmp(entry->d_name, ".") != 0 && strcmp(entry->d_name, "..") != 0)
            ok = visit(arg, entry->d_name);
    }
    if (ok && errno != 0)
        ok = lm_fail_errno(path, "cannot read");
    (void)closedir(directory);
    return ok;
}

static bool remove_file(void *directory, const char *name)
{
    char path[LM_PATH_MAX];
    LM_TRY(path_join(path, directory, name));
    return unlink(path) == 0 ? true : lm_fail_errno(path, "cannot remove");
}

bool directory_remove(const char *path)
{
    struct stat info;
    char copy[LM_PATH_MAX];
    (void)snprintf(copy, sizeof copy, "%s", path);
    if (lstat(path, &info) == 0 && S_ISLNK(info.st_mode)) /* somebody else's files are not ours to remove */
        return unlink(path) == 0 ? true : lm_fail_errno(path, "cannot remove");
    LM_TRY(directory_walk(path, remove_file, copy));
    return rmdir(path) == 0 ? true : lm_fail_errno(path, "cannot remove");
}
