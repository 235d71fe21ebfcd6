#include "lm/evaluate.h"
#include "lm/arena.h"
#include "lm/error.h"
#include "lm/needle.h"
#include "lm/random.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { BATCH_TOKENS = 4096, MAX_BATCH = 64, JITTER = 64 };

static int32_t batch_for(int32_t length)
{
    const int32_t batch = BATCH_TOKENS / length;
    return batch < 1 ? 1 : batch > MAX_BATCH ? MAX_BATCH : batch;
}

/* A run and the tokens and targets of its sequences. */
typedef struct bench {
    run *r;
    uint8_t *tokens, *targets;
} bench;

static void close_bench(bench *b)
{
    run_destroy(b->r);
    free(b->tokens);
    free(b->targets);
}

static bool open_bench(bench *b, const model *m, int32_t n_seqs, int32_t length)
{
    *b = (bench){0};
    LM_TRY(run_create(&b->r, m, n_seqs, length, false));
    b->tokens = calloc((size_t)b->r->rows, 1);
    b->targets = calloc((size_t)b->r->rows, 1);
    if (b->tokens != NULL && b->targets != NULL)
        return true;
    close_bench(b);
    return lm_out_of_memory("tokens");
}

static void set_sequence(bench *b, int32_t s, const uint8_t *bytes)
{
    const size_t n = (size_t)b->r->seqlen;
    memcpy(b->tokens + (size_t)s * n, bytes, n);
    memcpy(b->targets + (size_t)s * n, bytes + 1, n);
}

/* ---- Loss -------------------------------------------------------------------------------------------------------- */

static bool sum_losses(bench *b, const corpus *data, corpus_part part, int64_t n_windows, double *sum)
{
    const int32_t n = b->r->seqlen;
    const int64_t all = corpus_n_windows(data, part, n);
    *sum = 0.0;
    for (int64_t first = 0; first < n_windows; first += b->r->n_seqs) {
        const int64_t used = n_windows - first < b->r->n_seqs ? n_windows - first : b->r->n_seqs;
        for (int64_t s = 0; s < used; s++)
            set_sequence(b, (int32_t)s, corpus_window(data, part, n, (first + s) * all / n_windows));
        LM_TRY(lm_forward(b->r, b->tokens));
        double mean = 0.0;
        lm_loss(b->r, b->targets, &mean);
        for (int64_t i = 0; i < used * n; i++)
            *sum += (double)b->r->loss[i];
    }
    return true;
}

bool evaluate_loss(const model *m, const corpus *data, corpus_part part, int64_t max_tokens, double *loss,
                   int64_t *tokens)
{
    const int32_t n = m->cfg.model.context;
    int64_t n_windows = corpus_n_windows(data, part, n);
    if (n_windows == 0)
        return lm_fail("--data holds no text of the model's context, %d tokens", n);
    if (max_tokens > 0 && n_windows > (max_tokens + n - 1) / n)
        n_windows = (max_tokens + n - 1) / n;
    bench b;
    LM_TRY(open_bench(&b, m, batch_for(n), n));
    double sum = 0.0;
    const bool ok = sum_losses(&b, data, part, n_windows, &sum);
    close_bench(&b);
    *tokens = n_windows * n;
    *loss = sum / (double)*tokens;
    return ok;
}

/* ---- Needles ----------------------------------------------------------------------------------------------------- */

static uint8_t likeliest(const float *logits)
{
    int best = 0;
    for (int i = 1; i < BYTE_VOCABULARY; i++)
        best = logits[i] > logits[best] ? i : best;
    return (uint8_t)best;
}

/* Runs all trials of one length with the fact at one depth or without it, and returns sums over the answers. */
static bool run_trials(bench *b, const corpus *data, const needle_test *test, double depth, bool present,
                       uint8_t *bytes, double *loss, int32_t *right)
{
    const int32_t n = b->r->seqlen;
    const int64_t windows = corpus_n_windows(data, CORPUS_HELD_OUT, n);
    int64_t answer[MAX_BATCH] = {0};
    *loss = 0.0;
    *right = 0;
    for (int32_t first = 0; first < test->trials; first += b->r->n_seqs) {
        const int32_t used = test->trials - first < b->r->n_seqs ? test->trials - first : b->r->n_seqs;
        for (int32_t s = 0; s < used; s++) {
            const int64_t trial = first + s;
            const uint8_t *hay = corpus_window(data, CORPUS_HELD_OUT, n, trial * windows / test->trials);
            const needle fact = needle_draw(test->seed, RANDOM_NEEDLES, (uint64_t)trial);
            /* Each a little elsewhere: a cell should not hang on where in its block the fact stands. */
            const double shift = JITTER * (random_unit(test->seed, RANDOM_NEEDLES + 1, (uint64_t)trial) - 0.5) / n;
            const double place = fmin(fmax(depth + shift, 0.0), 1.0);
            answer[s] = needle_hide(bytes, (int64_t)n + 1, hay, &fact, place, present);
            set_sequence(b, s, bytes);
        }
        LM_TRY(lm_forward(b->r, b->tokens));
        for (int32_t s = 0; s < used; s++) { /* row i tells byte i + 1 */
            const int64_t row = (int64_t)s * n + answer[s] - 1;
            *right += likeliest(b->r->logits + row * BYTE_VOCABULARY) == b->targets[row];
        }
        double mean = 0.0;
        lm_loss(b->r, b->targets, &mean);
        for (int32_t s = 0; s < used; s++)
            *loss += (double)b->r->loss[(int64_t)s * n + answer[s] - 1];
    }
    return true;
}

static bool evaluate_length(const model *m, const corpus *data, const needle_test *test, int32_t length, uint8_t *bytes,
                            needle_cell *cells)
{
    bench b;
    LM_TRY(open_bench(&b, m, batch_for(length), length));
    double without = 0.0;
    int32_t right = 0;
    bool ok = run_trials(&b, data, test, 0.0, false, bytes, &without, &right);
    for (int32_t d = 0; ok && d < test->n_depths; d++) {
        double with = 0.0;
        ok = run_trials(&b, data, test, test->depth[d], true, bytes, &with, &right);
        cells[d] = (needle_cell){(without - with) / test->trials, (double)right / test->trials};
    }
    close_bench(&b);
    return ok;
}

bool needle_evaluate(const model *m, const corpus *data, const needle_test *test, needle_cell *cells)
{
    for (int32_t l = 0; l < test->n_lengths; l++) {
        const int32_t n = test->length[l];
        if (n < 2 * NEEDLE_LENGTH)
            return lm_fail("--lengths: %d tokens have no room for a fact and a question, %d have", n,
                           2 * NEEDLE_LENGTH);
        if (corpus_n_windows(data, CORPUS_HELD_OUT, n) == 0)
            return lm_fail("--lengths: the held-out tenth of --data is shorter than %d tokens", n);
        uint8_t *bytes = malloc(size_add((size_t)n, 1));
        if (bytes == NULL)
            return lm_out_of_memory("a text with a needle");
        const bool ok = evaluate_length(m, data, test, n, bytes, cells + (int64_t)l * test->n_depths);
        free(bytes);
        LM_TRY(ok);
    }
    return true;
}
