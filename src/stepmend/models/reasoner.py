"""The built-in reasoners: two small models, trained from scratch on ``story``, shipped as ordinary Hugging Face checkpoints.

This file defines what does not depend on training: tokenizer, chat template, configurations.
"""

import itertools
import re
from pathlib import Path
from typing import Any

from stepmend.benchmarks import story
from stepmend.records import InputError

CHECKPOINTS = Path(__file__).parent / "checkpoints"
FAMILIES = ("qwen2", "llama")

SPECIAL = ("<|pad|>", "<|end|>", "<|user|>", "<|assistant|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}<|end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
WORDS = r"\d| ?[A-Za-z\\{}]+(?: (?=\d))?| ?[^\w\s] ?|\s"
"""Pieces of text: one digit; a word with the space before it, and the one after it where a number follows; one sign with its spaces."""

MAX_LENGTH = 512
"""Positions of a built-in reasoner: the longest ``story`` problem with its solution takes about 320 tokens."""


def make_tokenizer() -> Any:
    """A byte-level tokenizer (any text is representable, losslessly) with every word of ``story`` added as one token.

    transformers loads any Qwen2 checkpoint with Qwen2's own splitting of text, whatever its tokenizer.json says. Added tokens are
    matched before any splitting, the longest first, so all loaders give the same ids.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    characters = [*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({character: i for i, character in enumerate(characters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.add_tokens([AddedToken(word, normalized=False) for word in story_words()])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        eos_token="<|end|>",
        additional_special_tokens=["<|user|>", "<|assistant|>"],
        model_max_length=MAX_LENGTH,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def story_words() -> list[str]:
    """Every piece of ``story`` texts that is longer than a character."""
    found: set[str] = set()
    for level in story.LEVELS:
        for problem in itertools.islice(story.problems("train", level, seed=0), 4000):
            found.update(re.findall(WORDS, f"{problem.question}\n{story.program_of(problem).solution()}"))
    return sorted(piece for piece in found if len(piece) > 1)


def make_config(family: str, vocab_size: int) -> Any:
    """The configuration of one family: 2.5 M parameters; every width a multiple of 128, so the usual group size applies."""
    from transformers import LlamaConfig, Qwen2Config

    kinds = {"qwen2": Qwen2Config, "llama": LlamaConfig}
    if family not in kinds:
        raise InputError(f"reasoner: no family {family!r}; allowed: {', '.join(FAMILIES)}")
    return kinds[family](
        vocab_size=-(-vocab_size // 128) * 128,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=True,
        rms_norm_eps=1e-6,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
