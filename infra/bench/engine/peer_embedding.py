"""sentence-transformers and ONNX Runtime on all-MiniLM-L6-v2: texts in, mean-pooled vectors of length 1 out, tokenisation
included. Both sort texts by length and pad to a batch's longest; the batch size is the fastest of a few, tried at the start.
Speaks the protocol of `run`; `answers` are the first vectors, so that the contestants can be compared.
"""

import argparse
import time

import numpy as np

import workloads
from protocol import quiet, serve

TRIED_ROWS = 128
SHOWN_VECTORS = 16


class OnnxRuntime:
    batches = (8, 16, 32, 64)

    def __init__(self, arguments):
        import onnxruntime
        from tokenizers import Tokenizer

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = arguments.threads
        options.inter_op_num_threads = 1
        providers = ["CPUExecutionProvider"]
        self.session = onnxruntime.InferenceSession(arguments.model + ".onnx", options, providers=providers)
        self.tokenizer = Tokenizer.from_file(f"{arguments.model}/tokenizer.json")
        self.tokenizer.no_padding()
        self.tokenizer.enable_truncation(512)

    def embed(self, texts, batch_rows):
        rows = [encoding.ids for encoding in self.tokenizer.encode_batch_fast(texts)]
        order = sorted(range(len(rows)), key=lambda index: -len(rows[index]))
        vectors = np.empty((len(rows), 384), np.float32)
        for at in range(0, len(rows), batch_rows):
            batch = order[at : at + batch_rows]
            longest = len(rows[batch[0]])
            ids = np.zeros((len(batch), longest), np.int64)
            mask = np.zeros_like(ids)
            for place, index in enumerate(batch):
                ids[place, : len(rows[index])] = rows[index]
                mask[place, : len(rows[index])] = 1
            inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
            states = self.session.run(["states"], inputs)[0]
            pooled = np.einsum("btd,bt->bd", states, mask.astype(np.float32), optimize=True)
            vectors[batch] = pooled / np.linalg.norm(pooled, axis=1, keepdims=True)
        return vectors


class SentenceTransformers:
    batches = (16, 32, 64)

    def __init__(self, arguments):
        import torch
        from sentence_transformers import SentenceTransformer

        torch.set_num_threads(arguments.threads)
        dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[arguments.dtype]
        self.model = SentenceTransformer(arguments.model, device="cpu", model_kwargs={"dtype": dtype})
        if self.model.max_seq_length != 512:
            raise SystemExit(f"sentence-transformers cuts at {self.model.max_seq_length} tokens, not at 512")
        self.tokenizer = self.model.tokenizer

    def embed(self, texts, batch_rows):
        vectors = self.model.encode(
            texts, batch_size=batch_rows, normalize_embeddings=True, show_progress_bar=False, convert_to_tensor=True
        )
        return vectors.float().numpy()


def main():
    quiet()
    parser = argparse.ArgumentParser()
    parser.add_argument("--library", choices=["onnxruntime", "sentence-transformers"], required=True)
    parser.add_argument("--model", required=True, help="a model folder; its ONNX export lies beside it")
    parser.add_argument("--workload", required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--dtype", choices=["f32", "bf16"], default="f32")
    arguments = parser.parse_args()
    task = workloads.read(arguments.workload)
    peer = (OnnxRuntime if arguments.library == "onnxruntime" else SentenceTransformers)(arguments)
    texts = lambda first, count: [workloads.user_text(task, value) for value in workloads.rows(task, first, count)]

    def seconds(batch_rows):
        started = time.monotonic()
        peer.embed(texts(-TRIED_ROWS, TRIED_ROWS), batch_rows)
        return time.monotonic() - started

    seconds(peer.batches[0])
    batch_rows = min(peer.batches, key=seconds)
    prompts = workloads.Prompts(arguments.model)
    lengths = {value: len(prompts.ids(task, value)) for value in task["values"]}

    def run_rows(first, count):
        rows = texts(first, count)
        started = time.monotonic()
        vectors = peer.embed(rows, batch_rows)
        took = time.monotonic() - started
        return {
            "rows": count,
            "seconds": took,
            "input_tokens": sum(lengths[value] for value in workloads.rows(task, first, count)),
            "output_tokens": 0,
            "answers": vectors[:SHOWN_VECTORS].tolist(),
        }

    serve({"batch_rows": batch_rows}, run_rows)


if __name__ == "__main__":
    main()
