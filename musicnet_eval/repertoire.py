"""Choose the pieces of the embedded data sets anew: `python -m musicnet_eval.repertoire` writes `checksums/*.json`.

Layer 7, after all embedded sets. It reads the installed corpus (a minute); a test asserts that it finds what is shipped.
"""

from __future__ import annotations

import json
from pathlib import Path

from musicnet_eval import oneill, tradition
from musicnet_eval.pieces import Shipped


def repertoire() -> dict[str, Shipped]:
    """Choose the pieces of every embedded data set; give name → class → piece → row."""
    return {"tradition": tradition.choice(), **oneill.choices()}


if __name__ == "__main__":
    for name, table in repertoire().items():
        target = Path(__file__).with_name("checksums") / f"{name}.json"
        target.parent.mkdir(exist_ok=True)
        target.write_text(json.dumps(table, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
