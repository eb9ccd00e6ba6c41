"""A deployed model, made better by the clips in which it got keywords wrong."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import torch

from edge_imputer import __version__
from edge_imputer.bundle import MANIFEST_NAME, Bundle
from edge_imputer.errors import CheckpointError, DataError, SpecError
from edge_imputer.files import write_atomically
from edge_imputer.measured import Record
from edge_imputer.specs import ModelSpec

from ..checkpoint import Checkpoint, load_checkpoint
from ..data import ClipRecord, Manifest
from ..evaluation.journal import Journal
from ..recipe import Recipe
from ..trainer import (
    LAST,
    RANGES_NAME,
    RECIPE_NAME,
    WEIGHTS_NAME,
    checkpoint_of,
    read_corpus,
    train,
)
from .comparing import Comparison, RateComparison
from .continuing import RATE, SHARE, continuing_recipe, write_corpus, write_saved
from .measuring import Measuring
from .mining import Rules, fires, mine
from .saved_clips import KEEP_BACK, Collection, SavedClip, collect
from .spotters import Spotter, open_spotter

IMPROVED = "improved.ckpt"
REPORT = "improve.json"
JOURNAL = "journal.jsonl"


@dataclass(frozen=True, kw_only=True)
class Improvement:
    """What to make better, with what.

    Attributes
    ----------
    model : Path
        A bundle, a checkpoint, or the folder of a run.
    data : Path
        The corpus that it was trained on.
    out : Path
        Folder for everything made; the model itself is not touched.
    false_fires, misses : folders of saved clips
    negatives : corpora without the keywords, to mine
    keywords : what a model that writes text listens for; those of its operating point if empty.
        One of them: what misses say that are in no keyword's folder
    keep_back : share of the saved clips to measure on
    threshold : of every keyword, instead of the model's own
    rules : of mining
    recipe : to continue with, as it is; made of the model's own if None
    updates, rate, share : see `continuing_recipe`
    progress : bool
    """

    model: Path
    data: Path
    out: Path
    false_fires: Path | None = None
    misses: Path | None = None
    negatives: Sequence[Path] = ()
    keywords: Sequence[str] = ()
    keep_back: float = KEEP_BACK
    threshold: float | None = None
    rules: Rules = field(default_factory=Rules)
    recipe: Recipe | None = None
    updates: int | None = None
    rate: float = RATE
    share: float = SHARE
    progress: bool = True


class ImproveReport(Record, frozen=True, kw_only=True):
    """What was done and what came of it; written as ``improve.json``."""

    model: str
    model_sha256: str
    data: str
    keywords: tuple[str, ...]
    thresholds: dict[str, float]
    keep_back: float
    n_trained: dict[str, int]  # saved clips, false fires and misses
    n_kept_back: dict[str, int]
    repeats: dict[str, int]  # of saved clips in the corpus, by label
    n_mined: int
    bad: dict[str, str]
    repeated: dict[str, str]
    updates: int
    learning_rate: float
    share: float
    comparisons: tuple[Comparison, ...]
    rates: tuple[RateComparison, ...]
    unmeasured: tuple[str, ...]
    improved_sha256: str
    created_by: str

    @property
    def worse(self) -> tuple[str, ...]:
        """What got worse, in words."""
        rates = (
            f"{r.clips}: {r.after.count} false alarms, {r.before.count} before"
            for r in self.rates
            if r.after.count > r.before.count
        )
        return (*(str(c) for c in self.comparisons if c.verdict == "worse"), *rates)

    @property
    def traded(self) -> bool:
        """Whether one kind of mistake became rarer and the other more frequent."""
        found = {(c.what, c.verdict) for c in self.comparisons}
        found |= {("fires", "better") for r in self.rates if r.after.count < r.before.count}
        found |= {("fires", "worse") for r in self.rates if r.after.count > r.before.count}
        kinds = (
            (("missed", "worse"), ("fires", "better")),
            (("missed", "better"), ("fires", "worse")),
        )
        return any(set(kind) <= found for kind in kinds)


def model_file(path: Path) -> Path:
    """The checkpoint that is meant, or the folder of a bundle.

    Raises
    ------
    CheckpointError
        Nothing is there.
    """
    if path.is_file() or (path / MANIFEST_NAME).is_file():
        return path
    if (path / LAST).is_file():
        return path / LAST
    raise CheckpointError(
        f"expected a bundle, a checkpoint or the folder of a run at {path}, found none of these"
    )


def improve(options: Improvement) -> ImproveReport:
    """Collect, mine, train on, and compare on clips that were kept back.

    A run that was interrupted goes on where it was, given the same options.

    Raises
    ------
    SpecError
        No keywords are known, or nothing to learn from.
    DataError
        Clips or corpora that cannot be used, or an `out` that would touch the old model.
    CheckpointError
        A model that cannot be read, or another run in `out`.
    TrainingError
        As `train`.
    """
    model, out = model_file(options.model), options.out
    _check_out(model, out)
    if not (options.false_fires or options.misses or options.negatives):
        raise SpecError(
            "expected something to learn from: --false-fires DIR, --misses DIR or --negatives "
            "MANIFEST, got none"
        )
    own: dict[str, float] = {}
    given = options.recipe
    if model.is_dir():
        bundle = Bundle.load(model)
        own = _thresholds(bundle, options.keywords)
        model = _of_bundle(bundle, given, out)
        if RECIPE_NAME not in bundle.manifest.files:
            given = None  # it is the recipe of the first training, and no other is given
    loaded = load_checkpoint(model)
    writes_text = isinstance(loaded.spec, ModelSpec)
    before = _open(model, loaded, own, options)
    recipe = _recipe(options, given, loaded, before.keywords)
    saved = Collection()
    if options.false_fires or options.misses:
        saved = collect(
            options.false_fires,
            options.misses,
            before.keywords,
            keyword=options.keywords[0] if len(options.keywords) == 1 else None,
            keep_back=options.keep_back,
        )
    with Journal(out / JOURNAL) as journal:
        n_mined, repeats = _write_corpora(options, recipe, before, saved, journal)
        tests = Measuring(
            saved,
            before.keywords,
            data=options.data,
            negatives=options.negatives,
            seed=recipe.run.seed,
            writes_text=writes_text,
            progress=options.progress,
        )
        outcomes = tests.hear(before, journal, "Before")
        new = out / IMPROVED
        write_atomically(new, _continue(options, recipe, loaded, model, saved, n_mined))
        after = open_spotter(
            new,
            keywords=before.keywords if writes_text else None,
            thresholds=before.thresholds,
        )
        comparisons, rates = tests.compare(outcomes, tests.hear(after, journal, "After"))
    kinds = {"false fires": False, "misses": True}
    report = ImproveReport(
        model=options.model.resolve().name,
        model_sha256=loaded.sha256,
        data=options.data.resolve().name,
        keywords=before.keywords,
        thresholds=dict(before.thresholds),
        keep_back=options.keep_back,
        n_trained={k: len(saved.some(misses=m, kept_back=False)) for k, m in kinds.items()},
        n_kept_back={k: len(saved.some(misses=m, kept_back=True)) for k, m in kinds.items()},
        repeats=repeats,
        n_mined=n_mined,
        bad=saved.bad,
        repeated=saved.repeated,
        updates=recipe.run.updates,
        learning_rate=recipe.optimizer.learning_rate,
        share=options.share,
        comparisons=comparisons,
        rates=rates,
        unmeasured=tests.unmeasured(),
        improved_sha256=load_checkpoint(new).sha256,
        created_by=f"edge-imputer {__version__}",
    )
    written = msgspec.json.format(msgspec.json.encode(report), indent=2) + b"\n"
    write_atomically(out / REPORT, written)
    return report


def _check_out(model: Path, out: Path) -> None:
    if model.resolve().is_relative_to(out.resolve()):
        raise DataError(
            f"expected a folder of its own to write, got {out}, which the model {model} is in; "
            "give another with --out"
        )
    if (out / REPORT).exists():
        raise DataError(
            f"{out / REPORT} exists: a model was improved there; give another folder with --out"
        )


def original_file(bundle: Bundle, recipe: Recipe | None, out: Path) -> Path:
    """Where a bundle's float model is kept as a checkpoint; of each content another name."""
    files = bundle.manifest.files
    content = [
        files[name].sha256 for name in (WEIGHTS_NAME, RECIPE_NAME, RANGES_NAME) if name in files
    ]
    digest = hashlib.sha256(msgspec.json.encode([content, recipe])).hexdigest()
    return out / f"original-{digest[:12]}.ckpt"


def _of_bundle(bundle: Bundle, recipe: Recipe | None, out: Path) -> Path:
    """The bundle's float model as a checkpoint: so both are compared in the same arithmetic."""
    original = original_file(bundle, recipe, out)
    if not original.exists():
        out.mkdir(parents=True, exist_ok=True)
        file = io.BytesIO()
        torch.save(checkpoint_of(bundle, recipe), file)
        write_atomically(original, file.getvalue())
        try:
            load_checkpoint(original)
        except CheckpointError:
            original.unlink()
            raise
    return original


def _thresholds(bundle: Bundle, keywords: Sequence[str]) -> dict[str, float]:
    """What a bundle says of these keywords, and of those that it has an operating point for."""
    manifest = bundle.manifest
    any_word = manifest.keyword_threshold
    own = {} if any_word is None else dict.fromkeys(keywords, any_word)
    return own if manifest.operating_point is None else own | manifest.operating_point.thresholds


def _open(
    model: Path, loaded: Checkpoint, own: Mapping[str, float], options: Improvement
) -> Spotter:
    """The model of before. Keywords of a keyword model are its own, whatever is given."""
    wanted = None
    if isinstance(loaded.spec, ModelSpec):
        wanted = tuple(options.keywords) or tuple(own) or None
    elif len(options.keywords) > 1:
        raise SpecError(
            f"{options.model} has its own keywords: expected one at most, what misses say that are "
            f"in no keyword's folder, got {', '.join(options.keywords)}"
        )
    return open_spotter(model, keywords=wanted, thresholds=own, threshold=options.threshold)


def _recipe(
    options: Improvement, given: Recipe | None, loaded: Checkpoint, keywords: Sequence[str]
) -> Recipe:
    """What to continue by; the network of one that is given must be the model's."""
    if given is None:
        return continuing_recipe(
            loaded.recipe,
            keywords,
            updates=options.updates,
            rate=options.rate,
            share=options.share,
        )
    if (options.rate, options.share) != (RATE, SHARE):
        raise SpecError("a recipe is taken as it is: give it, or a rate and a share, but not both")
    if type(given.task) is not type(loaded.recipe.task):
        raise SpecError(
            f"expected a recipe for the model's own task, {type(loaded.recipe.task).__name__}, got "
            f"{type(given.task).__name__}"
        )
    if isinstance(loaded.spec, ModelSpec):
        task = msgspec.structs.replace(given.task, keywords=tuple(keywords))
        given = msgspec.structs.replace(given, task=task)
    for name in ("features", "encoder"):
        if type(getattr(given, name)) is not type(getattr(loaded.recipe, name)):
            raise SpecError(
                f"expected a recipe for the model's own {name}, "
                f"{type(getattr(loaded.recipe, name)).__name__}, got "
                f"{type(getattr(given, name)).__name__}"
            )
    # The network is the model's: a recipe says how to train it.
    given = msgspec.structs.replace(given, encoder=loaded.recipe.encoder)
    if options.updates is not None:
        run = msgspec.structs.replace(given.run, updates=options.updates)
        given = msgspec.structs.replace(given, run=run)
    return given


def _write_corpora(
    options: Improvement, recipe: Recipe, spotter: Spotter, saved: Collection, journal: Journal
) -> tuple[int, dict[str, int]]:
    """Mine, and write the corpus to train on: windows mined, and how often saved clips are in."""
    original = Manifest.open(options.data)
    mined = None
    if options.negatives:
        parts = [_train_rows(path) for path in options.negatives]
        folder = options.out / "mined"
        mine(spotter, parts, folder, options.rules, journal=journal, progress=options.progress)
        mined = Manifest.open(folder)
    clips = None
    if saved.clips:
        rows = (r for c in saved.clips for r in _records(c, spotter, options.rules, journal))
        clips = write_saved(rows, options.out / "saved")
    repeats = write_corpus(
        original,
        clips,
        mined,
        options.out / "corpus",
        share=options.share,
        recipe=recipe,
    )
    return 0 if mined is None else len(mined), dict(repeats)


def _records(
    clip: SavedClip, spotter: Spotter, rules: Rules, journal: Journal
) -> Sequence[ClipRecord]:
    """The rows of a saved clip; a long one that is trained on is cut to where it fires."""
    record = clip.record()
    if clip.kept_back or clip.keyword is not None or clip.duration_s <= rules.window_s:
        return [record]
    return fires(spotter, Path(), record, rules, journal) or [record]


def _train_rows(path: Path) -> Manifest:
    rows = Manifest.open(path, split="train")
    if not len(rows):
        raise DataError(
            f"{path}: expected negatives of the split train to learn from, got none; what is "
            "mined is trained on, so other splits are not taken"
        )
    return rows


def _continue(
    options: Improvement,
    recipe: Recipe,
    loaded: Checkpoint,
    model: Path,
    saved: Collection,
    n_mined: int,
) -> bytes:
    """Train on, or go on with a run that was interrupted: the new checkpoint."""
    run = options.out / "run"
    section = recipe.data
    rate = recipe.features.sample_rate
    train_data, valid_data = read_corpus(options.out / "corpus", section, rate)
    n_saved = sum(not clip.kept_back for clip in saved.clips)
    result = train(
        train_data,
        valid_data,
        recipe,
        run,
        data_name=f"{loaded.origin.data}, {n_saved} saved clips, {n_mined} mined",
        resume=True,  # where there is a checkpoint, be it the one before the last
        init_from=model,
        progress=options.progress,
    )
    return result.read_bytes()
