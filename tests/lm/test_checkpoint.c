/* Checkpoints: a resumed run is the uninterrupted one bit for bit, and a kill or damage never costs the last good one.
 */
#include "testlib/unit.h"
#include "testlib/testlib.h"

#include "lm/checkpoint.h"
#include "lm/error.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { STEPS = 7, SAVED = 4 };

static char root[] = "/tmp/nsa-test-checkpoint-XXXXXX";
static char dir[64];
static int lock = -1; /* on dir */

static void must(bool ok)
{
    if (!ok)
        test_fail("%s", lm_error());
}

static int make_root(void **state)
{
    (void)state;
    return mkdtemp(root) == NULL;
}

static int remove_root(void **state)
{
    (void)state;
    return rmdir(root);
}

static int new_dir(void **state)
{
    (void)state;
    snprintf(dir, sizeof dir, "%s/run", root);
    return checkpoint_prepare(dir, &lock) ? 0 : 1;
}

static bool remove_entry(void *arg, const char *name)
{
    char path[LM_PATH_MAX];
    struct stat info;
    must(path_join(path, arg, name));
    assert_int_equal(lstat(path, &info), 0);
    if (S_ISDIR(info.st_mode))
        must(directory_remove(path));
    else
        assert_int_equal(unlink(path), 0);
    return true;
}

static int remove_dir(void **state)
{
    (void)state;
    (void)close(lock);
    return directory_walk(dir, remove_entry, dir) && rmdir(dir) == 0 ? 0 : 1;
}

static lm_config tiny(attention_kind attention)
{
    lm_config c;
    config_init(&c);
    c.model.attention = (int32_t)attention;
    c.model.context = 40;
    c.model.layers = 1;
    c.model.d_model = 16;
    c.model.heads = 2;
    c.model.kv_heads = 1;
    c.model.head_dim = 8;
    c.model.d_ff = 24;
    c.model.slc_topk = 3;
    c.train.batch = 2;
    c.train.steps = STEPS;
    c.train.warmup = 2;
    c.train.needle_share = 0.5;
    return c;
}

static corpus_file file;
static corpus data;

static void make_corpus(void)
{
    static uint8_t bytes[4000];
    rng r = rng_new();
    for (size_t i = 0; i < sizeof bytes; i++)
        bytes[i] = (uint8_t)rng_range(&r, 'a', 'h');
    file = (corpus_file){bytes, sizeof bytes, sizeof bytes * 9 / 10};
    data = (corpus){&file, 1, file.n, 77};
}

static trainer *train_to(const lm_config *cfg, int64_t step, double *losses)
{
    trainer *t = NULL;
    must(trainer_create(&t, cfg, &data));
    while (t->step < step)
        must(trainer_step(t, &losses[t->step]));
    return t;
}

static void save_at(const lm_config *cfg, int64_t step)
{
    double losses[STEPS];
    trainer *t = train_to(cfg, step, losses);
    must(checkpoint_save(dir, t));
    trainer_destroy(t);
}

static void find(char checkpoint[LM_PATH_MAX], int64_t step)
{
    char expected[LM_PATH_MAX];
    bool found = false;
    snprintf(expected, sizeof expected, "%.60s/step-%d", dir, (int)step);
    must(checkpoint_find(dir, checkpoint, &found));
    assert_true(found);
    assert_string_equal(checkpoint, expected);
}

static bool count_entry(void *n, const char *name)
{
    *(int *)n += strcmp(name, ".lock") != 0;
    return true;
}

static int entries(void)
{
    int n = 0;
    must(directory_walk(dir, count_entry, &n));
    return n;
}

/* ---- Resuming ---------------------------------------------------------------------------------------------------- */

static void check_resume(attention_kind attention)
{
    const lm_config cfg = tiny(attention);
    double expected[STEPS];
    double losses[STEPS];
    trainer *whole = train_to(&cfg, STEPS, expected);
    save_at(&cfg, SAVED);

    char checkpoint[LM_PATH_MAX];
    checkpoint_info info;
    find(checkpoint, SAVED);
    must(checkpoint_read_info(checkpoint, &info));
    assert_memory_equal(&info.cfg, &cfg, sizeof cfg);
    trainer *t = NULL;
    must(trainer_create(&t, &info.cfg, &data));
    must(checkpoint_resume(checkpoint, &info, t));
    assert_int_equal(t->step, SAVED);
    while (t->step < STEPS) {
        const int64_t step = t->step;
        must(trainer_step(t, &losses[step]));
        assert_memory_equal(&losses[step], &expected[step], sizeof(double));
    }
    assert_memory_equal(t->m->weights, whole->m->weights, (size_t)t->m->table.total * sizeof(float));
    trainer_destroy(t);
    trainer_destroy(whole);
}

static void test_resume_is_uninterrupted_nsa(void **state)
{
    (void)state;
    check_resume(ATTENTION_NSA);
}

static void test_resume_is_uninterrupted_dense(void **state)
{
    (void)state;
    check_resume(ATTENTION_DENSE);
}

static void test_resume_wants_its_text(void **state)
{
    (void)state;
    const lm_config cfg = tiny(ATTENTION_NSA);
    save_at(&cfg, 1);
    char checkpoint[LM_PATH_MAX];
    checkpoint_info info;
    trainer *t = NULL;
    find(checkpoint, 1);
    must(checkpoint_read_info(checkpoint, &info));
    must(trainer_create(&t, &info.cfg, &data));
    data.hash++;
    assert_false(checkpoint_resume(checkpoint, &info, t));
    assert_non_null(strstr(lm_error(), "--data"));
    data.hash--;
    trainer_destroy(t);
}

/* ---- Directories ------------------------------------------------------------------------------------------------- */

static void test_keeps_the_newest(void **state)
{
    (void)state;
    const lm_config cfg = tiny(ATTENTION_DENSE);
    char checkpoint[LM_PATH_MAX];
    bool found = true;
    must(checkpoint_find(dir, checkpoint, &found));
    assert_false(found);
    save_at(&cfg, 2);
    save_at(&cfg, 3);
    save_at(&cfg, 3); /* there already */
    find(checkpoint, 3);
    assert_int_equal(entries(), 1);
    model *m = NULL;
    checkpoint_info info;
    must(checkpoint_load_model(checkpoint, &m, &info)); /* DIR/step-N */
    model_destroy(m);
    must(checkpoint_load_model(dir, &m, &info)); /* DIR */
    assert_int_equal(info.step, 3);
    model_destroy(m);
}

/* What a kill leaves: a new checkpoint that is not whole, an old one that is half removed; and names of other things.
 */
static void test_survives_a_kill(void **state)
{
    (void)state;
    const lm_config cfg = tiny(ATTENTION_NSA);
    char path[LM_PATH_MAX], inside[LM_PATH_MAX], checkpoint[LM_PATH_MAX];
    save_at(&cfg, 2);
    static const char *const leftovers[] = {".step-3", ".step-1"};
    for (int i = 0; i < 2; i++) {
        must(path_join(path, dir, leftovers[i]));
        assert_int_equal(mkdir(path, 0777), 0);
        must(path_join(inside, path, "model.safetensors"));
        must(file_write_text(inside, "half of it"));
    }
    static const char *const strangers[] = {"step-", "step-03", "step-3x", "step--3", "step-99999999999999999999"};
    for (int i = 0; i < 5; i++) {
        must(path_join(path, dir, strangers[i]));
        must(file_write_text(path, "not a checkpoint"));
    }
    find(checkpoint, 2);
    (void)close(lock); /* as the kill did */
    must(checkpoint_prepare(dir, &lock));
    assert_int_equal(entries(), 1 + 5);
    find(checkpoint, 2);
    save_at(&cfg, 3);
    find(checkpoint, 3);
    assert_int_equal(entries(), 1 + 5);
}

static void test_one_trainer_at_a_time(void **state)
{
    (void)state;
    int second = -1;
    assert_false(checkpoint_prepare(dir, &second));
    assert_non_null(strstr(lm_error(), dir));
    assert_non_null(strstr(lm_error(), "another nsa train"));
    (void)close(lock);
    must(checkpoint_prepare(dir, &second));
    assert_false(checkpoint_prepare(dir, &lock));
    lock = second;
}

/* What saving asks of the disk, in order: s for a file or directory synced, r for a rename. These stand in for libc's.
 */
static char asked[32];

static void ask(char what)
{
    const size_t n = strlen(asked);
    if (n < sizeof asked - 1)
        asked[n] = what;
}

int fsync(int fd)
{
    ask('s');
    return fdatasync(fd);
}

int rename(const char *from, const char *to)
{
    ask('r');
    return renameat(AT_FDCWD, from, AT_FDCWD, to);
}

/* Three files and their directory are on the disk before they get their name, and the name is before the old checkpoint
 * goes. */
static void test_synced_before_it_is_named(void **state)
{
    (void)state;
    const lm_config cfg = tiny(ATTENTION_DENSE);
    memset(asked, 0, sizeof asked);
    save_at(&cfg, 1);
    assert_string_equal(asked, "ssssrs");
    memset(asked, 0, sizeof asked);
    save_at(&cfg, 2);
    assert_string_equal(asked, "ssssrsr");
}

/* A disk that is full, or a directory that cannot be written, leaves the old checkpoint. */
static void test_failed_save_keeps_the_old(void **state)
{
    (void)state;
    const lm_config cfg = tiny(ATTENTION_DENSE);
    char path[LM_PATH_MAX];
    char checkpoint[LM_PATH_MAX];
    double losses[STEPS];
    save_at(&cfg, 2);
    trainer *t = train_to(&cfg, 3, losses);
    must(path_join(path, dir, ".step-3"));
    must(file_write_text(path, "in the way"));
    assert_false(checkpoint_save(dir, t));
    assert_non_null(strstr(lm_error(), path));
    find(checkpoint, 2);
    assert_int_equal(unlink(path), 0);
    must(checkpoint_save(dir, t));
    find(checkpoint, 3);
    trainer_destroy(t);
}

/* ---- Damage ------------------------------------------------------------------------------------------------------ */

static void expect_damaged(const char *name, const char *message)
{
    model *m = NULL;
    checkpoint_info info;
    if (checkpoint_load_model(dir, &m, &info)) {
        model_destroy(m);
        test_fail("damage to %s was not noticed", name);
    }
    assert_null(m);
    if (strstr(lm_error(), name) == NULL || strstr(lm_error(), message) == NULL)
        test_fail("message '%s' should name '%s' and '%s'", lm_error(), name, message);
}

static void put_text(const char *path, const char *text)
{
    assert_int_equal(unlink(path), 0);
    must(file_write_text(path, text));
}

/* A folder of checkpoints from elsewhere may hold links: what they point to stays. */
static void test_removes_links_only(void **state)
{
    (void)state;
    const lm_config cfg = tiny(ATTENTION_NSA);
    char elsewhere[80], kept[96], leftover[80], step[80];
    snprintf(elsewhere, sizeof elsewhere, "%s/elsewhere", root);
    snprintf(kept, sizeof kept, "%s/file", elsewhere);
    snprintf(leftover, sizeof leftover, "%s/.step-9", dir);
    snprintf(step, sizeof step, "%s/step-0", dir);
    assert_int_equal(mkdir(elsewhere, 0777), 0);
    must(file_write_text(kept, "mine"));
    assert_int_equal(symlink(elsewhere, leftover), 0);
    assert_int_equal(symlink(elsewhere, step), 0);
    (void)close(lock);
    must(checkpoint_prepare(dir, &lock));
    save_at(&cfg, 1);
    struct stat info;
    assert_int_equal(lstat(leftover, &info), -1);
    assert_int_equal(lstat(step, &info), -1);
    assert_int_equal(unlink(kept), 0);
    assert_int_equal(rmdir(elsewhere), 0);
}

/* config.json with the first `from` replaced. */
static void damage_config(const char *path, const char *good, const char *from, const char *to, const char *message)
{
    char text[4096];
    const char *at = strstr(good, from);
    if (at == NULL)
        test_fail("config.json does not hold '%s'", from);
    snprintf(text, sizeof text, "%.*s%s%s", (int)(at - good), good, to, at + strlen(from));
    put_text(path, text);
    expect_damaged("config.json", message);
}

static void test_refuses_damaged_config(void **state)
{
    (void)state;
    const lm_config cfg = tiny(ATTENTION_NSA);
    char checkpoint[LM_PATH_MAX], path[LM_PATH_MAX];
    char *good = NULL;
    save_at(&cfg, 1);
    find(checkpoint, 1);
    must(path_join(path, checkpoint, "config.json"));
    must(file_read_text(path, 4096, &good));
    damage_config(path, good, "{", "", "not valid JSON");
    damage_config(path, good, "}", "} {", "not valid JSON");
    damage_config(path, good, "\"d_model\":\t16", "\"d_model\":\t0", "'d_model'");
    damage_config(path, good, "\"d_model\":\t16", "\"d_model\":\t16.5", "'d_model'");
    damage_config(path, good, "\"d_model\":\t16", "\"d_model\":\t1e99", "'d_model'");
    damage_config(path, good, "\"d_model\":\t16", "\"d_model\":\t\"16\"", "'d_model' is not a number");
    damage_config(path, good, "\"d_model\":\t16", "\"d_model\":\t16, \"d_model\":\t16", "'d_model' is there twice");
    damage_config(path, good, "\"d_model\"", "\"d_modem\"", "'d_model' is missing");
    damage_config(path, good, "\"d_model\"", "\"more\": 1, \"d_model\"", "not known");
    damage_config(path, good, "\"nsa\"", "\"sparse\"", "'attention'");
    damage_config(path, good, "\"heads\":\t2", "\"heads\":\t3, \"x\": 0", "not known");
    damage_config(path, good, "\"kv_heads\":\t1", "\"kv_heads\":\t3", "--kv-heads");
    damage_config(path, good, "\"step\":\t1", "\"step\":\t-1", "'step'");
    damage_config(path, good, "\"text_hash\":\t\"0", "\"text_hash\":\t\"", "'text_hash'");
    put_text(path, good);
    free(good);
    model *m = NULL;
    checkpoint_info info;
    must(checkpoint_load_model(dir, &m, &info));
    model_destroy(m);
}

static void test_refuses_other_tensors(void **state)
{
    (void)state;
    lm_config cfg = tiny(ATTENTION_NSA);
    char checkpoint[LM_PATH_MAX], path[LM_PATH_MAX];
    save_at(&cfg, 1);
    find(checkpoint, 1);
    must(path_join(path, checkpoint, "model.safetensors"));
    assert_int_equal(truncate(path, 3000), 0);
    expect_damaged("model.safetensors", "");
    put_text(path, "");
    expect_damaged("model.safetensors", "too short");
    assert_int_equal(unlink(path), 0);
    expect_damaged("model.safetensors", "No such file");
    assert_int_equal(mkdir(path, 0777), 0);
    expect_damaged("model.safetensors", "not a regular file");
    assert_int_equal(rmdir(path), 0);
    /* A whole file of another model. */
    char other[LM_PATH_MAX];
    must(path_join(other, checkpoint, "optimizer.safetensors"));
    assert_int_equal(rename(other, path), 0);
    expect_damaged("model.safetensors", "tensors");
}

int main(void)
{
    make_corpus();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_resume_is_uninterrupted_nsa, new_dir, remove_dir),
        cmocka_unit_test_setup_teardown(test_resume_is_uninterrupted_dense, new_dir, remove_dir),
        cmocka_unit_test_setup_teardown(test_resume_wants_its_text, new_dir, remove_dir),
        cmocka_unit_test_setup_teardown(test_keeps_the_newest, new_dir, remove_dir),
        cmocka_unit_test_setup_teardown(test_survives_a_kill, new_dir, remove_dir),
        cmocka_unit_test_setup_teardown(test_one_trainer_at_a_time, new_dir, remove_dir),
        cmocka_unit_test_setup_teardown(test_synced_before_it_is_named, new_dir, remove_dir),
        cmocka_unit_test_setup_teardown(test_failed_save_keeps_the_old, new_dir, remove_dir),
        cmocka_unit_test_setup_teardown(test_removes_links_only, new_dir, remove_dir),
        cmocka_unit_test_setup_teardown(test_refuses_damaged_config, new_dir, remove_dir),
        cmocka_unit_test_setup_teardown(test_refuses_other_tensors, new_dir, remove_dir),
    };
    return cmocka_run_group_tests(tests, make_root, remove_root);
}
