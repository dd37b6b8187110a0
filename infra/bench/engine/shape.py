"""Whether answers have the right shape. With random weights none can be right, so nothing here asks for that; only vectors,
whose weights are real, are compared.
"""

import json
import re

import numpy as np

COSINE_MIN = {"F32": 0.9999, "BF16": 0.99}


def fits(schema, value):
    """Whether a value is one of the flat objects that the workload's schema describes."""
    if not isinstance(value, dict) or list(value) != list(schema["properties"]):
        return False
    for name, rule in schema["properties"].items():
        one = value[name]
        if rule["type"] == "string" and not (isinstance(one, str) and re.search(rule["pattern"], one)):
            return False
        if rule["type"] == "integer" and not (type(one) is int and rule["minimum"] <= one <= rule["maximum"]):
            return False
        if rule["type"] == "boolean" and not isinstance(one, bool):
            return False
    return True


def is_valid(task, answer):
    if answer is None:
        return False
    if task["labels"]:
        return answer in task["labels"]
    if task["schema"]:
        try:
            return fits(task["schema"], json.loads(answer))
        except ValueError:
            return False
    return True


def check(task, reply):
    """Takes the answers out of a reply, except for vectors; says how many are valid, or `None` if none were given."""
    if task["task"] == "embed":
        return None
    answers = reply.pop("answers", None)
    if answers is None:
        return None
    return {"answers": len(answers), "valid": sum(is_valid(task, answer) for answer in answers), "example": answers[0]}


def compare(task, result):
    """All contestants must have read the prompts' very tokens; their vectors must point the same way. Notes what is odd, refuses
    what cannot be compared."""
    warnings = result.setdefault("warnings", [])
    for contestant, facts in result["contestants"].items():
        for one in facts["rounds"]:
            # Of answers that were cut the engine does not tell how many tokens they had in.
            if one["input_tokens"] != one["input_tokens_expected"] and not one.get("truncated"):
                warnings.append(f"{contestant} counts {one['input_tokens']} tokens in {one['input_tokens_expected']}")
            if one["shape"] and one["shape"]["valid"] < one["shape"]["answers"]:
                warnings.append(f"{contestant}: {one['shape']['valid']} of {one['shape']['answers']} answers are valid")
            if one.get("failed"):
                warnings.append(f"{contestant}: {one['failed']} rows of {one['rows']} failed")
            if one["wall_seconds"] > 1.02 * one["seconds"] + 0.3:
                warnings.append(f"{contestant} says {one['seconds']:.2f} s, it took {one['wall_seconds']:.2f} s")
    if task["task"] == "embed":
        vectors = {name: facts["rounds"][0].pop("answers", None) for name, facts in result["contestants"].items()}
        for facts in result["contestants"].values():
            for one in facts["rounds"]:
                one.pop("answers", None)
        missing = [name for name, rows in vectors.items() if not rows]
        if missing:
            raise RuntimeError(f"no vectors to compare of {', '.join(missing)}")
        given = {name: np.array(rows) for name, rows in vectors.items()}
        reference = given["ONNX Runtime"] if "ONNX Runtime" in given else given["sentence-transformers"]
        for contestant, rows in given.items():
            count = min(len(rows), len(reference))
            cosine = float((rows[:count] * reference[:count]).sum(1).min())
            result["contestants"][contestant]["cosine_min"] = cosine
            if cosine < COSINE_MIN[result["numbers"]]:
                raise RuntimeError(f"{contestant}'s vectors differ from the reference's: cosine {cosine}")
