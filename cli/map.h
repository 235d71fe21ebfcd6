/* nsa map: what a model attends to (map.c), as a picture (map_picture.c). */
#ifndef CLI_MAP_H
#define CLI_MAP_H

enum { MAP_BINS = 128 }; /* rows of the picture: each is a bin of neighbouring query positions */

/* A layer and kv head. */
typedef struct map_panel {
    float *free,
        *forced; /* [MAP_BINS][n_blocks]: share of the bin's queries that select the block, by score or by rule */
    float gate[3][MAP_BINS]; /* of cmp, slc, win: mean over the bin and the group's heads */
} map_panel;

typedef struct selection_map {
    const char *title, *subtitle;
    int n_layers, n_heads; /* kv heads */
    int n_tokens, n_blocks;
    const map_panel *panels; /* [n_layers][n_heads] */
} selection_map;

int map_draw(const char *path, const selection_map *map);

#endif
