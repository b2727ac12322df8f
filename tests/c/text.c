/* What needs a tokenizer: ids, shorter prompts, calls that are ended, a prefix of a text.
 *
 *     text MODEL
 */
#include "prefold.h"

#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static void require(int holds, const char *what) {
    if (!holds) {
        fprintf(stderr, "not so: %s (%s)\n", what, prefold_last_error());
        exit(1);
    }
}

/* A compression as JSON; yours to free. */
static char *compressed(prefold_handle engine, const char *call, const char *request) {
    prefold_handle text;
    size_t bytes;
    require(prefold_compress_call(engine, call, request, &text) == PREFOLD_OK, call);
    require(prefold_text_read(text, NULL, 0, &bytes) == PREFOLD_BUFFER && bytes > 10, "how many bytes");
    char *json = malloc(bytes);
    require(prefold_text_read(text, json, bytes - 1, NULL) == PREFOLD_BUFFER, "one byte too few");
    require(prefold_text_read(text, json, bytes, NULL) == PREFOLD_OK && strlen(json) == bytes - 1, "read");
    require(prefold_close(text) == PREFOLD_OK && prefold_close(text) == PREFOLD_HANDLE, "closed once");
    return json;
}

static double now(void) {
    struct timespec time;
    timespec_get(&time, TIME_UTC);
    return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

/* Counts its calls, and cancels the control at the first. */
typedef struct {
    prefold_handle control;
    size_t calls, done, total;
} watch;

static void look(void *user, size_t done, size_t total) {
    watch *seen = user;
    seen->calls++;
    seen->done = done;
    seen->total = total;
    if (seen->control) prefold_control_cancel(seen->control);
}

/* Deadlines, cancellation and progress. */
static void end_calls(prefold_handle engine) {
    enum { WORDS = 4000 };
    char *request = malloc(64 + 12 * WORDS);
    strcpy(request, "{\"contexts\": [\"");
    char *end = request + strlen(request);
    for (int i = 0; i < WORDS; i++) end += sprintf(end, "Word %d. ", i % 997);
    strcpy(end, "\"]}");

    prefold_handle control, text;
    prefold_control_options late = {.struct_size = sizeof late, .timeout_seconds = 0.3};
    require(prefold_control_open(&late, &control) == PREFOLD_OK && prefold_control_use(control) == PREFOLD_OK, "control");
    double start = now();
    require(prefold_compress_call(engine, "compress", request, &text) == PREFOLD_DEADLINE && text == 0, "it is late");
    require(now() - start >= 0.3, "and was given its time");
    require(prefold_close(control) == PREFOLD_OK, "close");

    watch seen = {0};
    prefold_control_options watched = {.struct_size = sizeof watched, .progress = look, .user = &seen};
    require(prefold_control_open(&watched, &control) == PREFOLD_OK && prefold_control_use(control) == PREFOLD_OK, "control");
    seen.control = control;
    require(prefold_compress_call(engine, "compress", request, &text) == PREFOLD_CANCELLED, "it is cancelled");
    require(seen.calls == 1 && seen.done > 0 && seen.done < seen.total, "at its first word");
    uint32_t ids[3] = {5, 6, 7};
    float nll[2];
    require(prefold_score(engine, ids, 3, nll, 2, NULL) == PREFOLD_CANCELLED, "and stays so");
    require(prefold_control_use(0) == PREFOLD_OK && prefold_score(engine, ids, 3, nll, 2, NULL) == PREFOLD_OK, "under none");
    require(prefold_close(control) == PREFOLD_OK && prefold_control_use(control) == PREFOLD_HANDLE, "closed");
    late.timeout_seconds = -1;
    require(prefold_control_open(&late, &control) == PREFOLD_ARGUMENT, "no time at all");
    free(request);
}

int main(int argc, char **argv) {
    require(argc == 2, "one argument");
    prefold_handle engine, prefix;
    prefold_engine_options options = {.struct_size = sizeof options, .device = "cpu", .threads = 2};
    require(prefold_engine_open_with(argv[1], &options, &engine) == PREFOLD_OK, "engine");
    prefold_handle other = 9;
    options.device = "tpu";
    require(prefold_engine_open_with(argv[1], &options, &other) == PREFOLD_UNSUPPORTED && other == 0, "no such device");
    options.device = NULL;
    options.adapter = "/no/such/folder";
    require(prefold_engine_open_with(argv[1], &options, &other) == PREFOLD_IO, "no such adapter");
    /* A header of before, whose struct ends earlier: what it does not know keeps its default. */
    options.struct_size = offsetof(prefold_engine_options, adapter);
    options.device = "cpu";
    require(prefold_engine_open_with(argv[1], &options, &other) == PREFOLD_OK && prefold_close(other) == PREFOLD_OK, "sized");

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
    /* The result is there already: under a time that has passed nothing could be compressed again. */
    prefold_handle control;
    prefold_control_options late = {.struct_size = sizeof late, .timeout_seconds = 1e-9};
    require(prefold_control_open(&late, &control) == PREFOLD_OK && prefold_control_use(control) == PREFOLD_OK, "control");
    require(prefold_compress(engine, request, result, bytes - 1, NULL) == PREFOLD_BUFFER, "one byte too few");
    require(prefold_compress(engine, request, result, bytes, NULL) == PREFOLD_OK, "compress");
    require(prefold_compress(engine, request, result, bytes, NULL) == PREFOLD_DEADLINE, "once only");
    require(prefold_control_use(0) == PREFOLD_OK && prefold_close(control) == PREFOLD_OK, "under none");
    require(strlen(result) == bytes - 1 && strstr(result, "\"compressed_prompt\"") != NULL, "a JSON object and its zero");
    char *same = compressed(engine, "compress_prompt", request);
    require(strcmp(same, result) == 0, "the same by a handle");
    free(same);

    /* In our own words, and with tags. */
    char *own = compressed(engine, "compress",
                           "{\"contexts\": [\"Keep me.\", \"And drop some of this long sentence, which says next to nothing.\"], "
                           "\"target_tokens\": 8, \"force_contexts\": [0]}");
    require(strstr(own, "\"tokens_after\":8") != NULL && strstr(own, "\"spans\":[[0,8]]") != NULL, own);
    free(own);
    char *tagged = compressed(engine, "structured_compress_prompt",
                              "{\"context\": [\"<llmlingua, compress=False>Keep me.</llmlingua><llmlingua, rate=0.5>But not all of "
                              "this long and winding sentence about nothing.</llmlingua>\"]}");
    require(strstr(tagged, "\"compressed_prompt\":\"Keep me.") != NULL, tagged);
    free(tagged);
    prefold_handle refused;
    require(prefold_compress_call(engine, "compress", "{\"contexts\": \"a\", \"iterative_size\": 3}", &refused) ==
                PREFOLD_ARGUMENT && strstr(prefold_last_error(), "iterative_size") != NULL, "an option of the other mode");
    require(prefold_compress_call(engine, "shorten", "{}", &refused) == PREFOLD_UNSUPPORTED, "no such call");
    end_calls(engine);

    /* A text's prefix is that of its ids, and what follows is what follows the whole. */
    prefold_source source = {.struct_size = sizeof source, .text = head};
    require(prefold_prefill(engine, &source, NULL, &prefix) == PREFOLD_OK, "prefill");
    prefold_prefix_info_t info = {.struct_size = sizeof info};
    require(prefold_prefix_info(prefix, &info) == PREFOLD_OK && info.tokens == count, "a row per token");
    prefold_sampling sampling = {.struct_size = sizeof sampling, .max_new_tokens = 6, .top_p = 1, .ignore_eos = 1};
    uint32_t after[6], whole[6];
    require(prefold_generate(engine, prefix, ids + count - 1, 1, &sampling, after, 6, NULL) == PREFOLD_OK, "generate");
    uint32_t *longer = malloc((count + 1) * sizeof *longer);
    memcpy(longer, ids, count * sizeof *ids);
    longer[count] = ids[count - 1];
    require(prefold_generate(engine, 0, longer, count + 1, &sampling, whole, 6, NULL) == PREFOLD_OK, "generate");
    require(memcmp(after, whole, sizeof whole) == 0, "the same answer");

    require(prefold_close(prefix) == PREFOLD_OK && prefold_close(engine) == PREFOLD_OK, "close");
    free(ids);
    free(longer);
    free(result);
    printf("all good\n");
    return 0;
}
