"""``mplus train`` from the command line to a model that loads."""

import json
import random
import re
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from mplus import MPlus
from mplus.checkpoint.parts import read_parts
from mplus.cli.app import app
from mplus.cli.settings_options import given_settings
from mplus.errors import UnsupportedModelError
from mplus.memory.memory import Memory
from mplus.testing import tiny_model
from mplus.training import before_after, run
from mplus.training.chunk import chunk_run, told_texts
from mplus.training.published import stage_task
from mplus.training.published.stages import published_stages
from mplus.training.run_settings import RunSettings
from tests.conftest import TINY

RUN = CliRunner()
WORDS = ["Berlin", "Vienna", "Anna", "Boris", "harbour", "lantern", "orchard", "violin", "winter"]


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backbone folder that M+ never touched, and a folder of plain texts."""
    folder = tmp_path_factory.mktemp("given")
    model = tiny_model(num_hidden_layers=2)
    model.weights.backbone.save(folder / "model")
    model.tokenizer.save_pretrained(folder / "model")
    rng = random.Random(0)
    for number in range(8):
        sentences = [
            f"The {rng.choice(WORDS)} of {rng.choice(WORDS)} met container {rng.randrange(999)} near "
            f"{rng.choice(WORDS)} on day {rng.randrange(99)}."
            for _ in range(10)
        ]
        path = folder / "texts" / ("deep" if number % 2 else "") / f"{number}.md"
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(" ".join(sentences[:5]) + "\n\n" + " ".join(sentences[5:]))
    return folder


@pytest.fixture(autouse=True)
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Runs here end without a table; what would have been asked."""
    names: list[str] = []
    monkeypatch.setattr(run, "before_and_after", lambda settings, folder: names.append(settings.evaluate) or "asked")
    return names


def invoke(*arguments: str) -> str:
    result = RUN.invoke(app, ["train", *arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def train(given: Path, out: Path, *more: str) -> None:
    invoke("--model", str(given / "model"), "--texts", str(given / "texts"), "--out", str(out), *more)


PUBLISHED = (
    *("--stages", "published", "--rank", "2", "--retriever-size", "8", "--tokens-per-write", "8", "--blocks", "20"),
    *("--chunk-tokens", "64", "--target-tokens", "48", "--save-every", "2", "--log-every", "1"),
    *("--steps", "published-1=2", "--steps", "published-2=2", "--steps", "published-3=2"),
)


def test_plain_texts_train_the_published_parts(given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage_task, "HELD_OUT_EPISODES", 1)
    train(given, tmp_path / "run", *PUBLISHED)
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert {line["stage"] for line in lines} == {"published-1", "published-2", "published-3"}
    assert any("held_out_without_memory" in line for line in lines)
    assert json.loads((tmp_path / "run" / "settings.json").read_text())["rank"] == 2

    model = MPlus.from_pretrained(tmp_path / "run" / "model")
    assert (model.memory_config.encoding, model.memory_config.layout) == ("adapter", "token")
    assert (model.memory_config.short_term_tokens, model.memory_config.recalled_tokens) == (80, 80)
    parts = model.trained_parts
    assert parts.write_adapter and parts.read_adapter and parts.published and parts.write_position is not None
    assert any(bool(weights.up.any()) for weights in parts.read_adapter.values())
    memory = model.new_memory()
    model.write(memory, "The violin of Anna met container 7 near Vienna. " * 30, source="a")
    model.write(memory, "The lantern of Boris met container 8 in winter. " * 30, source="b")
    assert min(memory.stats().short_term.tokens) == 80 and min(memory.stats().long_term.tokens) > 80
    answer = model.generate(memory, "The violin of", max_new_tokens=4)
    assert {source.source for source in answer.recalled} <= {"a", "b"} and answer.recalled
    memory.save(tmp_path / "memory")
    assert Memory.load(tmp_path / "memory", model).fingerprint == memory.fingerprint


def test_an_adapter_that_writes_is_trained_shipped_and_gone_on_with(given: Path, tmp_path: Path) -> None:
    more = ("--batch", "4", "--layer", "1", "--log-every", "2", "--evaluate", "none")
    with pytest.raises(ValueError, match=r"write_from=0: recall scores the states at decoder layer 1.* 1 to 1"):
        train(given, tmp_path / "low", "--stages", "reader", "--write-from", "0", *more)
    train(given, tmp_path / "run", "--stages", "reader", "--steps", "reader=2", "--write-from", "1", *more)
    first = read_parts(tmp_path / "run" / "model")
    assert first.write_from == 1
    trained = str(tmp_path / "run" / "model")
    invoke(
        "--model", trained, "--texts", str(given / "texts"), "--out", str(tmp_path / "on"), "--stages", "tune", *more
    )
    assert read_parts(tmp_path / "on" / "model").write_from == 1, "as the model does"
    model = MPlus.from_pretrained(tmp_path / "on" / "model")
    assert model.weights.backbone.write_from == 1


def test_plain_texts_train_recall_and_reading(given: Path, tmp_path: Path, asked: list[str]) -> None:
    """Stopped after the first stage and gone on with, as if it had not been."""
    steps = ("--steps", "projection=30", "--steps", "reader=4", "--steps", "scorer=3", "--batch", "4", "--layer", "1")
    more = ("--stages", "projection,reader,scorer", *steps, "--retriever-size", "8", "--log-every", "2")
    train(given, tmp_path / "whole", *more)
    train(given, tmp_path / "again", *more)
    for name in ("reader", "scorer"):
        (tmp_path / "again" / "stages" / name / "parts").rename(tmp_path / name)
    invoke("--out", str(tmp_path / "again"), "--resume")
    models = [MPlus.from_pretrained(tmp_path / run / "model") for run in ("whole", "again")]
    assert models[0].weights.fingerprints == models[1].weights.fingerprints
    assert not (tmp_path / "whole" / "states").exists()
    assert asked == ["talk"] * 3

    model = models[0]
    parts = model.trained_parts
    assert parts.recall_layer == 1 and parts.read_adapter and parts.late is not None and parts.published is not None
    assert parts.late.query_projection is not None
    text = (given / "texts" / "0.md").read_text()
    # The trained projection by default; the published scorer on the same layout, by chunks or by single tokens.
    for layout in ("chunk", "token"):
        config = TINY.model_copy(update={"recall": "published", "layout": layout})
        memory = model.new_memory(config=config)
        model.write(memory, text, source="text")
        assert model.generate(memory, "The violin", max_new_tokens=2).recalled
    memory = model.new_memory()
    model.write(memory, text, source="text")
    assert model.generate(memory, "The violin", max_new_tokens=2).completion_tokens


def test_a_model_of_its_own_layers_is_trained_and_asked_before_and_after(
    given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gemma 3's layers, through a projection and a read adapter; the run is stopped while questions are asked."""
    model = tiny_model(num_hidden_layers=2, model_type="gemma3_text", sliding_window=64)
    model.weights.backbone.save(tmp_path / "gemma")
    model.tokenizer.save_pretrained(tmp_path / "gemma")
    for name in ("TALK_QUESTIONS", "TALK_UNKNOWN"):
        monkeypatch.setattr(before_after, name, 2)
    out = tmp_path / "run"

    def stopped(settings: RunSettings, folder: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(run, "before_and_after", stopped)
    arguments = ("--model", str(tmp_path / "gemma"), "--texts", str(given / "texts"), "--out", str(out))
    steps = ("--steps", "projection=5", "--steps", "reader=3", "--batch", "4", "--rank", "4", "--log-every", "1")
    RUN.invoke(app, ["train", *arguments, *steps])
    assert (out / "model" / "mplus.json").exists() and not (out / "evaluation").exists()
    monkeypatch.setattr(run, "before_and_after", before_after.before_and_after)
    invoke("--out", str(out), "--resume")
    table = (out / "evaluation" / "talk" / "table.md").read_text()
    assert "without an adapter → through its read adapter" in table
    assert len(re.findall(r"^\| talk \| 0 \| 2 \| \d\.\d{3} → \d\.\d{3} \|", table, re.MULTILINE)) == 1, table
    answers = [(out / "evaluation" / "talk" / when / "answers.jsonl").read_text() for when in ("before", "after")]
    assert answers[0] != answers[1] and all(len(lines.splitlines()) == 4 for lines in answers)
    monkeypatch.setattr(run, "before_and_after", lambda settings, folder: settings.evaluate)
    invoke("--out", str(out), "--resume", "--evaluate", str(given / "texts"))  # what is asked may change

    trained = MPlus.from_pretrained(out / "model")
    parts = trained.trained_parts
    assert parts.read_adapter and parts.late is not None and parts.late.query_projection is not None
    memory = trained.new_memory()
    trained.write(memory, (given / "texts" / "0.md").read_text(), source="text")
    assert trained.generate(memory, "The violin", max_new_tokens=2).recalled
    with pytest.raises(UnsupportedModelError, match="--stages projection,reader"):
        invoke(*arguments[:4], "--out", str(tmp_path / "no"), *PUBLISHED)


def test_a_read_adapter_goes_on_being_trained(given: Path, tmp_path: Path) -> None:
    small = ("--batch", "4", "--layer", "1", "--log-every", "2")
    train(given, tmp_path / "first", "--steps", "projection=3", "--steps", "reader=4", "--rank", "2", *small)
    own = tmp_path / "first" / "model"
    more = ("--stages", "tune", "--steps", "tune=4", *small, "--texts", str(given / "texts"))
    invoke("--model", str(own), "--out", str(tmp_path / "on"), *more)
    before, after = (MPlus.from_pretrained(path).trained_parts for path in (own, tmp_path / "on" / "model"))
    assert before.read_adapter and after.read_adapter and before.late and after.late
    for name, part in after.read_adapter.items():
        assert part.down.shape == before.read_adapter[name].down.shape
    assert any(not torch.equal(part.up, before.read_adapter[name].up) for name, part in after.read_adapter.items())
    assert before.late.query_projection is not None and after.late.query_projection is not None
    assert torch.equal(before.late.query_projection, after.late.query_projection), "recall stays as it was"
    with pytest.raises(ValueError, match="stage 'tune' goes on with a read adapter, and the model has none"):
        invoke("--model", str(given / "model"), "--out", str(tmp_path / "none"), *more)


def test_reading_text_is_trained_and_gone_on_with(given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chunk_run, "REQUESTS", 4)
    monkeypatch.setattr(told_texts, "LONGEST", 1 << 13)  # a byte tokenizer makes many tokens
    small = ("--stages", "reader", "--read", "text", "--talk", "1", "--batch", "8", "--rank", "2", "--log-every", "1")
    model = ("--model", str(given / "model"))
    invoke(*model, *small, "--steps", "reader=2", "--out", str(tmp_path / "whole"))
    parts = MPlus.from_pretrained(tmp_path / "whole" / "model").trained_parts
    assert parts.read_adapter and parts.adapter_reads == "text"
    assert parts.prompt_turns == 0, "a conversation is read through the adapter"
    assert any(part.up.any() for part in parts.read_adapter.values())

    more = ("--stages", "tune", "--read", "text", "--steps", "tune=1", "--talk", "1", "--batch", "4")
    invoke("--model", str(tmp_path / "whole" / "model"), "--out", str(tmp_path / "on"), *more)
    assert MPlus.from_pretrained(tmp_path / "on" / "model").trained_parts.adapter_reads == "text"
    with pytest.raises(ValueError, match="Give --talk 1"):
        train(given, tmp_path / "none", "--stages", "reader", "--read", "text")


def test_questions_and_conversations_are_read_as_texts_too(given: Path, tmp_path: Path) -> None:
    squad = {
        "data": [
            {
                "paragraphs": [
                    {
                        "context": f"The {a} of {b} is in container {n}. " * 3,
                        "qas": [{"question": f"Where is the {a} of {b}?", "answers": [{"text": f"container {n}"}]}],
                    }
                    for n, (a, b) in enumerate((a, b) for a in WORDS[:4] for b in WORDS[4:])
                ]
            }
        ]
    }
    (tmp_path / "squad.json").write_text(json.dumps(squad))
    model = ("--model", str(given / "model"))
    more = ("--squad", str(tmp_path / "squad.json"), "--out", str(tmp_path / "run"))
    invoke(*model, *more, "--steps", "projection=3", "--steps", "reader=2", "--batch", "2", "--adapters", "2")
    adapter = MPlus.from_pretrained(tmp_path / "run" / "model").trained_parts.read_adapter
    each = [
        read_parts(path / "parts").read_adapter for path in sorted((tmp_path / "run").glob("stages/reader*/step-*"))
    ]
    assert adapter and each[0] and each[1] and len(each) == 2
    for name, part in adapter.items():
        assert len(part.down) == len(each[0][name].down) + len(each[1][name].down)
        assert not torch.equal(each[0][name].down, each[1][name].down)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"stages": ("reading",)},
            "stage 'reading' is unknown; expected some of projection, reader, tune, gate, scorer",
        ),
        ({"stages": ()}, "stages is empty"),
        ({"stages": ("reader", "published-1")}, "Train one sort"),
        ({"stages": ("reader", "reader")}, "named twice"),
        ({"texts": ()}, "Nothing to train on"),
        ({"steps": {"published-1": 4}}, "none of the stages projection, reader"),
        ({"device": "cuda:1"}, "expected 'auto' or 'cpu'"),
        ({"rank": 0}, "greater than or equal to 1"),
        ({"evaluate": "facts"}, "expected talk, none, or the folder of a suite"),
        ({"precision": "fp8"}, "'auto', 'no' or 'bf16'"),
    ],
)
def test_settings_that_make_no_sense_say_so(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RunSettings.model_validate({"model": "m", "texts": ("t",)} | changes)


def test_a_run_is_neither_overwritten_nor_changed(given: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    train(given, out, "--stages", "projection", "--steps", "projection=2")
    for path in (given / "model").iterdir():
        assert (out / "model" / path.name).read_bytes() == path.read_bytes(), "the backbone comes out as it went in"
    with pytest.raises(ValueError, match="holds a run. Pass --resume"):
        train(given, out, "--stages", "projection", "--steps", "projection=2")
    with pytest.raises(ValueError, match=r"seed=7, but the run in .* was begun with 0"):
        invoke("--out", str(out), "--seed", "7", "--resume")
    with pytest.raises(ValueError, match="no run to resume|not the settings of a run"):
        invoke("--out", str(tmp_path / "none"), "--resume")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file; expected a folder"):
        train(given, tmp_path / "file")


@pytest.mark.parametrize("given_steps", ["reader", "reader=", "reader=many", "=3x"])
def test_steps_are_a_stage_and_a_number(given_steps: str, tmp_path: Path) -> None:
    options = {"steps": ["reader=40", "published-1=3"], "stages": "reader, published", "seed": None, "texts": []}
    found = given_settings(RunSettings, options)
    assert found == {"steps": {"reader": 40, "published-1": 3}, "stages": ["reader", "published"]}
    with pytest.raises(ValueError, match="expected name=value|and a whole number"):
        invoke("--out", str(tmp_path / "run"), "--texts", str(tmp_path), "--steps", given_steps)


def test_every_setting_is_an_option_with_its_meaning() -> None:
    shown = RUN.invoke(app, ["train", "--help"], env={"COLUMNS": "200"}).output
    for name, field in RunSettings.model_fields.items():
        assert f"--{name.replace('_', '-')} " in shown
        assert field.description and field.description.split()[0] in shown
    assert "[default: (300)]" in shown


def test_presets_are_the_published_sizes_where_they_fit() -> None:
    wide = tiny_model(max_position_embeddings=131072).weights.backbone
    stages = published_stages(wide)
    first, _, third = stages.values()
    assert list(stages) == ["published-1", "published-2", "published-3"]
    assert (third.memory.short_term_tokens, third.memory.recalled_tokens) == (10240, 2560)
    assert (first.memory.short_term_tokens, first.memory.long_term_capacity) == (12800, 0)
    assert (third.target_tokens, third.short_tokens) == (2048, 4096)
    assert published_stages(wide, target_tokens=100)["published-1"].short_tokens == 200
    assert third.learning_rate / third.final_learning_rate == pytest.approx(10)
    assert third.learning_rate * 48 / 4096 == pytest.approx(4.6e-5)
    narrow = published_stages(tiny_model(max_position_embeddings=2048).weights.backbone)["published-3"]
    assert narrow.memory.prefix_tokens <= 1 + 1024 and narrow.target_tokens < 1024
    with pytest.raises(ValueError, match="less than or equal to 1"):
        published_stages(wide, replay=1.5)


def test_dropout_is_for_gradients_only() -> None:
    from mplus.backbone.adapters import LoraLinear, LoraWeights

    linear = LoraLinear(torch.nn.Linear(8, 8), LoraWeights(torch.randn(2, 8), torch.randn(8, 2), 1.0))
    linear.dropout = 0.5
    rows = torch.randn(3, 8)
    with torch.no_grad():
        assert torch.equal(linear(rows), linear(rows))
    assert not torch.equal(linear(rows), linear(rows))


def test_too_little_text_says_so(given: Path, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text("One sentence about the harbour of Antwerp.")
    arguments = ("--model", str(given / "model"), "--texts", str(tmp_path / "short.txt"))
    with pytest.raises(ValueError, match="answer 1 questions about themselves; expected at least 10"):
        invoke(*arguments, "--out", str(tmp_path / "run"), "--stages", "projection")
    # Nothing was trained: the folder may be used again, and need not be resumed.
    with pytest.raises(ValueError, match="None of 1 documents has 48 tokens"):
        invoke(*arguments, "--out", str(tmp_path / "run"), "--stages", "published-1")
