"""The versioned prompts. Imports nothing: a recipe is checked against them before any model is loaded."""

QUESTION = "{question}"
"""What a prompt's text has in the question's place."""
PROMPTS: dict[str, str] = {
    "plain-1": QUESTION,
    "steps-1": (
        f"{QUESTION}\n\nSolve the problem step by step. Write one step a line, as in 'Step 1: 3 * 4 = 12'. "
        "Put the final answer in \\boxed{} on the last line."
    ),
    "think-1": f"{QUESTION}\n\nPlease reason step by step, and put your final answer within \\boxed{{}}.",
}
"""``plain-1`` for models that write steps by themselves (the built-in reasoners, aligned parents), ``think-1`` for models that think (the
words that the model cards of DeepSeek-R1 and Qwen3 ask for), ``steps-1`` for all others."""


def filled(prompt: str, question: str) -> str:
    """The user message: a prompt, by its name or its text, with the question inserted."""
    return PROMPTS.get(prompt, prompt).replace(QUESTION, question)
