"""Who signed: the envelope of a signature against a public key, or against a chain of certificates."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...errors import BadSignature, FormatError, MissingExtra, UsageError
from .oms import Bundle, _bytes

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

MAX_CHAIN = 8
CURVES = ("secp256r1", "secp384r1", "secp521r1")


def need_cryptography() -> None:
    """Raise :class:`MissingExtra` with one line to install when there is no ``cryptography``."""
    try:
        import cryptography  # noqa: F401
    except ImportError as error:
        raise MissingExtra("checking a signature needs cryptography", hint="pip install 'weightsmith[sign]'") from error


def check_key(bundle: Bundle, key: Path) -> str:
    """Check the envelope against a public key (PEM, P-256, P-384 or P-521); who signed, for people.

    Raises:
        BadSignature: another key, or the signature doesn't verify.
        UsageError: not such a key.
        MissingExtra: ``cryptography`` is not installed.
    """
    need_cryptography()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization

    try:
        public: Any = serialization.load_pem_public_key(key.read_bytes())
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise UsageError("not a public key in PEM form", where=key) from error
    _check_curve(public, key)
    pem = public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    fingerprint = hashlib.sha256(pem).hexdigest()
    if bundle.method != "key":
        raise UsageError(f"it is signed with a {bundle.method}, not with a key", where=bundle.path,
                         hint="give --certificate or --identity instead of --key")  # fmt: skip
    named = bundle.material["publicKey"]
    hint = named.get("hint") if isinstance(named, dict) else None
    if hint and hint != fingerprint:
        raise BadSignature("it was made with another key", where=bundle.path, hint=f"it names the key {str(hint)[:80]!r}")
    _verify(bundle, public)
    return f"key {fingerprint[:16]}…"


def _check_curve(public: Any, where: object) -> None:
    from cryptography.hazmat.primitives.asymmetric import ec

    if not isinstance(public, ec.EllipticCurvePublicKey) or public.curve.name not in CURVES:
        raise UsageError("not a key on P-256, P-384 or P-521, which is what models are signed with", where=where)


def _verify(bundle: Bundle, public: ec.EllipticCurvePublicKey) -> None:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    digest = {"secp256r1": hashes.SHA256(), "secp384r1": hashes.SHA384(), "secp521r1": hashes.SHA512()}
    try:
        public.verify(bundle.signature, bundle.signed, ec.ECDSA(digest[public.curve.name]))
    except InvalidSignature as error:
        raise BadSignature("the signature does not verify: what was signed was changed, or by somebody else",
                           where=bundle.path) from error  # fmt: skip


def check_certificate(bundle: Bundle, roots: Sequence[Path], at: datetime | None = None) -> str:
    """Check the envelope against the certificate in it, and that against ``roots`` (PEM); who signed, for people.

    All certificates must be valid at ``at``, the present by default: nothing in such a signature proves when it was made.

    Raises:
        BadSignature: no chain to a root, a certificate that is expired or not for signing, or the signature doesn't verify.
        UsageError: no root certificates.
        MissingExtra: ``cryptography`` is not installed.
    """
    need_cryptography()
    from cryptography.exceptions import UnsupportedAlgorithm

    if bundle.method != "certificate":
        raise UsageError(f"it is signed with a {bundle.method}, not with a certificate", where=bundle.path,
                         hint="give --key or --identity instead of --certificate")  # fmt: skip
    chain = _chain(bundle)
    leaf = chain[0]
    _check_usage(leaf, bundle.path)
    _check_chain(leaf, chain[1:], _roots(roots), at or datetime.now(UTC), bundle.path)
    try:
        public: Any = leaf.public_key()
        _check_curve(public, bundle.path)
    except (ValueError, UnsupportedAlgorithm, UsageError) as error:
        raise BadSignature("its certificate holds no key on P-256, P-384 or P-521", where=bundle.path) from error
    _verify(bundle, public)
    return leaf.subject.rfc4514_string() or f"certificate {leaf.serial_number:x}"


def _chain(bundle: Bundle) -> list[x509.Certificate]:
    from cryptography import x509

    held = bundle.material["x509CertificateChain"]
    rows = held.get("certificates") if isinstance(held, dict) else None
    if not isinstance(rows, list) or not 1 <= len(rows) <= MAX_CHAIN or not all(isinstance(r, dict) for r in rows):
        raise FormatError(f"expected a chain of 1 to {MAX_CHAIN} certificates", where=bundle.path)
    try:
        return [x509.load_der_x509_certificate(_bytes(r.get("rawBytes"), bundle.path)) for r in rows]
    except ValueError as error:
        raise FormatError(f"a certificate can't be read ({error})", where=bundle.path) from error


def _roots(paths: Sequence[Path]) -> list[x509.Certificate]:
    from cryptography import x509

    found: list[x509.Certificate] = []
    for path in paths:
        try:
            found += x509.load_pem_x509_certificates(path.read_bytes())
        except ValueError as error:
            raise UsageError("not certificates in PEM form", where=path) from error
    if not found:
        raise UsageError("no root certificates were given", hint="--certificate ROOTS.pem")
    return found


def _check_usage(leaf: x509.Certificate, where: object) -> None:
    """The certificate is meant for signing: its key usage or its extended one says so."""
    from cryptography import x509

    try:
        extensions = leaf.extensions
    except (ValueError, x509.DuplicateExtension) as error:
        raise BadSignature(f"the certificate's extensions can't be read ({error})", where=where) from error
    for extension in extensions:
        if isinstance(extension.value, x509.KeyUsage) and extension.value.digital_signature:
            return
        if isinstance(extension.value, x509.ExtendedKeyUsage) and x509.oid.ExtendedKeyUsageOID.CODE_SIGNING in extension.value:
            return
    raise BadSignature("the certificate is not meant for signing", where=where)


def _check_chain(
    leaf: x509.Certificate, between: list[x509.Certificate], roots: list[x509.Certificate], at: datetime, where: object
) -> None:
    """A path from the leaf to a root, all valid at ``at``, each issuer an authority that may sign certificates."""
    from cryptography.x509 import BasicConstraints, KeyUsage, verification

    for certificate in (leaf, *between):
        begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        if not begin <= at <= end:
            told = f"ended on {end:%Y-%m-%d}" if at > end else f"begins on {begin:%Y-%m-%d}"
            raise BadSignature(f"a certificate of the chain {told}", where=where,
                               hint="nothing in it proves when it was made; if you know the day, say --at YYYY-MM-DD")  # fmt: skip

    def authority(_policy: object, _certificate: object, value: BasicConstraints) -> None:
        if not value.ca:
            raise ValueError("not an authority")

    def may_certify(_policy: object, _certificate: object, value: KeyUsage | None) -> None:
        if value is not None and not value.key_cert_sign:
            raise ValueError("may not sign certificates")

    either = verification.Criticality.AGNOSTIC
    issuer = verification.ExtensionPolicy.permit_all().require_present(BasicConstraints, either, authority)
    issuer = issuer.may_be_present(KeyUsage, either, may_certify)
    builder = verification.PolicyBuilder().store(verification.Store(roots)).time(at).max_chain_depth(MAX_CHAIN)
    builder = builder.extension_policies(ca_policy=issuer, ee_policy=verification.ExtensionPolicy.permit_all())
    try:
        builder.build_client_verifier().verify(leaf, between)
    except verification.VerificationError as error:
        raise BadSignature(f"no chain from its certificate to a root that you trust ({error})", where=where) from error
