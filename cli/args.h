/*
 * Command lines as tables: a row per flag says what it takes, which values are allowed, its default and its help. From
 * the table come the parser, the messages and --help, so they cannot disagree.
 */
#ifndef CLI_ARGS_H
#define CLI_ARGS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum { ARGS_MAX_LIST = 64 };

typedef struct string_list {
    int n;
    const char *item[ARGS_MAX_LIST];
} string_list;

typedef struct int_list {
    int n;
    int64_t item[ARGS_MAX_LIST];
} int_list;

typedef enum arg_kind {
    ARG_I32,     /* int32_t, min .. max */
    ARG_I64,     /* int64_t, min .. max */
    ARG_INTS,    /* int_list: "1,2,3", each min .. max */
    ARG_FLOAT,   /* double, min .. max, finite */
    ARG_STRING,  /* const char *, not empty */
    ARG_TEXT,    /* const char *, may be empty */
    ARG_CHOICE,  /* int32_t: index into the words of what, "nsa|dense" */
    ARG_STRINGS, /* string_list: one or more words after the flag, which may be repeated */
    ARG_FLAG     /* bool; takes no value */
} arg_kind;

typedef struct arg {
    const char *name; /* without the dashes */
    arg_kind kind;
    void *value;         /* where it goes */
    double min, max;     /* of the numbers; within +-2^53 for integers */
    const char *what;    /* "N", "FILE", "nsa|dense" */
    const char *initial; /* the default, as one would type it; NULL: none, *value is left as it is */
    const char *help;    /* lines broken by \n */
    bool required;
    bool *given; /* out: was it on the command line? NULL: nobody asks */
} arg;

/* Rows. Wrap one in arg_required() or arg_given() where that is meant. */
static inline arg arg_i32(const char *name, int32_t *value, int32_t min, int32_t max, const char *initial,
                          const char *help)
{
    return (arg){name, ARG_I32, value, min, max, "N", initial, help, false, NULL};
}

static inline arg arg_i64(const char *name, int64_t *value, double min, double max, const char *initial,
                          const char *help)
{
    return (arg){name, ARG_I64, value, min, max, "N", initial, help, false, NULL};
}

static inline arg arg_ints(const char *name, int_list *value, double min, double max, const char *initial,
                           const char *help)
{
    return (arg){name, ARG_INTS, value, min, max, "N,N,...", initial, help, false, NULL};
}

static inline arg arg_float(const char *name, double *value, double min, double max, const char *initial,
                            const char *help)
{
    return (arg){name, ARG_FLOAT, value, min, max, "X", initial, help, false, NULL};
}

static inline arg arg_string(const char *name, const char **value, const char *what, const char *initial,
                             const char *help)
{
    return (arg){name, ARG_STRING, value, 0, 0, what, initial, help, false, NULL};
}

static inline arg arg_text(const char *name, const char **value, const char *what, const char *initial,
                           const char *help)
{
    return (arg){name, ARG_TEXT, value, 0, 0, what, initial, help, false, NULL};
}

static inline arg arg_choice(const char *name, int32_t *value, const char *choices, const char *initial,
                             const char *help)
{
    return (arg){name, ARG_CHOICE, value, 0, 0, choices, initial, help, false, NULL};
}

static inline arg arg_strings(const char *name, string_list *value, const char *what, const char *help)
{
    return (arg){name, ARG_STRINGS, value, 0, 0, what, NULL, help, false, NULL};
}

static inline arg arg_flag(const char *name, bool *value, const char *help)
{
    return (arg){name, ARG_FLAG, value, 0, 0, "", NULL, help, false, NULL};
}

static inline arg arg_required(arg a)
{
    a.required = true;
    return a;
}

static inline arg arg_given(arg a, bool *given)
{
    a.given = given;
    return a;
}

typedef struct arg_table {
    const char *command; /* "train" */
    const char *summary; /* what the command does, for --help */
    const arg *args;
    int n_args;
} arg_table;

#define ARGS_COUNT(array) ((int)(sizeof(array) / sizeof(array)[0]))

/* Sets all values. True: go on. False: --help was printed or one line on stderr says which flag is wrong and what is
 * allowed; return *exit_code. argv[0] is the command's name. */
bool args_parse(const arg_table *table, int argc, char **argv, int *exit_code);

/* For what a table cannot say: `return args_fail(&table, "--context", "must be a multiple of ...");` prints one line
 * on stderr and returns the exit code. */
int args_fail(const arg_table *table, const char *flag, const char *format, ...) __attribute__((format(printf, 3, 4)));

#endif
