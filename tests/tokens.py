"""Tokens, as the product's issuer makes them, and as others do who would like to be taken for it.

`a_token` signs what a library lets one sign. `raw` puts any header, payload and signature together by hand;
a `Signer` is all it needs of a key. Keys are made once per process and known by their owner's name.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import hmac
import json
import time
from collections.abc import Callable
from typing import Any

import jwt
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

SHARED_SECRET = "a-shared-secret-of-more-than-thirty-two-bytes"

Signer = Callable[[bytes], bytes]
PublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey


def claims(**changes: Any) -> dict[str, Any]:
    """What a good token says; a change to None leaves the claim out."""
    now = int(time.time())
    said = {"sub": "u_ada", "tenant_id": "t_acme", "iat": now, "exp": now + 3600, **changes}
    return {name: value for name, value in said.items() if value is not None}


def a_token(key: Any = SHARED_SECRET, algorithm: str = "HS256", kid: str | None = None, **changes: Any) -> str:
    """A signed token; claims as in `claims`."""
    return jwt.encode(claims(**changes), key, algorithm, headers={"kid": kid} if kid else None)


def raw(header: Any, payload: Any, sign: Signer) -> str:
    """Header and payload as JSON, or as they are where they are text already."""
    signed = f"{_segment(header)}.{_segment(payload)}"
    return f"{signed}.{base64url(sign(signed.encode()))}"


def _segment(value: Any) -> str:
    return base64url((value if isinstance(value, str) else json.dumps(value)).encode())


def base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def unsigned(_message: bytes) -> bytes:
    return b""


def hmac_with(secret: str | bytes, digest: str = "sha256") -> Signer:
    key = secret.encode() if isinstance(secret, str) else secret
    return lambda message: hmac.new(key, message, getattr(hashlib, digest)).digest()


def rsa_with(
    key: rsa.RSAPrivateKey, digest: hashes.HashAlgorithm | None = None, *, pss: bool = False
) -> Signer:
    used = digest or hashes.SHA256()
    scheme = padding.PSS(padding.MGF1(used), used.digest_size) if pss else padding.PKCS1v15()
    return lambda message: key.sign(message, scheme, used)


def ec_with(key: ec.EllipticCurvePrivateKey) -> Signer:
    def sign(message: bytes) -> bytes:
        r, s = decode_dss_signature(key.sign(message, ec.ECDSA(hashes.SHA256())))
        return r.to_bytes(32, "big") + s.to_bytes(32, "big")

    return sign


@functools.cache
def rsa_key(_owner: str = "issuer", bits: int = 2048) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=bits)


@functools.cache
def ec_key(_owner: str = "issuer") -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def pem(key: PublicKey) -> str:
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def jwk(key: PublicKey, **members: Any) -> dict[str, Any]:
    """The key as an issuer publishes it."""
    if isinstance(key, rsa.RSAPublicKey):
        return {**RSAAlgorithm.to_jwk(key, as_dict=True), **members}
    return {**ECAlgorithm.to_jwk(key, as_dict=True), **members}
