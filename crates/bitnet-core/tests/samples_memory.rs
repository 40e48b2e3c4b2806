//! The seed document's samples of the memory pool, under its names.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bitnet_core::Device;
use bitnet_core::device::auto_select_device;
use bitnet_core::memory::{
    CleanupConfig, HybridMemoryPool, MemoryPoolConfig, MemoryPressureLevel, TrackingConfig, TrackingLevel,
};

type SampleResult = Result<(), Box<dyn std::error::Error>>;

#[test]
fn basic_memory_pool_usage() -> SampleResult {
    let pool = HybridMemoryPool::new()?;
    let device = auto_select_device();
    let handle = pool.allocate(1024 * 1024, 64, &device)?;
    let metrics = pool.get_metrics();
    assert_eq!((metrics.total_allocated, metrics.peak_allocated), (1 << 20, 1 << 20));
    pool.deallocate(handle)?;
    assert_eq!(pool.get_metrics().total_allocated, 0);
    Ok(())
}

#[test]
#[expect(clippy::field_reassign_with_default, reason = "the sample has it so")]
fn advanced_memory_tracking() -> SampleResult {
    let mut config = MemoryPoolConfig::default();
    config.enable_advanced_tracking = true;
    config.tracking_config = Some(TrackingConfig {
        level: TrackingLevel::Detailed,
        enable_pressure_detection: true,
        enable_leak_detection: true,
        ..Default::default()
    });
    // Little enough to run short of.
    (config.initial_small_pool_size, config.initial_large_pool_size) = (0, 0);
    (config.max_small_pool_size, config.max_large_pool_size) = (1 << 20, 16 << 20);
    let pool = HybridMemoryPool::with_config(config)?;
    let heard = Arc::new(Mutex::new(Vec::new()));
    let said = Arc::clone(&heard);
    pool.register_pressure_callback(Box::new(move |level| match level {
        MemoryPressureLevel::Critical => said.lock().unwrap().push("memory is about to run out"),
        MemoryPressureLevel::High => said.lock().unwrap().push("memory is getting short"),
        _ => {}
    }));
    let detailed = pool.get_detailed_metrics().ok_or("the pool tracks")?;
    assert_eq!((detailed.pressure_level, detailed.fragmentation_ratio), (MemoryPressureLevel::None, 0.0));
    let most = pool.allocate(16 << 20, 64, &Device::Cpu)?;
    assert_eq!(*heard.lock().unwrap(), ["memory is getting short"]);
    drop(most);
    Ok(())
}

#[test]
fn memory_pool_configuration() -> SampleResult {
    let config = MemoryPoolConfig {
        initial_small_pool_size: 64 * 1024 * 1024,
        max_small_pool_size: 512 * 1024 * 1024,
        initial_large_pool_size: 128 * 1024 * 1024,
        max_large_pool_size: 2 * 1024 * 1024 * 1024,
        enable_advanced_tracking: true,
        tracking_config: Some(TrackingConfig {
            level: TrackingLevel::Standard,
            enable_pressure_detection: true,
            enable_leak_detection: true,
            pressure_threshold_ratio: 0.8,
            leak_detection_interval: Duration::from_secs(60),
        }),
        enable_automatic_cleanup: true,
        cleanup_config: Some(CleanupConfig {
            idle_cleanup_interval: Duration::from_secs(30),
            pressure_cleanup_threshold: 0.9,
            enable_compaction: true,
            max_cleanup_time: Duration::from_millis(100),
        }),
    };
    let pool = HybridMemoryPool::with_config(config)?;
    assert_eq!(pool.get_metrics().mapped, 192 << 20);
    Ok(())
}
