/* What `nsa bench --device cuda` measures. */
#include "cli/bench_suite.h"

#include "cli/cli.h"
#include "cli/progress.h"

/* Of one shape, in this order. */
static const bench_item all_items[] = {{BENCH_FORWARD, BENCH_DENSE},  {BENCH_FORWARD, BENCH_NSA},
                                       {BENCH_COMPRESS, BENCH_NSA},   {BENCH_CMP_ATTN, BENCH_NSA},
                                       {BENCH_SELECT, BENCH_NSA},     {BENCH_SLC_ATTN, BENCH_NSA},
                                       {BENCH_WIN_ATTN, BENCH_NSA},   {BENCH_GATE, BENCH_NSA},
                                       {BENCH_BACKWARD, BENCH_DENSE}, {BENCH_BACKWARD, BENCH_NSA}};

int bench_gpu_by_length(bench_run *r, bench_shape shape, const int_list *lengths)
{
    int exit_code = CLI_OK;
    for (int i = 0; i < lengths->n && exit_code == CLI_OK; i++) {
        shape.seqlen = (int32_t)lengths->item[i];
        exit_code = bench_items(r, &shape, all_items, ARGS_COUNT(all_items));
        if (exit_code == CLI_OK)
            exit_code = bench_decode_item(r, &shape, BENCH_NSA);
    }
    return exit_code;
}

/* ---- The suite --------------------------------------------------------------------------------------------------- */

static const bench_item nsa_items[] = {
    {BENCH_FORWARD, BENCH_NSA},  {BENCH_COMPRESS, BENCH_NSA}, {BENCH_CMP_ATTN, BENCH_NSA}, {BENCH_SELECT, BENCH_NSA},
    {BENCH_SLC_ATTN, BENCH_NSA}, {BENCH_WIN_ATTN, BENCH_NSA}, {BENCH_GATE, BENCH_NSA},     {BENCH_BACKWARD, BENCH_NSA}};
static const bench_item slc_items[] = {
    {BENCH_FORWARD, BENCH_NSA}, {BENCH_SLC_ATTN, BENCH_NSA}, {BENCH_BACKWARD, BENCH_NSA}};
static const bench_item both_forwards[] = {{BENCH_FORWARD, BENCH_DENSE}, {BENCH_FORWARD, BENCH_NSA}};
static const bench_item dense_items[] = {{BENCH_FORWARD, BENCH_DENSE}, {BENCH_BACKWARD, BENCH_DENSE}};

/* Of 64/4 heads, d 128, at some lengths. */
static int by_length(bench_run *r, bool clustered, int32_t first, int32_t last, const bench_item *items, int n)
{
    int exit_code = CLI_OK;
    for (int32_t seqlen = first; seqlen <= last && exit_code == CLI_OK; seqlen *= 2) {
        bench_shape shape = bench_shape_of(r, 64, 4, 128, 128, NSA_BF16, seqlen);
        shape.clustered = clustered;
        exit_code = bench_items(r, &shape, items, n);
    }
    return exit_code;
}

static int training(bench_run *r)
{
    return by_length(r, false, 4096, 131072, nsa_items, ARGS_COUNT(nsa_items));
}

static int clustered(bench_run *r)
{
    return by_length(r, true, 8192, 131072, slc_items, ARGS_COUNT(slc_items));
}

static int dense(bench_run *r)
{
    return by_length(r, false, 4096, 65536, dense_items, ARGS_COUNT(dense_items));
}

static int wide_keys(bench_run *r)
{
    const bench_shape shape = bench_shape_of(r, 64, 4, 192, 128, NSA_BF16, 65536);
    return bench_items(r, &shape, nsa_items, ARGS_COUNT(nsa_items));
}

static int groups(bench_run *r)
{
    static const struct {
        int32_t group, seqlen;
    } cases[] = {{1, 65536}, {2, 65536}, {4, 32768}, {8, 32768}};
    int exit_code = CLI_OK;
    for (int i = 0; i < ARGS_COUNT(cases) && exit_code == CLI_OK; i++) {
        const bench_shape shape = bench_shape_of(r, 32, 32 / cases[i].group, 128, 128, NSA_BF16, cases[i].seqlen);
        exit_code = bench_items(r, &shape, both_forwards, ARGS_COUNT(both_forwards));
    }
    return exit_code;
}

/* As many sequences as fill 4 GiB with the K and V of one branch; then one. */
static int decoding(bench_run *r)
{
    enum { TOKENS = 1 << 21 };
    int exit_code = CLI_OK;
    for (int shared = 0; shared < 2; shared++)
        for (int32_t seqlen = 65536; seqlen >= 1024 && exit_code == CLI_OK; seqlen /= 2) {
            bench_shape shape = bench_shape_of(r, 64, 4, 128, 128, NSA_BF16, seqlen);
            shape.batch = TOKENS / seqlen;
            shape.shared_kv = shared == 1;
            exit_code = bench_decode_item(r, &shape, BENCH_NSA);
        }
    const bench_shape one = bench_shape_of(r, 64, 4, 128, 128, NSA_BF16, 65536);
    return exit_code == CLI_OK ? bench_decode_item(r, &one, BENCH_NSA) : exit_code;
}

int bench_gpu_suite(bench_run *r)
{
    static const struct {
        const char *title;
        int (*run)(bench_run *);
    } sections[] = {
        {"Dense attention", dense},
        {"Forward with all that backward needs, its parts, backward", training},
        {"Clustered: queries that turn slowly, so that neighbours select much the same", clustered},
        {"d_qk 192, d_v 128", wide_keys},
        {"Groups of 1, 2, 4 and 8 query heads per key head", groups},
        {"One decoded token of each sequence, as a CUDA graph; a round over equal caches reads 128 MB or more",
         decoding},
    };
    const double start = seconds_now();
    int exit_code = CLI_OK;
    for (int i = 0; i < ARGS_COUNT(sections) && exit_code == CLI_OK; i++) {
        bench_report_section(r->report, sections[i].title);
        exit_code = sections[i].run(r);
    }
    bench_report_end(r->report, seconds_now() - start);
    return exit_code;
}
