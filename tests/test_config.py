import json
import math

import pytest

from mplus import MemoryConfig
from mplus.checkpoint.catalog import BUILT_IN, trained_parts
from mplus.checkpoint.parts import read_memory_config
from mplus.config import PRESETS


def test_the_published_sizes_of_the_8b_model() -> None:
    config = MemoryConfig.published()
    assert (config.short_term_tokens, config.recalled_tokens, config.prefix_tokens) == (10_240, 2_560, 12_801)


def test_the_default_model_takes_its_settings_from_here() -> None:
    config = MemoryConfig.smol_135m()
    assert config.model_dump(exclude_defaults=True) == {
        "short_term_tokens": 128,
        "recalled_tokens": 256,
        "recalled_neighbours": 2,
        "relevance_cutoff": 0.7,
        "best_sentence_times": 2,
    }
    assert set(PRESETS) == {name for name in BUILT_IN if trained_parts(name)}
    for name, preset in PRESETS.items():
        folder = trained_parts(name)
        assert folder is not None and read_memory_config(folder) == preset()
        assert json.loads((folder / "mplus.json").read_text(encoding="utf-8"))["memory"] == name


@pytest.mark.parametrize(("window", "tokens"), [(131_072, 512), (1024, 256), (128, 64)])
def test_without_a_layout_memory_takes_half_of_the_window(window: int, tokens: int) -> None:
    config = MemoryConfig.for_window(window)
    assert (config.short_term_tokens, config.recalled_tokens) == (tokens, tokens)


def test_every_setting_has_a_description() -> None:
    assert [name for name, field in MemoryConfig.model_fields.items() if not field.description] == []


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"chunk_tokens": 0}, "chunk_tokens"),
        ({"chunk_tokens": 2.5}, "chunk_tokens"),
        ({"short_term_tokens": -1}, "short_term_tokens"),
        ({"recall_frequency_decay": math.nan}, "recall_frequency_decay"),
        ({"initial_recall_frequency": math.inf}, "initial_recall_frequency"),
        ({"recall_frequency_gain": -1}, "recall_frequency_gain"),
        ({"minimum_chunk_tokens": 65}, "minimum_chunk_tokens=65"),
        ({"short_term_tokens": 10}, "short_term_tokens=10"),
        ({"layout": "rows"}, "layout"),
        ({"recall": "bm25"}, "recall"),
        ({"encoding": "adapter"}, 'layout="token"'),
        ({"encoding": "adapter", "layout": "token", "short_term_tokens": 0}, "write adapter"),
        ({"ages_stop_in_short_term": True}, 'layout="token"'),
        ({"repeat_short_recall": True}, 'layout="token"'),
        ({"long_term_dtype": "int2"}, "long_term_dtype"),
        ({"chunk_token": 3}, "chunk_token"),
        ({"recalled_neighbours": 65}, "recalled_neighbours"),
    ],
)
def test_bad_settings_are_named(settings: dict, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        MemoryConfig(**settings)


def test_a_config_never_changes_and_survives_json() -> None:
    config = MemoryConfig(recalled_tokens=99)
    with pytest.raises(ValueError, match="frozen"):
        config.recalled_tokens = 3
    assert MemoryConfig.model_validate_json(config.model_dump_json()) == config


def test_long_term_memory_is_int8_where_chunks_are_kept_whole() -> None:
    assert MemoryConfig().resolved_long_term_dtype == "int8"
    assert MemoryConfig(layout="token").resolved_long_term_dtype == "auto"
    assert MemoryConfig(long_term_dtype="bfloat16").resolved_long_term_dtype == "bfloat16"
