"""Writes what was measured as Markdown. Computes medians and ratios, judges nothing."""

import json
import statistics
import subprocess

from groups import ROWMILL

TITLES = {
    "classify": "classify: five labels, a shared template of 312 tokens, about 64 tokens of its own a row",
    "extract": "extract: JSON of four fields, a shared template of 197 tokens, about 61 tokens of its own a row",
    "generate": "generate: about 124 tokens in, 64 tokens of free text out",
    "embed": "embed: all-MiniLM-L6-v2, texts of 8 to 400 tokens, half of them shorter than 53",
}
HEAD = """# Rowmill's engine beside its peers

Written by `infra/bench/engine/run`; the raw numbers are in `results.json`. Rates are medians over rounds, with the lowest and
the highest; a ratio is Rowmill's rate over the peer's in the same round. Above 1, Rowmill is faster.
"""
NOTES = """## How

- Contestants of a group stay loaded and idle; one works at a time, in alternating order. A round has as many rows as fill it.
- Decoders have random weights in the shape of Llama-3.2-1B, so answers mean nothing; their shape is checked, Rowmill's by what
  runs it: an answer of another shape is a failed row. Prompts are the same tokens for all: every contestant's count was
  compared with the tokenizer's, but Rowmill's of free text: that is cut at 64 tokens, which the engine reports as an error of
  the row, without counts.
- `llama-server` is built natively, has its prompt cache on and the template in the cache of every slot before the first round;
  where a table says *tuned*, slots and flags are the fastest of those that `--tune` tried, else it has 16 slots and its own
  batch sizes. Rowmill computes the template anew in every round, or as its engine does.
- Random weights burden llama.cpp's grammars: no first choice fits, so it tries the whole vocabulary, and `json_schema` leaves
  room for white space, which noise fills. The lines called *bound* answer the same prompts with free tokens instead: what
  llama.cpp would reach with that many tokens if constraints cost it nothing.
- transformers reuses a cache of the template, and enforces no schema. Embedding includes tokenisation.
"""


# Rounds from which a lowest and a highest mean something.
ROUNDS_MIN = 5


def spread(values, digits):
    low, high = min(values), max(values)
    return f"{statistics.median(values):.{digits}f} ({low:.{digits}f}–{high:.{digits}f})"


def rates(facts, key):
    return [one[key] / one["seconds"] for one in facts["rounds"]]


def settings(about):
    shown = {"slots": "slots", "batch_rows": "batch", "flags": "", "dtype": ""}
    return " ".join(f"{word} {about[key]}".strip() for key, word in shown.items() if about.get(key))


def line(name, facts, ours):
    rows = sum(one["rows"] for one in facts["rounds"])
    speed = rates(facts, "rows")
    cells = [name, settings(facts["about"]), str(facts["rows"]), spread(speed, 1 if min(speed) >= 10 else 2)]
    for key in ("input_tokens", "output_tokens"):
        unknown = key == "input_tokens" and any(one.get("truncated") for one in facts["rounds"])
        cells.append("not told" if unknown else f"{sum(one[key] for one in facts['rounds']) / rows:.1f}")
    written = rates(facts, "output_tokens")
    cells.append(f"{statistics.median(written):.0f}" if any(written) else "")
    against = ""
    if ours and facts is not ours:
        against = spread([one / other for one, other in zip(rates(ours, "rows"), speed)], 2)
    cells.append(against)
    disturbed = max(one["others_share"] for one in facts["rounds"])
    cells.append(f"{facts['resident_bytes'] / 2**30:.1f}")
    cells.append(f"{disturbed:.0%}")
    return "| " + " | ".join(cells) + " |"


def table(group):
    columns = ["contestant", "settings", "rows a round", "rows/s", "tokens in a row", "tokens out a row", "tokens out/s"]
    columns += ["Rowmill is faster by", "GiB resident", "others' CPU at most"]
    lines = ["| " + " | ".join(columns) + " |", "|---|---|" + "---:|" * (len(columns) - 2)]
    ours = group["contestants"].get(ROWMILL)
    lines += [line(name, facts, ours) for name, facts in group["contestants"].items()]
    kinds = sorted(set(group.get("warnings", [])))
    lines += ["", *(f"- Note: {warning}" for warning in kinds)] if kinds else []
    cosines = {name: facts["cosine_min"] for name, facts in group["contestants"].items() if "cosine_min" in facts}
    lines += ["", f"Lowest cosine between vectors of {', '.join(cosines)}: {min(cosines.values()):.6f}"] if cosines else []
    return lines


def circumstances(group):
    """When and how a group was measured, in one line."""
    about = next(iter(group["contestants"].values()))
    rounds = len(about["rounds"])
    words = [group["date"], f"Rowmill of {group['build']}" if ROWMILL in group["contestants"] else "without Rowmill"]
    words += [f"{rounds} rounds" + (", too few to say much of the spread" if rounds < ROUNDS_MIN else "")]
    words += [f"load of the minute before the start {group['load_before']:.2f}"]
    if any("llama" in name for name in group["contestants"]):
        words.append("llama-server tuned" if group["tuned"] else "llama-server not tuned")
    return "; ".join(words) + "."


def markdown(facts):
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    lines = [HEAD]
    if facts["quick"]:
        lines += ["**A quick trial with tiny models: no figure here means anything.**", ""]
    lines += [
        f"- {facts['processor']}; {facts['threads']} threads",
        f"- {versions}",
    ]
    lines += [f"- FAILED, and not measured: {failure}" for failure in facts["failed"]]
    for group in facts["groups"]:
        rows = f", {group['rows_asked']} rows at a time" if group["rows_asked"] else ""
        lines += ["", f"## {TITLES[group['workload']]}{rows} — {group['numbers']}", "", circumstances(group), ""]
        lines += table(group)
    if facts["batched_bench"]:
        lines += ["", "## llama-batched-bench, 128 tokens in and 64 out, tokens/s", ""]
        lines += ["| numbers | sequences | prefill | decode | together |", "|---|---:|---:|---:|---:|"]
        for one in facts["batched_bench"]:
            speeds = " | ".join(f"{one[key]:.0f}" for key in ("speed_pp", "speed_tg", "speed"))
            lines.append(f"| {one['numbers']} | {one['pl']} | {speeds} |")
    return "\n".join([*lines, "", NOTES])


def write(facts, folder):
    """Writes results.json, and RESULTS.md with remarks.md, which people write, at its end. Returns the text."""
    (folder / "results.json").write_text(json.dumps(facts, indent=1, default=str) + "\n", encoding="utf-8")
    remarks = folder / "remarks.md"
    text = markdown(facts) + ("\n" + remarks.read_text(encoding="utf-8") if remarks.exists() else "")
    (folder / "RESULTS.md").write_text(text, encoding="utf-8")
    return text


def batched_bench(peers, model, options):
    """llama.cpp's own figures for the shape of `generate`: the server above cannot be far from them."""
    found = []
    for numbers in ("BF16", "Q8_0"):
        command = [peers / "llama.cpp/bin/llama-batched-bench", "-m", peers / f"models/{model}-{numbers.lower()}.gguf"]
        command += ["-npp", "128", "-ntg", "64", "-npl", "16", "-c", "4096", "-t", str(options.threads)]
        answer = subprocess.run([*command, "--output-format", "jsonl"], capture_output=True, text=True, check=True)
        lines = [line for line in answer.stdout.splitlines() if line.startswith("{")]
        found += [json.loads(line) | {"numbers": numbers} for line in lines]
    return found
