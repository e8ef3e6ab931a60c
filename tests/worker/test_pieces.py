# SPDX-License-Identifier: Apache-2.0
"""Text as numbers: pieces that are known, and bytes for all others."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.tasks.pieces import NUM_BYTES, PIECE, Vocabulary

SOURCE = "def f(x):\n    return x + 10\n\n\ndef g(x):\n    return f(x) + 10  # café 😀\n"
KNOWN = Vocabulary.of([SOURCE], 10_000)


@given(st.text(st.characters(exclude_categories=())) | st.text("def fx\n 01é"))
def test_any_text_comes_back_as_it_was(text: str) -> None:
    numbers = KNOWN.encode(text)
    assert KNOWN.decode(numbers) == text
    assert numbers.dtype == np.int64 and ((numbers >= 0) & (numbers < len(KNOWN))).all()


@given(st.lists(st.integers(0, len(KNOWN) - 1)))
def test_any_numbers_spell_some_text(numbers: list[int]) -> None:
    assert isinstance(KNOWN.decode(numbers), str)


def test_a_known_piece_takes_one_number_and_an_unknown_one_its_bytes() -> None:
    assert len(KNOWN.encode("\n    return")) == 2
    assert KNOWN.encode(" café").tolist() == list(" café".encode())


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("def hello_world(x2):", ["def", " hello", "_", "world", "(", "x", "2", "):"]),
        ("a  b", ["a", "  ", "b"]),
        ("\n\n    x", ["\n", "\n    ", "x"]),
        ("12345", ["123", "45"]),
        ("\r\n\té", ["\r", "\n", "\té"]),
    ],
)
def test_a_text_is_split_at_words_digits_lines_and_spaces(text: str, pieces: list[str]) -> None:
    assert PIECE.findall(text) == pieces


def test_the_most_frequent_pieces_come_first_and_of_equally_frequent_ones_those_that_sort_first() -> None:
    """a: 3; b, c and +: 2; d: 1, which is too seldom."""
    assert Vocabulary.of(["c+b+a", "a\nb", "a\nc", "d"], 10_000).pieces == ("a", "\n", "+", "b", "c")


def test_a_vocabulary_is_no_larger_than_it_may_be() -> None:
    texts = ["c+b+a", "a\nb", "a\nc", "d"]
    assert Vocabulary.of(texts, NUM_BYTES + 2).pieces == ("a", "\n")
    assert len(Vocabulary.of(texts, NUM_BYTES + 2)) == NUM_BYTES + 2
    assert len(Vocabulary.of(texts, 0)) == NUM_BYTES


def test_the_order_of_the_texts_is_of_no_account() -> None:
    texts = [SOURCE, "import this\n" * 3, "x = 10\n"]
    assert Vocabulary.of(texts, 300) == Vocabulary.of(reversed(texts), 300)


def test_the_digest_follows_the_pieces_their_order_and_where_they_end() -> None:
    several = [("ab", "c"), ("a", "bc"), ("c", "ab"), ("abc",), ()]
    assert len({Vocabulary(pieces).digest for pieces in several}) == len(several)
    assert Vocabulary(("ab", "c")).digest == Vocabulary(("ab", "c")).digest
