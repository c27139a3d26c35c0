"""run and chat: what comes out, what is refused, and a conversation at a terminal."""
import fcntl
import json
import os
import pty
import re
import select
import signal
import subprocess
import termios
import time
import unittest

from harness import PITH, SHARED, CliTest, Result, pith


class Run(CliTest):
    def test_the_prompt_comes_from_the_option_a_file_or_standard_input(self):
        path = self.folder / "prompt.txt"
        path.write_text("Hello there\n")
        words = ["run", self.models.full, "-n", "8", "--temp", "0"]
        expected = self.ok(pith(*words, "-p", "Hello there")).out
        self.assertEqual(self.ok(pith(*words, "-f", path)).out, expected)
        self.assertEqual(self.ok(pith(*words, stdin=b"Hello there\n")).out, expected)
        self.assertEqual(self.ok(pith(*words, "-f", "-", stdin=b"Hello there")).out, expected)
        self.fails(pith(*words, "-p", "x", "-f", path), 2)
        self.fails(pith(*words, "-f", "", stdin=b"Hello there\n"), 2, "the name of the text's file is empty")

    def test_standard_output_is_whole_utf8_and_nothing_else(self):
        result = self.ok(pith("run", self.models.full, "-p", "Once", "-n", "200", "--temp", "2", "--seed", "11"))
        result.out.decode("utf-8")
        self.assertEqual(result.err, b"")

    def test_the_same_seed_gives_the_same_bytes_on_any_number_of_threads(self):
        words = ["run", self.models.small, "-p", "Once upon", "-n", "40", "--temp", "1.2"]
        texts = {self.ok(pith(*words, "--seed", "5", "--threads", n)).out for n in ("1", "2", "3")}
        self.assertEqual(len(texts), 1)
        self.assertNotIn(self.ok(pith(*words, "--seed", "6")).out, texts)

    def test_a_stop_text_ends_the_text_before_it(self):
        words = ["run", self.models.full, "-p", "Once", "-n", "80", "--temp", "1", "--seed", "3"]
        whole = self.ok(pith(*words)).text
        stop = next(whole[i:i + 4] for i in range(20, len(whole)) if "\0" not in whole[i:i + 4])
        self.assertEqual(self.ok(pith(*words, "--stop=no such text", "--stop=" + stop)).text, whole[:whole.index(stop)])
        self.assertEqual(self.ok(pith(*words, f"--stop={whole[-1]}such")).text, whole)  # it only begins there
        chat = ["chat", self.models.full, "-n", "80", "--temp", "1", "--seed", "3", "--once", "Hello?"]
        whole = self.ok(pith(*chat)).text[:-1]
        stop = next(whole[i:i + 4] for i in range(20, len(whole)) if "\0" not in whole[i:i + 4])
        self.assertEqual(self.ok(pith(*chat, "--stop=" + stop)).text, whole[:whole.index(stop)] + "\n")
        self.fails(pith(*words, "--stop", "x" * 300), 2, "--stop: a text of 300 bytes")
        self.fails(pith(*words, "--stop", b"a\xff".decode(errors="surrogateescape")), 2, "--stop: byte 1", "not UTF-8")

    def test_an_empty_prompt_is_refused(self):
        self.fails(pith("run", self.models.full, "-p", ""), 2, "empty")
        self.fails(pith("run", self.models.full), 2, "empty")
        self.fails(pith("run", self.models.full, "-f", "/dev/null"), 2, "empty")
        self.fails(pith("run", self.models.full, "-f", "/nonexistent"), 1, "/nonexistent")

    def test_a_prompt_longer_than_the_context_is_refused_with_both_numbers(self):
        words = ["run", self.models.full, "--ctx", "64"]
        self.fails(pith(*words, "-p", "word " * 40), 1, "201 tokens, the context 64: --ctx takes more")
        self.fails(pith(*words, "--chat", "-p", "word " * 40), 1, "203 tokens, the context 64: --ctx takes more")
        self.fails(pith(*words, "-p", "word " * 200), 1, "1001 tokens, the context 64: the model takes at most 512")

    def test_a_context_longer_than_the_models_is_refused_with_both_numbers(self):
        self.fails(pith("run", self.models.full, "-p", "x", "--ctx", "100000"), 2, "100000", "512")

    def test_a_missing_model_is_named_before_the_prompt_is_read(self):
        read, write = os.pipe()  # which nobody ever writes to
        self.addCleanup(os.close, write)
        done = subprocess.run([PITH, "run", "nofile"], stdin=read, capture_output=True, timeout=60)
        os.close(read)
        self.fails(Result(done.returncode, done.stdout, done.stderr), 1, "nofile: ", "No such file")
        self.fails(pith("run", "nofile"), 1, "nofile: ", "No such file")

    def test_the_figures_begin_a_line_of_their_own(self):
        words = [PITH, "run", str(self.models.full), "-p", "x", "-n", "8", "--temp", "0"]
        text = subprocess.run(words, capture_output=True).stdout
        both = subprocess.run([*words, "--stats"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT).stdout
        begin = text if text.endswith(b"\n") else text + b"\n"
        self.assertTrue(both.startswith(begin), both)
        self.assertRegex(both[len(begin):], rb"^\d+ tokens, ")

    def test_a_full_context_ends_the_text_and_says_so(self):
        words = ["run", self.models.full, "-p", "word", "--ctx", "16", "--temp", "1.5", "--seed", "1"]
        self.assertEqual(self.ok(pith(*words)).message, "pith run: stopped, the context of 16 tokens is full\n")
        self.assertEqual(self.ok(pith(*words, "-n", "3")).message, "")

    def test_text_of_a_prompt_does_not_become_a_control_token(self):
        words = ["tokenize", self.models.full, "-p", "</s>"]
        self.assertGreater(len(self.ok(pith(*words)).text.split()), 1)

    def test_chat_template_of_one_message(self):
        self.ok(pith("run", self.models.full, "--chat", "--system", "Be kind.", "-p", "Hi", "-n", "4"))
        self.fails(pith("run", self.models.plain, "--chat", "-p", "Hi"), 1, "no chat template")


class ScriptedChat(CliTest):
    def chat(self, script, *words, model=None):
        return pith("chat", model or self.models.full, "-n", "8", "--temp", "0", *words, stdin=script.encode())

    def test_one_question_is_answered(self):
        result = self.ok(self.chat("", "--once", "Hello?"))
        self.assertTrue(result.out.endswith(b"\n"))
        self.fails(self.chat("", "--once", " "), 2, "empty")

    def test_one_question_is_not_told_of_commands(self):
        words = ["--ctx", "32", "-n", "0"]
        self.assertIn("is full: the reply is cut; /forget", self.ok(self.chat("Hello?\n", *words)).message)
        self.assertIn("is full: the reply is cut]", self.ok(self.chat("", *words, "--once", "Hello?")).message)

    def test_lines_of_a_pipe_are_turns(self):
        self.assertEqual(self.ok(self.chat("")).out, b"")
        one = self.ok(self.chat("Hello?\n")).out
        two = self.ok(self.chat("Hello?\n\nAnd then?\n")).out
        self.assertTrue(two.startswith(one) and len(two) > len(one))

    def test_lines_are_joined_by_a_backslash_or_quotes(self):
        self.assertEqual(self.ok(self.chat("a\\\nb\n")).out, self.ok(self.chat('"""a\nb"""\n')).out)
        self.assertNotEqual(self.ok(self.chat("a\\\nb\n")).out, self.ok(self.chat("a\nb\n")).out)

    def test_undo_and_retry_and_forget_go_back(self):
        once = self.ok(self.chat("Hello?\n")).out
        self.assertEqual(self.ok(self.chat("Hello?\n/retry\n")).out, once + once)
        self.assertEqual(self.ok(self.chat("Something else\n/undo\nHello?\n")).out.split(b"\n", 1)[1][-len(once):], once)
        self.assertTrue(self.ok(self.chat("Something else\n/forget\nHello?\n")).out.endswith(once))

    def test_commands_that_make_no_sense_end_a_script(self):
        self.fails(self.chat("/undu\n"), 2, "/undu", "/undo")
        self.fails(self.chat("/undo\n"), 2)
        self.fails(self.chat("/set temp boiling\n"), 2, "temp")
        self.fails(self.chat("/forget some\n"), 2, "some")
        self.fails(self.chat("/load /nonexistent\n"), 1, "/nonexistent")

    def test_stats_and_settings_go_to_standard_error(self):
        result = self.ok(self.chat("/set seed 9\n/stats\n/set\n/help\n"))
        self.assertEqual(result.out, b"")
        for word in ("seed 9", "context", "top_p", "/retry"):
            self.assertIn(word, result.message)

    def test_stop_texts_are_listed_and_forgotten(self):
        result = self.ok(self.chat("/help\n/set\n/set stop you there\n/set stop\n/set stop=\n/set\n", "--stop", "a\nb"))
        for line in ("/set stop TEXT .*/set stop= ", 'stop +"a\\\\x0ab"', r'\[stop = "a\\x0ab", "you there"\]',
                     r'stop +"a\\x0ab", "you there"', r"\[stop = none\]", "stop +none"):
            self.assertRegex(result.message, line)
        self.assertRegex(result.message, r"(?s)/set \[KEY VALUE\].* max_tokens stop\n")

    def test_a_saved_conversation_goes_on(self):
        path = self.folder / "talk.json"
        whole = self.ok(self.chat("Hello?\nAnd then?\n")).out
        first = self.ok(self.chat(f"Hello?\n/save {path}\n")).out
        self.assertEqual(path.stat().st_mode & 0o777, 0o600)
        rest = self.ok(self.chat(f"/load {path}\nAnd then?\n")).out
        self.assertEqual(first + rest, whole)
        self.assertEqual(json.loads(path.read_text())["turns"][0]["user"], "Hello?")
        self.assertIn("another model", self.ok(self.chat(f"/load {path}\n", model=self.models.small)).message)

    def test_a_reply_with_a_zero_byte_is_kept_whole(self):
        path = self.folder / "talk.json"
        for seed in range(100):
            words = ["-n", "100", "--temp", "2", "--seed", seed]
            script = f"Hello?\n/save {path}\n"
            out = self.ok(pith("chat", self.models.full, *words, stdin=script.encode())).out
            if b"\0" in out[:-2]:
                break
        else:
            self.fail("no reply has a zero byte")
        self.assertEqual(json.loads(path.read_text())["turns"][0]["assistant"],
                         out[:-1].decode().replace("\0", "\ufffd"))
        self.ok(self.chat(f"/load {path}\nAnd then?\n"))

    def test_saving_never_replaces_another_file(self):
        path = self.folder / "precious.pith"
        path.write_bytes(b"precious")
        self.assertEqual(self.chat(f"Hello?\n/save {path}\n").code, 1)
        self.assertEqual(path.read_bytes(), b"precious")
        self.assertEqual(self.chat("Hello?\n/save /nonexistent/x\n").code, 1)

    def test_a_zero_byte_does_not_cut_a_message(self):
        for command in ("/save aa\0bb", "/load aa\0bb"):
            self.fails(self.chat(f"{command}\n"), 2, "the command: byte 8 is 0")
        self.fails(self.chat("Hello\0What is pith?\n"), 2, "byte 5 is 0")
        self.fails(pith("run", self.models.full, "--chat", stdin=b"Hello\0What is pith?"), 2, "byte 5 is 0")

    def test_a_damaged_conversation_is_refused(self):
        for content in (b"", b"{", b"[]", b'{"pith_chat": 1}', b'{"pith_chat": 1, "turns": [{"user": 3}]}',
                        b'{"pith_chat": 2, "turns": []}', b"[" * 100000,
                        b'{"pith_chat": 1, "model": "", "system": "a\\u0000b", "turns": []}',
                        b'{"pith_chat": ' + b"[" * 200000 + b"]" * 200000 + b', "turns": []}'):
            path = self.folder / "x.json"
            path.write_bytes(content)
            self.fails(self.chat(f"/load {path}\n"), 1, path)
        self.fails(self.chat(f"/save {path}\n"), 1, path)  # over the last of them

    def test_a_conversation_is_a_regular_file(self):
        fifo, huge = self.folder / "fifo", self.folder / "huge.json"
        os.mkfifo(fifo)
        huge.touch()
        os.truncate(huge, (64 << 20) + 1)
        for command in ("/load", "/save"):
            for path, said in ((fifo, "not a regular file"), ("/dev/zero", "not a regular file"),
                               (self.folder, "a folder"), (huge, "the limit is 67108864")):
                self.fails(pith("chat", self.models.full, stdin=f"{command} {path}\n".encode(), timeout=60), 1, path, said)
        self.fails(self.chat("/load -\n"), 1, ": -: cannot open: No such file")  # a name like any other

    def test_nothing_is_dropped_when_the_context_is_full(self):
        result = self.chat("word " * 8 + "\n" + "word " * 8 + "\n", "--ctx", "64")
        self.assertEqual(result.code, 1)
        self.assertRegex(result.message.splitlines()[-1], r"\d+ tokens.* 64.*/forget")
        self.assertIn("/forget", self.ok(self.chat("word " * 10 + "\n", "--ctx", "64")).message)

    def test_what_is_advised_makes_room(self):
        first, long, longest = "word\n", "word " * 20 + "\n", "word " * 110 + "\n"
        for script in (long, first + long):  # /forget would not help the second
            self.assertIn("the message has 103 tokens, the context 64: --ctx takes more",
                          self.chat(script, "--ctx", "64").message)
        self.assertIn("the context 64: the model takes at most 512", self.chat(longest, "--ctx", "64").message)

    def test_a_model_without_template_says_so_and_continues_text(self):
        result = self.ok(self.chat("Once upon\n", model=self.models.plain))
        self.assertIn("no chat template", result.message)
        run = self.ok(pith("run", self.models.plain, "-p", "Once upon", "-n", "8", "--temp", "0"))
        self.assertEqual(result.out, run.out + b"\n")
        self.assertEqual(self.chat("", "--system", "x", "--once", "x", model=self.models.plain).code, 2)


class Terminal(CliTest):
    """The program at a pseudo terminal, as a person sees it."""

    def start(self, *words):
        env = {**os.environ, "TERM": "vt100", "XDG_STATE_HOME": str(self.folder), "LC_ALL": "C.UTF-8"}
        pid, self.fd = pty.fork()
        if pid == 0:
            os.execve(PITH, [PITH, "chat", *map(str, words)], env)
        self.pid, self.seen = pid, ""
        self.addCleanup(self.stop)

    def stop(self):
        if self.pid is not None:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            self.pid = None
        if self.fd is not None:
            os.close(self.fd)
            self.fd = None

    def expect(self, pattern, seconds=60):
        """Reads until the pattern appears; takes and returns what came before it."""
        end = time.time() + seconds
        while not (found := re.search(pattern, self.seen)):
            ready, _, _ = select.select([self.fd], [], [], max(0, end - time.time()))
            self.assertTrue(ready, f"{pattern!r} did not appear in {self.seen[-500:]!r}")
            try:
                self.seen += os.read(self.fd, 4096).decode("utf-8", "replace")
            except OSError:
                self.fail(f"ended without {pattern!r}: {self.seen[-500:]!r}")
        before, self.seen = self.seen[:found.start()], self.seen[found.end():]
        return before

    def type(self, text):
        os.write(self.fd, text.encode())

    def exit_code(self, seconds=60):
        end = time.time() + seconds
        while True:  # a terminal with unread output would keep the program from ending
            ready, _, _ = select.select([self.fd], [], [], max(0, end - time.time()))
            self.assertTrue(ready, "still running")
            try:
                if not os.read(self.fd, 4096):
                    break
            except OSError:
                break
        _, status = os.waitpid(self.pid, 0)
        self.pid = None
        return os.waitstatus_to_exitcode(status)

    def test_a_conversation_is_typed_edited_and_left(self):
        self.start(self.models.full, "-n", "4", "--temp", "0")
        self.expect(r"/help.*\n")
        self.expect(r"> ")
        self.type("Helxx\x7f\x7flo, wörld 🙂\n")
        self.expect(r"\n")
        self.expect(r"> ")
        self.type("/stats\n")
        self.expect(r"1 turn\r?\n")
        self.type("/sytem\n")
        self.expect(r"did you mean /system")
        self.expect(r"> ")
        self.type("\x04")
        self.assertEqual(self.exit_code(), 0)
        history = self.folder / "pith" / "history"
        self.assertEqual(history.stat().st_mode & 0o777, 0o600)
        self.assertIn("/stats", history.read_text(errors="replace"))

    def test_the_old_history_is_there_until_the_new_one_is_whole(self):
        history = self.folder / "pith" / "history"
        history.parent.mkdir()
        history.write_text("_HiStOrY_V2_\nearlier\n")
        old = self.folder / "old"
        os.link(history, old)
        self.says_stats_and_leaves()
        self.assertEqual(history.read_text().split("\n")[1:3], ["earlier", "/stats"])
        self.assertEqual(old.read_text(), "_HiStOrY_V2_\nearlier\n")  # not written over
        self.assertEqual([path.name for path in history.parent.iterdir()], ["history"])

    def test_lines_of_two_chats_at_once_are_both_kept(self):
        history = self.folder / "pith" / "history"
        self.start(self.models.full)
        self.expect(r"> ")
        self.type("/stats\n")
        self.expect(r"0 turns\r?\n")
        self.expect(r"> ")
        with open(history) as other:  # another chat, which adds its line and is not done yet
            fcntl.flock(other, fcntl.LOCK_EX)
            self.type("/set\n")
            self.expect(r"/set\r?\n")
            time.sleep(0.35)
            self.assertNotIn("/set", history.read_text())
            beside = history.with_name("beside")
            beside.write_text(history.read_text() + "elsewhere\n")
            beside.rename(history)
        self.expect(r"> ")
        self.type("\x04")
        self.assertEqual(self.exit_code(), 0)
        self.assertEqual(history.read_text(), "_HiStOrY_V2_\n/stats\nelsewhere\n/set\n")
        self.assertEqual(history.stat().st_mode & 0o777, 0o600)

    def test_a_line_that_could_not_be_saved_is_saved_with_the_next_one(self):
        history = self.folder / "pith" / "history"
        history.parent.mkdir()
        history.write_text("_HiStOrY_V2_\nearlier\n")
        self.start(self.models.full)
        self.expect(r"> ")
        with open(history) as other:
            fcntl.flock(other, fcntl.LOCK_EX)
            for _ in range(2):
                self.type("/stats\n")
                self.expect(r"0 turns\r?\n")  # without waiting for the other one
                self.expect(r"> ")
            self.assertEqual(history.read_text(), "_HiStOrY_V2_\nearlier\n")
        self.type("/help\n")
        self.expect(r"/quit")
        self.expect(r"> ")
        self.assertEqual(history.read_text(), "_HiStOrY_V2_\nearlier\n/stats\n/help\n")
        with open(history) as other:
            fcntl.flock(other, fcntl.LOCK_EX)
            self.type("/set\n")
            self.expect(r"temp")
            self.expect(r"> ")
        self.type("\x04")
        self.assertEqual(self.exit_code(), 0)
        self.assertEqual(history.read_text(), "_HiStOrY_V2_\nearlier\n/stats\n/help\n/set\n")

    def test_a_history_that_may_only_be_read_is_replaced(self):
        history = self.folder / "pith" / "history"
        history.parent.mkdir()
        history.write_text("_HiStOrY_V2_\nearlier\n")
        history.chmod(0o444)
        self.says_stats_and_leaves()
        self.assertEqual(history.read_text(), "_HiStOrY_V2_\nearlier\n/stats\n")
        self.assertEqual(history.stat().st_mode & 0o777, 0o600)

    def says_stats_and_leaves(self):
        self.start(self.models.full)
        self.expect(r"> ")
        self.type("/stats\n")
        self.expect(r"0 turns\r?\n")
        self.expect(r"> ")
        self.type("\x04")
        self.assertEqual(self.exit_code(), 0)
        self.stop()

    def test_a_history_behind_a_link_is_written_where_it_is(self):
        history, target = self.folder / "pith" / "history", self.folder / "dotfiles" / "pith-history"
        history.parent.mkdir()
        target.parent.mkdir()
        target.write_text("_HiStOrY_V2_\nearlier\n")
        history.symlink_to(target)
        self.says_stats_and_leaves()
        self.assertTrue(history.is_symlink())
        self.assertEqual(target.read_text(), "_HiStOrY_V2_\nearlier\n/stats\n")

    def test_a_pipe_or_a_device_in_place_of_the_history_is_left_alone(self):
        history = self.folder / "pith" / "history"
        history.parent.mkdir()
        os.mkfifo(history)
        self.says_stats_and_leaves()
        self.assertTrue(history.is_fifo())
        history.unlink()
        for target in ("/dev/null", "nothing"):
            history.symlink_to(target)
            self.says_stats_and_leaves()
            self.assertEqual(os.readlink(history), target)
            self.assertEqual([path.name for path in history.parent.iterdir()], ["history"])
            history.unlink()

    def test_leaving_is_understood_before_the_prompt_is_there(self):
        self.start(self.models.full)
        self.type("\x04")
        self.assertEqual(self.exit_code(), 0)

    def test_a_retry_that_fails_leaves_the_turn(self):
        path = self.folder / "long.json"
        path.write_text(json.dumps({"pith_chat": 1, "model": "", "system": "",
                                    "turns": [{"user": "word " * 40, "assistant": "Yes."}]}))
        self.start(self.models.full, "--ctx", "64")
        self.expect(r"> ")
        self.type(f"/load {path}\n/retry\n")
        self.expect(r"the context 64")
        self.type("/stats\n")
        self.expect(r"64 tokens, 1 turn\r?\n")

    def test_pasted_lines_are_one_question(self):
        self.start(self.models.full, "-n", "2", "--temp", "0")
        self.expect(r"> ")
        self.type("\x1b[200~first\nsecond\n\x1b[201~")
        self.expect("second")
        self.type("\n")
        self.expect(r"> ")
        self.type("/undo\n")
        self.expect(r"\[taken back: first.second\]")

    def test_interrupting_stops_the_reply_and_not_the_program(self):
        self.start(self.models.full, "--temp", "1", "--ctx", "512")
        self.expect(r"> ")
        stopped = False
        for attempt in range(20):  # a tiny model may end its reply first
            self.type("/forget all\n")
            self.expect(r"left\]\r\n")
            self.expect(r"> ")
            self.type(f"Go on {attempt}\n")
            self.expect(rf"Go on {attempt}\r?\n")
            self.type("\x03")
            time.sleep(0.5)  # at a prompt, the signal would take away what is typed before it is handled
            self.type("/set max_tokens 300\n")
            stopped = "[stopped" in self.expect(r"max_tokens = 300")
            self.expect(r"> ")
            if stopped:
                break
        self.assertTrue(stopped)
        self.type("/stats\n")
        self.expect(r"context")
        self.expect(r"> ")
        self.type("\x03")
        self.assertNotIn("> ", self.expect(r"again"))
        self.expect(r"> ")
        self.type("\x03")
        self.assertEqual(self.exit_code(), 0)

    def wait_until(self, is_so):
        end = time.time() + 60
        while not is_so():
            self.assertLess(time.time(), end)
            time.sleep(0.01)

    def test_an_interrupt_right_after_enter_stops_the_reply(self):
        self.start(self.models.full, "--temp", "0", "-n", "4")
        self.expect(r"> ")
        terminal = os.open(f"/proc/{self.pid}/fd/0", os.O_RDWR | os.O_NOCTTY)
        self.wait_until(lambda: not termios.tcgetattr(terminal)[3] & termios.ICANON)  # what is seen now was read
        self.type("Go on")
        self.expect("Go on")
        termios.tcflow(terminal, termios.TCOOFF)  # what shows Enter cannot be written: the program waits there
        self.type("\n")
        time.sleep(0.1)
        self.wait_until(lambda: fcntl.ioctl(terminal, termios.FIONREAD, bytes(4)) == bytes(4))
        os.kill(self.pid, signal.SIGINT)
        termios.tcflow(terminal, termios.TCOON)
        os.close(terminal)
        self.expect(r"\[stopped before the reply")
        self.assertNotIn("Ctrl-C", self.expect(r"> "))
        self.type("/stats\n")
        self.assertNotIn("Ctrl-C", self.expect(r"0 turns\r?\n"))


class ReferenceModel(CliTest):
    """A real trained model, against figures from an independent float64 implementation."""

    def converted(self, bits):
        source = self.skip_unless(SHARED / "models" / "stories260k")
        path = self.folder / f"{bits}.pith"
        self.ok(pith("convert", source, "-o", path, "--bits", bits, *self.models.calibration_at(bits)))
        return path

    def test_perplexity_and_greedy_text_are_the_references(self):
        text = self.skip_unless(SHARED / "text" / "tinystories" / "TinyStories-1000.txt")
        model = self.converted("16")
        # Every instruction set gives the same bits (test_kernels.cpp), so one is enough where all are slow.
        for kernels in ("auto",) if "PITH_SANITIZED" in os.environ else ("scalar", "auto"):
            out = json.loads(self.ok(pith("eval", model, "--text", text, "--ctx", "256", "--max-tokens", "20000",
                                          "--kernels", kernels, "--json")).text)
            self.assertEqual(out["tokens"], 19890)
            self.assertAlmostEqual(out["nll"], 1.5435, delta=0.001 * 1.5435)
            self.assertAlmostEqual(out["ppl"], 4.681, delta=0.001 * 4.681)
        story = self.ok(pith("run", model, "-p", "Once upon a time", "-n", "40", "--temp", "0")).text
        self.assertTrue(story.startswith(", there was a little girl named Lily. She loved to play outside in the park. "
                                         "One day, she saw a big, red ball."), story)

    def test_it_runs_at_few_bits(self):
        model = self.converted("2.85")
        self.ok(pith("run", model, "-p", "Once upon a time", "-n", "20", "--temp", "0"))
        self.ok(pith("verify", model))


if __name__ == "__main__":
    unittest.main(verbosity=2)
