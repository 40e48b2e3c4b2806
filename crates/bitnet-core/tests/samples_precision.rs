//! The documented samples of conversion and mixed precision, under the paths that they name.

use bitnet_core::device::get_cpu_device;
use bitnet_core::memory::HybridMemoryPool;
use bitnet_core::memory::tensor::{BitNetDType, BitNetTensor};

/// Memory-efficient conversions.
#[test]
fn conversions() {
    use bitnet_core::memory::conversion::{ConversionConfig, ConversionEngine};

    let pool = HybridMemoryPool::new().unwrap();
    let device = get_cpu_device();
    let engine = ConversionEngine::new(ConversionConfig::default(), pool.clone()).unwrap();

    let tensor = BitNetTensor::ones(&[128, 128], BitNetDType::F32, &device, &pool).unwrap();
    let converted = engine.convert(&tensor, BitNetDType::F16).unwrap();
    assert_eq!(tensor.size_bytes() as f64 / converted.size_bytes() as f64, 2.0);

    let zero_copy_result = engine.zero_copy_convert(&tensor, BitNetDType::F32).unwrap();
    assert_eq!(zero_copy_result.as_bytes().as_ptr(), tensor.as_bytes().as_ptr());

    let mut mutable_tensor = BitNetTensor::ones(&[64, 64], BitNetDType::F32, &device, &pool).unwrap();
    let original_size = mutable_tensor.size_bytes();
    engine.in_place_convert(&mut mutable_tensor, BitNetDType::F16).unwrap();
    assert_eq!(original_size - mutable_tensor.size_bytes(), 64 * 64 * 2);

    let large_tensor = BitNetTensor::ones(&[512, 512], BitNetDType::F32, &device, &pool).unwrap();
    let streamed_result = engine.streaming_convert(&large_tensor, BitNetDType::I8, 64 * 1024).unwrap();
    assert!(streamed_result.as_bytes().iter().all(|code| *code == 127));

    let tensors: Vec<_> = (0..5)
        .map(|i| BitNetTensor::ones(&[32 + i, 32 + i], BitNetDType::F32, &device, &pool))
        .collect::<Result<Vec<_>, _>>()
        .unwrap();
    let batch_results = engine.batch_convert(&tensors, BitNetDType::F16).unwrap();
    assert!(batch_results.iter().zip(&tensors).all(|(half, wide)| half.shape() == wide.shape()));

    for config in [
        ConversionConfig::high_performance(),
        ConversionConfig::low_memory(),
        ConversionConfig::high_precision(),
    ] {
        let other = ConversionEngine::new(config, pool.clone()).unwrap();
        assert_eq!(other.convert(&tensor, BitNetDType::F16).unwrap().as_bytes(), converted.as_bytes());
    }

    let stats = engine.get_stats();
    // One each, and the batch of five.
    assert_eq!((stats.total_conversions, stats.success_rate()), (9, 100.0));
    assert!(stats.average_time_ms() > 0.0);
}

/// Mixed precision. `BitNetTensor::ones` and the layers of the sample have no sizes of their own to analyse: a tensor is
/// registered beside, so that the analysis measures something.
#[test]
fn mixed_precision() {
    use bitnet_core::mixed_precision::*;

    let config = MixedPrecisionConfig::balanced()
        .with_layer_config(
            "attention_layer".to_string(),
            LayerPrecisionConfig::new(LayerType::Attention, BitNetDType::F16)
                .with_component_override(ComponentType::Weights, BitNetDType::I8)
                .with_component_override(ComponentType::AttentionScores, BitNetDType::F16),
        )
        .with_component_config(
            ComponentType::Activations,
            ComponentPrecisionConfig::new(ComponentType::Activations, BitNetDType::I8),
        );
    let precision_manager = PrecisionManager::new(config).unwrap();

    let layer_spec = LayerPrecisionSpec::new(
        "transformer_layer_0".to_string(),
        LayerType::Linear,
        BitNetDType::I8,
        BitNetDType::I8,
        BitNetDType::BitNet158,
    )
    .with_component_precision(ComponentType::Bias, BitNetDType::F16)
    .with_dynamic_adjustment();
    precision_manager.register_layer(layer_spec).unwrap();

    let device = get_cpu_device();
    let memory_pool = HybridMemoryPool::new().unwrap();
    let tensor = BitNetTensor::ones(&[64, 64], BitNetDType::F32, &device, &memory_pool).unwrap();
    let config = ConversionConfig {
        strategy: ConversionStrategy::Scaled,
        preserve_metadata: true,
        validate_results: true,
        ..Default::default()
    };
    let converter = PrecisionConverter::new(config).unwrap();
    let converted_tensor = converter.convert_tensor(&tensor, BitNetDType::I8).unwrap();
    assert_eq!(converted_tensor.size_bytes(), 64 * 64);

    let mut policy_engine = PolicyEngine::new();
    let memory_policy = PrecisionPolicy::new(
        "memory_critical".to_string(),
        "Memory Critical Policy".to_string(),
        "Four bits when memory is short".to_string(),
    )
    .add_rule(
        PolicyRule::new("high_memory_usage".to_string(), PolicyAction::SetPrecision(BitNetDType::I4))
            .add_condition(PolicyCondition::new(
                ConditionType::MemoryUsage,
                ConditionOperator::GreaterThan,
                ConditionValue::Float(80.0),
            )),
    );
    policy_engine.add_policy(memory_policy);
    let context = PolicyContext::new("attention_layer", LayerType::Attention, ComponentType::Weights, 4096);
    let tight = PolicyContext { memory_usage: Some(85.0), ..context };
    assert_eq!(policy_engine.evaluate(&context), None);
    assert_eq!(policy_engine.evaluate(&tight), Some(PolicyAction::SetPrecision(BitNetDType::I4)));

    let objective =
        OptimizationObjective::Balanced { memory_weight: 0.4, speed_weight: 0.3, accuracy_weight: 0.3 };
    assert!(precision_manager.optimize_precision(objective).unwrap().is_empty(), "no values are known");
    let analysis = precision_manager.analyze_configuration().unwrap();
    assert_eq!((analysis.memory_savings, analysis.accuracy_impact), (0.0, 0.0));

    let measured = LayerPrecisionSpec::new(
        "attention_layer".to_string(),
        LayerType::Attention,
        BitNetDType::I8,
        BitNetDType::I8,
        BitNetDType::I8,
    );
    precision_manager.register_layer(measured.with_tensor(ComponentType::Weights, tensor)).unwrap();
    let analysis = precision_manager.analyze_configuration().unwrap();
    // Blocks of 32 have a scale of two bytes each.
    assert_eq!(analysis.memory_savings, 1.0 - 34.0 / 128.0);
    // Ones are 127 steps of 1 / 127, but for the rounding of the step to half precision.
    assert!(analysis.accuracy_impact < 1e-3);
    assert!(!precision_manager.optimize_precision(OptimizationObjective::Memory).unwrap().is_empty());
}
