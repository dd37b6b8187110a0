"""Writes a reference for `rowmill models verify`: texts, and what a model answers to them in Hugging Face transformers, or, if
it makes vectors, in sentence-transformers. Weights are widened to float32 first, so no number depends on the arithmetic of
a narrow type. Needs memory for the widened weights, and time for some 30 passes over each text.

    pip install torch transformers sentence-transformers
    python export_reference.py MODEL reference.json
    rowmill models verify --source MODEL --reference reference.json

MODEL is a folder or a name on the hub. With --texts FILE, one text a line; without, the texts below.

Decoders see each text as it stands, without template or special tokens: `top_logits` are the 20 highest logits after the
last token, `logit_range` is highest minus lowest of all, `greedy_ids` are the next tokens by argmax, past special tokens and up
to the first step that rounding could turn. Encoders and classifiers see what sentence-transformers or the tokenizer makes
of the text, special tokens included; `ids` says what that was.
"""

import argparse
import json
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

TOP_LOGITS = 20
GREEDY_TOKENS = 24
# A step whose two best logits are closer than this part of their range is left out, with those after it.
CLOSE = 2e-4

TEXTS = [
    "Hello",
    "I was charged twice for the same month, please refund the second invoice.",
    "How do I export all my files at once? The button is grey since yesterday.",
    "Grüße aus Zürich: ça coûte 12 €, señor. 東京は寒い。 Київ, Ελλάδα, القاهرة.",
    "It broke again 😀🚀 and again!! Call +41 44 000 00 00, order #A-1234567, see https://example.org/a?b=1",
    "def count(rows):\n    total = 0\n    for row in rows:\n        total += 1\n    return total\n",
    "   leading,  double   and trailing spaces \t and\ttabs\n\n\nand empty lines  ",
    "The parcel was to come on Monday. On Tuesday nobody knew where it was, on Wednesday somebody did, and on Thursday it lay "
    "in the rain before a door that was not mine. I wrote to you then, and to the driver's office, and to the shop; each of "
    "you sent me to one of the others. What I should like to know is simple: who pays for a printer that has stood in water, "
    "when does a dry one come, and why does the page that follows parcels say that all is well? I have a photograph.",
]


def kind_of(model):
    architectures = AutoConfig.from_pretrained(model).architectures or [""]
    if architectures[0].endswith("ForCausalLM"):
        return "decoder"
    return "classifier" if architectures[0].endswith("ForSequenceClassification") else "encoder"


def numbers(values, digits=7):
    return [round(float(value), digits) for value in values]


def decoder_items(name, dtype, texts):
    tokenizer = AutoTokenizer.from_pretrained(name)
    model = AutoModelForCausalLM.from_pretrained(name, dtype=dtype, attn_implementation="eager").eval()
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        logits = last_logits(model, ids)
        top = logits.topk(TOP_LOGITS)
        spread = float(logits.max() - logits.min())
        greedy = greedy_ids(model, ids, spread)
        pairs = [[int(token), value] for token, value in zip(top.indices, numbers(top.values))]
        yield {"text": text, "ids": ids, "top_logits": pairs, "logit_range": spread, "greedy_ids": greedy}


def last_logits(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0, -1].float()


def greedy_ids(model, ids, spread):
    """The next ids. Each step computes everything again: no cache takes part."""
    out = []
    while len(out) < GREEDY_TOKENS:
        best = last_logits(model, ids + out).topk(2)
        if float(best.values[0] - best.values[1]) < CLOSE * spread:
            break
        out.append(int(best.indices[0]))
    return out


def encoder_items(name, dtype, texts):
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(name, device="cpu", model_kwargs={"dtype": dtype})
    seen = model.preprocess if hasattr(model, "preprocess") else model.tokenize
    for text in texts:
        ids = seen([text])["input_ids"][0].tolist()
        vector = model.encode(text, normalize_embeddings=True, convert_to_tensor=True).float()
        yield {"text": text, "ids": ids, "vector": numbers(vector)}


def classifier_items(name, dtype, texts):
    tokenizer = AutoTokenizer.from_pretrained(name)
    model = AutoModelForSequenceClassification.from_pretrained(name, dtype=dtype).eval()
    for text in texts:
        encoded = tokenizer(text, truncation=True, return_tensors="pt")
        with torch.no_grad():
            logits = numbers(model(**encoded).logits[0].float())
        labelled = {model.config.id2label[at]: logit for at, logit in enumerate(logits)}
        yield {"text": text, "ids": encoded["input_ids"][0].tolist(), "logits": labelled}


def main():
    parser = argparse.ArgumentParser(description="Writes a reference for `rowmill models verify`.")
    parser.add_argument("model", help="a folder, or a name on the hub")
    parser.add_argument("reference", type=Path, help="the file to write")
    parser.add_argument("--kind", choices=["decoder", "encoder", "classifier"], help="if its configuration does not tell")
    parser.add_argument("--texts", type=Path, help="a file with one text a line")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    arguments = parser.parse_args()
    texts = arguments.texts.read_text(encoding="utf-8").splitlines() if arguments.texts else TEXTS
    kind = arguments.kind or kind_of(arguments.model)
    export = {"decoder": decoder_items, "encoder": encoder_items, "classifier": classifier_items}[kind]
    items = list(export(arguments.model, getattr(torch, arguments.dtype), texts))
    reference = {"kind": kind, "dtype": arguments.dtype, "items": items}
    arguments.reference.write_text(json.dumps(reference, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
