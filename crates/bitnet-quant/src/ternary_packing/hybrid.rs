//! Block by block, each packed as what makes it smallest: for weights whose parts differ.
//!
//! The payload begins with the weights of a block (u32). Each block is four bytes, its strategy in the low three bits and
//! the length of its payload in the others, then that payload. The last block may be shorter. Little-endian.

use super::{
    MAX_BLOCK_SIZE, TernaryPacker, TernaryPackerFactory, TernaryPackingConfig, TernaryPackingError,
    TernaryPackingStrategy, smallest,
};
use crate::kernels::Kernels;

/// What a block may be packed as. Planes of whole bytes never take fewer bytes than two bits a weight.
const CANDIDATES: [TernaryPackingStrategy; 4] = [
    TernaryPackingStrategy::BitPacked2Bit,
    TernaryPackingStrategy::Base3Packed,
    TernaryPackingStrategy::RunLengthEncoded,
    TernaryPackingStrategy::CompressedSparse,
];
const STRATEGY_BITS: u32 = 3;
const _: () = assert!(TernaryPackingStrategy::ALL.len() <= 1 << STRATEGY_BITS);
// No block takes more than two bits a weight.
const _: () = assert!(MAX_BLOCK_SIZE.div_ceil(4) <= (u32::MAX >> STRATEGY_BITS) as usize);

/// [`TernaryPackingStrategy::Hybrid`].
#[derive(Debug)]
pub(super) struct Hybrid;

impl TernaryPacker for Hybrid {
    fn strategy(&self) -> TernaryPackingStrategy {
        TernaryPackingStrategy::Hybrid
    }

    fn payload_bytes(&self, weights: &[i8], config: &TernaryPackingConfig) -> usize {
        let blocks = weights.chunks(block_size(config));
        let sizes = blocks.map(|block| size_of::<u32>() + smallest(&CANDIDATES, block, config).1);
        size_of::<u32>() + sizes.sum::<usize>()
    }

    fn pack_payload(&self, weights: &[i8], config: &TernaryPackingConfig, out: &mut Vec<u8>) {
        out.extend((block_size(config) as u32).to_le_bytes());
        for block in weights.chunks(block_size(config)) {
            let (packer, _) = smallest(&CANDIDATES, block, config);
            let start = out.len();
            out.extend([0; size_of::<u32>()]);
            packer.pack_payload(block, config, out);
            let payload_bytes = (out.len() - start - size_of::<u32>()) as u32;
            let head = payload_bytes << STRATEGY_BITS | packer.strategy() as u32;
            out[start..][..size_of::<u32>()].copy_from_slice(&head.to_le_bytes());
        }
    }

    fn unpack_payload(
        &self,
        payload: &[u8],
        kernels: &Kernels,
        out: &mut [i8],
    ) -> Result<(), TernaryPackingError> {
        let broken = |rule| TernaryPackingError::Payload { strategy: self.strategy(), rule };
        let too_short = broken("it ends before its blocks");
        let (size, mut rest) = payload.split_first_chunk().ok_or(too_short.clone())?;
        let size = u32::from_le_bytes(*size) as usize;
        if !(1..=MAX_BLOCK_SIZE).contains(&size) {
            return Err(broken("its blocks have a size that none can have"));
        }
        for block in out.chunks_mut(size) {
            let (head, blocks) = rest.split_first_chunk().ok_or(too_short.clone())?;
            let head = u32::from_le_bytes(*head);
            let strategy = TernaryPackingStrategy::from_code(head & ((1 << STRATEGY_BITS) - 1));
            let strategy = strategy
                .filter(|strategy| CANDIDATES.contains(strategy))
                .ok_or(broken("the strategy of a block is unknown"))?;
            let (payload, blocks) =
                blocks.split_at_checked((head >> STRATEGY_BITS) as usize).ok_or(too_short.clone())?;
            TernaryPackerFactory::create_packer(strategy).unpack_payload(payload, kernels, block)?;
            rest = blocks;
        }
        if rest.is_empty() { Ok(()) } else { Err(broken("bytes follow its last block")) }
    }
}

/// A size that cannot be is refused when packing; a choice that comes before it needs any.
fn block_size(config: &TernaryPackingConfig) -> usize {
    config.block_size.clamp(1, MAX_BLOCK_SIZE)
}
