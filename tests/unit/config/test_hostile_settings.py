"""Settings texts that no tool writes: understood, or refused in one bounded sentence, in bounded time and memory."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.config.import_settings import import_settings
from trainer.config.settings_text import DEEPEST, LONGEST, MOST_VALUES
from trainer.errors import MOST, KilnError
from trainer.parsers import parse_toml

REFERENCES = "a0: &a0 [1,1]\n" + "".join(f"a{i}: &a{i} [*a{i - 1},*a{i - 1}]\n" for i in range(1, 60))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[" * 100_000, "not valid|no 'name: value' lines"),
        ('{"a":' * 15_000, "not valid|no 'name: value' lines"),
        ("a: " + "[" * 20_000 + "]" * 20_000, "not valid YAML|nested more than"),
        ("a = " + "[" * 20_000 + "]" * 20_000, "not valid TOML"),
        (REFERENCES, "more than"),
        ("a: &a [*a]", "nested more than"),
        ("a: &a {b: *a}", "nested more than"),
        ('{"rank": ' + "9" * 4000 + "}", "rank is 999"),
        ("rank: " + "9" * 5000, "not valid"),
        ("batch_size: .inf", "batch_size is inf"),
        ("x: 1\n" * LONGEST, "characters"),
        ("".join(f"k{i}: 1\n" for i in range(MOST_VALUES + 1)), "more than"),
        ("rank: !!python/object/apply:os.system [ls]", "not valid YAML"),
    ],
    ids=lambda value: str(value)[:30],
)
def test_refused_in_a_sentence(text: str, sentence: str) -> None:
    with pytest.raises(KilnError, match=sentence) as caught:
        import_settings(text)
    assert len(str(caught.value)) <= MOST


def test_deep_toml_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="nested too deep"):
        parse_toml("a = " + "[" * 20_000 + "]" * 20_000)


def test_references_of_real_files_are_read() -> None:
    found = import_settings("base: &base {rank: 8}\nmine:\n  <<: *base\n  alpha: 4\n")
    assert (found.config.adapter.rank, found.config.adapter.alpha) == (8, 4.0) and DEEPEST > 10


KEYS = st.sampled_from(
    ["rank", "learning_rate", "network_dim", "betas", "optimizer_args", "seed", "shift", "x"]
)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats().map(repr)
    | st.text(max_size=8)
    | st.just("9" * 3000),
    lambda inner: st.lists(inner, max_size=3).map(str) | st.dictionaries(KEYS, inner, max_size=2).map(str),
    max_leaves=4,
)


@settings(max_examples=150)
@given(lines=st.lists(st.tuples(KEYS, st.sampled_from([": ", " = ", "=", " "]), VALUES), max_size=4))
def test_any_text(lines: list[tuple[str, str, object]]) -> None:
    try:
        import_settings("\n".join(f"{key}{sign}{value}" for key, sign, value in lines))
    except KilnError as error:
        assert len(str(error)) <= MOST
