"""Makes Rowmill's price snapshot from LiteLLM's `model_prices_and_context_window.json` (MIT), which its wheel on PyPI holds:

    pip download litellm==1.109.1 --no-deps && unzip litellm-*.whl '*prices*'
    python3 infra/prices/trim.py litellm/model_prices_and_context_window_backup.json litellm-1.109.1 2026-11-22 \
        > executor/managed/src/pricing/snapshot.json

Keeps text and embedding models of the providers that Rowmill reaches, and of each only what a price needs. Numbers are
copied as they are written, never through floating point.
"""

import json
import re
import sys
from decimal import Decimal

PROVIDERS = {
    "openai", "azure", "anthropic", "bedrock", "bedrock_converse", "gemini", "groq", "deepseek", "mistral", "together_ai",
    "fireworks_ai", "vertex_ai-language-models", "vertex_ai-anthropic_models", "vertex_ai-embedding-models",
}
KEPT = re.compile(
    r"^((input_cost_per_token|output_cost_per_token|cache_read_input_token_cost|cache_creation_input_token_cost)"
    r"(_above_\d+k_tokens)?(_batches|_flex)?|regional_processing_uplift_multiplier_(eu|us)|litellm_provider|deprecation_date)$"
)
# Models that Rowmill sends no rows to, and names of price classes rather than of models.
LEFT_OUT = re.compile(
    r"audio|realtime|transcribe|tts|image|live|search|moderation|ocr|video|rerank|guard|computer-use|deep-research|robotics|"
    r"voxtral|codex|-pro-preview|twelvelabs|marengo|pegasus|ai21|titan-text|j2-|up-to|-to-|cyber|daybreak|chat-latest|"
    r"gov-|/(ada|command|container)|commitment|month|1024|learnlm|medlm|nano-banana|omni|vision|gemma-2|gpt-3\.5|gpt-4-|"
    r"gpt-4$|o1|o3-deep|global-standard|claude-3|claude-v|claude-instant|-instruct-v0|llama2|llama-v2|llama-2|starcoder|"
    r"^bedrock/|routers/|draft|-vl-|-\d+[km]-|muse|ultramarine|us-gov|code-?llama|phind|spot$|mixtral|"
    r"yi-|dolphin|mythomax|hermes|phi-|zephyr|capybara|toppy|chronos|fare|japanese|stablecode|elyza|snorkel|rolm"
)
# Fireworks lists hundreds of models, most of them to be deployed by oneself at another price.
FIREWORKS = re.compile(r"deepseek-v[34]|glm-[45]|gpt-oss|kimi|llama-v3p[13]-\d+b-instruct|llama4|minimax|qwen3p|qwen3-embedding")


def written(number):
    """A price as short decimal text: a JSON number that no reader has to round."""
    text = format(number.normalize(), "f")
    return text if "." in text or len(text) < 16 else str(number)


def trim(entries, date):
    kept = {}
    for name, entry in entries.items():
        if entry.get("litellm_provider") not in PROVIDERS or entry.get("mode") not in {"chat", "embedding"}:
            continue
        if entry["litellm_provider"] == "fireworks_ai" and not FIREWORKS.search(name):
            continue
        if LEFT_OUT.search(name) or entry.get("deprecation_date", "9999") <= date or not entry.get("input_cost_per_token"):
            continue
        kept[name] = {key: value for key, value in sorted(entry.items()) if KEPT.match(key)}
    return kept


def main():
    path, origin, date = sys.argv[1:]
    with open(path, encoding="utf-8") as file:
        entries = json.load(file, parse_float=Decimal, parse_int=Decimal)
    lines = []
    for name, entry in sorted(trim(entries, date).items()):
        fields = ", ".join(
            f"{json.dumps(key)}: {written(value) if isinstance(value, Decimal) else json.dumps(value)}"
            for key, value in entry.items()
        )
        lines.append(f"  {json.dumps(name)}: {{{fields}}}")
    print("{")
    print(f'  "_snapshot": {{"origin": {json.dumps(origin)}, "date": {json.dumps(date)}, "licence": "MIT"}},')
    print(",\n".join(lines))
    print("}")


if __name__ == "__main__":
    main()
