#!/usr/bin/env python3
"""libpith exports exactly what pith.h declares.     usage: check_symbols.py LIBPITH.so PITH.H"""
import pathlib
import re
import subprocess
import sys

library, header = sys.argv[1:]
declared = set(re.findall(r"PITH_API [^(;]*?(pith_\w+)\(", pathlib.Path(header).read_text()))
lines = subprocess.run(["nm", "-D", "--defined-only", library], check=True, capture_output=True, text=True).stdout
exported = {line.split()[-1].split("@")[0] for line in lines.splitlines()}
if declared != exported:
    print(f"declared but not exported: {sorted(declared - exported)}")
    print(f"exported but not declared: {sorted(exported - declared)}")
    sys.exit(1)
print(f"{len(exported)} functions")
