#include "lm/needle.h"
#include "lm/random.h"

#include <math.h>
#include <string.h>

needle needle_draw(uint64_t seed, uint64_t stream, uint64_t index)
{
    needle x;
    memcpy(x.sentence, "\nThe key is ?.\n", NEEDLE_LENGTH);
    x.sentence[NEEDLE_ANSWER] = (uint8_t)('0' + random_below(seed, stream, index, 10));
    return x;
}

static int64_t put(uint8_t *bytes, const needle *x, int64_t at)
{
    memcpy(bytes + at, x->sentence, NEEDLE_LENGTH);
    return at + NEEDLE_ANSWER;
}

int64_t needle_hide(uint8_t *bytes, int64_t n, const uint8_t *hay, const needle *fact, double depth, bool present)
{
    const int64_t question = n - NEEDLE_LENGTH;
    memcpy(bytes, hay, (size_t)n);
    if (present)
        (void)put(bytes, fact, (int64_t)(depth * (double)(question - NEEDLE_LENGTH)));
    return put(bytes, fact, question);
}

void needle_mix(uint8_t *bytes, int64_t n, double progress, uint64_t seed, uint64_t stream, uint64_t index)
{
    const needle x = needle_draw(seed, stream, index);
    const int64_t most = n * 4 / 5 / NEEDLE_LENGTH;
    if (most < 2)
        return;
    const double share = pow(random_unit(seed, stream, index + 1), 4.0 * progress);
    const int64_t mentions = 2 + (int64_t)(share * (double)(most - 2));
    for (int64_t i = 0; i < mentions; i++) {
        const int64_t first = i * n / mentions, spare = (i + 1) * n / mentions - first - NEEDLE_LENGTH;
        (void)put(bytes, &x, first + random_below(seed, stream, index + 2 + (uint64_t)i, spare + 1));
    }
}
