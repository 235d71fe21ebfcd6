#include "lm/checkpoint.h"
#include "lm/config_json.h"
#include "lm/error.h"
#include "lm/safetensors.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#define STEP_PREFIX "step-"
#define LEFTOVER_PREFIX "." STEP_PREFIX /* being written, or being removed */
#define LOCK_NAME ".lock"

enum { NAME_MAX_BYTES = 64, CONFIG_MAX_BYTES = 1 << 20 };

/* ---- Directories ------------------------------------------------------------------------------------------------- */

/* The N of "step-N" as checkpoint_save writes it; -1: another name. */
static int64_t step_of(const char *name)
{
    const size_t prefix = strlen(STEP_PREFIX);
    if (strncmp(name, STEP_PREFIX, prefix) != 0)
        return -1;
    const char *digits = name + prefix;
    const size_t n = strlen(digits);
    if (n == 0 || n > 15 || strspn(digits, "0123456789") != n || (digits[0] == '0' && n > 1))
        return -1;
    return strtoll(digits, NULL, 10);
}

static bool keep_newest(void *newest, const char *name)
{
    const int64_t step = step_of(name);
    if (step > *(int64_t *)newest)
        *(int64_t *)newest = step;
    return true;
}

static bool exists(const char *path)
{
    struct stat info;
    return stat(path, &info) == 0;
}

static bool step_path(const char *dir, const char *prefix, int64_t step, char path[LM_PATH_MAX])
{
    char name[NAME_MAX_BYTES];
    (void)snprintf(name, sizeof name, "%s%lld", prefix, (long long)step);
    return path_join(path, dir, name);
}

bool checkpoint_find(const char *path, char checkpoint[LM_PATH_MAX], bool *found)
{
    char config[LM_PATH_MAX];
    LM_TRY(path_join(config, path, "config.json"));
    *found = exists(config);
    if (*found)
        return snprintf(checkpoint, LM_PATH_MAX, "%s", path) > 0;
    int64_t newest = -1;
    LM_TRY(directory_walk(path, keep_newest, &newest));
    *found = newest >= 0;
    return *found ? step_path(path, STEP_PREFIX, newest, checkpoint) : true;
}

static bool remove_leftover(void *dir, const char *name)
{
    char path[LM_PATH_MAX];
    if (strncmp(name, LEFTOVER_PREFIX, strlen(LEFTOVER_PREFIX)) != 0)
        return true;
    LM_TRY(path_join(path, dir, name));
    return directory_remove(path);
}

/* The lock is the system's, on a file that stays: nothing is left behind that would have to be removed by hand. */
static bool take_lock(const char *dir, int *lock)
{
    char path[LM_PATH_MAX];
    LM_TRY(path_join(path, dir, LOCK_NAME));
    *lock = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (*lock < 0)
        return lm_fail_errno(path, "cannot create");
    if (flock(*lock, LOCK_EX | LOCK_NB) == 0 || errno != EWOULDBLOCK) /* some network file systems have no locks */
        return true;
    (void)close(*lock);
    return lm_fail("%s: another nsa train writes its checkpoints there", dir);
}

bool checkpoint_prepare(const char *dir, int *lock)
{
    if (mkdir(dir, 0777) != 0 && errno != EEXIST)
        return lm_fail_errno(dir, "cannot create the directory");
    LM_TRY(take_lock(dir, lock));
    char copy[LM_PATH_MAX];
    (void)snprintf(copy, sizeof copy, "%s", dir);
    if (directory_walk(dir, remove_leftover, copy))
        return true;
    (void)close(*lock);
    return false;
}

typedef struct removal {
    const char *dir;
    int64_t keep;
} removal;

static bool remove_other_step(void *arg, const char *name)
{
    const removal *r = arg;
    const int64_t step = step_of(name);
    if (step < 0 || step == r->keep)
        return true;
    char path[LM_PATH_MAX];
    char leftover[LM_PATH_MAX];
    LM_TRY(path_join(path, r->dir, name));
    LM_TRY(step_path(r->dir, LEFTOVER_PREFIX, step, leftover));
    if (rename(path, leftover) != 0)
        return lm_fail_errno(path, "cannot remove");
    return directory_remove(leftover);
}

/* ---- Tensors ----------------------------------------------------------------------------------------------------- */

/* The table's tensors under "prefix" + name, from several copies of the weights' layout. */
typedef struct tensor_group {
    const char *prefix;
    float *data;
} tensor_group;

enum { MAX_GROUPS = 2, TENSOR_NAME_BYTES = 128 };

static void full_name(char name[TENSOR_NAME_BYTES], const tensor_group *g, const param *p)
{
    (void)snprintf(name, TENSOR_NAME_BYTES, "%s%s", g->prefix, p->name);
}

static bool write_tensors(const char *path, const param_table *table, const tensor_group *groups, int n_groups)
{
    const size_t n = (size_t)table->n * (size_t)n_groups;
    safetensor_source *sources = calloc(n, sizeof *sources);
    char(*names)[TENSOR_NAME_BYTES] = calloc(n, sizeof *names);
    bool ok = sources != NULL && names != NULL ? true : lm_fail("%s: out of memory", path);
    for (size_t i = 0; ok && i < n; i++) {
        const tensor_group *g = &groups[i / (size_t)table->n];
        const param *p = &table->items[i % (size_t)table->n];
        full_name(names[i], g, p);
        sources[i] = (safetensor_source){names[i], p->n_dims, p->shape, g->data + p->offset};
    }
    ok = ok && safetensors_write_f32(path, sources, (int32_t)n);
    free(sources);
    free(names);
    return ok;
}

static bool read_open_tensors(const safetensors *f, const param_table *table, const tensor_group *groups, int n_groups)
{
    if (f->n != table->n * n_groups)
        return lm_fail("%s: holds %d tensors, the model of config.json has %d", f->path, f->n, table->n * n_groups);
    for (int g = 0; g < n_groups; g++) {
        for (int32_t i = 0; i < table->n; i++) {
            const param *p = &table->items[i];
            char name[TENSOR_NAME_BYTES];
            full_name(name, &groups[g], p);
            LM_TRY(safetensors_read_f32(f, name, p->n_dims, p->shape, groups[g].data + p->offset));
        }
    }
    return true;
}

static bool read_tensors(const char *dir, const char *name, const param_table *table, const tensor_group *groups,
                         int n_groups)
{
    char path[LM_PATH_MAX];
    LM_TRY(path_join(path, dir, name));
    safetensors f;
    LM_TRY(safetensors_open(&f, path));
    const bool ok = read_open_tensors(&f, table, groups, n_groups);
    safetensors_close(&f);
    return ok;
}

/* ---- Reading ----------------------------------------------------------------------------------------------------- */

bool checkpoint_read_info(const char *checkpoint, checkpoint_info *info)
{
    char path[LM_PATH_MAX];
    char *text = NULL;
    LM_TRY(path_join(path, checkpoint, "config.json"));
    LM_TRY(file_read_text(path, CONFIG_MAX_BYTES, &text));
    const bool ok = config_json_read(path, text, info);
    free(text);
    return ok;
}

bool checkpoint_load_model(const char *path, model **m, checkpoint_info *info)
{
    char checkpoint[LM_PATH_MAX];
    bool found = false;
    *m = NULL;
    LM_TRY(checkpoint_find(path, checkpoint, &found));
    if (!found)
        return lm_fail("%s: no checkpoint (step-N) in this directory", path);
    LM_TRY(checkpoint_read_info(checkpoint, info));
    LM_TRY(model_create(m, &info->cfg));
    const tensor_group weights = {"", (*m)->weights};
    if (!read_tensors(checkpoint, "model.safetensors", &(*m)->table, &weights, 1)) {
        model_destroy(*m);
        *m = NULL;
        return false;
    }
    return true;
}

bool checkpoint_resume(const char *checkpoint, const checkpoint_info *info, trainer *t)
{
    if (info->text_bytes != t->data->n_bytes || info->text_hash != t->data->hash)
        return lm_fail("--data is not the text that %s was trained on", checkpoint);
    const tensor_group weights = {"", t->m->weights};
    const tensor_group means[MAX_GROUPS] = {{"adam_m.", t->adam_m}, {"adam_v.", t->adam_v}};
    LM_TRY(read_tensors(checkpoint, "model.safetensors", &t->m->table, &weights, 1));
    LM_TRY(read_tensors(checkpoint, "optimizer.safetensors", &t->m->table, means, MAX_GROUPS));
    t->step = info->step;
    return true;
}

/* ---- Writing ----------------------------------------------------------------------------------------------------- */

static bool write_config(const char *dir, const trainer *t)
{
    const checkpoint_info info = {t->cfg, t->step, t->data->n_bytes, t->data->hash};
    char path[LM_PATH_MAX];
    LM_TRY(path_join(path, dir, "config.json"));
    char *text = config_json_write(&info);
    if (text == NULL)
        return lm_fail("%s: out of memory", path);
    const bool ok = file_write_text(path, text);
    free(text);
    return ok;
}

static bool write_files(const char *dir, const trainer *t)
{
    const tensor_group weights = {"", t->m->weights};
    const tensor_group means[MAX_GROUPS] = {{"adam_m.", t->adam_m}, {"adam_v.", t->adam_v}};
    char path[LM_PATH_MAX];
    LM_TRY(path_join(path, dir, "model.safetensors"));
    LM_TRY(write_tensors(path, &t->m->table, &weights, 1));
    LM_TRY(path_join(path, dir, "optimizer.safetensors"));
    LM_TRY(write_tensors(path, &t->m->table, means, MAX_GROUPS));
    LM_TRY(write_config(dir, t));
    return directory_sync(dir);
}

bool checkpoint_save(const char *dir, const trainer *t)
{
    char path[LM_PATH_MAX];
    char leftover[LM_PATH_MAX];
    LM_TRY(step_path(dir, STEP_PREFIX, t->step, path));
    if (exists(path))
        return true;
    LM_TRY(step_path(dir, LEFTOVER_PREFIX, t->step, leftover));
    if (mkdir(leftover, 0777) != 0)
        return lm_fail_errno(leftover, "cannot create the directory");
    if (!write_files(leftover, t)) {
        char message[512];
        (void)snprintf(message, sizeof message, "%s", lm_error());
        (void)directory_remove(leftover); /* as far as it goes: the next start removes the rest */
        return lm_fail("%s", message);
    }
    if (rename(leftover, path) != 0)
        return lm_fail_errno(path, "cannot create");
    LM_TRY(directory_sync(dir));
    removal r = {dir, t->step};
    return directory_walk(dir, remove_other_step, &r);
}
