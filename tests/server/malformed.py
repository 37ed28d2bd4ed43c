"""Frames that are no valid messages, each with the path of its error."""

import json
from typing import Any

from tests.server.harness import heartbeat, registration


def without(message: dict[str, Any], *path: str | int) -> str:
    copy = json.loads(json.dumps(message))
    place = copy
    for step in path[:-1]:
        place = place[step]
    del place[path[-1]]
    return json.dumps(copy)


def with_(message: dict[str, Any], value: object, *path: str | int) -> str:
    copy = json.loads(json.dumps(message))
    place = copy
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    return json.dumps(copy)


REGISTER = registration()


HEARTBEAT = heartbeat("node-1")


GPU = ("hardware", "gpus", 0)


MALFORMED: list[tuple[str, str | bytes, str]] = [
    ("empty", "", "$"),
    ("blank", "  \n ", "$"),
    ("not JSON", "hello", "$"),
    ("half an object", '{"type":"node_register"', "$"),
    ("two objects", "{}{}", "$"),
    ("single quotes", "{'type':'node_heartbeat'}", "$"),
    ("a comment", '{"type":"node_heartbeat"/*x*/}', "$"),
    ("a trailing comma", '{"type":"node_heartbeat",}', "$"),
    ("null", "null", "$"),
    ("a number", "17", "$"),
    ("a string", '"node_register"', "$"),
    ("a list", "[]", "$"),
    ("a list of messages", json.dumps([REGISTER]), "$"),
    ("no type", "{}", "$.type"),
    ("an unknown type", '{"type":"job_assign"}', "$.type"),
    ("a type that is no string", '{"type":1}', "$.type"),
    ("a type in capitals", '{"type":"NODE_REGISTER"}', "$.type"),
    ("a message of the other direction", '{"type":"node_register_ack","node_id":"a"}', "$.type"),
    ("no version", without(REGISTER, "version"), "$.version"),
    ("no hardware", without(REGISTER, "hardware"), "$.hardware"),
    ("hardware is a list", with_(REGISTER, [], "hardware"), "$.hardware"),
    ("no cpu_cores", without(REGISTER, "hardware", "cpu_cores"), "$.hardware.cpu_cores"),
    ("cpu_cores as text", with_(REGISTER, "8", "hardware", "cpu_cores"), "$.hardware.cpu_cores"),
    ("cpu_cores below zero", with_(REGISTER, -8, "hardware", "cpu_cores"), "$.hardware.cpu_cores"),
    ("cpu_cores beyond any machine", with_(REGISTER, 10**400, "hardware", "cpu_cores"), "$"),
    (
        "memory as a flag",
        with_(REGISTER, json.loads("true"), "hardware", "memory_gb"),
        "$.hardware.memory_gb",
    ),
    ("gpus is an object", with_(REGISTER, {}, "hardware", "gpus"), "$.hardware.gpus"),
    ("a GPU is a string", with_(REGISTER, "L4", *GPU), "$.hardware.gpus[0]"),
    ("a GPU without a name", without(REGISTER, *GPU, "name"), "$.hardware.gpus[0].name"),
    ("GPU memory as text", with_(REGISTER, "24GB", *GPU, "memory_gb"), "$.hardware.gpus[0].memory_gb"),
    ("a node id with a slash", with_(REGISTER, "a/b", "node_id"), "$.node_id"),
    ("a node id that is too long", with_(REGISTER, "a" * 129, "node_id"), "$.node_id"),
    ("a node id that is a number", with_(REGISTER, 7, "node_id"), "$.node_id"),
    (
        "a model without an id",
        without(REGISTER, "installed_models", 0, "model_id"),
        "$.installed_models[0].model_id",
    ),
    ("models as a string", with_(REGISTER, "m", "installed_models"), "$.installed_models"),
    ("features as a list", with_(REGISTER, ["asr"], "features_supported"), "$.features_supported"),
    ("a label that is a number", with_(REGISTER, {"zone": 1}, "labels"), "$.labels.zone"),
    ("NaN", with_(REGISTER, float("nan"), "hardware", "cpu_cores"), "$"),
    ("Infinity in a field that is unknown", with_(REGISTER, float("inf"), "later"), "$"),
    ("a heartbeat without usage", without(HEARTBEAT, "resource_usage"), "$.resource_usage"),
    ("a heartbeat without an id", without(HEARTBEAT, "node_id"), "$.node_id"),
    ("a heartbeat with an empty id", with_(HEARTBEAT, "", "node_id"), "$.node_id"),
    (
        "a heartbeat with cpu as text",
        with_(HEARTBEAT, "10", "resource_usage", "cpu_percent"),
        "$.resource_usage.cpu_percent",
    ),
    ("a heartbeat whose time is text", with_(HEARTBEAT, "now", "timestamp"), "$.timestamp"),
    ("a heartbeat with -Infinity", with_(HEARTBEAT, float("-inf"), "resource_usage", "cpu_percent"), "$"),
    ("figures without a uuid", with_(HEARTBEAT, [{}], "gpus"), "$.gpus[0].uuid"),
    ("a goodbye without an id", '{"type":"node_unregister"}', "$.node_id"),
    ("a fault without a code", '{"type":"node_error"}', "$.code"),
    ("deep nesting", '{"type":"node_heartbeat","x":' + "[" * 50_000 + "]" * 50_000 + "}", "$"),
    ("deep nesting of objects", '{"a":' * 5_000 + "1" + "}" * 5_000, "$"),
    ("a lone surrogate", '{"type":"node_error","code":"\\ud800"}', "$"),
    ("a lone surrogate as a key", '{"type":"node_error","\\udfff":1}', "$"),
    ("a byte order mark", b"\xef\xbb\xbf{}", "$"),
    ("a control character", '{"type":"node_error","code":"\x01"}', "$"),
]
