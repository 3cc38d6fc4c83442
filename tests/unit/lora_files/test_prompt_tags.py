"""LoRA tags in a prompt, and the files that their names mean."""

from __future__ import annotations

import pytest

from trainer.errors import KilnError
from trainer.lora_files.prompt_tags import PromptLora, find_lora_file, parse_prompt


def test_prompt() -> None:
    parsed = parse_prompt(
        "a cat, <lora:style:0.8>, neon <LoRA:a/b c:0.8:0.6> fog, lora_weight = 0.7, <lora:plain>"
    )
    assert parsed.text == "a cat, neon fog"
    assert parsed.weight == 0.7
    assert parsed.loras == (
        PromptLora("style", 0.8, 0.8),
        PromptLora("a/b c", 0.8, 0.6),
        PromptLora("plain", None, None),
    )
    assert parse_prompt("a  <b> (cat:1.2)").text == "a <b> (cat:1.2)"


def test_a_weight_at_the_end_of_a_sentence() -> None:
    assert parse_prompt("a cat, lora_weight=0.8.").weight == 0.8
    assert parse_prompt("lora_weight=1e-1") == parse_prompt("lora_weight=0.1")
    assert parse_prompt("((<lora:x:1>:1.2)) a (red:1.1) cat").text == "a (red:1.1) cat"


def test_names_are_the_same_on_every_system() -> None:
    """Accents as one letter or two, folders by either slash."""
    assert find_lora_file("gru\u0308n", ["Gr\u00fcn.safetensors"]) == "Gr\u00fcn.safetensors"
    assert find_lora_file("a\\x", ["a/x.safetensors", "b/x.safetensors"]) == "a/x.safetensors"
    assert find_lora_file("b/x.safetensors", ["a\\x.safetensors", "b\\x.safetensors"]) == "b\\x.safetensors"


def test_names() -> None:
    names = ["kiln/zorb_00001_.safetensors", "style.safetensors", "old/style.safetensors", "Cat.safetensors"]
    assert find_lora_file("zorb_00001_", names) == names[0]
    assert find_lora_file("style", names) == "style.safetensors"
    assert find_lora_file("old/style.safetensors", names) == "old/style.safetensors"
    assert find_lora_file("cat", names) == "Cat.safetensors"
    with pytest.raises(KilnError, match=r"can be a/x.safetensors, b/x.safetensors; write its folder too"):
        find_lora_file("x", ["a/x.safetensors", "b/x.safetensors"])
    with pytest.raises(KilnError, match=r"no LoRA file 'stile' .*nearest: (old/)?style.safetensors"):
        find_lora_file("stile", names)
