"""Check the built-in reasoner, and take it through the whole loop on a few problems; progress is a callback.

Run it from anywhere: ``python examples/whole_loop.py FOLDER``. So few problems prove nothing; ``stepmend.run()`` takes more.
"""

import sys

import stepmend

SCHEME = "rtn-w3a16"
RECIPE = {
    "schemes": [SCHEME],
    "measure": {"problems": 4, "noise_floor": False},
    "curate": {"problems": 30, "round": 30},
    "locate": {"own_failures": 0},
    "restore": {"tune": "codes", "validation": 0, "within_noise": True},
}


def show(update: stepmend.Update) -> None:
    """One line for each finished stage, and the lines between them."""
    if update.line:
        print(update.line)
    elif update.done == update.total:
        print(f"{update.stage}: {update.done} {update.unit}")


def main() -> None:
    checked = stepmend.check("builtin:qwen2", [SCHEME])
    print(f"{checked.parameters / 1e6:.1f} M parameters; {checked.summary['quantized']} modules would be quantized")
    result = stepmend.run(RECIPE, sys.argv[1] if len(sys.argv) > 1 else "runs/whole-loop", progress=show)
    for arm in result.arms:
        print(f"{arm.name}: {arm.correct} of {arm.n}")
    print(f"The page: {result.page}")


if __name__ == "__main__":  # grading starts processes, which read this file again
    main()
