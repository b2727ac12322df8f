/* The C ABI in one screen: a text becomes a KV prefix, goes through a file, is read in a host's layout and gone on from; and
 * misuse gives codes.
 *
 *     prefix MODEL ADAPTER OTHER_MODEL FOLDER
 */
#include "prefold.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHECK(call)                                                                                                                \
    do {                                                                                                                           \
        int32_t code = (call);                                                                                                     \
        if (code != PREFOLD_OK) {                                                                                                  \
            fprintf(stderr, "%s:%d: code %d: %s\n", __FILE__, __LINE__, (int)code, prefold_last_error());                          \
            exit(1);                                                                                                               \
        }                                                                                                                          \
    } while (0)

#define EXPECT(call, want)                                                                                                         \
    do {                                                                                                                           \
        int32_t code = (call);                                                                                                     \
        if (code != (want) || strlen(prefold_last_error()) == 0) {                                                                 \
            fprintf(stderr, "%s:%d: code %d, expected %s\n", __FILE__, __LINE__, (int)code, #want);                                \
            exit(1);                                                                                                               \
        }                                                                                                                          \
    } while (0)

static void require(int holds, const char *what) {
    if (!holds) {
        fprintf(stderr, "not so: %s\n", what);
        exit(1);
    }
}

int main(int argc, char **argv) {
    require(argc == 5, "four arguments");
    char file[4096], slot[4096];
    snprintf(file, sizeof file, "%s/prefix.safetensors", argv[4]);
    snprintf(slot, sizeof slot, "%s/slot.bin", argv[4]);

    prefold_handle engine, other, adapter, prefix, read, pruned;
    CHECK(prefold_engine_open(argv[1], &engine));
    CHECK(prefold_engine_open(argv[3], &other));
    CHECK(prefold_adapter_open(engine, argv[2], &adapter));

    uint32_t ids[20];
    for (int i = 0; i < 20; i++) ids[i] = 7 * i + 3;
    prefold_source source = {sizeof source, NULL, ids, 20};
    CHECK(prefold_encode(engine, adapter, &source, NULL, &prefix));
    CHECK(prefold_prefix_save(prefix, file, PREFOLD_F32));
    CHECK(prefold_prefix_export_llama_cpp(prefix, NULL, 0, slot));
    CHECK(prefold_prefix_open(file, &read));

    prefold_prefix_info_t info = {.struct_size = sizeof info};
    CHECK(prefold_prefix_info(read, &info));
    require(info.source_tokens == 20 && info.next_pos == info.tokens && info.method == 1, "what info says");
    printf("%zu tokens in %zu rows, %zu layers of %zu heads of %zu\n", info.source_tokens, info.tokens, info.layers, info.kv_heads,
           info.head_dim);

    /* The last layer's K as a host might keep it: [tokens][kv_heads][head_dim] with room for one more token, pairs side by side. */
    size_t row = info.kv_heads * info.head_dim, bytes = (info.tokens + 1) * row * sizeof(float);
    float *host = malloc(bytes), *dense = malloc(info.tokens * row * sizeof(float));
    memset(host, 0x7f, bytes);
    prefold_read what = {.struct_size = sizeof what,
                         .layer = info.layers - 1,
                         .k_rope = 1,
                         .interleaved = 1,
                         .head_stride = info.head_dim * sizeof(float),
                         .token_stride = row * sizeof(float)};
    CHECK(prefold_prefix_read(read, &what, host, bytes));
    prefold_read plain = {.struct_size = sizeof plain, .layer = info.layers - 1, .k_rope = 1};
    CHECK(prefold_prefix_read(prefix, &plain, dense, info.tokens * row * sizeof(float)));
    for (size_t h = 0; h < info.kv_heads; h++)
        for (size_t t = 0; t < info.tokens; t++)
            for (size_t i = 0; i < info.head_dim / 2; i++) {
                const float *pair = host + t * row + h * info.head_dim + 2 * i;
                const float *head = dense + (h * info.tokens + t) * info.head_dim;
                require(pair[0] == head[i] && pair[1] == head[i + info.head_dim / 2], "the strided read");
            }
    for (size_t i = info.tokens * row; i < (info.tokens + 1) * row; i++)
        require(((unsigned char *)host)[4 * i] == 0x7f, "nothing is written beyond the last row");
    EXPECT(prefold_prefix_read(read, &what, host, info.tokens * row * sizeof(float) - 1), PREFOLD_BUFFER);

    /* V of the first layer as a host without flash attention keeps it: [kv_heads][head_dim][tokens], f16. */
    uint16_t *channels = malloc(info.tokens * row * sizeof(uint16_t)), *rows = malloc(info.tokens * row * sizeof(uint16_t));
    what = (prefold_read){.struct_size = sizeof what,
                          .value = 1,
                          .dtype = PREFOLD_F16,
                          .head_stride = info.head_dim * info.tokens * sizeof(uint16_t),
                          .token_stride = sizeof(uint16_t),
                          .channel_stride = info.tokens * sizeof(uint16_t)};
    CHECK(prefold_prefix_read(read, &what, channels, info.tokens * row * sizeof(uint16_t)));
    plain = (prefold_read){.struct_size = sizeof plain, .value = 1, .dtype = PREFOLD_F16};
    CHECK(prefold_prefix_read(read, &plain, rows, info.tokens * row * sizeof(uint16_t)));
    for (size_t h = 0; h < info.kv_heads; h++)
        for (size_t t = 0; t < info.tokens; t++)
            for (size_t i = 0; i < info.head_dim; i++)
                require(channels[(h * info.head_dim + i) * info.tokens + t] == rows[(h * info.tokens + t) * info.head_dim + i],
                        "the transposed read");
    EXPECT(prefold_prefix_read(read, &what, channels, info.tokens * row * sizeof(uint16_t) - 1), PREFOLD_BUFFER);

    /* Continuing after a prefix and after its copy from the file is the same. */
    uint32_t bos = 1, one[8], two[8];
    size_t ones, twos;
    prefold_sampling sampling = {sizeof sampling, 8, 0, 1, 0, 1};
    CHECK(prefold_generate(engine, prefix, &bos, 1, &sampling, one, 8, &ones));
    CHECK(prefold_generate(engine, read, &bos, 1, &sampling, two, 8, &twos));
    require(ones == 8 && twos == 8 && memcmp(one, two, sizeof one) == 0, "the same answer");
    for (size_t i = 0; i < ones; i++) printf("%u%c", one[i], i + 1 < ones ? ' ' : '\n');

    /* This adapter's texts begin with BOS. */
    CHECK(prefold_regenerate(engine, adapter, read, &sampling, two, 8, &twos));
    require(twos == 8 && memcmp(one, two, sizeof one) == 0, "regeneration goes by BOS");

    prefold_prefill_options half = {sizeof half, 0.5, 1};
    CHECK(prefold_prefill(engine, &source, &half, &pruned));
    info.struct_size = sizeof info;
    CHECK(prefold_prefix_info(pruned, &info));
    require(info.tokens == 10 && info.next_pos == 20 && info.method == 4, "what info says of a pruned prefix");
    uint32_t positions[4096];
    size_t count;
    CHECK(prefold_prefix_positions(pruned, positions, 4096, &count));
    require(count == info.positions, "the number of positions");
    prefold_handle kept = pruned;

    float nll[19];
    CHECK(prefold_score(engine, ids, 20, nll, 19, &count));
    require(count == 19 && nll[0] > 0, "scores");

    /* Misuse. */
    count = 0;
    EXPECT(prefold_score(engine, ids, 20, nll, 18, &count), PREFOLD_BUFFER);
    require(count == 19, "count says what is needed");
    EXPECT(prefold_engine_open(NULL, &read), PREFOLD_ARGUMENT);
    EXPECT(prefold_engine_open("no/such/model", &read), PREFOLD_IO);
    EXPECT(prefold_engine_open("\xff", &read), PREFOLD_ARGUMENT);
    require(read == 0, "a failure gives no handle");
    CHECK(prefold_prefix_open(file, &read));
    EXPECT(prefold_engine_open(argv[1], NULL), PREFOLD_ARGUMENT);
    EXPECT(prefold_encode(engine, adapter, NULL, NULL, &pruned), PREFOLD_ARGUMENT);
    prefold_source nothing = {sizeof nothing, NULL, NULL, 20};
    EXPECT(prefold_encode(engine, adapter, &nothing, NULL, &pruned), PREFOLD_ARGUMENT);
    prefold_source words = {sizeof words, "a text for a model without a tokenizer", NULL, 0};
    EXPECT(prefold_encode(engine, adapter, &words, NULL, &pruned), PREFOLD_UNSUPPORTED);
    nothing.struct_size = 3;
    EXPECT(prefold_encode(engine, adapter, &nothing, NULL, &pruned), PREFOLD_ARGUMENT);
    EXPECT(prefold_generate(other, prefix, &bos, 1, &sampling, one, 8, &ones), PREFOLD_ARGUMENT);
    require(strstr(prefold_last_error(), "was made by") != NULL, "the message names both models");
    EXPECT(prefold_adapter_open(other, argv[2], &pruned), PREFOLD_FORMAT);
    EXPECT(prefold_encode(other, adapter, &source, NULL, &pruned), PREFOLD_ARGUMENT);
    EXPECT(prefold_regenerate(engine, adapter, kept, &sampling, two, 8, &twos), PREFOLD_ARGUMENT);
    EXPECT(prefold_encode(engine, prefix, &source, NULL, &pruned), PREFOLD_HANDLE);
    EXPECT(prefold_prefix_open(argv[0], &pruned), PREFOLD_FORMAT);
    EXPECT(prefold_prefix_save(prefix, file, 9), PREFOLD_ARGUMENT);
    EXPECT(prefold_prefix_save(prefix, "/no/such/folder/p", PREFOLD_F16), PREFOLD_IO);
    what.layer = 99;
    EXPECT(prefold_prefix_read(read, &what, host, bytes), PREFOLD_ARGUMENT);
    what.layer = 0;
    what.token_stride = (size_t)-1 / 2;
    EXPECT(prefold_prefix_read(read, &what, host, bytes), PREFOLD_BUFFER);
    EXPECT(prefold_prefix_read(read, NULL, host, bytes), PREFOLD_ARGUMENT);
    EXPECT(prefold_compress(engine, "[]", NULL, 0, NULL), PREFOLD_ARGUMENT);
    EXPECT(prefold_close(12345), PREFOLD_HANDLE);

    CHECK(prefold_close(prefix));
    EXPECT(prefold_close(prefix), PREFOLD_HANDLE);
    EXPECT(prefold_generate(engine, prefix, &bos, 1, &sampling, one, 8, &ones), PREFOLD_HANDLE);
    CHECK(prefold_close(read));
    CHECK(prefold_close(kept));
    CHECK(prefold_close(adapter));
    CHECK(prefold_close(other));
    CHECK(prefold_close(engine));
    EXPECT(prefold_score(engine, ids, 20, nll, 19, &count), PREFOLD_HANDLE);
    free(host);
    free(dense);
    free(channels);
    free(rows);
    printf("all good\n");
    return 0;
}
