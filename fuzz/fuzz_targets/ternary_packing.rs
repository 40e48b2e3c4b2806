//! Any payload is ternary weights or an error, the same with every kernel, and any weights come back from every packing.

#![no_main]

use bitnet_quant::kernels::Kernels;
use bitnet_quant::prelude::*;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(packed) = PackedTernaryWeights::from_bytes(data.to_vec()) {
        let _ = SimdUnpacker::new().unpack(&packed);
    }
    let Some(([strategy, len @ ..], payload)) = data.split_first_chunk::<4>() else { return };
    let [a, b, c] = *len;
    let strategy = TernaryPackingStrategy::ALL[usize::from(*strategy) % TernaryPackingStrategy::ALL.len()];
    let packer = TernaryPackerFactory::create_packer(strategy);
    // A length that a header could have: see PackedTernaryView::parse.
    let len = u32::from_le_bytes([a, b, c, 0]) as usize;
    if len <= packer.max_weights(payload.len()) {
        unpack(packer, payload, len);
    }
    let weights: Vec<i8> = payload.iter().map(|byte| (byte % 3) as i8 - 1).collect();
    let config = TernaryPackingConfig { block_size: len % 1000 + 1 };
    let packed = packer.pack(&weights, &config).unwrap();
    assert_eq!(SimdUnpacker::new().unpack(&packed), Ok(weights));
});

fn unpack(packer: &dyn TernaryPacker, payload: &[u8], len: usize) {
    let unpack = |kernels| {
        let mut out = vec![9; len];
        packer.unpack_payload(payload, kernels, &mut out).map(|()| out)
    };
    let weights = unpack(Kernels::best());
    for kernels in Kernels::available() {
        assert_eq!(weights, unpack(kernels));
    }
    if let Ok(weights) = weights {
        assert!(weights.iter().all(|w| (-1..=1).contains(w)));
    }
}
