/* pith.h: the C API of pith, a runtime for language models in one file of about 2.85 bits per weight.
 *
 * Two objects. A pith_model is an opened file: immutable, shared by any number of sessions and threads. A
 * pith_session is one timeline of tokens over a model, with its key/value cache, scratch memory and workers: one thread
 * at a time, except pith_interrupt(). A child of fork() opens sessions of its own: one that was opened before refuses
 * there to run, save and load (PITH_E_INVALID), and may be closed. A chat in six lines:
 *
 *   pith_model *model;
 *   pith_session *session;
 *   if (pith_model_open("demo.pith", NULL, &model)) die(pith_errmsg());
 *   if (pith_session_open(model, NULL, &session)) die(pith_errmsg());
 *   pith_message question = {"user", "What is pith?"};
 *   pith_chat(session, &question, 1, print_text, NULL, NULL);      // int print_text(const char *, size_t, void *)
 *
 * Conventions, true of every function unless it says otherwise:
 *   - returns PITH_OK (0) or a PITH_E_* code; the detail, one line, is pith_errmsg() on the same thread
 *   - never prints, throws, exits, aborts or changes a signal handler; a null argument is PITH_E_INVALID
 *   - on an error, output arguments are untouched, and objects are as they were before the call; what an interrupt
 *     leaves is said where it may come
 *   - text is UTF-8 with a length in bytes; paths and keys are 0-terminated
 *   - what is returned through an `out` pointer is owned by the caller and closed with the matching _close; strings and
 *     arrays given to a function are read during the call only
 *   - functions that fill a buffer work like snprintf: they write at most `capacity` elements, set *n_needed to the full
 *     count, and return PITH_OK; *n_needed > capacity means truncated. With capacity 0 the buffer may be NULL
 *   - options are an array of strings, key, value, key, value, ..., NULL (or NULL for none); an unknown key or a bad value
 *     is PITH_E_INVALID and the message names it and what is allowed
 *   - output structs begin with `size`: set it to sizeof the struct. Later versions add members at the end and fill those
 *     that the caller's `size` has room for
 *
 * C99. The library's SONAME carries PITH_ABI; within one ABI, functions and struct members are only added.
 */
#ifndef PITH_H
#define PITH_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define PITH_ABI 1

#if defined(__GNUC__)
#define PITH_API __attribute__((visibility("default")))
#else
#define PITH_API
#endif

typedef struct pith_model pith_model;
typedef struct pith_session pith_session;

enum {
  PITH_OK = 0,
  PITH_E_INVALID = 1,     /* the caller's mistake: an argument, an option, an id, an empty prompt */
  PITH_E_IO = 2,          /* the operating system said no: open, read, write, full disk */
  PITH_E_FORMAT = 3,      /* a file's bytes break its format's rules */
  PITH_E_UNSUPPORTED = 4, /* well-formed, but not implemented */
  PITH_E_MEMORY = 5,      /* out of memory */
  PITH_E_INTERRUPTED = 6, /* pith_interrupt() */
  PITH_E_CONTEXT = 7,     /* the timeline has no room left; the message has both numbers */
  PITH_E_INTERNAL = 8,    /* a defect in pith */
  PITH_DONE = -1          /* pith_step() only: the model ended its text */
};

/* ---- Library ------------------------------------------------------------------------------------------------- */

/* PITH_ABI of the library that was loaded. Any thread. */
PITH_API int pith_abi_version(void);

/* "0.1.0". Static storage. */
PITH_API const char* pith_version(void);

/* The message of the last call that failed on this thread, "" if none did. Valid until the next failing call on
 * this thread. */
PITH_API const char* pith_errmsg(void);

/* Where notes go (what was chosen at open, why "auto" left a GPU unused or partly so, too little memory). Default:
 * nowhere. level: 0 = information, 1 = warning. `message` is one line without newline, valid during the call; `fn`
 * may be called from any thread that uses the library, one at a time, and must not call back into it. NULL = silent.
 * Process-wide. */
typedef void (*pith_log_fn)(int level, const char* message, void* user);
PITH_API int pith_log_set(pith_log_fn fn, void* user);

/* ---- Model ---------------------------------------------------------------------------------------------------- */

/* Opens and validates a .pith file. Everything except the tensors' data is checked; see pith_model_verify().
 * Options: "mmap" = "on" (default) | "off" (read into memory: safe against others truncating the file); "huge_pages" =
 * "on" (default: while sessions on a CPU run, a mapped file's weights move into huge pages of this process's own, where
 * twice their size is free memory: faster by up to a quarter) | "off" (they stay in the system's file cache, shared with
 * other processes). */
PITH_API int pith_model_open(const char* path, const char* const* options, pith_model** out);

/* Gives the handle back; NULL is allowed. Open sessions keep the model's memory until they are closed. */
PITH_API void pith_model_close(pith_model* model);

/* One fact of the model as text, 0-terminated when capacity allows; *n_needed counts bytes without the 0.
 * Computed keys: "name" (file name), "parameters", "vocab_size", "n_layers", "dim", "max_context", "file_bytes",
 * "fingerprint", "linear_bpw" and "file_bpw" (bits per weight), "chat_template" ("yes" | "no"), "bos_id", "eos_ids".
 * Every other key is looked up in the file's metadata (`pith inspect` lists them). Absent: PITH_E_INVALID. */
PITH_API int pith_model_get(const pith_model* model, const char* key, char* buffer, size_t capacity,
                            size_t* n_needed);

/* Reads every tensor and compares its checksum, then replays the golden vectors stored at conversion. PITH_E_FORMAT
 * names the first thing that is wrong. Takes as long as reading the file. Of a model whose weights have moved into huge
 * pages it reads those. */
PITH_API int pith_model_verify(const pith_model* model);

enum {
  PITH_ADD_BOS = 1,       /* tokenize: begin with the model's BOS token, if it wants one */
  PITH_PARSE_SPECIAL = 2, /* tokenize: recognise special tokens' texts. Never set it for text from outside */
  PITH_CONTINUATION = 4,  /* tokenize: text goes on mid-stream (no dummy prefix space) */
  PITH_SHOW_SPECIAL = 8   /* detokenize: special tokens as their texts, not as nothing */
};

/* Text to ids. Any bytes: invalid UTF-8 becomes byte tokens or U+FFFD. */
PITH_API int pith_tokenize(const pith_model* model, const char* text, size_t n_bytes, unsigned flags,
                           int32_t* ids, size_t capacity, size_t* n_needed);

/* Ids to text (bytes: they may end inside a code point). 0-terminated when capacity allows. */
PITH_API int pith_detokenize(const pith_model* model, const int32_t* ids, size_t n_ids, unsigned flags,
                             char* text, size_t capacity, size_t* n_needed);

typedef struct {
  const char* role;    /* "system", "user", "assistant" */
  const char* content; /* never becomes a special token */
} pith_message;

/* A conversation through the model's chat template, as ids. add_reply_start != 0 ends with the start of the assistant's
 * turn. PITH_E_UNSUPPORTED when the file has no template, PITH_E_INVALID with the template's own words when it
 * refuses the conversation. */
PITH_API int pith_chat_render(const pith_model* model, const pith_message* messages, size_t n_messages,
                              int add_reply_start, int32_t* ids, size_t capacity, size_t* n_needed);

typedef struct {
  size_t size;            /* set by the caller */
  uint32_t n_ctx;         /* as it would be */
  uint64_t weights_bytes; /* mapped from the file, shared by all sessions, and by processes until they move */
  uint64_t kv_bytes;      /* key/value cache, for each session */
  uint64_t scratch_bytes; /* activations and logits, for each session */
  uint64_t total_bytes;
  uint32_t n_gpu_layers; /* the model's last layers, on the GPU */
  uint64_t gpu_bytes;    /* of total_bytes, on the GPU */
  uint32_t n_layers;     /* all of the model's; those that are not on the GPU are on the CPU */
} pith_memory_plan;

/* The memory that a session with these options (those of pith_session_open) would take. The file is opened as
 * pith_model_open() does, but no weights are read. */
PITH_API int pith_plan(const char* path, const char* const* options, pith_memory_plan* plan);

/* ---- Session -------------------------------------------------------------------------------------------------- */

/* All memory of the cache and of computing is reserved here (PITH_E_MEMORY), and the system provides it as it is first
 * used. Where the session takes more than is free (pith_plan()), a warning goes to pith_log_set(). pith_sync(),
 * pith_append() and pith_step() allocate nothing, except while weights move into huge pages (pith_model_open(); a part
 * with each of some sixteen tokens). pith_generate() and pith_chat() do for their text only.
 * Options: "ctx" (tokens; "0" = the model's, at most 4096), "threads" ("0" = physical cores, at most a container's CPU
 * quota), "kv" ("f16" | "i8"), "prefill_chunk" (1..1024), "device" ("auto" | "cpu" | "cuda" | "cuda:N"), "gpu_layers"
 * (how many of the model's last layers a GPU runs, the others staying on the CPU: "all", the default with device "cuda" |
 * "auto", as many as fit, the default with device "auto" | a number; more than the model has are all of them), "kernels"
 * ("auto", or one of the device's by name, for tests: "scalar", "avx2", "avxvnni", "avx512-plain", "avx512", "amx", "neon"
 * of a CPU; "registers", "async", "bulk" of a GPU, each also with "-sync" after it), and every key of pith_set(). */
PITH_API int pith_session_open(const pith_model* model, const char* const* options, pith_session** out);

/* Must not run beside another call on the session. NULL is allowed. */
PITH_API void pith_session_close(pith_session* session);

/* How tokens are drawn: "temp" (0 = greedy), "top_k", "top_p", "min_p", "repeat_penalty", "presence_penalty",
 * "frequency_penalty", "repeat_last_n", "seed" (an integer, or "random" or "-1"). What ends a reply of
 * pith_generate() and pith_chat() before the model does: "max_tokens" of one reply ("0" = as many as fit), and
 * "stop", a UTF-8 text of at most 256 bytes, once for each of up to 16 ("" forgets them all); the one that ends first
 * counts. Defaults: the model's generation defaults, a random seed, max_tokens 0, no stop. The same seed, settings and
 * calls give the same bytes on any number of threads; setting anything but max_tokens and stop starts the random stream
 * again from the seed. */
PITH_API int pith_set(pith_session* session, const char* key, const char* value);

/* One fact as text, like pith_model_get(): every key of pith_set(), "ctx", "threads", "kv", "kernels", "device",
 * "gpu_layers", "n_tokens" (length of the timeline), "kv_bytes", "scratch_bytes", "held_text" (see pith_text_fn). Of
 * "stop" all texts, one a line. */
PITH_API int pith_session_get(const pith_session* session, const char* key, char* buffer, size_t capacity,
                              size_t* n_needed);

/* Makes the timeline equal `ids`: keeps the longest common prefix, runs the rest. n_ids >= 1. PITH_E_CONTEXT when it
 * does not fit. After PITH_E_INTERRUPTED the timeline holds what was finished, so calling again goes on. */
PITH_API int pith_sync(pith_session* session, const int32_t* ids, size_t n_ids);

/* Runs ids after the timeline, n_ids >= 1: for a caller that draws tokens itself, from pith_logits(). PITH_E_CONTEXT
 * when they do not fit. After PITH_E_INTERRUPTED the timeline holds what was finished (pith_tokens()). */
PITH_API int pith_append(pith_session* session, const int32_t* ids, size_t n_ids);

/* Draws the next token and appends it. PITH_DONE: the token (also in *id) is an end token; it is not appended. Needs a
 * timeline with logits: PITH_E_INVALID before pith_sync() or right after pith_rewind(). After PITH_E_INTERRUPTED timeline
 * and logits are as they were, but the token stays drawn: the next pith_step() or pith_generate() on the same timeline
 * begins with it. */
PITH_API int pith_step(pith_session* session, int32_t* id);

/* The distribution after the timeline's last token: *logits points to *n = vocab_size floats inside the session,
 * valid until the next call on it. */
PITH_API int pith_logits(const pith_session* session, const float** logits, size_t* n);

/* Keeps the first n_tokens of the timeline (at most its length). There are no logits until the next pith_sync() or
 * pith_append(). */
PITH_API int pith_rewind(pith_session* session, size_t n_tokens);

/* The timeline's ids. */
PITH_API int pith_tokens(const pith_session* session, int32_t* ids, size_t capacity, size_t* n_needed);

/* Receives text as it is made: whole UTF-8 code points (bytes that are not UTF-8 become U+FFFD), never 0 bytes long,
 * not 0-terminated. The beginning of a code point that a reply stops inside of comes with the rest of it, from the
 * pith_generate() that goes on; with PITH_STOP_END and PITH_STOP_CONTEXT it is U+FFFD. So does what may begin a
 * "stop" text: for whoever does not go on it is the session's "held_text". Returning non-zero stops the reply. It
 * must not call functions on the session except pith_interrupt(). */
typedef int (*pith_text_fn)(const char* text, size_t n_bytes, void* user);

enum {
  PITH_STOP_END = 1,       /* the model ended its text */
  PITH_STOP_LENGTH = 2,    /* max_tokens */
  PITH_STOP_CONTEXT = 3,   /* the context is full */
  PITH_STOP_CALLBACK = 4,  /* the callback returned non-zero */
  PITH_STOP_INTERRUPT = 5, /* pith_interrupt() while text was being made */
  PITH_STOP_TEXT = 6 /* one of the "stop" texts: it was not handed out, but its tokens are in the timeline */
};

typedef struct {
  size_t size;                 /* set by the caller */
  int stop;                    /* PITH_STOP_* */
  uint32_t n_prompt, n_reused; /* ids of the prompt; how many of them were not run again */
  uint32_t n_generated;
  double prompt_seconds, generation_seconds;
} pith_reply;

/* Makes text after the current timeline, as pith_step() does, until it stops. Any stop, also by pith_interrupt(), is
 * PITH_OK; `reply` may be NULL (so may `fn`). The text that was handed out is in the timeline. */
PITH_API int pith_generate(pith_session* session, pith_text_fn fn, void* user, pith_reply* reply);

/* One turn of a conversation: pith_chat_render() with the reply's start, pith_sync(), pith_generate(). Pass the
 * whole conversation each time: what the timeline already holds is not run again. An interrupt before the first
 * token is PITH_E_INTERRUPTED, and the timeline as pith_sync() leaves it. Should anything else fail after the first
 * token, here or in pith_generate(), the text that was handed out before is in the timeline. */
PITH_API int pith_chat(pith_session* session, const pith_message* messages, size_t n_messages,
                       pith_text_fn fn, void* user, pith_reply* reply);

/* Stops the call that is running on the session: pith_sync(), pith_append(), pith_step(), pith_generate() or
 * pith_chat(). Any thread, and from a signal handler. Does nothing when none runs, as sqlite3_interrupt(): what
 * comes just before a call begins, or between two of a loop's pith_step(), is lost, so such a loop looks at a flag
 * of its own. PITH_E_INVALID for NULL leaves no message. */
PITH_API int pith_interrupt(pith_session* session);

/* The timeline and its cache in a file (written beside it, then renamed; mode 0600), bound to the model. Save
 * replaces a session's file or an empty one, nothing else: PITH_E_INVALID. Load fails with PITH_E_FORMAT on a file
 * that is damaged or of another model, with PITH_E_CONTEXT when it is longer than this session's context, and with
 * PITH_E_INVALID when the session that was saved had another "kv", or a "ctx" that turns keys by other angles than
 * this one's (models with dynamic NTK or LongRoPE); the session is then as it was. Logits are not in the file: after
 * a load comes pith_sync(), of the loaded ids (pith_tokens(); the last one runs again) or of more, or pith_append().
 * It is read into memory as a whole first. Should a device then fail while it takes the cache, the session is empty.
 * Sampling options are not stored. */
PITH_API int pith_session_save(const pith_session* session, const char* path);
PITH_API int pith_session_load(pith_session* session, const char* path);

#ifdef __cplusplus
}
#endif

#endif
