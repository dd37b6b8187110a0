"""Makes the invented support tickets of this example, and the hidden truth about them.

    python generate.py          # writes data/ and truth/ beside this file; the result is committed

Everything is drawn from the phrases in phrases.py with a seeded generator: the same seed gives the same rows. train.py takes
its tickets from here too, with other seeds and without the held-out phrases (`~` in phrases.py).

What the truth says of a ticket:

- is_request: false for auto replies, newsletters, spam and vendors' pitches; the other three columns are then null.
- topic: `billing` is about money (charges, invoices, prices, plans); `bug` says that something does not work as it
  should, also on the invoice page; `how-to` asks how to do something that works; `other` is the rest (wishes, thanks, data
  protection, jobs, partners).
- product: the product the ticket is about, null where it names none. A second product may be named as not concerned.
- severity: 1 everything stands still or data is lost; 2 someone cannot do an important job and has no way around; 3 a
  nuisance with a way around; 4 cosmetic or no hurry. Null where the ticket does not say.
"""

import random
import re
from datetime import datetime, timedelta
from pathlib import Path

import phrases

HERE = Path(__file__).resolve().parent
PUBLISHED = [  # logical date, seed, rows, files, first number of ticket_id
    ("2026-11-20", 20261120, 4000, 2, 100_000),
    ("2026-11-21", 20261121, 1000, 1, 104_000),
]
ROW_GROUP_ROWS = 500

TOPIC_WEIGHTS = {"billing": 0.27, "bug": 0.33, "how-to": 0.25, "other": 0.15}
NOT_REQUEST_SHARE = 0.12
FOREIGN_SHARE = 0.08
DUPLICATE_SHARE = 0.05
PRODUCT_SHARE = 0.75
SEVERITY_SHARE = {"billing": 0.55, "bug": 0.75, "how-to": 0.55, "other": 0.35}
SEVERITY_WEIGHTS = {1: 0.18, 2: 0.27, 3: 0.33, 4: 0.22}
SEVERITY_WEIGHTS_OTHER = {2: 0.15, 3: 0.35, 4: 0.5}  # a wish or a thank-you stops no company
CHANNELS = ["mail", "mail", "mail", "web form", "web form", "chat", "phone note"]
WORDS_MAX = 120


class Writer:
    """Draws phrases; remembers whether a held-out one was used."""

    def __init__(self, rng, use_held_out):
        self.rng = rng
        self.use_held_out = use_held_out
        self.used_held_out = False

    def pick(self, lines):
        lines = lines if self.use_held_out else [line for line in lines if not line.startswith("~")]
        line = self.rng.choice(lines)
        self.used_held_out |= line.startswith("~")
        return line.removeprefix("~")

    def expand(self, template, product_words, aside_words=""):
        """Resolves choices from the inside out, then slots, one occurrence at a time."""
        while match := re.search(r"\[([^\[\]]*)\]", template):
            template = template[: match.start()] + self.rng.choice(match[1].split("|")) + template[match.end() :]
        while match := re.search(r"<([A-Za-z_]+)>", template):
            name = match[1]
            if name == "P":
                words = product_words if isinstance(product_words, str) else self.rng.choice(product_words)
            elif name == "Q":
                words = aside_words
            else:
                words = self.rng.choice(phrases.SLOTS[name])
            template = template[: match.start()] + words + template[match.end() :]
        text = re.sub(r" +", " ", template).strip()
        text = re.sub(r" ([.,;:?!])", r"\1", text)
        return text[:1].upper() + text[1:]

    def sentence(self, lines, product_words, aside_words=""):
        return self.expand(self.pick(lines), product_words, aside_words)


def product_spelling(rng, product):
    draw = rng.random()
    if draw < 0.08:
        return product.lower()
    if draw < 0.11:
        return product.replace(" ", "")
    if draw < 0.13:
        return product.replace(" ", "-")
    if draw < 0.15:
        return product.upper()
    return product


def with_typos(rng, text, keep):
    """Swaps, drops or doubles a letter inside one to three words; `keep` (the product) and short words stay whole."""
    words = text.split(" ")
    kept = set(keep.split(" "))
    places = [i for i, word in enumerate(words) if len(word) >= 5 and word.isalpha() and word not in kept]
    for i in rng.sample(places, min(len(places), rng.randint(1, 3))):
        word, at = words[i], rng.randint(1, len(words[i]) - 2)
        kind = rng.randrange(3)
        if kind == 0:
            words[i] = word[:at] + word[at + 1] + word[at] + word[at + 2 :]
        elif kind == 1:
            words[i] = word[:at] + word[at + 1 :]
        else:
            words[i] = word[:at] + word[at] + word[at:]
    return " ".join(words)


def draw_weighted(rng, weights):
    return rng.choices(list(weights), weights=list(weights.values()))[0]


def request_body(rng, writer, topic, product, severity):
    spelled = product_spelling(rng, product) if product else ""
    product_words = spelled or phrases.NAMELESS_PRODUCT
    sentences = [writer.sentence(phrases.TOPIC[topic], product_words)]
    if rng.random() < 0.35:
        second = writer.sentence(phrases.TOPIC[topic], product_words)
        sentences += [second] if second not in sentences else []
    named = product and any(spelled in sentence for sentence in sentences)
    sentences += [writer.sentence(phrases.FILLER, product_words) for _ in range(rng.choice([0, 0, 1, 1, 2, 2, 3, 4, 6]))]
    if severity:
        sentences.append(writer.sentence(phrases.SEVERITY[severity], product_words))
    if product and not named:
        sentences.append(writer.sentence(phrases.PRODUCT_MENTION, product_words))
    if product and rng.random() < 0.06:
        aside = rng.choice([other for other in phrases.PRODUCTS if other != product])
        sentences.append(writer.sentence(phrases.PRODUCT_ASIDE, product_words, aside))
    first = sentences[0]
    if rng.random() < 0.55:
        rng.shuffle(sentences)
    else:
        rest = sentences[1:]
        rng.shuffle(rest)
        sentences = [first, *rest]

    body = (rng.choice(["\n", " ", "\n\n"]) if rng.random() < 0.1 else " ").join(sentences)
    if rng.random() < 0.1:
        body = with_typos(rng, body, spelled)
    if rng.random() < 0.5:
        body = rng.choice(phrases.GREETING) + rng.choice([" ", "\n", "\n\n"]) + body
    if rng.random() < 0.45:
        body += rng.choice([" ", "\n", "\n\n"]) + rng.choice(phrases.CLOSING)
        if rng.random() < 0.7:
            body += "\n" + writer.expand(rng.choice(phrases.SIGNATURE), product_words)
    if rng.random() < 0.05:
        body = body.lower()
    return body


def not_request_body(rng, writer, kind):
    body = writer.sentence(phrases.NOT_REQUEST[kind], phrases.NAMELESS_PRODUCT)
    if rng.random() < 0.25:
        body = rng.choice(phrases.GREETING) + rng.choice([" ", "\n"]) + body
    if kind != "spam" and rng.random() < 0.35:
        body += rng.choice([" ", "\n"]) + rng.choice(phrases.CLOSING) + "\n"
        body += writer.expand(rng.choice(phrases.SIGNATURE), phrases.NAMELESS_PRODUCT)
    if rng.random() < 0.05:
        body = with_typos(rng, body, "")
    return body


def draw_ticket(rng, use_held_out):
    """One ticket's text and truth; `held_out` says whether a phrase that training never sees is in it."""
    writer = Writer(rng, use_held_out)
    ticket = {"lang": "en", "is_request": True, "topic": None, "product": None, "severity": None}
    draw = rng.random()
    if draw < NOT_REQUEST_SHARE:
        kind = rng.choice(list(phrases.NOT_REQUEST))
        ticket["is_request"] = False
        ticket["body"] = not_request_body(rng, writer, kind)
    else:
        kind = ticket["topic"] = draw_weighted(rng, TOPIC_WEIGHTS)
        if draw < NOT_REQUEST_SHARE + FOREIGN_SHARE:
            ticket["lang"] = rng.choice(list(phrases.FOREIGN))
            template = writer.pick(phrases.FOREIGN[ticket["lang"]][kind])
            product = rng.choice(phrases.PRODUCTS)
            ticket["product"] = product if "<P>" in template else None
            parts = [writer.expand(template, product)]
            if rng.random() < 0.7:
                parts.insert(0, rng.choice(phrases.FOREIGN_GREETING[ticket["lang"]]))
            if rng.random() < 0.7:
                parts.append(writer.expand(rng.choice(phrases.SIGNATURE), product))
            ticket["body"] = "\n".join(parts)
        else:
            ticket["product"] = rng.choice(phrases.PRODUCTS) if rng.random() < PRODUCT_SHARE else None
            if rng.random() < SEVERITY_SHARE[kind]:
                weights = SEVERITY_WEIGHTS_OTHER if kind == "other" else SEVERITY_WEIGHTS
                ticket["severity"] = draw_weighted(rng, weights)
            ticket["body"] = request_body(rng, writer, kind, ticket["product"], ticket["severity"])
    ticket["subject"] = writer.sentence(phrases.SUBJECT[kind], ticket["product"] or phrases.NAMELESS_PRODUCT)
    ticket["held_out"] = writer.used_held_out
    words = len(ticket["body"].split())
    too_short = ticket["lang"] == "en" and words < 8
    return draw_ticket(rng, use_held_out) if too_short or words > WORDS_MAX else ticket


def address(rng):
    person, last = rng.choice(phrases.SLOTS["person"]), rng.choice(phrases.SLOTS["lastname"])
    return f"{person}.{last}{rng.randint(1, 99)}@{rng.choice(['example.com', 'example.org', 'example.net'])}".lower()


def tickets(seed, rows, use_held_out):
    """`rows` tickets without ids and times. About DUPLICATE_SHARE of them repeat an earlier body."""
    rng = random.Random(seed)
    out = []
    for _ in range(rows):
        if out and rng.random() < DUPLICATE_SHARE:
            ticket = dict(rng.choice(out))
        else:
            ticket = draw_ticket(rng, use_held_out)
        ticket["channel"] = rng.choice(CHANNELS)
        ticket["email"] = address(rng)
        out.append(ticket)
    return out


def published(ds):
    """The rows of one published day, with ids and times, in the order they are written."""
    _, seed, rows, _, first = next(day for day in PUBLISHED if day[0] == ds)
    out = tickets(seed, rows, use_held_out=True)
    midnight = datetime.fromisoformat(ds)
    for i, ticket in enumerate(out):
        ticket["ticket_id"] = f"T-2026-{first + i:06d}"
        ticket["created_at"] = midnight + timedelta(microseconds=int(86_400e6 * i / rows) + 137 * (i % 7))
    return out


def main():
    import pyarrow as pa
    import pyarrow.parquet as pq

    text = pa.string()
    data_schema = pa.schema(
        [
            pa.field("ticket_id", text, nullable=False),
            ("created_at", pa.timestamp("us")),
            ("lang", text),
            ("channel", text),
            ("email", text),
            ("subject", text),
            ("body", text),
        ]
    )
    truth_schema = pa.schema(
        [
            pa.field("ticket_id", text, nullable=False),
            ("is_request", pa.bool_()),
            ("topic", text),
            ("product", text),
            ("severity", pa.int32()),
        ]
    )

    def write(rows, schema, path):
        path.parent.mkdir(parents=True, exist_ok=True)
        columns = [[row[name] for row in rows] for name in schema.names]
        table = pa.table(columns, schema=schema)
        pq.write_table(table, path, compression="zstd", compression_level=19, row_group_size=ROW_GROUP_ROWS)

    for ds, _, rows, files, _ in PUBLISHED:
        day = published(ds)
        for i in range(files):
            part = day[i * rows // files : (i + 1) * rows // files]
            write(part, data_schema, HERE / "data" / f"ds={ds}" / f"tickets-{i}.parquet")
        write(day, truth_schema, HERE / "truth" / f"ds={ds}" / "truth.parquet")


if __name__ == "__main__":
    main()
