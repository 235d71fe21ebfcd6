/* What the commands of `nsa` share. A command parses its flags with args.h and returns the exit code. */
#ifndef CLI_CLI_H
#define CLI_CLI_H

#include <stddef.h>

enum { CLI_OK = 0, CLI_FAILED = 1, CLI_USAGE = 2 };

int cmd_train(int argc, char **argv);
int cmd_generate(int argc, char **argv);
int cmd_eval(int argc, char **argv);
int cmd_losses(int argc, char **argv);
int cmd_map(int argc, char **argv);
int cmd_bench(int argc, char **argv);
int cmd_info(int argc, char **argv);

/* "nsa: ..." as one line on stderr, whatever the text holds; returns CLI_FAILED: `return cli_fail("%s: ...", path);` */
int cli_fail(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* "86861fe": the commit that this was built from; "" if not from a git checkout. */
const char *cli_commit(void);

/* "AMD EPYC 7763 64-Core Processor", without characters that JSON would escape; "unknown". */
void cli_cpu_model(char *model, size_t size);

/* Control characters, line ends among them, become spaces: what a message quotes may come from a file. */
void cli_one_line(char *message);

/* These bytes in place of the file, or the file as it was; returns the exit code. */
int cli_write_file(const char *path, const void *data, size_t bytes);

#endif
