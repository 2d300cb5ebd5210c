"""The demo's second process: opens state files, and tells what the model makes of each.

python -m memwrite.demo.reading FOLDER
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from memwrite.config import to_dict
from memwrite.evaluation.value_kept import predict, share_right
from memwrite.memory import Memory
from memwrite.utils.atomic import write_bytes
from memwrite.utils.progress import show_progress, track

TASK, READINGS = "article.json", "readings.json"
#: Words of the following text that are given, and tokens that are asked for.
BEGINNING, LONGEST = 6, 32


@dataclass(frozen=True)
class StateReading:
    """What one state file holds for the model.

    Attributes:
        bits: to encode the text behind the article, its first token left out.
        recited: share of the article's tokens that are the model's first choice, given those before, from 0 to 1.
        continuation: of the first words of that text.
        answer: to the question.
    """

    bits: float
    recited: float
    continuation: str
    answer: str


@torch.no_grad()
def read_state(file: Path, article: str, following: str, question: str) -> StateReading:
    """Open one state file, and read from it alone; the texts serve to score what is read."""
    memory, state = Memory.load(file)
    tokenizer = memory.backbone.tokenizer
    ahead = predict(memory, state, [tokenizer.encode(following)])
    again = predict(memory, state, [tokenizer.encode(article)])
    start = "".join(re.findall(r"\s*\S+", following)[:BEGINNING])
    said = memory.ask(state, start, raw=True, max_new_tokens=LONGEST)
    answer = memory.ask(state, question, max_new_tokens=LONGEST)
    return StateReading(sum(ahead[0].bits), share_right(again), f"{start}{said}", answer)


def main(arguments: Sequence[str]) -> None:
    """Read the state files that FOLDER's task names, and put what they hold into FOLDER."""
    folder = Path(arguments[0])
    task = json.loads((folder / TASK).read_bytes())
    texts = [task[name] for name in ("article", "following", "question")]
    with show_progress():
        files = track([folder / name for name in task["files"]], "read", "state file")
        readings = [to_dict(read_state(file, *texts)) for file in files]
    write_bytes(folder / READINGS, json.dumps(readings, indent=1).encode())


if __name__ == "__main__":
    main(sys.argv[1:])
