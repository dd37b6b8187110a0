"""Finds llama-server's best settings for each workload on this machine: the number of slots, then a larger batch and a unified
cache at the best number. Each try is one timed round; the best settings are kept in the peers' folder.
"""

import json
import os

import workloads
from protocol import Contestant

SLOTS = (1, 4, 8, 16, 32)
FLAGS = ("--ubatch-size 2048", "--kv-unified")
TRY_SECONDS = 6.0


def rate(commands, workload, numbers, settings, task, logs, options):
    """Rows a second of one try. What a constraint costs depends on the weights, so tries run without."""
    tokens = {"classify": 1, "extract": 40, "generate": None}[workload]
    command = commands.llama(workload, numbers, "none", tokens, settings)
    environment = os.environ | {"OMP_NUM_THREADS": str(options.threads)}
    contestant = Contestant("llama-server", command, logs / "tuning.log", environment)
    try:
        slots = settings["slots"]
        took = contestant.go(0, slots)["seconds"]
        if took > TRY_SECONDS:
            return slots / took
        waves = max(1, round(TRY_SECONDS / took))
        return slots * waves / contestant.go(slots, slots * waves)["seconds"]
    finally:
        contestant.stop()


def tune(commands, tuned, tuned_file, logs, options, say):
    for workload in ("classify", "extract", "generate"):
        for numbers in ("BF16", "Q8_0"):
            name = f"{workload}-{numbers.lower()}"
            if options.groups and name not in options.groups.split(","):
                continue
            task = workloads.read(commands.tables[workload])
            measured = []

            def attempt(settings):
                measured.append((rate(commands, workload, numbers, settings, task, logs, options), settings))
                say(f"{name}: {measured[-1][0]:.3f} rows/s with {settings['slots']} slots {settings['flags']}")

            for slots in SLOTS[-2:] if options.quick else SLOTS:
                attempt({"slots": slots, "flags": ""})
            best = max(measured, key=lambda one: one[0])[1]["slots"]
            for flags in FLAGS[:1] if options.quick else FLAGS:
                attempt({"slots": best, "flags": flags})
            winner = max(measured, key=lambda one: one[0])
            tuned[name] = {**winner[1], "tried": [{"rows_a_second": rows, **settings} for rows, settings in measured]}
            if not options.quick:
                tuned_file.write_text(json.dumps(tuned, indent=1) + "\n", encoding="utf-8")
