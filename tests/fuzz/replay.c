/* Runs a fuzz target over the files of folders, as an ordinary test: replay_X FOLDER... */
#include "fuzz/fuzz.h"

#include <dirent.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

static char **folders;

/* By system calls: a target may have put its own function in the place of fopen. */
static void replay_file(const char *path)
{
    const int fd = open(path, O_RDONLY);
    assert_true(fd >= 0);
    struct stat info;
    assert_int_equal(fstat(fd, &info), 0);
    const size_t size = (size_t)info.st_size;
    uint8_t *data = malloc(size); /* of just the input's size, as libFuzzer gives it */
    assert_true(size == 0 || data != NULL);
    assert_int_equal(read(fd, data, size), size);
    assert_int_equal(close(fd), 0);
    assert_int_equal(LLVMFuzzerTestOneInput(data, size), 0);
    free(data);
}

static void test_replay(void **state)
{
    (void)state;
    int n = 0;
    for (char **folder = folders; *folder != NULL; folder++) {
        DIR *directory = opendir(*folder);
        assert_non_null(directory);
        for (struct dirent *entry; (entry = readdir(directory)) != NULL;) {
            if (entry->d_name[0] == '.')
                continue;
            char path[4096];
            (void)snprintf(path, sizeof path, "%s/%s", *folder, entry->d_name);
            print_message("%s\n", path);
            replay_file(path);
            n++;
        }
        assert_int_equal(closedir(directory), 0);
    }
    assert_true(n > 0);
}

int main(int argc, char **argv)
{
    (void)argc;
    folders = argv + 1;
    (void)setvbuf(stdout, NULL, _IOLBF, BUFSIZ); /* the file that crashed is named before it does */
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_replay)};
    return cmocka_run_group_tests_name("fuzz corpus", tests, NULL, NULL);
}
