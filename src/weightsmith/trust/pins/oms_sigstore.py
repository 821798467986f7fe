"""Keyless signatures: an identity that a certificate authority saw, and an entry in a public log, checked without a network.

The `sigstore` library does it, against the trust root that it ships with or one that the user gives. Nothing is fetched: a
root that was replaced after the library's release has to be given.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from ...errors import BadSignature, FormatError, MissingExtra, UsageError
from .oms import PAYLOAD, Bundle

#: where the library keeps the public instance's trust root, inside of its package
_SHIPPED = "https%3A%2F%2Ftuf-repo-cdn.sigstore.dev/trusted_root.json"


def check_identity(bundle: Bundle, identity: str, issuer: str, root: Path | None = None) -> str:
    """Check the envelope against an identity (an e-mail address or URI) and its OpenID issuer; who signed, for people.

    Raises:
        BadSignature: another identity, a certificate or log entry that doesn't hold, or the signature doesn't verify.
        FormatError: the bundle or the trust root can't be read.
        UsageError: signed in another way.
        MissingExtra: ``sigstore`` is not installed.
    """
    try:
        from sigstore import errors
        from sigstore.models import Bundle as Parsed
        from sigstore.models import InvalidBundle
        from sigstore.verify import Verifier, policy
    except ImportError as error:
        raise MissingExtra("checking a keyless signature needs sigstore", hint="pip install 'weightsmith[sigstore]'") from error
    if bundle.method != "sigstore":
        raise UsageError(f"it is signed with a {bundle.method}, not by an identity", where=bundle.path,
                         hint="give --key or --certificate instead of --identity")  # fmt: skip
    logging.getLogger("sigstore").setLevel(logging.ERROR)
    trusted = _trusted(root)
    try:
        parsed = Parsed.from_json(bundle.raw)
    except (InvalidBundle, ValueError, TypeError, KeyError) as error:
        raise FormatError(f"not a keyless signature ({_short(error)})", where=bundle.path) from error
    try:
        kind, payload = Verifier(trusted_root=trusted).verify_dsse(parsed, policy.Identity(identity=identity, issuer=issuer))
    except errors.Error as error:
        raise BadSignature(f"it does not verify: {_short(error)}", where=bundle.path) from error
    except Exception as error:  # on a stranger's certificate and log entry the library raises anything at all
        raise BadSignature(f"it can't be verified: {_short(error)}", where=bundle.path) from error
    if kind != PAYLOAD or payload != bundle.payload:
        raise BadSignature("what was verified is not what the envelope holds", where=bundle.path)
    return f"{identity} (as {issuer} says)"


def _trusted(root: Path | None) -> Any:
    """The trust root of a file, or the one that the library ships with."""
    from importlib import resources

    from sigstore.models import TrustedRoot

    try:
        if root is not None:
            return TrustedRoot.from_file(str(root))
        shipped = resources.files("sigstore._store").joinpath(_SHIPPED)
        with resources.as_file(shipped) as path:
            return TrustedRoot.from_file(str(path))
    except Exception as error:  # the library's parser raises its own and pydantic's classes
        where = root or "the trust root of the sigstore library"
        raise FormatError(f"not a trust root ({_short(error)})", where=where, hint="give one with --trust-root FILE") from error


def _short(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:200]
