"""PyTorch's own generators in several threads; `test_events.py` and others hold the streams against their uses."""

import subprocess
import sys

# Reading a state makes objects, so that the collector may run in the middle of it, and what it ends (here, and at the
# end of a process group) lets another thread run.
THREADS = """
import contextlib, gc, sys, threading, time
from fedsim import rng

class Ends:
    def __init__(self):
        self.itself = self

    def __del__(self):
        time.sleep(0.0005)

kept, ended = [], threading.Event()

def read():
    for i in range(400):
        gc.disable()
        gc.collect(0)
        Ends()
        gc.set_threshold(1 + i % 8, 1000, 1000)  # so that its turn comes at each object now and then
        gc.enable()
        kept.append(rng.generator_states())
    ended.set()

def fork():
    while not ended.is_set():
        with rng.forked_generators() as seed:
            seed(1)

if sys.argv[1] == "at once":
    rng._turn = contextlib.nullcontext()
gc.freeze()
threads = [threading.Thread(target=kind, daemon=True) for kind in (read, fork)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print("ended")
"""


def test_threads_that_read_generators_do_not_wait_for_each_other_for_ever():
    command = [sys.executable, "-c", THREADS, "in turn"]  # "at once" hangs, with Python 3.11
    assert subprocess.run(command, timeout=120, capture_output=True, text=True, check=True).stdout == "ended\n"
