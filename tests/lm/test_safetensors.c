/* safetensors: what is written comes back, and every way to tamper with a file is refused by its name. */
#include "testlib/unit.h"
#include "testlib/testlib.h"

#include "lm/error.h"
#include "lm/safetensors.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char directory[] = "/tmp/nsa-test-safetensors-XXXXXX";
static char path[64];

static int make_directory(void **state)
{
    (void)state;
    snprintf(path, sizeof path, "%s/x.safetensors", mkdtemp(directory));
    return 0;
}

static int remove_directory(void **state)
{
    (void)state;
    (void)unlink(path);
    return rmdir(directory);
}

static void write_raw(const void *bytes, size_t n)
{
    FILE *file = fopen(path, "wb");
    assert_non_null(file);
    assert_int_equal(fwrite(bytes, 1, n, file), n);
    assert_int_equal(fclose(file), 0);
}

/* length says how long the header is; -1: as long as it is. */
static void write_file(const char *header, int64_t length, size_t data_bytes)
{
    static char bytes[1 << 16];
    const size_t n = strlen(header);
    const uint64_t stated = length < 0 ? n : (uint64_t)length;
    for (int i = 0; i < 8; i++)
        bytes[i] = (char)(stated >> (8 * i) & 0xff);
    memcpy(bytes + 8, header, n);
    memset(bytes + 8 + n, 0, data_bytes);
    write_raw(bytes, 8 + n + data_bytes);
}

static void expect_refused(const char *what, const char *message)
{
    safetensors f;
    if (safetensors_open(&f, path)) {
        safetensors_close(&f);
        test_fail("%s was not refused", what);
    }
    if (strstr(lm_error(), path) == NULL || strstr(lm_error(), message) == NULL || strchr(lm_error(), '\n') != NULL)
        test_fail("%s: message '%s', expected '%s'", what, lm_error(), message);
}

static void test_round_trip(void **state)
{
    (void)state;
    const float a[6] = {1.0F, -2.5F, 3e-38F, 0.0F, -0.0F, 5e30F};
    const float b[1] = {7.0F};
    const int64_t shape_a[] = {2, 3};
    const int64_t shape_b[] = {1};
    const int64_t shape_c[] = {4, 0};
    const safetensor_source sources[] = {{"first", 2, shape_a, a},
                                         {"a \"quoted\" \\ name\n", 1, shape_b, b},
                                         {"empty", 2, shape_c, NULL},
                                         {"scalar", 0, NULL, b}};
    (void)unlink(path);
    assert_true(safetensors_write_f32(path, sources, 4));
    assert_false(safetensors_write_f32(path, sources, 4)); /* never over a file that is there */

    safetensors f;
    float got[6];
    if (!safetensors_open(&f, path))
        test_fail("%s", lm_error());
    assert_int_equal(f.n, 4);
    assert_int_equal(f.data_start % 64, 0);
    assert_true(safetensors_read_f32(&f, "first", 2, shape_a, got));
    assert_memory_equal(got, a, sizeof a);
    assert_true(safetensors_read_f32(&f, "a \"quoted\" \\ name\n", 1, shape_b, got));
    assert_memory_equal(got, b, sizeof b);
    assert_true(safetensors_read_f32(&f, "empty", 2, shape_c, got));
    assert_true(safetensors_read_f32(&f, "scalar", 0, NULL, got));
    assert_false(safetensors_read_f32(&f, "missing", 1, shape_b, got));
    assert_false(safetensors_read_f32(&f, "first", 1, shape_b, got));
    const int64_t turned[] = {3, 2};
    assert_false(safetensors_read_f32(&f, "first", 2, turned, got));
    safetensors_close(&f);
}

static void test_accepts(void **state)
{
    (void)state;
    static const struct {
        const char *header;
        size_t data_bytes;
    } good[] = {
        {"{}", 0},
        {"{\"__metadata__\":{\"format\":\"pt\"}}", 0},
        {"{\"b\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[4,12]},"
         "\"a\":{\"dtype\":\"BF16\",\"shape\":[2,1],\"data_offsets\":[0,4]}}   ",
         12},
        {"{\"e\":{\"dtype\":\"U8\",\"shape\":[0,9007199254740991],\"data_offsets\":[0,0]}}", 0},
    };
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++) {
        safetensors f;
        write_file(good[i].header, -1, good[i].data_bytes);
        if (!safetensors_open(&f, path))
            test_fail("%s: %s", good[i].header, lm_error());
        safetensors_close(&f);
    }
}

#define TENSOR(dtype, shape, offsets) "{\"dtype\":" dtype ",\"shape\":" shape ",\"data_offsets\":" offsets "}"
#define ONE(dtype, shape, offsets) "{\"a\":" TENSOR(dtype, shape, offsets) "}"
#define F32_2 TENSOR("\"F32\"", "[2]", "[0,8]")

static void test_refuses_headers(void **state)
{
    (void)state;
    static const struct {
        const char *header;
        size_t data_bytes;
        const char *message;
    } bad[] = {
        {"[]", 0, "not a JSON object"},
        {" {}", 0, "not a JSON object"},
        {"{", 0, "not valid JSON"},
        {"{}x", 0, "not valid JSON"},
        {"{}{}", 0, "not valid JSON"},
        {"{\"a\":1}", 0, "needs dtype"},
        {"{\"a\":{}}", 0, "needs dtype"},
        {"{\"a\":[]}", 0, "needs dtype"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2]}}", 8, "needs dtype"},
        {"{\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8],\"x\":1}}", 8, "nothing else"},
        {"{\"a\":{\"dtype\":\"F32\",\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]}}", 8, "nothing else"},
        {ONE("5", "[2]", "[0,8]"), 8, "needs dtype"},
        {ONE("\"F31\"", "[2]", "[0,8]"), 8, "unknown dtype"},
        {ONE("\"F32\"", "2", "[0,8]"), 8, "needs dtype"},
        {ONE("\"F32\"", "[2]", "[0,8,8]"), 8, "needs dtype"},
        {ONE("\"F32\"", "[2]", "[0]"), 8, "needs dtype"},
        {ONE("\"F32\"", "[-2]", "[0,8]"), 8, "impossible shape"},
        {ONE("\"F32\"", "[2.5]", "[0,8]"), 8, "impossible shape"},
        {ONE("\"F32\"", "[\"2\"]", "[0,8]"), 8, "impossible shape"},
        {ONE("\"F32\"", "[1e300]", "[0,8]"), 8, "impossible shape"},
        {ONE("\"F32\"", "[9007199254740992]", "[0,8]"), 8, "impossible shape"},
        {ONE("\"F32\"", "[4611686018427387905]", "[0,8]"), 8, "impossible shape"},
        {ONE("\"F32\"", "[2147483648,2147483648,2]", "[0,0]"), 0, "impossible shape"},
        {ONE("\"F32\"", "[1,1,1,1,1,1,1,1,2]", "[0,8]"), 8, "impossible shape"},
        {ONE("\"F32\"", "[2]", "[0,12]"), 8, "outside"},
        {ONE("\"F32\"", "[2]", "[8,0]"), 8, "outside"},
        {ONE("\"F32\"", "[2]", "[-8,0]"), 8, "outside"},
        {ONE("\"F32\"", "[2]", "[0.5,8]"), 8, "outside"},
        {ONE("\"F32\"", "[2]", "[0,18446744073709551616]"), 8, "outside"},
        {ONE("\"F32\"", "[2]", "[\"0\",8]"), 8, "outside"},
        {ONE("\"F32\"", "[3]", "[0,8]"), 8, "its shape needs"},
        {ONE("\"F32\"", "[1]", "[0,8]"), 8, "its shape needs"},
        {ONE("\"F32\"", "[2]", "[0,8]"), 9, "belong to no tensor"},
        {ONE("\"F32\"", "[2]", "[4,12]"), 12, "expected is 0"},
        {"{\"a\":" F32_2 ",\"a\":" F32_2 "}", 8, "is there twice"},
        {"{\"a\":" F32_2 ",\"b\":" F32_2 "}", 8, "expected is 8"},
        {"{\"a\":" F32_2 ",\"b\":" TENSOR("\"F32\"", "[2]", "[4,12]") "}", 12, "expected is 8"},
        {"{\"a\":" F32_2 ",\"b\":" TENSOR("\"F32\"", "[2]", "[12,20]") "}", 20, "expected is 8"},
        {"{\"__metadata__\":{\"a\":1}}", 0, "__metadata__"},
        {"{\"__metadata__\":3}", 0, "__metadata__"},
        {"{\"__metadata__\":{},\"__metadata__\":{}}", 0, "twice"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        write_file(bad[i].header, -1, bad[i].data_bytes);
        expect_refused(bad[i].header, bad[i].message);
    }
}

static void test_refuses_lengths(void **state)
{
    (void)state;
    write_raw("", 0);
    expect_refused("an empty file", "too short");
    write_raw("\2\0\0\0\0\0\0", 7);
    expect_refused("seven bytes", "too short");
    static const int64_t lengths[] = {0, 3, 1 << 20, 100000001, INT64_MAX};
    for (size_t i = 0; i < sizeof lengths / sizeof lengths[0]; i++) {
        write_file("{}", lengths[i], 0);
        expect_refused("a header length", "cannot be");
    }
    write_raw("\xff\xff\xff\xff\xff\xff\xff\xff{}", 10);
    expect_refused("a header of 2^64-1 bytes", "cannot be");
    write_raw("\4\0\0\0\0\0\0\0{}\0 ", 12);
    expect_refused("a NUL byte in the header", "not a JSON object");
}

/* Every prefix of a good file is refused. */
static void test_refuses_truncation(void **state)
{
    (void)state;
    const float a[4] = {1.0F, 2.0F, 3.0F, 4.0F};
    const int64_t shape[] = {2, 2};
    const safetensor_source source = {"tensor", 2, shape, a};
    (void)unlink(path);
    assert_true(safetensors_write_f32(path, &source, 1));
    char bytes[512];
    FILE *file = fopen(path, "rb");
    assert_non_null(file);
    const size_t n = fread(bytes, 1, sizeof bytes, file);
    assert_int_equal(fclose(file), 0);
    for (size_t length = 0; length < n; length++) {
        write_raw(bytes, length);
        expect_refused("a truncated file", "");
    }
    write_raw(bytes, n);
    safetensors f;
    assert_true(safetensors_open(&f, path));
    safetensors_close(&f);
}

static void test_refuses_other_things(void **state)
{
    (void)state;
    safetensors f;
    assert_false(safetensors_open(&f, directory));
    assert_non_null(strstr(lm_error(), directory));
    assert_false(safetensors_open(&f, "/nonexistent/x"));
    assert_non_null(strstr(lm_error(), "/nonexistent/x"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),         cmocka_unit_test(test_accepts),
        cmocka_unit_test(test_refuses_headers),    cmocka_unit_test(test_refuses_lengths),
        cmocka_unit_test(test_refuses_truncation), cmocka_unit_test(test_refuses_other_things),
    };
    return cmocka_run_group_tests(tests, make_directory, remove_directory);
}
