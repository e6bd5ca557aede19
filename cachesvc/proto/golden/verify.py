"""Recomputes the golden vectors from their description alone, with the blake3 package of PyPI.

    pip install blake3 && python verify.py

It shares no code with the Rust implementation: it follows the text of hearth_proto::identity and hearth_proto::key.
"""

import json
import pathlib
import struct
import sys

from blake3 import blake3

IDENTITY_CONTEXT = "hearth v1 cache identity"
KEY_CONTEXT = "hearth v1 block keys"
FIELDS = [
    "model", "revision", "tokenizer", "compute_dtype", "kv_dtype", "kv_scale", "groups", "block_tokens", "rope",
    "adapter", "adapter_revision", "layout", "format",
]


def u32(number: int) -> bytes:
    return struct.pack("<I", number)


def field_text(name: str, value) -> str:
    if name == "groups":
        group = "{}:{kind}/{layers}x{kv_heads}x{head_dim}".format
        return ",".join(group(len(g["kind"].encode()), **g) for g in value)
    return str(value)


def fingerprint(identity: dict) -> bytes:
    hasher = blake3(derive_key_context=IDENTITY_CONTEXT)
    for name in FIELDS:
        for part in (name.encode(), field_text(name, identity[name]).encode()):
            hasher.update(u32(len(part)) + part)
    return hasher.digest()


def keys(secret: bytes, print_: bytes, salt: bytes, tokens: list, block_tokens: int) -> list:
    key = blake3(secret, derive_key_context=KEY_CONTEXT).digest()
    found = []
    for start in range(0, len(tokens) - block_tokens + 1, block_tokens):
        block = tokens[start:start + block_tokens]
        extra = salt if not found else b""
        parent = b"\x01" + found[-1] if found else b"\x00" + print_
        body = parent + u32(len(extra)) + extra + u32(len(block)) + b"".join(map(u32, block))
        found.append(blake3(body, key=key).digest())
    return found


def main() -> int:
    vectors = json.loads(pathlib.Path(__file__).with_name("keys.json").read_text())
    wrong = 0
    for vector in vectors:
        print_ = fingerprint(vector["identity"])
        chain = keys(
            bytes.fromhex(vector["secret"]), print_, vector["salt"].encode(), vector["tokens"],
            vector["identity"]["block_tokens"],
        )
        good = print_.hex() == vector["fingerprint"] and [key.hex() for key in chain] == vector["keys"]
        print(("ok    " if good else "WRONG ") + vector["name"])
        wrong += not good
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
