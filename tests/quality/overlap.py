"""When the collectives of a step run over a slow link, for the picture in the documentation.

    python -m tests.quality.overlap [--model resnet56] [--image-size 32] [--images 32] [--megabits 70]

As root. Two ranks on two hosts of network namespaces, each with one core. Writes the step of median length to
`docs/drawings/overlap.json`; then `python -m docs.drawings.overlap` draws it.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

from docs.drawings.overlap import DATA
from tests.quality.linked_steps import run_linked
from tests.ranks.timeline import MODELS, NUM_STEPS, read_steps


def main() -> None:
    """Measure, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="resnet56", choices=MODELS)
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--images", type=int, default=32, help="of each rank")
    parser.add_argument("--megabits", type=float, default=70.0, help="of the link")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        line = f"{sys.executable} -m tests.ranks.timeline {name} {options.model} {options.image_size} {options.images}"
        run_linked(line, 2, options.megabits, HOROVOD_TIMELINE=str(folder / "timeline.json"))
        # The first ones begin while the other rank is still compiling.
        steps = read_steps(folder, 2)[2:]
    num_early = sum(step.collectives["step_0"]["start"] < step.last_gradients["ready"] for step in steps)
    print(f"{num_early} of {NUM_STEPS - 2} steps: the first gradients travel before the last ones are there")
    step = sorted(steps, key=lambda step: step.end - step.start)[len(steps) // 2]
    model = options.model.replace("resnet", "ResNet-")
    document = {
        "model": f"{model}, {options.image_size} px, {options.images} images a rank",
        "megabits": options.megabits,
        "step_ms": round(1000 * (step.end - step.start), 1),
        "collectives": {
            name: {f"{moment}_ms": round(1000 * (seconds - step.start), 1) for moment, seconds in times.items()}
            for name, times in sorted(step.collectives.items())
        },
    }
    DATA.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
