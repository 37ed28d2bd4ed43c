"""A certificate authority of a test's own, and what it issues, as files and as contexts."""

import datetime as dt
import ssl
import subprocess
import time
from pathlib import Path

import trustme

from gpu_agent.runtime.tls.contexts import OwnCertificate


class Authority:
    """Vouches for who is given a certificate here."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._made = folder, 0
        self._ca = trustme.CA()
        self.file = folder / "ca.pem"
        self._ca.cert_pem.write_to_path(str(self.file))

    def issue(self, *names: str, from_days: float = -1, to_days: float = 90) -> OwnCertificate:
        """A certificate for these names that holds from so many days from now to so many."""
        now = dt.datetime.fromtimestamp(time.time(), dt.UTC)
        leaf = self._ca.issue_cert(
            *(names or ("localhost", "127.0.0.1")),
            not_before=now + dt.timedelta(days=from_days),
            not_after=now + dt.timedelta(days=to_days),
        )
        self._made += 1
        made = OwnCertificate(
            self._folder / f"cert-{self._made}.pem", self._folder / f"cert-{self._made}.key"
        )
        leaf.cert_chain_pems[0].write_to_path(str(made.cert_file))
        assert made.key_file is not None
        made.key_file.touch(mode=0o600)
        leaf.private_key_pem.write_to_path(str(made.key_file))
        return made

    def trusting(self, own: OwnCertificate | None = None) -> ssl.SSLContext:
        """A client that trusts this authority, and proves itself where it is given what with."""
        context = ssl.create_default_context(cafile=self.file)
        if own is not None:
            context.load_cert_chain(own.cert_file, own.key_file)
        return context


def self_signed(folder: Path, name: str = "localhost") -> OwnCertificate:
    """A self-signed certificate, as `openssl` makes one."""
    folder.mkdir(parents=True, exist_ok=True)
    cert, key = folder / "self.pem", folder / "self.key"
    subprocess.run(
        [
            *(
                "openssl",
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:prime256v1",
                "-nodes",
            ),
            *("-keyout", str(key), "-out", str(cert), "-days", "30", "-subj", f"/CN={name}"),
            *("-addext", f"subjectAltName=DNS:{name}"),
        ],
        check=True,
        capture_output=True,
    )
    key.chmod(0o600)
    return OwnCertificate(cert, key)
