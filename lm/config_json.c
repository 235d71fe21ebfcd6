#include "lm/config_json.h"
#include "lm/error.h"
#include "lm/json.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const double max_exact = 9007199254740992.0; /* 2^53 */

/* ---- Writing ----------------------------------------------------------------------------------------------------- */

/* The shortest decimals that read back as x. cJSON's own may not: it takes what is off in the last bit for equal. */
static bool add_number(cJSON *json, const char *name, double x)
{
    char text[32];
    int digits = 15;
    do
        (void)snprintf(text, sizeof text, "%.*g", digits, x);
    while (strtod(text, NULL) != x && ++digits <= 17);
    return cJSON_AddRawToObject(json, name, text) != NULL;
}

static bool add_setting(cJSON *json, const setting *s, const lm_config *cfg)
{
    if (s->type != SETTING_CHOICE)
        return add_number(json, s->name, setting_get(s, cfg));
    char word[32];
    setting_word(s, cfg, word, sizeof word);
    return cJSON_AddStringToObject(json, s->name, word) != NULL;
}

static bool add_all(cJSON *json, const checkpoint_info *info)
{
    char hash[17];
    (void)snprintf(hash, sizeof hash, "%016" PRIx64, info->text_hash);
    for (const setting *s = settings; s->name != NULL; s++) {
        if (!add_setting(json, s, &info->cfg))
            return false;
    }
    return add_number(json, "step", (double)info->step) && add_number(json, "text_bytes", (double)info->text_bytes) &&
           cJSON_AddStringToObject(json, "text_hash", hash) != NULL;
}

char *config_json_write(const checkpoint_info *info)
{
    cJSON *json = cJSON_CreateObject();
    char *text = json != NULL && add_all(json, info) ? cJSON_Print(json) : NULL;
    cJSON_Delete(json);
    return text;
}

/* ---- Reading ----------------------------------------------------------------------------------------------------- */

/* The only member of this name; NULL and a message otherwise. Counts it in *n. */
static const cJSON *find_once(const char *path, const cJSON *json, const char *name, int *n)
{
    const cJSON *found = NULL;
    for (const cJSON *member = json->child; member != NULL; member = member->next) {
        if (strcmp(member->string, name) != 0)
            continue;
        if (found != NULL) {
            (void)lm_fail("%s: '%s' is there twice", path, name);
            return NULL;
        }
        found = member;
        ++*n;
    }
    if (found == NULL)
        (void)lm_fail("%s: '%s' is missing", path, name);
    return found;
}

static bool read_setting(const char *path, const cJSON *json, const setting *s, lm_config *cfg, int *n)
{
    const cJSON *value = find_once(path, json, s->name, n);
    if (value == NULL)
        return false;
    char label[512];
    (void)snprintf(label, sizeof label, "%.400s: '%s'", path, s->name);
    if (s->type == SETTING_CHOICE && cJSON_IsString(value))
        return setting_set_word(s, cfg, label, value->valuestring);
    if (s->type != SETTING_CHOICE && cJSON_IsNumber(value))
        return setting_set(s, cfg, label, value->valuedouble);
    return lm_fail("%s is not a %s", label, s->type == SETTING_CHOICE ? "string" : "number");
}

static bool read_count(const char *path, const cJSON *json, const char *name, int64_t *count, int *n)
{
    const cJSON *value = find_once(path, json, name, n);
    if (value == NULL)
        return false;
    const double x = cJSON_IsNumber(value) ? value->valuedouble : -1.0;
    if (!(x >= 0.0 && x < max_exact) || x != floor(x))
        return lm_fail("%s: '%s' is not a whole number of 0 and up", path, name);
    *count = (int64_t)x;
    return true;
}

static bool read_hash(const char *path, const cJSON *json, uint64_t *hash, int *n)
{
    const cJSON *value = find_once(path, json, "text_hash", n);
    if (value == NULL)
        return false;
    const char *digits = cJSON_IsString(value) ? value->valuestring : "";
    if (strlen(digits) != 16 || strspn(digits, "0123456789abcdef") != 16)
        return lm_fail("%s: 'text_hash' is not 16 hexadecimal digits", path);
    *hash = strtoull(digits, NULL, 16);
    return true;
}

static bool read_all(const char *path, const cJSON *json, checkpoint_info *info)
{
    if (!cJSON_IsObject(json))
        return lm_fail("%s: not a JSON object", path);
    int known = 0;
    for (const setting *s = settings; s->name != NULL; s++)
        LM_TRY(read_setting(path, json, s, &info->cfg, &known));
    LM_TRY(read_count(path, json, "step", &info->step, &known));
    LM_TRY(read_count(path, json, "text_bytes", &info->text_bytes, &known));
    LM_TRY(read_hash(path, json, &info->text_hash, &known));
    if (cJSON_GetArraySize(json) != known)
        return lm_fail("%s: holds keys that are not known here", path);
    if (config_check(&info->cfg))
        return true;
    char message[512];
    (void)snprintf(message, sizeof message, "%s", lm_error());
    return lm_fail("%s: %s", path, message);
}

bool config_json_read(const char *path, const char *text, checkpoint_info *info)
{
    *info = (checkpoint_info){0};
    cJSON *json = json_parse(path, text, " \t\r\n");
    const bool ok = json != NULL && read_all(path, json, info);
    cJSON_Delete(json);
    return ok;
}
