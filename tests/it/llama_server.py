"""llama.cpp's own server over the weights of a model folder (Llama architecture, byte-level BPE), which are written as GGUF
before, number for number. Says where it listens, as the other servers of these tests do, and serves until it is ended.

    python llama_server.py MODEL_FOLDER GGUF_FILE
"""

import json
import socket
import sys
import threading
from pathlib import Path

import gguf
import numpy as np
import xllamacpp

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "executor/engine/tests/fixtures"))
import llama_gguf  # noqa: E402: how the engine's own fixtures are written

SLOTS = 4

def tensors(file):
    """The tensors of a safetensors file, widened to 32 bits: its header's length, its header, its numbers."""
    data = file.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    for name, entry in json.loads(data[8:start]).items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        raw = data[start + begin : start + end]
        if entry["dtype"] == "BF16":
            # The upper half of a 32-bit float.
            values = (np.frombuffer(raw, np.uint16).astype(np.uint32) << 16).view(np.float32)
        elif entry["dtype"] == "F32":
            values = np.frombuffer(raw, np.float32)
        else:
            raise SystemExit(f"{name} is {entry['dtype']}")
        yield name, values.reshape(entry["shape"])


def write_gguf(folder, path):
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    words = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(folder.name)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    llama_gguf.describe(writer, config)
    vocabulary, merges = llama_gguf.vocabulary(tokenizer)
    special = {token["content"] for token in tokenizer["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(vocabulary)
    writer.add_token_types([gguf.TokenType.CONTROL if token in special else gguf.TokenType.NORMAL for token in vocabulary])
    writer.add_token_merges(merges)
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_eot_token_id(config["eos_token_id"])
    writer.add_pad_token_id(config["pad_token_id"])
    writer.add_add_bos_token(False)
    writer.add_chat_template(words["chat_template"])

    for name, value in llama_gguf.tensors(tensors(folder / "model.safetensors"), config):
        writer.add_tensor(name, np.ascontiguousarray(value, dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def main():
    folder, file = Path(sys.argv[1]), Path(sys.argv[2])
    write_gguf(folder, file)
    context = json.loads((folder / "config.json").read_text(encoding="utf-8"))["max_position_embeddings"]
    params = xllamacpp.CommonParams()
    params.model.path = str(file)
    params.n_parallel = SLOTS
    params.n_ctx = SLOTS * context
    params.cpuparams.n_threads = 2
    params.hostnames = ["127.0.0.1"]
    params.port = free_port()
    server = xllamacpp.Server(params)
    print(f"Running on {server.listening_address}", file=sys.stderr, flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
