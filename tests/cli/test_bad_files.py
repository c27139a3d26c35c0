"""Damaged models, damaged checkpoints, places that cannot be written: one line, the right code, nothing left behind."""
import os
import random
import subprocess
import unittest

import tiny_model
from harness import CliTest, pith


class DamagedModels(CliTest):
    def damaged(self, change, source=None):
        data = bytearray((source or self.models.small).read_bytes())
        change(data)
        path = self.folder / "damaged.pith"
        path.write_bytes(data)
        return path

    def test_a_missing_file_is_named(self):
        for words in (["run", "-p", "x"], ["chat"], ["inspect"], ["verify"], ["plan"], ["tokenize"], ["bench"],
                      ["eval", "--text", __file__]):
            self.fails(pith(words[0], "/nonexistent.pith", *words[1:]), 1, "/nonexistent.pith", "No such file")

    def test_a_folder_is_not_a_model(self):
        for command in ("inspect", "verify", "plan"):
            self.fails(pith(command, self.folder), 1, self.folder, "a folder")
        self.fails(pith("convert", self.models.checkpoint, "-o", self.folder / "x.pith", "--calib", self.folder), 1, "a folder")

    def test_other_files_are_not_models(self):
        for content in (b"", b"x", b"GGUF" + bytes(1000), bytes(4096), os.urandom(100000)):
            path = self.folder / "x.pith"
            path.write_bytes(content)
            self.fails(pith("run", path, "-p", "x"), 1, path, *(["a GGUF file"] if content[:4] == b"GGUF" else []))

    def test_a_truncated_file_does_not_open(self):
        size = self.models.small.stat().st_size
        for n in (1, 63, 128, 4096, size // 2, size - 128, size - 1):
            path = self.damaged(lambda data: data.__delitem__(slice(n, None)))
            self.fails(pith("run", path, "-p", "x"), 1, path)
            self.fails(pith("verify", path), 1, path)

    def test_a_flipped_bit_anywhere_is_found_by_verify(self):
        rng = random.Random(5)
        size = self.models.small.stat().st_size
        for at in [0, 9, 40, size - 1] + [rng.randrange(size) for _ in range(30)]:
            path = self.damaged(lambda data: data.__setitem__(at, data[at] ^ 1 << rng.randrange(8)))
            self.fails(pith("verify", path), 1, path)

    def test_control_characters_of_a_name_do_not_reach_the_terminal(self):
        result = self.fails(pith("inspect", self.folder / "a\x1b[31mb\nc.pith"), 1)
        self.assertNotIn("\x1b", result.message)


class DamagedCheckpoints(CliTest):
    def convert(self, defect, *words):
        tiny_model.write(self.folder / "in", defect)
        out = self.folder / "out"
        out.mkdir(exist_ok=True)
        return pith("-q", "convert", self.folder / "in", "-o", out / "x.pith", *words)  # -q: no progress

    def test_each_defect_is_one_line_and_leaves_nothing(self):
        words = {"truncated-shard": ["model.safetensors"], "wrong-dtype": ["I16", "up_proj"],
                 "missing-tensor": ["model.layers.1.mlp.up_proj.weight"], "vocabulary": [],
                 "architecture": ["HovercraftForCausalLM"], "nan": ["q_proj", "[1, 13]"], "unknown-key": ["warp_factor"]}
        for defect, expected in words.items():
            with self.subTest(defect):
                self.fails(self.convert(defect), 1, *expected)
                self.assertEqual(list((self.folder / "out").iterdir()), [])

    def test_force_accepts_an_unknown_key_with_a_note(self):
        tiny_model.write(self.folder / "in", "unknown-key")
        result = self.ok(pith("convert", self.folder / "in", "-o", self.folder / "x.pith", "--force",
                              *self.models.calibration))
        self.assertIn("warp_factor", result.message)

    def test_what_is_no_checkpoint_is_refused(self):
        for source, why in ((self.folder, "config.json"), ("/nonexistent", "does not exist, expected the folder"),
                            (__file__, "not a folder, expected the folder")):
            self.fails(pith("convert", source, "-o", self.folder / "x.pith"), 1, source, why)
        self.assertEqual(list(self.folder.iterdir()), [])

    def test_a_router_without_numbers_chooses_experts_that_there_is_room_for(self):
        self.fails(self.convert("huge-norm", "--bits", "16"), 1, "finite")  # what it makes of finite weights is not
        self.ok(self.convert("nan-router", "--bits", "16", "--allow-nonfinite"))
        for words in (["--chunk", "2"], ["--kernels", "scalar"]):
            self.ok(pith("run", self.folder / "out" / "x.pith", "-p", "many words " * 30, "-n", "2", *words))

    def test_a_model_that_makes_no_numbers_is_named(self):
        self.ok(self.convert("nan", "--bits", "16", "--allow-nonfinite"))
        model = self.folder / "out" / "x.pith"
        self.fails(pith("run", model, "-p", "x", "-n", "2"), 1, f"{model}: logit 0 is ", "expected a finite number")

    def test_an_unwritable_output_is_refused(self):
        self.fails(pith("convert", self.models.checkpoint, "-o", ""), 2, "no name")
        for path in ("/nonexistent/x.pith", self.folder, "/proc/x.pith"):
            self.fails(pith("convert", self.models.checkpoint, "-o", path), 1, path)
        self.assertEqual(list(self.folder.iterdir()), [])

    def test_a_full_disk_is_an_error_and_leaves_no_file_that_opens(self):
        disk = self.folder / "disk"
        disk.mkdir()
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)],
                                 stderr=subprocess.DEVNULL).returncode == 0
        if not mounted:
            self.skip("mounting a small file system needs root")
        try:
            self.fails(pith("-q", "convert", self.models.checkpoint, "-o", disk / "x.pith", "--bits", "16"), 1, disk,
                       "No space left")
            self.assertFalse((disk / "x.pith").exists())
            for left in disk.iterdir():
                self.fails(pith("inspect", left), 1)
        finally:
            subprocess.run(["umount", str(disk)], check=True)

    def test_converting_twice_gives_the_same_bytes(self):
        a, b = self.folder / "a.pith", self.folder / "b.pith"
        self.ok(pith("convert", self.models.checkpoint, "-o", a, "--threads", "1", *self.models.calibration))
        self.ok(pith("convert", self.models.checkpoint, "-o", b, "--threads", "3", *self.models.calibration))
        self.assertEqual(a.read_bytes(), b.read_bytes())

    def test_the_progress_of_a_conversion_is_plain_lines_in_a_pipe(self):
        conversion = ["convert", self.models.checkpoint, "-o", self.folder / "x.pith", *self.models.calibration]
        result = self.ok(pith(*conversion))
        self.assertNotIn("\x1b", result.message)
        self.assertNotIn("\r", result.message)
        self.assertIn("bits per weight", result.text)
        quiet = self.ok(pith("-q", *conversion))
        self.assertEqual(quiet.err, b"")


if __name__ == "__main__":
    unittest.main(verbosity=2)
