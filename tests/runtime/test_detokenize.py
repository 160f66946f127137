"""Streamed text is the text of all tokens, never half a character, never a piece of a stop string."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from foveate.runtime.detokenize import Detokenizer, StopFilter


def byte_tokenizer() -> Tokenizer:
    """One token per byte: every non-ASCII character is spread over several tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={symbol: i for i, symbol in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


BYTES = byte_tokenizer()


def metaspace(ids: Sequence[int]) -> str:
    """As sentencepiece: tokens carry a leading space, which the first one loses."""
    words = ["▁the", "▁cat", "s", "▁sat", "."]
    return "".join(words[i] for i in ids).replace("▁", " ").removeprefix(" ")


@settings(max_examples=60, deadline=None)
@given(st.text(min_size=1, max_size=30))
def test_pieces_add_up_and_are_whole(text: str) -> None:
    if "\ufffd" in text:
        return
    detokenizer = Detokenizer(lambda ids: BYTES.decode(list(ids)))
    pieces = [detokenizer.push(token) for token in BYTES.encode(text).ids]
    assert all("\ufffd" not in piece for piece in pieces)
    assert "".join(pieces) + detokenizer.flush() == text


def test_broken_end_comes_with_the_flush() -> None:
    detokenizer = Detokenizer(lambda ids: BYTES.decode(list(ids)))
    ids = BYTES.encode("a€").ids
    assert [detokenizer.push(token) for token in ids[:-1]] == ["a", "", ""]
    assert detokenizer.flush() == "\ufffd"
    assert detokenizer.flush() == ""


def test_spaces_between_words_survive() -> None:
    detokenizer = Detokenizer(metaspace)
    assert [detokenizer.push(token) for token in (0, 1, 2, 3, 4)] == ["the", " cat", "s", " sat", "."]


@pytest.mark.parametrize(
    ("text", "stop", "wanted", "stopped"),
    [
        ("hello world", ("wor",), "hello ", True),
        ("hello world", ("xyz",), "hello world", False),
        ("aab", ("ab",), "a", True),
        ("aaab", ("aab", "b"), "a", True),
        ("abcabd", ("abd",), "abc", True),
        ("abcab", ("abd",), "abcab", False),
        ("stop", ("stop",), "", True),
        ("two stops: B then A", ("A", "B"), "two stops: ", True),
    ],
)
def test_stop_strings_for_every_way_to_cut_the_text(
    text: str, stop: tuple[str, ...], wanted: str, stopped: bool
) -> None:
    for cuts in itertools.combinations(range(1, len(text)), 3 if len(text) > 4 else 1):
        found = StopFilter(stop)
        pieces = [text[a:b] for a, b in itertools.pairwise((0, *cuts, len(text)))]
        shown = [found.push(piece) for piece in pieces] + [found.flush()]
        assert "".join(shown) == wanted
        assert found.stopped is stopped
        assert found.push("more") == ("" if stopped else "more")


def test_ordinary_text_is_not_held_back() -> None:
    found = StopFilter(("USER:",))
    assert found.push("The answer") == "The answer"
    assert found.push(" is US") == " is "
    assert found.push("A") == "USA"
