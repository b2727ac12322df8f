/* prefold: fold a long prompt before a language model reads it. The C ABI.
 *
 * Link with -lprefold (libprefold.so, or libprefold.a with -lz -lpthread -ldl -lm).
 *
 * Handles are numbers. Each call that makes one says so; you close it with prefold_close, once, from any thread. A closed handle
 * gives PREFOLD_HANDLE, never a crash; work that another thread has begun with it is finished first. Handle 0 is invalid.
 *
 * Threads: every function may be called from any thread at any time, on the same handles too.
 *
 * Memory: all buffers are yours; prefold copies what it is given and keeps no pointer after a call. Strings end with a zero and
 * are UTF-8. Where a function fills a buffer, `capacity` counts its elements and `*count` is set to how many are needed, also when
 * the answer is PREFOLD_BUFFER (then the buffer is untouched); `count` may be NULL.
 *
 * Structs begin with struct_size: set it to sizeof the struct. Fields that your header does not know keep their defaults. A NULL
 * for options means all defaults.
 *
 * Every function returns a code, but for prefold_last_error and prefold_abi_version.
 */
#ifndef PREFOLD_H
#define PREFOLD_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum {
    PREFOLD_OK = 0,
    PREFOLD_ARGUMENT = 1,    /* NULL, out of range, not UTF-8; also a prefix or adapter of another model */
    PREFOLD_IO = 2,          /* a file, folder or download failed */
    PREFOLD_FORMAT = 3,      /* a file is not what it should be */
    PREFOLD_UNSUPPORTED = 4, /* not built; the message says what there is */
    PREFOLD_BUDGET = 5,      /* what must be kept is already longer than the budget */
    PREFOLD_DEVICE = 6,
    PREFOLD_BUFFER = 7,      /* your buffer is too short */
    PREFOLD_HANDLE = 8,      /* no open handle of that kind */
    PREFOLD_PANIC = 9,       /* a bug in prefold; nothing of yours is harmed */
    PREFOLD_CANCELLED = 10,  /* prefold_control_cancel */
    PREFOLD_DEADLINE = 11    /* the time of a control has passed */
};

typedef uint64_t prefold_handle;

/* Version of this ABI: 1. It grows by fields at the end of structs and by functions. Nothing to free; any thread. */
uint32_t prefold_abi_version(void);

/* What went wrong last on this thread, in one line. The string is prefold's and lives until this thread's next failing call:
 * free nothing. Any thread; each has its own. */
const char *prefold_last_error(void);

/* Closes a handle of any kind, which frees what it stands for. Any thread; once a handle. */
int32_t prefold_close(prefold_handle handle);

typedef struct {
    size_t struct_size;
    double timeout_seconds; /* from now on; 0: none */
    /* Gets the tokens that went through the model, and those of the stage, on the thread of the call, which waits meanwhile. Of
     * prefold it may call prefold_control_cancel alone. NULL: none. */
    void (*progress)(void *user, size_t done, size_t total);
    void *user; /* handed to progress, and not looked at */
} prefold_control_options;

/* What ends calls. *out: a control, yours to prefold_close. Any thread. */
int32_t prefold_control_open(const prefold_control_options *options, prefold_handle *out);

/* Ends every call that is done under a control, now and later, with PREFOLD_CANCELLED: within 200 ms on a CPU that is not busy
 * elsewhere, and with the engine as it was. Nothing to free; any thread. */
int32_t prefold_control_cancel(prefold_handle control);

/* Does the calls that this thread makes from now on under a control; 0: under none. Nothing to free. Any thread; each has its
 * own. */
int32_t prefold_control_use(prefold_handle control);

/* Opens a GGUF file or a Hugging Face folder. *out: an engine, yours to prefold_close. Any thread.
 * The files stay mapped while the engine is open: where another process shortens or empties one, the system ends this
 * process by SIGBUS. Replace a model by renaming a new file into its place, never by writing over it. */
int32_t prefold_engine_open(const char *path, prefold_handle *out);

typedef struct {
    size_t struct_size;
    const char *device;  /* "auto", "cpu", "cuda", "cuda:1"; NULL: auto */
    uint32_t precision;  /* of a CUDA device. 0: the default; 1: bf16; 2: f32 */
    size_t threads;      /* the engine's own CPU threads; 0: one per core */
    const char *adapter; /* the folder of an adapter to score with, as `prefold train align` makes it; NULL: none */
} prefold_engine_options;

/* The same, with options. */
int32_t prefold_engine_open_with(const char *path, const prefold_engine_options *options, prefold_handle *out);

/* Token ids of a text. add_special: with what the tokenizer puts around a text (BOS); parse_special: <|im_start|> is one token.
 * ids is yours; nothing to free. Any thread. */
int32_t prefold_tokenize(prefold_handle engine, const char *text, uint32_t add_special, uint32_t parse_special, uint32_t *ids,
                         size_t capacity, size_t *count);

/* Negative log-likelihoods (nats) of ids[1..]: ids_count - 1 of them. nll is yours; nothing to free. Any thread. */
int32_t prefold_score(prefold_handle engine, const uint32_t *ids, size_t ids_count, float *nll, size_t capacity, size_t *count);

/* A shorter prompt. call and request, a JSON object:
 *   "compress"                    {"contexts": ["…"]} and, if you like, question, instruction, structured, rate or target_tokens, mode
 *                                 ("exact", "llmlingua" or "llmlingua2") and the options of that mode. The result has text, tokens_before,
 *                                 tokens_after, target, warnings, and for each context that is left its index, text, tokens and spans
 *                                 (of bytes).
 *   "compress_prompt"             {"context": ["…"]} and the other arguments of llmlingua's function of that name, whose result it
 *                                 gives; with "budget": "exact" it keeps the budget to the token.
 *   "structured_compress_prompt"  the same with <llmlingua, rate=…, compress=…> tags in the contexts.
 *   "compress_prompt_llmlingua2"  the same for LLMLingua-2; the engine is a token classifier.
 * *out: a text, for prefold_text_read, yours to prefold_close. Any thread. */
int32_t prefold_compress_call(prefold_handle engine, const char *call, const char *request, prefold_handle *out);

/* Copies a text and its zero, which count includes. buffer is yours; nothing to free. Any thread. */
int32_t prefold_text_read(prefold_handle text, char *buffer, size_t capacity, size_t *count);

/* "compress_prompt" without a handle: result is a JSON object and its zero, which count includes. When the answer is PREFOLD_BUFFER,
 * the result is kept for this thread's next call: with the same engine and request it is answered from there. result is yours;
 * nothing to free. Any thread. */
int32_t prefold_compress(prefold_handle engine, const char *request, char *result, size_t capacity, size_t *count);

/* A text, or ids if text is NULL. */
typedef struct {
    size_t struct_size;
    const char *text;
    const uint32_t *ids;
    size_t ids_count;
} prefold_source;

/* Opens an encoder's adapter for a model: a folder in PEFT's layout with memory_embeddings.safetensors. *out: an
 * adapter, yours to prefold_close. Any thread. */
int32_t prefold_adapter_open(prefold_handle engine, const char *folder, prefold_handle *out);

typedef struct {
    size_t struct_size;
    uint32_t method;      /* 0: the adapter's own; 1: 500xCompressor; 2: ICAE; 5: pooled */
    size_t piece_tokens;  /* longest piece of text; 0: the adapter's own */
} prefold_encode_options;

/* A text as the K and V of a few memory tokens. *out: a prefix, yours to prefold_close. Any thread. */
int32_t prefold_encode(prefold_handle engine, prefold_handle adapter, const prefold_source *source,
                       const prefold_encode_options *options, prefold_handle *out);

typedef struct {
    size_t struct_size;
    double keep;       /* share of the tokens whose K and V are kept, above 0 and up to 1; 0: all, unpruned */
    uint32_t keep_by;  /* 0: expected attention; 1: SnapKV; 2: LLMLingua's surprisal; 3: KeyDiff */
} prefold_prefill_options;

/* A prompt as the model's own K and V; in a text <|im_start|> is one token. *out: a prefix, yours to prefold_close.
 * Any thread. */
int32_t prefold_prefill(prefold_handle engine, const prefold_source *source, const prefold_prefill_options *options,
                        prefold_handle *out);

typedef struct {
    size_t struct_size;
    size_t max_new_tokens; /* 128; never more than capacity */
    float temperature;     /* 0: the likeliest token */
    float top_p;           /* 1 */
    uint64_t seed;
    uint32_t ignore_eos;
} prefold_sampling;

/* Ids after a prefix (0: none) and a prompt of at least one id. The end-of-text id is not among them. ids is
 * yours; nothing to free. Any thread. */
int32_t prefold_generate(prefold_handle engine, prefold_handle prefix, const uint32_t *prompt, size_t prompt_count,
                         const prefold_sampling *options, uint32_t *ids, size_t capacity, size_t *count);

/* The ids that a prefix of `adapter` stands for, as the adapter was trained to give them back: after its own embedding ([AE] of
 * ICAE) if it has one, after BOS if not. ids is yours; nothing to free. Any thread. */
int32_t prefold_regenerate(prefold_handle engine, prefold_handle adapter, prefold_handle prefix, const prefold_sampling *options,
                           uint32_t *ids, size_t capacity, size_t *count);

enum { PREFOLD_F32 = 0, PREFOLD_F16 = 1, PREFOLD_BF16 = 2 };

/* Reads a prefix file; no engine is needed. *out: a prefix, yours to prefold_close. Any thread. */
int32_t prefold_prefix_open(const char *path, prefold_handle *out);

/* Writes a prefix file, whole or not at all. dtype: PREFOLD_F32, … Nothing to free; any thread. */
int32_t prefold_prefix_save(prefold_handle prefix, const char *path, uint32_t dtype);

/* As a placeholder: ids drawn from the prefix's content, so that a cache which knows a prompt by its tokens alone keeps
 * prefixes apart. */
#define PREFOLD_PLACEHOLDER_UNIQUE UINT32_MAX

/* Writes a sequence-state file of llama.cpp. template_path: a slot that the server saved, or NULL for version 4, one slot, flash
 * attention, f16. placeholder: the id that stands for each memory token, or PREFOLD_PLACEHOLDER_UNIQUE. Nothing to free; any
 * thread. */
int32_t prefold_prefix_export_llama_cpp(prefold_handle prefix, const char *template_path, uint32_t placeholder, const char *path);

typedef struct {
    size_t struct_size; /* set it before the call */
    size_t layers, kv_heads, tokens, head_dim;
    size_t next_pos;      /* position of the first token after the prefix */
    size_t source_tokens; /* tokens of the text */
    size_t positions;     /* tokens, or layers * kv_heads * tokens where heads keep different ones */
    uint32_t k_rope;      /* 1: K is stored rotated */
    uint32_t method;      /* 1: 500xCompressor; 2: ICAE; 3: prefill; 4: pruned; 5: pooled;
                          * 6: trained */
} prefold_prefix_info_t;

/* What a prefix holds. *out is yours; nothing to free. Any thread. */
int32_t prefold_prefix_info(prefold_handle prefix, prefold_prefix_info_t *out);

/* The position that each key is rotated to, [tokens] or [layers, kv_heads, tokens]. positions is yours; nothing to
 * free. Any thread. */
int32_t prefold_prefix_positions(prefold_handle prefix, uint32_t *positions, size_t capacity, size_t *count);

/* K or V of one layer, laid out as the host wants it. */
typedef struct {
    size_t struct_size;
    size_t layer;
    uint32_t value;       /* 0: K; 1: V */
    uint32_t dtype;       /* PREFOLD_F32, …; a value beyond f16's range becomes infinite */
    uint32_t k_rope;      /* 1 (default): K rotated; 0: not */
    uint32_t interleaved; /* 1: the rotated pairs of K stand side by side, as in llama.cpp; 0: half a head apart */
    size_t head_stride, token_stride, channel_stride; /* in bytes; 0: [kv_heads, tokens, head_dim] without gaps */
} prefold_read;

/* Writes the elements, and nothing between them, to buffer, which has `bytes` bytes and is yours; nothing to free. Any thread. */
int32_t prefold_prefix_read(prefold_handle prefix, const prefold_read *what, void *buffer, size_t bytes);

#ifdef __cplusplus
}
#endif
#endif
