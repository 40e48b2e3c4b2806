//! Ternary mathematics, packings and CPU kernels: the ground that the BitNet engine stands on.
//!
//! A BitNet b1.58 layer multiplies ternary weights with 8-bit activations, exactly, in integers; everything that
//! rounds is a norm, a softmax, a rotation, a residual or a scale, and each of those has one written definition here
//! ([`float`], [`mod@reduce`]) that every instruction set repeats bit for bit ([`kernels`]).
//!
//! ```
//! use bitnet_quant::kernels::Kernels;
//! use bitnet_quant::layout;
//!
//! let mut row = vec![0; layout::row_bytes(128)];
//! layout::pack_row(&[2; 128], &mut row); // all weights +1
//! let mut out = [0];
//! Kernels::best().gemm_i2_i8(&row, row.len(), &[3; 128], 1, &mut out);
//! assert_eq!(out[0] - 3 * 128, 3 * 128); // codes are weight + 1
//! ```

#[cfg(target_endian = "big")]
compile_error!(
    "weights are read in place, as the little-endian numbers that files hold; this processor is big-endian"
);

pub mod attention;
pub mod bit_linear;
pub mod dense;
pub mod entropy;
pub mod float;
pub mod fpenv;
pub mod head;
pub mod kernels;
pub mod layout;
pub mod limits;
pub mod linear;
pub mod packing;
pub mod quantize;
pub mod reduce;
pub mod rows;
pub mod ternary;
pub mod ternary_packing;
pub mod threads;

/// What packing and unpacking of ternary weights needs, in one import.
pub mod prelude {
    pub use crate::ternary_packing::{
        PackedTernaryView, PackedTernaryWeights, SimdCapabilities, SimdUnpacker, TernaryPacker,
        TernaryPackerFactory, TernaryPackingConfig, TernaryPackingError, TernaryPackingStrategy,
        simd_unpack_weights,
    };
}
