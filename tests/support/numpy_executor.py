"""An executor of program files, written from docs/program-format.md alone: NumPy and Python's integers, image by image.

It knows nothing of vitquant, and stands in for the executors that others will write. Whatever would leave the width
that the page promises is an error here.
"""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load

Codes = NDArray[np.int64]


class NumpyExecutor:
    """Executes the program in the bytes of its two files."""

    def __init__(self, manifest: bytes, tensors: bytes) -> None:
        told = json.loads(manifest)
        assert told["format"] == "vitquant-program"
        assert told["format_version"] in (1, 2, 3)
        blank = manifest.replace(told["sha256"].encode(), b"0" * 64, 1)
        assert hashlib.sha256(blank).hexdigest() == told["sha256"]
        self.program = told["program"]
        assert hashlib.sha256(tensors).hexdigest() == self.program["tensors"]["sha256"]
        self.arrays = load(tensors)
        assert ("packed" in self.program["tensors"]) == (told["format_version"] == 3)
        for name, how in self.program["tensors"].get("packed", {}).items():
            self.arrays[name] = self.unpacked(name, **how)
        if told["format_version"] == 1:
            self.program["outputs"] = [{"name": "logits", "value": self.program["output"], "pooled": True}]
            for op in self.program["operations"]:
                if op["op"] in ("scores", "mix"):
                    op["windows"] = 1
                if op["op"] == "scores":
                    self.arrays[f"{op['out']['name']}/table"] = np.zeros((1, 1, 1), dtype=np.int8)
        self.meanings = {
            v["name"]: v for v in (self.program["image"], *(op["out"] for op in self.program["operations"]))
        }

    def run(self, image: NDArray[np.uint8]) -> dict[str, Codes]:
        """The codes of every value, for one image ``[C, h, w]``."""
        codes = {self.program["image"]["name"]: image.astype(np.int64)}
        for op in self.program["operations"]:
            out = op["out"]
            made = getattr(self, op["op"])(op, codes)
            assert list(made.shape) == out["shape"]
            assert out["low"] <= made.min()
            assert made.max() <= out["high"]
            codes[out["name"]] = made
        return codes

    def outputs(self, image: NDArray[np.uint8]) -> dict[str, Codes]:
        """The outputs' codes less their zero points, ``[C]`` if they are pooled, else ``[N, C]``."""
        codes = self.run(image)
        found = {output["name"]: self.centred(output["value"], codes) for output in self.program["outputs"]}
        return {o["name"]: found[o["name"]][0] if o["pooled"] else found[o["name"]] for o in self.program["outputs"]}

    def logits(self, image: NDArray[np.uint8]) -> Codes:
        """The first output."""
        return next(iter(self.outputs(image).values()))

    def unpacked(self, name: str, bits: int, columns: int, group: int) -> NDArray[np.int8]:
        """A packed tensor, each row taken as one number."""
        rows = [elements(row, bits, columns) for row in self.arrays[name]]
        signed = [[x - 2**bits if x >= 2 ** (bits - 1) else x for x in row] for row in rows]
        if group:
            stored = self.arrays[f"{name}/multipliers"]
            assert len(stored) == len(rows)
            factors = [elements(row, 4, math.ceil(columns / group)) for row in stored]
            signed = [
                [x * (m[i // group] + 1) for i, x in enumerate(row)] for row, m in zip(signed, factors, strict=True)
            ]
        assert all(-128 <= x <= 127 for row in signed for x in row)
        return np.array(signed, dtype=np.int8)

    # What the operations share

    def tensor(self, op: dict[str, Any], field: str) -> Codes:
        array: Codes = self.arrays[f"{op['out']['name']}/{field}"].astype(np.int64)
        return array

    def zero(self, name: str) -> Codes:
        """The zero point of a value, in a shape that meets its codes."""
        shape, zero = self.meanings[name]["shape"], self.arrays[f"{name}/zero_point"].astype(np.int64)
        length = shape[0] if len(shape) == 3 else shape[-1]
        zero = np.repeat(zero, length // len(zero))
        return zero[:, None, None] if len(shape) == 3 else zero

    def centred(self, name: str, codes: dict[str, Codes]) -> Codes:
        centred: Codes = codes[name] - self.zero(name)
        assert np.abs(centred).max() < 2**31
        return centred

    def rescale(self, acc: Codes, op: dict[str, Any], suffix: str = "") -> Codes:
        m, n = self.tensor(op, "multiplier" + suffix), self.tensor(op, "shift" + suffix)
        if acc.ndim == 3 and len(m) > 1:
            m, n = m[:, None, None], n[:, None, None]
        assert np.abs(acc).max() < 2**31
        half = np.where(n > 0, 1 << np.maximum(n - 1, 0), 0)
        rescaled: Codes = (acc * m + half) >> n
        return rescaled

    def clamp(self, codes: Codes, op: dict[str, Any]) -> Codes:
        return np.clip(codes, op["out"]["low"], op["out"]["high"])

    def requantized(self, acc: Codes, op: dict[str, Any]) -> Codes:
        return self.clamp(self.zero(op["out"]["name"]) + self.rescale(acc, op), op)

    def exponentials(self, op: dict[str, Any], x: Codes) -> Codes:
        table = self.tensor(op, "table")
        heads_a_table = len(x) // len(table)
        return np.stack([table[h // heads_a_table][row.max(-1, keepdims=True) - row] for h, row in enumerate(x)])

    # The operations

    def patches(self, op: dict[str, Any], codes: dict[str, Codes]) -> Codes:
        image, height, width = codes[op["x"]], op["height"], op["width"]
        _, h, w = image.shape
        return np.stack(
            [
                image[:, y : y + height, x : x + width].reshape(-1)
                for y in range(0, h, height)
                for x in range(0, w, width)
            ]
        )

    def linear(self, op: dict[str, Any], codes: dict[str, Codes]) -> Codes:
        return self.requantized(self.tensor(op, "bias") + codes[op["x"]] @ self.tensor(op, "weight").T, op)

    def embed(self, op: dict[str, Any], codes: dict[str, Codes]) -> Codes:
        total = self.tensor(op, "table")
        total[op["prefix"] :] += self.rescale(self.centred(op["x"], codes), op)
        return self.clamp(total, op)

    def layernorm(self, op: dict[str, Any], codes: dict[str, Codes]) -> Codes:
        names = ("gain", "offset", "shift")
        channels = list(zip(*(self.tensor(op, name).tolist() for name in names), strict=True))
        epsilon, headroom = self.tensor(op, "epsilon").tolist()[0], op["headroom"]
        rows = []
        for token in codes[op["x"]].tolist():
            c = len(token)
            total = sum(token)
            centred = [c * code - total for code in token]
            power = (sum(d * d for d in centred) << headroom) + epsilon
            k = min((62 - power.bit_length()) // 2, 30 - headroom // 2)
            deviation = max(1, math.isqrt((power << 2 * k) // c))
            reciprocal = 2**54 // deviation
            drop = 34 - k - headroom // 2
            row = []
            for d, (gain, offset, shift) in zip(centred, channels, strict=True):
                y = (d * reciprocal + 2 ** (drop - 1)) >> drop
                z = y * gain + offset + 2 ** (shift - 1)
                assert max(power << 2 * k, abs(d * reciprocal) + 2 ** (drop - 1), abs(z)) < 2**63
                row.append(z >> shift)
            rows.append(row)
        return self.clamp(np.array(rows, dtype=np.int64) + self.zero(op["out"]["name"]), op)

    def requantize(self, op: dict[str, Any], codes: dict[str, Codes]) -> Codes:
        start, width = op["start"], op["out"]["shape"][1]
        return self.requantized(self.centred(op["x"], codes)[:, start : start + width], op)

    def scores(self, op: dict[str, Any], codes: dict[str, Codes]) -> Codes:
        heads = op["out"]["shape"][0]
        q, k = (np.split(self.centred(op[name], codes), heads, axis=1) for name in ("q", "k"))
        windows = op["windows"]
        acc = np.stack(
            [
                np.concatenate([a @ b.T for a, b in zip(np.split(x, windows), np.split(y, windows), strict=True)])
                for x, y in zip(q, k, strict=True)
            ]
        )
        table, (_, queries, keys) = self.tensor(op, "table"), acc.shape
        added = [
            [
                [table[h // (heads // len(table)), n % table.shape[1], min(m, table.shape[2] - 1)] for m in range(keys)]
                for n in range(queries)
            ]
            for h in range(heads)
        ]
        return self.clamp(self.zero(op["out"]["name"]) + np.array(added) + self.rescale(acc, op), op)

    def multiply(self, op: dict[str, Any], codes: dict[str, Codes]) -> Codes:
        return self.requantized(self.centred(op["a"], codes) * self.centred(op["b"], codes), op)

    def rotary(self, op: dict[str, Any], codes: dict[str, Codes]) -> Codes:
        x, partner = self.centred(op["x"], codes), self.tensor(op, "partner")
        cos, sin, width = self.tensor(op, "cos"), self.tensor(op, "sin"), len(partner)
        acc = np.empty_like(x)
        for c in range(x.shape[1]):
            d = c % width
            acc[:, c] = x[:, c] * cos[:, d] + x[:, c - d + partner[d]] * sin[:, d]
        return self.requantized(acc, op)

    def constant(self, op: dict[str, Any], codes: dict[str, Codes]) -> Codes:
        return self.tensor(op, "table")

    def gather(self, op: dict[str, Any], codes: dict[str, Codes]) -> Codes:
        x, zero = codes[op["x"]], self.zero(op["x"])
        rows = [x[i] if i >= 0 else zero for i in self.tensor(op, "index").tolist()]
        gathered: Codes = np.concatenate(rows).reshape(op["out"]["shape"])
        return gathered

    def softmax_row(self, op: dict[str, Any], codes: dict[str, Codes]) -> Codes:
        return self.exponentials(op, codes[op["x"]])

    def softmax_diffusion(self, op: dict[str, Any], codes: dict[str, Codes]) -> Codes:
        rounded = (np.cumsum(self.exponentials(op, codes[op["x"]]), axis=-1) + 128) // 256
        return np.diff(rounded, axis=-1, prepend=0)

    def softmax_uniform(self, op: dict[str, Any], codes: dict[str, Codes]) -> Codes:
        e = self.exponentials(op, codes[op["x"]])
        return self.requantized((e * (2**50 // e.sum(-1, keepdims=True))) >> 20, op)

    def softmax_log2(self, op: dict[str, Any], codes: dict[str, Codes]) -> Codes:
        e = self.exponentials(op, codes[op["x"]])
        square_of_sum = e.sum(-1, keepdims=True) ** 2
        q = sum((e * e * 2 ** (2 * k + 1) < square_of_sum).astype(np.int64) for k in range(op["last"] + 1))
        return np.where(q > op["last"], 0, 2 ** np.maximum(15 - q, 0))

    def mix(self, op: dict[str, Any], codes: dict[str, Codes]) -> Codes:
        p = self.centred(op["p"], codes)
        v = np.split(self.centred(op["v"], codes), len(p), axis=1)
        windows = op["windows"]
        acc = np.stack(
            [
                np.concatenate([a @ b for a, b in zip(np.split(x, windows), np.split(y, windows), strict=True)])
                for x, y in zip(p, v, strict=True)
            ]
        )
        assert np.abs(acc).max() < 2**31
        if op["normalize"]:
            bits, fraction = op["reciprocal_bits"], op["fraction_bits"]
            acc = (acc * (2**bits // p.sum(-1, keepdims=True))) >> (bits - fraction)
        return self.requantized(np.concatenate(list(acc), axis=1), op)

    def add(self, op: dict[str, Any], codes: dict[str, Codes]) -> Codes:
        a, b = (self.rescale(self.centred(op[name], codes), op, f"_{name}") for name in ("a", "b"))
        return self.clamp(self.zero(op["out"]["name"]) + a + b, op)

    def lookup(self, op: dict[str, Any], codes: dict[str, Codes]) -> Codes:
        table_of, x = self.tensor(op, "table_of"), codes[op["x"]] - self.meanings[op["x"]]["low"]
        found: Codes = self.tensor(op, "tables")[table_of, x]
        return found

    def take(self, op: dict[str, Any], codes: dict[str, Codes]) -> Codes:
        token: Codes = codes[op["x"]][op["token"]][None]
        return token

    def pool(self, op: dict[str, Any], codes: dict[str, Codes]) -> Codes:
        x = codes[op["x"]][op["first"] :]
        mean: Codes = (2 * x.sum(0) + len(x)) // (2 * len(x))
        return mean[None]


def elements(row: NDArray[np.uint8], bits: int, count: int) -> list[int]:
    """The elements of a packed row without their signs; the row as a number, its lowest bits first."""
    assert len(row) == math.ceil(count * bits / 8)
    number = int.from_bytes(row.tobytes(), "little")
    assert number < 2 ** (count * bits)
    return [number >> (i * bits) & (2**bits - 1) for i in range(count)]
