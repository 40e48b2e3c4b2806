//! Runs of equal weights, a byte or two each.
//!
//! The low two bits of a byte are the code weight + 1. The other six are the length less one, up to 63 weights; if all
//! six are set, the length is 64 and what the next byte says, up to 319 weights. Longer runs are several.

use super::bits::{negative_bits, nonzero_bits};
use super::{TernaryPacker, TernaryPackingConfig, TernaryPackingError, TernaryPackingStrategy};
use crate::kernels::Kernels;

/// The longest run in one byte.
const SHORT_RUN: usize = 63;
/// The longest run in two bytes.
const LONG_RUN: usize = SHORT_RUN + 1 + u8::MAX as usize;
/// Weights that are looked at together.
const WORD: usize = 64;

/// [`TernaryPackingStrategy::RunLengthEncoded`].
#[derive(Debug)]
pub(super) struct RunLengthEncoded;

impl TernaryPacker for RunLengthEncoded {
    fn strategy(&self) -> TernaryPackingStrategy {
        TernaryPackingStrategy::RunLengthEncoded
    }

    fn payload_bytes(&self, weights: &[i8], _config: &TernaryPackingConfig) -> usize {
        let (mut bytes, mut start) = (0, 0);
        for (at, changes) in changes(weights) {
            if changes != 0 {
                bytes += run_bytes(at + changes.trailing_zeros() as usize - start);
                // Runs between two changes in a word are short.
                bytes += changes.count_ones() as usize - 1;
                start = at + changes.ilog2() as usize;
            }
        }
        bytes + run_bytes(weights.len() - start)
    }

    fn pack_payload(&self, weights: &[i8], _config: &TernaryPackingConfig, out: &mut Vec<u8>) {
        let mut start = 0;
        for (at, mut changes) in changes(weights) {
            while changes != 0 {
                let end = at + changes.trailing_zeros() as usize;
                pack_run(weights[start], end - start, out);
                start = end;
                changes &= changes - 1;
            }
        }
        if let Some(last) = weights.last() {
            pack_run(*last, weights.len() - start, out);
        }
    }

    fn unpack_payload(
        &self,
        payload: &[u8],
        _kernels: &Kernels,
        out: &mut [i8],
    ) -> Result<(), TernaryPackingError> {
        let broken = |rule| TernaryPackingError::Payload { strategy: self.strategy(), rule };
        let (mut bytes, mut at) = (payload.iter(), 0);
        while let Some(byte) = bytes.next() {
            let (weight, mut len) = ((byte & 3) as i8 - 1, usize::from(byte >> 2) + 1);
            if weight > 1 {
                return Err(broken("a run is of none of -1, 0 and +1"));
            }
            if len > SHORT_RUN {
                len += usize::from(*bytes.next().ok_or(broken("a run ends before its length"))?);
            }
            let rest = out.get_mut(at..).unwrap_or_default();
            // Most runs are short: a fixed number of stores, of which the next run overwrites what is too much.
            match rest.first_chunk_mut::<WORD>() {
                Some(word) if len <= WORD => *word = [weight; WORD],
                _ => rest.get_mut(..len).ok_or(broken("its runs are too long"))?.fill(weight),
            }
            at += len;
        }
        if at == out.len() { Ok(()) } else { Err(broken("its runs are too short")) }
    }
}

fn run_bytes(len: usize) -> usize {
    let rest = len % LONG_RUN;
    len / LONG_RUN * 2 + usize::from(rest > 0) + usize::from(rest > SHORT_RUN)
}

fn pack_run(weight: i8, mut len: usize, out: &mut Vec<u8>) {
    let code = (weight + 1) as u8;
    while len > 0 {
        let run = len.min(LONG_RUN);
        if run > SHORT_RUN {
            out.extend([code | (SHORT_RUN as u8) << 2, (run - SHORT_RUN - 1) as u8]);
        } else {
            out.push(code | ((run - 1) as u8) << 2);
        }
        len -= run;
    }
}

/// For each [`WORD`] weights, where they begin and which of them differ from the weight before. The first does not.
fn changes(weights: &[i8]) -> impl Iterator<Item = (usize, u64)> {
    let first = weights.first().copied().unwrap_or_default();
    let mut before = (u64::from(first != 0), u64::from(first < 0));
    weights.chunks(WORD).enumerate().map(move |(w, chunk)| {
        let (nonzero, negative) = (nonzero_bits(chunk), negative_bits(chunk));
        let differ = (nonzero ^ (nonzero << 1 | before.0)) | (negative ^ (negative << 1 | before.1));
        before = (nonzero >> (WORD - 1), negative >> (WORD - 1));
        // Bits behind the last weight would be those of a zero.
        (w * WORD, differ & (u64::MAX >> (WORD - chunk.len())))
    })
}
