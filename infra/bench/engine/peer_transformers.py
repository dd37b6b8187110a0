"""Hugging Face transformers on bfloat16 weights: `generate` in batches of up to 64 rows for free text; for labels one forward pass
over the rows' own tokens after a shared prefix computed once, and the best of the labels' first tokens. It enforces no JSON
schema, so it does not take part in extraction. Speaks the protocol of `run`.
"""

import argparse
import copy
import time

import torch
from transformers import AutoModelForCausalLM, logging

import workloads
from protocol import quiet, serve

LABEL_BATCH_ROWS, TEXT_BATCH_ROWS = 16, 64


class Model:
    def __init__(self, folder, task):
        self.task = task
        self.prompts = workloads.Prompts(folder)
        self.batch_rows = LABEL_BATCH_ROWS if task["labels"] else TEXT_BATCH_ROWS
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, attn_implementation="sdpa").eval()
        if task["labels"]:
            one = lambda label: self.prompts.tokenizer(label, add_special_tokens=False)["input_ids"][0]
            self.label_ids = torch.tensor([one(label) for label in task["labels"]])
            self.shared = self.prompts.shared(task)
            with torch.no_grad():
                ids = torch.tensor([self.prompts.ids(task, task["values"][0])[: self.shared]])
                self.prefix = self.model(input_ids=ids, use_cache=True, logits_to_keep=1).past_key_values

    def padded(self, rows):
        """Left-padded ids and their mask, `[rows, longest]`."""
        longest = max(len(row) for row in rows)
        ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
        return ids, torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])

    def choose(self, rows):
        """The label of each row, as an index."""
        ids, mask = self.padded([row[self.shared :] for row in rows])
        cache = copy.deepcopy(self.prefix)
        cache.batch_repeat_interleave(len(rows))
        mask = torch.cat([torch.ones(len(rows), self.shared, dtype=mask.dtype), mask], dim=1)
        positions = (mask.cumsum(1) - 1)[:, self.shared :].clamp(min=0)
        output = self.model(input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, logits_to_keep=1)
        return output.logits[:, -1, self.label_ids].argmax(1).tolist()

    def answer(self, rows):
        """Answers of one batch, and how many tokens were written for them."""
        if self.task["labels"]:
            return [self.task["labels"][label] for label in self.choose(rows)], 0
        ids, mask = self.padded(rows)
        tokens = self.task["tokens_max"]
        output = self.model.generate(
            input_ids=ids, attention_mask=mask, do_sample=False, max_new_tokens=tokens, min_new_tokens=tokens, pad_token_id=0
        )[:, ids.shape[1] :]
        return self.prompts.tokenizer.batch_decode(output), output.numel()

    def run_rows(self, first, count):
        values = workloads.rows(self.task, first, count)
        started = time.monotonic()
        prompts = [self.prompts.ids(self.task, value) for value in values]
        order = sorted(range(count), key=lambda index: len(prompts[index]))
        answers, written = [None] * count, 0
        with torch.no_grad():
            for at in range(0, count, self.batch_rows):
                batch = order[at : at + self.batch_rows]
                texts, tokens = self.answer([prompts[index] for index in batch])
                written += tokens
                for index, text in zip(batch, texts):
                    answers[index] = text
        return {
            "rows": count,
            "seconds": time.monotonic() - started,
            "input_tokens": sum(len(prompt) for prompt in prompts),
            "output_tokens": written,
            "answers": answers,
        }


def main():
    quiet()
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True, help="a model folder")
    parser.add_argument("--workload", required=True)
    parser.add_argument("--threads", type=int, required=True)
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    torch.set_num_threads(arguments.threads)
    model = Model(arguments.model, workloads.read(arguments.workload))
    serve({}, model.run_rows)


if __name__ == "__main__":
    main()
