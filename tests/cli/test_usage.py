"""Options, help, exit codes, and what goes to which stream."""
import json
import os
import re
import resource
import subprocess
import unittest
from pathlib import Path

from harness import PITH, CliTest, pith

COMMANDS = ["chat", "run", "convert", "eval", "inspect", "verify", "plan", "tokenize", "bench", "synth", "doctor"]


class Usage(CliTest):
    def test_every_command_explains_itself_on_standard_output(self):
        for command in COMMANDS:
            for words in ([command, "--help"], ["help", command]):
                result = self.ok(pith(*words))
                self.assertIn(f"pith {command}", result.text, words)
                self.assertEqual(result.err, b"")

    def test_the_manual_page_has_every_option(self):
        page = (Path(__file__).parents[2] / "runtime" / "pith.1").read_text().replace("\\-", "-")
        for command in COMMANDS:
            for option in re.findall(r"(?<![\w-])--[a-z][a-z-]*", self.ok(pith("help", command)).text):
                self.assertRegex(page, re.escape(option) + r"(?![\w-])", command)

    def test_version_and_help_exit_with_0(self):
        self.assertRegex(self.ok(pith("--version")).text, r"^pith \d+\.\d+\.\d+\n$")
        for command in COMMANDS:
            self.assertIn(command, self.ok(pith("--help")).text)

    def test_no_command_is_a_usage_error(self):
        result = pith()
        self.assertEqual((result.code, result.out), (2, b""))
        self.assertIn("chat", result.message)

    def test_a_misspelt_command_or_option_is_named_with_the_nearest_one(self):
        self.fails(pith("chta", "x"), 2, "'chta'", "'chat'")
        self.fails(pith("frobnicate"), 2, "'frobnicate' is not a command")
        self.fails(pith("run", self.models.full, "--tmep", "0.5", "-p", "x"), 2, "'--tmep'", "'--temp'")
        self.fails(pith("run", "--tmep=0.5", self.models.full), 2, "'--tmep'", "'--temp'")
        self.fails(pith("help", "chta"), 2, "'chat'")
        self.fails(pith("run", self.models.full, "-p", "- an item", "--tmep", "0"), 2, "'--tmep'")
        self.fails(pith("convert", self.models.checkpoint, "-o", self.folder / "x.pith", "--calib", "x", "--no-calib"), 2, "--calib")

    def test_help_without_a_command_lists_the_commands(self):
        self.assertEqual(self.ok(pith("help")).text, self.ok(pith("--help")).text)

    def test_nothing_is_near_to_a_short_word(self):
        for words in (["chat", self.models.full, "-p", "x"], ["run", self.models.full, "-k"], ["hi"]):
            self.assertNotIn("did you mean", self.fails(pith(*words), 2).message)

    def test_options_of_other_programs_are_translated(self):
        run, chat = ["run", self.models.full, "-p", "x"], ["chat", self.models.full]
        for words, said in ((run + ["-ngl", "3"], "'-ngl'; pith calls it --gpu-layers"),
                            (["chat", "-ngl", "99", self.models.full], "'-ngl'; pith calls it --gpu-layers"),
                            (run + ["--n-predict=8"], "'--n-predict'; pith calls it --tokens"),
                            (chat + ["--temperature", "0"], "'--temperature'; pith calls it --temp"),
                            (chat + ["--ctx-size", "99"], "'--ctx-size'; pith calls it --ctx"),
                            (["run", "-m", self.models.full], "'-m'; pith takes the model's FILE without an option")):
            self.fails(pith(*words), 2, said)
        self.assertNotIn("calls", self.fails(pith("verify", self.models.full, "--n-predict", "3"), 2).message)

    def test_a_missing_argument_is_a_usage_error(self):
        for words in (["run"], ["chat"], ["eval", self.models.full], ["convert", "x"], ["inspect"], ["verify"]):
            self.fails(pith(*words), 2)

    def test_options_that_would_do_nothing_are_refused(self):
        m = self.models.full
        for words, said in ((["eval", m, "--text", "x", "--limit", "3"], "--limit requires --task"),
                            (["eval", m, "--task", "piqa", "--data", "x", "--items"], "--items requires --json"),
                            (["eval", m, "--task", "piqa", "--data", "x", "--max-tokens", "9"],
                             "--max-tokens requires --text"),
                            (["tokenize", m, "--text", "--pieces", "-p", "3"], "--text excludes --pieces"),
                            (["convert", "x", "-o", "y", "--bits", "16", "--calib", "z"], "--calib requires --bits below 16"),
                            (["convert", "x", "-o", "y", "--bits", "32", "--calib-tokens", "512"],
                             "--calib-tokens requires --bits below 16: a file of 32 bits is not calibrated"),
                            (["convert", "x", "-o", "y", "--no-calib", "--calib-tokens", "512"],
                             "--calib-tokens excludes --no-calib"),
                            (["inspect", m, "--html", "x", "--json"], "--json excludes --html"),
                            (["inspect", m, "--html", "x", "--no-tensors"], "--html excludes --no-tensors"),
                            (["plan", m, "--no-mmap"], "unknown option '--no-mmap'"),
                            (["plan", m, "--no-huge-pages"], "unknown option '--no-huge-pages'"),
                            (["plan", m, "--bits", "3"], "--bits requires --gpus"),
                            (["plan", "--gpus", "-b", "16"], "--bits 16: expected less than the 16 bits"),
                            (["plan", "--gpus", "-b", "32"], "--bits 32: expected less than the 16 bits"),
                            (["tokenize", m, "--ids", "--text", "-p", "3"], "--ids excludes --text"),
                            (["convert", self.models.checkpoint, "-o", "y", "--bits", "3", "--calib-tokens", "0"],
                             "--calib-tokens 0: expected at least 256"),
                            (["plan", "--gpus", m], "--gpus plans fixed shapes"),
                            (["plan", "--gpus", "--ctx", "512"], "--gpus plans fixed shapes")):
            self.fails(pith(*words), 2, said)

    def test_a_bad_value_is_a_usage_error_that_names_it(self):
        model = self.models.full
        self.fails(pith("run", model, "-p", "x", "--temp", "hot"), 2, "--temp: ", "hot")
        self.fails(pith("run", model, "-p", "x", "--temp", "-1"), 2, "temp")
        self.fails(pith("run", model, "-p", "x", "-n", "-3"), 2, "--tokens: ", "-3")
        self.fails(pith("run", model, "-p", "x", "--threads", "0x2"), 2, "threads")
        for words in (["run", model, "-p", "x"], ["chat", model], ["plan", model], ["bench", model],
                      ["eval", model, "--text", __file__]):
            self.fails(pith(*words, "--chunk", "0"), 2, ": --chunk: 0 tokens, expected 1 to ")
            if words[0] != "eval":  # whose windows are of that length
                self.fails(pith(*words, "-c", "100000"), 2, ": --ctx: 100000 tokens, expected at most the model's 512")
        mmx = self.fails(pith("run", model, "-p", "x", "--kernels", "mmx"), 2, ": --kernels: 'mmx', expected auto, ")
        usable = json.loads(self.ok(pith("doctor", "--json")).text)["kernels_supported"]
        for name in set(mmx.message.split("expected auto, ")[1].split()) - {"scalar"}:
            name = name.strip(",")
            if name not in usable:  # those that are, by name
                self.fails(pith("run", model, "-p", "x", "--kernels", name), 1, f": --kernels: '{name}'",
                           "expected auto, " + ", ".join(usable))
        self.fails(pith("run", model, "-p", "x", "--device", "toaster"), 2, ": --device: 'toaster'")
        self.fails(pith("run", model, "-p", "x", "--device", "cpu:1"), 2, ": --device: 'cpu:1'")
        self.fails(pith("convert", self.models.checkpoint, "-o", self.folder / "x.pith", "--device", "toaster"), 2,
                   ": --device: 'toaster'")
        self.fails(pith("run", model, "-p", "x", "--gpu-layers", "most"), 2, "--gpu-layers: ", "all, auto or")
        self.fails(pith("run", model, "-p", "x", "--device", "cpu", "--gpu-layers", "999999"), 1,
                   ": --gpu-layers: 999999 on the CPU, expected a GPU")
        self.fails(pith("convert", self.models.checkpoint, "-o", self.folder / "x.pith", "--bits", "1"), 2, "--bits 1")
        self.fails(pith("convert", self.models.checkpoint, "-o", self.folder / "x.pith", "--preset", "x"), 2, "preset")
        self.fails(pith("eval", model, "--text", __file__, "--max-tokens", "few"), 2, "few")
        self.fails(pith("synth", "--shape", "demo", "-o", self.folder / "x.pith", "--embed-bits", "7"), 2, "--embed-bits 7")
        self.assertEqual(list(self.folder.iterdir()), [])

    def test_a_file_with_the_name_of_an_option_keeps_it(self):
        for words in (["eval", self.models.full, "--text", "kv"], ["eval", "kv", "--text", __file__], ["bench", "kv"]):
            self.fails(pith(*words, cwd=self.folder), 1, ": kv: ", "No such file")

    def test_the_last_of_repeated_options_counts(self):
        self.ok(pith("run", self.models.full, "-p", "x", "-n", "900", "-n", "2", "--temp", "hot", "--temp", "0"))

    def test_a_closed_pipe_ends_the_program_quietly(self):
        process = subprocess.Popen([PITH, "run", self.models.full, "-p", "x", "--temp", "1"], stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE)
        process.stdout.close()
        self.assertEqual(process.stderr.read(), b"")
        process.stderr.close()
        self.assertEqual(process.wait(), 1)

    def test_a_full_disk_under_standard_output_is_an_error(self):
        for words in (["run", self.models.full, "-p", "x", "-n", "4"], ["inspect", self.models.full], ["--help"]):
            with open("/dev/full", "wb") as full:
                self.fails(pith(*words, stdout=full), 1, "standard output", "No space left")


class Results(CliTest):
    def test_tokenize_goes_there_and_back(self):
        text = "Hello, wörld 🙂\n <s> "
        ids = self.ok(pith("tokenize", self.models.full, "--ids", "-p", text)).text
        self.assertNotIn("1", ids.split()[:1])
        self.assertEqual(self.ok(pith("tokenize", self.models.full, "--text", stdin=ids.encode())).text, text)
        special = self.ok(pith("tokenize", self.models.full, "--special", "--bos", "-p", "</s>")).text
        self.assertEqual(special, "1 2\n")

    def test_a_text_without_end_is_refused(self):
        self.fails(pith("tokenize", self.models.full, "-f", "/dev/zero"), 1, "/dev/zero", "more than 1073741824 bytes")

    def test_a_message_has_no_control_characters(self):
        result = self.fails(pith("run", "no\u009b31m\x1b[0mmodel", "-p", "x"), 1)
        self.assertIn("no?31m?[0mmodel", result.message)

    def test_tokenize_refuses_what_is_no_id(self):
        self.fails(pith("tokenize", self.models.full, "--text", "-p", "12 x7"), 2, "'x7'")
        self.fails(pith("tokenize", self.models.full, "--text", "-p", "999999"), 2, "999999")

    def test_inspect_and_plan_and_bench_print_json(self):
        out = json.loads(self.ok(pith("inspect", self.models.small, "--json")).text)
        self.assertLess(out["linear_bpw"], 16)
        self.assertEqual(out["file_bytes"], os.path.getsize(self.models.small))
        self.assertTrue(all(t["bytes"] > 0 for t in out["tensors"]))
        plan = json.loads(self.ok(pith("plan", self.models.small, "--json", "--ctx", "100")).text)
        self.assertEqual(plan["total_bytes"], plan["weights_bytes"] + plan["kv_bytes"] + plan["scratch_bytes"])
        self.assertEqual(plan["ctx"], 100)
        bench = json.loads(self.ok(pith("bench", self.models.small, "--json", "-p", "16", "-n", "4")).text)
        for key in ("prompt_tps", "generation_tps", "gb_per_s", "bandwidth_gb_per_s", "bandwidth_share"):
            self.assertGreater(bench[key], 0)

    def test_bench_leaves_a_part_out_and_refuses_a_context_without_room(self):
        words = ["bench", self.models.small, "--repeat", "1"]
        prompt = json.loads(self.ok(pith(*words, "--json", "-p", "16", "-n", "0")).text)
        self.assertGreater(prompt["prompt_tps"], 0)
        self.assertNotIn("generation_tps", prompt)
        self.assertNotIn("generation", self.ok(pith(*words, "-p", "16", "-n", "0")).text)
        generation = json.loads(self.ok(pith(*words, "--json", "-p", "0", "-n", "4")).text)
        self.assertGreater(generation["generation_tps"], 0)
        self.assertNotIn("prompt_tps", generation)
        self.ok(pith(*words, "--markdown", "-p", "0", "-n", "4"))
        self.fails(pith(*words, "-p", "0", "-n", "0"), 2, "--prompt-tokens 0 and --tokens 0")
        cut = self.ok(pith(*words, "--json", "-p", "5000", "-n", "4"))
        self.assertEqual(json.loads(cut.text)["prompt_tokens"], 508)
        self.assertIn(b"a prompt of 508 and 4 tokens, which is what the model's context of 512 holds", cut.err)
        self.fails(pith(*words, "-p", "16", "-n", "4", "-c", "19"), 2, "--ctx 19", "--prompt-tokens 16", "--tokens 4")

    def test_verify_accepts_what_convert_wrote(self):
        for model in (self.models.full, self.models.small, self.models.plain):
            self.assertTrue(self.ok(pith("verify", model)).text.endswith(": ok\n"))

    def test_doctor_says_what_would_be_chosen(self):
        out = self.ok(pith("doctor")).text
        self.assertIn("kernels", out)
        self.assertIn("threads", out)

    def test_synth_writes_a_file_that_runs(self):
        path = self.folder / "s.pith"
        self.ok(pith("synth", "--shape", "demo", "--bits", "2.85", "-o", path))
        self.ok(pith("verify", path))
        self.ok(pith("bench", path, "-p", "8", "-n", "2"))
        self.fails(pith("synth", "--shape", "colossus", "--bits", "2.85", "-o", path), 2, "colossus")

    def test_synth_drops_an_interrupted_conversion_on_demand_only(self):
        path, part = self.folder / "s.pith", self.folder / "s.pith.part"
        limit = self.models.full.stat().st_size * 3 // 4  # as if the disk were full
        convert = [PITH, "convert", str(self.models.checkpoint), "-o", str(path), "--bits", "16"]
        done = subprocess.run(convert, capture_output=True, restore_signals=False,
                              preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))
        self.assertEqual(done.returncode, 1, done)
        left = part.read_bytes()
        words = ["synth", "--shape", "demo", "--bits", "2.85", "-o", path]
        self.fails(pith(*words), 2, f"{part}: of an interrupted run", "--restart drops it")
        self.assertEqual(part.read_bytes(), left)
        self.ok(pith(*words, "--restart"))
        self.ok(pith("verify", path))
        self.assertFalse(part.exists())


class Evaluation(CliTest):
    def text(self, n=3000):
        path = self.folder / "text.txt"
        path.write_bytes(b"The quick brown fox jumps over the lazy dog. " * (n // 45))
        return path

    def test_eval_counts_the_tokens_of_whole_windows(self):
        out = json.loads(self.ok(pith("eval", self.models.full, "--text", self.text(), "--ctx", "65", "--max-tokens",
                                      "1000", "--json")).text)
        self.assertEqual(sorted(out), ["nll", "ppl", "tokens"])
        self.assertEqual(out["tokens"], 1000 // 64 * 64)
        self.assertGreater(out["ppl"], 1)

    def test_a_model_does_not_diverge_from_itself(self):
        out = json.loads(self.ok(pith("eval", self.models.full, "--against", self.models.full, "--text", self.text(),
                                      "--ctx", "64", "--json")).text)
        self.assertEqual((out["kl_max"], out["top1_agreement"], out["ppl_ratio"]), (0, 1, 1))

    def test_fewer_bits_diverge(self):
        out = json.loads(self.ok(pith("eval", self.models.small, "--against", self.models.full, "--text", self.text(),
                                      "--ctx", "64", "--json")).text)
        self.assertGreater(out["kl_mean"], 0)
        self.assertGreaterEqual(out["kl_p99"], out["kl_median"])
        self.assertGreater(out["ppl_ratio_se"], 0)

    def test_eval_refuses_a_text_shorter_than_a_window(self):
        self.fails(pith("eval", self.models.full, "--text", self.text(90), "--ctx", "256"), 2, "255")
        self.fails(pith("eval", self.models.full, "--text", "/dev/null"), 2)
        self.fails(pith("eval", self.models.full, "--text", self.folder), 1, self.folder)


if __name__ == "__main__":
    unittest.main(verbosity=2)
