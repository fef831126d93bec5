import math

import pytest

from mplus import MemoryConfig


def test_the_published_sizes_of_the_8b_model() -> None:
    config = MemoryConfig.published()
    assert (config.short_term_tokens, config.recalled_tokens, config.prefix_tokens) == (10_240, 2_560, 12_801)


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
