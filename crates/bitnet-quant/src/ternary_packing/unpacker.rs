//! Unpacking with the vectors that the processor has.

use super::{PackedTernaryView, PackedTernaryWeights, TernaryPackerFactory, TernaryPackingError};
use crate::kernels::{Isa, Kernels};

/// Unpacks with one table of kernels.
#[derive(Debug, Clone, Copy)]
pub struct SimdUnpacker {
    kernels: &'static Kernels,
}

/// What an unpacker uses, and what else this processor could.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SimdCapabilities {
    /// The instruction set in use.
    pub isa: Isa,
    /// The table of kernels in use.
    pub kernels: &'static str,
    /// The tables that this processor can run.
    pub available: Vec<&'static str>,
}

impl Default for SimdUnpacker {
    fn default() -> Self {
        SimdUnpacker::new()
    }
}

impl SimdUnpacker {
    /// With the widest vectors that this processor has.
    pub fn new() -> Self {
        SimdUnpacker::with_kernels(Kernels::best())
    }

    /// With the given kernels.
    pub fn with_kernels(kernels: &'static Kernels) -> Self {
        SimdUnpacker { kernels }
    }

    /// What is used.
    pub fn capabilities(&self) -> SimdCapabilities {
        SimdCapabilities {
            isa: self.kernels.isa(),
            kernels: self.kernels.name(),
            available: Kernels::available().into_iter().map(Kernels::name).collect(),
        }
    }

    /// The weights.
    pub fn unpack(&self, packed: &PackedTernaryWeights) -> Result<Vec<i8>, TernaryPackingError> {
        let view = packed.view();
        let mut weights = Vec::new();
        weights.try_reserve_exact(view.len()).map_err(|_| TernaryPackingError::Memory { len: view.len() })?;
        weights.resize(view.len(), 0);
        self.unpack_into(view, &mut weights)?;
        Ok(weights)
    }

    /// The weights, where the caller wants them. After an error `out` holds anything.
    pub fn unpack_into(
        &self,
        packed: PackedTernaryView<'_>,
        out: &mut [i8],
    ) -> Result<(), TernaryPackingError> {
        if out.len() != packed.len {
            return Err(TernaryPackingError::Length { want: packed.len, got: out.len() });
        }
        let packer = TernaryPackerFactory::create_packer(packed.strategy);
        packer.unpack_payload(packed.payload, self.kernels, out)
    }
}

/// The weights, unpacked with the widest vectors that this processor has.
pub fn simd_unpack_weights(packed: &PackedTernaryWeights) -> Result<Vec<i8>, TernaryPackingError> {
    SimdUnpacker::new().unpack(packed)
}
