"""The complete example files of both halves, out of `docs/settings.md`: `make reference` writes them.

Every key is there with its type, its unit, its default and its variable. What begins with `#` and no
blank is off; taking the `#` away sets it. It knows an example for each key that has no default.
"""

import re
import sys
import textwrap
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from gpu_agent.cli.configuration.setting_tables import DocumentedHalf, DocumentedKey, documented

HALVES: Mapping[str, str] = {"agent": "gpu-agent run", "registry": "gpu-agent registry serve"}
SET: Mapping[str, str] = {"registry_url": '"wss://registry.example:8080/ws/node"'}
"""What the examples set: without it nothing runs."""
EXAMPLES: Mapping[str, str] = {
    "join_token_file": '"/etc/gpu-agent/join-token"',
    "join_token": '"gpuj_0123abcd_…"',
    "proxy": '"http://proxy.example:3128"',
    "agent.state_dir": '"/var/lib/gpu-agent"',
    "registry.state_dir": '"/var/lib/gpu-registry"',
    "tls_ca_file": '"/etc/gpu-agent/ca.pem"',
    "agent.tls_cert_file": '"/etc/gpu-agent/node.pem"',
    "agent.tls_key_file": '"/etc/gpu-agent/node.key"',
    "registry.tls_cert_file": '"/etc/gpu-agent/registry.pem"',
    "registry.tls_key_file": '"/etc/gpu-agent/registry.key"',
    "tls_client_ca_file": '"/etc/gpu-agent/client-ca.pem"',
    "simulate": '"8xH100-80GB"',
    "max_concurrent_jobs": "4",
    "endpoint": '"http://10.0.0.2:9000"',
    "socket": '"/run/gpu-agent/agent.sock"',
    "hub_roots": '["/srv/hub"]',
    "ollama_roots": '["/srv/ollama/models"]',
    "collectors": '["amd"]',
    "time_zone": '"Europe/Berlin"',
    "max_temperature_c": "80",
    "min_free_memory_mb": "8000",
}
BODIES: Mapping[str, str] = {
    "labels": '[labels]\nzone = "a"',
    "features": "[features]\nspeech_rate_control = true",
    "declared_models": '[[declared_models]]\nmodel_id = "my/model"\nversion = "3"\nstatus = "ready"',
}
"""Tables whose keys are the owner's own."""
_COLUMNS = 100
_OF_KINDS: Mapping[str, str] = {"path": '"/etc/gpu-agent/file"', "number": "1", "group": '"gpu-users"'}


def written(document: str, component: str) -> str:
    """Write one half's example."""
    page = documented(document, component)
    within = {table.name for table in page.tables}
    plain = [key for key in page.keys if key.key not in within and key.key not in BODIES]
    last = [key for key in page.keys if key.key in BODIES]
    parts = [
        _head(component),
        *(_plain(key, component) for key in plain),
        *_within(page, component),
        *map(_own_table, last),
    ]
    return "\n\n".join(parts) + "\n"


def switched_on(example: str) -> str:
    """The same with every key set."""
    return re.sub(r"^#(?=[a-z\[])", "", example, flags=re.MULTILINE)


def _head(component: str) -> str:
    return _comment(
        f"/etc/gpu-agent/{component}.toml: what `{HALVES[component]}` is told. Every key is here; what begins with # "
        "and no blank is off, and shows the default where there is one. Times are seconds. A variable stands "
        f"over this file, an option over both. `gpu-agent config check {component}` tells every fault, "
        f"`gpu-agent config show {component}` what holds and where it comes from."
    )


def _plain(key: DocumentedKey, component: str) -> str:
    value = SET.get(key.key)
    line = f"#{key.key} = {_value(key, component)}" if value is None else f"{key.key} = {value}"
    return f"{_about(key)}\n{line}"


def _within(page: DocumentedHalf, component: str) -> Iterator[str]:
    for table in page.tables:
        yield f"{_comment(table.about)}\n#[{table.name}]"
        yield from (_plain(key, component) for key in table.keys)


def _own_table(key: DocumentedKey) -> str:
    return "\n".join([_about(key), *(f"#{line}" for line in BODIES[key.key].splitlines())])


def _about(key: DocumentedKey) -> str:
    default = f"default {key.default}" if key.default is not None else "no default"
    facts = f"{key.kind}; {'required' if key.required else default}; {key.variable}"
    return f"{_comment(_sentence(key.meaning.removesuffix(', see below')))}\n{_comment(facts)}"


def _value(key: DocumentedKey, component: str) -> str:
    if key.default is not None:
        return key.default
    for name in (f"{component}.{key.key}", key.key):
        if name in EXAMPLES:
            return EXAMPLES[name]
    return _OF_KINDS[key.kind.split(",")[0]]


def _sentence(words: str) -> str:
    return f"{words[0].upper()}{words[1:]}." if words[0].isalpha() else f"{words}."


def _comment(words: str) -> str:
    bare = words.replace("`", "")
    return textwrap.fill(bare, _COLUMNS, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)


def main(arguments: Iterable[str]) -> int:
    """Write the examples of the page that is named first into the folder that is named next."""
    page, folder = map(Path, arguments)
    document = page.read_text(encoding="utf-8")
    for component in HALVES:
        (folder / f"{component}.toml.example").write_text(written(document, component), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
