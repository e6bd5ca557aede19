"""A running stack, started once for all tests, as `hearth up` starts it for a person."""

import json
import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import openai
import pytest

ROOT = Path(__file__).resolve().parents[2]
HEARTH = Path(os.environ.get("HEARTH", ROOT / "target/release/hearth"))
# Generating and loading the demo model takes a few seconds on one core; this is for slow machines.
READY_SECONDS = 180
STOP_SECONDS = 30


@dataclass
class Stack:
    process: subprocess.Popen
    url: str
    model: str

    def client(self):
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=120)

    def stop(self):
        """Ends the stack as Ctrl-C does, and gives its exit status."""
        self.process.send_signal(signal.SIGINT)
        try:
            return self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise


def start_stack(folder):
    """Starts `hearth up` and waits until it says where it is."""
    assert HEARTH.exists(), f"{HEARTH} is missing: cargo build --release -p hearth"
    ready, log = folder / "ready.json", folder / "hearth.log"
    command = [HEARTH, "up", "--data-dir", folder / "data", "--listen", "127.0.0.1:0", "--ready-file", ready]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
    deadline = time.monotonic() + READY_SECONDS
    while not ready.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            pytest.fail(f"hearth up is not ready (status {process.poll()}):\n{log.read_text()[-4000:]}")
        time.sleep(0.05)
    told = json.loads(ready.read_text())
    return Stack(process, told["url"], told["model"])


@pytest.fixture(scope="session")
def stack(tmp_path_factory):
    running = start_stack(tmp_path_factory.mktemp("stack"))
    yield running
    running.stop()


@pytest.fixture
def client(stack):
    return stack.client()
