//! What several themes of tests need: models made up on the spot, sessions on them, and the processor's float modes.

pub(crate) mod float_mode;
pub(crate) mod random_model;

use std::path::Path;

use bitnet_core::BitNetDType;
use bitnet_core::mixed_precision::{ComponentType, MixedPrecisionConfig};
use bitnet_inference::{Model, ModelOptions, Session, SessionOptions};
use bitnet_quant::kernels::{Isa, Kernels};

/// The precisions that a cache can have.
pub(crate) const KV_DTYPES: [BitNetDType; 5] =
    [BitNetDType::F32, BitNetDType::F16, BitNetDType::BF16, BitNetDType::I8, BitNetDType::I4];
/// The numbers of threads that results must not depend on.
pub(crate) const THREADS: [usize; 3] = [1, 2, 3];

/// Every instruction set that this processor can run, the oracle first.
pub(crate) fn isas() -> Vec<Isa> {
    let mut isas: Vec<Isa> = Kernels::available().iter().map(|k| k.isa()).collect();
    isas.dedup();
    assert_eq!(isas[0], Isa::Scalar);
    isas
}

pub(crate) fn options(isa: Isa, n_threads: usize) -> ModelOptions {
    ModelOptions { isa: Some(isa), n_threads: Some(n_threads), ..Default::default() }
}

pub(crate) fn open(path: &Path, isa: Isa, n_threads: usize) -> Model {
    Model::open_with(path, &options(isa, n_threads), &mut |_| ()).unwrap()
}

pub(crate) fn session(model: &Model, kv: BitNetDType, chunk: usize) -> Session {
    let precision = MixedPrecisionConfig::default().with_component(ComponentType::KvCache, kv);
    model.session(SessionOptions { chunk: Some(chunk), precision, ..Default::default() }).unwrap()
}

pub(crate) fn bits(logits: &[f32]) -> Vec<u32> {
    logits.iter().map(|l| l.to_bits()).collect()
}
