/* What needs a tokenizer: ids, a shorter prompt, a prefix of a text.
 *
 *     text MODEL
 */
#include "prefold.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void require(int holds, const char *what) {
    if (!holds) {
        fprintf(stderr, "not so: %s (%s)\n", what, prefold_last_error());
        exit(1);
    }
}

int main(int argc, char **argv) {
    require(argc == 2, "one argument");
    prefold_handle engine, prefix;
    require(prefold_engine_open(argv[1], &engine) == PREFOLD_OK, "engine");

    /* First how many, then the ids. */
    const char *head = "<|im_start|>user\nThe old lighthouse on the rock was built by an engineer from Leeds in 1887.";
    size_t count = 0;
    require(prefold_tokenize(engine, head, 1, 1, NULL, 0, &count) == PREFOLD_BUFFER && count > 10, "how many ids");
    uint32_t *ids = malloc(count * sizeof *ids);
    require(prefold_tokenize(engine, head, 1, 1, ids, count, &count) == PREFOLD_OK, "tokenize");
    require(ids[0] == 1, "<|im_start|> is one token");
    size_t plain;
    require(prefold_tokenize(engine, head, 1, 0, NULL, 0, &plain) == PREFOLD_BUFFER && plain > count, "or five");

    /* A shorter prompt. */
    const char *request = "{\"context\": [\"The old lighthouse on the rock was built by an engineer from Leeds in the year 1887, and "
                          "today it is a museum with nine rooms.\"], \"rate\": 0.5}";
    size_t bytes;
    require(prefold_compress(engine, request, NULL, 0, &bytes) == PREFOLD_BUFFER && bytes > 10, "how many bytes");
    char *result = malloc(bytes);
    require(prefold_compress(engine, request, result, bytes - 1, NULL) == PREFOLD_BUFFER, "one byte too few");
    require(prefold_compress(engine, request, result, bytes, NULL) == PREFOLD_OK, "compress");
    require(strlen(result) == bytes - 1 && strstr(result, "\"compressed_prompt\"") != NULL, "a JSON object and its zero");

    /* A text's prefix is that of its ids, and what follows is what follows the whole. */
    prefold_source source = {.struct_size = sizeof source, .text = head};
    require(prefold_prefill(engine, &source, NULL, &prefix) == PREFOLD_OK, "prefill");
    prefold_prefix_info_t info = {.struct_size = sizeof info};
    require(prefold_prefix_info(prefix, &info) == PREFOLD_OK && info.tokens == count, "a row per token");
    prefold_sampling sampling = {.struct_size = sizeof sampling, .max_new_tokens = 6, .top_p = 1, .ignore_eos = 1};
    uint32_t behind[6], whole[6];
    require(prefold_generate(engine, prefix, ids + count - 1, 1, &sampling, behind, 6, NULL) == PREFOLD_OK, "generate");
    uint32_t *longer = malloc((count + 1) * sizeof *longer);
    memcpy(longer, ids, count * sizeof *ids);
    longer[count] = ids[count - 1];
    require(prefold_generate(engine, 0, longer, count + 1, &sampling, whole, 6, NULL) == PREFOLD_OK, "generate");
    require(memcmp(behind, whole, sizeof whole) == 0, "the same answer");

    require(prefold_close(prefix) == PREFOLD_OK && prefold_close(engine) == PREFOLD_OK, "close");
    free(ids);
    free(longer);
    free(result);
    printf("all good\n");
    return 0;
}
