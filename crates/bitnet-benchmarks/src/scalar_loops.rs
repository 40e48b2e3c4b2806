//! Unpacking one weight after the other, with no vectors: what vectors are compared with.
//!
//! The compiler would turn these loops into vectors. An empty piece of assembly takes each weight in a register, which costs
//! no instruction and cannot be done to a vector.

use std::arch::asm;

use bitnet_quant::ternary_packing::TernaryPackingStrategy;

/// Fills weights from a payload that was packed here: it trusts it.
pub type ScalarLoop = fn(payload: &[u8], out: &mut [i8]);

/// The loop for a payload that is packed so, where there is one.
pub fn scalar_loop(strategy: TernaryPackingStrategy) -> Option<ScalarLoop> {
    match strategy {
        TernaryPackingStrategy::BitPacked2Bit => Some(bit_packed),
        TernaryPackingStrategy::Base3Packed => Some(base3),
        TernaryPackingStrategy::ByteAligned => Some(byte_aligned),
        TernaryPackingStrategy::CompressedSparse => Some(compressed_sparse),
        TernaryPackingStrategy::RunLengthEncoded => Some(run_length),
        _ => None,
    }
}

fn bit_packed(payload: &[u8], out: &mut [i8]) {
    for (bytes, out) in payload.chunks(32).zip(out.chunks_mut(128)) {
        for (plane, shift) in out.chunks_mut(bytes.len()).zip([6, 4, 2, 0]) {
            for (out, byte) in plane.iter_mut().zip(bytes) {
                *out = in_register((byte >> shift & 3) as i8 - 1);
            }
        }
    }
}

fn base3(payload: &[u8], out: &mut [i8]) {
    for (bytes, out) in payload.chunks(32).zip(out.chunks_mut(160)) {
        for (plane, power) in out.chunks_mut(bytes.len()).zip([1u8, 3, 9, 27, 81]) {
            for (out, byte) in plane.iter_mut().zip(bytes) {
                *out = in_register(((u16::from(byte.wrapping_mul(power)) * 3) >> 8) as i8 - 1);
            }
        }
    }
}

fn byte_aligned(payload: &[u8], out: &mut [i8]) {
    for (planes, out) in payload.as_chunks().0.iter().zip(out.chunks_mut(64)) {
        let both = u128::from_le_bytes(*planes);
        let (mut nonzero, mut negative) = (both as u64, (both >> 64) as u64);
        for out in out {
            *out = in_register((nonzero & 1) as i8 - 2 * (negative & 1) as i8);
            (nonzero, negative) = (nonzero >> 1, negative >> 1);
        }
    }
}

/// Gap by gap: most weights are zero, and are filled in before.
fn compressed_sparse(payload: &[u8], out: &mut [i8]) {
    let (k, count_bytes) = (usize::from(payload[0] & 15), usize::from(payload[0] >> 4));
    let mut count = [0; 8];
    count[..count_bytes].copy_from_slice(&payload[1..][..count_bytes]);
    let record_bytes = (u64::from_le_bytes(count) as usize * (k + 1)).div_ceil(8);
    let (records, unary) = payload[1 + count_bytes..].split_at(record_bytes);
    for out in &mut *out {
        *out = in_register(0);
    }
    let word = |bytes: &[u8], at: usize| match bytes[at..].first_chunk() {
        Some(word) => u64::from_le_bytes(*word),
        None => bytes[at..].iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte)),
    };
    let (mut at, mut record, mut end_of_gap) = (0, 0, 0);
    for start in (0..unary.len()).step_by(8) {
        let mut ones = word(unary, start);
        while ones != 0 {
            let one = 8 * start + ones.trailing_zeros() as usize;
            let fields = word(records, record / 8) >> (record % 8);
            let low = (fields >> 1) as usize & ((1 << k) - 1);
            at += ((one - end_of_gap) << k) + low;
            out[at] = in_register(1 - 2 * (fields & 1) as i8);
            (at, record, end_of_gap, ones) = (at + 1, record + k + 1, one + 1, ones & (ones - 1));
        }
    }
}

fn run_length(payload: &[u8], out: &mut [i8]) {
    let (mut bytes, mut out) = (payload.iter(), out.iter_mut());
    while let Some(byte) = bytes.next() {
        let more = if byte >> 2 == 63 { bytes.next().map_or(0, |more| usize::from(*more)) } else { 0 };
        for out in out.by_ref().take(usize::from(byte >> 2) + 1 + more) {
            *out = in_register((byte & 3) as i8 - 1);
        }
    }
}

#[inline(always)]
fn in_register(mut weight: i8) -> i8 {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: it has no instruction.
    unsafe {
        asm!("/* {0} */", inout(reg_byte) weight, options(nomem, nostack, preserves_flags))
    };
    #[cfg(target_arch = "aarch64")]
    // SAFETY: it has no instruction.
    unsafe {
        asm!("/* {0:w} */", inout(reg) weight, options(nomem, nostack, preserves_flags))
    };
    weight
}

#[cfg(test)]
mod tests {
    use bitnet_quant::ternary_packing::{HEADER_BYTES, TernaryPackerFactory, TernaryPackingConfig};

    use super::*;
    use crate::ternary_sets::TernarySet;

    #[test]
    fn loops_unpack_what_was_packed() {
        for set in TernarySet::all(10_007) {
            for strategy in TernaryPackingStrategy::ALL {
                let Some(unpack) = scalar_loop(strategy) else { continue };
                let packer = TernaryPackerFactory::create_packer(strategy);
                let packed = packer.pack(&set.weights, &TernaryPackingConfig::default()).unwrap();
                let mut weights = vec![9; set.weights.len()];
                unpack(&packed.as_bytes()[HEADER_BYTES..], &mut weights);
                assert!(weights == set.weights, "{strategy}, {}", set.name);
            }
        }
    }
}
