//! Formats for the parts of a small model: what they cost as measured, what would be better, and rules that follow the
//! memory in use.
//!
//! `cargo run -p bitnet-core --release --example mixed_precision_demo`

use bitnet_core::device::get_cpu_device;
use bitnet_core::memory::HybridMemoryPool;
use bitnet_core::memory::tensor::{BitNetDType, BitNetTensor};
use bitnet_core::mixed_precision::*;

fn main() -> bitnet_core::Result<()> {
    let config = MixedPrecisionConfig::balanced().with_layer_config(
        "blk.*.attn_*".to_owned(),
        LayerPrecisionConfig::new(LayerType::Attention, BitNetDType::BF16),
    );
    println!("strategy {}", config.strategy().name());
    let manager = PrecisionManager::new(config)?;
    for (layer, layer_type, weight) in [
        ("blk.0.attn_q", LayerType::Attention, BitNetDType::BF16),
        ("blk.0.ffn_up", LayerType::FeedForward, BitNetDType::I8),
        ("output", LayerType::Head, BitNetDType::I4),
    ] {
        let spec =
            LayerPrecisionSpec::new(layer.to_owned(), layer_type, BitNetDType::F32, BitNetDType::F32, weight)
                .with_tensor(ComponentType::Weights, wave(256)?)
                .with_dynamic_adjustment();
        manager.register_layer(spec)?;
    }
    let report = |title: &str| -> bitnet_core::Result<()> {
        let analysis = manager.analyze_configuration()?;
        println!("\n{title}: {:.1} % of the memory of f32 saved", 100.0 * analysis.memory_savings);
        for tensor in &analysis.tensors {
            let error = tensor.error.map_or("unknown".to_owned(), |error| format!("{:.3} %", 100.0 * error));
            println!("  {:14} {:5} {:7} bytes, error {error}", tensor.layer, tensor.precision, tensor.bytes);
        }
        Ok(())
    };
    report("as registered")?;

    let objective =
        OptimizationObjective::Balanced { memory_weight: 0.4, speed_weight: 0.3, accuracy_weight: 0.3 };
    for change in manager.optimize_precision(objective)? {
        println!("  better: {} from {} to {} ({})", change.layer, change.from, change.to, change.reason);
    }

    let mut policies = PolicyEngine::new();
    let short = PolicyCondition::new(
        ConditionType::MemoryUsage,
        ConditionOperator::GreaterThan,
        ConditionValue::Float(80.0),
    );
    let rule = PolicyRule::new("short".to_owned(), PolicyAction::LowerPrecision).add_condition(short);
    let (name, why) = ("Short of memory".to_owned(), "fewer bits where memory is short".to_owned());
    policies.add_policy(PrecisionPolicy::new("memory".to_owned(), name, why).add_rule(rule));
    println!("\nmemory in use: {:?} %", memory_usage_percent());
    let nothing = PolicyContext::new("", LayerType::Linear, ComponentType::Weights, 0);
    let changes = manager.adjust(&policies, &PolicyContext { memory_usage: Some(90.0), ..nothing })?;
    for change in changes {
        println!("  at 90 %: {} from {} to {} ({})", change.layer, change.from, change.to, change.reason);
    }
    report("adjusted")
}

/// A matrix of (n, n) whose values have no pattern that a format could profit from.
fn wave(n: usize) -> bitnet_core::Result<BitNetTensor> {
    let pool = HybridMemoryPool::new()?;
    let mut handle = pool.allocate(4 * n * n, 64, &get_cpu_device())?;
    for (i, bytes) in handle.as_mut_slice().as_chunks_mut().0.iter_mut().enumerate() {
        *bytes = ((i * 7919 % 10_007) as f32 / 5003.5 - 1.0).to_le_bytes();
    }
    BitNetTensor::from_handle(handle, &[n, n], BitNetDType::F32)
}
