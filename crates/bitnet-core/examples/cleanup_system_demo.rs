//! Gives memory back: each strategy after a burst, and a pool that cleans up by itself.
//!
//! `cargo run -p bitnet-core --example cleanup_system_demo`

use std::time::Duration;

use bitnet_core::device::auto_select_device;
use bitnet_core::memory::{CleanupConfig, CleanupStrategy, HybridMemoryPool, MemoryPoolConfig};

const MIB: usize = 1 << 20;

/// Writes 40 MiB in blocks of all kinds, and frees them.
fn burst(pool: &HybridMemoryPool) -> bitnet_core::Result<()> {
    let device = auto_select_device();
    let sizes = [512, 40_000, 900_000, 3 * MIB];
    let blocks = sizes.iter().flat_map(|size| std::iter::repeat_n(*size, 10 * MIB / size));
    let mut held = blocks.map(|size| pool.allocate(size, 64, &device)).collect::<Result<Vec<_>, _>>()?;
    held.iter_mut().for_each(|handle| handle.as_mut_slice().fill(1));
    Ok(())
}

fn main() -> bitnet_core::Result<()> {
    let pool = HybridMemoryPool::new()?;
    for strategy in [
        CleanupStrategy::Idle,
        CleanupStrategy::Pressure,
        CleanupStrategy::Periodic,
        CleanupStrategy::Generational,
        CleanupStrategy::Compaction,
    ] {
        burst(&pool)?;
        println!("{strategy:?}: {} bytes are kept for later", pool.get_metrics().retained);
        // What goes by age needs several looks.
        for _ in 0..4 {
            let report = pool.cleanup_device(&auto_select_device(), strategy)?;
            println!(
                "  {:>9} bytes discarded, {:>9} unmapped in {:.1?}; {} kept",
                report.bytes_discarded,
                report.bytes_unmapped,
                report.duration,
                pool.get_metrics().retained
            );
        }
    }

    let pool = HybridMemoryPool::with_config(MemoryPoolConfig {
        enable_automatic_cleanup: true,
        cleanup_config: Some(CleanupConfig {
            idle_cleanup_interval: Duration::from_millis(50),
            ..Default::default()
        }),
        ..Default::default()
    })?;
    burst(&pool)?;
    println!(
        "by itself: {} bytes are kept, {} mapped",
        pool.get_metrics().retained,
        pool.get_metrics().mapped
    );
    while pool.get_metrics().mapped > 0 {
        std::thread::sleep(Duration::from_millis(10));
    }
    println!(
        "a little later: {} bytes are kept, {} mapped",
        pool.get_metrics().retained,
        pool.get_metrics().mapped
    );
    Ok(())
}
