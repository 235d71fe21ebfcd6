/* nsa train: trains a language model on text, with checkpoints that survive a kill at any moment. */
#include "cli/args.h"
#include "cli/cli.h"
#include "cli/progress.h"
#include "cli/train_log.h"

#include "lm/checkpoint.h"
#include "lm/error.h"

#include <omp.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

enum { MAX_SETTINGS = 48, WORD = 32, EXIT_INTERRUPTED = 130 };

typedef struct options {
    string_list data;
    const char *out, *log;
    int32_t eval_every, save_every, threads;
    bool resume;
    lm_config cfg;
    bool given[MAX_SETTINGS];
} options;

/* ---- Flags ------------------------------------------------------------------------------------------------------- */

typedef struct setting_words {
    char flag[WORD], initial[WORD];
} setting_words;

/* A setting as a row of flags. */
static arg setting_arg(const setting *s, options *o, setting_words *words)
{
    static const arg_kind kinds[] = {ARG_I32, ARG_I64, ARG_FLOAT, ARG_CHOICE};
    const bool choice = s->type == SETTING_CHOICE;
    snprintf(words->flag, WORD, "%s", s->name);
    for (char *c = words->flag; *c != '\0'; c++)
        *c = *c == '_' ? '-' : *c;
    if (choice)
        setting_word(s, &o->cfg, words->initial, WORD);
    else
        snprintf(words->initial, WORD, "%.12g", setting_get(s, &o->cfg));
    const arg row = {.name = words->flag,
                     .kind = kinds[s->type],
                     .value = (char *)&o->cfg + s->offset,
                     .min = s->min,
                     .max = s->max,
                     .what = choice                      ? s->choices
                             : s->type == SETTING_DOUBLE ? "X"
                                                         : "N",
                     .initial = words->initial,
                     .help = s->help};
    return arg_given(row, &o->given[s - settings]);
}

/* A checkpoint's settings are those of the run that goes on: flags may repeat them, and move the last step. */
static int adopt_settings(const arg_table *table, options *o, const lm_config *saved)
{
    lm_config merged = *saved;
    for (const setting *s = settings; s->name != NULL; s++) {
        const size_t i = (size_t)(s - settings);
        if (!o->given[i] || setting_get(s, &o->cfg) == setting_get(s, saved))
            continue;
        char flag[WORD + 2];
        snprintf(flag, sizeof flag, "--%s", table->args[i].name);
        if (strcmp(s->name, "steps") != 0)
            return args_fail(table, flag, "differs from that of the checkpoint in --out, which --resume continues");
        merged.train.steps = o->cfg.train.steps;
    }
    o->cfg = merged;
    return CLI_OK;
}

/* ---- Training ---------------------------------------------------------------------------------------------------- */

static volatile sig_atomic_t stop_signal;

static void on_signal(int signal_number)
{
    stop_signal = signal_number;
}

/* The first Ctrl-C asks for a stop after the step that runs; a second one kills. */
static void catch_signals(void)
{
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = (int)SA_RESETHAND};
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
}

static int failed(void)
{
    return cli_fail("%s", lm_error());
}

/* A step, and what is due after it. */
static bool take_step(const options *o, trainer *t, train_log *log, progress *bar, double *val_loss)
{
    const double start = seconds_now();
    double loss = 0.0;
    LM_TRY(trainer_step(t, &loss));
    const double speed = (double)t->r->rows / (seconds_now() - start);
    const bool last = t->step == o->cfg.train.steps;
    const bool validate = last || t->step % o->eval_every == 0;
    if (validate)
        LM_TRY(trainer_validate(t, val_loss));
    progress_update(bar, t->step, "loss %.3f  %.1fk tokens/s", loss, speed * 1e-3);
    if (validate)
        progress_print(bar, "step %lld: loss %.4f, held out %.4f nats per byte", (long long)t->step, loss, *val_loss);
    LM_TRY(train_log_step(log, t->step, loss, validate ? val_loss : NULL, speed));
    return last || t->step % o->save_every == 0 ? checkpoint_save(o->out, t) : true;
}

static int train(const options *o, trainer *t, train_log *log)
{
    progress bar;
    double val_loss = 0.0;
    const int64_t first = t->step;
    const double start = seconds_now();
    bool ok = true;
    catch_signals();
    progress_start(&bar, "train", first, o->cfg.train.steps);
    while (ok && t->step < o->cfg.train.steps && stop_signal == 0)
        ok = take_step(o, t, log, &bar, &val_loss);
    progress_end(&bar);
    const bool complete = t->step == o->cfg.train.steps;
    if (!ok || (!complete && !checkpoint_save(o->out, t)))
        return failed();
    if (!complete) {
        printf("stopped after step %lld; --resume goes on from %s/step-%lld\n", (long long)t->step, o->out,
               (long long)t->step);
        return EXIT_INTERRUPTED;
    }
    printf("%lld steps in %.1f s, held out %.4f nats per byte: %s/step-%lld\n", (long long)(t->step - first),
           seconds_now() - start, val_loss, o->out, (long long)t->step);
    return CLI_OK;
}

/* ---- The command ------------------------------------------------------------------------------------------------- */

static int train_with_log(const options *o, trainer *t)
{
    train_log log;
    if (!train_log_open(&log, o->log, t->step))
        return failed();
    const int status = train(o, t, &log);
    return train_log_close(&log) || status != CLI_OK ? status : failed();
}

static int run_training(const arg_table *table, options *o, const corpus *data)
{
    char checkpoint[LM_PATH_MAX];
    checkpoint_info info;
    bool found = false;
    if (!checkpoint_find(o->out, checkpoint, &found) ||
        (found && o->resume && !checkpoint_read_info(checkpoint, &info)))
        return failed();
    if (found && !o->resume)
        return args_fail(table, "--out", "%s holds a checkpoint: --resume goes on from it", o->out);
    int status = found ? adopt_settings(table, o, &info.cfg) : CLI_OK;
    if (status != CLI_OK)
        return status;
    trainer *t = NULL;
    if (!trainer_create(&t, &o->cfg, data) || (found && !checkpoint_resume(checkpoint, &info, t)))
        status = failed();
    else if (t->step >= o->cfg.train.steps)
        printf("%s has all its %d steps\n", checkpoint, o->cfg.train.steps);
    else
        status = train_with_log(o, t);
    trainer_destroy(t);
    return status;
}

static int lock_and_train(const arg_table *table, options *o, const corpus *data)
{
    int lock = -1;
    if (!checkpoint_prepare(o->out, &lock))
        return failed();
    const int status = run_training(table, o, data);
    (void)close(lock);
    return status;
}

int cmd_train(int argc, char **argv)
{
    options o = {0};
    config_init(&o.cfg);
    arg args[MAX_SETTINGS + 8];
    setting_words words[MAX_SETTINGS];
    int n = 0;
    for (const setting *s = settings; s->name != NULL; s++, n++)
        args[n] = setting_arg(s, &o, &words[n]);
    args[n++] = arg_required(arg_strings("data", &o.data, "FILE", "text; the last tenth of each file is held out"));
    args[n++] = arg_required(arg_string("out", &o.out, "DIR", NULL, "where checkpoints go"));
    args[n++] = arg_string("log", &o.log, "FILE", NULL, "losses as JSON lines");
    args[n++] = arg_i32("eval-every", &o.eval_every, 1, 1 << 30, "50", "steps between held-out losses");
    args[n++] = arg_i32("save-every", &o.save_every, 1, 1 << 30, "100", "steps between checkpoints");
    args[n++] = arg_flag("resume", &o.resume, "go on from the newest checkpoint in --out");
    args[n++] = arg_i32("threads", &o.threads, 0, 1024, "0", "threads, 0 = all cores");
    const arg_table table = {"train", "Trains a language model with NSA, or with dense attention, on text.", args, n};
    int status = CLI_OK;
    if (!args_parse(&table, argc, argv, &status))
        return status;
    if (o.threads > 0)
        omp_set_num_threads(o.threads);
    corpus data;
    if (!config_check(&o.cfg) || !corpus_load(&data, o.data.item, o.data.n))
        return failed();
    status = lock_and_train(&table, &o, &data);
    corpus_free(&data);
    return status;
}
