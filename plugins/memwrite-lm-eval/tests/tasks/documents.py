"""The documents of the tasks in this folder, and how answers to them are scored."""

import json
from pathlib import Path
from typing import Any

import datasets


def load(name: str, **_: Any) -> dict[str, datasets.Dataset]:
    text = (Path(__file__).parent / f"{name}.json").read_text()
    return {"test": datasets.Dataset.from_list(json.loads(text))}


def contains(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    right = doc.get("value") or doc["target"]
    return {"contains": float(right.lower() in results[0].lower())}
