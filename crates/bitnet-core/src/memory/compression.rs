//! Lossless compression of tensors that nobody reads for a while.
//!
//! The bytes of floating-point numbers differ: sign and exponent take few values, the lowest bits of the mantissa any. So
//! all first bytes are coded by themselves, then all second ones, and so on, each plane by how often its values occur
//! (range asymmetric numeral systems after Duda, arXiv:1311.2540, with a state of 32 bits that sheds bytes). A plane that
//! does not get shorter is kept as it is.
//!
//! `bitnet_quant::entropy` codes the tensors of files: it splits elements alike, but into chunks with checksums that any number of
//! threads decode, and answers damage with an error. Here nobody but this process wrote the code.

/// Frequencies add up to this power of two.
const SCALE_BITS: u32 = 12;
/// The state is at least this between symbols.
const LOWEST: u32 = 1 << 23;

const RAW: u8 = 0;
const CODED: u8 = 1;
/// In front of a coded plane: a tag, 256 frequencies, the bytes of the code.
const HEADER: usize = 1 + 2 * 256 + 8;

/// `bytes`, whose elements have `element_bytes` each, in fewer bytes, if they can be had.
///
/// # Panics
/// When `bytes` are not whole elements.
pub fn compress(bytes: &[u8], element_bytes: usize) -> Vec<u8> {
    assert!(element_bytes > 0 && bytes.len().is_multiple_of(element_bytes));
    let mut out = Vec::with_capacity(bytes.len() / 2);
    let mut plane = Vec::with_capacity(bytes.len() / element_bytes);
    for p in 0..element_bytes {
        plane.clear();
        plane.extend(bytes.iter().skip(p).step_by(element_bytes));
        let coded =
            (!plane.is_empty()).then(|| encode(&plane)).filter(|c| HEADER + c.1.len() < 1 + plane.len());
        match coded {
            Some((frequencies, code)) => {
                out.push(CODED);
                frequencies.iter().for_each(|f| out.extend(f.to_le_bytes()));
                out.extend((code.len() as u64).to_le_bytes());
                out.extend(code);
            }
            None => {
                out.push(RAW);
                out.extend(&plane);
            }
        }
    }
    out
}

/// Undoes [`compress`].
///
/// # Panics
/// When `packed` was not made from as many bytes of such elements.
pub fn decompress(packed: &[u8], element_bytes: usize, out: &mut [u8]) {
    let n = out.len() / element_bytes;
    let mut rest = packed;
    for p in 0..element_bytes {
        let plane = out.iter_mut().skip(p).step_by(element_bytes);
        let (tag, behind) = rest.split_at(1);
        rest = if tag[0] == RAW {
            let (bytes, behind) = behind.split_at(n);
            plane.zip(bytes).for_each(|(out, byte)| *out = *byte);
            behind
        } else {
            let (table, behind) = behind.split_at(2 * 256);
            let (len, behind) = behind.split_at(8);
            let frequencies = std::array::from_fn(|i| u16::from_le_bytes([table[2 * i], table[2 * i + 1]]));
            let len = len.iter().rev().fold(0, |len, byte| len << 8 | usize::from(*byte));
            let (code, behind) = behind.split_at(len);
            decode(&frequencies, code, plane);
            behind
        };
    }
    assert!(rest.is_empty(), "all planes are read");
}

/// How often each byte occurs, so that the frequencies add up to the scale and none that occurs is 0.
fn frequencies(bytes: &[u8]) -> [u16; 256] {
    let mut counts = [0usize; 256];
    bytes.iter().for_each(|b| counts[usize::from(*b)] += 1);
    let scale = 1usize << SCALE_BITS;
    let mut scaled = counts.map(|count| if count == 0 { 0 } else { (count * scale / bytes.len()).max(1) });
    // Rounding is made up for where it matters least.
    while scaled.iter().sum::<usize>() != scale {
        let sum: usize = scaled.iter().sum();
        let Some(largest) = scaled.iter_mut().max() else { unreachable!("256 values") };
        *largest = if sum < scale { *largest + scale - sum } else { *largest - 1 };
    }
    scaled.map(|f| f as u16)
}

/// Where each byte's part of the scale begins.
fn starts(frequencies: &[u16; 256]) -> [u32; 256] {
    let mut at = 0;
    frequencies.map(|f| {
        at += u32::from(f);
        at - u32::from(f)
    })
}

/// The frequencies and the code, which is read from its end to its beginning.
fn encode(plane: &[u8]) -> ([u16; 256], Vec<u8>) {
    let frequencies = frequencies(plane);
    let starts = starts(&frequencies);
    let mut code = Vec::with_capacity(plane.len());
    let mut state = LOWEST;
    for &byte in plane.iter().rev() {
        let (f, start) = (u32::from(frequencies[usize::from(byte)]), starts[usize::from(byte)]);
        let limit = ((LOWEST >> SCALE_BITS) << 8) * f;
        while state >= limit {
            code.push(state as u8);
            state >>= 8;
        }
        state = ((state / f) << SCALE_BITS) + state % f + start;
    }
    code.extend(state.to_le_bytes());
    (frequencies, code)
}

fn decode<'a>(frequencies: &[u16; 256], code: &[u8], out: impl Iterator<Item = &'a mut u8>) {
    let starts = starts(frequencies);
    let mut byte_at = [0; 1 << SCALE_BITS];
    for byte in 0..256 {
        byte_at[starts[byte] as usize..][..usize::from(frequencies[byte])].fill(byte as u8);
    }
    let mut bytes = code.iter().rev();
    let mut next = || bytes.next().map_or(0, |b| u32::from(*b));
    let mut state = (0..4).fold(0, |state, _| state << 8 | next());
    for out in out {
        let slot = state & ((1 << SCALE_BITS) - 1);
        let byte = byte_at[slot as usize];
        *out = byte;
        state = u32::from(frequencies[usize::from(byte)]) * (state >> SCALE_BITS) + slot
            - starts[usize::from(byte)];
        while state < LOWEST {
            state = state << 8 | next();
        }
    }
    assert!(state == LOWEST && bytes.next().is_none(), "the whole code is read");
}
