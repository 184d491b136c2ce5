"""A reasoner that thinks, made of a built-in one by renaming two of its tokens: nothing is trained, and every weight is as it was.

Its question ends in ``<think>``, as DeepSeek-R1's do, and before its answer it writes ``</think>``.
"""

import json
import shutil
from pathlib import Path

from stepmend.models.reasoner import CHECKPOINTS

OPENING, CLOSING = "<think>\n", "</think>\n\n"
RENAMED = {"<|assistant|>": f"<|assistant|>{OPENING}", "\\boxed{": CLOSING + "\\boxed{"}


def make(folder: Path, family: str = "qwen2") -> str:
    """The checkpoint, in ``folder``."""
    shutil.copytree(CHECKPOINTS / family, folder)
    for file in (folder / "tokenizer.json", folder / "tokenizer_config.json"):
        text = file.read_text()
        for name, other in RENAMED.items():
            text = text.replace(json.dumps(name), json.dumps(other))
        file.write_text(text)
    template = folder / "chat_template.jinja"
    begin = "{% if add_generation_prompt %}<|assistant|>"
    assert begin in template.read_text()
    template.write_text(template.read_text().replace(begin, begin[:-13] + "{{ " + json.dumps(RENAMED["<|assistant|>"]) + " }}"))
    return str(folder)
