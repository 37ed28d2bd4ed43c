"""Records what the probe reports of a true machine, without what identifies the machine.

UUIDs become others that are the same wherever they were; names of the machine, its boot, its paths and its
models go. The rest is what a driver of that kind reports.
"""

import json
import re
from hashlib import sha256
from pathlib import Path
from typing import Any

DATA = Path(__file__).with_name("data")
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.IGNORECASE)


def scrubbed(document: dict[str, Any]) -> dict[str, Any]:
    """Return the document without serials; the original is left alone."""
    text = json.dumps({**document, "models": []})
    recorded: dict[str, Any] = json.loads(_UUID.sub(_other, text))
    host = recorded["host"]
    host["hostname"] = host["boot_id"] = None
    host["cache_disks"] = []
    host["unknowns"] = {**host["unknowns"], "hostname": "not recorded", "boot_id": "not recorded"}
    for gpu in recorded["gpus"]:
        for process in gpu["processes"] or ():
            process["pid"] = 1
    return recorded


def record_document(document: dict[str, Any], name: str) -> Path:
    """Write the document without serials as data of the tests; returns the file."""
    DATA.mkdir(exist_ok=True)
    recorded = DATA / f"{name}.json"
    recorded.write_text(json.dumps(scrubbed(document), indent=2) + "\n", encoding="utf-8")
    return recorded


def _other(found: re.Match[str]) -> str:
    digits = sha256(found[0].lower().encode()).hexdigest()
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-a{digits[17:20]}-{digits[20:32]}"
