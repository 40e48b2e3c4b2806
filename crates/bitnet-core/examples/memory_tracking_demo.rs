//! Watches a pool: pressure, a leak and the line it is from, the timeline, patterns, and who asked for how much.
//!
//! `cargo run -p bitnet-core --example memory_tracking_demo`

use std::time::Duration;

use bitnet_core::device::auto_select_device;
use bitnet_core::memory::{HybridMemoryPool, MemoryPoolConfig, TrackingConfig, TrackingLevel};

const MIB: usize = 1 << 20;

fn main() -> bitnet_core::Result<()> {
    let pool = HybridMemoryPool::with_config(MemoryPoolConfig {
        max_small_pool_size: 8 * MIB,
        max_large_pool_size: 56 * MIB,
        enable_advanced_tracking: true,
        tracking_config: Some(TrackingConfig {
            level: TrackingLevel::Detailed,
            leak_detection_interval: Duration::ZERO,
            ..Default::default()
        }),
        ..Default::default()
    })?;
    pool.register_pressure_callback(Box::new(|level| println!("pressure is {level:?} now")));
    let device = auto_select_device();

    // Layers come and go, one of them stays.
    for layer in 0..300 {
        let weights = pool.allocate(48 * 1024, 64, &device)?;
        let activations = pool.allocate(2 * MIB, 64, &device)?;
        if layer == 150 {
            std::mem::forget(weights);
        }
        drop(activations);
    }
    let large = pool.allocate(54 * MIB, 64, &device)?;
    if let Err(refused) = pool.allocate(4 * MIB, 64, &device) {
        println!("beyond the cap: {refused}");
    }
    drop(large);

    if let Some(metrics) = pool.get_detailed_metrics() {
        println!(
            "\npressure {:?}, fragmentation {:.1} %",
            metrics.pressure_level,
            100.0 * metrics.fragmentation_ratio
        );
        println!("tracking itself takes {} bytes", metrics.tracking_bytes);
        for size in metrics.by_size {
            println!(
                "  up to {:>9} bytes: {:>4} allocated, {:>4} freed",
                size.up_to, size.allocated, size.freed
            );
        }
    }
    if let Some(report) = pool.leak_report() {
        print!("\nout at the end: {report}");
    }
    println!("\ntimeline:");
    for point in pool.timeline().unwrap_or_default() {
        println!(
            "  after {:>8.1?} {:>9} bytes, fragmentation {:.2}",
            point.at, point.allocated, point.fragmentation
        );
    }
    println!("\npatterns:");
    for pattern in pool.patterns().unwrap_or_default() {
        println!(
            "  {:?} ({:.0} % sure): {}; {}",
            pattern.kind,
            100.0 * pattern.confidence,
            pattern.finding,
            pattern.suggestion
        );
    }
    println!("\nprofile:");
    for origin in pool.profile().unwrap_or_default() {
        println!(
            "  {} {} allocations, {} bytes, {} of them out",
            origin.origin, origin.allocations, origin.bytes, origin.live_bytes
        );
    }
    Ok(())
}
