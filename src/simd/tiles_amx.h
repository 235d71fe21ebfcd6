/*
 * The product of pairs of bf16 by AMX: eight tiles of up to 16 rows of 64 bytes, and an instruction that adds to a tile
 * of C [16][16] floats the product of A [16][16 pairs] and B [16 pairs][16]. The operands of simd_product lie as tiles
 * want them.
 *
 * A block of C is two tiles by two, or, where no more than 16 rows are left, one by four: four chains of sums, since an
 * instruction takes 16 cycles and its result 52. Per four of those a block loads four or five tiles, 8 cycles each,
 * beside them. C is loaded and stored once for K_BLOCK pairs.
 *
 * The sum of an element goes on in steps of TILE pairs: within a step those of even and of odd elements are summed,
 * then both added. So it matters where steps begin: at a multiple of TILE pairs from p = 0 on.
 *
 * Setting up tiles takes as long as 15 products of them, asking how they are set up as long as one. So they stay as
 * they are from product to product, and a thread gives them back after its last: other libraries have their own shapes,
 * and the OS puts 8 KiB aside for threads whose tiles are in use.
 */
#ifndef NSA_SIMD_TILES_AMX_H
#define NSA_SIMD_TILES_AMX_H

#include "core/config.h"

#include <string.h>

enum { TILE = 16, TILES_K_BLOCK = 256 };

/* Their intrinsics let compilers move writes of memory across them: gcc's say nothing of memory. */
#define tile_load(number, from, ld)                                                                                    \
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #number ::"r"(from), "r"((ld) * (int64_t)sizeof(float)) : "memory")
#define tile_store(number, to, ld)                                                                                     \
    __asm__ volatile("tilestored %%tmm" #number ", (%0,%1,1)" ::"r"(to), "r"((ld) * (int64_t)sizeof(float))            \
                     : "memor"                                                                                         \
                       "y")
#define tile_zero(number) __asm__ volatile("tilezero %%tmm" #number ::)
#define tile_dot(c, a, b) __asm__ volatile("tdpbf16ps %%tmm" #b ", %%tmm" #a ", %%tmm" #c ::)

typedef struct tile_shapes {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
} tile_shapes;

/* Tiles 0 .. 3: C. 4, 5: A, of first and second rows. 6, 7: B. */
static void tiles_shape(int64_t first, int64_t second, int64_t k)
{
    tile_shapes now, wanted = {.palette = 1};
    for (int i = 0; i < 8; i++)
        wanted.row_bytes[i] = TILE * sizeof(float);
    wanted.row_bytes[4] = wanted.row_bytes[5] = (uint16_t)(k * (int64_t)sizeof(float));
    wanted.rows[0] = wanted.rows[1] = wanted.rows[4] = (uint8_t)first;
    wanted.rows[2] = wanted.rows[3] = wanted.rows[5] = (uint8_t)(second > 0 ? second : first);
    wanted.rows[6] = wanted.rows[7] = (uint8_t)k;
    __asm__ volatile("sttilecfg %0" : "=m"(now));
    if (memcmp(&now, &wanted, sizeof now) != 0)
        __asm__ volatile("ldtilecfg %0" ::"m"(wanted));
}

static void release_tiles(void)
{
    __asm__ volatile("tilerelease" ::);
}

/* What one or two tiles of rows of C are made of: A side by side, and what is fetched meanwhile. */
typedef struct tile_rows {
    const float *a[2];
    int64_t lda[2];
    int64_t k, step; /* pairs in all and of an instruction */
    const char *next;
    int64_t lines; /* fetched with each step */
} tile_rows;

/* C (+)= A B, (rows of tiles) x (columns of tiles): 2 x 1, 2 x 2, 1 x 1 .. 1 x 4; rows of tiles start at c[0] and c[1].
 * Constants where this is called: rows, columns. */
VEC_FN void tile_block(tile_rows *t, float *const c[2], int64_t ldc, const float *b, int64_t ldb, bool add,
                       const int rows, const int columns)
{
    float *const c2 = rows == 2 ? c[1] : c[0] + INT64_C(2) * TILE; /* of tiles 2 and 3 */
    const bool second = columns > 1, third = rows == 2 || columns > 2, fourth = rows == 2 ? second : columns > 3;
    if (add) {
        tile_load(0, c[0], ldc);
        if (second)
            tile_load(1, c[0] + TILE, ldc);
        if (third)
            tile_load(2, c2, ldc);
        if (fourth)
            tile_load(3, c2 + TILE, ldc);
    } else {
        tile_zero(0);
        tile_zero(1);
        tile_zero(2);
        tile_zero(3);
    }
    for (int64_t p = 0; p < t->k; p += t->step, b += TILE * ldb) {
        tile_load(4, t->a[0] + p, t->lda[0]);
        tile_load(6, b, ldb);
        tile_dot(0, 4, 6);
        if (rows == 2) {
            tile_load(5, t->a[1] + p, t->lda[1]);
            tile_dot(2, 5, 6);
        }
        if (second) {
            tile_load(7, b + TILE, ldb);
            tile_dot(1, 4, 7);
        }
        if (rows == 2 && second)
            tile_dot(3, 5, 7);
        if (rows == 1 && third) {
            tile_load(6, b + INT64_C(2) * TILE, ldb);
            tile_dot(2, 4, 6);
        }
        if (rows == 1 && fourth) {
            tile_load(7, b + INT64_C(3) * TILE, ldb);
            tile_dot(3, 4, 7);
        }
        for (int64_t i = 0; i < t->lines; i++, t->next += SIMD_PAD_BYTES)
            __builtin_prefetch(t->next, 0, 2);
    }
    tile_store(0, c[0], ldc);
    if (second)
        tile_store(1, c[0] + TILE, ldc);
    if (third)
        tile_store(2, c2, ldc);
    if (fourth)
        tile_store(3, c2 + TILE, ldc);
}

/* Whether rows i .. i + m - 1 lie one after the other. */
static bool in_turn(const int32_t *rows, int64_t i, int64_t m)
{
    bool so = true;
    for (int64_t r = 1; rows != NULL && r < m; r++)
        so = so && rows[i + r] == rows[i] + r;
    return so;
}

static int64_t row_at(const int32_t *rows, int64_t i)
{
    return rows != NULL ? rows[i] : i;
}

/* A of m <= TILE rows and k <= TILES_K_BLOCK pairs from row i, pair p on, side by side: where it lies, or in copy. */
static const float *tile_a(const simd_product *x, int64_t i, int64_t m, int64_t p, int64_t k, float *copy, int64_t *lda)
{
    if (x->a_col == 1 && in_turn(x->a_rows, i, m)) {
        *lda = x->a_row;
        return x->a + row_at(x->a_rows, i) * x->a_row + p;
    }
    *lda = TILES_K_BLOCK;
    if (x->a_col == 1) {
        for (int64_t r = 0; r < m; r++)
            memcpy(copy + r * TILES_K_BLOCK, x->a + row_at(x->a_rows, i + r) * x->a_row + p, (size_t)k * sizeof *copy);
        return copy;
    }
    for (int64_t q = 0; q < k; q += TILE) {
        const float *from = x->a + i + (p + q) * x->a_col;
        vf block[TILE];
        VEC_UNROLL
        for (int e = 0; e < TILE; e++)
            block[e] = _mm512_maskz_loadu_ps(q + e < k ? vm_lanes(0, m) : 0, from + e * x->a_col);
        vf_transpose(block);
        VEC_UNROLL
        for (int e = 0; e < TILE; e++)
            vf_store(copy + e * TILES_K_BLOCK + q, block[e]);
    }
    return copy;
}

/* keep[i] times rows of C, of which most are to be kept as they are. */
static void tile_keep(const simd_product *x, int64_t i, int64_t m)
{
    for (int64_t r = i; r < i + m; r++) {
        float *c = x->c + row_at(x->c_rows, r) * x->ldc;
        if (x->keep[r] != 1.0F)
            for (int64_t j = 0; j < x->n; j += VF_LANES)
                vf_store(c + j, vf_mul(vf_set1(x->keep[r]), vf_load(c + j)));
    }
}

/* All columns of m rows of C from row i on, first and second of them in tiles: t, whose depth starts at pair p. */
static void tile_columns(const simd_product *x, tile_rows *t, int64_t i, int64_t first, int64_t second, int64_t p,
                         bool add)
{
    const bool whole = in_turn(x->c_rows, i, first) && in_turn(x->c_rows, i + first, second);
    const int64_t most = second > 0 ? 2 : 4;
    _Alignas(64) float copy[2 * TILE][4 * TILE];
    int64_t columns = 0;
    for (int64_t j = 0; j < x->n; j += columns * TILE) {
        const int64_t left = (x->n - j + TILE - 1) / TILE;
        columns = left < most ? left : most;
        const float *b = x->b + p * x->ldb + j;
        float *c[2] = {copy[0], copy[TILE]};
        for (int64_t r = 0; whole && r * TILE < first + second; r++)
            c[r] = x->c + row_at(x->c_rows, i + r * TILE) * x->ldc + j;
        const int64_t ldc = whole ? x->ldc : INT64_C(4) * TILE;
        for (int64_t r = 0; !whole && add && r < first + second; r++)
            memcpy(copy[r], x->c + x->c_rows[i + r] * x->ldc + j, (size_t)(columns * TILE) * sizeof **copy);
        if (second > 0 && columns == 2)
            tile_block(t, c, ldc, b, x->ldb, add, 2, 2);
        else if (second > 0)
            tile_block(t, c, ldc, b, x->ldb, add, 2, 1);
        else if (columns == 4)
            tile_block(t, c, ldc, b, x->ldb, add, 1, 4);
        else if (columns == 3)
            tile_block(t, c, ldc, b, x->ldb, add, 1, 3);
        else if (columns == 2)
            tile_block(t, c, ldc, b, x->ldb, add, 1, 2);
        else
            tile_block(t, c, ldc, b, x->ldb, add, 1, 1);
        for (int64_t r = 0; !whole && r < first + second; r++)
            memcpy(x->c + x->c_rows[i + r] * x->ldc + j, copy[r], (size_t)(columns * TILE) * sizeof **copy);
    }
}

static void product_tiles(const simd_product *x)
{
    _Alignas(64) float copy[2][TILE * TILES_K_BLOCK];
    tile_rows t = {.next = NULL};
    if (x->ahead != NULL && x->ahead->next < x->ahead->end) {
        const int64_t blocks = (x->m + 2 * TILE - 1) / (2 * TILE) * ((x->n + 2 * TILE - 1) / (2 * TILE));
        const int64_t steps = max_i64(1, blocks * ((x->k + TILE - 1) / TILE));
        t.next = x->ahead->next;
        t.lines = (x->ahead->end - t.next + SIMD_PAD_BYTES * steps - 1) / (SIMD_PAD_BYTES * steps);
    }
    int64_t p = 0;
    do { /* once at least: k = 0 gives zeros */
        const int64_t k = min_i64(TILES_K_BLOCK, x->k - p), rest = k % TILE;
        for (int64_t i = 0; i < x->m; i += INT64_C(2) * TILE) {
            const int64_t first = min_i64(TILE, x->m - i), second = min_i64(TILE, x->m - i - first);
            const float *a[2] = {tile_a(x, i, first, p, k, copy[0], &t.lda[0]), NULL};
            if (second > 0)
                a[1] = tile_a(x, i + first, second, p, k, copy[1], &t.lda[1]);
            bool add = p > 0 || x->add;
            if (!add && x->keep != NULL) {
                tile_keep(x, i, first + second);
                add = true;
            }
            for (int part = 0; part < 2; part++) { /* whole steps, and what is left */
                const int64_t done = part == 0 ? 0 : k - rest;
                t.k = part == 0 ? k - rest : rest;
                t.step = part == 0 ? TILE : rest;
                if (t.k == 0 && (part == 1 || k > 0))
                    continue;
                t.a[0] = a[0] + done;
                t.a[1] = second > 0 ? a[1] + done : NULL;
                tiles_shape(first, second, t.step);
                tile_columns(x, &t, i, first, second, p + done, add);
                add = true;
            }
        }
        p += k;
    } while (p < x->k);
    if (t.next != NULL)
        x->ahead->next = t.next;
}

#endif
