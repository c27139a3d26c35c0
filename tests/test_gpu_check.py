"""tests/gpu_check.sh from end to end where there is no GPU: the tests' and the benchmark's programs over the emulated device, and pith on
the CPU under the GPU's name. What it proves is that the script runs, knows success from failure, and writes its tables.

Environment: PITH, TESTS (the folder of test programs)."""
import os
import pathlib
import subprocess
import tempfile
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent
TESTS = pathlib.Path(os.environ["TESTS"])

# Options of a GPU's are left out or changed; `doctor` has a GPU.
PITH = """#!/usr/bin/env bash
if [ "$1" = doctor ]; then "{pith}" doctor | sed 's/^gpu  .*/gpu        cuda:0 Emulated GPU, compute capability 9.0/'; exit; fi
words=()
while [ $# -gt 0 ]; do
  case $1 in
    --device) words+=(--device cpu); shift 2 ;;
    --kernels | --gpu-layers) shift 2 ;;
    *) words+=("$1"); shift ;;
  esac
done
exec "{pith}" "${{words[@]}}"
"""


def script(path: pathlib.Path, text: str):
    path.write_text(text)
    path.chmod(0o755)


class GpuCheck(unittest.TestCase):
    def run_script(self, folder: pathlib.Path, parts: str, finding=0, **more):
        """finding: the exit status of the stand-in for compute-sanitizer, 9 when it finds something."""
        programs = folder / "programs"
        programs.mkdir(exist_ok=True)
        script(programs / "pith", PITH.format(pith=os.environ["PITH"]))
        for name, command in {"gpu_kernels": f'"{TESTS}/test_cuda_tokens" "$@"',
                              "gpu_backend": f'"{TESTS}/test_cuda_backend" "$@"',
                              "gpu_calibration": f'"{TESTS}/test_cuda_calibration" "no rows*"',
                              "gpu_families": f'"{TESTS}/test_families" "$@"',
                              "gpu_bench": f'"{TESTS}/gpu_bench_emulated" --tiny "$@"'}.items():
            script(programs / name, f"#!/bin/sh\nexec {command}\n")
        subprocess.run([os.environ["PITH"], "convert", ROOT / "models/demo", "-o", programs / "demo.pith", "--bits", "16",
                        "--restart"], check=True, capture_output=True)
        script(folder / "compute-sanitizer", '#!/bin/sh\n[ "$1 $2 $3" = "--error-exitcode 9 --tool" ] || exit 3\nshift 4\n'
               f'[ -x "$1" ] && echo "would look at $*" && exit {finding}\n')
        environment = dict(os.environ, PATH=f"{folder}:{os.environ['PATH']}", RESULTS=str(folder / "results"),
                           WORK=str(folder), PARTS=parts, CONVERT="--effort fast --calib-tokens 1024", **more)
        done = subprocess.run([ROOT / "tests/gpu_check.sh", "run", programs], env=environment, capture_output=True, text=True)
        written = list((folder / "results").glob("*.md"))
        self.assertEqual(len(written), 1, done.stderr)
        return done, written[0].read_text()

    def test_every_part_runs_and_is_written(self):
        with tempfile.TemporaryDirectory() as name:
            folder = pathlib.Path(name)
            done, text = self.run_script(folder, "correct convert kernels")
            self.assertEqual(done.returncode, 0, text + done.stderr)
            again, text = self.run_script(folder, "sanitize compare:demo demo big:demo torch", ADD="1")
            self.assertEqual(again.returncode, 0, text + again.stderr)
        self.assertTrue(text.startswith("# Emulated-GPU, "), text)
        self.assertNotIn("FAILED", text)
        for line in ("| greedy text of the demo model, 48 tokens, split | equal |", "| racecheck, kernels | ok: ",
                     "| perplexity of README.md, CPU and GPU | ok: ", "| two conversions on the GPU | ok: the same bytes |",
                     "| KL divergence from 16 bits, made on CPU and GPU | ok: "):
            self.assertIn(line, text)
        for heading in ("Upload through pinned", "Q24 matrix-vector product", "What 4-bit groups and outliers cost (", "16-bit matrix-vector product", "Attention",
                        "Products of many tokens", "Float32 products", "cost a prompt", "Warps a block", "Models", "PyTorch"):
            self.assertIn(heading, text)
        rows = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith("| demo | 2.85")]
        self.assertEqual(len(rows), 4 + 5 + 4 + 2)  # contexts, pipelines, contexts again, the big one
        for row in rows:
            self.assertEqual(len(row), 9, row)
            self.assertGreater(float(row[5]), 0, row)
            self.assertGreater(float(row[7]), 0, row)

    def test_one_failure_is_told_and_the_rest_goes_on(self):
        with tempfile.TemporaryDirectory() as name:
            folder = pathlib.Path(name)
            script(folder / "python3", "#!/bin/sh\nexit 1\n")  # a machine without PyTorch
            done, text = self.run_script(folder, "sanitize nonsense big:demo torch", finding=9)
        self.assertEqual(done.returncode, 1, text + done.stderr)
        self.assertIn("| racecheck, kernels | FAILED (9) |", text)
        self.assertIn("| nonsense | 2.85 | no file |", text)  # a shape that there is not is no result, not a failure
        self.assertIn("| demo | 2.85 |", text)
        self.assertIn("PyTorch is not here.", text)


if __name__ == "__main__":
    unittest.main()
