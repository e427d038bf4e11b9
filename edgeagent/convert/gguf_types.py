"""Ternary bytes of other formats, decoded and encoded: GGUF block types, I2_S, Hugging Face planes.

Everywhere a code is t + 1 in {0, 1, 2}; where two bits could hold a 3, a 3 is an error.  A 2-bit
type differs from another only in which four codes share a byte and in their order; a base-3 type
only in the lengths of its three stages.  What follows says just that, type by type.

Sources of the layouts: TQ1_0, TQ2_0, Q2_0: ggml (github.com/ggml-org/llama.cpp, `ggml-common.h`);
PQ2_0, PTQ1_0: github.com/PrismML-Eng; I2_S: github.com/microsoft/BitNet (`ggml-bitnet-mad.cpp`);
IQ2_BN: github.com/ikawrakow/ik_llama.cpp (`iqk_quantize.cpp`); packed planes: transformers,
`integrations/bitnet`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgeagent.errors import ModelError

Codes = NDArray[np.uint8]
Trits = NDArray[np.int8]
Floats = NDArray[np.float32]
Bytes = NDArray[np.uint8]

#: One float32 scale and padding behind the codes of an I2_S tensor.
I2S_TAIL_BYTES = 32
#: Canonical first: what the official files hold.  Nothing in a file tells which it is.
I2S_VARIANTS = ("canonical", "neon64", "rows4")
_I2S_QUARTERS = {"canonical": 32, "neon64": 16}  # bytes of a block of four times as many weights


@dataclass(frozen=True, slots=True)
class BlockType:
    """A ternary block type with a float16 scale in every block, or a float32 one before each row.

    Attributes:
        weights: of a block, all from one row.
        shape: 2-bit types: a block's codes, reshaped so that four along `axis` share a byte, the
            first in the lowest bits; axis 0 counts the blocks.
        axis: see `shape`.
        stages: base-3 types: (digits, bytes) of each stage.
        scale_first: whether the scale precedes the codes.
        row_scale: whether the only scale is that of the row.
    """

    weights: int
    shape: tuple[int, ...] = ()
    axis: int = 0
    stages: tuple[tuple[int, int], ...] = ()
    scale_first: bool = False
    row_scale: bool = False

    @property
    def code_bytes(self) -> int:
        """Of a block, without its scale."""
        return sum(width for _, width in self.stages) or self.weights // 4

    @property
    def n_bytes(self) -> int:
        """Of a block."""
        return self.code_bytes + (0 if self.row_scale else 2)

    @property
    def row_head(self) -> int:
        """Bytes before the blocks of a row."""
        return 4 if self.row_scale else 0


TERNARY_BLOCKS = {
    "TQ1_0": BlockType(256, stages=((5, 32), (5, 16), (4, 4))),
    "TQ2_0": BlockType(256, shape=(2, 4, 32), axis=2),
    "Q2_0_G64": BlockType(64, shape=(16, 4), axis=2, scale_first=True),
    "Q2_0_G128": BlockType(128, shape=(32, 4), axis=2, scale_first=True),
    "PTQ1_0": BlockType(128, stages=((5, 16), (5, 8), (4, 2))),
    "IQ2_BN": BlockType(64, shape=(4, 16), axis=1, row_scale=True),
}


def _join2(codes: Codes, axis: int, *, highest_first: bool) -> Bytes:
    """Pack the four codes along `axis` into bytes; the axis disappears."""
    fields = np.moveaxis(codes, axis, 0)
    packed = np.zeros(fields.shape[1:], np.uint8)
    for i in range(4):
        packed |= fields[i] << np.uint8(6 - 2 * i if highest_first else 2 * i)
    return packed


def _split2(packed: Bytes, axis: int, *, highest_first: bool) -> Codes:
    """Undo `_join2`: a new axis of four codes."""
    shifts = (6, 4, 2, 0) if highest_first else (0, 2, 4, 6)
    return np.stack([packed >> np.uint8(s) & np.uint8(3) for s in shifts], axis=axis)


def _codes_to_trits(codes: Codes, what: str) -> Trits:
    if codes.size and codes.max() > 2:
        raise ModelError(f"{what}: code 3 is no trit: the tensor is not ternary, or damaged")
    return codes.view(np.int8) - np.int8(1)


def _trits_to_codes(trits: Trits) -> Codes:
    return (trits + np.int8(1)).view(np.uint8)


def _encode_base3(codes: Codes, stages: tuple[tuple[int, int], ...]) -> Bytes:
    """Encode (blocks, weights): five digits, the first the highest, scaled from 243 to 256."""
    parts, at = [], 0
    for digits, width in stages:
        fields = codes[:, at : at + digits * width].reshape(-1, digits, width).astype(np.uint16)
        value = np.zeros((len(codes), width), np.uint16)
        for i in range(5):
            value = value * np.uint16(3)
            if i < digits:
                value += fields[:, i]
        parts.append(((value * np.uint16(256) + np.uint16(242)) // np.uint16(243)).astype(np.uint8))
        at += digits * width
    return np.concatenate(parts, axis=1)


def _decode_base3(packed: Bytes, stages: tuple[tuple[int, int], ...]) -> Codes:
    """Decode to (blocks, weights); every byte has digits of 0 to 2."""
    parts, at = [], 0
    for digits, width in stages:
        rest = packed[:, at : at + width]
        for _ in range(digits):
            parts.append((rest.astype(np.uint16) * np.uint16(3) >> np.uint16(8)).astype(np.uint8))
            rest = rest * np.uint8(3)  # modulo 256
        at += width
    return np.concatenate(parts, axis=1)


def encode_blocks(kind: str, trits: Trits, scales: Floats) -> Bytes:
    """Encode a matrix in a type of `TERNARY_BLOCKS`.

    Args:
        kind: the type; PQ2_0 has the bytes of Q2_0_G128.
        trits: (out, in); `in` is a multiple of the block.
        scales: broadcast to (out, blocks a row); rounded to float16.  A block of zeros gets 0, as
            the reference's quantiser gives it.  With a scale a row: broadcast to (out, 1), exact.

    Returns:
        (out, bytes a row).

    Raises:
        ModelError: rows are no whole blocks, or a scale does not fit float16.
    """
    block = TERNARY_BLOCKS[kind]
    n_out, n_in = trits.shape
    if n_in % block.weights:
        raise ModelError(f"{kind}: expected rows of a multiple of {block.weights}, got {n_in}")
    codes = _trits_to_codes(np.ascontiguousarray(trits)).reshape(-1, block.weights)
    if block.stages:
        packed = _encode_base3(codes, block.stages)
    else:
        grouped = codes.reshape(-1, *block.shape)
        packed = _join2(grouped, block.axis, highest_first=False).reshape(len(codes), -1)
    if block.row_scale:
        head = np.ascontiguousarray(np.broadcast_to(scales, (n_out, 1)), "<f4")
        return np.concatenate([head.view(np.uint8), packed.reshape(n_out, -1)], axis=1)
    wide = np.broadcast_to(scales, (n_out, n_in // block.weights)).reshape(-1, 1)
    wide = np.where((codes != 1).any(axis=1, keepdims=True), wide, np.float32(0))
    with np.errstate(over="ignore"):
        half = wide.astype("<f2")
    if not np.isfinite(half).all():
        raise ModelError(f"{kind}: a scale does not fit float16: write another type")
    parts = [half.view(np.uint8), packed] if block.scale_first else [packed, half.view(np.uint8)]
    return np.concatenate(parts, axis=1).reshape(n_out, -1)


def _split_scales(block: BlockType, data: Bytes, n_out: int) -> tuple[Floats, Bytes]:
    """Return the scales, those of blocks (blocks, 1) or of rows (out, 1), and the codes."""
    if block.row_scale:
        rows = data.reshape(n_out, -1)
        head = np.ascontiguousarray(rows[:, : block.row_head]).view("<f4").astype(np.float32)
        return head, rows[:, block.row_head :]
    blocks = data.reshape(-1, block.n_bytes)
    half, packed = blocks[:, -2:], blocks[:, :-2]
    if block.scale_first:
        half, packed = blocks[:, :2], blocks[:, 2:]
    return np.ascontiguousarray(half).view("<f2").astype(np.float32), packed


def decode_blocks(kind: str, data: Bytes, n_out: int, n_in: int) -> tuple[Trits, Floats]:
    """Decode what `encode_blocks` encodes.

    Args:
        kind: of `TERNARY_BLOCKS`.
        data: the tensor's bytes, of any shape.
        n_out: rows.
        n_in: columns, a multiple of the block.

    Returns:
        trits (out, in) and the scale of every block (out, blocks a row), or of the row (out, 1).

    Raises:
        ModelError: a code is no trit, or a scale is no finite number.
    """
    block = TERNARY_BLOCKS[kind]
    scales, packed = _split_scales(block, data, n_out)
    if not np.isfinite(scales).all():
        raise ModelError(f"{kind}: a block's scale is not finite: the file is damaged")
    if block.stages:
        codes = _decode_base3(packed, block.stages)
    else:
        shape = [n for i, n in enumerate(block.shape) if i + 1 != block.axis]
        fields = packed.reshape(-1, *shape)
        codes = _split2(fields, block.axis, highest_first=False)
    trits = _codes_to_trits(codes.reshape(n_out, n_in), kind)
    return trits, scales.reshape(n_out, -1)


def _check_i2s(n_out: int, n_in: int, variant: str) -> None:
    if variant not in I2S_VARIANTS:
        raise ModelError(f"I2_S: expected a variant of {I2S_VARIANTS}, got {variant!r}")
    unit, what = (4, n_out) if variant == "rows4" else (4 * _I2S_QUARTERS[variant], n_out * n_in)
    if what % unit:
        raise ModelError(f"I2_S {variant}: [{n_out}, {n_in}] is not whole blocks of {unit}")


def i2s_bytes(n_weights: int) -> int:
    """Return the size of an I2_S tensor."""
    return n_weights // 4 + I2S_TAIL_BYTES


def encode_i2s(trits: Trits, scale: float, variant: str = "canonical") -> Bytes:
    """Encode a matrix (out, in) and its one scale as I2_S.

    Raises:
        ModelError: the matrix is no whole number of blocks.
    """
    _check_i2s(trits.shape[0], trits.shape[1], variant)
    codes = _trits_to_codes(np.ascontiguousarray(trits))
    if variant == "rows4":
        grouped = codes.reshape(-1, 4, trits.shape[1])
    else:
        grouped = codes.reshape(-1, 4, _I2S_QUARTERS[variant])
    tail = np.zeros(I2S_TAIL_BYTES, np.uint8)
    tail[:4] = np.array([scale], "<f4").view(np.uint8)
    return np.concatenate([_join2(grouped, 1, highest_first=True).ravel(), tail])


def decode_i2s(
    data: Bytes, n_out: int, n_in: int, variant: str = "canonical"
) -> tuple[Trits, np.float32]:
    """Decode an I2_S tensor of `i2s_bytes` bytes.

    Raises:
        ModelError: a code is no trit, the scale is no finite number, or no whole blocks.
    """
    _check_i2s(n_out, n_in, variant)
    packed = data[: n_out * n_in // 4]
    width = n_in if variant == "rows4" else _I2S_QUARTERS[variant]
    codes = _split2(packed.reshape(-1, width), 1, highest_first=True)
    trits = _codes_to_trits(codes.reshape(n_out, n_in), f"I2_S {variant}")
    scale = np.frombuffer(data[n_out * n_in // 4 :][:4].tobytes(), "<f4")[0]
    if not np.isfinite(scale):
        raise ModelError("I2_S: the scale is not finite: the file is damaged")
    return trits, np.float32(scale)


def encode_hf(trits: Trits) -> Bytes:
    """Pack (out, in) as transformers does: a byte holds rows r, r + R, r + 2R, r + 3R; R = out / 4.

    Raises:
        ModelError: `out` is not a multiple of 4.
    """
    if len(trits) % 4:
        raise ModelError(f"packed bitnet: expected a multiple of 4 outputs, got {len(trits)}")
    codes = _trits_to_codes(np.ascontiguousarray(trits))
    return _join2(codes.reshape(4, -1, trits.shape[1]), 0, highest_first=False)


def decode_hf(packed: Bytes) -> Trits:
    """Unpack (out / 4, in) bytes to (out, in).

    Raises:
        ModelError: a code is no trit.
    """
    codes = _split2(packed, 0, highest_first=False)
    return _codes_to_trits(codes.reshape(-1, packed.shape[1]), "packed bitnet")


def decode_q4_trits(data: Bytes, n_out: int, n_in: int) -> tuple[Trits, Floats]:
    """Read trits out of Q4_0, which llama.cpp gives ternary rows that are no multiple of 256.

    A block of 32 is d as float16 and 16 bytes, weights j and 16 + j in the low and high half of
    byte j; its value is d (q - 8).  Of trits times s the quantiser makes |d| = s / 8 and only the
    codes 0 (the sign of the largest), 8 and 15 (the other sign, cut short): exact to undo.  Our own
    exports have d = s and the codes 7, 8 and 9, which lose nothing to begin with.

    Returns:
        trits (out, in) and scales (out, in / 32).

    Raises:
        ModelError: other codes occur: this matrix is not ternary.
    """
    blocks = data.reshape(-1, 18)
    d = np.ascontiguousarray(blocks[:, :2]).view("<f2").astype(np.float32)
    packed = blocks[:, 2:]
    codes = np.concatenate([packed & np.uint8(15), packed >> np.uint8(4)], axis=1)
    low, high, none = codes == 0, codes == 15, (codes == 8) | (d == 0)
    near = (codes == 7) | (codes == 9)
    is_far = (low | high | none).all(axis=1, keepdims=True)
    if not (is_far | (near | none).all(axis=1, keepdims=True)).all() or not np.isfinite(d).all():
        raise ModelError("Q4_0: its values are not a ternary matrix: convert from another file")
    codes = np.where(is_far & low, np.uint8(7), np.where(is_far & high, np.uint8(9), codes))
    sign = np.where(d < 0, np.int8(-1), np.int8(1)) * (d != 0)
    trits = (codes.view(np.int8) - np.int8(8)) * sign
    scales = np.abs(d) * np.where(is_far & ~none.all(axis=1, keepdims=True), 8, 1)
    return trits.astype(np.int8).reshape(n_out, n_in), scales.astype(np.float32).reshape(n_out, -1)
