/* Many C threads on the same handles: each gets what one alone gets, and its own last error.
 *
 *     threads MODEL ADAPTER
 */
#include "prefold.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { THREADS = 6, PASSES = 8, SOURCES = 4, TEXT = 20, ANSWER = 6 };

static prefold_handle engine, adapter, shared;
static uint32_t wanted[SOURCES][ANSWER];

static void require(int holds, const char *what) {
    if (!holds) {
        fprintf(stderr, "not so: %s (%s)\n", what, prefold_last_error());
        exit(1);
    }
}

/* A text of its own, encoded, continued from, saved to no place, closed. */
static void work(unsigned number, uint32_t *answer) {
    uint32_t ids[TEXT], bos = 1;
    for (unsigned i = 0; i < TEXT; i++) ids[i] = (7 * i + 31 * number + 3) % 500;
    prefold_source source = {sizeof source, NULL, ids, TEXT};
    prefold_handle prefix;
    require(prefold_encode(engine, adapter, &source, NULL, &prefix) == PREFOLD_OK, "encode");
    prefold_sampling sampling = {sizeof sampling, ANSWER, 0, 1, 0, 1};
    size_t count;
    require(prefold_generate(engine, prefix, &bos, 1, &sampling, answer, ANSWER, &count) == PREFOLD_OK, "generate");
    require(count == ANSWER, "as many ids as asked for");
    require(prefold_close(prefix) == PREFOLD_OK, "close");
    /* The message is this thread's own. */
    char path[64];
    snprintf(path, sizeof path, "/no/such/file/%u", number);
    require(prefold_prefix_open(path, &prefix) == PREFOLD_IO, "no such file");
    require(strstr(prefold_last_error(), path) != NULL, "the thread's own message");
}

static void *hammer(void *argument) {
    unsigned thread = *(unsigned *)argument;
    for (unsigned pass = 0; pass < PASSES; pass++) {
        unsigned number = (thread + pass) % SOURCES;
        uint32_t answer[ANSWER];
        work(number, answer);
        require(memcmp(answer, wanted[number], sizeof answer) == 0, "the answer that one thread gets alone");
        prefold_prefix_info_t info = {.struct_size = sizeof info};
        int32_t code = prefold_prefix_info(shared, &info);
        require(code == PREFOLD_OK || code == PREFOLD_HANDLE, "open, or closed by another thread");
        if (thread == 0 && pass == PASSES / 2) require(prefold_close(shared) == PREFOLD_OK, "closed once");
    }
    return NULL;
}

int main(int argc, char **argv) {
    require(argc == 3, "two arguments");
    require(prefold_engine_open(argv[1], &engine) == PREFOLD_OK, "engine");
    require(prefold_adapter_open(engine, argv[2], &adapter) == PREFOLD_OK, "adapter");
    for (unsigned i = 0; i < SOURCES; i++) work(i, wanted[i]);
    require(memcmp(wanted[0], wanted[1], sizeof wanted[0]) != 0, "texts with different answers");
    uint32_t ids[3] = {5, 6, 7};
    prefold_source source = {sizeof source, NULL, ids, 3};
    require(prefold_prefill(engine, &source, NULL, &shared) == PREFOLD_OK, "prefill");
    pthread_t threads[THREADS];
    unsigned numbers[THREADS];
    for (unsigned i = 0; i < THREADS; i++) {
        numbers[i] = i;
        require(pthread_create(&threads[i], NULL, hammer, &numbers[i]) == 0, "a thread");
    }
    for (unsigned i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
    require(prefold_close(shared) == PREFOLD_HANDLE, "closed already");
    require(prefold_close(adapter) == PREFOLD_OK && prefold_close(engine) == PREFOLD_OK, "close");
    printf("all good\n");
    return 0;
}
