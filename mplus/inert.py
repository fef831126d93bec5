"""Encodes a user's text without ever making control tokens of it, alone or inside what a chat template writes.

Control tokens are a tokenizer's special tokens, and others that were added to it and that its chat template writes,
such as ``<tool_call>``. The latter are part of what an assistant says, so in what it said they stay what they are.
"""

import copy
import json
import re
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, Literal, NamedTuple, cast
from weakref import WeakKeyDictionary

from mplus.forks import ProcessLock

PRIVATE = (range(0xE000, 0xF900), range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))
"""Code points that stand for nothing; one that a prompt does not contain can mark a place in it."""
_SIGN = re.compile(r"[^\w\s]")


def encode_inert(tokenizer: Any, text: str, *, by_assistant: bool = False) -> list[int]:
    """Token ids of plain text; control tokens inside it are encoded as ordinary characters.

    Otherwise a user could write control tokens, such as the end of a message, into a prompt. Half a character, as some
    programs cut them, counts as the replacement character.

    Args:
        tokenizer: The tokenizer.
        text: The text.
        by_assistant: An assistant said it: only special tokens are encoded as characters.
    """
    return _encode(tokenizer, well_formed(text), "special" if by_assistant else "all")[0]


def well_formed(text: str) -> str:
    """The text with surrogates joined to characters, or replaced where one is alone; tokenizers refuse them."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


class Encoded(NamedTuple):
    """Encoded text.

    Attributes:
        ids: Token ids.
        spans: First and last-plus-one character of each token.
    """

    ids: list[int]
    spans: list[tuple[int, int]]

    def within(self, start: int, end: int) -> tuple[int, int]:
        """First and last-plus-one of the tokens that have characters between ``start`` and ``end``."""
        found = [n for n, (first, last) in enumerate(self.spans) if first < end and last > start]
        return (found[0], found[-1] + 1) if found else (0, 0)


class Inert:
    """Keeps control tokens in a user's texts apart from those of a template that writes these texts.

    In the texts each control token is replaced by a mark, a character that none of them has. Nothing else is changed,
    so a template that looks into contents finds them as they are. What the template writes is then encoded with its
    control tokens, and the marks with the characters that they stand for.

    Args:
        tokenizer: The tokenizer.
        texts: Whatever a user may have written: messages, tools.
    """

    def __init__(self, tokenizer: Any, texts: Any) -> None:
        self._tokenizer = tokenizer
        self._controls, self._pattern, self._special, _ = _controls(tokenizer)
        signs = {sign[0] for control in self._controls if (sign := _SIGN.search(control))}
        self._signs = re.compile("|".join([self._pattern.pattern, *map(re.escape, signs)]))
        strings = list(_strings(texts))
        patterns = (self._pattern, self._special)
        written = dict.fromkeys(found for text in strings for one in patterns for found in one.findall(text))
        said = "\n".join(strings)
        free = (mark for mark in unused(chain(strings, self._controls)) if _escaped(mark) not in said)
        written |= dict.fromkeys(sign for sign in sorted(signs) if sign in said)
        self._marks = dict(zip(written, free, strict=False))
        if len(self._marks) < len(written):
            raise ValueError("The prompt has every private character of Unicode: expected text. Remove some of them.")
        self._meant = {mark: control for control, mark in self._marks.items()}
        # A template may write texts as JSON of ASCII characters.
        self._meant |= {_escaped(mark): _escaped(control) for control, mark in self._marks.items()}

    def marked(self, value: Any, *, by_assistant: bool = False) -> Any:
        """A value whose texts have marks instead of control tokens.

        Args:
            value: Whatever has texts.
            by_assistant: An assistant said it: only special tokens are marked.
        """
        pattern = self._special if by_assistant else self._pattern

        def mark(text: str) -> str:
            return pattern.sub(lambda found: self._marks[found[0]], well_formed(text))

        return _mapped(value, mark)

    def apart(self, value: Any) -> Any:
        """A marked value with marks for a sign of each control token too, so that none can be made of parts.

        A template that leaves out a switch such as "/think" would make one of "<|im_/thinkstart|>". Words stay: they
        are names of a message's parts as well.
        """
        return _mapped(value, lambda text: self._signs.sub(lambda found: self._sign_marked(found[0]), text))

    def _sign_marked(self, found: str) -> str:
        return self._marks.get(found, found) if len(found) == 1 else found

    def controls_in(self, rendered: str) -> list[int]:
        """Ids of the control tokens in what a template wrote from marked texts."""
        return [self._controls[found] for found in self._pattern.findall(rendered)]

    def restored(self, text: str) -> str:
        """Text with the characters that its marks stand for."""
        if not self._meant:
            return text
        return re.sub("|".join(map(re.escape, self._meant)), lambda found: self._meant[found[0]], text)

    def encoded(self, rendered: str) -> Encoded:
        """Token ids of what a template wrote from marked texts; only its own control tokens are control tokens.

        Spans count the characters of the restored text.
        """
        armed = self.controls_in(rendered)
        if self.restored(rendered) == rendered:
            ids, spans = _encode(self._tokenizer, rendered)
            special = set(self._controls.values())
            if [one for one in ids if one in special] == armed:
                return Encoded(ids, spans)
        return self._piece_by_piece(rendered)

    def _piece_by_piece(self, rendered: str) -> Encoded:
        """The template's control tokens, and all between them as ordinary characters."""
        ids: list[int] = []
        spans: list[tuple[int, int]] = []
        place = at = 0

        def plain(text: str) -> None:
            nonlocal at
            found, where = _encode(self._tokenizer, text, "all") if text else ([], [])
            ids.extend(found)
            spans.extend((at + first, at + last) for first, last in where)
            at += len(text)

        for control in self._pattern.finditer(rendered):
            plain(self.restored(rendered[place : control.start()]))
            ids.append(self._controls[control[0]])
            spans.append((at, at + len(control[0])))
            at, place = at + len(control[0]), control.end()
        plain(self.restored(rendered[place:]))
        return Encoded(ids, spans)


def unused(texts: Iterator[str]) -> Iterator[str]:
    """Characters that occur in none of the texts, and stand for nothing."""
    taken = set(chain.from_iterable(texts))
    return (chr(code) for code in chain(*PRIVATE) if chr(code) not in taken)


def _escaped(text: str) -> str:
    return json.dumps(text)[1:-1]


def _strings(value: Any) -> Iterator[str]:
    """Every text in a value of JSON, names too, well-formed."""
    if isinstance(value, str):
        yield well_formed(value)
    elif isinstance(value, Mapping):
        for name, one in cast("Mapping[Any, Any]", value).items():
            yield from _strings(name)
            yield from _strings(one)
    elif isinstance(value, Sequence):
        for one in cast("Sequence[Any]", value):
            yield from _strings(one)


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        items = cast("Mapping[Any, Any]", value).items()
        return {_mapped(name, change): _mapped(one, change) for name, one in items}
    if isinstance(value, list | tuple):
        return [_mapped(one, change) for one in cast("Sequence[Any]", value)]
    return value


# --- tokenizers ---------------------------------------------------------------------------------------


Disarmed = Literal["none", "special", "all"]
"""Which control tokens are encoded as characters."""


class _Controls(NamedTuple):
    """Control tokens of a tokenizer.

    Attributes:
        ids: By text.
        pattern: Finds the longest of them.
        special: Finds the longest of those that are special tokens.
        others: Those that are not.
    """

    ids: dict[str, int]
    pattern: re.Pattern[str]
    special: re.Pattern[str]
    others: frozenset[str]


_CONTROLS: WeakKeyDictionary[Any, tuple[Any, _Controls]] = WeakKeyDictionary()
"""For each tokenizer its template, which may be replaced, and its control tokens."""
_BACKENDS: WeakKeyDictionary[Any, tuple[frozenset[str], dict[Disarmed, Any]]] = WeakKeyDictionary()
"""For each tokenizer, its controls that are no special tokens, and a copy of its backend for each way to encode."""
_COPYING = ProcessLock()


def _controls(tokenizer: Any) -> _Controls:
    template, known = getattr(tokenizer, "chat_template", None), _CONTROLS.get(tokenizer)
    if known is None or known[0] != template:
        written = json.dumps(template or "", ensure_ascii=False)
        added = tokenizer.added_tokens_decoder.items()
        special = {str(token): number for number, token in added if token.special}
        others = {str(token): number for number, token in added if not token.special and _is_mark(token, written)}
        ids = {**special, **others}
        found = _Controls(ids, _any_of(ids), _any_of(special), frozenset(others))
        known = _CONTROLS[tokenizer] = (copy.copy(template), found)
    return known[1]


def _is_mark(token: Any, template: str) -> bool:
    """Whether a template writes a token as a mark; words and blanks, which some tokenizers add, are none."""
    text = str(token).strip()
    return not text.isalnum() and bool(text) and json.dumps(str(token), ensure_ascii=False)[1:-1] in template


def _any_of(names: Iterable[str]) -> re.Pattern[str]:
    found = sorted(filter(None, names), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, found)) if found else r"(?!)")


def _encode(tokenizer: Any, text: str, disarmed: Disarmed = "none") -> tuple[list[int], list[tuple[int, int]]]:
    if not tokenizer.is_fast:
        return _encode_slowly(tokenizer, text, inert=disarmed != "none")
    others = _controls(tokenizer).others
    backends = _known_backends(tokenizer, others)
    if backends is None:
        with _COPYING:  # once: threads that ask at the same time would take as many times as long
            backends = _known_backends(tokenizer, others) or _backends(tokenizer.backend_tokenizer, others)
            _BACKENDS[tokenizer] = (others, backends)
    found = backends[disarmed].encode(text, add_special_tokens=False)
    return found.ids, found.offsets


def _known_backends(tokenizer: Any, others: frozenset[str]) -> dict[Disarmed, Any] | None:
    known = _BACKENDS.get(tokenizer)
    return None if known is None or known[0] != others else known[1]


def _backends(one: Any, others: frozenset[str]) -> dict[Disarmed, Any]:
    special = _copied(one, inert=True)
    made: dict[Disarmed, Any] = {"none": _copied(one), "special": special, "all": special}
    if others:
        made["all"] = _copied(_all_special(one, others), inert=True)
    return made


def _encode_slowly(tokenizer: Any, text: str, *, inert: bool) -> tuple[list[int], list[tuple[int, int]]]:
    """Ids with spans that are estimated from the lengths of the tokens, because slow tokenizers do not tell them."""
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=inert, verbose=False)["input_ids"]
    lengths = [len(tokenizer.decode([one])) for one in ids]
    ends = [sum(lengths[: n + 1]) for n in range(len(ids))]
    return ids, [(end - length, end) for end, length in zip(ends, lengths, strict=True)]


def keep_no_words(tokenizer: Any) -> None:
    """Have a tokenizer keep nothing of the texts that it encodes.

    A fast tokenizer keeps the first 10,000 words that it met, for as long as the process lives: words of texts that
    are forgotten later too. Without them it encodes at some 0.6 of the speed, which a model never waits for.
    """
    if tokenizer is not None and tokenizer.is_fast:
        _without_words(tokenizer.backend_tokenizer)


def _without_words(backend: Any) -> None:
    resized = getattr(backend.model, "_resize_cache", None)  # models of words, such as WordPiece, keep none
    if resized is not None:
        resized(0)


def _copied(backend: Any, *, inert: bool = False) -> Any:
    """A copy of a tokenizer's backend that makes special tokens, or never does.

    transformers instead switches a flag of its single backend. With two threads, a user's control tokens could then
    be encoded as control tokens, or a template's as plain characters.
    """
    backend = copy.deepcopy(backend)
    _without_words(backend)
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = inert
    return backend


def _all_special(backend: Any, controls: Container[str]) -> Any:
    """A copy whose added tokens of these texts are special ones: a backend's switch is for all of these together."""
    written = json.loads(backend.to_str())
    for token in written["added_tokens"]:
        token["special"] |= token["content"] in controls
    return type(backend).from_str(json.dumps(written))
