"""The golden vectors of block keys, recomputed by an implementation that shares no code with ours."""

import pathlib
import subprocess
import sys

VERIFY = pathlib.Path(__file__).parents[2] / "cachesvc" / "proto" / "golden" / "verify.py"


def test_keys_and_fingerprints_are_reproducible():
    done = subprocess.run([sys.executable, VERIFY], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("ok ") == 4
