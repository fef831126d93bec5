"""The host waits for the device once a step, however many rows are answered: for the tokens of all of them."""

from typing import Any

import pytest

from mplus.generation.engine import Engine
from mplus.model import MPlus
from tests.read.counted import Counted, Waiting

GREEDY: dict[str, Any] = {}
SAMPLED: dict[str, Any] = {"temperature": 1.0, "top_k": 40, "top_p": 0.9, "repetition_penalty": 1.1}
SCHEMA = {"type": "object", "properties": {"box": {"type": "string"}}, "required": ["box"]}


@pytest.mark.parametrize("kind", ["greedy", "sampled", "mixed"])
def test_a_step_of_eight_rows_waits_once(model: MPlus, text: str, kind: str) -> None:
    memory = model.new_memory()
    model.write(memory, text, source="a")
    settings = {"greedy": [GREEDY] * 8, "sampled": [SAMPLED] * 8, "mixed": [GREEDY, SAMPLED] * 4}[kind]
    chat = [{"role": "user", "content": "Which box is blue?"}]
    prompts = [chat if row == 7 else "box " * (1 + row) for row in range(8)]
    rows = [
        model._requests.row(memory, prompt, max_new_tokens=60, seed=number, gate="always", **given)
        for number, (prompt, given) in enumerate(zip(prompts, settings, strict=True))
    ]
    engine = Engine(model.weights, model.tokenizer, frozenset())
    engine.add(rows)
    while not all(row.token_ids for row in rows):
        list(engine.step())
    steps: list[tuple[int, int]] = []
    for _ in range(4):
        with Waiting() as waiting:
            list(engine.step())
        with Counted() as counted:
            list(engine.step())
        assert waiting.calls.total() <= 1, waiting.calls
        assert not counted.waits
        steps.append((waiting.calls.total(), counted.operations))
    assert len(set(steps)) == 1, "the same at every step"
    assert not any(row.is_finished for row in rows), [row.error for row in rows]


def test_a_constraint_and_a_threshold_of_declining_do_not_wait(model: MPlus, text: str) -> None:
    from mplus.generation.constrain import ConstrainedDecoding, Constraint
    from mplus.generation.declining import DeclineThreshold

    memory = model.new_memory()
    model.write(memory, text, source="a")
    row = model._requests.row(memory, "box", max_new_tokens=9)
    row.processors = (
        ConstrainedDecoding(Constraint.json_schema(SCHEMA), model.tokenizer, model._requests.stop_token_ids()),
        DeclineThreshold(model.tokenizer, 0.9),
    )
    engine = Engine(model.weights, model.tokenizer, frozenset())
    engine.add([row])
    list(engine.step())
    with Waiting() as waiting:
        list(engine.step())
    assert row.error is None and len(row.token_ids) == 2
    assert waiting.calls.total() == 1, waiting.calls
