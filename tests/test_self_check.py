"""The check that says how a model without a read adapter reads memory."""

import json
from pathlib import Path

import pytest

from mplus import self_check
from mplus.checkpoint.catalog import cache_root
from mplus.config import MemoryConfig
from mplus.model import MPlus
from mplus.self_check import FACTS, HowRead, SelfCheck, kept, kept_of
from mplus.testing import tiny_model


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MPLUS_HOME", str(tmp_path))
    monkeypatch.setattr(self_check, "_CHECKED", {})
    return tmp_path


def test_a_check_is_made_once_and_kept(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    found = SelfCheck(model.weights, model.tokenizer, name="tiny").result()
    assert found == HowRead.measured(found.latent or 0, found.text or 0)
    assert found.facts == len(FACTS)
    fingerprint = model.weights.fingerprints["late"]
    assert (kept(fingerprint), kept_of("tiny"), kept_of("other")) == (found, found, None)

    def never(self: SelfCheck) -> HowRead:
        raise AssertionError("checked twice")

    monkeypatch.setattr(SelfCheck, "_checked", never)
    assert SelfCheck(model.weights, model.tokenizer).result() == found
    self_check._CHECKED.clear()  # as in another process
    assert SelfCheck(model.weights, model.tokenizer).result() == found


def test_a_record_that_cannot_be_read_or_kept_means_another_check(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    monkeypatch.setattr(SelfCheck, "_checked", lambda self: HowRead.measured(3, 9))
    (home / "reads").write_text("not a folder", encoding="utf-8")
    assert SelfCheck(model.weights, model.tokenizer).result().read == "text"
    (home / "reads").unlink()
    (home / "reads").mkdir()
    record = home / "reads" / f"{model.weights.fingerprints['late']}.json"
    for wrong in ("{", "[]", json.dumps({"check": 0, "model": "", "read": "latent", "reason": ""})):
        record.write_text(wrong, encoding="utf-8")
        assert kept(model.weights.fingerprints["late"]) is None


def test_the_better_way_is_taken_and_latents_where_both_are_alike() -> None:
    found = [HowRead.measured(*right).read for right in ((4, 9), (9, 9), (12, 11), (9, 4), (0, 0))]
    assert found == ["text", "text", "text", "latent", "latent"]
    assert (
        HowRead.measured(4, 9).reason == "no read adapter; of 12 facts the model answers 4 from latents and 9 from text"
    )


def test_auto_reads_text_where_the_check_says_so() -> None:
    tiny = tiny_model()
    model = MPlus(tiny.weights, tiny.tokenizer, tiny.memory_config, reads=HowRead.measured(4, 9))
    for config, as_text in (
        (MemoryConfig(), True),
        (MemoryConfig(read="latent"), False),
        (MemoryConfig(ledger=False), False),
    ):
        memory = model.new_memory(config=config)
        model.write(memory, "Box seven is violet.")
        assert ("violet" in model.tokenizer.decode(model.read_request(memory, "Which?").input_ids)) == as_text
    assert tiny.reads.read == "latent"


def test_nothing_is_checked_before_a_memory_is_read(home: Path) -> None:
    tiny = tiny_model()
    model = MPlus(tiny.weights, tiny.tokenizer, tiny.memory_config)
    model.generate(model.new_memory(), "Hello", max_new_tokens=1)
    assert not (home / "reads").exists()
    memory = model.new_memory()
    model.write(memory, "Box seven is violet.")
    model.generate(memory, "Hello", max_new_tokens=1)
    assert (home / "reads").exists()


@pytest.mark.default_model
def test_a_read_adapter_decides_without_a_check(default_model: MPlus) -> None:
    assert default_model.reads == HowRead("latent", "the model has a trained read adapter")


@pytest.fixture(scope="module")
def plain(default_model: MPlus) -> MPlus:
    """The backbone of the default model as a folder of a model of one's own."""
    return MPlus.from_pretrained(cache_root() / "models" / "smol-135m")


@pytest.mark.default_model
def test_a_plain_folder_of_a_small_backbone_reads_text(plain: MPlus, home: Path) -> None:
    told = {
        "The wifi password is tangerine42.": ("What is the wifi password?", "tangerine42"),
        "My brother Noah lives in Trieste.": ("Where does my brother Noah live?", "Trieste"),
        "The plumber comes on Monday at nine.": ("On which day does the plumber come?", "Monday"),
        "Our dog is called Biscuit.": ("What is our dog called?", "Biscuit"),
    }
    memory = plain.new_memory()
    for number, line in enumerate(told):
        plain.write(memory, f"User: {line}", source=f"turn-{number}")
    asked = [[{"role": "user", "content": question}] for question, _ in told.values()]
    answers = plain.generate_batch([memory] * len(asked), asked, max_new_tokens=24)
    right = [answer in given.text for given, (_, answer) in zip(answers, told.values(), strict=True)]
    assert plain.reads.read == "text"
    assert sum(right) >= 3
    assert all(f"turn-{number}" in {s.source for s in given.recalled} for number, given in enumerate(answers))
