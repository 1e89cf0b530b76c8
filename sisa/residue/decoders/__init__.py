"""The formats that the residue scan decodes; the first that recognises a content opens it."""

from __future__ import annotations

from sisa.residue.decoders import arrays, arrow, packed, parquet, sqlite, text
from sisa.residue.decoders.protocol import Decoder

DECODERS: tuple[Decoder, ...] = (
    parquet.DECODER,
    arrow.DECODER,
    sqlite.DECODER,
    *packed.DECODERS,
    *arrays.DECODERS,
    text.DECODER,
)
