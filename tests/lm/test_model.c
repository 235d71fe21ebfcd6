/* The model: its gradient against differences, its independence of threads, training, and generation over the cache. */
#include "testlib/unit.h"
#include "testlib/testlib.h"

#include "lm/error.h"
#include "lm/optim.h"
#include "lm/session.h"
#include "lm/trainer.h"

#include <math.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

static lm_config tiny(attention_kind attention, nsa_phi_kind phi)
{
    lm_config c;
    config_init(&c);
    c.model = (model_config){.attention = (int32_t)attention,
                             .context = 45,
                             .layers = 2,
                             .d_model = 24,
                             .heads = 4,
                             .kv_heads = 2,
                             .head_dim = 8,
                             .d_ff = 40,
                             .gate_hidden = 6,
                             .phi = (int32_t)phi,
                             .phi_hidden = 18,
                             .cmp_block = 8,
                             .cmp_stride = 4,
                             .slc_block = 8,
                             .slc_topk = 3,
                             .slc_n_init = 1,
                             .slc_n_local = 1,
                             .win = 10,
                             .rope_theta = 10000.0};
    c.train.batch = 2;
    return c;
}

static void must(bool ok)
{
    if (!ok)
        test_fail("%s", lm_error());
}

static void fill_bytes(uint8_t *bytes, int64_t n, uint64_t seed)
{
    rng r = rng_new();
    r.state += seed;
    for (int64_t i = 0; i < n; i++)
        bytes[i] = (uint8_t)rng_range(&r, 0, 9);
}

/* ---- Gradient ---------------------------------------------------------------------------------------------------- */

typedef struct problem {
    model *m;
    run *r;
    float *grads;
    uint8_t *tokens, *targets;
} problem;

static problem open_problem(const lm_config *cfg)
{
    problem p = {0};
    must(model_create(&p.m, cfg));
    must(run_create(&p.r, p.m, cfg->train.batch, cfg->model.context, true));
    p.grads = calloc((size_t)p.m->table.total, sizeof *p.grads);
    p.tokens = malloc((size_t)p.r->rows);
    p.targets = malloc((size_t)p.r->rows);
    fill_bytes(p.tokens, p.r->rows, 1);
    fill_bytes(p.targets, p.r->rows, 2);
    /* Zeros and ones are where mistakes hide: move every weight. */
    rng r = rng_new();
    for (int64_t i = 0; i < p.m->table.total; i++)
        p.m->weights[i] += 0.05F * (float)rng_normal(&r);
    return p;
}

static void close_problem(problem *p)
{
    run_destroy(p->r);
    model_destroy(p->m);
    free(p->grads);
    free(p->tokens);
    free(p->targets);
}

static double loss_of(problem *p)
{
    double loss = 0.0;
    must(lm_forward(p->r, p->tokens));
    lm_loss(p->r, p->targets, &loss);
    return loss;
}

/* Along the gradient, mostly, so that the slope stands out of the rounding of the loss. */
static double choose_direction(const param *t, const float *g, rng *r, float *direction)
{
    double norm = 0.0;
    for (int64_t i = 0; i < t->count; i++)
        norm += (double)g[i] * (double)g[i];
    norm = sqrt(norm);
    double slope = 0.0;
    for (int64_t i = 0; i < t->count; i++) {
        direction[i] =
            (norm > 0.0 ? (float)((double)g[i] / norm) : 0.0F) + 0.5F * (float)(rng_normal(r) / sqrt((double)t->count));
        slope += (double)direction[i] * (double)g[i];
    }
    return slope;
}

static double measure_slope(problem *p, const param *t, const float *direction, double step)
{
    float *w = p->m->weights + t->offset;
    float *saved = malloc((size_t)t->count * sizeof *saved);
    memcpy(saved, w, (size_t)t->count * sizeof *saved);
    double loss[2];
    for (int s = 0; s < 2; s++) {
        for (int64_t i = 0; i < t->count; i++)
            w[i] = saved[i] + (float)(s == 0 ? step : -step) * direction[i];
        loss[s] = loss_of(p);
    }
    memcpy(w, saved, (size_t)t->count * sizeof *saved);
    free(saved);
    return (loss[0] - loss[1]) / (2.0 * step);
}

static void check_tensor(problem *p, const param *t, rng *r)
{
    float *direction = malloc((size_t)t->count * sizeof *direction);
    const double expected = choose_direction(t, p->grads + t->offset, r, direction);
    const double slope = measure_slope(p, t, direction, 4e-3);
    free(direction);
    if (!(fabs(slope - expected) <= 2e-2 * fabs(expected) + 1e-4))
        test_fail("%s: slope %g, gradient says %g", t->name, slope, expected);
}

/* Where a weight decides which blocks are selected the loss jumps, and differences say nothing. */
static bool decides_selection(const lm_config *cfg, const param *t)
{
    const model_config *m = &cfg->model;
    if (m->attention == ATTENTION_DENSE || m->slc_topk * m->slc_block >= m->context)
        return false;
    return m->layers > 1 || strstr(t->name, "embedding") != NULL || strstr(t->name, "attn.norm") != NULL ||
           strstr(t->name, "attn.qkv") != NULL || strstr(t->name, "phi_k") != NULL;
}

static void check_gradient(const lm_config *cfg)
{
    problem p = open_problem(cfg);
    rng r = rng_new();
    (void)loss_of(&p);
    memset(p.grads, 0xff, (size_t)p.m->table.total * sizeof *p.grads);
    must(lm_backward(p.r, p.tokens, p.grads));
    for (int32_t i = 0; i < p.m->table.n; i++) {
        if (!decides_selection(cfg, &p.m->table.items[i]))
            check_tensor(&p, &p.m->table.items[i], &r);
    }
    close_problem(&p);
}

static void test_gradient_dense(void **state)
{
    (void)state;
    const lm_config cfg = tiny(ATTENTION_DENSE, NSA_PHI_MEAN);
    check_gradient(&cfg);
}

static void test_gradient_nsa(void **state)
{
    (void)state;
    for (int32_t phi = NSA_PHI_MEAN; phi <= NSA_PHI_MLP; phi++) {
        test_note("phi %d", phi);
        lm_config cfg = tiny(ATTENTION_NSA, (nsa_phi_kind)phi);
        cfg.model.layers = 1;
        check_gradient(&cfg);
        cfg.model.layers = 2;
        cfg.model.slc_topk = 6; /* all blocks */
        check_gradient(&cfg);
    }
}

static void test_gradient_shared_kv(void **state)
{
    (void)state;
    lm_config cfg = tiny(ATTENTION_NSA, NSA_PHI_MLP);
    cfg.model.shared_kv = 1;
    cfg.model.slc_topk = 6; /* all blocks */
    check_gradient(&cfg);
}

/* ---- Initial weights --------------------------------------------------------------------------------------------- */

/* linear and mlp begin as the mean, so the first loss is that of phi mean, whose other weights are drawn alike. */
static void test_phi_starts_as_mean(void **state)
{
    (void)state;
    double loss[NSA_PHI_MLP + 1];
    for (int32_t phi = NSA_PHI_MEAN; phi <= NSA_PHI_MLP; phi++) {
        lm_config cfg = tiny(ATTENTION_NSA, (nsa_phi_kind)phi);
        cfg.model.layers = 1; /* tensors are drawn by their number: a layer's phi comes after its other attention */
        problem p = open_problem(&cfg);
        params_init(&p.m->table, p.m->weights, 1);
        /* What comes after phi in the table is drawn from other streams: make it the same. */
        memset(p.m->weights + p.m->layers[0].ffn_out, 0, (size_t)(40 * 24) * sizeof(float));
        loss[phi] = loss_of(&p);
        close_problem(&p);
        assert_true(fabs(loss[phi] - loss[NSA_PHI_MEAN]) < 1e-5);
    }
}

/* ---- Threads ----------------------------------------------------------------------------------------------------- */

static void test_same_bits_for_any_threads(void **state)
{
    (void)state;
    lm_config cfg = tiny(ATTENTION_NSA, NSA_PHI_MLP);
    cfg.model.d_model = 80;
    cfg.model.d_ff = 200;
    cfg.model.context = 150;
    const int threads[] = {1, 2, 3, 8};
    float *first = NULL;
    size_t bytes = 0;
    const int before = omp_get_max_threads();
    for (size_t i = 0; i < sizeof threads / sizeof threads[0]; i++) {
        omp_set_num_threads(threads[i]);
        problem p = open_problem(&cfg);
        (void)loss_of(&p);
        must(lm_backward(p.r, p.tokens, p.grads));
        bytes = (size_t)p.m->table.total * sizeof *p.grads;
        if (first == NULL) {
            first = malloc(bytes);
            memcpy(first, p.grads, bytes);
        }
        assert_memory_equal(first, p.grads, bytes);
        close_problem(&p);
    }
    omp_set_num_threads(before);
    free(first);
}

/* ---- Training ---------------------------------------------------------------------------------------------------- */

static void overfit(attention_kind attention)
{
    char sentence[1200] = "";
    for (int i = 0; i < 20; i++)
        strcat(sentence, "The quick brown fox jumps over the lazy dog. ");
    corpus_file file = {(uint8_t *)sentence, (int64_t)strlen(sentence), (int64_t)strlen(sentence) * 9 / 10};
    corpus data = {&file, 1, file.n, 0};
    lm_config cfg = tiny(attention, NSA_PHI_MLP);
    cfg.train.steps = 120;
    cfg.train.lr = 1e-2;
    cfg.train.warmup = 10;
    trainer *t = NULL;
    must(trainer_create(&t, &cfg, &data));
    double loss = 0.0;
    double held_out = 0.0;
    for (int i = 0; i < cfg.train.steps; i++)
        must(trainer_step(t, &loss));
    must(trainer_validate(t, &held_out));
    trainer_destroy(t);
    if (!(loss < 0.3 && held_out < 0.3))
        test_fail("loss %g, held out %g", loss, held_out);
}

static void test_overfits_a_sentence(void **state)
{
    (void)state;
    overfit(ATTENTION_NSA);
    overfit(ATTENTION_DENSE);
}

/* AdamW forgets how large a gradient is, but its means after one step are it, scaled by what clipping left. */
static void test_clips_the_gradient(void **state)
{
    (void)state;
    uint8_t bytes[2000];
    fill_bytes(bytes, sizeof bytes, 3);
    corpus_file file = {bytes, sizeof bytes, sizeof bytes * 9 / 10};
    const corpus data = {&file, 1, file.n, 0};
    lm_config cfg = tiny(ATTENTION_DENSE, NSA_PHI_MEAN);
    const double clips[] = {0.0, 1e-3, 1e3}; /* off; below the gradient's norm; above it */
    for (int i = 0; i < 3; i++) {
        cfg.train.clip = clips[i];
        trainer *t = NULL;
        double loss = 0.0;
        must(trainer_create(&t, &cfg, &data));
        must(trainer_step(t, &loss));
        const double norm = gradient_norm(t->grads, t->m->table.total);
        const double clipped = gradient_norm(t->adam_m, t->m->table.total) / (1.0 - cfg.train.beta1);
        trainer_destroy(t);
        const double expected = i == 1 ? clips[1] : norm;
        if (!(norm > 1e-2 && norm < 1e2 && fabs(clipped - expected) <= 1e-5 * expected))
            test_fail("clip %g: the norm went from %g to %g", clips[i], norm, clipped);
    }
}

/* ---- Generation -------------------------------------------------------------------------------------------------- */

/* Logits of every position from the cache, in pieces of any size, are those of one forward pass. */
static void check_session(attention_kind attention, int32_t chunk, const int32_t *pieces)
{
    const lm_config cfg = tiny(attention, NSA_PHI_MLP);
    problem p = open_problem(&cfg);
    session *s = NULL;
    must(session_create(&s, p.m, cfg.model.context, chunk));
    must(lm_forward(p.r, p.tokens));
    int32_t done = 0;
    for (int i = 0; done < cfg.model.context; i++) {
        const int32_t n = pieces[i] == 0 ? cfg.model.context - done : pieces[i];
        const float *logits = NULL;
        must(session_extend(s, p.tokens + done, n, &logits));
        done += n;
        assert_int_equal(session_length(s), done);
        const float *expected = p.r->logits + (int64_t)(done - 1) * BYTE_VOCABULARY;
        for (int c = 0; c < BYTE_VOCABULARY; c++) {
            if (!(fabsf(logits[c] - expected[c]) <= 1e-4F))
                test_fail("position %d, byte %d: %g, whole forward %g", done - 1, c, (double)logits[c],
                          (double)expected[c]);
        }
    }
    const float *logits = NULL;
    assert_false(session_extend(s, p.tokens, 1, &logits));
    session_destroy(s);
    close_problem(&p);
}

static void test_session_is_forward(void **state)
{
    (void)state;
    const int32_t one_by_one[45] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1,
                                    1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
    const int32_t mixed[] = {7, 1, 1, 13, 1, 0};
    const int32_t whole[] = {0};
    for (int32_t a = ATTENTION_NSA; a <= ATTENTION_DENSE; a++) {
        check_session((attention_kind)a, 64, one_by_one);
        check_session((attention_kind)a, 5, mixed);
        check_session((attention_kind)a, 64, whole);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_gradient_dense),
        cmocka_unit_test(test_gradient_nsa),
        cmocka_unit_test(test_gradient_shared_kv),
        cmocka_unit_test(test_phi_starts_as_mean),
        cmocka_unit_test(test_same_bits_for_any_threads),
        cmocka_unit_test(test_overfits_a_sentence),
        cmocka_unit_test(test_clips_the_gradient),
        cmocka_unit_test(test_session_is_forward),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
