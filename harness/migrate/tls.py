"""TLS for the migration stream: an authority, a server's and a client's certificate, made for one lab and gone with it."""

from __future__ import annotations

import datetime
import ipaddress
import os
from typing import ClassVar
from weakref import WeakKeyDictionary

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from harness.errors import FeatureLackError
from harness.host.warden import SCRATCH, Warden
from harness.vm.machine import Machine
from harness.vm.qmp import CommandRefusedError

__all__ = ["MigrationKeys", "add_credentials"]

_CREDENTIALS = "tls0"
_AUTHORISATION = "authz0"


class MigrationKeys:
    """PEM files of both sides. Valid from a day ago for thirty days: a lab lives for minutes."""

    HOSTNAME: ClassVar[str] = "switchover.test"
    """The name in the destination's certificate."""
    CLIENT: ClassVar[str] = "switchover-source"
    """The name in the source's certificate."""

    def __init__(self) -> None:
        now = datetime.datetime.now(datetime.UTC)
        self._from, self._until = now - datetime.timedelta(days=1), now + datetime.timedelta(days=30)
        self._authority_key = ec.generate_private_key(ec.SECP256R1())
        self._authority_name = _name("switchover lab")
        self.authority = self._sign(
            self._authority_key.public_key(), self._authority_name,
            x509.BasicConstraints(ca=True, path_length=0), _usage(signs_certificates=True),
        )
        self.server = self._issue(self.HOSTNAME, ExtendedKeyUsageOID.SERVER_AUTH)
        self.client = self._issue(self.CLIENT, ExtendedKeyUsageOID.CLIENT_AUTH)

    def _sign(self, key: ec.EllipticCurvePublicKey, subject: x509.Name, *extensions: x509.ExtensionType) -> bytes:
        builder = (
            x509.CertificateBuilder().subject_name(subject).issuer_name(self._authority_name).public_key(key)
            .serial_number(x509.random_serial_number()).not_valid_before(self._from).not_valid_after(self._until)
        )  # fmt: skip
        for extension in extensions:
            critical = isinstance(extension, x509.BasicConstraints | x509.KeyUsage)
            builder = builder.add_extension(extension, critical=critical)
        return builder.sign(self._authority_key, hashes.SHA256()).public_bytes(Encoding.PEM)

    def _issue(self, name: str, purpose: x509.ObjectIdentifier) -> tuple[bytes, bytes]:
        """Certificate and private key of one end."""
        key = ec.generate_private_key(ec.SECP256R1())
        names: list[x509.GeneralName] = [x509.DNSName(name)]
        names += [x509.IPAddress(ipaddress.ip_address(loopback)) for loopback in ("127.0.0.1", "::1")]
        certificate = self._sign(
            key.public_key(), _name(name), x509.BasicConstraints(ca=False, path_length=None), _usage(signs_certificates=False),
            x509.ExtendedKeyUsage([purpose]), x509.SubjectAlternativeName(names),
        )
        return certificate, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    def files(self, *, server: bool) -> dict[str, bytes]:
        """The folder that QEMU's tls-creds-x509 wants, by file name."""
        certificate, key = self.server if server else self.client
        end = "server" if server else "client"
        return {"ca-cert.pem": self.authority, f"{end}-cert.pem": certificate, f"{end}-key.pem": key}


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=not signs_certificates, key_cert_sign=signs_certificates, crl_sign=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip


_keys: WeakKeyDictionary[Warden, MigrationKeys] = WeakKeyDictionary()
"""Of each lab that has needed some; a lab is its warden."""


async def add_credentials(machine: Machine, warden: Warden, *, server: bool, authorise: bool) -> None:
    """Write one side's keys into the lab's private folder and make QEMU's objects of them, in place of earlier ones.

    With `authorise` the destination has a list of whom it accepts: the lab's source, and nobody else.
    """
    if warden not in _keys:
        _keys[warden] = MigrationKeys()
    keys = _keys[warden]
    end = "server" if server else "client"
    folder = SCRATCH / f"tls-{machine.spec.name}-{end}"
    await warden.request("mkdir", path=str(folder))
    for name, content in keys.files(server=server).items():
        with await warden.open(folder / name, flags=os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as file:
            file.write(content)
    for name in (_CREDENTIALS, _AUTHORISATION):
        if name in await _objects(machine):
            await machine.qmp.command("migrate-set-parameters", tls_creds="", tls_authz="")
            await machine.qmp.command("object-del", id=name)
    try:
        await machine.qmp.command("object-add", qom_type="tls-creds-x509", id=_CREDENTIALS, dir=str(folder), endpoint=end, verify_peer=True)
    except CommandRefusedError as refusal:
        if "GNUTLS" in refusal.reason:  # the type is there all the same, so that it can't be known before
            raise FeatureLackError(f"the {machine.role}'s QEMU was built without TLS: {refusal.reason}", hint="configure it with --enable-gnutls") from refusal
        raise
    if server and authorise:
        rules = [{"match": f"CN={MigrationKeys.CLIENT}", "policy": "allow", "format": "exact"}]
        await machine.qmp.command("object-add", qom_type="authz-list", id=_AUTHORISATION, policy="deny", rules=rules)


async def _objects(machine: Machine) -> set[str]:
    listed = await machine.qmp.command("qom-list", path="/objects")
    return {entry["name"] for entry in listed}
