"""The visible part of a model's output: without thoughts, other channels, special tokens and run-on questions.

Linear in the text: every pattern starts with a literal, and nothing after it is tried twice (possessive quantifiers, bounded repeats).
"""

import re
from dataclasses import dataclass

_TAGS = r"(?:seed:)?(?:think|thinking|thoughts?|reasoning|scratchpad|reflection|analysis|rationale|cot|inner_monologue)"
THOUGHTS = re.compile(
    rf"(?P<open><\|?{_TAGS}[ \t]{{0,3}}\|?>|\[THINK\]|◁think▷"
    r"|<\|begin_of_thought\|>|<\|START_THINKING\|>|<\|inner_prefix\|>|<\|channel>thought"
    r"|<\|channel\|>\s{0,3}(?!final)\w{1,20}[^<\n]{0,80}(?:<\|constrain\|>\w{1,20})?<\|message\|>)"
    rf"|(?P<close><(?:/|\|/){_TAGS}[ \t]{{0,3}}\|?>|\[/THINK\]|◁/think▷"
    r"|<\|end_of_thought\|>|<\|END_THINKING\|>|<\|inner_suffix\|>|<channel\|>)"
    r"|(?P<final><\|channel\|>\s{0,3}final[^<\n]{0,80}(?:<\|constrain\|>\w{1,20})?<\|message\|>)",
    re.IGNORECASE,
)
"""Where thoughts start and end: tags of reasoning models, and the channels of the harmony format (https://github.com/openai/harmony)."""
GLUED = re.compile(r"\A\s{0,20}analysis(?=[A-Z0-9\\$])")
"""A harmony text whose special tokens were dropped when it was decoded: ``analysisWe need … assistantfinalThe answer …``."""
_SPECIAL = r"<[|｜][^|｜<>\n]{1,40}[|｜]>|</?s>|<bos>|<eos>|<pad>|<end_of_turn>|<start_of_turn>|\[EOS\]|\[/?INST\]|<EOT>"
SPECIAL = re.compile(_SPECIAL)
LEADING = re.compile(rf"\A(?:\s{{0,20}}(?:{_SPECIAL})(?:\s{{0,3}}(?:assistant|model)\b)?)+")
TRANSCRIPT = re.compile(rf"\A(?:\s{{0,20}}(?:{_SPECIAL}))+\s{{0,3}}(?:system|user)\b", re.IGNORECASE)
"""A text that starts with the prompt's own turns …"""
ASSISTANT = re.compile(
    r"(?:<\|im_start\|>|<\|start_header_id\|>|<\|start\|>)assistant\b(?:<\|end_header_id\|>)?"
    r"|<[|｜]assistant[|｜]>|<start_of_turn>model\b|\[/INST\]",
    re.IGNORECASE,
)
"""… and where the model's own turn starts in it."""
CUT_TOKEN = re.compile(r"<[/|｜][\w▁]{0,20}[|｜]?\Z")
"""A special token or a tag that is cut off at the end of the text."""
HEADING = re.compile(
    r"^[ \t]*+[#>*\[<_]*+[ \t]*+(?:(?:new|next|another|follow-?up|similar|second) )?"
    r"(?:(?P<asked>question|problem|q|human|user|instruction|问题|题目)|exercise|example|input|task|query)"
    r"(?:(?:[ \t]*+(?:#|no\.)?[ \t]?\d{1,4})?+[ \t*_\]>]*+[:：]|[ \t]*+#?\d{1,4}[*_]*+[.)]|(?:[ \t]*+#?\d{1,4})?+[ \t]*+[*_\]>]++[ \t]*+$)"
    r"|^#{1,6} (?:(?:new|next|another) )?(?:question|problem|instruction|exercise|example)(?: \d{1,4})?[ \t]*+$"
    r"|^Given the following problem\b"
    r"|^(?:here(?:'s| is)|now(?:,| for)?|let'?s (?:try|do|solve)|try|next is) "
    r"(?:another|one more|a new|a similar|the next|a different) (?:\w+ )?"
    r"(?:problem|question|example|exercise)\b",
    re.IGNORECASE | re.MULTILINE,
)
"""Where another question starts: a base model that has answered continues with the next one of its few-shot prompt."""


@dataclass(frozen=True)
class Visible:
    """The visible text, and whether it is complete: False if a thought was never closed, so that there is no answer."""

    text: str
    whole: bool


def visible(text: str) -> Visible:
    """The answer to the reader: no thoughts, no special tokens, nothing after the end of the model's turn."""
    if TRANSCRIPT.match(text) and (turn := ASSISTANT.search(text)):
        text = text[turn.end() :]
    said = _unthought(text)
    begin = LEADING.match(said.text)
    words = said.text[begin.end() if begin else 0 :]
    if end := SPECIAL.search(words):
        return Visible(words[: end.start()], True)
    cut = CUT_TOKEN.search(words, max(0, len(words) - 60))
    return Visible(words[: cut.start()] if cut else words, said.whole)


def _unthought(text: str) -> Visible:
    """A text without its thoughts. A closing tag without an opening one ends a thought that began in the prompt."""
    if GLUED.match(text):
        _, mark, said = text.rpartition("assistantfinal")
        return Visible(said if mark else "", bool(mark))
    kept: list[str] = []
    begin, thinking = 0, False
    for match in THOUGHTS.finditer(text):
        if not thinking and match["open"]:
            kept.append(text[begin : match.start()])
        elif not match["open"] and (match["final"] or not thinking):
            kept.clear()
        thinking, begin = bool(match["open"]), match.end()
    return Visible("".join(kept if thinking else [*kept, text[begin:]]), not thinking)
