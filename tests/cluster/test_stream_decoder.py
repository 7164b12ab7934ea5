"""Streaming decode against decoding everything at once, for any tokens and any chunks."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from cluster.text import StreamDecoder

_TEXT = ["def add(left, right):\n    return left + right  # größer, 日本語 and 🎉🎉\n"] * 3


def _byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, special_tokens=["<|end|>"])
    tokenizer.train_from_iterator(_TEXT, trainer)
    return tokenizer


TOKENIZER = _byte_level()
VOCAB_SIZE = TOKENIZER.get_vocab_size()
_ids = st.lists(st.integers(0, VOCAB_SIZE - 1), max_size=40)


def _whole(token_ids: Sequence[int]) -> str:
    return TOKENIZER.decode(list(token_ids), skip_special_tokens=True)


def _stream(decoder: StreamDecoder, token_ids: list[int], cuts: list[int]) -> tuple[list[str], bool]:
    """Pushes the tokens in chunks that end at the cuts; the last chunk may be empty."""
    edges = [0, *sorted(cut % (len(token_ids) + 1) for cut in cuts), len(token_ids), len(token_ids)]
    texts = []
    for number, (begin, end) in enumerate(pairwise(edges), start=2):
        text, is_stopped = decoder.push(token_ids[begin:end], is_last=number == len(edges))
        texts.append(text)
        if is_stopped:
            return texts, True
    return texts, False


@given(token_ids=_ids, cuts=st.lists(st.integers(0, 50), max_size=10))
def test_any_chunks_give_the_text_of_all_tokens(token_ids: list[int], cuts: list[int]) -> None:
    texts, stopped = _stream(StreamDecoder(TOKENIZER), token_ids, cuts)
    assert "".join(texts) == _whole(token_ids)
    assert not stopped


@given(text=st.text(max_size=30), cuts=st.lists(st.integers(0, 200), max_size=20))
def test_characters_come_whole(text: str, cuts: list[int]) -> None:
    texts, _ = _stream(StreamDecoder(TOKENIZER), TOKENIZER.encode(text).ids, cuts)
    assert "".join(texts) == text
    assert all("\N{REPLACEMENT CHARACTER}" not in part for part in texts) or "\N{REPLACEMENT CHARACTER}" in text


@given(
    text=st.text(alphabet="abc", max_size=40),
    stop=st.lists(st.text(alphabet="abc", min_size=1, max_size=5), min_size=1, max_size=3),
    cuts=st.lists(st.integers(0, 60), max_size=20),
)
def test_stop_strings_cut_where_a_search_of_the_whole_text_would(text: str, stop: list[str], cuts: list[int]) -> None:
    texts, stopped = _stream(StreamDecoder(TOKENIZER, stop=stop), TOKENIZER.encode(text).ids, cuts)
    # The stop string that is complete first ends the output, so that the cut does not depend on the chunks.
    found = [(text.index(string) + len(string), text.index(string)) for string in stop if string in text]
    assert stopped == bool(found)
    assert "".join(texts) == (text[: min(found)[1]] if found else text)


def test_the_prompts_last_tokens_are_the_context() -> None:
    prompt = TOKENIZER.encode("größ").ids
    split = TOKENIZER.encode("日").ids
    assert len(split) > 1
    decoder = StreamDecoder(TOKENIZER, context_ids=[*prompt, split[0]])
    assert decoder.push(split[1:]) == ("日", False)


@pytest.mark.parametrize("stop", [("right",), ("ht): ", "right")])
def test_a_beginning_of_a_stop_string_is_held_back(stop: tuple[str, ...]) -> None:
    decoder = StreamDecoder(TOKENIZER, stop=stop)
    assert decoder.push(TOKENIZER.encode("x = rig").ids) == ("x = ", False)
    assert decoder.push(TOKENIZER.encode("id").ids) == ("rigid", False)
    assert decoder.push(TOKENIZER.encode(" right of").ids) == (" ", True)
