"""One evaluation from its options: opens model and data, runs them, returns the report."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from edge_imputer import __version__
from edge_imputer.backends import load_backend
from edge_imputer.bundle import Bundle
from edge_imputer.decoding import Language, read_language
from edge_imputer.errors import DataError

from ..data import Split
from .commands import SlotGrammar, evaluate_commands
from .journal import Journal
from .keyword_report import Aim, KeywordScoring, Material, evaluate_keywords
from .noise import NoiseMixer
from .results import CommandReport, KeywordReport, RunInfo, TranscriptReport
from .rows import DataSet, open_data_set
from .run import Runner
from .systems import SAMPLE_RATE, bundle_identity, open_keyword_model, passes_name
from .torch_transcriber import TorchTranscriber, open_transcriber
from .transcripts import Transcriber, evaluate_transcripts

REFRACTORY_S = 1.0
TARGET_FA_PER_HOUR = 0.5


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to evaluate, on what.

    Attributes
    ----------
    model : Path
        A bundle, or a checkpoint.
    data, negatives : corpus folders or manifests
    synthetic : those of them that are generated speech and do not say so
    split, tune_split : Split
        What is reported on, and what thresholds are chosen on.
    noise : Path, optional
        Recordings of noise, whose rows of `split` are mixed in at each of `snrs_db`.
    by : keys of the manifests to break rates down by
    backend : of a bundle
    n_steps, schedule : passes of the head a chunk, or frames committed in each; the model's own
        if neither is given
    revisions : passes after these that look at every frame again; the model's own if None
    language : Path, optional
        What may be said, for transcripts and slots, see `edge_imputer.decoding.read_language`.
    seed : int
    command : str
        How this was asked for, for the report.
    progress : bool
    """

    model: Path
    data: Sequence[Path]
    negatives: Sequence[Path] = ()
    synthetic: Sequence[Path] = ()
    split: Split = "test"
    tune_split: Split = "valid"
    noise: Path | None = None
    snrs_db: Sequence[float] = ()
    by: Sequence[str] = ()
    backend: str = "onnx"
    n_steps: int | None = None
    schedule: Sequence[int] | None = None
    revisions: int | None = None
    language: Path | None = None
    seed: int = 0
    command: str = ""
    progress: bool = True
    _marked: set[Path] = field(default_factory=set)

    def __post_init__(self) -> None:
        if bool(self.snrs_db) != (self.noise is not None):
            raise DataError(
                "expected noise and signal-to-noise ratios together, got one of them; give both "
                "--noise MANIFEST and --snr 20,10,5"
            )
        known = {path.resolve() for path in (*self.data, *self.negatives)}
        for path in self.synthetic:
            if path.resolve() not in known:
                raise DataError(f"expected --synthetic to name one of the data sets, got {path}")
            self._marked.add(path.resolve())

    @property
    def passes(self) -> str:
        """How many a chunk, see `passes_name`."""
        return passes_name(self.n_steps, self.schedule, self.revisions)

    @property
    def conditions(self) -> list[float | None]:
        """Clean first, then the ratios in dB."""
        return [None, *self.snrs_db]

    def open(self, paths: Sequence[Path], split: Split) -> list[DataSet]:
        """Data sets of one split."""
        return [
            open_data_set(path, split, synthetic=path.resolve() in self._marked) for path in paths
        ]

    def noise_mixer(self, sample_rate: int) -> NoiseMixer | None:
        """The noise of `split`, if there is any."""
        if self.noise is None:
            return None
        return NoiseMixer(self.noise, self.split, sample_rate=sample_rate, seed=self.seed)


def transcribe_and_count(
    options: Options, journal: Journal, *, compare: Path | None = None
) -> TranscriptReport:
    """Word and character error rates of a bundle or checkpoint, beside another's if `compare` is.

    Raises
    ------
    DataError, BundleError
    """
    language = None if options.language is None else read_language(options.language)
    name, runner = _transcriber(options, options.model, journal, language)
    other = None if compare is None else _transcriber(options, compare, journal, language)[1]
    data = options.open(options.data, options.split)
    info = _info(options, name, runner.identity, data)
    return evaluate_transcripts(
        runner,
        data,
        options.conditions,
        info,
        by=options.by,
        other=other,
        other_name="" if compare is None else str(compare),
    )


def understand_and_count(
    options: Options,
    journal: Journal,
    *,
    threshold: float | None = None,
    compare: Path | None = None,
) -> CommandReport:
    """Commands understood by a bundle or checkpoint with a grammar, see `evaluate_commands`.

    Parameters
    ----------
    options : Options
    journal : Journal
    threshold : float, optional
        The least confidence to take a command at; chosen on `options.tune_split` if not given.
    compare : Path, optional
        Another model.

    Raises
    ------
    DataError, SpecError, BundleError, CheckpointError
    """
    if threshold is None:
        _check_tune_split(options)
    data = options.open(options.data, options.split)
    tuning = options.open(options.data, options.tune_split) if threshold is None else []
    language = None if options.language is None else read_language(options.language)
    grammar = SlotGrammar(language, [*data, *tuning])
    name, runner = _transcriber(options, options.model, journal, language, task="slots")
    other = None
    if compare is not None:
        other = _transcriber(options, compare, journal, language, task="slots")[1]
    return evaluate_commands(
        runner,
        data,
        tuning,
        options.conditions,
        _info(options, name, runner.identity, data),
        grammar,
        threshold=threshold,
        by=options.by,
        other=other,
        other_name="" if compare is None else str(compare),
    )


def _check_tune_split(options: Options) -> None:
    if options.tune_split == options.split:
        raise DataError(
            f"expected another split to choose the threshold on than {options.split!r}, which is "
            "reported on; give --tune-split, or a --threshold"
        )


def spot_and_count(
    options: Options,
    journal: Journal,
    *,
    keywords: Sequence[str] | None = None,
    target_fa_per_hour: float = TARGET_FA_PER_HOUR,
    threshold: float | None = None,
    refractory_s: float = REFRACTORY_S,
) -> KeywordReport:
    """Misses and false alarms of keywords.

    Parameters
    ----------
    options : Options
    journal : Journal
    keywords : sequence of str, optional
        Those of the bundle's operating point or of the checkpoint if not given.
    target_fa_per_hour : float
        What the threshold is chosen for.
    threshold : float, optional
        Take this one instead.
    refractory_s : float

    Raises
    ------
    DataError, SpecError, TokenError, BundleError, CheckpointError
    """
    if not options.negatives:
        raise DataError(
            "expected audio without keywords to count false alarms in, got no --negatives; misses "
            "alone say nothing about a threshold"
        )
    if threshold is None:
        _check_tune_split(options)
    model = open_keyword_model(
        options.model,
        keywords,
        backend=options.backend,
        n_steps=options.n_steps,
        revisions=options.revisions,
    )
    system, identity = model.system, model.identity
    scoring = KeywordScoring(system, refractory_s)
    runner = Runner(
        identity=scoring.identity(identity),
        compute=scoring,
        sample_rate=SAMPLE_RATE,
        journal=journal,
        noise=options.noise_mixer(SAMPLE_RATE),
        pad_s=system.latency_s,
        progress=options.progress,
    )
    material, tuning = (
        Material(options.open(options.data, split), options.open(options.negatives, split))
        for split in (options.split, options.tune_split)
    )
    info = _info(options, model.name, identity, [*material.positives, *material.negatives])
    given = None if threshold is None else dict.fromkeys(system.keywords, threshold)
    aim = Aim(target_fa_per_hour if given is None else None, given, tuning)
    return evaluate_keywords(
        runner,
        system.keywords,
        material,
        aim,
        options.conditions,
        info,
        refractory_s=refractory_s,
        by=options.by,
    )


def _transcriber(
    options: Options,
    model: Path,
    journal: Journal,
    language: Language | None,
    *,
    task: str = "transcripts",
) -> tuple[str, Runner]:
    """A bundle in its runtime, or a checkpoint in torch: its name, and what runs it on clips."""
    compute: TorchTranscriber | Transcriber
    passes = f"{options.passes} passes"
    if options.language is not None:
        passes += f", {hashlib.sha256(options.language.read_bytes()).hexdigest()}"
    if model.is_file():
        compute, identity = open_transcriber(
            model,
            n_steps=options.n_steps,
            schedule=options.schedule,
            revisions=options.revisions,
            language=language,
        )
        name, how = model.name, f"torch, {passes}"
    else:
        bundle = Bundle.load(model)
        backend = load_backend(bundle, options.backend)
        compute = Transcriber(
            bundle,
            backend,
            n_steps=options.n_steps,
            schedule=options.schedule,
            revisions=options.revisions,
            language=language,
        )
        identity = bundle_identity(bundle)
        name, how = bundle.manifest.name, f"{options.backend}, {passes}"
    return name, Runner(
        identity=f"{task} {__version__} {identity} {how}",
        compute=compute,
        sample_rate=compute.sample_rate,
        journal=journal,
        noise=options.noise_mixer(compute.sample_rate),
        progress=options.progress,
    )


def _info(options: Options, name: str, identity: str, data: Sequence[DataSet]) -> RunInfo:
    settings = {
        "split": options.split,
        "noise": "none" if options.noise is None else options.noise.name,
        "signal-to-noise ratios": ", ".join(f"{snr:g} dB" for snr in options.snrs_db) or "clean",
    }
    if not options.model.is_file():
        settings["runtime"] = options.backend
        settings["passes"] = options.passes.replace("own", "the bundle's own schedule")
    if options.language is not None:
        settings["language"] = options.language.name
    return RunInfo(
        model=name,
        model_identity=identity,
        command=options.command,
        created_by=f"edge-imputer {__version__}",
        seed=options.seed,
        settings=settings,
        data=tuple(dict.fromkeys(map(_describe, data))),
        skipped=(),
        notes=(),
    )


def _describe(data: DataSet) -> str:
    hours = sum(row.record.duration_s for row in data.rows) / 3600
    speakers = {row.record.speaker for row in data.rows}
    kinds: list[Literal["real", "synthetic"]] = data.kinds
    return (
        f"{data.name}, split {data.split}: {len(data.rows)} clips, {hours:.2f} h, "
        f"{len(speakers)} speaker ids, {' and '.join(kinds) or 'empty'}"
    )
