"""Tables of the study "Imputer against CTC", from the transcripts that score.py wrote.

    python docs/tools/imputer_vs_ctc/table.py OUT > build/imputer_vs_ctc.json

The JSON object on stdout has `rows`, one for each arm, schedule, decoder, data set, condition and
seed; `means`, the same over the seeds; `variants`, as `means`, of other heads; `pairs`, differences
between arms on the same clips and seeds, with intervals of a paired bootstrap over clips (all seeds
of a clip drawn together); and `slots`, commands of people by what was understood.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edge_imputer.metrics import clopper_pearson, paired_difference
from edge_imputer.train.evaluation.error_rates import (
    Errors,
    character_errors,
    ratio_interval,
    word_errors,
)
from edge_imputer.train.evaluation.slots import Command, Understood, normalised, score_slots
from edge_imputer.train.synthesis import read_texts

UNSEEN = frozenset(read_texts(Path(__file__).with_name("unseen_words.txt")))
CONDITIONS = {"clean": "clean", "10dB": "10 dB"}
HEADS = {"ctc": "ctc", "head": "imputer_dp", "imitation": "imputer_im"}
RUNS = {
    "shared": HEADS,
    "variants": HEADS,
    "joint": {"ctc": "joint ctc", "head": "joint"},
    "voice_commands": {"ctc": "voice-commands ctc", "head": "voice-commands"},
    "consistent": {"ctc": "consistent ctc", "head": "consistent"},
}
"""Arms of the runs that have several, by what score.py calls their heads."""
ARMS = ("ctc", "self_conditioned", "ctc_deep", "ctc_compute", "imputer_im", "imputer_dp")
PAIRS = (
    ("imputer_dp", "4", "ctc", "1"),
    ("imputer_dp", "4", "ctc_deep", "1"),
    ("imputer_dp", "4", "ctc_compute", "1"),
    ("imputer_dp", "4", "self_conditioned", "1"),
    ("imputer_dp", "4", "imputer_im", "4"),
    ("imputer_dp", "1+1", "ctc", "1"),
    ("imputer_dp", "1+1", "ctc_compute", "1"),
    ("imputer_dp", "1+1", "imputer_dp", "4"),
    ("imputer_dp", "8", "imputer_dp", "1"),
    ("joint", "4", "imputer_dp", "4"),
    ("consistent", "4", "imputer_dp", "4"),
    ("wide", "4", "imputer_dp", "4"),
    ("wide", "4", "ctc", "1"),
    ("plain", "4", "imputer_dp", "4"),
    ("masks_only", "1", "imputer_dp", "4"),
)


@dataclass(frozen=True)
class Name:
    """Which model read by which schedule and decoder, on which data set."""

    arm: str
    schedule: str
    decoder: str
    data: str
    condition: str
    seed: int

    @classmethod
    def of(cls, file: Path, reading: str) -> Name:
        """That of a reading in a file of score.py."""
        run, data, condition, *rest = file.stem.split(".")
        run, _, seed = run.rpartition("_")
        head, _, schedule = reading.partition(" ")
        arm = RUNS[run].get(head, head) if run in RUNS else run
        decoder = rest[0] if rest else "greedy"
        return cls(arm, schedule, decoder, data, CONDITIONS[condition], int(seed))

    def columns(self) -> dict[str, Any]:
        """As the first columns of a row."""
        return {
            "arm": self.arm,
            "k": n_passes(self.schedule),
            "schedule": "even" if self.schedule.isdigit() else self.schedule,
            "decoder": self.decoder,
            "data": self.data,
            "condition": self.condition,
        }


@dataclass(frozen=True)
class Reading:
    """What one model gave by one schedule and decoder, on one data set."""

    name: Name
    words: Errors
    characters: Errors

    def row(self) -> dict[str, Any]:
        """As a row of the table."""
        interval = self.words.interval()
        words = [pair for one in self.words.alignments for pair in one.pairs if pair[0]]
        unseen = [said == heard for said, heard in words if said in UNSEEN]
        seen = [said == heard for said, heard in words if said not in UNSEEN]
        return {
            **self.name.columns(),
            "wer": interval.value,
            "ci_low": interval.low,
            "ci_high": interval.high,
            "cer": self.characters.total.rate,
            "oov_wer": 1 - float(np.mean(unseen)) if unseen else None,
            "oov_words": len(unseen),
            "seen_wer": 1 - float(np.mean(seen)),
            "n": len(self.words.counts),
            "seed": self.name.seed,
        }


def n_passes(schedule: str) -> int:
    """Passes of score.py's schedules.

    "4" is four, "5-2-1" three, "1+3" one and three revisions, "ctc+1" one revision alone.
    """
    commits, _, revisions = schedule.partition("+")
    each = commits.split("-")
    first = 0 if commits == "ctc" else len(each) if len(each) > 1 else int(commits)
    return first + int(revisions or 0)


Lines = list[dict[str, Any]]


def readings(file: Path, lines: Lines) -> Iterator[Reading]:
    """Everything that a file of transcripts holds."""
    references = [line["reference"] for line in lines]
    for reading in lines[0]["texts"]:
        texts = [line["texts"][reading] for line in lines]
        errors = word_errors(references, texts), character_errors(references, texts)
        yield Reading(Name.of(file, reading), *errors)


def slot_rows(file: Path, lines: Lines) -> Iterator[dict[str, Any]]:
    """Commands that were understood whole and slots, of every reading of a file."""
    slots = {slot for line in lines for slot in line["said"]["slots"]}
    for reading in lines[0]["heard"]:
        name = Name.of(file, reading)
        found = [
            Understood(command(line["said"], slots), command(line["heard"][reading], slots))
            for line in lines
        ]
        whole, f1 = clopper_pearson(sum(one.right for one in found), len(found)), score_slots(found)
        assert f1.f1 is not None
        yield {
            **name.columns(),
            "whole": whole.value,
            "ci_low": whole.low,
            "ci_high": whole.high,
            "f1": f1.f1.value,
            "f1_low": f1.f1.low,
            "f1_high": f1.f1.high,
            "n": len(found),
            "seed": name.seed,
        }


def command(said: dict[str, Any], slots: Collection[str]) -> Command:
    """An intent and those of its slots that are asked for, as compared."""
    values = {k: normalised(v) for k, v in said["slots"].items() if k in slots and v.strip()}
    return Command(said["intent"], values)


def means(found: list[Reading]) -> Iterator[dict[str, Any]]:
    """Rates over all seeds of a reading, with intervals over clips: all seeds of a clip at once."""
    by_name: dict[Name, list[Reading]] = {}
    for reading in found:
        by_name.setdefault(replace(reading.name, seed=0), []).append(reading)
    for name, seeds in by_name.items():
        rows = [reading.row() for reading in seeds]
        counts, sizes = (
            np.sum([getattr(reading.words, what) for reading in seeds], axis=0)
            for what in ("counts", "sizes")
        )
        wer = ratio_interval(counts, sizes)
        rates = ("cer", "oov_wer", "seen_wer")
        yield {
            **name.columns(),
            "wer": wer.value,
            "ci_low": wer.low,
            "ci_high": wer.high,
            "least": min(row["wer"] for row in rows),
            "most": max(row["wer"] for row in rows),
            **{
                rate: None if rows[0][rate] is None else float(np.mean([r[rate] for r in rows]))
                for rate in rates
            },
            "n": len(counts),
            "seeds": len(seeds),
        }


def pairs(found: list[Reading]) -> Iterator[dict[str, Any]]:
    """Differences between arms, over the seeds that both have."""
    by_name = {reading.name: reading for reading in found}
    tests = sorted({(n.decoder, n.data, n.condition) for n in by_name})
    seeds = sorted({n.seed for n in by_name})
    for ours, our_schedule, theirs, their_schedule in PAIRS:
        for test in tests:
            both = [
                (mine, other)
                for seed in seeds
                if (mine := by_name.get(Name(ours, our_schedule, *test, seed)))
                and (other := by_name.get(Name(theirs, their_schedule, *test, seed)))
            ]
            if not both:
                continue
            first, second, words = (
                np.sum([get(mine, other) for mine, other in both], axis=0)
                for get in (
                    lambda mine, _: mine.words.counts,
                    lambda _, other: other.words.counts,
                    lambda mine, _: mine.words.sizes,
                )
            )
            difference = paired_difference(first, second, words).interval
            cer = [
                sum(r.characters.counts.sum() for r in side)
                / sum(r.characters.sizes.sum() for r in side)
                for side in zip(*both, strict=True)
            ]
            decoder, data, condition = test
            yield {
                "ours": f"{ours} {our_schedule}",
                "theirs": f"{theirs} {their_schedule}",
                "decoder": decoder,
                "data": data,
                "condition": condition,
                "wer": first.sum() / words.sum(),
                "their_wer": second.sum() / words.sum(),
                "fewer": 1 - first.sum() / second.sum(),
                "difference": difference.value,
                "ci_low": difference.low,
                "ci_high": difference.high,
                "cer": cer[0],
                "their_cer": cer[1],
                "n": len(words),
                "seeds": len(both),
            }


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="what score.py was given")
    files = sorted(parser.parse_args().out.glob("*.jsonl"))
    if not files:
        sys.exit("expected transcripts, found none; make them with score.py")
    found: list[Reading] = []
    slots: list[dict[str, Any]] = []
    for file in files:
        lines = [json.loads(line) for line in file.read_text("utf8").splitlines()]
        if "said" in lines[0]:
            slots += slot_rows(file, lines)
        else:
            found += readings(file, lines)
    over_seeds = list(means(found))
    tables = {
        "rows": [reading.row() for reading in found if reading.name.arm in ARMS],
        "means": [row for row in over_seeds if row["arm"] in ARMS],
        "variants": [row for row in over_seeds if row["arm"] not in ARMS],
        "pairs": list(pairs(found)),
        "slots": slots,
    }
    for row in tables["slots"]:
        print(
            f"{row['arm']:17} K={row['k']} {row['schedule']:8} {row['data']:8}{row['condition']:6}"
            f" seed {row['seed']} whole {row['whole']:.1%} [{row['ci_low']:.1%},"
            f" {row['ci_high']:.1%}] slots' F1 {row['f1']:.1%}",
            file=sys.stderr,
        )
    for row in (*tables["means"], *tables["variants"]):
        print(
            f"{row['arm']:17} K={row['k']} {row['schedule']:8} {row['decoder']:8} {row['data']:8}"
            f"{row['condition']:6} WER {row['wer']:6.1%}"
            f" [{row['ci_low']:.1%}, {row['ci_high']:.1%}] ({row['seeds']} seeds,"
            f" {row['least']:.1%} to {row['most']:.1%}) CER {row['cer']:.1%}"
            + (f" unseen {row['oov_wer']:.0%}" if row["oov_wer"] is not None else ""),
            file=sys.stderr,
        )
    for row in tables["pairs"]:
        print(
            f"{row['ours']:14} less {row['theirs']:19} {row['decoder']:8}{row['data']:8}"
            f"{row['condition']:6} {row['fewer']:6.1%} fewer, difference {row['difference']:+.2%}"
            f" [{row['ci_low']:+.2%}, {row['ci_high']:+.2%}] CER {row['cer']:.2%} against"
            f" {row['their_cer']:.2%}; {row['seeds']} seeds",
            file=sys.stderr,
        )
    print(json.dumps(tables))


if __name__ == "__main__":
    main()
