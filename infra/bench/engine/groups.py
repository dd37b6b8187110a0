"""Which contestants meet over which workload, as command lines. One group shares a table and weights of one number type."""

import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROWMILL = "Rowmill"
# llama-server until `run --tune` has found better on this machine.
UNTUNED = {"slots": 16, "flags": ""}
EXTRACT_FREE_TOKENS = 40


@dataclass
class Group:
    workload: str
    numbers: str
    contestants: dict = field(default_factory=dict)

    @property
    def name(self):
        return f"{self.workload}-{self.numbers.lower()}"


def python(script, *arguments):
    return [sys.executable, HERE / script, *arguments]


class Commands:
    def __init__(self, peers, model, threads, tables, rowmill, tuned):
        self.models, self.server = peers / "models", peers / "llama.cpp/bin/llama-server"
        self.model, self.threads, self.tables = model, str(threads), tables
        self.rowmill_words, self.tuned = shlex.split(rowmill or ""), tuned

    def gguf(self, numbers):
        return self.models / f"{self.model}-{numbers.lower()}.gguf"

    def rowmill(self, workload, model, dtype):
        """Empty where there is no engine to measure: the peers can be tried without it."""
        if not self.rowmill_words:
            return {}
        return {ROWMILL: [*self.rowmill_words, "--model", model, "--workload", self.tables[workload], "--dtype", dtype]}

    def llama(self, workload, numbers, constraint, tokens=None, settings=None):
        settings = settings or self.tuned.get(f"{workload}-{numbers.lower()}", UNTUNED)
        command = python("peer_llama_server.py", "--server", self.server, "--model", self.gguf(numbers))
        command += ["--folder", self.models / self.model, "--workload", self.tables[workload]]
        command += ["--threads", self.threads, "--slots", str(settings["slots"]), f"--flags={settings['flags']}"]
        return [*command, "--constraint", constraint, *(["--tokens", str(tokens)] if tokens else [])]

    def transformers(self, workload):
        model = ["--model", self.models / self.model]
        return python("peer_transformers.py", *model, "--workload", self.tables[workload], "--threads", self.threads)

    def embedding(self, library, dtype):
        model = ["--model", self.models / "minilm", "--workload", self.tables["embed"]]
        return python("peer_embedding.py", "--library", library, *model, "--threads", self.threads, "--dtype", dtype)


def groups(commands):
    found = []
    for numbers in ("BF16", "Q8_0"):
        dtype = "bf16" if numbers == "BF16" else "auto"
        model = commands.models / commands.model if numbers == "BF16" else commands.gguf(numbers)
        ours = lambda workload: commands.rowmill(workload, model, dtype)
        hub = lambda workload: {"transformers": commands.transformers(workload)} if numbers == "BF16" else {}
        classify = {
            "llama-server, grammar": commands.llama("classify", numbers, "schema"),
            "llama-server, bound: 1 free token": commands.llama("classify", numbers, "none", 1),
        }
        # What a schema's grammar costs hardly depends on the weights' type: asked once, for it takes long.
        schema = {"llama-server, json_schema": commands.llama("extract", numbers, "schema")} if numbers == "Q8_0" else {}
        extract = schema | {
            "llama-server, grammar without white space": commands.llama("extract", numbers, "compact"),
            f"llama-server, bound: {EXTRACT_FREE_TOKENS} free tokens": commands.llama(
                "extract", numbers, "none", EXTRACT_FREE_TOKENS
            ),
        }
        generate = {"llama-server": commands.llama("generate", numbers, "none")}
        found.append(Group("classify", numbers, ours("classify") | classify | hub("classify")))
        found.append(Group("extract", numbers, ours("extract") | extract))
        found.append(Group("generate", numbers, ours("generate") | generate | hub("generate")))
    for numbers in ("F32", "BF16"):
        dtype = numbers.lower()
        onnx = {"ONNX Runtime": commands.embedding("onnxruntime", dtype)} if numbers == "F32" else {}
        peers = onnx | {"sentence-transformers": commands.embedding("sentence-transformers", dtype)}
        # `auto` is what a job gets: 16 bits of each f32 number where the processor multiplies tiles.
        ours = commands.rowmill("embed", commands.models / "minilm", "auto" if numbers == "F32" else dtype)
        found.append(Group("embed", numbers, ours | peers))
    return found
