#!/usr/bin/env python3
"""The C API from Python in one file, with ctypes alone: asks a model one question and streams the reply.

usage: example_ctypes.py LIBPITH.so MODEL [QUESTION]
"""
import ctypes as c
import sys


class Message(c.Structure):
    _fields_ = [("role", c.c_char_p), ("content", c.c_char_p)]


class Reply(c.Structure):
    _fields_ = [("size", c.c_size_t), ("stop", c.c_int), ("n_prompt", c.c_uint32), ("n_reused", c.c_uint32),
                ("n_generated", c.c_uint32), ("prompt_seconds", c.c_double), ("generation_seconds", c.c_double)]


TEXT_FN = c.CFUNCTYPE(c.c_int, c.c_void_p, c.c_size_t, c.c_void_p)


def main(library, path, question="What is pith?"):
    pith = c.CDLL(library)
    pith.pith_errmsg.restype = c.c_char_p
    pith.pith_version.restype = c.c_char_p
    pith.pith_model_close.argtypes = pith.pith_session_close.argtypes = [c.c_void_p]

    def check(code):
        if code != 0:
            raise RuntimeError(pith.pith_errmsg().decode())

    model, session = c.c_void_p(), c.c_void_p()
    check(pith.pith_model_open(path.encode(), None, c.byref(model)))
    options = (c.c_char_p * 5)(b"max_tokens", b"64", b"temp", b"0", None)
    check(pith.pith_session_open(model, options, c.byref(session)))

    @TEXT_FN
    def show(text, n_bytes, _):
        sys.stdout.write(c.string_at(text, n_bytes).decode())  # whole code points: decode cannot fail
        sys.stdout.flush()
        return 0

    message = Message(b"user", question.encode())
    reply = Reply(size=c.sizeof(Reply))
    check(pith.pith_chat(session, c.byref(message), c.c_size_t(1), show, None, c.byref(reply)))
    print(f"\n[pith {pith.pith_version().decode()}: {reply.n_prompt} + {reply.n_generated} tokens, "
          f"{reply.n_generated / max(reply.generation_seconds, 1e-9):.1f} tokens/s]", file=sys.stderr)
    pith.pith_session_close(session)
    pith.pith_model_close(model)


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4):
        sys.exit(__doc__)
    main(*sys.argv[1:])
