"""What a study keeps of its models, and what it says of them."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from edge_imputer.errors import DataError
from edge_imputer.train.active.study_journal import BASE, Measured, StudyJournal
from edge_imputer.train.active.study_report import study_report


def measured(strategy: str, seed: int, number: int, errors: list[int], noise: int = 0) -> Measured:
    return Measured(
        strategy=strategy,
        seed=seed,
        round=number,
        hours=1.0 + number,
        n_noise=noise,
        rows=(),
        errors=tuple(errors),
        totals=(5,) * len(errors),
    )


def test_journals_lose_only_what_was_cut(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "study.jsonl"
    one = measured("egl", 1, 1, [1, 2])
    with StudyJournal(path, {"plan": 1}) as journal:
        journal.put(one)
        journal.put(measured("egl", 1, 2, [1, 0]))
    path.write_bytes(path.read_bytes()[:-5])
    with StudyJournal(path, {"plan": 1}) as journal:
        assert journal.get("egl", 1, 1) == one
        assert journal.get("egl", 1, 2) is None
        journal.put(measured("egl", 1, 2, [3, 0]))
    with StudyJournal(path, {"plan": 1}) as journal:
        assert journal.get("egl", 1, 2) == measured("egl", 1, 2, [3, 0])
    with pytest.raises(DataError, match="is of another study"):
        StudyJournal(path, {"plan": 2})
    path.write_bytes(path.read_bytes().replace(b'"rows"', b'"cows"'))
    with pytest.raises(DataError, match="line 2: not a measure"):
        StudyJournal(path, {"plan": 1})


def test_reports_have_areas_and_hours_saved() -> None:
    """Of 100 clips with 5 words: random goes 100, 80, 60 % in 2 h; egl 100, 50, 40 %."""
    found = []
    for seed in (1, 2):
        off = 2 * seed - 3
        found.append(measured(BASE, seed, 0, [5] * 100))
        found += [measured("random", seed, n + 1, [5] * 40 + [v] * 60) for n, v in ((0, 3), (1, 1))]
        found += [measured("egl", seed, 1, [3 + off] * 50 + [2 - off] * 50, noise=2)]
        found += [measured("egl", seed, 2, [4] * 50 + [0] * 50, noise=4)]
    report = study_report(found, what="wer", command="c", created_by="b")
    assert report.best == "egl"
    egl, random = report.curves
    assert [round(point.rate, 9) for point in random.points] == [1.0, 0.76, 0.52]
    assert [round(point.rate, 9) for point in egl.points] == [1.0, 0.5, 0.4]
    assert random.area == pytest.approx((0.88 + 0.64) / 2)
    assert egl.area == pytest.approx((0.75 + 0.45) / 2)
    assert random.hours_to_random == pytest.approx(3.0)
    assert egl.hours_to_random == pytest.approx(1 + (1 - 0.52) / 0.5)
    assert [point.noise for point in egl.points] == [0, 2, 4]
    assert random.against_random is None
    against = egl.against_random
    assert against is not None
    assert against.relative.value == pytest.approx(0.9 / 1.28 - 1)
    assert against.relative_at_end.value == pytest.approx(0.4 / 0.52 - 1)
    assert against.by_seed == pytest.approx((0.9 / 1.28 - 1,) * 2)
    assert against.relative.low < against.relative.value < against.relative.high < 0
    assert against.p_value < 0.01
    rows = [msgspec.structs.asdict(row) for row in report.active_study]
    assert rows[0] == {"strategy": "base", "hours": 1.0, "wer": 1.0, "seed": 1}
    assert {"strategy": "egl", "hours": 3.0, "wer": 0.4, "seed": 2} in rows
    assert len(rows) == 10


def test_reports_without_random_or_without_reaching_it() -> None:
    base = measured(BASE, 1, 0, [5, 5])
    alone = study_report([base, measured("egl", 1, 1, [4, 4])], what="wer")
    assert alone.curves[0].hours_to_random is None
    assert alone.curves[0].against_random is None
    worse = [base, measured("egl", 1, 1, [5, 4]), measured("random", 1, 1, [1, 0])]
    curves = {curve.strategy: curve for curve in study_report(worse, what="wer").curves}
    assert curves["egl"].hours_to_random is None
    nobody_errs = [measured(s, 1, n, [0, 0]) for s, n in ((BASE, 0), ("egl", 1), ("random", 1))]
    curves = {curve.strategy: curve for curve in study_report(nobody_errs, what="wer").curves}
    assert curves["egl"].hours_to_random == 1.0
    assert curves["egl"].against_random is not None
    assert curves["egl"].against_random.p_value == 1.0


def test_seeds_that_disagree_widen_the_interval() -> None:
    """The same errors in all, once alike in both seeds and once of one seed alone."""
    changes = []
    for first, second in ((2, 2), (4, 0)):
        found = []
        for seed, right in ((1, first), (2, second)):
            found.append(measured(BASE, seed, 0, [5] * 200))
            found.append(measured("random", seed, 1, [4] * 200))
            found.append(measured("egl", seed, 1, [4 - right] * 200))
        (egl,) = (c for c in study_report(found, what="wer").curves if c.strategy == "egl")
        assert egl.against_random is not None
        changes.append(egl.against_random)
    alike, apart = changes
    assert alike.relative.value == apart.relative.value == pytest.approx(-0.5)
    assert apart.by_seed == pytest.approx((-1.0, 0.0))
    assert alike.relative.high < -0.4
    assert apart.relative.high == pytest.approx(0.0)
    assert apart.p_value > 0.05 > alike.p_value
