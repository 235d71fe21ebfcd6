#include "lm/needle.h"
#include "lm/random.h"

#include <stdio.h>
#include <string.h>

static const char *const names[] = {
    "Aaron",  "Abigail", "Abraham", "Adam",   "Amos",   "Anna",  "Caleb",  "Daniel", "David",  "Deborah", "Elijah",
    "Esther", "Eve",     "Ezra",    "Gideon", "Hannah", "Isaac", "Jacob",  "Joel",   "Jonah",  "Joseph",  "Joshua",
    "Leah",   "Martha",  "Miriam",  "Moses",  "Naomi",  "Noah",  "Rachel", "Ruth",   "Samuel", "Sarah",
};
enum { N_NAMES = sizeof names / sizeof names[0] };

needle needle_draw(uint64_t seed, uint64_t stream, uint64_t index)
{
    needle x;
    const char *name = names[random_below(seed, stream, 2 * index, N_NAMES)];
    const int number = (int)random_below(seed, stream, 2 * index + 1, 10000);
    const int before = snprintf(x.sentence, sizeof x.sentence, "\nThe secret number of %s is ", name);
    x.answer = before;
    x.length =
        before + snprintf(x.sentence + before, sizeof x.sentence - (size_t)before, "%0*d.\n", NEEDLE_DIGITS, number);
    return x;
}

static int64_t put(uint8_t *bytes, const needle *x, int64_t at)
{
    memcpy(bytes + at, x->sentence, (size_t)x->length);
    return at + x->answer;
}

int64_t needle_hide(uint8_t *bytes, int64_t n, const uint8_t *hay, const needle *fact, double depth, bool present)
{
    const int64_t question = n - fact->length;
    memcpy(bytes, hay, (size_t)n);
    if (present)
        (void)put(bytes, fact, (int64_t)(depth * (double)(question - fact->length)));
    return put(bytes, fact, question);
}

void needle_mix(uint8_t *bytes, int64_t n, uint64_t seed, uint64_t stream, uint64_t index)
{
    const needle x = needle_draw(seed, stream, index);
    if (n < 2 * x.length)
        return;
    const double depth = random_unit(seed, stream, 2 * index + 2);
    const int64_t question = n - x.length;
    (void)put(bytes, &x, (int64_t)(depth * (double)(question - x.length)));
    (void)put(bytes, &x, question);
}
