/* nsa: trains, runs, measures and shows small language models with Native Sparse Attention. */
#include "cli/cli.h"

#include <nsa.h>

#include <errno.h>
#include <stdio.h>
#include <string.h>

typedef struct command {
    const char *name;
    int (*run)(int argc, char **argv);
    const char *help;
} command;

static const command commands[] = {
    {"train", cmd_train, "train a model on text"},
    {"generate", cmd_generate, "go on with a prompt"},
    {"eval", cmd_eval, "measure a model: loss, perplexity, the needle test"},
    {"map", cmd_map, "draw which blocks a model selects, and its gates"},
    {"bench", cmd_bench, "measure NSA and dense attention by length"},
    {"losses", cmd_losses, "show training logs side by side"},
    {"info", cmd_info, "show the version, the devices and the kernels chosen"},
};
enum { N_COMMANDS = sizeof commands / sizeof commands[0] };

static void print_usage(FILE *out)
{
    fputs("usage: nsa COMMAND [--flag value ...]\n\n", out);
    for (int i = 0; i < N_COMMANDS; i++)
        fprintf(out, "  %-10s %s\n", commands[i].name, commands[i].help);
    fputs("\nnsa COMMAND --help lists the flags of a command; nsa --version prints the version.\n", out);
}

/* Output that could not be written (a full disk behind a redirection) is a failure like any other. */
static int flushed(int exit_code)
{
    errno = 0;
    if (fflush(stdout) == 0 && !ferror(stdout))
        return exit_code;
    /* An earlier write may have failed, whose reason is gone. */
    fprintf(stderr, "nsa: standard output: cannot be written%s%s\n", errno != 0 ? ": " : "",
            errno != 0 ? strerror(errno) : "");
    return exit_code != CLI_OK ? exit_code : CLI_FAILED;
}

int main(int argc, char **argv)
{
    if (argc < 2) {
        print_usage(stderr);
        return CLI_USAGE;
    }
    const char *name = argv[1];
    if (strcmp(name, "--help") == 0 || strcmp(name, "-h") == 0 || strcmp(name, "help") == 0) {
        print_usage(stdout);
        return flushed(CLI_OK);
    }
    if (strcmp(name, "--version") == 0) {
        printf("nsa %s\n", nsa_version());
        return flushed(CLI_OK);
    }
    for (int i = 0; i < N_COMMANDS; i++)
        if (strcmp(name, commands[i].name) == 0)
            return flushed(commands[i].run(argc - 1, argv + 1));
    (void)cli_fail("unknown command '%.100s', nsa --help lists them", name);
    return CLI_USAGE;
}
