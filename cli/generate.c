/* nsa generate: goes on with a prompt, byte by byte, through the decode path. */
#include "cli/args.h"
#include "cli/cli.h"

#include "lm/checkpoint.h"
#include "lm/error.h"
#include "lm/sampler.h"
#include "lm/session.h"

#include <omp.h>
#include <stdio.h>
#include <string.h>

enum { PREFILL_CHUNK = 256 };

static int failed(void)
{
    return cli_fail("%s", lm_error());
}

static int put(const uint8_t *bytes, size_t n)
{
    const bool ok = fwrite(bytes, 1, n, stdout) == n && fflush(stdout) == 0;
    return ok ? CLI_OK : CLI_FAILED; /* main says why standard output failed */
}

static int stream(session *s, const char *prompt, int32_t tokens, const sampler *draw)
{
    const float *logits = NULL;
    const uint8_t *bytes = (const uint8_t *)prompt;
    const size_t n = strlen(prompt);
    if (!session_extend(s, bytes, (int32_t)n, &logits))
        return failed();
    int status = put(bytes, n);
    for (int32_t i = 0; status == CLI_OK && i < tokens; i++) {
        uint8_t byte = 0;
        if (!sampler_draw(draw, logits, i, &byte) || (i + 1 < tokens && !session_extend(s, &byte, 1, &logits)))
            return failed();
        status = put(&byte, 1);
    }
    return status == CLI_OK ? put((const uint8_t *)"\n", 1) : status;
}

static int generate(const char *path, const char *prompt, int32_t tokens, const sampler *draw)
{
    model *m = NULL;
    session *s = NULL;
    checkpoint_info info;
    const int64_t length = (int64_t)strlen(prompt) + tokens;
    if (length > INT32_MAX)
        return cli_fail("--prompt and --tokens are more than %d bytes", INT32_MAX);
    int status = CLI_OK;
    if (!checkpoint_load_model(path, &m, &info) || !session_create(&s, m, (int32_t)length, PREFILL_CHUNK))
        status = failed();
    else
        status = stream(s, prompt, tokens, draw);
    session_destroy(s);
    model_destroy(m);
    return status;
}

int cmd_generate(int argc, char **argv)
{
    const char *path, *prompt;
    int32_t tokens, threads;
    int64_t seed;
    sampler draw = {0};
    const arg args[] = {
        arg_required(arg_string("model", &path, "DIR", NULL, "of nsa train: its newest checkpoint, or one step-N")),
        arg_required(arg_string("prompt", &prompt, "TEXT", NULL, "what the text starts with")),
        arg_i32("tokens", &tokens, 1, 1 << 24, "256", "bytes to add"),
        arg_float("temperature", &draw.temperature, 0, 100, "0.8",
                  "0 takes the likeliest byte, 1 draws as the model says"),
        arg_float("top-p", &draw.top_p, 0, 1, "0.95", "draw from the likeliest bytes that reach this probability"),
        arg_i64("seed", &seed, 0, 9007199254740992.0, "1", "of the draws"),
        arg_i32("threads", &threads, 0, 1024, "0", "threads, 0 = all cores"),
    };
    const arg_table table = {"generate", "Goes on with a prompt.", args, ARGS_COUNT(args)};
    int status = CLI_OK;
    if (!args_parse(&table, argc, argv, &status))
        return status;
    if (threads > 0)
        omp_set_num_threads(threads);
    draw.seed = (uint64_t)seed;
    return generate(path, prompt, tokens, &draw);
}
