#include "cli/bench.h"

#include "lm/arena.h"
#include "lm/error.h"
#include "lm/random.h"
#include "lm/trainer.h"

static bool step(void *self)
{
    double loss = 0;
    return trainer_step(self, &loss);
}

/* Random text, enough for a training sequence and a held-out one. */
static bool make_text(corpus_file *file, int64_t n)
{
    *file = (corpus_file){malloc((size_t)n), n, n - n / HELD_OUT_FRACTION};
    for (int64_t i = 0; file->bytes != NULL && i < n; i++)
        file->bytes[i] = (uint8_t)(' ' + random_below(0, 0, (uint64_t)i, 95));
    return file->bytes != NULL ? true : lm_out_of_memory("text");
}

bool bench_measure_train(int32_t context, bench_attention attention, const bench_effort *effort, bench_shape *shape,
                         bench_time *time)
{
    lm_config cfg;
    config_init(&cfg);
    cfg.model.attention = attention == BENCH_NSA ? ATTENTION_NSA : ATTENTION_DENSE;
    cfg.model.context = context;
    cfg.train.batch = 1;
    corpus_file file;
    LM_TRY(make_text(&file, (HELD_OUT_FRACTION + 1) * ((int64_t)context + 1)));
    const corpus text = {.files = &file, .n_files = 1, .n_bytes = file.n};
    trainer *t = NULL;
    bool measured = trainer_create(&t, &cfg, &text);
    if (measured) {
        *shape = (bench_shape){
            .cfg = t->m->nsa, .dtype = NSA_F32, .batch = 1, .seqlen = context, .phi = (nsa_phi_kind)cfg.model.phi};
        measured = bench_repeat(t, NULL, step, effort, time);
    }
    trainer_destroy(t);
    free(file.bytes);
    return measured;
}
