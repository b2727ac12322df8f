/* A text by ICAE's method and back, after the adapter's own embedding.
 *
 *     icae MODEL ADAPTER ID...
 */
#include "prefold.h"

#include <stdio.h>
#include <stdlib.h>

static void require(int holds, const char *what) {
    if (!holds) {
        fprintf(stderr, "not so: %s (%s)\n", what, prefold_last_error());
        exit(1);
    }
}

int main(int argc, char **argv) {
    require(argc > 3, "a model, an adapter and ids");
    prefold_handle engine, adapter, prefix;
    require(prefold_engine_open(argv[1], &engine) == PREFOLD_OK, "engine");
    require(prefold_adapter_open(engine, argv[2], &adapter) == PREFOLD_OK, "adapter");
    size_t count = (size_t)argc - 3;
    uint32_t *ids = malloc(count * sizeof *ids), made[16];
    for (size_t i = 0; i < count; i++) ids[i] = (uint32_t)atoi(argv[i + 3]);
    prefold_source source = {sizeof source, NULL, ids, count};
    prefold_encode_options options = {.struct_size = sizeof options, .method = 2};
    require(prefold_encode(engine, adapter, &source, &options, &prefix) == PREFOLD_OK, "encode");
    prefold_sampling sampling = {.struct_size = sizeof sampling, .max_new_tokens = 16, .top_p = 1, .ignore_eos = 1};
    require(prefold_regenerate(engine, adapter, prefix, &sampling, made, 16, &count) == PREFOLD_OK, "regenerate");
    for (size_t i = 0; i < count; i++) printf("%u ", made[i]);
    require(prefold_close(prefix) == PREFOLD_OK && prefold_close(adapter) == PREFOLD_OK, "close");
    require(prefold_close(engine) == PREFOLD_OK, "close");
    free(ids);
    printf("all good\n");
    return 0;
}
