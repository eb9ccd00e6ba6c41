"""The operating point: what it may claim, how the bundle carries it, and who goes by it."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from edge_imputer.bundle import Bundle
from edge_imputer.claims import (
    at_least,
    at_most,
    false_alarm_claim,
    how_often,
    operating_point_claims,
    operating_point_lines,
    range_text,
    rate_number,
    rate_text,
)
from edge_imputer.cli.main import main
from edge_imputer.errors import SpecError
from edge_imputer.export.bundle import update_operating_point
from edge_imputer.export.card import model_card
from edge_imputer.measured import DataSource, Measured, OperatingPoint
from edge_imputer.metrics import clopper_pearson, false_alarm_rate, hours_needed
from edge_imputer.spotter import REFRACTORY_S, KeywordSpotter

from .fakes import FakeBackend, small_spec, write_bundle


def measured(count: int, hours: float, split: str = "test") -> Measured:
    return Measured(
        data=(
            DataSource(name="words", split=split, kind="real", holds="keywords"),
            DataSource(name="talk", split=split, kind="real", holds="negatives"),
        ),
        frr=clopper_pearson(3, 120),
        false_alarms=false_alarm_rate(count, hours),
    )


def point(count: int = 0, hours: float = 7.0, **changes: object) -> OperatingPoint:
    made = OperatingPoint(
        thresholds={"ab": 0.75, "c": 0.25},
        target_fa_per_hour=0.5,
        target_met=True,
        refractory_s=1.0,
        chosen_on=measured(0, 2.0, "valid"),
        reported_on=measured(count, hours),
        seed=3,
        created_by="edge-imputer test",
    )
    return msgspec.structs.replace(made, **changes)


# ------------------------------------------------------------------------------ claims


@pytest.mark.parametrize(
    ("count", "hours", "verdict"),
    [
        (0, 0.75, "unsupported"),
        (0, 5.9, "unsupported"),
        (0, 6.0, "supported"),
        (3, 15.0, "unsupported"),  # 0.2 an hour, but bounded at 0.517 only
        (3, 16.0, "supported"),
        (43, 86.0, "unsupported"),  # exactly the target: as likely above as below
        (60, 60.0, "refuted"),
        (1, 0.1, "unsupported"),  # ten an hour, and yet it may be chance
    ],
)
def test_a_claim_needs_its_hours(count: int, hours: float, verdict: str) -> None:
    claim = false_alarm_claim(false_alarm_rate(count, hours), 0.5)
    assert claim.verdict == verdict
    assert "about once in 2 hours" in claim.text
    assert str(claim).startswith(verdict.upper()) == (verdict != "supported")


def test_unsupported_claims_say_what_the_hours_do_support() -> None:
    claim = false_alarm_claim(false_alarm_rate(0, 0.75), 0.5)
    assert str(claim) == (
        "UNSUPPORTED: Fires wrongly at most about once in 2 hours. (no false alarm in 0.75 h only "
        "says, at 95 %, fewer than 4 an hour; the claim needs at least 6.0 h without any)"
    )


def test_a_claim_turns_exactly_at_the_limit() -> None:
    for count in (0, 1, 7):
        hours = hours_needed(count, 0.5)
        below, above = (false_alarm_rate(count, hours * f) for f in (0.999, 1.001))
        assert false_alarm_claim(below, 0.5).verdict == "unsupported"
        assert false_alarm_claim(above, 0.5).verdict == "supported"


@pytest.mark.parametrize(
    ("count", "hours", "shown"),
    [
        (0, 0.742, "4.1"),  # 4.037: "fewer than 4" would say more than was measured
        (3, 7.0, "1.2"),  # 1.108
        (9, 1.5, "11"),  # 10.47
        (0, 300.0, "0.01"),  # 0.00999
    ],
)
def test_upper_limits_are_never_rounded_down(count: int, hours: float, shown: str) -> None:
    rate = false_alarm_rate(count, hours)
    (claim,) = operating_point_claims(point(count, hours, target_fa_per_hour=None))
    assert claim.text == f"Fires wrongly fewer than {shown} times an hour, at 95 % confidence."
    assert float(shown) >= rate.upper
    assert f"fewer than {shown} an hour" in false_alarm_claim(rate, rate.upper).why
    assert f"fewer than {shown} an hour" in false_alarm_claim(rate, 0.99 * rate.upper).why


def test_lower_limits_are_never_rounded_up() -> None:
    rate = false_alarm_rate(60, 70.0)  # at least 0.6541 an hour
    claim = false_alarm_claim(rate, 0.5)
    assert claim.verdict == "refuted"
    assert "more than 0.65 an hour" in claim.why
    assert "more than 0.67 an hour" in false_alarm_claim(false_alarm_rate(60, 68.0), 0.5).why


@pytest.mark.parametrize(
    ("rate", "words"),
    [
        (0.5, "about once in 2 hours"),
        (0.1, "about once in 10 hours"),
        (0.4, "about once in 2.5 hours"),
        (1.0, "about once an hour"),
        (3.0, "about 3 times an hour"),
        (120.0, "about 120 times an hour"),
    ],
)
def test_rates_in_words(rate: float, words: str) -> None:
    assert how_often(rate) == words


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0, "0"),
        (0.0000312, "0.000031"),
        (0.003120, "0.0031"),
        (0.0996, "0.1"),
        (0.1234, "0.12"),
        (1.23, "1.2"),
        (9.96, "10"),
        (34.2, "34"),
        (120.0, "120"),
    ],
)
def test_rates_keep_two_digits(value: float, shown: str) -> None:
    assert rate_number(value) == shown
    assert float(at_least(value)) <= value <= float(at_most(value))


def test_the_rates_of_a_long_test_do_not_vanish() -> None:
    rate = false_alarm_rate(0, 960.0)
    assert at_most(rate.upper) == "0.0032"
    assert rate_text(rate) == "0 an hour (0 to 0.0039; 0 in 960.00 h)"
    assert range_text(false_alarm_rate(2, 960.0)) == "0.00025 to 0.0076"


def test_what_is_not_supported_is_followed_by_what_is() -> None:
    assert [c.verdict for c in operating_point_claims(point())] == ["supported"]
    first, second = operating_point_claims(point(0, 0.75))
    assert (first.verdict, second.verdict) == ("unsupported", "supported")
    assert "fewer than 4 times an hour" in second.text
    (unheard,) = operating_point_claims(point(reported_on=None))
    assert unheard.verdict == "unsupported"
    assert "no negatives were heard" in unheard.why
    (given,) = operating_point_claims(point(target_fa_per_hour=None, chosen_on=None))
    assert given.verdict == "supported"
    assert operating_point_claims(point(target_fa_per_hour=None, reported_on=None)) == []


def test_lines_say_everything() -> None:
    text = "\n".join(operating_point_lines(point(2, 4.0, target_met=False)))
    for part in (
        "ab at 0.75, c at 0.25",
        "at least 1 s apart",
        "recordings of words valid (keywords) and recordings of talk valid (negatives)",
        "no threshold reaches that there",
        "misses 2.5 % (0.5 to 7.1, n 120)",
        "0.5 an hour (0.06 to 1.9; 2 in 4.00 h)",
        "UNSUPPORTED: ",
    ):
        assert part in text, part
    given = "\n".join(operating_point_lines(point(chosen_on=None, target_fa_per_hour=None)))
    assert "given, not chosen" in given
    assert "not tried on other data" in "\n".join(operating_point_lines(point(reported_on=None)))


# ------------------------------------------------------------------------------ the bundle


def test_a_bundle_carries_it(tmp_path: Path) -> None:
    write_bundle(tmp_path)
    updated = update_operating_point(tmp_path, point())
    assert Bundle.load(tmp_path).manifest == updated.manifest
    assert updated.manifest.operating_point == point()
    raw = json.loads((tmp_path / "manifest.json").read_text())
    assert raw["operating_point"]["thresholds"] == {"ab": 0.75, "c": 0.25}
    assert raw["operating_point"]["reported_on"]["false_alarms"]["hours"] == 7.0
    assert update_operating_point(tmp_path, None).manifest.operating_point is None


def test_the_model_card_and_info_say_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_bundle(tmp_path)
    assert "edge-imputer evaluate" in model_card(Bundle.load(tmp_path).manifest)
    card = model_card(update_operating_point(tmp_path, point(0, 0.75)).manifest)
    with pytest.raises(SystemExit):
        main(["info", str(tmp_path)])
    info = " ".join(capsys.readouterr().out.split())
    for line in operating_point_lines(point(0, 0.75)):
        assert f"- {line}" in card
        assert line in info
    assert "UNSUPPORTED: Fires wrongly at most about once in 2 hours." in card


def test_the_spotter_goes_by_it(tmp_path: Path) -> None:
    write_bundle(tmp_path, keyword_threshold=0.5, operating_point=point())
    backend = FakeBackend(small_spec())
    own = KeywordSpotter(tmp_path, backend=backend)
    assert own.thresholds == {"ab": 0.75, "c": 0.25}
    assert own.refractory_s == 1.0
    some = KeywordSpotter(tmp_path, ["c"], backend=backend)
    assert some.thresholds == {"c": 0.25}
    assert some.refractory_s == own.refractory_s
    other = KeywordSpotter(tmp_path, ["c", "ba"], backend=backend)  # "ba" was never measured
    assert other.thresholds == {"c": 0.25, "ba": 0.5}
    assert other.refractory_s == REFRACTORY_S
    given = KeywordSpotter(tmp_path, {"c": 0.9}, backend=backend, refractory_s=0.5)
    assert given.thresholds == {"c": 0.9}
    assert given.refractory_s == 0.5


def test_without_an_operating_point_keywords_must_be_named(tmp_path: Path) -> None:
    write_bundle(tmp_path, keyword_threshold=0.5)
    with pytest.raises(SpecError, match="edge-imputer evaluate"):
        KeywordSpotter(tmp_path, backend=FakeBackend(small_spec()))
    write_bundle(tmp_path, operating_point=point())
    with pytest.raises(SpecError, match="threshold for every keyword"):
        KeywordSpotter(tmp_path, ["ba"], backend=FakeBackend(small_spec()))
