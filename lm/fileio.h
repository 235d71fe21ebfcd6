/* Files and directories with every error reported, and nothing called written before it is on the disk. */
#ifndef LM_FILEIO_H
#define LM_FILEIO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { LM_PATH_MAX = 4096 };

/* "directory/name"; fails if it is too long. */
bool path_join(char path[LM_PATH_MAX], const char *directory, const char *name);

/* A whole small file as a string; fails if it is larger than max bytes or holds NUL bytes. free() it. */
bool file_read_text(const char *path, size_t max, char **text);

bool file_read_at(int fd, const char *path, void *data, size_t bytes, int64_t offset);
bool file_write(int fd, const char *path, const void *data, size_t bytes);

/* A new file; fails if it exists. */
bool file_create(const char *path, int *fd);

/* fsync and close. The file is closed in any case. */
bool file_finish(int fd, const char *path);

bool file_write_text(const char *path, const char *text);

/* These bytes in place of the file, or the file as it was: they are written to PATH.part, which becomes PATH when all
 * is on the disk. A device or a pipe is written to as it is. */
bool file_replace(const char *path, const void *data, size_t bytes);

bool directory_sync(const char *path);

/* Removes a directory that holds nothing but files; of a link to one, the link. */
bool directory_remove(const char *path);

/* Calls visit for every entry but "." and ".." until it returns false. */
bool directory_walk(const char *path, bool (*visit)(void *arg, const char *name), void *arg);

#endif
