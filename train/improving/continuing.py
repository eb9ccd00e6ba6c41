"""To train on: the corpus of before with what is new in it, and a recipe for fewer updates."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from edge_imputer.errors import SpecError

from ..data import ClipRecord, Manifest, write_manifest
from ..data.combine import merge
from ..data.records import HARD_LABEL, NEAR_MISS_LABEL, UNKNOWN_LABEL
from ..evaluation.events import said_in
from ..quantisation import QuantisationSection
from ..recipe import DrawnBatches, Recipe
from ..tasks import ImputerTaskSpec, KeywordTaskSpec, TaskSpec

SHARE = 0.3  # of what is new, so that the old is still most of what is seen
RATE = 0.1  # of the first training's learning rate
UPDATES_SHARE = 0.1  # of the first training's updates
LEAST_UPDATES = 50
WARMUP = 0.05
LEAST_SAID = 0.1  # of the rows: as if so many said the keyword at least
MOST_REPEATS = 100  # of one recording, however few were saved


def continuing_recipe(
    recipe: Recipe,
    keywords: Sequence[str],
    *,
    updates: int | None = None,
    rate: float = RATE,
    share: float = SHARE,
) -> Recipe:
    """A recipe that goes on from what this one has trained.

    The data and the model's parts are its own; the learning rate is lower and falls from the
    start, nothing is ramped up again, and hard negatives have a share of the utterances, see
    `shares_with_hard`.

    Parameters
    ----------
    recipe : Recipe
    keywords : that a model which writes text is to keep out of its hard negatives
    updates : None: `UPDATES_SHARE` of the recipe's
    rate : learning rate, as a share of the recipe's
    share : of the utterances that are hard negatives

    Raises
    ------
    SpecError
        A value that cannot be.
    """
    if not 0 < share < 1 or not 0 < rate <= 1:
        raise SpecError(
            f"expected a share above 0 and below 1, and a rate above 0 and at most 1, got {share} "
            f"and {rate}"
        )
    replace = msgspec.structs.replace
    n = updates or max(LEAST_UPDATES, round(UPDATES_SHARE * recipe.run.updates))
    batches: Any = recipe.batches
    if isinstance(batches, DrawnBatches):
        if isinstance(recipe.task, KeywordTaskSpec):
            shares = shares_with_hard(batches.shares, share)
        else:
            shares = {HARD_LABEL: share}
        batches = replace(batches, shares=shares)
    changed = replace(
        recipe,
        task=_continued(recipe.task, keywords),
        augment=replace(recipe.augment, ramp=0.0),
        quantisation=QuantisationSection(),  # its ranges were of other weights and other audio
        batches=batches,
        optimizer=replace(
            recipe.optimizer,
            learning_rate=rate * recipe.optimizer.learning_rate,
            schedule="cosine",
            steps=(),
            warmup=WARMUP,
            warmup_updates=0,
        ),
        run=replace(
            recipe.run,
            updates=n,
            seed=recipe.run.seed + 1,  # other draws than those that it was trained on
            valid_every=-(-n // 5),
            checkpoint_every=0,
            result="last",
            patience=0,
            ema=0.0,  # its mean would still be of the old weights
        ),
    )
    changed.check()
    return changed


def _continued(task: TaskSpec, keywords: Sequence[str]) -> TaskSpec:
    """The task without what helps a model of random weights."""
    replace = msgspec.structs.replace
    if isinstance(task, KeywordTaskSpec):
        return replace(task, mean_pooled=0.0)
    if isinstance(task, ImputerTaskSpec):
        task = replace(task, all_masked=0.0)
    return replace(task, flat_start=0.0, keywords=tuple(keywords))


def shares_with_hard(shares: Mapping[str, float], share: float) -> dict[str, float]:
    """Shares of labels with one for hard negatives, taken from that of the other negatives.

    So keywords are as frequent as before, and a threshold goes on meaning what it meant. Other
    speech keeps half of its share at least. Where the recipe names none, all labels give alike.
    """
    given = {name: value for name, value in shares.items() if name != HARD_LABEL}
    speech = {name: given[name] for name in (UNKNOWN_LABEL, NEAR_MISS_LABEL) if given.get(name)}
    before = shares.get(HARD_LABEL, 0.0)
    total = sum(speech.values()) + before
    if not total:
        return {**{name: (1 - share) * value for name, value in given.items()}, HARD_LABEL: share}
    hard = min(share, total / 2) if speech else before
    factor = (total - hard) / (total - before) if speech else 1.0
    smaller = {name: factor * value for name, value in speech.items()}
    return {**given, **smaller, HARD_LABEL: hard}


def write_saved(records: Iterable[ClipRecord], folder: Path) -> Manifest:
    """A corpus folder of saved clips, whose rows lead to them where they are."""
    folder.mkdir(parents=True, exist_ok=True)
    home = folder.resolve()
    write_manifest(folder, (_beside(record, home) for record in records))
    return Manifest.open(folder)


def write_corpus(
    original: Manifest,
    saved: Manifest | None,
    mined: Manifest | None,
    out: Path,
    *,
    share: float,
    recipe: Recipe,
) -> Counter[str]:
    """Write the corpus to go on with: the original's train and valid splits, and what is new.

    A recipe's shares are by label, and a missed keyword has the label that thousands of others
    have. So its rows are repeated until they are `share` of their label's, as those of false fires
    are until they are half of the hard negatives; or `share` of all rows, where labels have no
    shares. A task that writes text knows no label but that of hard negatives: there a missed
    keyword becomes `share` of the rows that say it, or of `LEAST_SAID` of all rows, if these are
    more. No row is there more than `MOST_REPEATS` times.

    Parameters
    ----------
    original : what the model was trained on
    saved : saved clips; only those of the split train are taken
    mined : hard negatives
    out : folder
    share : of what is new
    recipe : to go on by

    Returns
    -------
    repeats : how often the rows of each label of `saved` are there
    """
    by_label = isinstance(recipe.task, KeywordTaskSpec)
    drawn = isinstance(recipe.batches, DrawnBatches)
    repeats: Counter[str] = Counter()
    parts = [original]
    if mined is not None:
        parts.append(mined)
    if saved is not None:
        labels = [record.label or "" if record.split == "train" else "" for record in saved]
        new = Counter(filter(None, labels))
        present = _present(original, [] if by_label else [w for w in new if w != HARD_LABEL])
        n_all = sum(record.split == "train" for record in original)
        for label, n in new.items():
            if label != HARD_LABEL:
                old = present[label] if by_label else max(present[label], LEAST_SAID * n_all)
                repeats[label] = _repeats(n, old, share)
            elif not drawn:
                repeats[label] = _repeats(n, n_all, share)
            else:
                n_mined = 0 if mined is None else len(mined)
                repeats[label] = _repeats(n, n_mined + present[label], 0.5)
        rows = [row for row, label in enumerate(labels) for _ in range(repeats[label])]
        parts.append(saved.where(rows))
    merge([part for part in parts if len(part)], out, splits=("train", "valid"))
    return repeats


def _present(original: Manifest, words: Sequence[str]) -> Counter[str]:
    """Training rows by label, and by which of `words` their transcript says."""
    found: Counter[str] = Counter()
    for record in original:
        if record.split == "train":
            found[record.label or ""] += not words
            found.update(words[index] for index in said_in(record.text, None, words))
    return found


def _repeats(new: int, old: float, share: float) -> int:
    """How often each of the new rows must be there to be that share beside the old ones."""
    return min(MOST_REPEATS, max(1, round(share * old / ((1 - share) * new))))


def _beside(record: ClipRecord, folder: Path) -> ClipRecord:
    return msgspec.structs.replace(record, audio=os.path.relpath(record.audio, folder))
