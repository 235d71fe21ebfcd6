#include "lm/safetensors.h"
#include "lm/arena.h"
#include "lm/error.h"
#include "lm/fileio.h"
#include "lm/json.h"

#include <fcntl.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    LENGTH_BYTES = 8,
    MAX_HEADER = 100000000, /* the reference implementation's limit */
    HEADER_ALIGN = 64
};

static const double max_exact = 9007199254740992.0; /* 2^53: past it a double, which cJSON keeps, is not exact */

/* ---- The header -------------------------------------------------------------------------------------------------- */

static bool read_size(const cJSON *json, int64_t *value)
{
    if (!cJSON_IsNumber(json))
        return false;
    const double x = json->valuedouble;
    if (!(x >= 0.0 && x < max_exact) || x != floor(x))
        return false;
    *value = (int64_t)x;
    return true;
}

static int64_t dtype_bytes(const char *dtype)
{
    static const struct {
        const char *name;
        int64_t bytes;
    } known[] = {{"F64", 8}, {"F32", 4}, {"F16", 2},  {"BF16", 2},    {"I64", 8},
                 {"U64", 8}, {"I32", 4}, {"U32", 4},  {"I16", 2},     {"U16", 2},
                 {"I8", 1},  {"U8", 1},  {"BOOL", 1}, {"F8_E4M3", 1}, {"F8_E5M2", 1}};
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        if (strcmp(known[i].name, dtype) == 0)
            return known[i].bytes;
    }
    return 0;
}

/* Exactly the members dtype, shape and data_offsets, once each. */
static bool find_members(const cJSON *json, const cJSON **dtype, const cJSON **shape, const cJSON **offsets)
{
    *dtype = *shape = *offsets = NULL;
    for (const cJSON *member = json->child; member != NULL; member = member->next) {
        const cJSON **slot = strcmp(member->string, "dtype") == 0          ? dtype
                             : strcmp(member->string, "shape") == 0        ? shape
                             : strcmp(member->string, "data_offsets") == 0 ? offsets
                                                                           : NULL;
        if (slot == NULL || *slot != NULL)
            return false;
        *slot = member;
    }
    return cJSON_IsString(*dtype) && cJSON_IsArray(*shape) && cJSON_IsArray(*offsets) &&
           cJSON_GetArraySize(*offsets) == 2;
}

static bool parse_tensor(const char *path, const cJSON *json, int64_t data_bytes, safetensor *t)
{
    const cJSON *dtype, *shape, *offsets;
    if (!cJSON_IsObject(json) || !find_members(json, &dtype, &shape, &offsets))
        return lm_fail("%s: tensor '%.64s' needs dtype, shape and two data_offsets, and nothing else", path,
                       json->string);
    int64_t bytes = dtype_bytes(dtype->valuestring);
    if (bytes == 0)
        return lm_fail("%s: tensor '%.64s' has unknown dtype '%.16s'", path, json->string, dtype->valuestring);
    (void)snprintf(t->dtype, sizeof t->dtype, "%s", dtype->valuestring);
    for (const cJSON *size = shape->child; size != NULL; size = size->next) {
        if (t->n_dims == SAFETENSORS_MAX_DIMS || !read_size(size, &t->shape[t->n_dims]))
            return lm_fail("%s: tensor '%.64s' has an impossible shape", path, json->string);
        bytes = i64_mul(bytes, t->shape[t->n_dims++]);
    }
    if (bytes == INT64_MAX)
        return lm_fail("%s: tensor '%.64s' has an impossible shape", path, json->string);
    if (!read_size(offsets->child, &t->begin) || !read_size(offsets->child->next, &t->end) || t->begin > t->end ||
        t->end > data_bytes)
        return lm_fail("%s: tensor '%.64s' has data_offsets outside of the file's %lld bytes of data", path,
                       json->string, (long long)data_bytes);
    if (t->end - t->begin != bytes)
        return lm_fail("%s: tensor '%.64s' has %lld bytes, its shape needs %lld", path, json->string,
                       (long long)(t->end - t->begin), (long long)bytes);
    t->name = strdup(json->string);
    return t->name != NULL ? true : lm_fail("%s: out of memory", path);
}

static bool check_metadata(const char *path, const cJSON *json)
{
    bool ok = cJSON_IsObject(json);
    for (const cJSON *member = ok ? json->child : NULL; member != NULL; member = member->next)
        ok = ok && cJSON_IsString(member);
    return ok ? true : lm_fail("%s: __metadata__ is not an object of strings", path);
}

static int by_name(const void *a, const void *b)
{
    return strcmp(((const safetensor *)a)->name, ((const safetensor *)b)->name);
}

static int by_offset(const void *a, const void *b)
{
    const safetensor *x = a;
    const safetensor *y = b;
    if (x->begin != y->begin)
        return x->begin < y->begin ? -1 : 1;
    return x->end < y->end ? -1 : x->end > y->end; /* empty tensors first */
}

static bool check_cover(safetensors *f, int64_t data_bytes)
{
    if (f->n > 0)
        qsort(f->items, (size_t)f->n, sizeof *f->items, by_name);
    for (int32_t i = 1; i < f->n; i++) {
        if (strcmp(f->items[i - 1].name, f->items[i].name) == 0)
            return lm_fail("%s: tensor '%.64s' is there twice", f->path, f->items[i].name);
    }
    if (f->n > 0)
        qsort(f->items, (size_t)f->n, sizeof *f->items, by_offset);
    int64_t end = 0;
    for (int32_t i = 0; i < f->n; i++) {
        if (f->items[i].begin != end)
            return lm_fail("%s: tensor '%.64s' starts at byte %lld of the data, expected is %lld", f->path,
                           f->items[i].name, (long long)f->items[i].begin, (long long)end);
        end = f->items[i].end;
    }
    return end == data_bytes
               ? true
               : lm_fail("%s: %lld bytes of data belong to no tensor", f->path, (long long)(data_bytes - end));
}

static bool parse_items(safetensors *f, const cJSON *json, int64_t data_bytes)
{
    if (!cJSON_IsObject(json))
        return lm_fail("%s: the header is not a JSON object", f->path);
    f->items = calloc(size_add((size_t)cJSON_GetArraySize(json), 1), sizeof *f->items);
    if (f->items == NULL)
        return lm_fail("%s: out of memory", f->path);
    bool metadata = false;
    for (const cJSON *member = json->child; member != NULL; member = member->next) {
        if (strcmp(member->string, "__metadata__") != 0) {
            LM_TRY(parse_tensor(f->path, member, data_bytes, &f->items[f->n]));
            f->n++;
            continue;
        }
        if (metadata)
            return lm_fail("%s: __metadata__ is there twice", f->path);
        metadata = true;
        LM_TRY(check_metadata(f->path, member));
    }
    return check_cover(f, data_bytes);
}

static bool parse_header(safetensors *f, char *header, size_t length, int64_t data_bytes)
{
    LM_TRY(file_read_at(f->fd, f->path, header, length, LENGTH_BYTES));
    header[length] = '\0';
    if (header[0] != '{' || strlen(header) != length)
        return lm_fail("%s: the header is not a JSON object", f->path);
    cJSON *json = json_parse(f->path, header, " ");
    const bool ok = json != NULL && parse_items(f, json, data_bytes);
    cJSON_Delete(json);
    return ok;
}

/* ---- Reading ----------------------------------------------------------------------------------------------------- */

static bool read_header(safetensors *f)
{
    struct stat info;
    if (fstat(f->fd, &info) != 0)
        return lm_fail_errno(f->path, "cannot read");
    if (!S_ISREG(info.st_mode))
        return lm_fail("%s: is not a regular file", f->path);
    if (info.st_size < LENGTH_BYTES)
        return lm_fail("%s: too short for a safetensors file", f->path);
    uint8_t bytes[LENGTH_BYTES];
    LM_TRY(file_read_at(f->fd, f->path, bytes, sizeof bytes, 0));
    uint64_t length = 0;
    for (int i = LENGTH_BYTES - 1; i >= 0; i--)
        length = length << 8 | bytes[i];
    const int64_t rest = info.st_size - LENGTH_BYTES;
    if (length == 0 || length > MAX_HEADER || length > (uint64_t)rest)
        return lm_fail("%s: a header of %llu bytes cannot be", f->path, (unsigned long long)length);
    char *header = malloc(size_add((size_t)length, 1));
    if (header == NULL)
        return lm_fail("%s: out of memory", f->path);
    f->data_start = LENGTH_BYTES + (int64_t)length;
    const bool ok = parse_header(f, header, (size_t)length, rest - (int64_t)length);
    free(header);
    return ok;
}

bool safetensors_open(safetensors *f, const char *path)
{
    *f = (safetensors){.fd = -1};
    f->path = strdup(path);
    if (f->path == NULL)
        return lm_fail("%s: out of memory", path);
    f->fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    const bool ok = f->fd >= 0 ? read_header(f) : lm_fail_errno(path, "cannot open");
    if (!ok)
        safetensors_close(f);
    return ok;
}

void safetensors_close(safetensors *f)
{
    for (int32_t i = 0; i < f->n; i++)
        free(f->items[i].name);
    free(f->items);
    free(f->path);
    if (f->fd >= 0)
        (void)close(f->fd);
    *f = (safetensors){.fd = -1};
}

const safetensor *safetensors_find(const safetensors *f, const char *name)
{
    for (int32_t i = 0; i < f->n; i++) {
        if (strcmp(f->items[i].name, name) == 0)
            return &f->items[i];
    }
    return NULL;
}

bool safetensors_read_f32(const safetensors *f, const char *name, int32_t n_dims, const int64_t shape[], float *data)
{
    const safetensor *t = safetensors_find(f, name);
    if (t == NULL)
        return lm_fail("%s: tensor '%s' is missing", f->path, name);
    bool same = strcmp(t->dtype, "F32") == 0 && t->n_dims == n_dims;
    for (int32_t i = 0; same && i < n_dims; i++)
        same = t->shape[i] == shape[i];
    if (!same)
        return lm_fail("%s: tensor '%s' is not F32 of the shape that config.json gives it", f->path, name);
    return file_read_at(f->fd, f->path, data, (size_t)(t->end - t->begin), f->data_start + t->begin);
}

/* ---- Writing ----------------------------------------------------------------------------------------------------- */

static int64_t bytes_of(const safetensor_source *t)
{
    int64_t bytes = (int64_t)sizeof(float);
    for (int32_t i = 0; i < t->n_dims; i++)
        bytes = i64_mul(bytes, t->shape[i]);
    return bytes;
}

static bool add_numbers(cJSON *object, const char *name, const double *numbers, int n)
{
    cJSON *array = cJSON_CreateDoubleArray(numbers, n);
    if (array == NULL || !cJSON_AddItemToObject(object, name, array)) {
        cJSON_Delete(array);
        return false;
    }
    return true;
}

static bool describe(cJSON *header, const safetensor_source *t, int64_t begin)
{
    cJSON *entry = cJSON_AddObjectToObject(header, t->name);
    double shape[SAFETENSORS_MAX_DIMS];
    for (int32_t i = 0; i < t->n_dims; i++)
        shape[i] = (double)t->shape[i];
    const double offsets[] = {(double)begin, (double)i64_add(begin, bytes_of(t))};
    return entry != NULL && cJSON_AddStringToObject(entry, "dtype", "F32") != NULL &&
           add_numbers(entry, "shape", shape, t->n_dims) && add_numbers(entry, "data_offsets", offsets, 2);
}

/* Length, header and spaces up to a multiple of HEADER_ALIGN, so that the data can be mapped. NULL: out of memory. */
static char *make_header(const safetensor_source *tensors, int32_t n, size_t *bytes)
{
    cJSON *json = cJSON_CreateObject();
    bool ok = json != NULL;
    int64_t begin = 0;
    for (int32_t i = 0; ok && i < n; i++) {
        ok = describe(json, &tensors[i], begin);
        begin = i64_add(begin, bytes_of(&tensors[i]));
    }
    char *text = ok ? cJSON_PrintUnformatted(json) : NULL;
    cJSON_Delete(json);
    if (text == NULL)
        return NULL;
    *bytes = size_round_up(size_add(LENGTH_BYTES, strlen(text)), HEADER_ALIGN);
    char *header = malloc(*bytes);
    if (header != NULL) {
        memset(header, ' ', *bytes);
        for (int i = 0; i < LENGTH_BYTES; i++)
            header[i] = (char)((*bytes - LENGTH_BYTES) >> (8 * i) & 0xff);
        memcpy(header + LENGTH_BYTES, text, strlen(text));
    }
    cJSON_free(text);
    return header;
}

bool safetensors_write_f32(const char *path, const safetensor_source *tensors, int32_t n)
{
    size_t bytes = 0;
    char *header = make_header(tensors, n, &bytes);
    if (header == NULL)
        return lm_fail("%s: out of memory", path);
    int fd = -1;
    bool ok = file_create(path, &fd);
    if (ok) {
        ok = file_write(fd, path, header, bytes);
        for (int32_t i = 0; ok && i < n; i++)
            ok = file_write(fd, path, tensors[i].data, (size_t)bytes_of(&tensors[i]));
        if (ok)
            ok = file_finish(fd, path);
        else
            (void)close(fd);
    }
    free(header);
    return ok;
}
