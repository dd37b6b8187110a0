"""The comparison itself: see `run`. Starts a group's contestants, warms them up, finds how many rows fill a round, then runs
rounds in alternating order, one contestant at a time, and hands what it saw to the report.
"""

import argparse
import json
import math
import os
import sys
import time
from pathlib import Path

import machine
import report
import shape
import tuning
import workloads
from groups import ROWMILL, Commands, groups
from protocol import Contestant

# Rows of the warm-up and of the round that finds the pace, where the contestant's multiple would be too few.
TRIED_ROWS = {"embed": 256}
# Rows of the warm-up, where the rows of a round are given and nothing is to be found.
WARM_UP_ROWS = 8
# What others may use of the processors in a round before it is called disturbed.
OTHERS_SHARE_MAX = 0.05


def say(text):
    print(text, file=sys.stderr, flush=True)


def rows_of_a_round(contestant, task, seconds, asked):
    """So many rows that a round takes about `seconds`: as many for each as it can do, for rates are compared."""
    multiple = contestant.about.get("rows_multiple", 16)
    table = len(task["values"])
    tried = min(asked, WARM_UP_ROWS) if asked else max(multiple, TRIED_ROWS.get(task["task"], multiple))
    took = contestant.go(table - 2 * tried, tried)["seconds"]
    if asked:
        return asked
    if took < seconds:
        took = contestant.go(table - tried, tried)["seconds"]
    wanted = seconds * tried / took
    return min(table // 2, max(multiple, multiple * round(wanted / multiple)))


def one_round(contestant, first, count):
    busy, own = machine.busy_seconds(), contestant.cpu_seconds() + sum(os.times()[:2])
    reply = contestant.go(first, count)
    own = contestant.cpu_seconds() + sum(os.times()[:2]) - own
    others = max(0.0, machine.busy_seconds() - busy - own)
    reply["others_share"] = others / (os.cpu_count() * reply["wall_seconds"])
    return reply


def run_group(group, task, options, logs, prompts, deadline):
    environment = os.environ | {"OMP_NUM_THREADS": str(options.threads), "TOKENIZERS_PARALLELISM": "true"}
    contestants, result = [], {"workload": group.workload, "numbers": group.numbers, "contestants": {}}
    result |= {"date": time.strftime("%Y-%m-%d"), "build": options.build or machine.commit(), "rows_asked": options.rows}
    try:
        for name, command in group.contestants.items():
            log = logs / f"{group.name}-{len(contestants)}.log"
            contestant = Contestant(name, command, log, environment)
            contestants.append(contestant)
            asked = options.peer_rows or options.rows if name != ROWMILL else options.rows
            rows = rows_of_a_round(contestant, task, options.round_seconds, asked)
            say(f"  {name}: ready after {contestant.start_seconds:.0f} s, {rows} rows a round")
            facts = {"about": contestant.about, "rows": rows, "command": contestant.command, "rounds": []}
            result["contestants"][name] = facts
        first, longest = 0, 0.0
        for number in range(options.rounds):
            started = time.monotonic()
            if number and started + longest > deadline:
                say(f"  no time for more than {number} of {options.rounds} rounds")
                break
            for contestant in contestants if number % 2 == 0 else reversed(contestants):
                facts = result["contestants"][contestant.name]
                reply = one_round(contestant, first, facts["rows"])
                reply["shape"] = shape.check(task, reply)
                values = workloads.rows(task, first, facts["rows"])
                reply["input_tokens_expected"] = sum(len(prompts.ids(task, value)) for value in values)
                facts["rounds"].append(reply)
                if reply["others_share"] > OTHERS_SHARE_MAX and not options.quick:
                    say(f"  disturbed: others used {reply['others_share']:.0%} in round {number + 1}, {contestant.name}")
            first += max(facts["rows"] for facts in result["contestants"].values())
            longest = max(longest, time.monotonic() - started)
        for contestant in contestants:
            result["contestants"][contestant.name]["resident_bytes"] = contestant.resident_bytes()
    finally:
        for contestant in contestants:
            contestant.stop()
    shape.compare(task, result)
    return result


def earlier(options):
    """What is known from before: nothing if all is measured anew, else the other groups' results."""
    file = options.out / "results.json"
    if options.groups and file.exists() and not options.quick:
        return json.loads(file.read_text(encoding="utf-8"))
    return {"groups": [], "batched_bench": []}


def keep(facts, result):
    """Adds a group's result, in the place of an earlier one of the same kind."""
    kind = lambda one: (one["workload"], one["numbers"], one["rows_asked"])
    at = next((at for at, one in enumerate(facts["groups"]) if kind(one) == kind(result)), len(facts["groups"]))
    facts["groups"][at : at + 1] = [result]


def arguments():
    parser = argparse.ArgumentParser(prog="infra/bench/engine/run")
    parser.add_argument("--peers", type=Path, required=True, help="cache folder of the peers and models")
    parser.add_argument("--rowmill", help="command of Rowmill's engine; without it only the peers run")
    parser.add_argument("--groups", help="names, separated by commas; what --out has of others is kept; all if not given")
    parser.add_argument("--skip", default="", help="words, separated by commas: leaves out contestants with one in their name")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=math.inf, help="starts no round that would end later; may cost rounds")
    parser.add_argument("--round-seconds", type=float, default=6.0, help="how long a contestant's round should take")
    parser.add_argument("--rows", type=int, help="rows of a contestant's round, instead of --round-seconds")
    parser.add_argument("--peer-rows", type=int, help="rows of a peer's round, if not as many as --rows")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="the peers' threads")
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parent, help="folder of RESULTS.md, results.json")
    parser.add_argument("--tune", action="store_true", help="only find llama-server's best settings, and keep them")
    parser.add_argument("--quick", action="store_true", help="tiny models, few rows: only shows that everything works")
    parser.add_argument("--build", help="what the command of --rowmill was built from, if not from this commit")
    parser.add_argument("--force", action="store_true", help="measure at once, whatever the last minute's load was")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.rows = 2, options.rows or 8
        options.out = options.peers / "quick"
    elif options.rounds < report.ROUNDS_MIN:
        parser.error(f"fewer than {report.ROUNDS_MIN} rounds say nothing of the spread")
    return options


def main():
    options = arguments()
    started = time.monotonic()
    load = os.getloadavg()[0] if options.quick or options.force else machine.wait_until_quiet()
    if load > machine.LOAD_MAX and not options.quick and not options.force:
        say(f"the load of the last minute is {load:.2f}, not below {machine.LOAD_MAX}: figures would be worth nothing")
        raise SystemExit(1)
    tables = workloads.write(options.peers / "tables")
    tuned_file = options.peers / "tuned.json"
    tuned = json.loads(tuned_file.read_text()) if tuned_file.exists() and not options.quick else {}
    model = "llama-quick" if options.quick else "llama-1b"
    commands = Commands(options.peers, model, options.threads, tables, options.rowmill, tuned)
    logs = options.peers / "logs"
    logs.mkdir(exist_ok=True)
    options.out.mkdir(exist_ok=True)
    if options.tune:
        tuning.tune(commands, tuned, tuned_file, logs, options, say)
        return
    chosen = groups(commands)
    if options.groups:
        names = options.groups.split(",")
        unknown = set(names) - {group.name for group in chosen}
        if unknown:
            raise SystemExit(f"no such groups: {sorted(unknown)}; there are {[group.name for group in chosen]}")
        chosen = [group for group in chosen if group.name in names]
    for group in chosen:
        unwanted = [name for name in group.contestants if any(word in name for word in options.skip.split(",") if word)]
        for name in unwanted:
            del group.contestants[name]
    facts = earlier(options) | {
        "processor": machine.processor(),
        "versions": machine.versions(options.peers),
        "threads": options.threads,
        "quick": options.quick,
        "failed": [],
    }
    for group in chosen:
        say(f"{group.name}:")
        task = workloads.read(tables[group.workload])
        prompts = workloads.Prompts(commands.models / ("minilm" if group.workload == "embed" else model))
        try:
            result = run_group(group, task, options, logs, prompts, started + options.seconds)
            keep(facts, result | {"load_before": load, "tuned": group.name in tuned})
        except RuntimeError as error:
            say(f"  FAILED: {error}")
            facts["failed"].append(f"{group.name}: {error}")
        report.write(facts, options.out)
    if not options.groups:
        facts["batched_bench"] = report.batched_bench(options.peers, model, options)
    print(report.write(facts, options.out))


if __name__ == "__main__":
    main()
