/* The C API from C99: opens a model, chats, interrupts from another thread, saves and restores, and is told off for
 * every wrong argument. Includes nothing of pith but pith.h.
 *
 * usage: api_test MODEL FOLDER      (MODEL has a chat template; FOLDER may be written to)
 */
#define _POSIX_C_SOURCE 200809L
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/pith.h"

static int n_failed = 0;

#define CHECK(fact)                                                                          \
  do {                                                                                       \
    if (!(fact)) {                                                                           \
      ++n_failed;                                                                            \
      fprintf(stderr, "%s:%d: not so: %s (%s)\n", __FILE__, __LINE__, #fact, pith_errmsg()); \
    }                                                                                        \
  } while (0)
#define OK(call) CHECK((call) == PITH_OK)

typedef struct {
  char data[1 << 16];
  size_t n;
  size_t stop_after; /* bytes; 0 = never */
} text_sink;

static int keep(const char* text, size_t n_bytes, void* user) {
  text_sink* sink = user;
  CHECK(n_bytes > 0 && sink->n + n_bytes < sizeof sink->data);
  memcpy(sink->data + sink->n, text, n_bytes);
  sink->n += n_bytes;
  return sink->stop_after != 0 && sink->n >= sink->stop_after;
}

/* Well-formed as far as boundaries go: every lead byte is followed by its continuation bytes. */
static int whole_code_points(const char* text, size_t n) {
  size_t i = 0;
  while (i < n) {
    unsigned char lead = (unsigned char)text[i];
    size_t k, len = lead < 0x80 ? 1 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : 4;
    if (lead >= 0x80 && lead < 0xc2) return 0;
    for (k = 1; k < len; ++k)
      if (i + k >= n || ((unsigned char)text[i + k] & 0xc0) != 0x80) return 0;
    i += len;
  }
  return 1;
}

static void log_line(int level, const char* message, void* user) {
  (void)level;
  CHECK(strchr(message, '\n') == NULL);
  ++*(int*)user;
}

static void library_and_model(const pith_model* model, const char* path) {
  char text[256], tiny[4] = "???";
  size_t n, n_text;
  int32_t ids[64];
  pith_memory_plan plan;

  CHECK(pith_abi_version() == PITH_ABI);
  CHECK(strlen(pith_version()) >= 5);

  OK(pith_model_get(model, "vocab_size", text, sizeof text, &n));
  CHECK(n == strlen(text) && atoi(text) > 0);
  OK(pith_model_get(model, "fingerprint", NULL, 0, &n));
  CHECK(n == 16);
  OK(pith_model_get(model, "fingerprint", tiny, 3, &n)); /* truncated, as snprintf would, without the 0 */
  CHECK(n == 16 && tiny[3] == 0 && tiny[2] != '?');
  CHECK(pith_model_get(model, "no such key", text, sizeof text, &n) == PITH_E_INVALID);
  CHECK(strstr(pith_errmsg(), "no such key") != NULL);
  OK(pith_model_verify(model));

  OK(pith_tokenize(model, "Hello <s>", 9, 0, ids, 64, &n));
  CHECK(n > 1 && ids[0] != 1);
  OK(pith_detokenize(model, ids, n, 0, text, sizeof text, &n_text));
  CHECK(n_text == 9 && strcmp(text, "Hello <s>") == 0); /* text stayed text */
  OK(pith_tokenize(model, "<s>", 3, PITH_PARSE_SPECIAL, ids, 64, &n));
  CHECK(n == 1);
  OK(pith_tokenize(model, "", 0, 0, NULL, 0, &n));
  CHECK(n == 0);
  ids[0] = -1;
  CHECK(pith_detokenize(model, ids, 1, 0, text, sizeof text, &n) == PITH_E_INVALID);

  memset(&plan, 0, sizeof plan);
  CHECK(pith_plan(path, NULL, &plan) == PITH_E_INVALID); /* size is not set */
  plan.size = sizeof plan;
  OK(pith_plan(path, (const char* const[]){"ctx", "128", NULL}, &plan));
  CHECK(plan.n_ctx == 128 && plan.kv_bytes > 0);
  CHECK(plan.total_bytes == plan.weights_bytes + plan.kv_bytes + plan.scratch_bytes);
  OK(pith_plan(path, (const char* const[]){"max_tokens", "5", "seed", "random", "temp", "1", NULL}, &plan));
  CHECK(pith_plan(path, (const char* const[]){"speed", "5", NULL}, &plan) == PITH_E_INVALID);
  CHECK(pith_plan(path, (const char* const[]){"kernels", "mmx", NULL}, &plan) == PITH_E_INVALID);
  plan.size = offsetof(pith_memory_plan, n_gpu_layers) - 1; /* less than the first version's */
  CHECK(pith_plan(path, NULL, &plan) == PITH_E_INVALID);
  CHECK(plan.n_ctx > 0 && plan.size == offsetof(pith_memory_plan, n_gpu_layers) - 1);
  plan.size = offsetof(pith_memory_plan, n_gpu_layers);
  plan.gpu_bytes = 7;
  OK(pith_plan(path, NULL, &plan));
  CHECK(plan.gpu_bytes == 7); /* a member that the caller's version lacks */
  {
    struct {
      pith_memory_plan known;
      uint64_t later; /* a member that this library does not know */
    } newer = {.later = 77};
    newer.known.size = sizeof newer;
    OK(pith_plan(path, NULL, &newer.known));
    CHECK(newer.known.size == sizeof newer && newer.known.total_bytes > 0 && newer.later == 77);
  }
}

static void wrong_arguments(const pith_model* model, pith_session* session) {
  pith_model* no_model = NULL;
  pith_session* no_session = NULL;
  int32_t id = 0;
  size_t n;
  const float* logits;
  pith_message bad = {"user", NULL};

  CHECK(pith_model_open(NULL, NULL, &no_model) == PITH_E_INVALID);
  CHECK(pith_model_open("/nonexistent/file.pith", NULL, &no_model) == PITH_E_IO && no_model == NULL);
  CHECK(strstr(pith_errmsg(), "/nonexistent/file.pith") != NULL);
  CHECK(pith_model_open("x", (const char* const[]){"speed", "9", NULL}, &no_model) == PITH_E_INVALID);
  CHECK(pith_model_open("x", (const char* const[]){"huge_pages", "yes", NULL}, &no_model) == PITH_E_INVALID);
  CHECK(strstr(pith_errmsg(), "option 'huge_pages': 'yes' is not one of on, off") != NULL);
  CHECK(pith_model_open("x", (const char* const[]){"mmap", NULL}, &no_model) == PITH_E_INVALID);
  CHECK(pith_session_open(NULL, NULL, &no_session) == PITH_E_INVALID);
  CHECK(pith_session_open(model, (const char* const[]){"cxt\nx", "9", NULL}, &no_session) == PITH_E_INVALID);
  CHECK(strchr(pith_errmsg(), '\n') == NULL && strstr(pith_errmsg(), "'cxt?x' is not an option") != NULL);
  CHECK(strstr(pith_errmsg(), "ctx, threads, ") != NULL && strstr(pith_errmsg(), "top_k") != NULL);
  CHECK(pith_session_open(model, (const char* const[]){"threads", "many", NULL}, &no_session) ==
        PITH_E_INVALID);
  CHECK(pith_session_open(model, (const char* const[]){"ctx", "1000000000", NULL}, &no_session) != PITH_OK);
  CHECK(no_session == NULL);
  CHECK(pith_set(session, "temp", "-1") == PITH_E_INVALID);
  CHECK(pith_set(session, "temperature of the room", "20") == PITH_E_INVALID);
  CHECK(pith_set(session, "max_tokens", "-5") == PITH_E_INVALID);
  CHECK(pith_set(session, "seed", "-2") == PITH_E_INVALID &&
        strstr(pith_errmsg(), "2^64-1 or random") != NULL);
  OK(pith_set(session, "seed", "-1"));
  CHECK(pith_sync(session, NULL, 3) == PITH_E_INVALID);
  CHECK(pith_sync(session, &id, 0) == PITH_E_INVALID);
  id = 1 << 30;
  CHECK(pith_sync(session, &id, 1) == PITH_E_INVALID);
  CHECK(pith_rewind(session, 1u << 20) == PITH_E_INVALID);
  CHECK(pith_chat(session, NULL, 0, NULL, NULL, NULL) == PITH_E_INVALID);
  CHECK(pith_chat(session, &bad, 1, NULL, NULL, NULL) == PITH_E_INVALID);
  OK(pith_rewind(session, 0));
  CHECK(pith_step(session, &id) == PITH_E_INVALID); /* no logits yet */
  CHECK(pith_logits(session, &logits, &n) == PITH_E_INVALID);
  CHECK(pith_interrupt(NULL) == PITH_E_INVALID);
  pith_model_close(NULL);
  pith_session_close(NULL);
}

static void timeline(const pith_model* model, pith_session* session) {
  int32_t ids[64], id, first[8], again[8];
  size_t n, n_logits, i, n_now;
  const float* logits;
  float expected;
  int code = PITH_OK;
  (void)model;
  OK(pith_set(session, "temp", "0.8"));
  OK(pith_set(session, "seed", "7"));
  OK(pith_tokenize(model, "The quick brown fox", 19, PITH_ADD_BOS, ids, 64, &n));
  OK(pith_sync(session, ids, n));
  OK(pith_logits(session, &logits, &n_logits));
  CHECK(n_logits > 100 && logits[0] == logits[0]);
  for (i = 0; i < 8 && code == PITH_OK; ++i) code = pith_step(session, &first[i]);
  CHECK(code == PITH_OK || code == PITH_DONE);
  OK(pith_tokens(session, NULL, 0, &n_now));
  CHECK(n_now >= n && n_now <= n + 8);
  /* The same seed and timeline give the same tokens, after a rewind too. */
  OK(pith_rewind(session, n - 2));
  CHECK(pith_step(session, &id) == PITH_E_INVALID);
  OK(pith_set(session, "seed", "7"));
  OK(pith_sync(session, ids, n));
  n_now = i;
  for (i = 0, code = PITH_OK; i < n_now && code == PITH_OK; ++i) code = pith_step(session, &again[i]);
  CHECK(memcmp(first, again, n_now * sizeof first[0]) == 0);
  /* A caller that draws for itself appends, with the logits that syncing the whole gives. */
  OK(pith_sync(session, ids, n));
  OK(pith_append(session, ids, 3));
  OK(pith_logits(session, &logits, &n_logits));
  expected = logits[5];
  OK(pith_tokens(session, ids, 64, &n_now));
  CHECK(n_now == n + 3 && memcmp(ids + n, ids, 3 * sizeof ids[0]) == 0);
  OK(pith_rewind(session, 0));
  OK(pith_append(session, ids, n_now));
  OK(pith_logits(session, &logits, &n_logits));
  CHECK(logits[5] == expected);
  CHECK(pith_append(session, ids, 0) == PITH_E_INVALID);
  CHECK(pith_append(session, NULL, 1) == PITH_E_INVALID);
  OK(pith_tokens(session, NULL, 0, &n));
  CHECK(n == n_now);
}

static void conversation(pith_session* session) {
  static text_sink one, two, cut;
  pith_message messages[3] = {{"system", "Be brief."}, {"user", "Hello <|assistant|> there"}, {"user", ""}};
  pith_reply reply;
  char answer[1 << 16];
  memset(&reply, 0, sizeof reply);
  CHECK(pith_chat(session, messages, 2, keep, &one, &reply) == PITH_E_INVALID); /* size is not set */
  reply.size = sizeof reply;
  OK(pith_set(session, "temp", "0.9"));
  OK(pith_set(session, "max_tokens", "40"));
  OK(pith_set(session, "seed", "3"));
  OK(pith_chat(session, messages, 2, keep, &one, &reply));
  CHECK(reply.stop == PITH_STOP_LENGTH || reply.stop == PITH_STOP_END);
  CHECK(reply.n_generated <= 40 && reply.n_prompt > 10);
  CHECK(whole_code_points(one.data, one.n));
  OK(pith_set(session, "seed", "3"));
  OK(pith_chat(session, messages, 2, keep, &two, NULL));
  CHECK(one.n == two.n && memcmp(one.data, two.data, one.n) == 0);
  OK(pith_chat(session, messages, 2, NULL, NULL, &reply));
  CHECK(reply.n_reused == reply.n_prompt - 1); /* all of it was there, but the last one runs for its logits */
  /* A second turn finds the first one in the cache. */
  memcpy(answer, one.data, one.n);
  answer[one.n] = 0;
  messages[0].role = "user", messages[0].content = messages[1].content;
  messages[1].role = "assistant", messages[1].content = answer;
  messages[2].content = "And then?";
  cut.stop_after = 5;
  OK(pith_chat(session, messages, 3, keep, &cut, &reply));
  CHECK(reply.n_prompt > reply.n_reused && reply.size == sizeof reply);
  CHECK(reply.stop == PITH_STOP_CALLBACK || reply.stop == PITH_STOP_END || reply.stop == PITH_STOP_LENGTH);
}

/* Stops the reply and goes on interrupting, also while the last token is put into the timeline. */
static int stop_often(const char* text, size_t n_bytes, void* user) {
  (void)text, (void)n_bytes;
  CHECK(pith_interrupt(user) == PITH_OK);
  return 0;
}

/* Interrupts a session again and again until it is told to stop. */
typedef struct {
  pith_session* session;
  pthread_mutex_t running; /* held while it shall go on */
  pthread_t thread;
} interrupter;

static void* interrupt_often(void* user) {
  interrupter* all = user;
  while (pthread_mutex_trylock(&all->running) != 0) pith_interrupt(all->session);
  pthread_mutex_unlock(&all->running);
  return NULL;
}

static void start_interrupting(interrupter* all, pith_session* session) {
  all->session = session;
  CHECK(pthread_mutex_init(&all->running, NULL) == 0 && pthread_mutex_lock(&all->running) == 0);
  CHECK(pthread_create(&all->thread, NULL, interrupt_often, all) == 0);
}

static void stop_interrupting(interrupter* all) {
  pthread_mutex_unlock(&all->running);
  pthread_join(all->thread, NULL);
  pthread_mutex_destroy(&all->running);
}

static void interrupted_twice(const pith_model* model) {
  pith_session* session = NULL;
  pith_reply reply = {.size = sizeof reply};
  interrupter all;
  int32_t ids[64], id, drawn = -1, expected = -1;
  size_t n, n_after;
  const float* logits;
  int round, code;
  OK(pith_session_open(model, (const char* const[]){"temp", "1", "seed", "1", NULL}, &session));
  OK(pith_tokenize(model, "Once upon a time", 16, PITH_ADD_BOS, ids, 64, &n));
  for (round = 0; round < 5; ++round) {
    OK(pith_sync(session, ids, n));
    start_interrupting(&all, session);
    OK(pith_generate(session, stop_often, session, &reply)); /* ends, though they never stop */
    CHECK(reply.stop == PITH_STOP_INTERRUPT || reply.stop == PITH_STOP_END);
    stop_interrupting(&all);
    OK(pith_tokens(session, NULL, 0, &n_after));
    CHECK(n_after == n + reply.n_generated);
  }
  /* A token that an interrupted step drew is not lost, and a refused call changes nothing. */
  OK(pith_sync(session, ids, n));
  OK(pith_set(session, "seed", "5"));
  OK(pith_step(session, &expected));
  do {
    OK(pith_sync(session, ids, n));
    OK(pith_set(session, "seed", "5"));
    drawn = -1;
    start_interrupting(&all, session);
    code = pith_step(session, &drawn);
    stop_interrupting(&all);
  } while (code == PITH_OK); /* no interrupt came while it ran */
  CHECK(code == PITH_E_INTERRUPTED && drawn == -1);
  OK(pith_tokens(session, NULL, 0, &n_after));
  CHECK(n_after == n);
  OK(pith_logits(session, &logits, &n_after)); /* as they were */
  id = -5;
  CHECK(pith_sync(session, &id, 1) == PITH_E_INVALID);
  OK(pith_step(session, &drawn));
  CHECK(drawn == expected);
  id = -5;
  CHECK(pith_sync(session, &id, 1) == PITH_E_INVALID);
  OK(pith_step(session, &id)); /* the logits are still there */
  pith_session_close(session);
}

static void interruption(const pith_model* model) {
  pith_session* session = NULL;
  pith_message message = {"user", "Tell me a long story."};
  pith_reply reply = {.size = sizeof reply};
  interrupter all;
  int code;
  size_t n;
  OK(pith_session_open(model, (const char* const[]){"temp", "1", "seed", "1", "threads", "1", NULL},
                       &session));
  /* Before the call: nothing runs that could stop. */
  OK(pith_interrupt(session));
  OK(pith_set(session, "max_tokens", "3"));
  OK(pith_chat(session, &message, 1, NULL, NULL, &reply));
  CHECK(reply.stop == PITH_STOP_LENGTH || reply.stop == PITH_STOP_END);
  /* During it, from another thread. */
  OK(pith_set(session, "max_tokens", "0"));
  start_interrupting(&all, session);
  do {
    OK(pith_rewind(session, 0));
    code = pith_chat(session, &message, 1, NULL, NULL, &reply);
    CHECK(code == PITH_OK || code == PITH_E_INTERRUPTED);
  } while (code == PITH_OK && reply.stop != PITH_STOP_INTERRUPT);
  stop_interrupting(&all);
  OK(pith_tokens(session, NULL, 0, &n)); /* still usable */
  OK(pith_set(session, "max_tokens", "3"));
  OK(pith_chat(session, &message, 1, NULL, NULL, &reply)); /* the last of them does not stop this one */
  pith_session_close(session);
}

/* Whether there is a character of several bytes, but for U+FFFD. */
static int has_long_character(const char* text, size_t n) {
  size_t i;
  for (i = 0; i < n; ++i)
    if ((unsigned char)text[i] >= 0xc2) {
      if (i + 3 > n || memcmp(text + i, "\xef\xbf\xbd", 3) != 0) return 1;
      i += 2;
    }
  return 0;
}

/* One token a call makes the text that one call makes: characters whose bytes are several tokens stay whole. */
static void resumed_text(const pith_model* model) {
  static text_sink whole, pieces;
  pith_session* session = NULL;
  pith_reply reply = {.size = sizeof reply};
  char seed[16];
  int32_t ids[64];
  size_t n;
  int round, n_tokens, n_long = 0;
  OK(pith_session_open(model, (const char* const[]){"temp", "2", NULL}, &session));
  OK(pith_tokenize(model, "Once", 4, PITH_ADD_BOS, ids, 64, &n));
  for (round = 0; round < 20; ++round) {
    snprintf(seed, sizeof seed, "%d", round);
    whole.n = pieces.n = 0;
    OK(pith_sync(session, ids, n));
    OK(pith_set(session, "seed", seed));
    OK(pith_set(session, "max_tokens", "100"));
    OK(pith_generate(session, keep, &whole, &reply));
    n_tokens =
        (int)reply.n_generated + (reply.stop != PITH_STOP_LENGTH); /* the call that ends it makes none */
    OK(pith_sync(session, ids, n));
    OK(pith_set(session, "seed", seed));
    OK(pith_set(session, "max_tokens", "1"));
    do {
      OK(pith_generate(session, keep, &pieces, &reply));
      n_tokens -= (int)reply.n_generated;
    } while (reply.stop == PITH_STOP_LENGTH && n_tokens > 0);
    CHECK(whole.n == pieces.n && memcmp(whole.data, pieces.data, whole.n) == 0);
    n_long += has_long_character(whole.data, whole.n);
  }
  CHECK(n_long > 0);
  pith_session_close(session);
}

/* A stop text that begins at a character of several tokens ends the reply before it, however many calls make the text. */
static void stopped_by_text(const pith_model* model) {
  static text_sink whole, stopped, pieces;
  pith_session* session = NULL;
  pith_reply reply = {.size = sizeof reply};
  char seed[16], stop[16], got[64];
  int32_t ids[64];
  size_t n, n_now, at = 0, length = 0, n_got;
  int round;
  OK(pith_session_open(model, (const char* const[]){"temp", "2", "max_tokens", "100", NULL}, &session));
  OK(pith_tokenize(model, "Once", 4, PITH_ADD_BOS, ids, 64, &n));
  for (round = 0; length == 0; ++round) { /* until a text has such a character */
    snprintf(seed, sizeof seed, "%d", round);
    whole.n = 0;
    OK(pith_sync(session, ids, n));
    OK(pith_set(session, "seed", seed));
    OK(pith_generate(session, keep, &whole, NULL));
    for (at = 1; at + 8 < whole.n && length == 0; ++at)
      if ((unsigned char)whole.data[at] >= 0xc2 && memcmp(whole.data + at, "\xef\xbf\xbd", 3) != 0) {
        for (length = 4; ((unsigned char)whole.data[at + length] & 0xc0) == 0x80;) ++length;
        if (memchr(whole.data + at, 0, length) != NULL)
          length = 0;
        else
          memcpy(stop, whole.data + at, length);
        if (length > 0) break;
      }
  }
  stop[length] = 0;
  CHECK(pith_set(session, "stop", "\xc3(") == PITH_E_INVALID); /* not UTF-8 */
  OK(pith_set(session, "stop", "a text that is not there"));
  OK(pith_set(session, "stop", stop));
  OK(pith_sync(session, ids, n));
  OK(pith_set(session, "seed", seed));
  OK(pith_generate(session, keep, &stopped, &reply));
  CHECK(reply.stop == PITH_STOP_TEXT);
  CHECK(stopped.n == at && memcmp(stopped.data, whole.data, at) == 0);
  OK(pith_tokens(session, NULL, 0, &n_now));
  CHECK(n_now == n + reply.n_generated);
  OK(pith_sync(session, ids, n));
  OK(pith_set(session, "seed", seed));
  OK(pith_set(session, "max_tokens", "1"));
  do OK(pith_generate(session, keep, &pieces, &reply));
  while (reply.stop == PITH_STOP_LENGTH);
  CHECK(reply.stop == PITH_STOP_TEXT && pieces.n == at && memcmp(pieces.data, whole.data, at) == 0);
  OK(pith_session_get(session, "stop", got, sizeof got, &n_got));
  CHECK(n_got == strlen("a text that is not there\n") + length);
  OK(pith_set(session, "stop", ""));
  OK(pith_session_get(session, "stop", got, sizeof got, &n_got));
  CHECK(n_got == 0);
  pith_session_close(session);
}

static void save_and_restore(const pith_model* model, pith_session* session, const char* folder) {
  char path[1024], bad[1024];
  pith_session* other = NULL;
  int32_t ids[2][512], a[6], b[6];
  size_t n[2], i;
  FILE* file;
  snprintf(path, sizeof path, "%s/session.kv", folder);
  snprintf(bad, sizeof bad, "%s/bad.kv", folder);
  OK(pith_tokenize(model, "Once upon a time in a land far away", 35, PITH_ADD_BOS, ids[0], 512, &n[0]));
  OK(pith_sync(session, ids[0], n[0]));
  OK(pith_session_save(session, path));
  OK(pith_session_open(model, NULL, &other));
  OK(pith_session_load(other, path));
  OK(pith_tokens(session, ids[0], 512, &n[0]));
  OK(pith_tokens(other, ids[1], 512, &n[1]));
  CHECK(n[0] == n[1] && memcmp(ids[0], ids[1], n[0] * sizeof(int32_t)) == 0);
  OK(pith_set(session, "temp", "0"));
  OK(pith_set(other, "temp", "0"));
  CHECK(pith_step(other, &a[0]) == PITH_E_INVALID); /* no logits yet */
  OK(pith_sync(other, ids[1], n[1]));
  for (i = 0; i < 6; ++i) {
    a[i] = b[i] = -1;
    CHECK(pith_step(session, &a[i]) == pith_step(other, &b[i]));
  }
  CHECK(memcmp(a, b, sizeof a) == 0);
  CHECK(pith_session_save(session, "/nonexistent/folder/x.kv") == PITH_E_IO);
  CHECK(pith_session_load(other, "/nonexistent/x.kv") == PITH_E_IO);
  file = fopen(bad, "wb");
  CHECK(file != NULL && fputs("not a session", file) >= 0 && fclose(file) == 0);
  OK(pith_tokens(other, NULL, 0, &n[0]));
  CHECK(pith_session_load(other, bad) == PITH_E_FORMAT);
  OK(pith_tokens(other, NULL, 0, &n[1]));
  CHECK(n[0] == n[1]); /* as it was */
  pith_session_close(other);
  OK(pith_session_open(model, (const char* const[]){"ctx", "4", NULL}, &other));
  CHECK(pith_session_load(other, path) == PITH_E_CONTEXT);
  pith_session_close(other);
}

int main(int argc, char** argv) {
  pith_model* model = NULL;
  pith_session* session = NULL;
  int n_log = 0;
  if (argc != 3) {
    fprintf(stderr, "usage: api_test MODEL FOLDER\n");
    return 2;
  }
  CHECK(pith_errmsg()[0] == 0);
  OK(pith_log_set(log_line, &n_log));
  OK(pith_model_open(argv[1], NULL, &model));
  if (model == NULL) return 1;
  OK(pith_session_open(model, NULL, &session));
  if (session == NULL) return 1;
  CHECK(n_log > 0);
  OK(pith_log_set(NULL, NULL));
  library_and_model(model, argv[1]);
  wrong_arguments(model, session);
  timeline(model, session);
  conversation(session);
  interruption(model);
  interrupted_twice(model);
  resumed_text(model);
  stopped_by_text(model);
  save_and_restore(model, session, argv[2]);
  pith_model_close(model); /* the session keeps what it needs */
  OK(pith_set(session, "temp", "0"));
  OK(pith_chat(session, &(pith_message){"user", "Still there?"}, 1, NULL, NULL, NULL));
  pith_session_close(session);
  if (n_failed == 0) puts("api: every fact holds");
  return n_failed != 0;
}
