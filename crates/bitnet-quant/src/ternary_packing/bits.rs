//! Fields that are not whole bytes, lowest bits first, and the bits that 64 weights make.

/// At least 57 bits from bit `bit` of `bytes` on; those behind the end are 0.
#[inline(always)]
pub(crate) fn bits_from(bytes: &[u8], bit: usize) -> u64 {
    let rest = bytes.get(bit / 8..).unwrap_or_default();
    let word = rest.first_chunk().map_or_else(|| padded_word(rest), |word| u64::from_le_bytes(*word));
    word >> (bit % 8)
}

#[cold]
fn padded_word(bytes: &[u8]) -> u64 {
    let mut word = [0; 8];
    word[..bytes.len()].copy_from_slice(bytes);
    u64::from_le_bytes(word)
}

/// Which of at most 64 weights are not zero, the first in the lowest bit.
pub(super) fn nonzero_bits(weights: &[i8]) -> u64 {
    gather::<0>(weights)
}

/// Which of at most 64 weights are -1.
pub(super) fn negative_bits(weights: &[i8]) -> u64 {
    gather::<7>(weights)
}

/// Bit `BIT` of each byte: the lowest is set in 1 and -1, the highest in -1 only.
fn gather<const BIT: u32>(weights: &[i8]) -> u64 {
    const LOWEST: u64 = 0x0101_0101_0101_0101;
    /// A product with it has bit `8 i` of the other factor at bit `56 + i`.
    const TO_TOP_BYTE: u64 = 0x0102_0408_1020_4080;
    let eight = |bytes: [u8; 8]| (u64::from_le_bytes(bytes) >> BIT & LOWEST).wrapping_mul(TO_TOP_BYTE) >> 56;
    let (eights, tail) = weights.as_chunks::<8>();
    let mut bits = 0;
    for (i, weights) in eights.iter().enumerate() {
        bits |= eight(weights.map(|w| w as u8)) << (8 * i);
    }
    if !tail.is_empty() {
        let mut padded = [0; 8];
        for (byte, w) in padded.iter_mut().zip(tail) {
            *byte = *w as u8;
        }
        bits |= eight(padded) << (8 * eights.len());
    }
    bits
}

/// Appends fields to bytes.
pub(super) struct BitWriter {
    bytes: Vec<u8>,
    /// Fields that fill no whole word yet, and how many bits they are.
    word: u64,
    len: usize,
}

impl BitWriter {
    pub(super) fn with_capacity(bits: usize) -> Self {
        BitWriter { bytes: Vec::with_capacity(bits / 8 + 8), word: 0, len: 0 }
    }

    /// A field of at most 32 bits.
    pub(super) fn push(&mut self, field: u64, bits: usize) {
        self.word |= field << self.len;
        self.len += bits;
        if self.len >= 32 {
            self.bytes.extend_from_slice(&(self.word as u32).to_le_bytes());
            self.word >>= 32;
            self.len -= 32;
        }
    }

    pub(super) fn push_zeros(&mut self, mut bits: usize) {
        while bits > 32 {
            self.push(0, 32);
            bits -= 32;
        }
        self.push(0, bits);
    }

    /// Appends the bytes to `out`, the last filled up with zeros.
    pub(super) fn finish(self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.bytes);
        out.extend_from_slice(&self.word.to_le_bytes()[..self.len.div_ceil(8)]);
    }
}
