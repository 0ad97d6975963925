"""The examples of the documentation, and what its reader has before starting."""

import dataclasses
import re

from docs.drawings.packages import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
_NOT_RUN = re.compile(r"<!-- not run by the tests of the documentation: (.+) -->\s*$")


@dataclasses.dataclass(frozen=True)
class Example:
    """A fenced block."""

    page: str
    line: int
    language: str
    text: str
    reason: str | None
    """Why it is not run; None if it is."""

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def examples() -> list[Example]:
    """All fenced blocks of all pages, in their order."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for fence in _FENCE.finditer(text):
            reason = _NOT_RUN.search(text[: fence.start()])
            line = text[: fence.start()].count("\n") + 1
            name = str(page.relative_to(ROOT))
            found.append(Example(name, line, fence[2], fence[3], reason and reason[1]))
    return found


def of(language: str, page: str | None = None) -> list[Example]:
    """The blocks of one language that are to be run, of one page or of all."""
    return [e for e in examples() if e.language == language and not e.reason and page in (None, e.page)]


# What the reader of a program has: a trained model, images and labels. Run in the folder of the program.
FILES = """
import numpy as np
import resrep_dist
from sklearn.datasets import load_digits
from tensorflow import keras

images, labels = load_digits(return_X_y=True)
images = (images.reshape(-1, 8, 8, 1) / 16).astype(np.float32)
labels = labels.astype(np.int64)
np.savez("arrays.npz", x_train=images[:1024], y_train=labels[:1024], x_val=images[1024:], y_val=labels[1024:])

keras.utils.set_random_seed(0)
layers = keras.layers
x = inputs = keras.Input([8, 8, 1])
for width in (16, 24):
    x = layers.Conv2D(width, 3, padding="same", use_bias=False)(x)
    x = layers.BatchNormalization(momentum=0.9)(x)  # 128 steps are few for Keras' 0.99
    x = layers.ReLU()(x)
    x = layers.MaxPooling2D()(x)
model = keras.Model(inputs, layers.Dense(10)(layers.GlobalAveragePooling2D()(x)))
model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
model.fit(images[:1024], labels[:1024], batch_size=64, epochs=8, verbose=0)
model.save("mine.h5")
model.save("mine.keras")
"""

# The arrays, as names in the reader's program.
ARRAYS = """
import numpy as np
globals().update(np.load("arrays.npz"))
"""
