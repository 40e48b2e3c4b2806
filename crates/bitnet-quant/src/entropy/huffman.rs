//! Prefix codes for bytes (Huffman, 1952), of at most [`MAX_BITS`] bits each, so that one small table decodes them.
//!
//! Eight streams take turns, byte `i` being in stream `i % 8`: to find where a code ends takes the latency of a table, and a
//! processor has the time to look up seven others meanwhile.
//!
//! Layout: 128 bytes with the length of each byte's code, two a byte, the lower nibble first; the bytes of each stream (u32
//! each); the streams, of which the first bits of a byte are its highest; eight zeros, so that eight bytes can be read from
//! anywhere in a stream. Codes are canonical: ascending by length, then by byte.

use super::CodeError;

/// The longest code.
const MAX_BITS: u32 = 11;
/// Streams that take turns.
const STREAMS: usize = 8;
/// Bytes of the lengths.
const LENGTHS_BYTES: usize = 128;
/// Bytes in front of the streams.
const HEADER_BYTES: usize = LENGTHS_BYTES + 4 * STREAMS;
/// Zeros behind the streams.
const PADDING: usize = 8;
/// Codes that eight bytes certainly hold behind the up to seven bits that are used already: 57 bits are 5 · 11 and two.
const CODES_A_READ: usize = 5;

/// For each first [`MAX_BITS`] of a stream the byte, in the upper half, and the bits of its code.
type Table = [u16; 1 << MAX_BITS];

/// A code that is made for some bytes.
pub(super) struct Code {
    lengths: [u8; 256],
    /// Bytes of each stream in it.
    stream_bytes: [usize; STREAMS],
}

impl Code {
    /// The shortest code of `bytes`, without coding them; `None` where there are none.
    pub(super) fn of(bytes: &[u8]) -> Option<Self> {
        let mut counts = [[0u32; 256]; STREAMS];
        for eight in bytes.chunks(STREAMS) {
            for (counts, byte) in counts.iter_mut().zip(eight) {
                counts[usize::from(*byte)] += 1;
            }
        }
        let all = std::array::from_fn(|byte| counts.iter().map(|counts| counts[byte]).sum());
        let lengths = code_lengths(&all)?;
        let stream_bytes = counts.map(|counts| bits(&counts, &lengths).div_ceil(8) as usize);
        Some(Code { lengths, stream_bytes })
    }

    /// How many bytes [`encode`](Self::encode) appends.
    pub(super) fn size_bytes(&self) -> usize {
        HEADER_BYTES + self.stream_bytes.iter().sum::<usize>() + PADDING
    }

    /// Appends the code of the bytes that this was made for.
    pub(super) fn encode(&self, bytes: &[u8], out: &mut Vec<u8>) {
        let codes = canonical_codes(&self.lengths);
        out.extend(self.lengths.chunks_exact(2).map(|pair| pair[0] | pair[1] << 4));
        out.extend(self.stream_bytes.iter().flat_map(|len| (*len as u32).to_le_bytes()));
        for stream in 0..STREAMS {
            let (mut bits, mut n_bits) = (0u64, 0);
            for &byte in bytes.iter().skip(stream).step_by(STREAMS) {
                let len = u32::from(self.lengths[usize::from(byte)]);
                bits = bits << len | u64::from(codes[usize::from(byte)]);
                n_bits += len;
                while n_bits >= 8 {
                    n_bits -= 8;
                    out.push((bits >> n_bits) as u8);
                }
            }
            if n_bits > 0 {
                out.push((bits << (8 - n_bits)) as u8);
            }
        }
        out.extend([0; PADDING]);
    }
}

/// Bits of so many of each byte, with codes of these lengths.
fn bits(counts: &[u32; 256], lengths: &[u8; 256]) -> u64 {
    counts.iter().zip(lengths).map(|(count, len)| u64::from(*count) * u64::from(*len)).sum()
}

/// Undoes [`Code::encode`]; `out` is as long as the bytes were.
pub(super) fn decode(code: &[u8], out: &mut [u8]) -> Result<(), CodeError> {
    let (header, data) =
        code.split_first_chunk::<HEADER_BYTES>().ok_or(CodeError("a plane ends within its lengths"))?;
    let (lengths, sizes) = header.split_at(LENGTHS_BYTES);
    let table = table(lengths)?;
    let mut end = 0;
    let mut bits = [0usize; STREAMS];
    let mut ends = [0usize; STREAMS];
    for ((bits, last), size) in bits.iter_mut().zip(&mut ends).zip(sizes.as_chunks().0) {
        *bits = 8 * end;
        end += u32::from_le_bytes(*size) as usize;
        *last = end;
    }
    if end.checked_add(PADDING) != Some(data.len()) {
        return Err(CodeError("streams are longer or shorter than their plane"));
    }

    let beyond = || CodeError("a stream ends before its bytes do");
    let mut rounds = out.chunks_exact_mut(CODES_A_READ * STREAMS);
    for round in &mut rounds {
        let mut words = [0u64; STREAMS];
        for (word, bits) in words.iter_mut().zip(&bits) {
            *word = read(data, *bits).ok_or_else(beyond)?;
        }
        // A byte of each counts the bits of a stream, which are less than 256; what is above it is none of it.
        let mut used = [0usize; STREAMS];
        for out in round.as_chunks_mut::<STREAMS>().0 {
            for s in 0..STREAMS {
                let entry = table[(words[s] >> (64 - MAX_BITS)) as usize];
                words[s] <<= entry & 63;
                used[s] += usize::from(entry);
                out[s] = (entry >> 8) as u8;
            }
        }
        for (bits, used) in bits.iter_mut().zip(used) {
            *bits += used & 255;
        }
    }
    for (i, out) in rounds.into_remainder().iter_mut().enumerate() {
        let bits = &mut bits[i % STREAMS];
        let word = read(data, *bits).ok_or_else(beyond)?;
        let entry = table[(word >> (64 - MAX_BITS)) as usize];
        *bits += usize::from(entry & 63);
        *out = (entry >> 8) as u8;
    }
    let all_read = bits.iter().zip(ends).all(|(bits, end)| bits.div_ceil(8) == end);
    all_read.then_some(()).ok_or(CodeError("a stream goes on behind its bytes"))
}

/// What follows the first `bits`: at least 57 of them.
fn read(data: &[u8], bits: usize) -> Option<u64> {
    let word = data.get(bits / 8..)?.first_chunk()?;
    Some(u64::from_be_bytes(*word) << (bits % 8))
}

/// The decoding table of nibbles that are a complete code.
fn table(nibbles: &[u8]) -> Result<Table, CodeError> {
    let mut lengths = [0u8; 256];
    for (pair, nibbles) in lengths.chunks_exact_mut(2).zip(nibbles) {
        pair.copy_from_slice(&[nibbles & 15, nibbles >> 4]);
    }
    let incomplete = Err(CodeError("the lengths of its codes are not those of a code"));
    if lengths.iter().any(|len| u32::from(*len) > MAX_BITS) {
        return incomplete;
    }
    let share = |len: u8| if len == 0 { 0 } else { 1usize << (MAX_BITS - u32::from(len)) };
    if lengths.iter().map(|len| share(*len)).sum::<usize>() != 1 << MAX_BITS {
        return incomplete;
    }
    let mut table = [0; 1 << MAX_BITS];
    let codes = canonical_codes(&lengths);
    for byte in (0..256).filter(|byte| lengths[*byte] > 0) {
        let first = usize::from(codes[byte]) << (MAX_BITS - u32::from(lengths[byte]));
        table[first..first + share(lengths[byte])].fill((byte as u16) << 8 | u16::from(lengths[byte]));
    }
    Ok(table)
}

/// Codes in ascending order of length, then byte.
fn canonical_codes(lengths: &[u8; 256]) -> [u16; 256] {
    let mut codes = [0; 256];
    let mut next = 0u16;
    for len in 1..=MAX_BITS as u8 {
        next <<= 1;
        for byte in (0..256).filter(|byte| lengths[*byte] == len) {
            codes[byte] = next;
            next += 1;
        }
    }
    codes
}

/// The lengths of the shortest code with none above [`MAX_BITS`] (Larmore and Hirschberg's package-merge, 1990); 0 for bytes
/// that do not occur. `None` where none does.
fn code_lengths(counts: &[u32; 256]) -> Option<[u8; 256]> {
    let mut leaves: Vec<(u64, Vec<u8>)> =
        (0..=255u8).map(|byte| (u64::from(counts[usize::from(byte)]), vec![byte])).collect();
    leaves.retain(|(count, _)| *count > 0);
    if let [(_, only)] = &leaves[..] {
        // A code has two ways to go; the other one leads to a byte that does not come.
        let other = only[0].wrapping_add(1);
        leaves.push((0, vec![other]));
    }
    leaves.sort();
    let n = leaves.len().checked_sub(1).filter(|n| *n > 0)? + 1;
    let mut packages: Vec<(u64, Vec<u8>)> = Vec::new();
    for _ in 0..MAX_BITS {
        let pairs = packages
            .chunks_exact(2)
            .map(|pair| (pair[0].0 + pair[1].0, [&pair[0].1[..], &pair[1].1].concat()));
        let mut merged: Vec<_> = leaves.iter().cloned().chain(pairs).collect();
        merged.sort_by_key(|(weight, _)| *weight);
        packages = merged;
    }
    let mut lengths = [0; 256];
    packages
        .iter()
        .take(2 * n - 2)
        .flat_map(|(_, bytes)| bytes)
        .for_each(|byte| lengths[usize::from(*byte)] += 1);
    Some(lengths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_those_of_huffman_where_they_are_short_enough() {
        let mut counts = [0; 256];
        counts[..5].copy_from_slice(&[50, 20, 15, 10, 5]);
        // By hand: 50 | 20 | 15 | 10 | 5 have 1, 3, 3, 3, 3 bits, as have 1, 2, 3, 4, 4: 50 + 3 · 50 and 50 + 40 + 45 + 60.
        assert_eq!(bits(&counts, &code_lengths(&counts).unwrap()), 195);
    }

    /// Frequencies like Fibonacci numbers would have codes of 40 bits.
    #[test]
    fn lengths_are_capped_and_complete() {
        let (mut a, mut b) = (1, 1);
        let mut counts = [0; 256];
        for count in &mut counts[..40] {
            *count = a;
            (a, b) = (b, a + b);
        }
        let lengths = code_lengths(&counts).unwrap();
        assert_eq!(lengths.iter().max(), Some(&(MAX_BITS as u8)));
        let nibbles: Vec<u8> = lengths.chunks_exact(2).map(|pair| pair[0] | pair[1] << 4).collect();
        assert!(table(&nibbles).is_ok());
        assert!(code_lengths(&[1; 256]).unwrap().iter().all(|len| *len == 8));
        assert_eq!(code_lengths(&[0; 256]), None);
    }

    #[test]
    fn what_is_no_code_is_refused() {
        let refused = |lengths: &[u8]| {
            let mut nibbles = [0; LENGTHS_BYTES];
            nibbles[..lengths.len()].copy_from_slice(lengths);
            table(&nibbles).is_err()
        };
        assert!(refused(&[]) && refused(&[0x01]) && refused(&[0x11, 0x01]) && refused(&[0xcc]));
        assert!(!refused(&[0x11]));
    }
}
