//! Packings of ternary weights: a slice of -1, 0 and +1 to bytes that say of themselves what they are, and back.
//!
//! [`crate::packing`] has the formats that model files prescribe, with shapes and scales, and [`crate::layout`] the orders
//! that kernels compute on. The packings here are for weights at rest. Each has a file of its own that knows only its
//! bytes; [`TernaryPackerFactory::auto_select_strategy`] takes the one that makes the given weights smallest.
//!
//! Packed bytes are a header of [`HEADER_BYTES`] and a payload. The header is the magic `TPW` and the version 1, the
//! strategy's code (u32), the number of weights (u64) and the CRC-32 of all other bytes (u32), little-endian.
//!
//! ```
//! use bitnet_quant::prelude::*;
//!
//! let weights = [0, 0, 0, 1, 0, 0, 0, 0, -1, 0, 0].repeat(1000);
//! let config = TernaryPackingConfig::default();
//! let strategy = TernaryPackerFactory::auto_select_strategy(&weights, &config);
//! assert_eq!(strategy, TernaryPackingStrategy::CompressedSparse);
//!
//! let packed = TernaryPackerFactory::create_packer(strategy).pack(&weights, &config)?;
//! assert!(packed.compression_ratio > 8.0);
//! let read_back = PackedTernaryWeights::from_bytes(packed.into_bytes())?;
//! assert_eq!(SimdUnpacker::new().unpack(&read_back)?, weights);
//! # Ok::<(), TernaryPackingError>(())
//! ```

mod base3;
mod bit_packed;
pub(crate) mod bits;
mod byte_aligned;
mod compressed_sparse;
mod hybrid;
mod run_length;
mod uncompressed;
mod unpacker;

use std::fmt;

use crate::kernels::Kernels;

pub use unpacker::{SimdCapabilities, SimdUnpacker, simd_unpack_weights};

/// Bytes before the payload.
pub const HEADER_BYTES: usize = CHECKSUM_AT + 4;
/// The most weights of a block of [`TernaryPackingStrategy::Hybrid`].
pub const MAX_BLOCK_SIZE: usize = 1 << 20;
/// What a byte of any payload can stand for at most, so that few bytes cannot ask for much memory.
pub const MAX_WEIGHTS_PER_BYTE: usize = 256;

const MAGIC: [u8; 3] = *b"TPW";
const VERSION: u8 = 1;
const CHECKSUM_AT: usize = 16;

/// How weights are packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TernaryPackingStrategy {
    /// A byte a weight.
    Uncompressed,
    /// Two bits a weight, in the order that kernels compute on.
    BitPacked2Bit,
    /// Five weights a byte.
    Base3Packed,
    /// A plane of magnitudes and a plane of signs for every 64 weights.
    ByteAligned,
    /// Equal neighbours together.
    RunLengthEncoded,
    /// The gaps between weights that are not zero, and their signs.
    CompressedSparse,
    /// Block by block, each as what makes it smallest.
    Hybrid,
}

impl TernaryPackingStrategy {
    /// Every strategy; the position of each is its code in the header.
    pub const ALL: [TernaryPackingStrategy; 7] = [
        TernaryPackingStrategy::Uncompressed,
        TernaryPackingStrategy::BitPacked2Bit,
        TernaryPackingStrategy::Base3Packed,
        TernaryPackingStrategy::ByteAligned,
        TernaryPackingStrategy::RunLengthEncoded,
        TernaryPackingStrategy::CompressedSparse,
        TernaryPackingStrategy::Hybrid,
    ];

    fn from_code(code: u32) -> Option<Self> {
        Self::ALL.get(usize::try_from(code).ok()?).copied()
    }
}

impl fmt::Display for TernaryPackingStrategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            TernaryPackingStrategy::Uncompressed => "Uncompressed",
            TernaryPackingStrategy::BitPacked2Bit => "BitPacked2Bit",
            TernaryPackingStrategy::Base3Packed => "Base3Packed",
            TernaryPackingStrategy::ByteAligned => "ByteAligned",
            TernaryPackingStrategy::RunLengthEncoded => "RunLengthEncoded",
            TernaryPackingStrategy::CompressedSparse => "CompressedSparse",
            TernaryPackingStrategy::Hybrid => "Hybrid",
        })
    }
}

/// What packing can be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TernaryPackingConfig {
    /// Weights of a block of [`TernaryPackingStrategy::Hybrid`], 1 to [`MAX_BLOCK_SIZE`]. A block costs four bytes; a
    /// longer one may span parts that deserve different packings.
    pub block_size: usize,
}

impl Default for TernaryPackingConfig {
    fn default() -> Self {
        TernaryPackingConfig { block_size: 4096 }
    }
}

/// Why weights cannot be packed, or bytes cannot be unpacked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TernaryPackingError {
    /// A weight is none of -1, 0 and +1.
    #[error("the weight at {index} is {value}, which is none of -1, 0 and +1; quantise the weights first")]
    NotTernary {
        /// Its index.
        index: usize,
        /// What it is.
        value: i8,
    },
    /// Blocks have a size that they cannot have.
    #[error("blocks of {got} weights; a block must be of 1 to {MAX_BLOCK_SIZE}")]
    BlockSize {
        /// The size asked for.
        got: usize,
    },
    /// The header breaks a rule.
    #[error("these are no packed weights: {rule}; give the bytes as they were packed")]
    Header {
        /// The rule.
        rule: &'static str,
    },
    /// The payload breaks a rule of its strategy.
    #[error("packed weights ({strategy}) are damaged: {rule}; give the bytes as they were packed")]
    Payload {
        /// How they are packed.
        strategy: TernaryPackingStrategy,
        /// The rule.
        rule: &'static str,
    },
    /// The room for weights is not as long as what is packed.
    #[error("there is room for {got} weights where {want} are packed; give room for as many")]
    Length {
        /// Weights that are packed.
        want: usize,
        /// Weights that there is room for.
        got: usize,
    },
    /// There is no memory for so many weights.
    #[error("there is no memory for {len} weights; unpack them where there is more")]
    Memory {
        /// Weights that are packed.
        len: usize,
    },
}

/// A packing. The methods that have no body are about payloads and trust that their weights are ternary; what everybody
/// calls is [`pack`](TernaryPacker::pack) and [`is_suitable`](TernaryPacker::is_suitable).
pub trait TernaryPacker: fmt::Debug + Sync {
    /// Which one it is.
    fn strategy(&self) -> TernaryPackingStrategy;

    /// How many bytes [`pack_payload`](TernaryPacker::pack_payload) appends, computed without packing.
    fn payload_bytes(&self, weights: &[i8], config: &TernaryPackingConfig) -> usize;

    /// Appends the weights to `out`.
    fn pack_payload(&self, weights: &[i8], config: &TernaryPackingConfig, out: &mut Vec<u8>);

    /// The most weights that so many bytes can hold.
    fn max_weights(&self, payload_bytes: usize) -> usize {
        payload_bytes.saturating_mul(MAX_WEIGHTS_PER_BYTE)
    }

    /// Fills `out` with the weights that the whole of `payload` holds; an error where it holds more or fewer.
    fn unpack_payload(
        &self,
        payload: &[u8],
        kernels: &Kernels,
        out: &mut [i8],
    ) -> Result<(), TernaryPackingError>;

    /// Packs weights.
    fn pack(
        &self,
        weights: &[i8],
        config: &TernaryPackingConfig,
    ) -> Result<PackedTernaryWeights, TernaryPackingError> {
        check_input(weights, config)?;
        let mut bytes = Vec::with_capacity(HEADER_BYTES + self.payload_bytes(weights, config));
        bytes.extend(MAGIC);
        bytes.push(VERSION);
        bytes.extend((self.strategy() as u32).to_le_bytes());
        bytes.extend((weights.len() as u64).to_le_bytes());
        bytes.extend([0; HEADER_BYTES - CHECKSUM_AT]);
        self.pack_payload(weights, config, &mut bytes);
        let sum = checksum(&bytes);
        bytes[CHECKSUM_AT..HEADER_BYTES].copy_from_slice(&sum.to_le_bytes());
        Ok(PackedTernaryWeights::new(self.strategy(), weights.len(), bytes))
    }

    /// Whether the weights are ternary and this packing makes them no larger than two bits a weight would, in whole blocks
    /// of 64: how many weights the last block has is no matter of what they are.
    fn is_suitable(&self, weights: &[i8], config: &TernaryPackingConfig) -> bool {
        check_input(weights, config).is_ok()
            && self.payload_bytes(weights, config) <= byte_aligned::size_bytes(weights.len())
    }
}

/// Where packers come from.
#[derive(Debug, Clone, Copy)]
pub struct TernaryPackerFactory;

impl TernaryPackerFactory {
    /// What automatic choice compares, in the order in which one is preferred where sizes are equal. ByteAligned is never
    /// smaller than two bits a weight are.
    const CANDIDATES: [TernaryPackingStrategy; 5] = [
        TernaryPackingStrategy::BitPacked2Bit,
        TernaryPackingStrategy::Base3Packed,
        TernaryPackingStrategy::RunLengthEncoded,
        TernaryPackingStrategy::CompressedSparse,
        TernaryPackingStrategy::Hybrid,
    ];

    /// The packer for a strategy.
    pub fn create_packer(strategy: TernaryPackingStrategy) -> &'static dyn TernaryPacker {
        match strategy {
            TernaryPackingStrategy::Uncompressed => &uncompressed::Uncompressed,
            TernaryPackingStrategy::BitPacked2Bit => &bit_packed::BitPacked2Bit,
            TernaryPackingStrategy::Base3Packed => &base3::Base3Packed,
            TernaryPackingStrategy::ByteAligned => &byte_aligned::ByteAligned,
            TernaryPackingStrategy::RunLengthEncoded => &run_length::RunLengthEncoded,
            TernaryPackingStrategy::CompressedSparse => &compressed_sparse::CompressedSparse,
            TernaryPackingStrategy::Hybrid => &hybrid::Hybrid,
        }
    }

    /// The strategy that takes the fewest bytes for these weights, by the size that each would have. Weights that are
    /// not ternary get an answer, too; packing refuses them.
    pub fn auto_select_strategy(weights: &[i8], config: &TernaryPackingConfig) -> TernaryPackingStrategy {
        Self::smallest(weights, config).0.strategy()
    }

    /// The packer of that strategy, and the bytes of its payload.
    pub(crate) fn smallest(
        weights: &[i8],
        config: &TernaryPackingConfig,
    ) -> (&'static dyn TernaryPacker, usize) {
        smallest(&Self::CANDIDATES, weights, config)
    }
}

/// The candidate that takes the fewest bytes, and of equal ones the first, with these bytes.
fn smallest(
    candidates: &[TernaryPackingStrategy],
    weights: &[i8],
    config: &TernaryPackingConfig,
) -> (&'static dyn TernaryPacker, usize) {
    let packers = candidates.iter().map(|strategy| TernaryPackerFactory::create_packer(*strategy));
    let sizes = packers.map(|packer| (packer, packer.payload_bytes(weights, config)));
    sizes.min_by_key(|(_, bytes)| *bytes).unwrap_or((&uncompressed::Uncompressed, weights.len()))
}

/// Packed weights that own their bytes.
#[derive(Debug, Clone, PartialEq)]
pub struct PackedTernaryWeights {
    /// Weights a byte, the header counted: how many times smaller than int8.
    pub compression_ratio: f32,
    /// Bytes, the header counted.
    pub memory_footprint: usize,
    strategy: TernaryPackingStrategy,
    len: usize,
    bytes: Vec<u8>,
}

impl PackedTernaryWeights {
    fn new(strategy: TernaryPackingStrategy, len: usize, bytes: Vec<u8>) -> Self {
        let memory_footprint = bytes.len();
        let compression_ratio = len as f32 / memory_footprint as f32;
        PackedTernaryWeights { compression_ratio, memory_footprint, strategy, len, bytes }
    }

    /// Takes bytes as [`as_bytes`](Self::as_bytes) gave them, and checks their header and checksum.
    pub fn from_bytes(bytes: Vec<u8>) -> Result<Self, TernaryPackingError> {
        let PackedTernaryView { strategy, len, .. } = PackedTernaryView::parse(&bytes)?;
        Ok(Self::new(strategy, len, bytes))
    }

    /// Header and payload: all that [`from_bytes`](Self::from_bytes) needs.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The same without a copy.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// These weights, borrowed.
    pub fn view(&self) -> PackedTernaryView<'_> {
        PackedTernaryView { strategy: self.strategy, len: self.len, payload: &self.bytes[HEADER_BYTES..] }
    }
}

/// Packed weights in bytes of somebody else, such as a mapped file.
#[derive(Debug, Clone, Copy)]
pub struct PackedTernaryView<'a> {
    strategy: TernaryPackingStrategy,
    len: usize,
    payload: &'a [u8],
}

impl<'a> PackedTernaryView<'a> {
    /// Reads the header and checks it against all bytes. What it says of the number of weights is no more than the
    /// payload could hold, which is at most [`MAX_WEIGHTS_PER_BYTE`].
    pub fn parse(bytes: &'a [u8]) -> Result<Self, TernaryPackingError> {
        let broken = |rule| TernaryPackingError::Header { rule };
        let (header, payload) =
            bytes.split_at_checked(HEADER_BYTES).ok_or(broken("they are fewer than a header has"))?;
        let [begin, code, len_low, len_high, sum] = header.as_chunks::<4>().0 else {
            unreachable!("a header is five times four bytes")
        };
        let [magic @ .., version] = begin;
        if *magic != MAGIC {
            return Err(broken("they do not begin with TPW"));
        }
        if *version != VERSION {
            return Err(broken("they are of another version"));
        }
        let strategy = TernaryPackingStrategy::from_code(u32::from_le_bytes(*code))
            .ok_or(broken("their strategy is unknown"))?;
        let [low, high] = [len_low, len_high].map(|half| u64::from(u32::from_le_bytes(*half)));
        let most = TernaryPackerFactory::create_packer(strategy).max_weights(payload.len());
        let len = usize::try_from(high << 32 | low).ok().filter(|len| *len <= most);
        let len = len.ok_or(broken("they are too short for their number of weights"))?;
        if checksum(bytes) != u32::from_le_bytes(*sum) {
            return Err(broken("their checksum differs"));
        }
        Ok(PackedTernaryView { strategy, len, payload })
    }

    /// How they are packed.
    pub fn strategy(self) -> TernaryPackingStrategy {
        self.strategy
    }

    /// How many weights they are.
    pub fn len(self) -> usize {
        self.len
    }

    /// Whether they are none.
    pub fn is_empty(self) -> bool {
        self.len == 0
    }
}

/// CRC-32 of everything but the place where it stands.
fn checksum(bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&bytes[..CHECKSUM_AT]);
    hasher.update(&bytes[HEADER_BYTES..]);
    hasher.finalize()
}

fn check_input(weights: &[i8], config: &TernaryPackingConfig) -> Result<(), TernaryPackingError> {
    if let Some(index) = first_not_ternary(weights) {
        return Err(TernaryPackingError::NotTernary { index, value: weights[index] });
    }
    let got = config.block_size;
    if (1..=MAX_BLOCK_SIZE).contains(&got) { Ok(()) } else { Err(TernaryPackingError::BlockSize { got }) }
}

/// One pass that vectorises finds whether there is such a weight; only then a second one finds which.
fn first_not_ternary(weights: &[i8]) -> Option<usize> {
    const CHUNK: usize = 4096;
    let code = |w: &i8| w.wrapping_add(1) as u8;
    let suspicious = |chunk: &[i8]| chunk.iter().fold(0, |max, w| code(w).max(max)) > 2;
    let start = weights.chunks(CHUNK).position(suspicious)? * CHUNK;
    weights[start..].iter().position(|w| code(w) > 2).map(|i| start + i)
}

/// A payload that is not as long as its weights ask for.
fn check_payload(
    strategy: TernaryPackingStrategy,
    payload: &[u8],
    want: usize,
) -> Result<(), TernaryPackingError> {
    let rule = "it is not as long as its weights ask for";
    if payload.len() == want { Ok(()) } else { Err(TernaryPackingError::Payload { strategy, rule }) }
}

#[cfg(test)]
mod tests;
