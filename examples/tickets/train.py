"""Trains the two small models of this example from scratch, on the CPU, from invented tickets (generate.py).

    python train.py                    # both models, about half an hour on two cores; writes models/
    python train.py --only mini-embed
    python train.py --evaluate         # measures what is in models/ against truth/ds=2026-11-20

`triage` is a Llama of two million parameters that answers exactly the messages Rowmill sends: they are read from
sql/prompts/, not copied. `mini-embed` is a BERT of one million parameters, trained so that tickets of the same topic and product
lie near each other. Both are toys: they know the words of phrases.py and nothing else.
"""

import argparse
import json
import math
import random
import re
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

import generate

HERE = Path(__file__).resolve().parent
PROMPTS = HERE.parents[1] / "sql" / "prompts"
TRIAGE = HERE / "models" / "triage"
MINI_EMBED = HERE / "models" / "mini-embed"

LABELS = ["billing", "bug", "how-to", "other"]
QUESTION = "Is this a real customer request? "
FIELDS = "- product (string)\n- severity (integer)"
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TRAIN_SEED = 7  # generate.PUBLISHED has the other seeds
CORPUS_SEED = 8
EMBED_SEED = 9


# ---- the messages ------------------------------------------------------------------------------------------------


def prompt(name, **holes):
    """The user message of an AI function; a line whose hole is empty is left out."""
    lines = []
    for line in (PROMPTS / f"{name}.txt").read_text(encoding="utf-8").removesuffix("\n").split("\n"):
        hole = re.fullmatch(r"\{(\w+)\}", line)
        if not hole:
            lines.append(line)
        elif holes.get(hole[1]):
            lines.append(holes[hole[1]])
    return "\n".join(lines)


def classify_message(body, labels=LABELS):
    return prompt("classify", labels="\n".join(f"- {label}" for label in labels), input=body)


def filter_message(body):
    return prompt("filter", input=QUESTION + body)


def extract_message(body):
    return prompt("extract", fields=FIELDS, input=body)


def extract_answer(ticket):
    return json.dumps({"product": ticket["product"], "severity": ticket["severity"]}, separators=(",", ":"))


def chat(message):
    return f"<|im_start|>user\n{message}<|im_end|>\n<|im_start|>assistant\n"


# ---- training samples of triage ----------------------------------------------------------------------------------


def without_some_words(rng, body):
    """Drops a few words, so that no single word of a phrase is needed to know its topic."""
    words = body.split(" ")
    return " ".join(word for word in words if rng.random() > 0.08) or body


def sample(rng):
    """(message, answer) for one of the three functions."""
    ticket = generate.draw_ticket(rng, use_held_out=False)
    draw = rng.random()
    if draw < 0.3 and ticket["is_request"]:
        body = without_some_words(rng, ticket["body"]) if rng.random() < 0.4 else ticket["body"]
        labels = list(LABELS)
        if rng.random() < 0.5:
            rng.shuffle(labels)
        if rng.random() < 0.15:
            dropped = rng.choice([label for label in labels if label != ticket["topic"]])
            labels.remove(dropped)
        return classify_message(body, labels), ticket["topic"]
    if draw < 0.8 and ticket["is_request"]:
        return extract_message(ticket["body"]), extract_answer(ticket)
    body = without_some_words(rng, ticket["body"]) if rng.random() < 0.4 else ticket["body"]
    return filter_message(body), "yes" if ticket["is_request"] else "no"


def answer_ids(rng, tokenizer, answer):
    """Tokens of the answer. A decoder held to a grammar may meet other token borders than the usual ones, so for part of the
    samples the JSON is cut where a grammar would cut it."""
    if answer.startswith("{") and rng.random() < 0.4:
        pieces = [piece for piece in re.split(r'(\{"product":|,"severity":|\}|")', answer) if piece]
        return [token for piece in pieces for token in tokenizer.encode(piece, add_special_tokens=False).ids]
    return tokenizer.encode(answer, add_special_tokens=False).ids


def batches(seed, tokenizer, batch_rows):
    """Endless (ids [rows, length], answer mask [rows, length]); rows of like length share a batch."""
    rng = random.Random(seed)
    end = tokenizer.token_to_id("<|im_end|>")
    while True:
        samples = [sample(rng) for _ in range(batch_rows * 16)]
        prompts = tokenizer.encode_batch_fast([chat(message) for message, _ in samples], add_special_tokens=False)
        rows = []
        for encoded, (_, answer) in zip(prompts, samples):
            answer = answer_ids(rng, tokenizer, answer) + [end]
            rows.append((encoded.ids + answer, len(encoded.ids)))
        rows.sort(key=lambda row: len(row[0]))
        chunks = [rows[i : i + batch_rows] for i in range(0, len(rows), batch_rows)]
        rng.shuffle(chunks)
        for chunk in chunks:
            length = max(len(ids) for ids, _ in chunk)
            ids = torch.zeros(len(chunk), length, dtype=torch.long)
            answers = torch.zeros(len(chunk), length, dtype=torch.bool)
            for i, (row, start) in enumerate(chunk):
                ids[i, : len(row)] = torch.tensor(row)
                answers[i, start : len(row)] = True
            yield ids, answers


# ---- triage ------------------------------------------------------------------------------------------------------


def corpus(seed, tickets):
    rng = random.Random(seed)
    for _ in range(tickets):
        ticket = generate.draw_ticket(rng, use_held_out=False)
        yield ticket["body"]
        yield from (message for message, _ in [sample(rng)])
        yield extract_answer(ticket)
        yield from [*LABELS, "yes", "no"]  # so that labels are few tokens


def triage_tokenizer():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=3000,
        special_tokens=SPECIALS,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(CORPUS_SEED, 8000), trainer)
    return tokenizer


def write_json(path, value):
    path.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def triage_files(tokenizer):
    TRIAGE.mkdir(parents=True, exist_ok=True)
    ids = {token: tokenizer.token_to_id(token) for token in SPECIALS}
    config = {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": None,
        "eos_token_id": ids["<|im_end|>"],
        "head_dim": 32,
        "hidden_act": "silu",
        "hidden_size": 192,
        "initializer_range": 0.02,
        "intermediate_size": 512,
        "max_position_embeddings": 1024,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": 6,
        "num_hidden_layers": 4,
        "num_key_value_heads": 2,
        "pad_token_id": ids["<|endoftext|>"],
        "rms_norm_eps": 1e-5,
        "rope_scaling": None,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": tokenizer.get_vocab_size(),
    }
    write_json(TRIAGE / "config.json", config)
    stop_ids = [ids["<|im_end|>"], ids["<|endoftext|>"]]
    generation = {"do_sample": False, "eos_token_id": stop_ids, "pad_token_id": ids["<|endoftext|>"]}
    write_json(TRIAGE / "generation_config.json", generation)
    added = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    token_config = {
        "added_tokens_decoder": {str(i): {"content": token, **added} for token, i in ids.items()},
        "bos_token": None,
        "chat_template": CHATML,
        "clean_up_tokenization_spaces": False,
        "eos_token": "<|im_end|>",
        "model_max_length": 1024,
        "pad_token": "<|endoftext|>",
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    write_json(TRIAGE / "tokenizer_config.json", token_config)
    tokenizer.save(str(TRIAGE / "tokenizer.json"))


def learning_rate(step, steps, peak):
    warmup = max(1, steps // 25)
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) + 1e-6


def optimiser(model):
    decayed = [weight for weight in model.parameters() if weight.ndim == 2]
    plain = [weight for weight in model.parameters() if weight.ndim != 2]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True)


class Progress:
    """Runs the schedule: sets the learning rate, prints a line now and then, stops early where the time is up."""

    def __init__(self, name, steps, peak, minutes_max):
        self.name, self.steps, self.peak = name, steps, peak
        self.started, self.seconds_max = time.time(), minutes_max * 60
        self.average, self.done = None, 0.0

    def set_rate(self, opt, step):
        # Late on a busy machine, the schedule ends with the clock instead of with the count.
        self.done = min(1.0, max(step / self.steps, (time.time() - self.started) / self.seconds_max))
        for group in opt.param_groups:
            group["lr"] = learning_rate(self.done * self.steps, self.steps, self.peak)
        return self.done < 1.0

    def note(self, step, loss):
        self.average = loss if self.average is None else 0.98 * self.average + 0.02 * loss
        if (step + 1) % 100 == 0:
            each = (time.time() - self.started) / (step + 1)
            print(f"{self.name} step {step + 1}/{self.steps} loss {self.average:.4f} {each * 1000:.0f} ms/step", flush=True)


def train_triage(steps, minutes_max, sitting):
    """Sitting 0 begins with random weights; a later one goes on from models/triage, with other tickets and a lower rate."""
    if sitting == 0:
        tokenizer = triage_tokenizer()
        triage_files(tokenizer)
    else:
        tokenizer = Tokenizer.from_file(str(TRIAGE / "tokenizer.json"))
    torch.manual_seed(TRAIN_SEED)
    model = LlamaForCausalLM(LlamaConfig.from_pretrained(TRIAGE, attn_implementation="eager")).float()
    if sitting > 0:
        model.load_state_dict(load_file(TRIAGE / "model.safetensors"), strict=False)  # not lm_head: it is tied
    print(f"triage: {sum(weight.numel() for weight in model.parameters()) / 1e6:.2f} M parameters", flush=True)
    opt, progress = optimiser(model), Progress("triage", steps, 1.2e-3 if sitting else 2e-3, minutes_max)
    table = model.model.embed_tokens.weight
    for step, (ids, answers) in zip(range(steps), batches(TRAIN_SEED + 1000 * sitting, tokenizer, 32)):
        if not progress.set_rate(opt, step):
            break
        with torch.autocast("cpu", torch.bfloat16):
            # Right padding needs no mask under causal attention: no real token sees it.
            hidden = model.model(ids[:, :-1], use_cache=False).last_hidden_state
            wanted, targets = answers[:, 1:], ids[:, 1:]
            loss = F.cross_entropy((hidden[wanted] @ table.T).float(), targets[wanted])
            if sitting == 0 and progress.done < 0.2:  # early on the text itself teaches the words
                text = (targets != 0) & ~wanted & (torch.rand(targets.shape) < 0.3)
                loss = loss + 0.3 * F.cross_entropy((hidden[text] @ table.T).float(), targets[text])
        opt.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
        progress.note(step, loss.item())
    weights = {name: value.to(torch.bfloat16) for name, value in model.state_dict().items() if name != "lm_head.weight"}
    save_file(weights, TRIAGE / "model.safetensors", metadata={"format": "pt"})


# ---- mini-embed --------------------------------------------------------------------------------------------------


def embed_tokenizer():
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=3000, special_tokens=specials, initial_alphabet=[chr(i) for i in range(33, 127)], show_progress=False
    )
    tokenizer.train_from_iterator(corpus(CORPUS_SEED, 8000), trainer)
    cls, sep = tokenizer.token_to_id("[CLS]"), tokenizer.token_to_id("[SEP]")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[("[CLS]", cls), ("[SEP]", sep)],
    )
    return tokenizer


def embed_files(tokenizer):
    """The folder layout of sentence-transformers: a BERT, mean pooling, normalisation."""
    (MINI_EMBED / "1_Pooling").mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["BertModel"],
        "attention_probs_dropout_prob": 0.0,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "hidden_size": 128,
        "initializer_range": 0.02,
        "intermediate_size": 512,
        "layer_norm_eps": 1e-12,
        "max_position_embeddings": 256,
        "model_type": "bert",
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
        "pad_token_id": tokenizer.token_to_id("[PAD]"),
        "position_embedding_type": "absolute",
        "torch_dtype": "float32",
        "type_vocab_size": 2,
        "vocab_size": tokenizer.get_vocab_size(),
    }
    write_json(MINI_EMBED / "config.json", config)
    token_config = {
        "cls_token": "[CLS]",
        "do_lower_case": True,
        "mask_token": "[MASK]",
        "model_max_length": 256,
        "pad_token": "[PAD]",
        "sep_token": "[SEP]",
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": "[UNK]",
    }
    write_json(MINI_EMBED / "tokenizer_config.json", token_config)
    tokenizer.save(str(MINI_EMBED / "tokenizer.json"))
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    write_json(
        MINI_EMBED / "modules.json",
        [
            {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for i, (path, kind) in enumerate(modules)
        ],
    )
    write_json(MINI_EMBED / "sentence_bert_config.json", {"max_seq_length": 256, "do_lower_case": False})
    pooling = {
        "word_embedding_dimension": 128,
        "pooling_mode_cls_token": False,
        "pooling_mode_mean_tokens": True,
        "pooling_mode_max_tokens": False,
        "pooling_mode_mean_sqrt_len_tokens": False,
    }
    write_json(MINI_EMBED / "1_Pooling" / "config.json", pooling)


def embed(model, tokenizer, texts):
    """Unit vectors [texts, hidden]: mean over the real tokens, then normalised."""
    tokenizer.enable_truncation(256)
    encoded = tokenizer.encode_batch_fast(texts)
    length = max(len(one.ids) for one in encoded)
    ids, mask = torch.zeros(len(texts), length, dtype=torch.long), torch.zeros(len(texts), length)
    for i, one in enumerate(encoded):
        ids[i, : len(one.ids)] = torch.tensor(one.ids)
        mask[i, : len(one.ids)] = 1.0
    hidden = model(input_ids=ids, attention_mask=mask.long()).last_hidden_state
    mean = (hidden * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True)
    return F.normalize(mean.float(), dim=-1)


def embed_batch(rng, rows):
    """Bodies and their groups; two tickets attract each other where topic and product agree."""
    pairs = []
    while len(pairs) < rows:
        ticket = generate.draw_ticket(rng, use_held_out=False)
        body = without_some_words(rng, ticket["body"]) if rng.random() < 0.4 else ticket["body"]
        pairs.append((body, f"{ticket['topic']}/{ticket['product']}"))
    return [body for body, _ in pairs], [group for _, group in pairs]


def train_mini_embed(steps, minutes_max):
    tokenizer = embed_tokenizer()
    embed_files(tokenizer)
    torch.manual_seed(EMBED_SEED)
    rng = random.Random(EMBED_SEED)
    model = BertModel(BertConfig.from_pretrained(MINI_EMBED, attn_implementation="eager"))
    print(f"mini-embed: {sum(weight.numel() for weight in model.parameters()) / 1e6:.2f} M parameters", flush=True)
    opt, progress = optimiser(model), Progress("mini-embed", steps, 1e-3, minutes_max)
    for step in range(steps):
        if not progress.set_rate(opt, step):
            break
        texts, groups = embed_batch(rng, 192)
        same = torch.tensor([[a == b for b in groups] for a in groups]) & ~torch.eye(len(groups), dtype=torch.bool)
        with torch.autocast("cpu", torch.bfloat16):
            vectors = embed(model, tokenizer, texts)
        # Every other ticket of the batch is an example: of the same group attracts, of another repels (SupCon, 2020).
        logits = (vectors @ vectors.T / 0.07).masked_fill(torch.eye(len(groups), dtype=torch.bool), -1e9)
        log_share = F.log_softmax(logits, dim=-1)
        has = same.any(-1)
        loss = -((log_share * same).sum(-1)[has] / same.sum(-1)[has]).mean()
        opt.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        opt.step()
        progress.note(step, loss.item())
    weights = {name: value for name, value in model.state_dict().items() if not name.startswith("pooler")}
    save_file(weights, MINI_EMBED / "model.safetensors", metadata={"format": "pt"})


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", choices=["triage", "mini-embed"])
    parser.add_argument("--evaluate", action="store_true", help="train nothing, measure what is in models/")
    parser.add_argument("--sitting", type=int, default=0, help="1, 2, …: go on training triage from models/triage")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=6500, help="of triage; mini-embed takes a third")
    parser.add_argument("--minutes-max", type=float, default=20.0, help="for triage; mini-embed gets a fifth")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if not options.evaluate:
        if options.only != "mini-embed":
            train_triage(options.steps, options.minutes_max, options.sitting)
        if options.only != "triage":
            train_mini_embed(options.steps // 3, options.minutes_max / 5)
    import evaluate

    evaluate.print_report(options.only)


if __name__ == "__main__":
    main()
