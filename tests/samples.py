"""Small files of the formats that tasks are read from, and tasks made of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from memwrite.backbones.tokenizers import ByteTokenizer
from memwrite.config import part_config
from memwrite.plugins import registry

CODEC = ByteTokenizer()

BABI = """1 Mary moved to the bathroom.
2 John went to the hallway.
3 Where is Mary? \tbathroom\t1
4 Where is John? \thallway\t2
5 Mary got the milk there.
6 What is Mary carrying? \tapple,milk\t1 5
1 The office is north of the kitchen.
2 What is north of the kitchen?\toffice\t1
1 Lily is a frog.
2 Is Lily a frog?\tyes\t1
"""

SQUAD: dict[str, Any] = {
    "version": "v2.0",
    "data": [
        {
            "title": "Normans",
            "paragraphs": [
                {
                    "context": "The Normans lived in France. They came from Norway.",
                    "qas": [
                        {
                            "id": "1",
                            "question": "Where did they live? ",
                            "answers": [
                                {"text": "France", "answer_start": 21},
                                {"text": "in France", "answer_start": 18},
                                {"text": "France", "answer_start": 21},
                            ],
                            "is_impossible": False,
                        },
                        {
                            "id": "2",
                            "question": "Who was their king?",
                            "answers": [],
                            "plausible_answers": [{"text": "Norway", "answer_start": 44}],
                            "is_impossible": True,
                        },
                    ],
                },
                {
                    "context": "Rollo led.",
                    # As in v1.1, which knows no impossible questions.
                    "qas": [{"id": "3", "question": "Who led?", "answers": [{"text": "Rollo"}]}],
                },
            ],
        }
    ],
}

LOCOMO: list[dict[str, Any]] = [
    {
        "sample_id": "conv-1",
        "conversation": {
            "speaker_a": "Ann",
            "speaker_b": "Bob",
            "session_1_date_time": "1:56 pm on 8 May, 2023",
            "session_1": [
                {"speaker": "Ann", "dia_id": "D1:1", "text": "I ran."},
                {"speaker": "Bob", "dia_id": "D1:2", "text": "", "blip_caption": "a photo of a dog"},
            ],
            "session_2_date_time": "9:00 am on 1 June, 2023",
            "session_2": [{"speaker": "Bob", "dia_id": "D2:1", "text": "I moved."}],
            "session_3_date_time": "nobody spoke",
        },
        "qa": [
            {"question": "Who ran?", "answer": "Ann", "evidence": ["D1:1"], "category": 4},
            {"question": "When?", "answer": 2023, "evidence": ["D:1:1"], "category": 2},
            {"question": "Who?", "answer": "Bob; he says so", "evidence": ["D2:1"], "category": 3},
            {"question": "Both?", "answer": "ran, moved", "evidence": ["D1:1; D2:1"], "category": 1},
            {"question": "Who flew?", "adversarial_answer": "Ann", "evidence": "['D1:2']", "category": "5"},
            {"question": "Why?", "answer": "no reason", "evidence": [], "category": 4},
        ],
        "event_summary": {},
    }
]  # fmt: skip

LONGMEMEVAL: list[dict[str, Any]] = [
    {
        "question_id": "a1",
        "question_type": "single-session-user",
        "question": "How many bees?",
        "answer": 12,
        "question_date": "2023/06/01 (Thu) 10:00",
        "haystack_session_ids": ["s2", "answer_s1"],
        "haystack_dates": ["2023/05/21 (Sun) 08:00", "2023/05/20 (Sat) 02:21"],
        "haystack_sessions": [
            [{"role": "user", "content": "It rains."}],
            [
                {"role": "user", "content": "I keep 12 bees. ", "has_answer": True},
                {"role": "assistant", "content": "Nice."},
            ],
        ],
        "answer_session_ids": ["answer_s1"],
    },
    {
        "question_id": "a2_abs",
        "question_type": "multi-session",
        "question": "Which cat?",
        "answer": "You did not mention a cat.",
        "question_date": "2023/06/02 (Fri) 09:00",
        "haystack_session_ids": ["s2"],
        "haystack_dates": ["2023/05/21 (Sun) 08:00"],
        "haystack_sessions": [[{"role": "user", "content": "It rains."}]],
        "answer_session_ids": [],
    },
]

MEMORY_AGENT_BENCH: list[dict[str, Any]] = [
    {
        "context": "1. The king is Ann. 2. The king is Bob.",
        "questions": ["Who is the king?", "Who was not?"],
        "answers": [["Bob", "King Bob", "Bob"], "Ann"],
        "metadata": {"source": "factconsolidation_sh_6k", "qa_pair_ids": ["f0", "f1"]},
    },
    {
        "context": "It rains.\nlabel: 3",
        "questions": ["It snows."],
        "answers": [["3"]],
        "metadata": {"source": "icl_weather", "qa_pair_ids": ["i0"]},
    },
    {
        "context": "Ann left. Bob sat.",
        "questions": ["What happened then?"],
        "answers": [["Bob sat."], ["He sat."]],
        "metadata": {"source": "eventqa_full"},
    },
    {
        "context": "A film.",
        "questions": ["Which film?"],
        "answers": [["17"]],
        "metadata": {"source": "recsys_redial_full"},
    },
]

QA = """{"context": "Ann ran. Bob sat.", "question": "Who ran?", "answers": ["Ann", "she", "Ann"]}

{"context": "It is late.", "question": "How late?", "answers": 11, "group": "times"}
{"context": "Ann ran. Bob sat.", "question": "Who sat?", "answers": "Bob"}
"""

PROSE = "\n\n".join(f"The sun is up. It is day {number} of many." for number in range(30))

SAMPLES: dict[str, str] = {
    "babi": BABI,
    "squad": json.dumps(SQUAD),
    "locomo": json.dumps(LOCOMO),
    "longmemeval": json.dumps(LONGMEMEVAL),
    "memory-agent-bench": json.dumps(MEMORY_AGENT_BENCH[:3]),
    "qa": QA,
}


def config(name: str, folder: Path, text: str | None = None, **params: Any) -> Any:
    """The parameters of a task whose one file holds a text, by default that of `SAMPLES`."""
    (folder / "file").write_text(SAMPLES[name] if text is None else text, encoding="utf-8")
    data = {"files": ["file"], "folder": str(folder), **params}
    return part_config(registry().task(name).config, data, "task.params")


def made(name: str, folder: Path, text: str | None = None, **params: Any) -> Any:
    return registry().task(name).build(config(name, folder, text, **params), CODEC)
