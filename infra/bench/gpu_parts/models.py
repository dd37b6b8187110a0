"""Models of noise for infra/bench/gpu: folders with safetensors in bf16, and GGUF files with their blocks. What they answer means
nothing, what it costs is the same. Refuses no shape.
"""

import array
import functools
import json
import random
import struct


def bert(hidden, inner, layers, heads, vocab):
    config = {
        "architectures": ["BertModel"], "model_type": "bert", "hidden_size": hidden, "intermediate_size": inner,
        "num_hidden_layers": layers, "num_attention_heads": heads, "vocab_size": vocab, "type_vocab_size": 2,
        "max_position_embeddings": 512, "hidden_act": "gelu", "layer_norm_eps": 1e-12,
    }
    tensors = {
        "embeddings.word_embeddings.weight": [vocab, hidden], "embeddings.position_embeddings.weight": [512, hidden],
        "embeddings.token_type_embeddings.weight": [2, hidden], "embeddings.LayerNorm.weight": [hidden],
        "embeddings.LayerNorm.bias": [hidden],
    }
    square = ["attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"]
    sizes = {**{name: (hidden, hidden) for name in square}, "intermediate.dense": (inner, hidden), "output.dense": (hidden, inner)}
    for layer in range(layers):
        root = f"encoder.layer.{layer}."
        for name, (rows, columns) in sizes.items():
            tensors |= {f"{root}{name}.weight": [rows, columns], f"{root}{name}.bias": [rows]}
        for name in ["attention.output.LayerNorm", "output.LayerNorm"]:
            tensors |= {f"{root}{name}.weight": [hidden], f"{root}{name}.bias": [hidden]}
    return config, tensors


def decoder(hidden, inner, layers, heads, kv_heads, vocab, head_dim=None, family="Llama"):
    size = head_dim or hidden // heads
    config = {
        "architectures": [f"{family}ForCausalLM"], "model_type": family.lower(), "hidden_size": hidden,
        "intermediate_size": inner, "num_hidden_layers": layers, "num_attention_heads": heads,
        "num_key_value_heads": kv_heads, "head_dim": size, "vocab_size": vocab, "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "tie_word_embeddings": True, "eos_token_id": 256, "bos_token_id": 256,
        "hidden_act": "silu",
    }
    if family == "Gemma2":
        config |= {"sliding_window": 64, "query_pre_attn_scalar": size, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
    tensors = {"model.embed_tokens.weight": [vocab, hidden], "model.norm.weight": [hidden]}
    for layer in range(layers):
        root = f"model.layers.{layer}."
        tensors |= {f"{root}{name}.weight": [hidden] for name in ["input_layernorm", "post_attention_layernorm"]}
        for name, count in [("q", heads), ("k", kv_heads), ("v", kv_heads)]:
            tensors[f"{root}self_attn.{name}_proj.weight"] = [count * size, hidden]
            if family == "Qwen2":
                tensors[f"{root}self_attn.{name}_proj.bias"] = [count * size]
        if family == "Qwen3":
            tensors |= {f"{root}self_attn.{name}_norm.weight": [size] for name in "qk"}
        if family == "Gemma2":
            tensors |= {f"{root}{name}_feedforward_layernorm.weight": [hidden] for name in ["pre", "post"]}
        tensors[f"{root}self_attn.o_proj.weight"] = [hidden, heads * size]
        tensors |= {f"{root}mlp.{name}_proj.weight": [inner, hidden] for name in ["gate", "up"]}
        tensors[f"{root}mlp.down_proj.weight"] = [hidden, inner]
    return config, tensors


@functools.cache
def noise(count, spread, seed):
    """bf16 numbers around 0: the upper halves of floats."""
    dice = random.Random(seed)
    floats = array.array("f", (dice.uniform(-spread, spread) for _ in range(count))).tobytes()
    out = bytearray(2 * count)
    out[0::2], out[1::2] = floats[2::4], floats[3::4]
    return bytes(out)


def write_model(folder, model, spread):
    config, tensors = model
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>", "pad_token": "</s>", "tokenizer_class": "PreTrainedTokenizerFast"}))
    (folder / "tokenizer.json").write_text(json.dumps(byte_tokenizer()))
    header, end = {}, 0
    for name, shape in tensors.items():
        numbers = shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + 2 * numbers]}
        end += 2 * numbers
    text = json.dumps(header)
    text += " " * (-len(text) % 8)
    # A prime length, so that no two rows of a matrix are the same.
    block, ones = noise(1_299_709, spread, 20261122), b"\x80\x3f"
    place = 0
    with open(folder / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text.encode())
        for name, facts in header.items():
            left = facts["data_offsets"][1] - facts["data_offsets"][0]
            if "norm" in name.lower() and name.endswith("weight"):
                file.write(ones * (left // 2))
                continue
            while left > 0:
                piece = block[place : place + left]
                file.write(piece)
                left -= len(piece)
                place = (place + len(piece)) % len(block)
    return folder


def byte_tokenizer():
    """One token a byte, in GPT-2's table of characters, and an end."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    characters = {byte: chr(byte) for byte in plain} | {byte: chr(256 + at) for at, byte in enumerate(others)}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    end = {"id": 256, "content": "</s>", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    return {
        "version": "1.0", "truncation": None, "padding": None, "added_tokens": [end], "normalizer": None, "pre_tokenizer": level,
        "post_processor": None, "decoder": level,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
            "fuse_unk": False, "byte_fallback": False, "vocab": {characters[byte]: byte for byte in range(256)}, "merges": [],
        },
    }


# ggml's types: its number, numbers of a block and their bytes, and the scales in it (where, and what makes the numbers reach 1).
TYPES = {
    "Q4_0": (2, 32, 18, {0: 1 / 8}), "Q4_1": (3, 32, 20, {0: 2 / 15, 2: -1}), "Q5_0": (6, 32, 22, {0: 1 / 16}),
    "Q5_1": (7, 32, 24, {0: 2 / 31, 2: -1}), "Q8_0": (8, 32, 34, {0: 1 / 127}), "Q2_K": (10, 256, 84, {80: 2 / 45, 82: 1 / 15}),
    "Q3_K": (11, 256, 110, {108: 1 / 128}), "Q4_K": (12, 256, 144, {0: 2 / 945, 2: 1 / 63}),
    "Q5_K": (13, 256, 176, {0: 2 / 1953, 2: 1 / 63}), "Q6_K": (14, 256, 210, {208: 1 / 4064}),
}
GGUF_NAMES = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "model.embed_tokens": "token_embd", "model.norm": "output_norm",
}


def q8_0(_):
    return "Q8_0"


def q4_k_m(name):
    """As llama.cpp mixes them: what is most sensitive has more bits."""
    return "Q6_K" if name.startswith("token_embd") or "attn_v" in name or "ffn_down" in name else "Q4_K"


@functools.cache
def blocks(kind, count, spread):
    """Blocks of noise around 0."""
    _, _, size, scales = TYPES[kind]
    dice = random.Random(f"{kind} {count}")
    out = bytearray(dice.randbytes(count * size))
    for block in range(count):
        for offset, scale in scales.items():
            struct.pack_into("<e", out, block * size + offset, spread * scale * dice.uniform(0.5, 1))
    return bytes(out)


def gguf_text(text):
    return struct.pack("<Q", len(text.encode())) + text.encode()


def gguf_entry(key, value):
    """A key of the header with a whole number, a real one, a text, or a list of whole numbers or texts."""
    kinds = {int: (4, lambda x: struct.pack("<I", x)), float: (6, lambda x: struct.pack("<f", x)), str: (8, gguf_text)}
    if isinstance(value, list):
        kind, pack = kinds[type(value[0])] if value else kinds[str]
        return gguf_text(key) + struct.pack("<IIQ", 9, kind, len(value)) + b"".join(map(pack, value))
    kind, pack = kinds[type(value)]
    return gguf_text(key) + struct.pack("<I", kind) + pack(value)


def gguf_header(config, tensors):
    family = config["model_type"]
    shape = {
        "block_count": config["num_hidden_layers"], "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"], "feed_forward_length": config["intermediate_size"],
        "attention.head_count": config["num_attention_heads"], "attention.head_count_kv": config["num_key_value_heads"],
        "attention.key_length": config["head_dim"], "attention.value_length": config["head_dim"],
        "rope.dimension_count": config["head_dim"], "rope.freq_base": config["rope_theta"],
        "attention.layer_norm_rms_epsilon": config["rms_norm_eps"], "vocab_size": config["vocab_size"],
    }
    words = sorted(byte_tokenizer()["model"]["vocab"].items(), key=lambda word: word[1])
    words = [word for word, _ in words] + ["</s>"]
    unused = config["vocab_size"] - len(words)
    metadata = {
        "general.architecture": family, **{f"{family}.{key}": value for key, value in shape.items()},
        "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "gpt-2", "tokenizer.ggml.merges": [],
        "tokenizer.ggml.tokens": words + [f"<unused{number}>" for number in range(unused)],
        "tokenizer.ggml.token_type": [1] * (len(words) - 1) + [3] + [5] * unused, "tokenizer.ggml.eos_token_id": 256,
    }
    entries = b"".join(gguf_entry(key, value) for key, value in metadata.items())
    return b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata)) + entries


def gguf_name(name):
    if not name.startswith("model.layers."):
        stem, _, kind = name.rpartition(".")
        return f"{GGUF_NAMES[stem]}.{kind}"
    _, _, layer, rest = name.split(".", 3)
    stem, _, kind = rest.rpartition(".")
    return f"blk.{layer}.{GGUF_NAMES[stem]}.{kind}"


def write_gguf(path, model, spread, kind_of):
    """A GGUF file of a decoder; `kind_of` says the type of a matrix by its name. Vectors are floats: ones, and small biases."""
    config, shapes = model
    tensors, end = [], 0
    for name, shape in ((gguf_name(name), shape) for name, shape in shapes.items()):
        if len(shape) == 1:
            value = struct.pack("<f", 1.0 if "norm" in name else spread)
            number, unit, left = 0, value * 1024, 4 * shape[0]
        else:
            number, numbers, size, _ = TYPES[kind_of(name)]
            # A prime number of blocks, so that no two rows of a matrix are the same.
            unit, left = blocks(kind_of(name), 9973, spread), shape[0] * shape[1] // numbers * size
        tensors.append((name, shape[::-1], number, end, unit, left))
        end += left + -left % 32
    header = gguf_header(config, tensors)
    for name, shape, number, place, _, _ in tensors:
        header += gguf_text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, number, place)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        file.write(header + bytes(-len(header) % 32))
        for _, _, _, _, unit, left in tensors:
            padding = bytes(-left % 32)
            while left > 0:
                file.write(unit[:left])
                left -= len(unit)
            file.write(padding)
    return path
