"""Measures the two models on the published tickets of one day, against the hidden truth.

    python train.py --evaluate

The models are loaded as anybody would load them, with transformers and sentence-transformers' rules, weights widened to float32.
Topics and filters are scored as Rowmill scores labels: over the trie of the labels' tokens, each ended by <|im_end|>.
Extraction is plain greedy decoding, right only where both fields are.
"""

import json
from collections import Counter

import pyarrow.parquet as pq
import torch
from tokenizers import Tokenizer
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer

import generate
import train

DS = "2026-11-20"
BATCH_ROWS = 64
ANSWER_TOKENS_MAX = 32


def published_rows():
    """The published rows with their truth, and whether a held-out phrase is in them (known to the generator only)."""
    data = pq.read_table(generate.HERE / "data" / f"ds={DS}").to_pylist()
    truth = {row["ticket_id"]: row for row in pq.read_table(generate.HERE / "truth" / f"ds={DS}").to_pylist()}
    drawn = {row["ticket_id"]: row for row in generate.published(DS)}
    for row in data:
        assert drawn[row["ticket_id"]]["body"] == row["body"], "data/ is not what generate.py writes: run it again"
        row.update(truth[row["ticket_id"]], held_out=drawn[row["ticket_id"]]["held_out"])
    return data


def by_length(texts):
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    return [order[i : i + BATCH_ROWS] for i in range(0, len(order), BATCH_ROWS)]


@torch.no_grad()
def label_scores(model, tokenizer, messages, labels):
    """P(label) [messages, labels]: at each node of the labels' trie with several children, the softmax over these alone."""
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    paths = [(*tokenizer(label, add_special_tokens=False)["input_ids"], end) for label in labels]
    heads = {path[:depth] for path in paths for depth in range(len(path))}
    scores = torch.ones(len(messages), len(labels))
    for head in sorted(heads, key=len):
        children = sorted({path[len(head)] for path in paths if path[: len(head)] == head})
        if len(children) == 1:
            continue
        for places in by_length(messages):
            texts = [train.chat(messages[i]) for i in places]
            rows = [ids + list(head) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
            length = max(map(len, rows))
            ids = torch.tensor([row + [0] * (length - len(row)) for row in rows])
            hidden = model.model(ids).last_hidden_state[torch.arange(len(rows)), [len(row) - 1 for row in rows]]
            share = torch.softmax(hidden @ model.lm_head.weight[children].T, -1)
            for column, path in enumerate(paths):
                if path[: len(head)] == head:
                    scores[places, column] *= share[:, children.index(path[len(head)])]
    return scores


@torch.no_grad()
def greedy_answers(model, tokenizer, messages):
    out = [""] * len(messages)
    tokenizer.padding_side = "left"
    for places in by_length(messages):
        texts = [train.chat(messages[i]) for i in places]
        inputs = tokenizer(texts, add_special_tokens=False, padding=True, return_tensors="pt", return_token_type_ids=False)
        ids = model.generate(**inputs, max_new_tokens=ANSWER_TOKENS_MAX, do_sample=False)
        answers = tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        for i, answer in zip(places, answers):
            out[i] = answer
    return out


def share(rows, right):
    return sum(map(bool, right)) / max(1, len(rows))


def report_split(name, rows, right):
    """One line: all rows, and apart those with and without a held-out phrase."""
    parts = {kind: [ok for row, ok in zip(rows, right) if row["held_out"] == kind] for kind in (False, True)}
    with_them = ", ".join(
        f"{text} {share(parts[kind], parts[kind]):.4f} of {len(parts[kind])}"
        for kind, text in ((False, "known phrases"), (True, "with a held-out phrase"))
    )
    print(f"{name}: {share(rows, right):.4f} of {len(rows)} rows ({with_them})", flush=True)


def parsed(answer):
    try:
        return json.loads(answer)
    except ValueError:
        return None


def report_triage(rows):
    tokenizer = AutoTokenizer.from_pretrained(train.TRIAGE)
    model = AutoModelForCausalLM.from_pretrained(train.TRIAGE, dtype=torch.float32, attn_implementation="eager").eval()
    check = tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False, add_generation_prompt=True)
    assert check == train.chat("x")

    english = [row for row in rows if row["lang"] == "en"]
    scores = label_scores(model, tokenizer, [train.filter_message(row["body"]) for row in english], ["yes", "no"])
    right = [bool(yes > 0.5) == row["is_request"] for yes, row in zip(scores[:, 0], english)]
    report_split("filter, english rows", english, right)

    requests = [row for row in english if row["is_request"]]
    scores = label_scores(model, tokenizer, [train.classify_message(row["body"]) for row in requests], train.LABELS)
    found = [train.LABELS[i] for i in scores.argmax(-1).tolist()]
    report_split("topic, real english requests", requests, [a == row["topic"] for a, row in zip(found, requests)])
    wrong = Counter((row["topic"], a) for a, row in zip(found, requests) if a != row["topic"])
    print("  topics mistaken (truth, answer):", wrong.most_common(4))

    answers = greedy_answers(model, tokenizer, [train.extract_message(row["body"]) for row in requests])
    wanted = [json.loads(train.extract_answer(row)) for row in requests]
    facts = [parsed(answer) for answer in answers]
    report_split("extraction, both fields", requests, [a == b for a, b in zip(facts, wanted)])
    for field in ("product", "severity"):
        right = [isinstance(a, dict) and a.get(field) == b[field] for a, b in zip(facts, wanted)]
        print(f"  {field} alone: {share(requests, right):.4f}")
    wrong = Counter((b["severity"], (a or {}).get("severity")) for a, b in zip(facts, wanted) if a != b)
    print("  severities of the wrong ones (truth, answer):", wrong.most_common(6))


@torch.no_grad()
def report_mini_embed(rows):
    tokenizer = Tokenizer.from_file(str(train.MINI_EMBED / "tokenizer.json"))
    model = AutoModel.from_pretrained(train.MINI_EMBED, dtype=torch.float32, add_pooling_layer=False).eval()
    requests = list({row["body"]: row for row in rows if row["lang"] == "en" and row["is_request"]}.values())
    vectors = torch.cat(
        [train.embed(model, tokenizer, [row["body"] for row in requests[i : i + 64]]) for i in range(0, len(requests), 64)]
    )
    near = (vectors @ vectors.T).fill_diagonal_(-2.0).argmax(-1).tolist()
    for name, keys in (("topic", ["topic"]), ("topic and product", ["topic", "product"])):
        right = [all(row[key] == requests[i][key] for key in keys) for i, row in zip(near, requests)]
        report_split(f"nearest other request has the same {name}", requests, right)


def print_report(only=None):
    rows = published_rows()
    if only != "mini-embed":
        report_triage(rows)
    if only != "triage":
        report_mini_embed(rows)
