#include "lm/json.h"
#include "lm/error.h"

#include <errno.h>
#include <string.h>

cJSON *json_parse(const char *name, const char *text, const char *padding)
{
    const char *end = NULL;
    errno = 0;
    cJSON *json = cJSON_ParseWithOpts(text, &end, 0);
    if (json != NULL && end[strspn(end, padding)] == '\0')
        return json;
    (void)lm_fail(json == NULL && errno == ENOMEM ? "%s: out of memory" : "%s: not valid JSON", name);
    cJSON_Delete(json);
    return NULL;
}
