//! Each way to convert a tensor, with the memory and the time that it takes.
//!
//! `cargo run -p bitnet-core --release --example memory_efficient_conversion_demo`

use std::time::Instant;

use bitnet_core::device::get_cpu_device;
use bitnet_core::memory::HybridMemoryPool;
use bitnet_core::memory::conversion::{ConversionConfig, ConversionEngine, MIN_CHUNK_BYTES};
use bitnet_core::memory::tensor::{BitNetDType, BitNetTensor};

fn main() -> bitnet_core::Result<()> {
    let source_pool = HybridMemoryPool::new()?;
    let source = BitNetTensor::ones(&[2048, 2048], BitNetDType::F32, &get_cpu_device(), &source_pool)?;
    println!("a tensor of {:.1} MB in f32", source.size_bytes() as f64 / 1e6);

    for (name, config) in [
        ("default", ConversionConfig::default()),
        ("high performance", ConversionConfig::high_performance()),
        ("low memory", ConversionConfig::low_memory()),
        ("high precision", ConversionConfig::high_precision()),
    ] {
        println!("\n{name}: {} threads, chunks of {} bytes", config.threads, config.chunk_bytes);
        for dtype in
            [BitNetDType::F16, BitNetDType::BF16, BitNetDType::I8, BitNetDType::I4, BitNetDType::BitNet158]
        {
            let pool = HybridMemoryPool::new()?;
            let engine = ConversionEngine::new(config.clone(), pool.clone())?;
            let start = Instant::now();
            let converted = engine.convert(&source, dtype)?;
            let seconds = start.elapsed().as_secs_f64();
            println!(
                "  {:9} {:5.1} times smaller, {:7} bytes beside the result, {:.2} GB/s",
                dtype.name(),
                source.size_bytes() as f64 / converted.size_bytes() as f64,
                pool.get_metrics().peak_allocated - converted.size_bytes(),
                source.size_bytes() as f64 / seconds / 1e9
            );
        }
    }

    let pool = HybridMemoryPool::new()?;
    let engine = ConversionEngine::new(ConversionConfig::default(), pool.clone())?;
    let mut tensor = BitNetTensor::ones(&[512, 512], BitNetDType::F32, &get_cpu_device(), &pool)?;
    let before = tensor.size_bytes();
    engine.in_place_convert(&mut tensor, BitNetDType::F16)?;
    println!("\nin place: {} bytes less to read", before - tensor.size_bytes());
    let streamed = engine.streaming_convert(&tensor, BitNetDType::I8, MIN_CHUNK_BYTES)?;
    let back = engine.pipeline(BitNetDType::F32).then(&engine, BitNetDType::BF16).run(&streamed)?;
    println!("streamed to {}, and by a pipeline to {}", streamed.dtype(), back.dtype());
    let batch = engine.batch_convert(&[tensor, streamed, back], BitNetDType::F32)?;
    let stats = engine.get_stats();
    println!(
        "a batch of {}; {} conversions, {:.0} % of them done, {:.3} ms each",
        batch.len(),
        stats.total_conversions,
        stats.success_rate(),
        stats.average_time_ms()
    );
    Ok(())
}
