"""Find the first faulty step of wrong solutions: by their equations alone, then with a model that continues them from each step.

Run it from anywhere: ``python examples/locate_steps.py``. The model is the built-in reasoner; a folder or a hub name does as well.
``data/failures.jsonl`` holds two solutions that the reasoner wrote when it was rounded to 3 bits.
"""

from pathlib import Path

import stepmend

DATA = Path(__file__).parent / "data"


def main() -> None:
    for model in (None, "builtin:qwen2"):
        print(f"with {model or 'no model'}:")
        for one in stepmend.locate(DATA / "failures.jsonl", model=model).solutions:
            votes = {vote.locator: vote.step for vote in one.fault.votes if vote.step is not None}
            print(f"  {one.fault.outcome}: step {one.step}, {one.fault.error_class}; votes {votes}")
            if one.text:
                print(f"    {one.text.strip()}")


if __name__ == "__main__":  # grading starts processes, which read this file again
    main()
