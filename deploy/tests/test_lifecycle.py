"""Everything that `hearth up` starts ends with it."""

import os
import subprocess
import time
from pathlib import Path

from conftest import HEARTH, start_stack

GONE_SECONDS = 10


def descendants(process_id):
    """Process ids below a process, read from /proc."""
    children = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found, open_ids = [], [process_id]
    while open_ids:
        below = children.get(open_ids.pop(), [])
        found.extend(below)
        open_ids.extend(below)
    return found


def wait_gone(process_ids):
    deadline = time.monotonic() + GONE_SECONDS
    left = process_ids
    while left and time.monotonic() < deadline:
        left = [one for one in left if os.path.exists(f"/proc/{one}")]
        time.sleep(0.05)
    return left


def test_an_interrupt_ends_everything(tmp_path):
    stack = start_stack(tmp_path)
    started = descendants(stack.process.pid)
    assert len(started) >= 4, "a store node, two engines and a router are processes of their own"
    assert stack.stop() == 0
    assert wait_gone(started) == []


def test_a_killed_parent_takes_everything_with_it(tmp_path):
    stack = start_stack(tmp_path)
    started = descendants(stack.process.pid)
    stack.process.kill()
    stack.process.wait()
    assert wait_gone(started) == []


def test_a_port_in_use_is_said(tmp_path, stack):
    taken = stack.url.removeprefix("http://")
    command = [HEARTH, "up", "--data-dir", tmp_path / "data", "--listen", taken, "--ready-file", tmp_path / "ready"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert done.returncode != 0
    assert taken.rpartition(":")[2] in done.stderr + done.stdout
    assert "in use" in (done.stderr + done.stdout).lower()


def test_a_data_directory_in_use_is_said(tmp_path):
    stack = start_stack(tmp_path)
    try:
        command = [HEARTH, "up", "--data-dir", tmp_path / "data", "--listen", "127.0.0.1:0"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=180)
        assert done.returncode != 0
        assert "in use" in (done.stderr + done.stdout).lower()
        assert stack.client().models.list().data, "the first stack is not disturbed"
    finally:
        stack.stop()
