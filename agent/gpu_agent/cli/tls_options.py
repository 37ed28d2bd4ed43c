"""The options by which the agent's commands are told how its registry is known, as its settings are named.

Adds options only: what they mean together is checked with the other settings.
"""

import argparse

NAMES = ("tls_ca_file", "tls_pin", "tls_cert_file", "tls_key_file", "insecure_plaintext")


def add_tls_options(parser: argparse.ArgumentParser) -> None:
    """Add them; what is not given is left to the other layers."""
    how = parser.add_argument_group("encrypted, for a registry at wss://")
    for option, value, meaning in (
        ("--tls-ca-file", "FILE", "who vouches for the registry (default: the system's authorities)"),
        ("--tls-pin", "PIN", "the pin of the registry's key, sha256//…; several between semicolons"),
        ("--tls-cert-file", "FILE", "this node's own certificate, for a registry that asks for one"),
        ("--tls-key-file", "FILE", "its key (default: in the certificate's file); nobody else may read it"),
    ):
        how.add_argument(option, metavar=value, help=meaning)
    how.add_argument(
        "--insecure-plaintext",
        action="store_true",
        default=None,
        help="DANGER: send tokens over ws:// to another machine: who listens on the way can take them",
    )
