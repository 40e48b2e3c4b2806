//! The gaps between weights that are not zero in a Rice code, and their signs: within a few percent of the entropy of
//! independent weights up to about 98 % zeros. It never takes less than a bit for 32 weights.
//!
//! A gap of `g` zeros is `g >> k` in unary, then the low `k` bits of `g`; `k`, 0 to 5, is the one that makes the weights
//! smallest. The parts lie apart, so that each has fields of one kind:
//!
//! - one byte: `k` in the low four bits, in the high four the number of bytes of the count;
//! - the count of weights that are not zero, little-endian;
//! - a record of `k + 1` bits for each of them, lowest bits first: its sign (1 for -1), then the low `k` bits of the gap
//!   before it;
//! - the unary parts: as many bits 0 as each gap says and a bit 1, then the bits 0 of the gap at the end.
//!
//! With k = 0 the unary part has a bit for each weight, a mask, which vectors expand.

use super::bits::{BitWriter, bits_from, nonzero_bits};
use super::{
    MAX_WEIGHTS_PER_BYTE, TernaryPacker, TernaryPackingConfig, TernaryPackingError, TernaryPackingStrategy,
};
use crate::kernels::Kernels;

/// The largest `k`: a bit of the unary part then stands for 32 zeros, a byte for [`MAX_WEIGHTS_PER_BYTE`].
const MAX_K: usize = 5;
const _: () = assert!(8 << MAX_K == MAX_WEIGHTS_PER_BYTE);
const WORD: usize = 64;

/// [`TernaryPackingStrategy::CompressedSparse`].
#[derive(Debug)]
pub(super) struct CompressedSparse;

impl TernaryPacker for CompressedSparse {
    fn strategy(&self) -> TernaryPackingStrategy {
        TernaryPackingStrategy::CompressedSparse
    }

    fn payload_bytes(&self, weights: &[i8], _config: &TernaryPackingConfig) -> usize {
        Plan::of(weights).size_bytes()
    }

    fn pack_payload(&self, weights: &[i8], _config: &TernaryPackingConfig, out: &mut Vec<u8>) {
        let plan = Plan::of(weights);
        out.push((plan.k | plan.count_bytes() << 4) as u8);
        out.extend_from_slice(&plan.count.to_le_bytes()[..plan.count_bytes()]);
        let mut unary = BitWriter::with_capacity(plan.unary_bits);
        let mut records = BitWriter::with_capacity(plan.count * (plan.k + 1));
        let mut end = 0;
        for i in nonzero(weights) {
            let gap = i - end;
            records.push(u64::from(weights[i] < 0) | (gap as u64 & ((1 << plan.k) - 1)) << 1, plan.k + 1);
            unary.push_zeros(gap >> plan.k);
            unary.push(1, 1);
            end = i + 1;
        }
        unary.push_zeros((weights.len() - end) >> plan.k);
        records.finish(out);
        unary.finish(out);
    }

    fn unpack_payload(
        &self,
        payload: &[u8],
        kernels: &Kernels,
        out: &mut [i8],
    ) -> Result<(), TernaryPackingError> {
        let broken = |rule| TernaryPackingError::Payload { strategy: self.strategy(), rule };
        let too_short = broken("it ends before its fields");
        let (first, rest) = payload.split_first().ok_or(too_short.clone())?;
        let (k, count_bytes) = (usize::from(first & 15), usize::from(first >> 4));
        let (count_field, rest) = rest.split_at_checked(count_bytes).ok_or(too_short.clone())?;
        let mut count = [0; size_of::<u64>()];
        count.get_mut(..count_bytes).ok_or(broken("its count is too long"))?.copy_from_slice(count_field);
        let count = usize::try_from(u64::from_le_bytes(count)).unwrap_or(usize::MAX);
        if k > MAX_K || count > out.len() {
            return Err(broken("its parameter or its count is too large"));
        }
        // Weights lie in memory, so that six bits for each cannot overflow.
        let (records, unary) = rest.split_at_checked((count * (k + 1)).div_ceil(8)).ok_or(too_short)?;
        let unary_bits = match k {
            0 => {
                if unary.len() == out.len().div_ceil(8) {
                    kernels.unpack_sparse(unary, records, out);
                }
                let words = unary.chunks(8).map(|word| bits_from(word, 0));
                let set = words.clone().map(|word| word.count_ones() as usize).sum::<usize>();
                let padding = bits_from(unary, out.len()) != 0;
                (set == count && !padding).then_some(out.len())
            }
            _ => unpack_gaps(k, count, records, unary, out),
        };
        match unary_bits {
            Some(bits) if unary.len() == bits.div_ceil(8) => Ok(()),
            _ => Err(broken("its gaps do not add up")),
        }
    }
}

/// Fills `out` and returns how many bits of `unary` that took, if there are `count` gaps that fit.
fn unpack_gaps(k: usize, count: usize, records: &[u8], unary: &[u8], out: &mut [i8]) -> Option<usize> {
    out.fill(0);
    let low_bits = (1 << k) - 1;
    let (mut i, mut low_sum, mut end, mut bits) = (0, 0, 0, 0);
    for (w, word) in unary.chunks(8).enumerate() {
        let mut word = bits_from(word, 0);
        while word != 0 {
            let bit = w * WORD + word.trailing_zeros() as usize;
            word &= word - 1;
            let record = bits_from(records, i * (k + 1)) as usize;
            low_sum += record >> 1 & low_bits;
            // Before it are `bit - i` zeros of the unary part, what the records add, and i weights.
            let at = ((bit - i) << k) + low_sum + i;
            *out.get_mut(at)? = 1 - 2 * (record & 1) as i8;
            (i, end, bits) = (i + 1, at + 1, bit + 1);
        }
    }
    (i == count).then_some(bits + ((out.len() - end) >> k))
}

/// The parameter of weights, and what follows from it.
struct Plan {
    k: usize,
    count: usize,
    unary_bits: usize,
}

impl Plan {
    fn of(weights: &[i8]) -> Self {
        let masks = weights.chunks(WORD).map(|chunk| nonzero_bits(chunk).count_ones() as usize);
        let count: usize = masks.sum();
        let zeros = weights.len() - count;
        // Each step of k costs a bit for each of `count`, and can save no more than a bit for each zero.
        if zeros <= count {
            return Plan { k: 0, count, unary_bits: weights.len() };
        }
        let (mut sums, mut end) = ([0; MAX_K + 1], 0);
        let mut add = |gap: usize| {
            for (k, sum) in sums.iter_mut().enumerate() {
                *sum += gap >> k;
            }
        };
        for i in nonzero(weights) {
            add(i - end);
            end = i + 1;
        }
        add(weights.len() - end);
        let plans = sums.into_iter().enumerate();
        let plans = plans.map(|(k, sum)| Plan { k, count, unary_bits: count + sum });
        plans.min_by_key(Plan::size_bytes).unwrap_or(Plan { k: 0, count, unary_bits: weights.len() })
    }

    fn count_bytes(&self) -> usize {
        (usize::BITS - self.count.leading_zeros()).div_ceil(8) as usize
    }

    fn size_bytes(&self) -> usize {
        1 + self.count_bytes() + (self.count * (self.k + 1)).div_ceil(8) + self.unary_bits.div_ceil(8)
    }
}

/// The indices of the weights that are not zero.
fn nonzero(weights: &[i8]) -> impl Iterator<Item = usize> {
    weights.chunks(WORD).enumerate().flat_map(|(w, chunk)| {
        let mut bits = nonzero_bits(chunk);
        std::iter::from_fn(move || {
            let bit = (bits != 0).then(|| bits.trailing_zeros() as usize)?;
            bits &= bits - 1;
            Some(w * WORD + bit)
        })
    })
}
