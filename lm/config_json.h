/* config.json of a checkpoint: all settings by name, "step", "text_bytes" and "text_hash". */
#ifndef LM_CONFIG_JSON_H
#define LM_CONFIG_JSON_H

#include "lm/checkpoint.h"

/* free() it; NULL: out of memory. */
char *config_json_write(const checkpoint_info *info);

/* Strict: every key once, none unknown, every value in its range. Messages name `path` and the key. */
bool config_json_read(const char *path, const char *text, checkpoint_info *info);

#endif
