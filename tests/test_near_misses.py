"""Phones, their distances, and phrases that sound almost like a keyword."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_imputer.errors import SynthesisError
from edge_imputer.train.data import read_manifest
from edge_imputer.train.synthesis import Lexicon, NearMiss, near_misses
from edge_imputer.train.synthesis.distance import (
    DROPPED,
    VOWELS,
    WEAK,
    distances,
    edit_costs,
    phone_cost,
)
from edge_imputer.train.synthesis.near_misses import (
    CONFUSED,
    SHARES,
    contains,
    same_sound,
    shipped_words,
)
from edge_imputer.train.synthesis.phones import SYMBOLS, Phones, n_phones_of, phones_of

from .speech_engines import real_engine, run_command

PHONES = st.lists(st.sampled_from(SYMBOLS), min_size=0, max_size=7).map(tuple)


@pytest.fixture(scope="module")
def espeak() -> None:
    real_engine("espeak")


# ---------------------------------------------------------------- distances


@given(a=st.sampled_from(SYMBOLS), b=st.sampled_from(SYMBOLS))
def test_the_cost_of_a_phone_is_symmetric_and_nothing_for_itself_alone(a: str, b: str) -> None:
    assert phone_cost(a, b) == phone_cost(b, a)
    assert (phone_cost(a, b) == 0) == (a == b)
    assert phone_cost(a, b) <= 1.2


@pytest.mark.parametrize(
    ("phone", "near", "far"),
    [
        ("p", "b", "k"),
        ("p", "t", "h"),
        ("m", "n", "s"),
        ("s", "z", "l"),
        ("t", "d", "m"),
        ("ʃ", "s", "p"),
        ("i", "ɪ", "ɑ"),
        ("u", "ʊ", "æ"),
        ("eɪ", "ɛ", "u"),
        ("oʊ", "ɔ", "i"),
        ("j", "i", "ɑ"),
        ("k", "ɡ", "æ"),
    ],
)
def test_phones_said_alike_are_near(phone: str, near: str, far: str) -> None:
    assert phone_cost(phone, near) < phone_cost(phone, far)


def plain_edit_cost(a: Phones, b: Phones) -> float:
    """The slow definition: the best of dropping either's last phone, or pairing the two."""
    if not a or not b:
        return sum(WEAK.get(p, DROPPED) for p in (*a, *b))
    return min(
        plain_edit_cost(a[:-1], b) + WEAK.get(a[-1], DROPPED),
        plain_edit_cost(a, b[:-1]) + WEAK.get(b[-1], DROPPED),
        plain_edit_cost(a[:-1], b[:-1]) + phone_cost(a[-1], b[-1]),
    )


@given(
    target=st.lists(st.sampled_from(SYMBOLS), max_size=4).map(tuple),
    others=st.lists(st.lists(st.sampled_from(SYMBOLS), max_size=4).map(tuple), max_size=4),
)
def test_edit_costs_of_many_words_are_those_of_each(target: Phones, others: list[Phones]) -> None:
    expected = [plain_edit_cost(target, other) for other in others]
    np.testing.assert_allclose(edit_costs(target, others), expected, atol=1e-9)


@given(a=PHONES, b=PHONES)
def test_edit_costs_are_symmetric_and_nothing_for_the_same_alone(a: Phones, b: Phones) -> None:
    there, back = edit_costs(a, [b])[0], edit_costs(b, [a])[0]
    assert there == pytest.approx(back)
    assert (there < 1e-12) == (a == b)


def test_distances_are_a_phone_of_the_target() -> None:
    target = ("m", "ɑ", "ɹ", "v", "ɪ", "n")
    far = distances(target, [target, ("n", *target[1:]), ()])
    assert far[0] == 0
    assert far[1] == pytest.approx(phone_cost("m", "n") / 6)
    assert 0.4 < far[2] < 0.7
    assert len(distances(target, [])) == 0


def test_every_phone_has_features() -> None:
    for phone in SYMBOLS:
        assert (phone in VOWELS) == (phone_cost(phone, "p") == 1.2)


# ---------------------------------------------------------------- phones


@pytest.mark.usefixtures("espeak")
def test_phones_merge_what_keeps_no_words_apart() -> None:
    pairs = [("hey", "hay"), ("four", "for"), ("to", "two"), ("sea", "see"), ("knight", "night")]
    for one, other in pairs:
        first, second = phones_of([one, other])
        assert first == second, one
    water, bed, bet = phones_of(["water", "bed", "bet"])
    assert water == ("w", "ɔ", "t", "ə", "ɹ")  # no flap
    assert bed != bet
    assert phones_of(["hey, computer!"]) == [
        ("h", "eɪ", "k", "ə", "m", "p", "j", "u", "t", "ə", "ɹ")
    ]


@pytest.mark.usefixtures("espeak")
def test_every_shipped_word_has_phones_that_are_known() -> None:
    words = shipped_words()
    assert len(words) > 2000
    assert all(word.replace("'", "").isalpha() and word.islower() for word in words)
    for word, phones in zip(words, phones_of(words), strict=True):
        assert phones, word
        assert set(phones) <= set(SYMBOLS), word
        assert len(phones) <= len(word) + 3, word


@pytest.mark.usefixtures("espeak")
def test_phones_of_nothing_are_refused() -> None:
    assert phones_of([]) == []
    with pytest.raises(SynthesisError, match=r"expected a text with letters or digits, got '\?!'"):
        phones_of(["yes", "?!"])


def test_without_espeak_phonetics_say_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SynthesisError, match=r"phonetics need eSpeak NG: .*apt-get install espeak"):
        near_misses("hey computer", 5)
    assert n_phones_of(["seven", "a"]) == [4.0, 1.0]


# ---------------------------------------------------------------- near misses


@pytest.fixture(scope="module")
def misses() -> list[NearMiss]:
    real_engine("espeak")
    return near_misses("hey computer", 60)


def test_near_misses_are_sorted_different_and_of_every_kind(misses: list[NearMiss]) -> None:
    assert len(misses) == 60
    assert [m.distance for m in misses] == sorted(m.distance for m in misses)
    assert len({m.text for m in misses}) == len({m.phones for m in misses}) == 60
    assert {m.kind for m in misses} == set(SHARES)
    by_kind = {kind: {m.text for m in misses if m.kind == kind} for kind in SHARES}
    assert by_kind["part"] == {"hey", "computer"}
    assert by_kind["order"] == {"computer hey"}
    assert "hey commuter" in by_kind["rhyme"]
    assert "hey compute" in by_kind["same start"]


def test_no_near_miss_is_a_homophone_or_holds_the_target(misses: list[NearMiss]) -> None:
    (target,) = phones_of(["hey computer"])
    for miss, phones in zip(misses, phones_of([m.text for m in misses]), strict=True):
        assert miss.phones == phones
        assert not same_sound(phones, target)
        assert not contains(phones, target)
        assert miss.distance == pytest.approx(distances(target, [phones])[0], abs=1e-4)


@pytest.mark.usefixtures("espeak")
def test_homophones_of_the_target_never_come_up() -> None:
    lexicon = Lexicon.of(["hay", "hey", "see", "sea", "c", "computer", "computers", "sees"])
    texts = {m.text for m in near_misses("sea", 50, lexicon=lexicon, nonsense=False)}
    assert texts
    assert not texts & {"see", "sea", "c", "sees"}
    holding = near_misses("sea", 50, lexicon=lexicon, nonsense=False, containing=True)
    assert "sees" in {m.text for m in holding}
    assert not {m.text for m in holding} & {"see", "c"}


@pytest.mark.usefixtures("espeak")
def test_other_keywords_are_kept_out() -> None:
    texts = {m.text for m in near_misses("hey computer", 60, others=["computer"])}
    assert texts
    (keyword,) = phones_of(["computer"])
    assert not any(contains(phones, keyword) for phones in phones_of(texts))


@pytest.mark.usefixtures("espeak")
def test_one_word_has_near_misses_and_nonsense_can_be_left_out() -> None:
    found = near_misses("marvin", 40)
    texts = {m.text for m in found}
    assert {"marlin", "martin"} <= texts
    assert {"marvin", "mar vin"} & texts == set()
    assert {m.kind for m in found} <= set(SHARES) - {"part", "order", "both words"}
    plain = near_misses("marvin", 40, nonsense=False)
    assert "nonsense" not in {m.kind for m in plain}
    assert near_misses("Marvin!", 40) == found


@pytest.mark.usefixtures("espeak")
def test_bad_requests_are_refused() -> None:
    with pytest.raises(SynthesisError, match="expected one near miss or more, got 0"):
        near_misses("marvin", 0)
    with pytest.raises(SynthesisError, match="expected a text of 1 to 400"):
        near_misses("  ", 5)


def test_confused_letters_are_mutual_enough() -> None:
    assert all(letter not in others for letter, others in CONFUSED.items())


@pytest.mark.usefixtures("espeak")
def test_the_command_prints_them(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    run_command("near-misses", "marvin", "-n", "12", "--json")
    found = json.loads(capsys.readouterr().out)
    assert [m["text"] for m in found] == [m.text for m in near_misses("marvin", 12)]
    run_command("near-misses", "marvin", "-n", "12", "--plain")
    assert capsys.readouterr().out.splitlines() == [m["text"] for m in found]
    words = tmp_path / "words.txt"
    words.write_text("carving\nmartin\n")
    run_command("near-misses", "marvin", "--words", str(words), "--no-nonsense")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines if "similar" in line or "start" in line] == [
        "martin",
        "carving",
    ]


@pytest.mark.usefixtures("espeak")
def test_the_command_says_them_with_a_label_of_their_own(tmp_path: Path) -> None:
    options = ["--near-misses", "6", "--clips-each", "3", "--engine", "espeak", "--voices", "4"]
    run_command("speech", str(tmp_path), "hey computer", "computer", *options)
    records = read_manifest(tmp_path)
    labels = [record.label for record in records]
    assert labels.count("hey computer") == labels.count("computer") == 4
    assert labels.count("_near_miss_") == 3 * len({r.text for r in records} - {*labels})
    keyword = phones_of(["computer"])[0]
    missed = [r.text or "" for r in records if r.label == "_near_miss_"]
    assert len(missed) >= 3 * 6
    assert not any(contains(phones, keyword) for phones in phones_of(missed))
