"""Workers for test_isolation.py: they run in processes of their own, and do there what a bad decoder does."""

import os
import signal
import time

from deepfake_ray.processes import memory_limit


class Fragile:
    """Works on lists of words; the words `crash` and `hang` are fatal, `slow` takes 2 s, `once` only the first time;
    `greedy` and `free` take 600 MiB."""

    def __init__(self, folder):
        if folder == "refuse":
            raise ValueError("no such folder")
        if folder == "hang":
            time.sleep(60)
        starts = os.path.join(folder, "deaths while starting")
        if os.path.exists(starts):
            with open(starts) as file:
                left = int(file.read())
            with open(starts, "w") as file:
                file.write(str(left - 1))
            if left:
                os.kill(os.getpid(), signal.SIGKILL)
        self.folder = folder

    def __call__(self, words, items):
        done = {}
        for position in range(len(words)):
            if position in items.given_up:
                continue
            with items.at(position):
                done[position] = self.work(words[position])
        if "die" in words:
            os._exit(3)
        return [items.given_up.get(position) or done[position] for position in range(len(words))]

    def work(self, word):
        if word == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        if word == "hang":
            time.sleep(60)
        if word == "slow":
            time.sleep(2)
        if word == "once":
            mark = os.path.join(self.folder, "once")
            if not os.path.exists(mark):
                open(mark, "w").close()
                os.kill(os.getpid(), signal.SIGKILL)
        if word == "greedy":
            try:
                return f"got {len(bytearray(600 << 20))} bytes"
            except MemoryError:
                return "out of memory"
        if word == "free":
            with memory_limit.lifted():
                return str(len(bytearray(600 << 20)))
        if word == "error":
            raise KeyError("an ordinary one")
        return word.upper()
