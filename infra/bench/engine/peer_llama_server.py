"""llama.cpp as a batch user would call it: `llama-server` with slots and its prompt cache, an asynchronous client that keeps
every slot busy, chat completions with a grammar or a JSON schema. Speaks the protocol of `run`.

A trained model's first choice mostly fits the grammar; noise's never does, and then llama.cpp tries the whole vocabulary
against the grammar, and it fills the white space that a JSON schema leaves open. So two more ways to ask are offered, which
are kinder to llama.cpp than any user could be: `--constraint compact` allows no white space, and `--constraint none` with
`--tokens N` takes N tokens of free text for an answer, as if constraints cost nothing.
"""

import argparse
import asyncio
import ctypes
import json
import math
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

import aiohttp

import workloads
from protocol import quiet, serve

SLACK_TOKENS = 16
CHECKED_PROMPTS = 8
GRAMMAR_ROWS_MULTIPLE = 8
PR_SET_PDEATHSIG = 1
# workloads.EXTRACT_SCHEMA, written the shortest way.
COMPACT_FORM = r"""root ::= "{\"product\":\"" [a-z ]{32} "\",\"summary\":\"" [a-z ]{88} "\",\"days\":" days ",\"urgent\":" urgent "}"
days ::= "0" | [1-9] [0-9]?
urgent ::= "true" | "false"
"""


def post(url, body):
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as response:
        return json.load(response)


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def end_with_parent():
    """The kernel ends this process when the one that started it ends, however that ends."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class Server:
    def __init__(self, arguments, task):
        self.task, self.slots, self.constraint = task, arguments.slots, arguments.constraint
        self.tokens = arguments.tokens or task["tokens_max"]
        self.prompts = workloads.Prompts(arguments.folder)
        self.states = tempfile.TemporaryDirectory()
        longest = max(len(self.prompts.ids(task, value)) for value in task["values"][:256])
        context = 128 * math.ceil((longest + self.tokens + SLACK_TOKENS) / 128)
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        command = [arguments.server, "--model", arguments.model, "--port", str(port), "--threads", str(arguments.threads)]
        command += ["--parallel", str(self.slots), "--ctx-size", str(self.slots * context), "--cache-ram", "0"]
        command += ["--slot-save-path", self.states.name, *arguments.flags.split()]
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=sys.stderr, preexec_fn=end_with_parent)
        self.wait()
        self.check_prompts()
        self.fill_slots()

    def wait(self):
        while True:
            if self.process.poll() is not None:
                raise SystemExit(f"llama-server ended with {self.process.returncode}")
            try:
                with urllib.request.urlopen(f"{self.url}/health"):
                    return
            except OSError:
                time.sleep(0.1)

    def check_prompts(self):
        """The server's prompts must be the very tokens of the model folder's tokenizer and chat template."""
        for value in self.task["values"][:CHECKED_PROMPTS]:
            rendered = post(f"{self.url}/apply-template", {"messages": workloads.messages(self.task, value)})["prompt"]
            options = {"content": rendered, "add_special": True, "parse_special": True}
            if post(f"{self.url}/tokenize", options)["tokens"] != self.prompts.ids(self.task, value):
                raise SystemExit("llama-server makes other prompt tokens than the model's tokenizer")

    def fill_slots(self):
        """Every slot gets the prompt of one row in its cache, as it would have after the first minute of a long run."""
        body = self.body(self.task["values"][-1]) | {"id_slot": 0}
        post(f"{self.url}/v1/chat/completions", body)
        post(f"{self.url}/slots/0?action=save", {"filename": "slot"})
        for slot in range(1, self.slots):
            post(f"{self.url}/slots/{slot}?action=restore", {"filename": "slot"})

    def body(self, value):
        body = {"messages": workloads.messages(self.task, value), "temperature": 0, "cache_prompt": True}
        body["max_tokens"] = self.tokens
        if self.constraint == "none":
            return body | {"ignore_eos": True}
        if self.task["labels"]:
            return body | {"grammar": "root ::= " + " | ".join(json.dumps(label) for label in self.task["labels"])}
        if self.constraint == "compact":
            return body | {"grammar": COMPACT_FORM}
        form = {"name": "form", "strict": True, "schema": self.task["schema"]}
        return body | {"response_format": {"type": "json_schema", "json_schema": form}}

    async def answer_all(self, values):
        queue = list(reversed(list(enumerate(values))))
        replies = [None] * len(values)

        async def worker(session):
            while queue:
                index, value = queue.pop()
                async with session.post(f"{self.url}/v1/chat/completions", json=self.body(value)) as response:
                    response.raise_for_status()
                    replies[index] = await response.json()

        timeout = aiohttp.ClientTimeout(total=None)
        async with aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(limit=0)) as session:
            await asyncio.gather(*(worker(session) for _ in range(self.slots)))
        return replies

    def run_rows(self, first, count):
        values = workloads.rows(self.task, first, count)
        started = time.monotonic()
        replies = asyncio.run(self.answer_all(values))
        seconds = time.monotonic() - started
        usage = [reply["usage"] for reply in replies]
        return {
            "rows": count,
            "seconds": seconds,
            "input_tokens": sum(one["prompt_tokens"] for one in usage),
            "cached_tokens": sum(one["prompt_tokens_details"]["cached_tokens"] for one in usage),
            "output_tokens": sum(one["completion_tokens"] for one in usage),
            "answers": None if self.constraint == "none" else [reply["choices"][0]["message"]["content"] for reply in replies],
        }


def main():
    quiet()
    parser = argparse.ArgumentParser()
    parser.add_argument("--server", required=True, help="llama-server")
    parser.add_argument("--model", required=True, help="a GGUF file")
    parser.add_argument("--folder", required=True, help="the same model's folder, for its tokenizer")
    parser.add_argument("--workload", required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--slots", type=int, required=True)
    parser.add_argument("--flags", default="", help="further flags of llama-server")
    parser.add_argument("--constraint", choices=["schema", "compact", "none"], required=True)
    parser.add_argument("--tokens", type=int, help="tokens of an answer at most, if not the workload's")
    arguments = parser.parse_args()
    server = Server(arguments, workloads.read(arguments.workload))
    try:
        # Rounds without a rest keep all slots busy to the end. Grammars take so long that fewer rows have to do.
        multiple = server.slots if server.constraint == "none" else min(server.slots, GRAMMAR_ROWS_MULTIPLE)
        serve({"rows_multiple": multiple, "slots": server.slots, "flags": arguments.flags}, server.run_rows)
    finally:
        server.process.terminate()
        server.process.wait()


if __name__ == "__main__":
    main()
