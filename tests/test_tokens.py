"""Text, token ids and alignments."""

from __future__ import annotations

import unicodedata
from itertools import groupby

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_imputer.errors import SpecError, TokenError
from edge_imputer.specs import TokenSpec
from edge_imputer.tokens import Tokenizer, token_spec_of

SPEC = TokenSpec(characters=(" ", "a", "b", "ñ"))
TOKENIZER = Tokenizer(SPEC)


@given(st.text(alphabet=" abñ"))
def test_text_comes_back(text: str) -> None:
    ids = TOKENIZER.encode(text)
    assert TOKENIZER.decode(ids) == text
    assert all(1 <= i <= 4 for i in ids)


@given(st.text(min_size=1))
def test_a_token_set_spells_the_texts_it_was_made_from(text: str) -> None:
    tokenizer = Tokenizer(token_spec_of([text, "x"]))
    assert tokenizer.decode(tokenizer.encode(text)) == unicodedata.normalize("NFC", text)


def test_both_forms_of_an_accent_are_one_character() -> None:
    assert TOKENIZER.encode("n\u0303") == TOKENIZER.encode("ñ") == [4]
    assert token_spec_of(["n\u0303", "ñ"]).characters == ("ñ",)


def test_token_set_is_sorted_and_distinct() -> None:
    assert token_spec_of(["two one", "one"]).characters == tuple(" enotw")


@pytest.mark.parametrize("texts", [[], [""]])
def test_no_characters_make_no_token_set(texts: list[str]) -> None:
    with pytest.raises(SpecError, match="at least one"):
        token_spec_of(texts)


def test_unknown_characters_are_named_with_their_places() -> None:
    with pytest.raises(TokenError, match=r"'C' \(U\+0043\) at 1, 3; '😀' \(U\+1F600\) at 4"):
        TOKENIZER.encode("aCbC😀")


@pytest.mark.parametrize("bad", [0, 5, 6, -1])
def test_only_ids_of_characters_decode(bad: int) -> None:
    with pytest.raises(TokenError, match=f"got {bad} at position 1"):
        TOKENIZER.decode([1, bad])


def test_a_token_set_that_no_text_can_match_is_refused() -> None:
    with pytest.raises(SpecError, match="NFC"):
        Tokenizer(TokenSpec(characters=("a", "\u212b")))  # the angstrom sign


@pytest.mark.parametrize("characters", [(), ("a", "a"), ("ab",), ("",)])
def test_contradictory_token_sets_are_refused(characters: tuple[str, ...]) -> None:
    with pytest.raises(SpecError, match="distinct single characters"):
        Tokenizer(TokenSpec(characters=characters))


def test_separator() -> None:
    assert TOKENIZER.separator_id == 1
    assert Tokenizer(TokenSpec(characters=("a",))).separator_id is None


@given(st.lists(st.integers(0, 4)))
def test_collapse_merges_then_drops(alignment: list[int]) -> None:
    expected = [token for token, _ in groupby(alignment) if token != 0]
    assert TOKENIZER.collapse(alignment) == expected
    assert TOKENIZER.collapse(np.array(alignment, np.int32)) == expected


@given(st.lists(st.integers(1, 4), max_size=6))
def test_min_frames_is_enough_and_no_more(ids: list[int]) -> None:
    alignment: list[int] = []
    for token in ids:
        alignment += [0, token] if alignment and alignment[-1] == token else [token]
    assert TOKENIZER.min_frames(ids) == len(alignment)
    assert TOKENIZER.collapse(alignment) == ids
