"""What a GPU can do at best, for infra/bench/gpu: arithmetic over what it multiplies and moves. Measures nothing."""

# Of one H200: a copy of 16 GB counted both ways, and a bf16 product of 8192 cubed.
CEILINGS = {"bytes": 4.3e12, "flops": 790e12, "source": "an H200, measured elsewhere"}


def roofs(ceiling, sizes):
    """The least seconds that a token, a row or a step can take, by counting."""
    m, l = sizes["mini"], sizes["big"]
    text, prompt, output, shared = (sizes[name] for name in ["text", "prompt", "output", "shared"])
    layer = 4 * m["hidden"] ** 2 + 2 * m["hidden"] * m["inner"]
    token = m["layers"] * (2 * layer + 4 * text * m["hidden"])
    # Each product and what stands between reads and writes its tokens' states once, in bf16.
    states = m["layers"] * 2 * (3 + 1 + 1 + 3 + 2 + 3) * m["hidden"] + m["layers"] * 2 * 4 * m["inner"]
    embedding = text * (token / ceiling["flops"] + states / ceiling["bytes"])
    size = l["hidden"] // l["heads"]
    body = l["layers"] * (l["hidden"] * size * 2 * (l["heads"] + l["kv_heads"]) + 3 * l["hidden"] * l["inner"])
    head = l["hidden"] * l["vocab"]
    attention = lambda seen: 4 * seen * l["heads"] * size * l["layers"]
    prefill = (2 * body + attention(prompt / 2)) / ceiling["flops"]
    kv_bytes = 2 * 2 * l["kv_heads"] * size * l["layers"]
    seen = prompt + output / 2
    def step(rows, weight=2):
        """`weight`: bytes of one."""
        weights = max(weight * (body + head) / ceiling["bytes"], 2 * rows * (body + head) / ceiling["flops"])
        return weights + rows * seen * kv_bytes / ceiling["bytes"]
    own = prompt - shared
    choice = own * (2 * body + attention(shared + own / 2)) / ceiling["flops"]
    return {"embedding": embedding, "prefill": prefill, "step": step, "choice": choice}
