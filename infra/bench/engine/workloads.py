"""The tables and tasks that all contestants get: seeded English-like texts, written as one JSON file a workload, which is the
file Rowmill's engine and the peers both read. Counts prompt tokens, so that each contestant's own count can be checked.

    {"task": "classify"|"extract"|"generate"|"embed", "system": str|null, "template": str with one `{0}`, "values": [str],
     "labels": [str]|null, "schema": {...}|null, "tokens_max": n}

A row's user message is `template` with its value in the hole. The labels differ in their first letter, so that a contestant
may stop once the label is decided.
"""

import json
import random
from pathlib import Path

SEED = 20261122
LABELS = ["billing", "crash", "delivery", "feature", "other"]
THINGS = """invoice account password order export report printer laptop phone screen battery charger router camera keyboard
monitor subscription refund parcel address discount contract ticket calendar message folder backup update license
statement receipt dashboard spreadsheet headset speaker cable adapter warranty password reminder signature""".split()
PEOPLE = "my colleague|our accountant|the driver|your support team|the new manager|a customer|my sister|our office".split("|")
DEEDS = """arrived two days late|stopped working after the last update|shows a blank page|was charged twice this month|
cannot be opened on the new machine|is missing from the list|keeps asking for a code|was sent to the wrong street|
would be easier to read in another colour|turns itself off in the evening|does not match the amount in the contract|
disappears when the window is closed""".replace("\n", "").split("|")
WISHES = """please send a new one|please tell me what to do next|could you add a button for this|i want my money back|
is there a way around it|who can look into this today|please change it before friday|i have waited long enough""".replace(
    "\n", ""
).split("|")
TIMES = "yesterday|on monday|last week|this morning|since march|three times now|after lunch|at the end of the month".split("|")

CLASSIFY_SYSTEM = (
    "You sort the messages that customers write to a shop for office equipment and software. You read the whole message, you "
    "decide what the customer wants most, and you answer with the name of one category and nothing else."
)
CLASSIFY_TEMPLATE = """Sort the message into exactly one of these categories.

billing: invoices, payments, refunds, discounts, contracts, everything about money
crash: something that the customer already has does not work, stops, shows errors or loses data
delivery: parcels, addresses, drivers, dates, things that were sent and did not arrive as they should
feature: the customer wishes for something that does not exist yet, or for a change of something that works
other: everything else, also praise, greetings and messages that cannot be understood

If a message fits several categories, take the one that comes first in the list above.

Examples:
Message: The second invoice of this month is wrong, the discount of ten percent was forgotten, please correct it.
Category: billing
Message: Since the update on Tuesday the program closes as soon as I press print, and the report I wrote is gone.
Category: crash
Message: The driver left my parcel with a neighbour I do not know, and nobody in the house has seen it since.
Category: delivery
Message: It would help us a lot if the calendar could show two weeks side by side, on one page.
Category: feature
Message: Thank you for the quick answer, have a nice weekend!
Category: other

Message: {0}
Category:"""
EXTRACT_SYSTEM = (
    "You read messages of customers and write down what they say as JSON, for a program that sorts and counts them. You add "
    "nothing that the message does not say."
)
EXTRACT_TEMPLATE = """Read the message and fill in the fields of the form.

product: what the message is about, in the words of the message, small letters, padded with spaces
summary: what happened and what the customer wants, in small letters without punctuation, padded with spaces
days: for how many days the problem has existed, as a whole number from 0 to 99, and 0 if the message does not say
urgent: true if the customer names a date, sets a limit or threatens to leave, else false

Write the fields in this order and leave none out. If a message speaks of several products, take the first one. Do not
translate anything, do not explain anything, and write no text before or after the JSON.

Message: {0}"""
EXTRACT_SCHEMA = {
    "type": "object",
    "properties": {
        "product": {"type": "string", "pattern": "^[a-z ]{32}$"},
        "summary": {"type": "string", "pattern": "^[a-z ]{88}$"},
        "days": {"type": "integer", "minimum": 0, "maximum": 99},
        "urgent": {"type": "boolean"},
    },
    "required": ["product", "summary", "days", "urgent"],
    "additionalProperties": False,
}
GENERATE_TEMPLATE = "Answer this message in a friendly way, in about three sentences: {0}"

# Workload: rows of its table, words of a row.
TABLES = {"classify": (2000, 50), "extract": (2000, 50), "generate": (512, 90), "embed": (12000, None)}


def sentence(dice):
    thing, other = dice.sample(THINGS, 2)
    kind = dice.randrange(4)
    if kind == 0:
        return f"the {thing} number {dice.randrange(100, 1000)} {dice.choice(DEEDS)} {dice.choice(TIMES)}"
    if kind == 1:
        return f"{dice.choice(PEOPLE)} says that the {thing} {dice.choice(DEEDS)}, and the {other} too"
    if kind == 2:
        return f"{dice.choice(TIMES)} i wrote about the {thing} and the {other}, {dice.choice(WISHES)}"
    return f"{dice.choice(WISHES)}, because the {thing} {dice.choice(DEEDS)} {dice.choice(TIMES)}"


def text(dice, words):
    """A text of exactly so many words."""
    parts, count = [], 0
    while count < words:
        parts.append(sentence(dice))
        count += len(parts[-1].split())
    return " ".join(". ".join(parts).split()[:words])


def embedded_words(dice):
    """Skewed lengths: half of the texts have fewer than 45 words, one in a hundred has more than 280; 6 to 340."""
    return min(340, max(6, round(dice.lognormvariate(3.8, 0.8))))


def workload(name):
    dice = random.Random(f"{SEED} {name}")
    rows, words = TABLES[name]
    length = (lambda: embedded_words(dice)) if words is None else (lambda: dice.randrange(words - 8, words + 9))
    # No text twice: an engine that answers equal rows once would be measured on fewer of them.
    distinct = {}
    while len(distinct) < rows:
        distinct[text(dice, length())] = None
    values = list(distinct)
    task = {"task": name, "system": None, "template": "{0}", "values": values, "labels": None, "schema": None}
    if name == "classify":
        task |= {"system": CLASSIFY_SYSTEM, "template": CLASSIFY_TEMPLATE, "labels": LABELS, "tokens_max": 8}
    elif name == "extract":
        task |= {"system": EXTRACT_SYSTEM, "template": EXTRACT_TEMPLATE, "schema": EXTRACT_SCHEMA, "tokens_max": 128}
    elif name == "generate":
        task |= {"template": GENERATE_TEMPLATE, "tokens_max": 64}
    else:
        task |= {"tokens_max": 0}
    return task


def write(folder):
    """Writes every workload's file; returns their paths by name."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {name: folder / f"{name}.json" for name in TABLES}
    for name, path in paths.items():
        path.write_text(json.dumps(workload(name), ensure_ascii=False), encoding="utf-8")
    return paths


def read(path):
    return json.loads(Path(path).read_text(encoding="utf-8"))


def rows(task, first, count):
    """Values from `first` on; the table is a ring."""
    return [task["values"][(first + index) % len(task["values"])] for index in range(count)]


def user_text(task, value):
    return task["template"].replace("{0}", value)


def messages(task, value):
    system = [{"role": "system", "content": task["system"]}] if task["system"] else []
    return [*system, {"role": "user", "content": user_text(task, value)}]


class Prompts:
    """Token ids as a model folder's own tokenizer and chat template make them."""

    def __init__(self, folder):
        from transformers import AutoTokenizer, logging

        logging.set_verbosity_error()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)

    def ids(self, task, value):
        if task["task"] == "embed":
            return self.tokenizer(user_text(task, value), truncation=True)["input_ids"]
        prompt = self.tokenizer.apply_chat_template(messages(task, value), tokenize=False, add_generation_prompt=True)
        return self.tokenizer(prompt, add_special_tokens=False)["input_ids"]

    def shared(self, task):
        """Tokens that all prompts begin with."""
        some = [self.ids(task, value) for value in task["values"][:32]]
        return next((at for at, column in enumerate(zip(*some)) if len(set(column)) > 1), 0)
