//! The sample of the seed document that packs and unpacks, as it stands there; what it prints is asserted.

use std::error::Error;

use bitnet_quant::prelude::*;

#[test]
fn simd_weight_unpacking_and_quantization() -> Result<(), Box<dyn Error>> {
    let simd_unpacker = SimdUnpacker::new();
    let capabilities = simd_unpacker.capabilities();
    println!("SIMD capabilities: {capabilities:?}");
    assert!(
        capabilities.available.contains(&"scalar") && capabilities.available.contains(&capabilities.kernels)
    );

    let weights: Vec<i8> = (0..10000)
        .map(|i| match i % 3 {
            0 => -1,
            1 => 0,
            _ => 1,
        })
        .collect();

    let config = TernaryPackingConfig::default();
    let optimal_strategy = TernaryPackerFactory::auto_select_strategy(&weights, &config);
    println!("Optimal strategy: {optimal_strategy:?}");
    // A third of zeros leaves nothing to gain over five weights a byte.
    assert_eq!(optimal_strategy, TernaryPackingStrategy::Base3Packed);

    let packer = TernaryPackerFactory::create_packer(optimal_strategy);
    let packed = packer.pack(&weights, &config)?;
    println!("Compression ratio: {:.2}x", packed.compression_ratio);
    println!("Memory footprint: {} bytes", packed.memory_footprint);
    assert_eq!(packed.memory_footprint, packed.as_bytes().len());
    assert_eq!(format!("{:.2}", packed.compression_ratio), "4.95");

    let unpacked = simd_unpacker.unpack(&packed)?;
    assert_eq!(weights, unpacked);

    let strategies = [
        TernaryPackingStrategy::BitPacked2Bit,
        TernaryPackingStrategy::Base3Packed,
        TernaryPackingStrategy::CompressedSparse,
    ];
    let mut suitable = Vec::new();
    for strategy in &strategies {
        let packer = TernaryPackerFactory::create_packer(*strategy);
        if packer.is_suitable(&weights, &config) {
            let start = std::time::Instant::now();
            let packed = packer.pack(&weights, &config)?;
            let pack_time = start.elapsed();

            let start = std::time::Instant::now();
            let unpacked = simd_unpacker.unpack(&packed)?;
            let unpack_time = start.elapsed();

            println!(
                "{:?}: {:.2}x compression, pack: {:?}, unpack: {:?}",
                strategy, packed.compression_ratio, pack_time, unpack_time
            );
            assert_eq!(unpacked, weights);
            suitable.push(format!("{strategy:?} {:.2}", packed.compression_ratio));
        }
    }
    assert_eq!(suitable, ["BitPacked2Bit 3.97", "Base3Packed 4.95", "CompressedSparse 4.75"]);

    let quick_unpacked = simd_unpack_weights(&packed)?;
    assert_eq!(weights, quick_unpacked);
    Ok(())
}
