"""The line protocol of `run`, both ends: [`Contestant`] starts a process and asks it for rounds, [`serve`] is the loop of the
peers written in Python. Judges nothing; the processes measure themselves and are only asked one at a time.
"""

import json
import os
import select
import subprocess
import sys
import time

import psutil

START_SECONDS_MAX = 300
ROUND_SECONDS_MAX = 900


class Contestant:
    """A process that has its model loaded and waits for `go FIRST COUNT`."""

    def __init__(self, name, command, log, environment):
        self.name, self.command = name, [str(word) for word in command]
        self.log = log
        started = time.monotonic()
        self.process = subprocess.Popen(
            self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=open(log, "w"), env=environment
        )
        self.buffer = b""
        self.about = self.answer(START_SECONDS_MAX)
        if not self.about.get("ready"):
            raise RuntimeError(f'{name} began with {self.about}, not with "ready"')
        self.start_seconds = time.monotonic() - started

    def go(self, first, count):
        self.process.stdin.write(f"go {first} {count}\n".encode())
        self.process.stdin.flush()
        started = time.monotonic()
        reply = self.answer(ROUND_SECONDS_MAX)
        reply["wall_seconds"] = time.monotonic() - started
        if reply["rows"] != count:
            raise RuntimeError(f"{self.name} was asked for {count} rows and did {reply['rows']}")
        return reply

    def answer(self, seconds):
        deadline = time.monotonic() + seconds
        while b"\n" not in self.buffer:
            readable, _, _ = select.select([self.process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            more = os.read(self.process.stdout.fileno(), 1 << 20) if readable else b""
            if not more:
                said = "ended" if readable else f"did not answer within {seconds} s"
                raise RuntimeError(f"{self.name} {said}; its log is {self.log}, its command {' '.join(self.command)}")
            self.buffer += more
        line, self.buffer = self.buffer.split(b"\n", 1)
        return json.loads(line)

    def family(self):
        ours = psutil.Process(self.process.pid)
        return [ours, *ours.children(recursive=True)]

    def cpu_seconds(self):
        return sum(sum(process.cpu_times()[:2]) for process in self.family())

    def resident_bytes(self):
        return sum(process.memory_info().rss for process in self.family())

    def stop(self):
        """End of input asks it to end; it has ten seconds to do so."""
        family = self.family() if self.process.poll() is None else []
        self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            pass
        for process in family:
            if process.is_running():
                process.kill()
        self.process.wait()


def serve(about, run_rows):
    """Answers `go FIRST COUNT` with `run_rows(first, count)` until the input ends. Call `quiet` before anything prints."""
    lines = quiet()
    print(json.dumps({"ready": True, **about}), file=lines, flush=True)
    for line in sys.stdin:
        _, first, count = line.split()
        print(json.dumps(run_rows(int(first), int(count))), file=lines, flush=True)


_lines = None


def quiet():
    """Keeps standard output for the protocol: what libraries print goes to standard error from here on."""
    global _lines
    if _lines is None:
        _lines = os.fdopen(os.dup(1), "w", encoding="utf-8")
        os.dup2(2, 1)
    return _lines
