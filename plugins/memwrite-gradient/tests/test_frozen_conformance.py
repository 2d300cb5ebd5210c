"""The writers that descend on a frozen model keep the laws."""

from __future__ import annotations

from memwrite_gradient import CARTRIDGE, SOFT_PROMPT
from memwrite_specs import conformance

STUDY = {"texts": 2, "per_step": 2, "quotes": 1, "length": 4, "held_out": 1}
SMALL = {"slots": 3, "steps": 2, "study": STUDY}


@conformance(CARTRIDGE, reader="key-value", params=SMALL)
def test_the_cartridge_writer(law) -> None:
    law()


@conformance(SOFT_PROMPT, reader="prefix", params=SMALL)
def test_the_soft_prompt_writer(law) -> None:
    law()
