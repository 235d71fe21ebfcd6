/*
 * A checkpoint is a directory DIR/step-N:
 *
 *     config.json              every setting, the step, and which text the model has seen
 *     model.safetensors        the weights
 *     optimizer.safetensors    AdamW's means: adam_m.NAME and adam_v.NAME for every weight
 *
 * It is written as DIR/.step-N, synced to the disk and renamed, so that a kill at any moment leaves the last good
 * one; the one before it is removed after that.
 */
#ifndef LM_CHECKPOINT_H
#define LM_CHECKPOINT_H

#include "lm/fileio.h"
#include "lm/trainer.h"

typedef struct checkpoint_info {
    lm_config cfg;
    int64_t step;
    int64_t text_bytes;
    uint64_t text_hash;
} checkpoint_info;

/* Makes DIR if it is not there, locks it against other trainers, and removes what a killed run has left in it. *lock is
 * a file descriptor: close() ends the lock, and so does the end of the process, however it comes. */
bool checkpoint_prepare(const char *dir, int *lock);

/* The newest DIR/step-N, or path itself if it is one. *found = false: a directory without checkpoints. */
bool checkpoint_find(const char *path, char checkpoint[LM_PATH_MAX], bool *found);

bool checkpoint_read_info(const char *checkpoint, checkpoint_info *info);

/* A model with a checkpoint's weights, for use. */
bool checkpoint_load_model(const char *path, model **m, checkpoint_info *info);

/* Weights, optimizer and step of a trainer that was created with the checkpoint's configuration. The text must be the
 * one that the checkpoint has seen. */
bool checkpoint_resume(const char *checkpoint, const checkpoint_info *info, trainer *t);

/* Writes DIR/step-N for the trainer's step, then removes the others. A step that is there already is left alone. */
bool checkpoint_save(const char *dir, const trainer *t);

#endif
