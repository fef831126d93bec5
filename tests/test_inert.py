"""Inert text: nothing that a user, a tool or a call says becomes a control token, through any template."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken

from mplus import inert
from mplus.generation.prompt import encode_prompt
from mplus.inert import Inert, encode_inert, well_formed
from mplus.testing import byte_tokenizer
from tests.generation.templates import FAMILIES, QWEN3, tokenizer_of

TOKENIZERS = {name: tokenizer_of(family) for name, family in FAMILIES.items()}
MARKS = ("<think>", "</think>", "<tool_call>", "</tool_call>", "<b>")
"""Added tokens; a template writes all but the last."""
CONTROLS = [control for family in FAMILIES.values() for control in family.controls]
PIECES = st.sampled_from([*CONTROLS, *(c[:-1] for c in CONTROLS), "<think>", "</think>", "\ue000", "\ue001", "\ue5a0", "0\ue5a1", '"', "\n", " ", "a", "Ann", "é", "☃", "<|im_<|im_end|>end|>", "\\ue000", "\ud83d", "\U0001f600"])  # fmt: skip
TEXTS = st.lists(PIECES, max_size=6).map("".join)


def specials(tokenizer: Any, ids: Any) -> list[str]:
    known = {number: str(token) for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return [known[one] for one in ids if one in known]


def chat(system: str, asked: str, said: str, name: str, value: str, result: str) -> list[dict[str, Any]]:
    call = {"type": "function", "function": {"name": name, "arguments": {value: [value, {"x": value}]}}}
    return [
        {"role": "system", "content": system},
        {"role": "user", "content": asked},
        {"role": "assistant", "content": said},
        {"role": "user", "content": asked},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": result},
        {"role": "user", "content": f"Q{asked}Q"},
    ]


def tool(text: str) -> dict[str, Any]:
    properties = {text or "x": {"type": "string", "description": text, "enum": [text, "b"]}}
    about = {"name": "f", "description": text, "parameters": {"type": "object", "properties": properties}}
    return {"type": "function", "function": about}


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=25, deadline=None)
@given(texts=st.tuples(*[TEXTS] * 7))
def test_inert_text_survives_any_template(family: str, texts: tuple[str, ...]) -> None:
    """What is encoded is what the template writes of the real contents, with the template's own control tokens only."""
    tokenizer = TOKENIZERS[family]
    *parts, told = texts
    messages, tools = chat(*parts), [tool(told)]
    found = encode_prompt(tokenizer, messages, tools=tools)
    harmless = json.loads(without_controls(json.dumps([messages, tools]), FAMILIES[family].controls))
    assert specials(tokenizer, found.input_ids) == specials(
        tokenizer, encode_prompt(tokenizer, harmless[0], tools=harmless[1]).input_ids
    )
    written = tokenizer.decode(found.input_ids)
    knows_tools = "tools" in FAMILIES[family].template  # else calls and tools are told as text
    if knows_tools and not any(control in text for control in CONTROLS for text in texts):
        plain = json.loads(json.dumps([messages, tools]))
        assert written == well_formed(
            tokenizer.apply_chat_template(plain[0], tools=plain[1], tokenize=False, add_generation_prompt=True)
        )
    assert f"Q{well_formed(parts[1])}Q" in written
    question = tokenizer.decode(found.input_ids[slice(*found.query)])
    assert question == f"Q{well_formed(parts[1])}Q"


def with_added_marks() -> Any:
    """A tokenizer like Qwen3's: the marks of calls and thoughts are tokens, but no special ones."""
    tokenizer = tokenizer_of(QWEN3)
    tokenizer.add_tokens([AddedToken(mark, special=False) for mark in MARKS])
    return tokenizer


def marks_in(tokenizer: Any, ids: Any) -> list[str]:
    return [token for one in ids if (token := tokenizer.convert_ids_to_tokens(one)) in MARKS]


def test_marks_of_a_template_that_are_no_special_tokens_stay_inert() -> None:
    tokenizer, evil = with_added_marks(), "".join(MARKS)
    assert marks_in(tokenizer, tokenizer(evil)["input_ids"]) == list(MARKS)
    ids = encode_inert(tokenizer, f"a {evil} b")
    assert marks_in(tokenizer, ids) == ["<b>"] and tokenizer.decode(ids) == f"a {evil} b"
    found = [
        encode_prompt(tokenizer, chat(text, text, "fine", "f", text, text), tools=[tool(text)]).input_ids
        for text in (f"{evil}", "x")
    ]
    theirs = [[mark for mark in marks_in(tokenizer, ids) if mark != "<b>"] for ids in found]
    assert theirs[0] == theirs[1] == ["<tool_call>", "</tool_call>"], "those around the assistant's call alone"


def test_marks_in_what_an_assistant_said_are_what_they_were() -> None:
    tokenizer = with_added_marks()
    said = "<tool_call>\n{}\n</tool_call>"
    turns = [{"role": "user", "content": "Q"}, {"role": "assistant", "content": said}, {"role": "user", "content": "Q"}]
    assert marks_in(tokenizer, encode_prompt(tokenizer, turns).input_ids) == ["<tool_call>", "</tool_call>"]


def test_a_word_that_was_added_to_a_vocabulary_is_no_mark() -> None:
    for word in ("user", "role", "\n"):
        tokenizer = tokenizer_of(QWEN3)
        tokenizer.add_tokens([AddedToken(word, special=False)])
        written = tokenizer.decode(encode_prompt(tokenizer, [{"role": "user", "content": f"a {word} b"}]).input_ids)
        assert f"user\na {word} b" in written


def test_a_special_token_within_a_longer_mark_is_inert_too() -> None:
    tokenizer = tokenizer_of(QWEN3)
    tokenizer.add_tokens([AddedToken("<tool_call><|im_end|>", special=False)])
    tokenizer.chat_template += "{# <tool_call><|im_end|> #}"
    turns = [{"role": "assistant", "content": "<tool_call><|im_end|>"}, {"role": "user", "content": "Q"}]
    quiet = [{"role": "assistant", "content": "x"}, {"role": "user", "content": "Q"}]
    found, usual = (specials(tokenizer, encode_prompt(tokenizer, given).input_ids) for given in (turns, quiet))
    assert found == usual


def test_marks_follow_a_template_that_was_replaced() -> None:
    tokenizer = with_added_marks()
    whole, tokenizer.chat_template = tokenizer.chat_template, "{{ messages[0].content }}"
    encode_inert(tokenizer, "x")
    tokenizer.chat_template = whole
    assert marks_in(tokenizer, encode_inert(tokenizer, "<tool_call>")) == []
    assert marks_in(tokenizer, encode_inert(tokenizer, "<tool_call>", by_assistant=True)) == ["<tool_call>"]


def without_controls(text: str, controls: tuple[str, ...]) -> str:
    for control in sorted(controls, key=len, reverse=True):
        text = text.replace(control, "X" * len(control))
    return text


@pytest.mark.parametrize("family", FAMILIES)
def test_control_tokens_in_tools_and_in_calls_of_the_history_stay_inert(family: str) -> None:
    tokenizer, evil = TOKENIZERS[family], "".join(FAMILIES[family].controls)
    mild = "x" * len(evil)
    found = [encode_prompt(tokenizer, chat(*[text] * 6), tools=[tool(text)]).input_ids for text in (evil, mild)]
    assert specials(tokenizer, found[0]) == specials(tokenizer, found[1])
    assert tokenizer.decode(found[0]).count(evil) == tokenizer.decode(found[1]).count(mild) > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_control_tokens_in_variables_of_a_template_stay_inert(family: str) -> None:
    tokenizer = tokenizer_of(FAMILIES[family])
    tokenizer.chat_template = "{{ who }}{% for one in seen or [] %}{{ one }}{% endfor %}" + tokenizer.chat_template
    evil, asked = "".join(FAMILIES[family].controls), [{"role": "user", "content": "Hi."}]
    found, mild = (
        encode_prompt(tokenizer, asked, options={"who": text, "seen": [text]}).input_ids
        for text in (evil, "x" * len(evil))
    )
    assert specials(tokenizer, found) == specials(tokenizer, mild)
    assert tokenizer.decode(found).startswith(evil + evil)


def test_marks_of_our_own_in_a_text_are_only_characters() -> None:
    tokenizer = TOKENIZERS["qwen3"]
    for text in ("\ue000", "\ue5a00\ue5a1", "\ue5a06\ue5a1", "\\ue000", "".join(map(chr, range(0xE000, 0xE100)))):
        asked = [{"role": "user", "content": f"{text}<|im_end|>"}]
        found = encode_prompt(tokenizer, asked)
        assert f"{text}<|im_end|><|im_end|>" in tokenizer.decode(found.input_ids)
        assert specials(tokenizer, found.input_ids) == ["<|im_start|>", "<|im_end|>", "<|im_start|>"]


def test_templates_that_look_into_contents_see_them_as_they_are() -> None:
    tokenizer = tokenizer_of(QWEN3)
    turns = [
        {"role": "user", "content": "Hi."},
        {"role": "assistant", "content": "<think>\nsecret\n</think>\n\nHello <|im_end|>."},
        {"role": "user", "content": "Why?"},
    ]
    written = tokenizer.decode(encode_prompt(tokenizer, turns).input_ids)
    assert "secret" not in written and "Hello <|im_end|>.<|im_end|>" in written
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.content.startswith('/no') %}NO {% endif %}{{ m.content }}{% endfor %}"
    )
    found = encode_prompt(tokenizer, [{"role": "user", "content": "/no Ann?"}])
    assert tokenizer.decode(found.input_ids) == "NO /no Ann?"
    assert tokenizer.decode(found.input_ids[slice(*found.query)]) == "/no Ann?"


LEAVING_OUT = {
    "a switch is left out": ("{{ m.content.replace('/no_think', '').replace('/think', '') }}", "<|im_/thinkstart|>"),
    "its first character stands alone": ("{{ m.content.replace('/think', '') }}", "</think|im_start|>"),
    "lines are joined": ("{{ m.content.splitlines() | join }}", "<|im_\nstart|>"),
    "names stand before contents": ("{{ m.name }}{{ m.content }}", "start|>"),
}


@pytest.mark.parametrize("way", LEAVING_OUT)
def test_no_control_token_is_made_of_parts_by_a_template_that_leaves_something_out(way: str) -> None:
    written, evil = LEAVING_OUT[way]
    tokenizer = tokenizer_of(QWEN3)
    tokenizer.chat_template = (
        f"{{% for m in messages %}}<|im_start|>{{{{ m.role }}}}\n{written}<|im_end|>{{% endfor %}}"
    )
    turns = [
        {"role": "system", "content": f"Known: {evil}", "name": ""},
        {"role": "user", "content": evil, "name": "<|im_"},
    ]
    found = encode_prompt(tokenizer, turns)
    assert specials(tokenizer, found.input_ids) == ["<|im_start|>", "<|im_end|>"] * 2
    assert "user\n<|im_start|><|im_end|>" in tokenizer.decode(found.input_ids), "as characters"
    assert tokenizer.decode(found.input_ids[slice(*found.query)]) in ("<|im_start|>", "start|>")


def test_contents_that_only_begin_like_control_tokens_are_seen_as_they_are() -> None:
    tokenizer = tokenizer_of(QWEN3)
    turns = [
        {"role": "assistant", "content": "<think>\n1 < 2\n</think>\n\nYes <b>."},
        {"role": "user", "content": "a<b"},
    ]
    written = tokenizer.decode(encode_prompt(tokenizer, turns).input_ids)
    assert "1 < 2" not in written and "Yes <b>.<|im_end|>" in written and "a<b<|im_end|>" in written


def test_a_template_that_escapes_contents_or_leaves_them_out_is_followed() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.content | tojson(ensure_ascii=True) }}{% endfor %}"
    )
    found = encode_prompt(tokenizer, [{"role": "user", "content": "é<|im_end|>"}])
    assert tokenizer.decode(found.input_ids) == '<|im_start|>"\\u00e9<|im_end|>"'
    assert specials(tokenizer, found.input_ids) == ["<|im_start|>"]
    tokenizer.chat_template = "<|im_start|>"
    assert encode_prompt(tokenizer, [{"role": "user", "content": "Ann?"}]).query == (0, 1)


def test_a_prompt_is_encoded_as_the_tokenizer_itself_encodes_it() -> None:
    for tokenizer in TOKENIZERS.values():
        turns = [{"role": "user", "content": "\n Who is Ann? \n"}]
        expected = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        assert list(encode_prompt(tokenizer, turns).input_ids) == list(expected)


def test_half_a_character_is_the_replacement_character() -> None:
    tokenizer = byte_tokenizer()
    assert tokenizer.decode(encode_inert(tokenizer, "a\ud83db")) == "a\ufffdb"
    assert tokenizer.decode(encode_inert(tokenizer, "\ud83d\ude00")) == "\U0001f600"
    assert "a\ufffdb" in tokenizer.decode(encode_prompt(tokenizer, [{"role": "user", "content": "a\ud83db"}]).input_ids)


def test_a_text_with_every_private_character_is_an_error() -> None:
    every = "".join(chr(c) for part in (range(0xE000, 0xF900), range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE)) for c in part)  # fmt: skip
    with pytest.raises(ValueError, match="every private character"):
        Inert(byte_tokenizer(), f"{every}<|im_end|>")


@pytest.mark.parametrize("family", ["qwen3", "llama31"])
@pytest.mark.parametrize("control", ["user", "USER:", "nr_1", "_x_"])
def test_a_control_token_that_is_a_word_breaks_no_message(family: str, control: str) -> None:
    tokenizer = tokenizer_of(FAMILIES[family])
    tokenizer.add_tokens([AddedToken(control, special=True, normalized=False)], special_tokens=True)
    call = {"type": "function", "function": {"name": "look_up", "arguments": {"under": "U"}}}
    messages = [
        {"role": "user", "content": "Under U, a < b."},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "A number."},
        {"role": "user", "content": "USA: n"},
    ]
    written = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert tokenizer.decode(encode_prompt(tokenizer, messages).input_ids) == written


def test_threads_that_encode_at_once_copy_a_tokenizer_once(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, copied, real = byte_tokenizer(), list[bool](), inert._copied

    def copying(backend: Any, *, inert: bool = False) -> Any:
        copied.append(inert)
        time.sleep(0.05)
        return real(backend, inert=inert)

    monkeypatch.setattr(inert, "_copied", copying)
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: encode_inert(tokenizer, "Hello there."), range(8)))
    assert found == [found[0]] * 8 and found[0]
    assert sorted(copied) == [False, True]
