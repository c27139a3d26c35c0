"""An installed pith is found by pkg-config and by CMake, and its C header compiles in a program of its own."""
import os
import pathlib
import subprocess
import unittest

from harness import CliTest

BUILD = os.environ.get("PITH_BUILD", "build")
PROGRAM = "#include <pith.h>\nint main(void) { return pith_abi_version() != PITH_ABI; }\n"


class Install(CliTest):
    def command(self, *words, **options):
        done = subprocess.run([*map(str, words)], capture_output=True, text=True, **options)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        return done.stdout

    def test_a_c_program_is_built_and_runs_against_the_installed_library(self):
        if not all(pathlib.Path(BUILD, "runtime", name).exists() for name in ("libpith.so", "libpith.a")):
            self.skip("not everything is built")
        prefix = self.folder / "prefix"
        self.command("cmake", "--install", BUILD, "--prefix", prefix)
        for name in ("bin/pith", "include/pith.h", "share/man/man1/pith.1", "share/doc/pith/LICENSE"):
            self.assertTrue((prefix / name).exists(), name)
        source = self.folder / "program.c"
        source.write_text(PROGRAM)
        library = next(prefix.rglob("libpith.so"))
        env = {**os.environ, "LD_LIBRARY_PATH": str(library.parent)}

        env["PKG_CONFIG_PATH"] = str(next(prefix.rglob("pith.pc")).parent)
        flags = ["-I" + str(prefix / "include"), "-L" + str(library.parent), "-lpith"]
        self.assertIn("-lpith", self.command("pkg-config", "--libs", "pith", env=env))
        self.command(os.environ.get("CC", "cc"), "-std=c99", "-pedantic", "-Werror", source, "-o", self.folder / "program",
                     *flags)
        self.command(self.folder / "program", env=env)

        (self.folder / "CMakeLists.txt").write_text(
            "cmake_minimum_required(VERSION 3.22)\nproject(user C)\nfind_package(pith 0.1 REQUIRED)\n"
            "add_executable(user program.c)\ntarget_link_libraries(user pith::pith)\n")
        self.command("cmake", "-S", self.folder, "-B", self.folder / "b", f"-DCMAKE_PREFIX_PATH={prefix}")
        self.command("cmake", "--build", self.folder / "b")
        self.command(self.folder / "b" / "user", env=env)


if __name__ == "__main__":
    unittest.main(verbosity=2)
