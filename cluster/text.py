"""Text from tokens as they come: whole characters only, cut at stop strings. Shared by the gateway and the engine."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer

_REPLACEMENT = "\ufffd"  # what bytes that are no character yet decode to
_CONTEXT_TOKENS = 6  # of the prompt: some tokenizers drop the space before the first token they decode


class Detokenizer:
    """Decodes one output token by token; special tokens give no text.

    Two offsets as in text-generation-inference: the text of `ids[prefix:]` minus that of `ids[prefix:read]` is new, so
    that tokens are decoded in the company of those before them, and each only a few times.
    """

    def __init__(self, tokenizer: Tokenizer, context_ids: Sequence[int] = ()) -> None:
        """`context_ids`: the prompt, of which the last few tokens matter."""
        self._tokenizer = tokenizer
        self._ids = list(context_ids[-_CONTEXT_TOKENS:])
        self._prefix = 0
        self._read = len(self._ids)

    def push(self, token_ids: Sequence[int]) -> str:
        """The text that is certain now; a character whose bytes are not complete waits for the next tokens."""
        self._ids.extend(token_ids)
        return self._new_text(is_last=False)

    def flush(self) -> str:
        """What remains, with the replacement character for bytes that never became a character."""
        return self._new_text(is_last=True)

    def _new_text(self, is_last: bool) -> str:
        if self._read == len(self._ids):
            return ""
        # A prompt of token ids may end within a character, which the output then completes.
        before = self._decode(self._prefix, self._read).rstrip(_REPLACEMENT)
        text = self._decode(self._prefix, len(self._ids))
        if not is_last and text.endswith(_REPLACEMENT):
            return ""
        self._prefix, self._read = self._read, len(self._ids)
        return text[len(before) :]

    def _decode(self, begin: int, end: int) -> str:
        text: str = self._tokenizer.decode(self._ids[begin:end], skip_special_tokens=True)
        return text


class StopScanner:
    """Cuts a text at the first of some strings, and holds back an end that may be the beginning of one."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(stop)
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """The text that may be shown, and whether a stop string ended it. After that push nothing more."""
        text = self._held + text
        found = [(begin + len(stop), begin) for stop in self._stop if (begin := text.find(stop)) >= 0]
        if found:
            # The one that is complete first, so that the cut does not depend on how many tokens a round brought.
            self._held = ""
            return text[: min(found)[1]], True
        shown = len(text) - self._num_held(text)
        self._held = text[shown:]
        return text[:shown], False

    def flush(self) -> str:
        held, self._held = self._held, ""
        return held

    def _num_held(self, text: str) -> int:
        """Length of the longest end of `text` that begins a stop string."""
        longest = max((len(stop) for stop in self._stop), default=1) - 1
        for length in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stop):
                return length
        return 0


class StreamDecoder:
    """Detokenizer and stop strings of one output."""

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = (), context_ids: Sequence[int] = ()) -> None:
        self._detokenizer = Detokenizer(tokenizer, context_ids)
        self._scanner = StopScanner(stop)

    def push(self, token_ids: Sequence[int], is_last: bool = False) -> tuple[str, bool]:
        """The new text, and whether a stop string ended the output. `is_last` flushes what was held back."""
        text = self._detokenizer.push(token_ids)
        if is_last:
            text += self._detokenizer.flush()
        shown, hit_stop = self._scanner.push(text)
        if is_last and not hit_stop:
            shown += self._scanner.flush()
        return shown, hit_stop
