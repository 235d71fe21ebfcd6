/* Text: what is read, what is held out, and that a training sequence depends on seed, step and row alone. Needles. */
#include "testlib/unit.h"
#include "testlib/testlib.h"

#include "lm/corpus.h"
#include "lm/error.h"
#include "lm/needle.h"
#include "lm/sampler.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static char root[] = "/tmp/nsa-test-corpus-XXXXXX";
static char paths[2][64];

static int make_root(void **state)
{
    (void)state;
    if (mkdtemp(root) == NULL)
        return 1;
    for (int i = 0; i < 2; i++)
        snprintf(paths[i], sizeof paths[i], "%s/%d.txt", root, i);
    return 0;
}

static int remove_root(void **state)
{
    (void)state;
    (void)unlink(paths[0]);
    (void)unlink(paths[1]);
    return rmdir(root);
}

static void write_bytes(int i, const void *bytes, size_t n)
{
    FILE *file = fopen(paths[i], "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(bytes, 1, n, file), n);
    assert_int_equal(fclose(file), 0);
}

static void load(corpus *c, int n)
{
    const char *const names[] = {paths[0], paths[1]};
    if (!corpus_load(c, names, n))
        test_fail("%s", lm_error());
}

static void expect_refused(const char *path, const char *message)
{
    corpus c;
    if (corpus_load(&c, &path, 1))
        test_fail("%s was not refused", path);
    if (strstr(lm_error(), path) == NULL || strstr(lm_error(), message) == NULL)
        test_fail("message '%s', expected '%s'", lm_error(), message);
}

static void test_refuses(void **state)
{
    (void)state;
    char pipe_path[64];
    snprintf(pipe_path, sizeof pipe_path, "%s/pipe", root);
    expect_refused("/nonexistent/file", "No such file");
    expect_refused(root, "directory");
    write_bytes(0, "", 0);
    expect_refused(paths[0], "empty");
    write_bytes(0, "binary\0text", 11);
    expect_refused(paths[0], "not text");
    if (truncate(paths[0], (off_t)1 << 43) == 0) /* a hole of 8 TiB, where the file system has files of that size */
        expect_refused(paths[0], "out of memory");
    assert_int_equal(mkfifo(pipe_path, 0600), 0);
    expect_refused(pipe_path, "not a regular file");
    assert_int_equal(unlink(pipe_path), 0);
}

static void write_two_files(void)
{
    uint8_t bytes[1305];
    rng r = rng_new();
    for (int i = 0; i < 1305; i++)
        bytes[i] = (uint8_t)rng_range(&r, 1, 255);
    write_bytes(0, bytes, 1000);
    write_bytes(1, bytes + 1000, 305);
}

static void test_parts(void **state)
{
    (void)state;
    write_two_files();
    corpus c;
    load(&c, 2);
    assert_int_equal(c.n_bytes, 1305);
    assert_int_equal(c.files[0].n_train, 900);
    assert_int_equal(c.files[1].n_train, 275);
    /* Windows with the byte after them: (100-1)/10 and (30-1)/10. */
    assert_int_equal(corpus_n_windows(&c, CORPUS_HELD_OUT, 10), 9 + 2);
    assert_int_equal(corpus_n_windows(&c, CORPUS_ALL, 10), 99 + 30);
    assert_ptr_equal(corpus_window(&c, CORPUS_HELD_OUT, 10, 8), c.files[0].bytes + 980);
    assert_ptr_equal(corpus_window(&c, CORPUS_HELD_OUT, 10, 10), c.files[1].bytes + 285);
    assert_true(corpus_check(&c, 99));
    assert_false(corpus_check(&c, 100)); /* held out: 100 bytes, no byte after the window */
    assert_false(corpus_check(&c, 950));
    const uint64_t hash = c.hash;
    corpus_free(&c);
    load(&c, 1);
    assert_true(c.hash != hash);
    corpus_free(&c);
}

static void test_samples(void **state)
{
    (void)state;
    enum { N = 200, DRAWS = 400 };
    write_two_files();
    corpus c;
    load(&c, 2);
    train_config cfg = {.seed = 5, .needle_share = 0.0};
    int first_file = 0;
    int different = 0;
    uint8_t before[N + 1] = {0};
    for (int i = 0; i < DRAWS; i++) {
        uint8_t a[N + 1], b[N + 1];
        corpus_sample(&c, &cfg, i / 4, i % 4, N, a);
        corpus_sample(&c, &cfg, i / 4, i % 4, N, b);
        assert_memory_equal(a, b, sizeof a);
        different += memcmp(a, before, sizeof a) != 0;
        memcpy(before, a, sizeof a);
        /* Somewhere in a training part, whole. */
        bool found[2] = {false, false};
        for (int f = 0; f < 2; f++) {
            for (int64_t at = 0; at + N < c.files[f].n_train; at++)
                found[f] = found[f] || memcmp(c.files[f].bytes + at, a, sizeof a) == 0;
        }
        assert_true(found[0] || found[1]);
        first_file += found[0];
    }
    assert_true(different > DRAWS * 9 / 10);
    assert_true(first_file > DRAWS / 2); /* 700 of 775 places are in the first file */
    corpus_free(&c);
}

static bool holds(const uint8_t *bytes, int64_t n, const char *text, int times)
{
    const int64_t length = (int64_t)strlen(text);
    int seen = 0;
    for (int64_t i = 0; i + length <= n; i++)
        seen += memcmp(bytes + i, text, (size_t)length) == 0;
    return seen == times;
}

static void test_needle_share(void **state)
{
    (void)state;
    enum { N = 250, DRAWS = 1000 };
    write_two_files();
    corpus c;
    load(&c, 2);
    const train_config cfg = {.steps = 1000, .seed = 5, .needle_share = 0.3};
    int with = 0;
    for (int i = 0; i < DRAWS; i++) {
        uint8_t bytes[N + 1];
        corpus_sample(&c, &cfg, i, 0, N, bytes);
        with += !holds(bytes, N + 1, "The key is ", 0);
    }
    assert_true(abs(with - 300) < 60);
    corpus_free(&c);
}

static void test_needle_hide(void **state)
{
    (void)state;
    enum { N = 301 };
    uint8_t hay[N], bytes[N];
    memset(hay, '-', sizeof hay);
    for (uint64_t i = 0; i < 200; i++) {
        const needle x = needle_draw(9, 1, i);
        char text[NEEDLE_LENGTH + 1] = "";
        memcpy(text, x.sentence, NEEDLE_LENGTH);
        assert_int_equal(strspn(text + NEEDLE_ANSWER, "0123456789"), 1);
        for (int d = 0; d <= 4; d++) {
            const int64_t answer = needle_hide(bytes, N, hay, &x, d / 4.0, true);
            assert_true(holds(bytes, N, text, 2));
            assert_int_equal(answer, N - NEEDLE_LENGTH + NEEDLE_ANSWER);
            assert_int_equal(bytes[answer], text[NEEDLE_ANSWER]);
            assert_int_equal(bytes[0] == '\n', d == 0);
        }
        (void)needle_hide(bytes, N, hay, &x, 0.5, false);
        assert_true(holds(bytes, N, text, 1));
    }
}

/* ---- The sampler ------------------------------------------------------------------------------------------------- */

static void test_sampler(void **state)
{
    (void)state;
    enum { DRAWS = 20000 };
    float logits[BYTE_VOCABULARY];
    uint8_t byte = 0;
    for (int i = 0; i < BYTE_VOCABULARY; i++)
        logits[i] = -1000.0F;
    logits['a'] = logf(0.5F);
    logits['b'] = logf(0.3F);
    logits['c'] = logf(0.2F);
    const sampler greedy = {0.0, 1.0, 1};
    assert_true(sampler_draw(&greedy, logits, 0, &byte));
    assert_int_equal(byte, 'a');
    const sampler all = {1.0, 1.0, 1};
    const sampler top = {1.0, 0.75, 1};
    int count[2][3] = {{0}};
    for (int i = 0; i < DRAWS; i++) {
        assert_true(sampler_draw(&all, logits, i, &byte));
        count[0][byte - 'a']++;
        assert_true(sampler_draw(&top, logits, i, &byte));
        count[1][byte - 'a']++;
    }
    const double expected[2][3] = {{0.5, 0.3, 0.2}, {0.625, 0.375, 0.0}};
    for (int s = 0; s < 2; s++) {
        for (int i = 0; i < 3; i++)
            assert_true(fabs((double)count[s][i] / DRAWS - expected[s][i]) < 0.02);
    }
    const sampler cold = {0.5, 1.0, 1}; /* p^2: 25 to 9 to 4 */
    int n_a = 0;
    for (int i = 0; i < DRAWS; i++) {
        assert_true(sampler_draw(&cold, logits, i, &byte));
        n_a += byte == 'a';
    }
    assert_true(fabs((double)n_a / DRAWS - 25.0 / 38.0) < 0.02);
    const sampler none = {1.0, 0.0, 1}; /* the likeliest always stays */
    assert_true(sampler_draw(&none, logits, 3, &byte));
    assert_int_equal(byte, 'a');
    logits[7] = NAN;
    assert_false(sampler_draw(&greedy, logits, 0, &byte));
    logits[7] = INFINITY;
    assert_false(sampler_draw(&all, logits, 0, &byte));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_refuses),      cmocka_unit_test(test_parts),       cmocka_unit_test(test_samples),
        cmocka_unit_test(test_needle_share), cmocka_unit_test(test_needle_hide), cmocka_unit_test(test_sampler),
    };
    return cmocka_run_group_tests(tests, make_root, remove_root);
}
