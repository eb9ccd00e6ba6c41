"""What the demo measures on held-out clips, and the tables it prints of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..backends import Backend
from ..bundle import Bundle, Interval
from ..errors import DataError, TokenError
from ..imputation import schedule
from ..metrics import wilson_interval
from ..specs import ModelSpec, speech_spec
from ..tokens import Tokenizer
from .show import percent, say, table
from .steps import Corpus

if TYPE_CHECKING:
    from edge_imputer.export.graph import Graph
    from edge_imputer.train.data import Clip, Split
    from edge_imputer.train.evaluation import Decoded, Disagreement, KeywordFigures

N_STEPS = (1, 2, 4, 8)
K_8: dict[str, Any] = {"n_steps": 8, "revisions": 0}
N_SEQUENCES = 100
SEQUENCE_CLIPS = (3, 7)
SEQUENCE_SEED = 2020
N_KEYWORDS = 10
N_PARITY = 3


@dataclass(frozen=True)
class Results:
    """What was measured on the held-out clips."""

    isolated: dict[str, list[Decoded]]  # by runtime, K = 8
    sequences: list[Clip]
    by_schedule: dict[str, list[Decoded]]  # sequences on onnxruntime
    wer: dict[str, Interval]  # of `by_schedule`
    own_wer: Interval  # of sequences by the bundle's own schedule
    by_runtime: dict[str, list[Decoded]]  # sequences, K = 8
    keywords: KeywordFigures | None  # None where the model can spell no frequent word
    threshold_split: Split
    disagreements: list[Disagreement]

    @property
    def accuracy(self) -> Interval:
        """Exact transcripts of isolated clips on onnxruntime."""
        return exact(self.isolated["onnx"])

    @property
    def agreement(self) -> float:
        """Share of test clips with the same transcript on every runtime."""
        n = len(self.isolated["onnx"]) + len(self.sequences)
        return 1 - len(self.disagreements) / n


def exact(decoded: Sequence[Decoded]) -> Interval:
    """Share of clips whose transcript is the reference, with its interval."""
    return wilson_interval(sum(d.exact for d in decoded), len(decoded))


def evaluate(
    bundle: Bundle, backends: dict[str, Backend], clips: list[Clip], corpus: Corpus
) -> Results:
    """Decode the test clips, alone and in sequences, on every runtime and by every schedule."""
    from edge_imputer.train.data import joined_sequences
    from edge_imputer.train.evaluation import (
        decode_clips,
        disagreements,
        measure_keywords,
        word_error_rate,
    )

    spec = speech_spec(bundle.spec)
    tuning_clips, threshold_split = _tuning_clips(corpus)
    rate = spec.features.sample_rate
    sequences, tuning = (
        joined_sequences(c, N_SEQUENCES, sample_rate=rate, seed=seed, length=SEQUENCE_CLIPS)
        for c, seed in ((clips, SEQUENCE_SEED), (tuning_clips, SEQUENCE_SEED + 1))
    )
    isolated = {
        name: decode_clips(bundle, b, clips, **K_8, label=f"{name}: isolated clips")
        for name, b in backends.items()
    }
    onnx = backends["onnx"]
    by_schedule = {
        name: decode_clips(bundle, onnx, sequences, label=f"onnx: sequences, K = {name}", **how)
        for name, how in _schedules(spec).items()
    }
    by_runtime = {"onnx": by_schedule["8"]} | {
        name: decode_clips(bundle, b, sequences, **K_8, label=f"{name}: sequences")
        for name, b in backends.items()
        if name != "onnx"
    }
    words = _keywords(clips, Tokenizer(spec.tokens))
    tuned = decode_clips(bundle, onnx, tuning, label="onnx: sequences to choose a threshold on")
    if spec.head.schedule == schedule(8, spec.head.block_size) and not spec.head.revisions:
        own = by_schedule["8"]
    else:
        own = decode_clips(bundle, onnx, sequences, label="onnx: sequences, the bundle's schedule")
    return Results(
        isolated=isolated,
        sequences=sequences,
        by_schedule=by_schedule,
        wer={name: word_error_rate(decoded) for name, decoded in by_schedule.items()},
        own_wer=word_error_rate(own),
        by_runtime=by_runtime,
        keywords=measure_keywords(words, tuned, own, spec) if words else None,
        threshold_split=threshold_split,
        disagreements=disagreements(isolated) + disagreements(by_runtime),
    )


def _schedules(spec: ModelSpec) -> dict[str, dict[str, Any]]:
    """Schedules to compare: K = 1, 2, 4, 8, and a front-loaded one of four passes."""
    schedules: dict[str, dict[str, Any]] = {str(k): {**K_8, "n_steps": k} for k in N_STEPS}
    if spec.head.block_size > 4:
        front = (spec.head.block_size - 3, 1, 1, 1)
        name = "(" + ",".join(map(str, front)) + ")"
        schedules[name] = {"schedule": front, "revisions": 0}
    return schedules


def _tuning_clips(corpus: Corpus) -> tuple[list[Clip], Split]:
    """Clips that thresholds may be chosen on: the valid split, or train where there is none."""
    try:
        return corpus.clips("valid"), "valid"
    except DataError:
        say("No validation split: the keyword threshold is chosen on training clips.")
        return corpus.clips("train"), "train"


def _keywords(clips: Sequence[Clip], tokenizer: Tokenizer) -> list[str]:
    """The most frequent words of the test texts that the model's characters can spell."""
    counts = Counter(word for clip in clips for word in clip.text.split())
    words = []
    for word, _ in counts.most_common():
        try:
            tokenizer.encode(word)
        except TokenError as error:
            say(f"Not listened for: {error}")
            continue
        words.append(word)
    return sorted(words[:N_KEYWORDS])


def compare_with_integers(
    bundle: Bundle, encoder: Graph, imputer: Graph, native: Backend, clips: Sequence[Clip]
) -> dict[str, Any]:
    """Hold the runtimes to the exact integers: layer by layer, and the C code on whole clips."""
    from edge_imputer.export.parity import decoded_feeds, layer_parity
    from edge_imputer.export.simulate import reference_backend
    from edge_imputer.train.evaluation import decode_clips

    clips = clips[:N_PARITY]
    spec = speech_spec(bundle.spec)
    feeds = decoded_feeds(encoder, imputer, spec, [clips[0].waveform])
    rows = layer_parity(encoder, feeds[0]) + layer_parity(imputer, feeds[1][::4])
    worst = {
        runtime: max((r for r in rows if r.runtime == runtime), key=lambda r: (r.max_lsb, r.share))
        for runtime in dict.fromkeys(r.runtime for r in rows)
    }
    table(
        "Every layer fed the exact integers' inputs: the layer that differs most",
        ["runtime", "steps", "elements that differ", "layer"],
        [
            (name, r.max_lsb, f"{100 * r.share:.3f} % of {r.n}", f"{r.op} ({r.kind})")
            for name, r in worst.items()
        ],
    )
    integers = reference_backend(encoder, imputer, spec)
    pairs = zip(*(decode_clips(bundle, b, clips) for b in (integers, native)), strict=True)
    same = sum(a.log_probs.tobytes() == b.log_probs.tobytes() for a, b in pairs)
    say(f"Native C gives the numpy integers' bytes on {same} of {len(clips)} sequences.")
    return {
        "layer_max_lsb": {name: r.max_lsb for name, r in worst.items()},
        "native_equals_integers": same == len(clips),
    }


def print_results(results: Results) -> None:
    """Tables of accuracy, word error rates, keywords and agreement."""
    onnx = results.isolated["onnx"]
    rows = [(name, percent(exact(decoded))) for name, decoded in results.isolated.items()]
    made_by = _grouped(onnx, lambda d: d.clip.record.engine or "people")
    if len(made_by) > 1:
        rows += [(f"onnx, clips of {name}", percent(exact(d))) for name, d in made_by.items()]
    speakers = _grouped(onnx, lambda d: d.clip.speaker)
    rows += [(f"onnx, speaker {name}", percent(exact(d))) for name, d in speakers.items()]
    table("Isolated held-out clips, exact transcripts, K = 8 (95 % interval)", ["", "exact"], rows)
    fewest, most = SEQUENCE_CLIPS
    table(
        f"{len(results.sequences)} sequences of {fewest} to {most} held-out clips: "
        "word error rate by schedule (95 % interval)",
        ["schedule, onnx", "word error rate"],
        [(name, percent(rate)) for name, rate in results.wer.items()],
    )
    if results.keywords is not None:
        found = results.keywords
        table(
            f"Keywords {', '.join(found.words)} in these sequences; "
            f"threshold {found.threshold:.2f} chosen on {results.threshold_split}",
            ["", "value"],
            [
                ("recall", percent(found.recall)),
                ("detections beyond what is said", f"{found.n_extra} in {found.hours:.3f} h"),
            ],
        )
    say(f"Same transcript on every runtime: {100 * results.agreement:.2f} % of the clips.")
    for d in results.disagreements:
        say(f"  {d.clip} ({d.reference}): {d.texts}, top-two margin {d.margin:.4f} nats")


def _grouped(decoded: Sequence[Decoded], key: Callable[[Decoded], str]) -> dict[str, list[Decoded]]:
    """By the key's value, in order."""
    groups: dict[str, list[Decoded]] = {}
    for one in sorted(decoded, key=key):
        groups.setdefault(key(one), []).append(one)
    return groups


def _interval(name: str, rate: Interval) -> dict[str, float]:
    return {
        name: round(rate.value, 4),
        f"{name}_low": round(rate.low, 4),
        f"{name}_high": round(rate.high, 4),
    }


def figures_of(results: Results) -> dict[str, Any]:
    """Plain numbers for a program."""
    accuracy, keywords = results.accuracy, results.keywords
    made_by = _grouped(results.isolated["onnx"], lambda d: d.clip.record.engine or "people")
    figures: dict[str, Any] = {**_interval("digit_accuracy", accuracy), "n_isolated": accuracy.n}
    if len(made_by) > 1:
        for name, decoded in made_by.items():
            figures |= _interval(f"digit_accuracy_{name}", exact(decoded))
    for name, rate in results.wer.items():
        passes = name.strip("()").replace(",", "_")
        figures |= _interval(f"wer_{passes}" if "," in name else f"wer_k{passes}", rate)
    recall: dict[str, Any] = {"keyword_recall": None}
    if keywords:
        recall = _interval("keyword_recall", keywords.recall)
    return {
        **figures,
        **recall,
        "keyword_extra_detections": keywords.n_extra if keywords else None,
        "keyword_threshold": keywords.threshold if keywords else None,
        "sequence_hours": round(keywords.hours, 4) if keywords else None,
        "transcripts_agree": round(results.agreement, 4),
        "disagreements": [
            {"clip": d.clip, "texts": d.texts, "margin": round(d.margin, 4)}
            for d in results.disagreements
        ],
    }
