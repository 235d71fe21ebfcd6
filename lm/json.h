/* JSON text as cJSON's tree. */
#ifndef LM_JSON_H
#define LM_JSON_H

#include <cjson/cJSON.h>

/* The one value that text holds, with nothing after it but characters of `padding`. NULL: lm_error() tells whether
 * the text is wrong or the memory is short, which cJSON does not. name: of the file, for the message. */
cJSON *json_parse(const char *name, const char *text, const char *padding);

#endif
