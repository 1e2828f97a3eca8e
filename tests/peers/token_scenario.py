"""JSON Web Keys and tokens made by Python's PyJWT, cryptography and jwcrypto.

    token_scenario.py path/to/oyez        see run

One key set holds keys as identity providers publish them: of several types, for other purposes, with algorithms
and curves that the server does not support. The server must skip those and accept the others.
"""

import json
import pathlib
import signal
import sys
import tempfile
import time
import warnings

import jwt
import requests
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwcrypto.jwk import JWK
from jwcrypto.jwt import JWT
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from http_scenario import Server
from scenario import STEP_S, Checks


def claims(sub):
    now = int(time.time())
    return {"sub": sub, "iat": now, "exp": now + 3600, "oyez": {"subscribe": ["*"], "publish": ["*"]}}


class PyJwtKey:
    """A key made by cryptography, serialized and used by PyJWT."""

    def __init__(self, kid, algorithm, key, **fields):
        self.kid, self.algorithm, self.key = kid, algorithm, key
        kind = {"R": RSAAlgorithm, "E": ECAlgorithm}[algorithm[0]] if algorithm != "EdDSA" else OKPAlgorithm
        self.jwk = {**json.loads(kind.to_jwk(key.public_key())), "kid": kid, **fields}

    def token(self, sub="alice"):
        return jwt.encode(claims(sub), self.key, algorithm=self.algorithm, headers={"kid": self.kid})


class JwcryptoKey:
    def __init__(self, kid, algorithm, **parameters):
        self.algorithm = algorithm
        self.key = JWK.generate(kid=kid, **parameters)
        self.jwk = self.key.export_public(as_dict=True)
        self.kid = kid

    def token(self, sub="alice"):
        token = JWT(header={"alg": self.algorithm, "kid": self.kid}, claims=claims(sub))
        token.make_signed_token(self.key)
        return token.serialize()


def run(oyez, check, folder, log):
    curve, rsa_key = ec.generate_private_key, rsa.generate_private_key
    good = [
        PyJwtKey("pyjwt-rsa", "RS256", rsa_key(65537, 2048), use="sig", alg="RS256"),
        PyJwtKey("pyjwt-ec", "ES256", curve(ec.SECP256R1())),
        PyJwtKey("pyjwt-ed", "EdDSA", ed25519.Ed25519PrivateKey.generate()),
        JwcryptoKey("jwcrypto-rsa", "RS256", kty="RSA", size=3072, use="sig"),
        JwcryptoKey("jwcrypto-ec", "ES256", kty="EC", crv="P-256", use="sig", alg="ES256"),
        JwcryptoKey("jwcrypto-ed", "EdDSA", kty="OKP", crv="Ed25519"),
    ]
    bad = [
        PyJwtKey("weak", "RS256", rsa_key(65537, 1024)),
        PyJwtKey("p384", "ES384", curve(ec.SECP384R1())),
        JwcryptoKey("ed448", "EdDSA", kty="OKP", crv="Ed448"),
    ]
    other = [
        JWK.generate(kty="OKP", crv="X25519", kid="x25519").export_public(as_dict=True),
        JWK.generate(kty="RSA", size=2048, kid="encryption", use="enc", alg="RSA-OAEP").export_public(as_dict=True),
        {**good[0].jwk, "kid": 7},
        {"kty": "AKP", "kid": "ml-dsa", "alg": "ML-DSA-44", "pub": "AA"},
    ]
    file = pathlib.Path(folder, "jwks.json")
    # The keys that are skipped come first: none of them may stop the server from reading the next.
    file.write_text(json.dumps({"keys": [*other, *(key.jwk for key in bad), *(key.jwk for key in good)]}))
    server = Server(oyez, log, flags=["--jwks-file", str(file)])

    def status(token):
        session = requests.Session()
        session.trust_env = False
        return session.post(f"{server.root}/v1/publish/a", data="x", headers={"Authorization": f"Bearer {token}"},
                            timeout=STEP_S).status_code

    try:
        for key in good:
            found = status(key.token())
            check(f"a token of {key.kid} is accepted, out of a mixed key set", found == 200, found)
        for key in bad:
            found = status(key.token())
            check(f"a token of {key.kid} is rejected", found == 401, found)
        header, _, signature = good[0].token().split(".")
        found = status(".".join([header, good[0].token("mallory").split(".")[1], signature]))
        check("claims with another token's signature are rejected", found == 401, found)
        gone, *rest = good
        file.write_text(json.dumps({"keys": [*other, *(key.jwk for key in rest)]}))
        server.process.send_signal(signal.SIGHUP)
        end = time.monotonic() + STEP_S
        while (found := status(gone.token())) == 200 and time.monotonic() < end:
            time.sleep(0.05)
        check("a key that was removed is no longer trusted after SIGHUP", found == 401, found)
        found = [status(key.token()) for key in rest]
        check("the other keys are still trusted", found == [200] * len(rest), found)
    finally:
        server.kill()
    log.seek(0)
    text = log.read().decode(errors="replace")
    for name in ["weak", "p384", "ed448", "x25519", "ml-dsa"]:
        check(f"the log names {name} as skipped", f"(kid {name})" in text, text[-2000:])


def main(oyez):
    checks = Checks()
    # PyJWT warns about the key that is intentionally too short.
    warnings.filterwarnings("ignore", category=jwt.warnings.InsecureKeyLengthWarning)
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as log:
        run(oyez, checks.check, folder, log)
    return checks.summary()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
