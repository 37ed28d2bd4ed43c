import os
import ssl
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from gpu_agent.runtime.tls.contexts import OwnCertificate, TlsFileError, client_context, server_context
from tests.authority import Authority, self_signed
from tests.handshakes import shake_hands


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "authority")


def test_a_certificate_of_the_named_authority_is_taken_over_tls_1_3(authority: Authority) -> None:
    client = client_context(ca_file=authority.file, own=None)
    assert shake_hands(client, server_context(authority.issue())) == "TLSv1.3"


def test_nothing_older_than_tls_1_2_is_spoken_by_either_side(authority: Authority) -> None:
    server = server_context(authority.issue())
    client = client_context(ca_file=authority.file, own=None)
    for context in (server, client):
        assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    old = authority.trusting()
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    old.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.raises(ssl.SSLError):
        shake_hands(old, server)


@pytest.mark.parametrize(
    ("names", "days", "code"),
    [
        (("elsewhere.example",), {}, 62),
        (("localhost",), {"from_days": -9, "to_days": -1}, 10),
        (("localhost",), {"from_days": 1, "to_days": 9}, 9),
    ],
    ids=["wrong name", "expired", "not yet valid"],
)
def test_a_certificate_that_is_wrong_is_refused(
    authority: Authority, names: tuple[str, ...], days: dict[str, float], code: int
) -> None:
    client = client_context(ca_file=authority.file, own=None)
    with pytest.raises(ssl.SSLCertVerificationError) as refused:
        shake_hands(client, server_context(authority.issue(*names, **days)))
    assert refused.value.verify_code == code


def test_a_certificate_that_signed_itself_is_trusted_only_where_it_is_named(
    authority: Authority, tmp_path: Path
) -> None:
    own = self_signed(tmp_path)
    for ca_file in (authority.file, None):
        with pytest.raises(ssl.SSLCertVerificationError):
            shake_hands(client_context(ca_file=ca_file, own=None), server_context(own))
    assert shake_hands(client_context(ca_file=own.cert_file, own=None), server_context(own)) == "TLSv1.3"


def test_the_systems_authorities_are_trusted_where_none_is_named(
    authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
    assert shake_hands(client_context(ca_file=None, own=None), server_context(authority.issue()))


def test_a_client_proves_itself_where_it_is_asked_to(authority: Authority, tmp_path: Path) -> None:
    server = server_context(authority.issue(), client_ca_file=authority.file)
    assert shake_hands(client_context(ca_file=authority.file, own=authority.issue("node")), server)
    with pytest.raises(ssl.SSLError, match="PEER_DID_NOT_RETURN_A_CERTIFICATE"):
        shake_hands(client_context(ca_file=authority.file, own=None), server)
    stranger = Authority(tmp_path / "another").issue("node")
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(client_context(ca_file=authority.file, own=stranger), server)


def test_where_a_client_may_prove_itself_none_is_as_good_and_a_wrong_one_is_not(
    authority: Authority, tmp_path: Path
) -> None:
    server = server_context(authority.issue(), client_ca_file=authority.file, client_required=False)
    assert shake_hands(client_context(ca_file=authority.file, own=None), server)
    stranger = Authority(tmp_path / "another").issue("node")
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(client_context(ca_file=authority.file, own=stranger), server)


def test_no_variable_makes_a_context_write_its_keys_down(
    authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "keys"))
    assert ssl.create_default_context().keylog_filename is not None
    shake_hands(client_context(ca_file=authority.file, own=None), server_context(authority.issue()))
    assert "SECRET" not in (tmp_path / "keys").read_text()  # the library's own context has made the file


def test_a_key_may_stand_in_the_certificates_file(authority: Authority, tmp_path: Path) -> None:
    made = authority.issue()
    assert made.key_file is not None
    both = tmp_path / "both.pem"
    both.touch(mode=0o600)
    both.write_bytes(made.cert_file.read_bytes() + made.key_file.read_bytes())
    assert shake_hands(authority.trusting(), server_context(OwnCertificate(both)))


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
def test_a_key_that_everybody_may_read_is_refused_with_the_fix(authority: Authority, tmp_path: Path) -> None:
    made = authority.issue()
    assert made.key_file is not None
    for mode in (0o644, 0o604, 0o602):
        made.key_file.chmod(mode)
        with pytest.raises(TlsFileError, match=rf"\(mode {mode:04o}\): run `chmod 600 {made.key_file}`"):
            server_context(made)
    for mode in (0o600, 0o400, 0o640):
        made.key_file.chmod(mode)
        server_context(made)
    made.key_file.chmod(0o644)
    link = tmp_path / "link.key"
    link.symlink_to(made.key_file)
    server_context(OwnCertificate(made.cert_file, link))


def test_a_key_behind_a_passphrase_is_refused_without_a_question(
    authority: Authority, tmp_path: Path
) -> None:
    made, locked = authority.issue(), tmp_path / "locked.key"
    subprocess.run(
        ["openssl", "pkey", "-in", str(made.key_file), "-aes256", "-passout", "pass:x", "-out", str(locked)],
        check=True,
    )
    locked.chmod(0o600)
    with pytest.raises(TlsFileError, match=rf"key in {locked} is encrypted: .* without a passphrase"):
        server_context(OwnCertificate(made.cert_file, locked))


def test_a_key_of_another_certificate_is_refused(authority: Authority) -> None:
    one, other = authority.issue(), authority.issue()
    with pytest.raises(TlsFileError, match=rf"key in {other.key_file} is not that of the certificate"):
        server_context(OwnCertificate(one.cert_file, other.key_file))


@pytest.mark.parametrize("content", [b"", b"no PEM"])
def test_files_that_hold_nothing_are_named(authority: Authority, tmp_path: Path, content: bytes) -> None:
    nothing = tmp_path / "nothing.pem"
    nothing.touch(mode=0o600)
    nothing.write_bytes(content)
    with pytest.raises(TlsFileError, match=rf"{nothing} .*that OpenSSL can use"):
        server_context(OwnCertificate(nothing, authority.issue().key_file))
    with pytest.raises(TlsFileError, match=rf"{nothing} holds no certificate"):
        client_context(ca_file=nothing, own=None)


def test_files_that_are_not_there_are_named(authority: Authority, tmp_path: Path) -> None:
    absent, made = tmp_path / "absent.pem", authority.issue()
    attempts: tuple[Callable[[], ssl.SSLContext], ...] = (
        lambda: server_context(OwnCertificate(absent)),
        lambda: server_context(OwnCertificate(made.cert_file, absent)),
        lambda: server_context(made, client_ca_file=absent),
        lambda: client_context(ca_file=absent, own=None),
    )
    for attempt in attempts:
        with pytest.raises(TlsFileError, match=rf"{absent} cannot be read \(No such file"):
            attempt()


def test_a_pipe_in_place_of_any_file_blocks_nothing(authority: Authority, tmp_path: Path) -> None:
    own, pipe = authority.issue(), tmp_path / "pipe"
    os.mkfifo(pipe)
    for pair in (OwnCertificate(own.cert_file, pipe), OwnCertificate(pipe, own.key_file)):
        with pytest.raises(TlsFileError, match="pipe is no file: name one"):
            server_context(pair)
    with pytest.raises(TlsFileError, match="pipe is no file: name one"):
        client_context(ca_file=pipe, own=None)
