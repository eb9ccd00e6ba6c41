"""PocketSphinx on the clips of a corpus, to put our figures beside: errors and real-time factor.

::

    pip install pocketsphinx  # 5.x, with its model of US English
    python docs/tools/pocketsphinx_beside.py build/strings --language docs/examples/digits.txt
    python docs/tools/pocketsphinx_beside.py build/strings --bundle build/demo/bundle

In an environment of its own with ``edge-imputer[train]``: nothing of ours needs it. It hears the
clips of one split, clean and with `--noise` mixed in at each `--snr` as ``edge-imputer evaluate``
does, by the same code. It searches with its own language model of US English, and with the
words or the grammar of `--language`: the very graph that our decoder searches. Words that its
dictionary lacks are left out there and named; it has no rules to pronounce them. With `--bundle`
a model of ours hears the same clips in the same run, without and with that language.

Rows without texts and with slots are scored by their slots. The real-time factor is CPU seconds
from samples to text, one thread, over seconds of audio. The last line is one JSON object, also in
`--out`.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from importlib.metadata import version
from itertools import product
from math import exp
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_imputer.backends import load_backend
from edge_imputer.bundle import Bundle
from edge_imputer.cli.steps import corpus_path
from edge_imputer.decoding import GraphLanguage, WordGraph, meaning, read_language
from edge_imputer.errors import SpecError
from edge_imputer.measured import Interval
from edge_imputer.train.evaluation import Entry, Journal, NoiseMixer, tells_commands_only
from edge_imputer.train.evaluation.commands import SlotGrammar, evaluate_commands
from edge_imputer.train.evaluation.results import RunInfo
from edge_imputer.train.evaluation.rows import DataSet, open_data_set
from edge_imputer.train.evaluation.run import Compute, Runner
from edge_imputer.train.evaluation.transcripts import Transcriber, evaluate_transcripts

RATE = 16_000
OWN = "own language model"
NONE = "none"


def transitions(graph: WordGraph, known: Collection[str]) -> tuple[int, list[tuple[Any, ...]]]:
    """A graph as PocketSphinx takes it: the last state, and (from, to, probability[, word]).

    What leaves a state, ends too, adds up to 1, as in its own grammars. Words that are not `known`
    are left out.

    Raises
    ------
    SpecError
        No word is known.
    """
    arcs = [arc for arc in graph.arcs if arc.word in known]
    if not arcs:
        raise SpecError("expected words of PocketSphinx's dictionary, got none at all")
    total = {state: exp(weight) for state, (weight, _) in graph.finals.items()}
    for arc in arcs:
        total[arc.source] = total.get(arc.source, 0.0) + exp(arc.weight)
    end = 1 + max(max(arc.source, arc.target) for arc in graph.arcs)
    found: list[tuple[Any, ...]] = [
        (arc.source, arc.target, exp(arc.weight) / total[arc.source], arc.word) for arc in arcs
    ]
    ends = [(state, end, exp(weight) / total[state]) for state, (weight, _) in graph.finals.items()]
    return end, found + ends


def said(hypothesis: str) -> str:
    """Words alone: without silences, noises and numbers of pronunciations, ``two(2)``."""
    words = [word.partition("(")[0] for word in hypothesis.lower().split()]
    return " ".join(word for word in words if word and word[0] not in "<[+")


class Timed:
    """What hears a clip, as `Runner.compute`; CPU time and audio add up in `cpu_s`, `audio_s`."""

    def __init__(self, compute: Compute) -> None:
        self._compute = compute
        self.cpu_s = self.audio_s = 0.0

    def __call__(self, key: str, waveform: npt.NDArray[np.float32]) -> Entry:
        """What it hears in a clip."""
        start = time.process_time()
        entry = self._compute(key, waveform)
        self.cpu_s += time.process_time() - start
        self.audio_s += len(waveform) / RATE
        return entry

    @property
    def real_time_factor(self) -> float:
        """CPU seconds a second of audio."""
        return self.cpu_s / self.audio_s


class PocketSphinx:
    """Its decoder, as `Runner.compute`."""

    def __init__(self, language: GraphLanguage | None) -> None:
        from pocketsphinx import Decoder

        self._language = language
        self._decoder = Decoder(loglevel="FATAL")
        self.left_out: list[str] = []
        if language is not None:
            words = language.graph.words
            self.left_out = self.unknown(words)
            end, arcs = transitions(language.graph, set(words) - set(self.left_out))
            graph = self._decoder.create_fsg("language", 0, end, arcs)
            self._decoder.add_fsg("language", graph)
            self._decoder.activate_search("language")

    def unknown(self, words: Collection[str]) -> list[str]:
        """Those of some words that the dictionary lacks, sorted."""
        return sorted(word for word in set(words) if self._decoder.lookup_word(word) is None)

    def __call__(self, key: str, waveform: npt.NDArray[np.float32]) -> Entry:
        """What it hears in a clip, whole: its mean is known before the search."""
        samples = (np.clip(waveform, -1, 1) * 32767).astype("<i2").tobytes()
        self._decoder.start_utt()
        self._decoder.process_raw(samples, full_utt=True)
        self._decoder.end_utt()
        found = self._decoder.hyp()
        text = said(found.hypstr if found else "")
        if self._language is None or self._language.grammar is None:
            return Entry(key=key, text=text)
        path = self._language.graph.path(text)
        rules = () if path is None else meaning(self._language.graph, path).rules
        return Entry(key=key, text=text, rules=rules)


def measure(
    data: DataSet,
    compute: Compute,
    language: GraphLanguage | None,
    noise: NoiseMixer | None,
    snr: float | None,
) -> dict[str, Any]:
    """One row: what hears by `compute` in one condition."""
    timed = Timed(compute)
    info = RunInfo(
        model="",
        model_identity="",
        command="",
        created_by="",
        seed=0,
        settings={},
        data=(),
        skipped=(),
        notes=(),
    )
    with tempfile.TemporaryDirectory() as folder, Journal(Path(folder) / "journal") as journal:
        runner = Runner("beside", timed, RATE, journal, noise)
        if tells_commands_only([data]):
            grammar = SlotGrammar(language, [data])
            report = evaluate_commands(runner, [data], [], [snr], info, grammar, threshold=0.0)
            row = report.rows[0]
            figures = {
                "n_clips": row.n_clips,
                **_interval("right", row.right),
                **_interval("slot_f1", row.slots.f1),
            }
        else:
            errors = evaluate_transcripts(runner, [data], [snr], info).rows[0]
            figures = {
                "n_clips": errors.n_clips,
                **_interval("wer", errors.wer),
                **_interval("cer", errors.cer),
                "n_words": errors.wer.n,
            }
    row = {
        "condition": "clean" if snr is None else f"{snr:g} dB",
        **figures,
        "real_time_factor": timed.real_time_factor,
    }
    if isinstance(compute, PocketSphinx):
        texts = " ".join(one.record.text or "" for one in data.rows)
        row["left_out_of_language"] = compute.left_out
        row["words_without_pronunciation"] = compute.unknown(texts.split())
    return row


def spread(data: DataSet, limit: int | None) -> DataSet:
    """At most `limit` rows, as far apart as they go."""
    n = len(data.rows)
    if limit is None or n <= limit:
        return data
    return replace(data, rows=tuple(data.rows[k * n // limit] for k in range(limit)))


def _interval(name: str, interval: Interval | None) -> dict[str, float]:
    if interval is None:
        return {}
    return {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, measure, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("data", type=Path, nargs="+", help="corpus folders")
    parser.add_argument("--language", type=Path, help="words (.txt) or a grammar (.jsgf)")
    parser.add_argument("--language-only", action="store_true", help="not its own language model")
    parser.add_argument("--split", default="test")
    parser.add_argument("--noise", type=Path, help="recordings of noise of the same split")
    parser.add_argument("--snr", type=float, nargs="+", default=[], help="dB, for --noise")
    parser.add_argument("--seed", type=int, default=0, help="of the noise, as of evaluate")
    parser.add_argument("--limit", type=int, help="at most so many clips, spread over the corpus")
    parser.add_argument("--bundle", type=Path, help="a model of ours, to hear the same")
    parser.add_argument("--backend", default="onnx", help="runtime of --bundle")
    parser.add_argument("--out", type=Path, help="file for the JSON object")
    options = parser.parse_args(arguments)
    if options.language_only and options.language is None:
        parser.error("expected --language FILE with --language-only")
    if bool(options.snr) != (options.noise is not None):
        parser.error("expected --noise and --snr together")
    language = None if options.language is None else read_language(options.language)
    if not (language is None or isinstance(language, GraphLanguage)):
        parser.error(f"expected words or a grammar, got {options.language}")
    noise = None
    if options.noise is not None:
        path = corpus_path(options.noise)
        noise = NoiseMixer(path, options.split, sample_rate=RATE, seed=options.seed)
    hearers: dict[str, Callable[[GraphLanguage | None], Compute]] = {
        f"pocketsphinx {version('pocketsphinx')}": PocketSphinx
    }
    if options.bundle is not None:
        bundle = Bundle.load(options.bundle)
        if bundle.spec.features.sample_rate != RATE:
            parser.error(f"expected a bundle of {RATE} Hz, got {bundle.spec.features.sample_rate}")
        backend = load_backend(bundle, options.backend)
        hearers[bundle.manifest.name] = lambda of: Transcriber(bundle, backend, language=of)
    rows = []
    for folder in options.data:
        data = spread(open_data_set(corpus_path(folder), options.split), options.limit)
        own = not (options.language_only or tells_commands_only([data]))
        searches: dict[str, GraphLanguage | None] = {OWN: None} if own else {}
        if language is not None:
            searches[options.language.name] = language
        for (search, of), (hearer, open_hearer) in product(searches.items(), hearers.items()):
            compute = open_hearer(of)
            for snr in (None, *options.snr):
                row = {
                    "recogniser": hearer,
                    "data": data.name,
                    "search": search if isinstance(compute, PocketSphinx) or of else NONE,
                    **measure(data, compute, of, noise, snr),
                }
                rows.append(row)
                figures = [f"{k} {v:.3f}" for k, v in row.items() if isinstance(v, float)]
                place = ", ".join(row[k] for k in ("recogniser", "data", "search", "condition"))
                print(f"{place}: {', '.join(figures)}", flush=True)
    found = {"rows": rows}
    line = json.dumps(found)
    if options.out is not None:
        options.out.write_text(line + "\n", "utf-8")
    print(line)


if __name__ == "__main__":
    main()
