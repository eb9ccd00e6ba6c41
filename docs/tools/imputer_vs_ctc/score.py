"""Transcripts of every arm of the study "Imputer against CTC", for table.py to count.

    python docs/tools/imputer_vs_ctc/score.py RUNS OUT --data NAME=FOLDER ... --noise FOLDER

RUNS holds a folder ARM_SEED with last.ckpt for each run. Of a run with an Imputer's head the
encoder's own CTC, the head and its rivals are read, each by every schedule; of one of CTC the one
pass there is. `--reading` keeps to some. With `--lexicon` or `--grammar` the best path of words of
a list, or of a grammar, is searched in what they give. OUT gets a file
ARM_SEED.DATA.CONDITION[.DECODER].jsonl with a line a clip: key, reference, and the text by each
reading; of clips whose slots are known and whose words are not, what was said and the command by
each reading. What is there is not made again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edge_imputer.decoding import Language, SearchedText, of_words, read_language
from edge_imputer.events import Meaning
from edge_imputer.imputation import schedule
from edge_imputer.specs import ModelSpec
from edge_imputer.tokens import Tokenizer
from edge_imputer.train.checkpoint import Checkpoint, load_checkpoint
from edge_imputer.train.data import Featurizer, Split
from edge_imputer.train.data.corpus import read_clip
from edge_imputer.train.decode import decode_with_log_probs
from edge_imputer.train.evaluation.noise import NoiseMixer
from edge_imputer.train.evaluation.rows import Row, open_data_set
from edge_imputer.train.synthesis.grammar import grammar_words
from edge_imputer.train.tasks import ImputerTask

Saying = dict[str, Any]

SNR_DB = 10.0
SILENCE_S = 0.3  # behind every clip: a chunk, in which the last one of the model ends
SCHEDULES = {
    "1": (schedule(1, 8), 0),
    "2": (schedule(2, 8), 0),
    "4": (schedule(4, 8), 0),
    "8": (schedule(8, 8), 0),
    "5-2-1": ((5, 2, 1), 0),
    "5-1-1-1": ((5, 1, 1, 1), 0),
    "2-3-3": ((2, 3, 3), 0),
    "1+1": (schedule(1, 8), 1),
    "1+3": (schedule(1, 8), 3),
    "2+2": (schedule(2, 8), 2),
}
"""Frames of a block that each pass commits, and passes of revision after them."""
AFTER_CTC = (1, 2, 3)  # passes of revision of what CTC reads, which no runtime does
IN_SHORT = ("1", "2", "4", "8", "1+1", "1+3")  # of variants
READ_IN_FULL = ("head", "imitation", "plain")


def main() -> None:
    """Every run, on every data set, in every condition."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--data", action="append", required=True, metavar="NAME=FOLDER")
    parser.add_argument("--noise", type=Path, help="a folder of recorded noise, for 10 dB")
    parser.add_argument("--run", action="append", help="only runs like this; repeatable")
    parser.add_argument(
        "--reading", action="append", help="only readings like this ('head [48]'); repeatable"
    )
    parser.add_argument("--split", default="test", choices=("train", "valid", "test"))
    searched = parser.add_mutually_exclusive_group()
    searched.add_argument(
        "--lexicon", nargs="?", const="", metavar="FILE", help="words; the text grammar's if unset"
    )
    searched.add_argument("--grammar", metavar="FILE", help="in JSGF; its rules are the slots")
    given = parser.parse_args()
    language, suffix = _language(given.lexicon, given.grammar)
    torch.set_num_threads(1)
    given.out.mkdir(parents=True, exist_ok=True)
    checkpoints = sorted(given.runs.glob("*/last.ckpt"))
    for data in given.data:
        name, _, folder = data.partition("=")
        for condition in ("clean", *(("10 dB",) if given.noise else ())):
            noise = given.noise if condition != "clean" else None
            features = None
            for file in checkpoints:
                run = file.parent.name
                if given.run and not any(Path(run).match(pattern) for pattern in given.run):
                    continue
                out = given.out / f"{run}.{name}.{condition.replace(' ', '')}{suffix}.jsonl"
                if out.exists():
                    continue
                loaded = load_checkpoint(file)
                if features is None:
                    features = list(_features(Path(folder), given.split, noise, loaded))
                _score(loaded, features, language, given.reading or ["*"], out)
                print(out.name, flush=True)


def _language(lexicon: str | None, grammar: str | None) -> tuple[Language | None, str]:
    """What is searched, and what files of it end in."""
    if grammar is not None:
        return read_language(Path(grammar)), ".grammar"
    if lexicon is not None:
        words = read_language(Path(lexicon)) if lexicon else of_words(grammar_words())
        return words, ".lexicon"
    return None, ""


def _features(
    folder: Path, split: Split, noise: Path | None, loaded: Checkpoint
) -> Iterator[tuple[Row, np.ndarray]]:
    """Plain features (T, mels) of every clip."""
    assert isinstance(loaded.spec, ModelSpec)
    featurizer = Featurizer(loaded.spec)
    rate = loaded.spec.features.sample_rate
    mixer = NoiseMixer(noise, split, sample_rate=rate, seed=0) if noise else None
    for row in open_data_set(folder, split).rows:
        waveform = np.pad(read_clip(folder, row.record, rate), (0, round(SILENCE_S * rate)))
        waveform = mixer.mix(waveform, SNR_DB) if mixer else waveform
        yield row, featurizer.features(waveform)


@torch.no_grad()
def _score(
    loaded: Checkpoint,
    features: list[tuple[Row, np.ndarray]],
    language: Language | None,
    wanted: list[str],
    out: Path,
) -> None:
    """Write a run's texts."""
    spec, task = loaded.spec, loaded.task
    assert isinstance(spec, ModelSpec)
    featurizer, tokenizer = Featurizer(spec), Tokenizer(spec.tokens)
    search = SearchedText(language, spec) if language else None
    heard: list[dict[str, str | Saying]] = [{} for _ in features]
    order = sorted(range(len(features)), key=lambda i: len(features[i][1]))
    for first in range(0, len(order), 32):
        rows = order[first : first + 32]
        plain = [featurizer.normalize(features[i][1]) for i in rows]
        lengths = torch.tensor([len(one) for one in plain])
        padded = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(p) for p in plain], True)
        encoder_out, frames = loaded.encoder(padded, lengths)
        for reading, tokens, log_probs in _readings(task, encoder_out, wanted):
            for row, path, scores, n in zip(rows, tokens, log_probs, frames, strict=True):
                if search is None:
                    heard[row][reading] = tokenizer.decode(tokenizer.collapse(path[:n].tolist()))
                    continue
                search.reset()
                search.push(scores[:n].numpy())
                final = search.final()
                said = features[row][0].record.text
                heard[row][reading] = _saying(final.meaning) if said is None else final.text
    lines = [json.dumps(_line(row, one)) for (row, _), one in zip(features, heard, strict=True)]
    part = out.with_suffix(".part")
    part.write_text("\n".join(lines) + "\n")
    part.replace(out)


def _saying(meaning: Meaning) -> Saying:
    """Intent and slots, for a JSON line."""
    return {"intent": meaning.intent, "slots": dict(meaning.slots)}


def _line(row: Row, heard: dict[str, str | Saying]) -> dict[str, object]:
    key, text = row.record.audio, row.record.text
    if text is not None:
        return {"key": key, "reference": text, "texts": heard}
    return {"key": key, "said": {k: row.keys.get(k) for k in ("intent", "slots")}, "heard": heard}


def _readings(
    task: torch.nn.Module, encoder_out: torch.Tensor, wanted: list[str]
) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    """Name, alignment (B, T) and log-probabilities (B, T, V) of readings like the `wanted`."""

    def is_wanted(reading: str) -> bool:
        return any(fnmatchcase(reading, pattern) for pattern in wanted)

    if not isinstance(task, ImputerTask):
        log_probs = task.head(encoder_out, task.head.fully_masked(encoder_out)).log_softmax(-1)
        yield "head 1", log_probs.argmax(-1), log_probs
        return
    log_probs = task.ctc(encoder_out).log_softmax(-1)
    greedy = log_probs.argmax(-1)
    if is_wanted("ctc 1"):
        yield "ctc 1", greedy, log_probs
    for name, head in {"head": task.head, **task.rivals}.items():
        short = ("1",) if name == "masks_only" else IN_SHORT
        for key in SCHEDULES if name in READ_IN_FULL else short:
            if is_wanted(f"{name} {key}"):
                commits, revisions = SCHEDULES[key]
                read = decode_with_log_probs(head, encoder_out, commits, revisions=revisions)
                yield f"{name} {key}", *read
        alignment = greedy
        after = [n for n in AFTER_CTC if name != "masks_only" and is_wanted(f"{name} ctc+{n}")]
        for n in range(1, max(after, default=0) + 1):
            log_probs = head(encoder_out, alignment).log_softmax(-1)
            alignment = log_probs.argmax(-1)
            if n in after:
                yield f"{name} ctc+{n}", alignment, log_probs


if __name__ == "__main__":
    main()
