"""What the command-line tests share: running pith, its fixtures, and the facts that hold for every failure."""
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

import tiny_model

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
SHARED = ROOT.parent / "shared"
PITH = os.environ.get("PITH", "pith")


class Result:
    def __init__(self, code, out, err):
        self.code, self.out, self.err = code, out, err
        self.text, self.message = out.decode("utf-8", "replace"), err.decode("utf-8", "replace")

    def __repr__(self):
        return f"exit {self.code}\nstdout: {self.text[:500]!r}\nstderr: {self.message[:500]!r}"


def pith(*args, stdin=b"", stdout=subprocess.PIPE, cwd=None, env=None, timeout=300):
    done = subprocess.run([PITH, *map(str, args)], input=stdin, stdout=stdout, stderr=subprocess.PIPE, cwd=cwd,
                          env={**os.environ, **(env or {})}, timeout=timeout)
    return Result(done.returncode, done.stdout or b"", done.stderr)


class Fixtures:
    """Made once for all tests: a tiny checkpoint, converted at 16 and at 2.85 bits, with and without template."""

    def __init__(self):
        self._folder = tempfile.TemporaryDirectory(prefix="pith-cli-")
        self.folder = pathlib.Path(self._folder.name)
        self.checkpoint = self.folder / "checkpoint"
        tiny_model.write(self.checkpoint)
        # The first pages of the default text: these tests look at what a conversion does, not at how well it does it.
        text = self.folder / "calibration.txt"
        text.write_text((ROOT / "convert" / "calibration.txt").read_text(encoding="utf-8")[:20000], encoding="utf-8")
        self.calibration = ["--calib", text]
        self.full = self._convert(self.checkpoint, "16")
        self.small = self._convert(self.checkpoint, "2.85")
        tiny_model.write(self.folder / "plain", "no-template")
        self.plain = self._convert(self.folder / "plain", "16")

    def calibration_at(self, bits):
        return self.calibration if float(bits) < 16 else []

    def _convert(self, checkpoint, bits):
        path = self.folder / f"{checkpoint.name}-{bits}.pith"
        done = pith("convert", checkpoint, "-o", path, "--bits", bits, *self.calibration_at(bits))
        if done.code != 0:
            sys.exit(f"cannot make a model for the tests: {done}")
        return path


_fixtures = None


def fixtures():
    global _fixtures
    if _fixtures is None:
        _fixtures = Fixtures()
    return _fixtures


class CliTest(unittest.TestCase):
    def setUp(self):
        self.models = fixtures()
        folder = tempfile.TemporaryDirectory(prefix="pith-cli-")
        self.addCleanup(folder.cleanup)
        self.folder = pathlib.Path(folder.name)

    def ok(self, result):
        self.assertEqual(result.code, 0, result)
        return result

    def fails(self, result, code, *words):
        """The rules for every failure: the code, nothing on standard output, one line that says what."""
        self.assertEqual(result.code, code, result)
        self.assertEqual(result.out, b"", result)
        self.assertRegex(result.message, r"^[^\n]+\n$", result)
        self.assertTrue(result.message.startswith("pith"), result)
        for word in words:
            self.assertIn(str(word), result.message)
        return result

    def skip_unless(self, path):
        if not path.exists():
            self.skip(f"{path} is absent")
        return path

    def skip(self, reason):
        """Ends the test; with PITH_NO_SKIP=1 as a failure. As tests/skip.h."""
        if os.environ.get("PITH_NO_SKIP") == "1":
            self.fail(f"skipped: {reason}")
        self.skipTest(f"SKIP: {reason}")
