"""Drives Mooncake Store over tcp: a master, a server with the memory, and a client that is timed.

    mooncake_driver.py load|write BLOCK_BYTES RUN_BLOCKS RUNS ROUND_RUNS

Says "ready" when the blocks are stored, then answers each line "round" with the seconds that the
client's batch calls took; ends, with everything it started, at "end" or at the end of its input.
"""

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time

import numpy
from mooncake.store import MooncakeDistributedStore


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def connect(master, segment_bytes, buffer_bytes):
    store = MooncakeDistributedStore()
    status = store.setup(
        f"127.0.0.1:{free_port()}", "P2PHANDSHAKE", segment_bytes, buffer_bytes, "tcp", "", master
    )
    if status != 0:
        raise RuntimeError(f"setup gave {status}")
    return store


def serve(master, segment_bytes):
    """The process that holds the memory: says so when it does, and waits to be ended."""
    store = connect(master, segment_bytes, 16 << 20)
    print("serving", flush=True)
    signal.pause()
    store.close()


def executable(name):
    beside = os.path.join(os.path.dirname(sys.executable), name)
    return beside if os.path.exists(beside) else shutil.which(name) or name


class Bench:
    def __init__(self, work, block_bytes, run_blocks, runs, round_runs):
        self.work, self.block_bytes, self.run_blocks = work, block_bytes, run_blocks
        self.runs, self.round_runs = runs, round_runs
        self.children = []
        self.order = random.Random(1).sample(range(runs), runs)
        self.generation = [0] * runs
        self.turn = 0

    def start(self):
        port = free_port()
        master = f"127.0.0.1:{port}"
        self.spawn([executable("mooncake_master"), f"--rpc_port={port}", f"--metrics_port={free_port()}"])
        total = self.runs * self.run_blocks * self.block_bytes
        self.wait_for(port)
        server = self.spawn([sys.executable, __file__, "serve", master, str(total * 3 // 2 + (256 << 20))], subprocess.PIPE)
        if server.stdout.readline().strip() != b"serving":
            raise RuntimeError("the server did not start")
        self.store = connect(master, 0, 64 << 20)
        self.pages = numpy.random.default_rng(1).integers(0, 256, total, dtype=numpy.uint8)
        if self.store.register_buffer(self.pages.ctypes.data, total) != 0:
            raise RuntimeError("register_buffer failed")
        self.scattered = random.Random(2).sample(range(self.runs * self.run_blocks), self.runs * self.run_blocks)
        for run in range(self.runs):
            self.put(run)
        if self.work == "load":
            self.prove()

    def spawn(self, command, stdout=subprocess.DEVNULL):
        child = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stdout, stderr=subprocess.DEVNULL)
        self.children.append(child)
        return child

    @staticmethod
    def wait_for(port):
        for _ in range(200):
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                return
            except OSError:
                time.sleep(0.05)
        raise RuntimeError("the master did not start")

    def keys(self, run):
        first, generation = run * self.run_blocks, self.generation[run]
        return [f"block:{generation}:{first + at}" for at in range(self.run_blocks)]

    def page(self, number):
        return self.pages.ctypes.data + number * self.block_bytes

    def put(self, run):
        pages = [self.page(run * self.run_blocks + at) for at in range(self.run_blocks)]
        if any(self.store.batch_put_from(self.keys(run), pages, [self.block_bytes] * self.run_blocks)):
            raise RuntimeError("batch_put_from failed")

    def get(self, run, pages):
        got = self.store.batch_get_into(self.keys(run), pages, [self.block_bytes] * self.run_blocks)
        if any(count != self.block_bytes for count in got):
            raise RuntimeError("batch_get_into failed")

    def prove(self):
        """Loads one run onto the pages of another and compares."""
        size = self.run_blocks * self.block_bytes
        expected = self.pages[:size].copy()
        self.pages[:size] = 0
        self.get(0, [self.page(at) for at in range(self.run_blocks)])
        if not numpy.array_equal(self.pages[:size], expected):
            raise RuntimeError("wrong bytes")

    def renew(self, run):
        """A key that exists would not be written again: the run gets new ones, and its memory back."""
        if any(self.store.remove(key) for key in self.keys(run)):
            raise RuntimeError("remove failed")
        self.generation[run] += 1

    def next_pages(self):
        at = self.turn * self.run_blocks % len(self.scattered)
        return [self.page(number) for number in self.scattered[at : at + self.run_blocks]]

    def round(self):
        took = 0.0
        for _ in range(self.round_runs):
            run = self.order[self.turn % self.runs]
            pages = self.next_pages()
            self.turn += 1
            if self.work == "write":
                self.renew(run)
            begin = time.perf_counter()
            if self.work == "load":
                self.get(run, pages)
            else:
                self.put(run)
            took += time.perf_counter() - begin
        return took

    def stop(self):
        for child in self.children:
            child.kill()
        for child in self.children:
            child.wait()


def main():
    if sys.argv[1] == "serve":
        serve(sys.argv[2], int(sys.argv[3]))
        return
    # What the libraries print belongs on stderr; stdout is for answers alone.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    bench = Bench(sys.argv[1], *map(int, sys.argv[2:6]))
    try:
        bench.start()
        print("ready", file=answers)
        for line in sys.stdin:
            if line.strip() != "round":
                break
            print(bench.round(), file=answers)
    except RuntimeError as error:
        print(error, file=answers)
    finally:
        bench.stop()
        # The client library's threads do not all end by themselves.
        os._exit(0)


if __name__ == "__main__":
    main()
