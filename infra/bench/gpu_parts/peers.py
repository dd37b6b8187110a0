"""PyTorch on the same GPU, for infra/bench/gpu: what sentence-transformers and transformers make of the same models, and what a copy
and a product take. Each function is run in a process of its own, which says what it measured as JSON; none of them knows Rowmill.
"""

import time


def device(torch):
    return "cuda" if torch.cuda.is_available() else "cpu"


def timed(torch, run, seconds):
    """Seconds of one call, when it is warm."""
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    run()
    wait()
    begun, calls = time.perf_counter(), 0
    while calls == 0 or time.perf_counter() - begun < seconds:
        run()
        wait()
        calls += 1
    return (time.perf_counter() - begun) / calls


def peer_ceilings(_, sizes):
    import torch

    a, b = (torch.randn(sizes["square"], sizes["square"], device=device(torch), dtype=torch.bfloat16) for _ in range(2))
    block = torch.empty(sizes["copied"], device=device(torch), dtype=torch.uint8)
    other = torch.empty_like(block)
    flops = 2 * sizes["square"] ** 3 / timed(torch, lambda: torch.mm(a, b), sizes["peer seconds"] / 2)
    moved = 2 * block.numel() / timed(torch, lambda: other.copy_(block), sizes["peer seconds"] / 2)
    return {"flops": flops, "bytes": moved, "source": "measured here with PyTorch"}


def peer_embedding(folder, sizes):
    """What sentence-transformers computes: states in bf16, their mean, length 1. Without its tokenising and sorting."""
    import torch
    from transformers import BertModel

    model = BertModel.from_pretrained(folder, dtype=torch.bfloat16, attn_implementation="sdpa").to(device(torch)).eval()
    fastest = 0.0
    for rows in sizes["peer texts"]:
        ids = torch.randint(0, sizes["mini"]["vocab"], (rows, sizes["text"]), device=device(torch))
        mask = torch.ones_like(ids)
        def run():
            with torch.inference_mode():
                states = model(input_ids=ids, attention_mask=mask).last_hidden_state
                return torch.nn.functional.normalize(states.float().mean(1), dim=1).cpu()
        fastest = max(fastest, rows / timed(torch, run, sizes["peer seconds"]))
    return fastest


def peer_sentence_transformers(folder, sizes):
    from sentence_transformers import SentenceTransformer, models
    import torch

    words = models.Transformer(folder, model_args={"dtype": torch.bfloat16}, max_seq_length=sizes["text"])
    model = SentenceTransformer(modules=[words, models.Pooling(sizes["mini"]["hidden"])], device=device(torch))
    texts = [f"{row:06d}" + "a" * (sizes["text"] - 6) for row in range(sizes["sentences"])]
    run = lambda: model.encode(texts, batch_size=1024, normalize_embeddings=True)
    return len(texts) / timed(torch, run, sizes["peer seconds"])


def llama(folder, sizes):
    import torch
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, attn_implementation="sdpa").to(device(torch)).eval()
    return torch, model, lambda rows: torch.randint(0, sizes["big"]["vocab"], (rows, sizes["prompt"]), device=device(torch))


def answers(sizes):
    return {"max_new_tokens": sizes["output"], "min_new_tokens": sizes["output"], "do_sample": False, "pad_token_id": 0}


def peer_generate(folder, sizes):
    """All prompts of one length, all answers of one length: nothing is padded, nobody waits."""
    torch, model, prompts = llama(folder, sizes)
    fastest = 0.0
    for rows in sizes["choice rows"]:
        ids = prompts(rows)
        run = lambda: model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **answers(sizes))
        fastest = max(fastest, rows * sizes["output"] / timed(torch, run, sizes["peer seconds"]))
    return fastest


def peer_generate_batch(folder, sizes):
    """transformers' continuous batching."""
    from transformers import GenerationConfig

    torch, model, prompts = llama(folder, sizes)
    config = GenerationConfig(eos_token_id=-1, **answers(sizes))
    inputs = prompts(sizes["prompts"]).tolist()
    run = lambda: model.generate_batch(inputs=inputs, generation_config=config, progress_bar=False)
    return len(inputs) * sizes["output"] / timed(torch, run, sizes["peer seconds"] / 5)


def peer_choice(folder, sizes):
    """The last token's logits of whole prompts: nothing is shared."""
    torch, model, prompts = llama(folder, sizes)
    fastest = 0.0
    for rows in sizes["choice rows"]:
        ids = prompts(rows)
        def run():
            with torch.inference_mode():
                return model(input_ids=ids, logits_to_keep=1, use_cache=False).logits[:, -1, :4].float().cpu()
        fastest = max(fastest, rows / timed(torch, run, sizes["peer seconds"]))
    return fastest


PEERS = {
    "ceilings": peer_ceilings, "embedding": peer_embedding, "sentence-transformers": peer_sentence_transformers,
    "generate": peer_generate, "generate_batch": peer_generate_batch, "choice": peer_choice,
}
