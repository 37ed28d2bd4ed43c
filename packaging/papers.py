"""The papers that a distribution asks of a package: whose the code is under which licence, and what changed.

It takes licences from the bundled packages' own descriptions, and refuses one that states none.
"""

import gzip
import json
import re
import sysconfig
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from email.message import Message
from email.parser import HeaderParser
from pathlib import Path

MAINTAINER = "gpu-agent maintainers <maintainers@gpu-agent.example.org>"

_APACHE = re.compile(r"(?m)^\s*Apache License\s*\n\s*Version 2\.0, January 2004")
_APACHE_ON_DEBIAN = "The text is in /usr/share/common-licenses/Apache-2.0 on Debian."
_PROGRAM = """\
gpu-agent: the agent on a GPU machine, and the registry beside the scheduler.

Copyright: the gpu-agent authors
License: Apache-2.0

Licensed under the Apache License, Version 2.0; you may not use it except in compliance with the License.
{apache}

It brings the packages below in a folder of its own, each under its own licence. The pages in HTML bring the
style and the search of Zensical; html/assets/javascripts/LICENSE lists what these are made of.
"""


def copyright_text(dist_infos: Iterable[Path]) -> str:
    """Write whose the program is and whose each bundled package is, with the texts of their licences."""
    described = {path.name: path for path in dist_infos if not path.name.startswith("gpu_agent-")}
    parts = [_PROGRAM.format(apache=_APACHE_ON_DEBIAN)]
    parts += [_section(path) for _, path in sorted(described.items())]
    return ("\n" + "-" * 72 + "\n\n").join(parts)


def site_makers() -> Iterator[Path]:
    """Find the description of what builds the pages in HTML, which bring its style and its search along."""
    return Path(sysconfig.get_path("purelib")).glob("zensical-*.dist-info")


def changelog(version: str, *, at_seconds: int) -> str:
    """Write the distributions' changelog as nfpm reads it; what changed in the program stands beside it."""
    date = datetime.fromtimestamp(at_seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    entry = {
        "semver": version,
        "date": date,
        "packager": MAINTAINER,
        "deb": {"urgency": "medium", "distributions": ["unstable"]},
        "changes": [{"note": f"Release {version}. The program's own changelog says what is new."}],
    }
    return json.dumps([entry])  # JSON is YAML too


def gzipped(text: str) -> bytes:
    """Compress as far as it goes, without a name or a time in it."""
    return gzip.compress(text.encode(), compresslevel=9, mtime=0)


def _section(dist_info: Path) -> str:
    about = HeaderParser().parsestr((dist_info / "METADATA").read_text(encoding="utf-8"))
    texts = list(_texts(dist_info))
    if not texts:
        raise LookupError(f"{dist_info.name} states no licence: the packages may not hold it")
    head = f"{about['Name']} {about['Version']}\nLicense: {_license(about)}\n"
    return "\n".join([head, *texts])


def _license(about: Message) -> str:
    said = about["License-Expression"] or about["License"]
    classified = [
        line.rpartition(" :: ")[2] for line in about.get_all("Classifier", []) if "License ::" in line
    ]
    return said or ", ".join(classified)


def _texts(dist_info: Path) -> Iterator[str]:
    """Find the licence's texts: files beside the description, else the head of the package's one module."""
    files = sorted(path for path in dist_info.rglob("*") if _tells_of_a_licence(path))
    for path in files:
        yield _without_apache(path.read_text(encoding="utf-8"))
    if not files and dist_info.name.startswith("nvidia_ml_py-"):
        yield _head((dist_info.parent / "pynvml.py").read_text(encoding="utf-8"))


def _without_apache(text: str) -> str:
    """Name the place of Apache's licence instead of its text; what stands before it stays."""
    found = _APACHE.search(text)
    if found is None:
        return text
    before = text[: found.start()].strip()
    return f"{before}\n{_APACHE_ON_DEBIAN}\n" if before else f"{_APACHE_ON_DEBIAN}\n"


def _tells_of_a_licence(path: Path) -> bool:
    return path.is_file() and path.name.upper().startswith(("LICENSE", "LICENCE", "COPYING", "NOTICE"))


def _head(source: str) -> str:
    lines = []
    for line in source.splitlines():
        if not line.startswith("#"):
            break
        lines.append(line.lstrip("#").strip())
    return "\n".join(lines) + "\n"
