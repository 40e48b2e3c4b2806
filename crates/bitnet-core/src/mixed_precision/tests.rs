use bitnet_quant::dense::DenseFormat;

use super::*;
use crate::memory::{ALIGNMENT, HybridMemoryPool, MemoryHandle};
use crate::{BitNetTensor, Device, Error};

fn handle(values: &[f32]) -> MemoryHandle {
    let pool = HybridMemoryPool::new().unwrap();
    let mut handle = pool.allocate(4 * values.len(), ALIGNMENT, &Device::Cpu).unwrap();
    handle.as_mut_slice().copy_from_slice(bytemuck::cast_slice(values));
    handle
}

fn tensor(values: &[f32]) -> BitNetTensor {
    BitNetTensor::from_handle(handle(values), &[values.len()], F32).unwrap()
}

fn asked(
    config: &MixedPrecisionConfig,
    layer: &str,
    layer_type: LayerType,
    component: ComponentType,
) -> Option<BitNetDType> {
    let manager = PrecisionManager::for_engine(config.clone()).unwrap();
    let context = PolicyContext::new(layer, layer_type, component, 100);
    manager.precision(&context, Some(DenseFormat::F32)).unwrap()
}

fn refusal(config: MixedPrecisionConfig) -> String {
    PrecisionManager::for_engine(config).unwrap_err().to_string()
}

#[test]
fn by_default_nothing_is_asked_for() {
    let config = MixedPrecisionConfig::default();
    for component in ComponentType::ALL {
        assert_eq!(asked(&config, "blk.0.attn_q", LayerType::Attention, component), None);
    }
    assert_eq!(PrecisionManager::for_engine(config).unwrap().kv_cache(None).unwrap(), None);
}

#[test]
fn what_is_more_special_counts() {
    let config = MixedPrecisionConfig::default()
        .with_component(ComponentType::Weights, I8)
        .with_component(ComponentType::Head, F16)
        .with_layer_config("blk.*".into(), LayerPrecisionConfig::new(LayerType::Linear, BF16))
        .with_layer_config(
            "blk.3.*".into(),
            LayerPrecisionConfig::new(LayerType::Attention, F32)
                .with_component_override(ComponentType::DenseLinear, I4),
        );
    let linear = |layer, layer_type| asked(&config, layer, layer_type, ComponentType::DenseLinear);
    assert_eq!(asked(&config, "output", LayerType::Head, ComponentType::Head), Some(F16));
    assert_eq!(asked(&config, "token_embd", LayerType::Embedding, ComponentType::Embedding), Some(I8));
    assert_eq!(linear("blk.2.attn_q", LayerType::Attention), Some(BF16));
    assert_eq!(linear("blk.3.attn_q", LayerType::Attention), Some(I4));
    assert_eq!(linear("blk.3.ffn_up", LayerType::FeedForward), Some(BF16), "the type counts, too");
    assert_eq!(asked(&config, "blk.3.attn_norm", LayerType::Norm, ComponentType::Norm), None);
}

#[test]
fn names_match_with_stars() {
    for (pattern, name, matches) in [
        ("a", "a", true),
        ("a", "ab", false),
        ("*", "", true),
        ("blk.*.attn_q", "blk.10.attn_q", true),
        ("blk.*.attn_q", "blk.10.attn_k", false),
        ("*q*", "attn_q", true),
        ("a*a", "a", false),
        ("*ä", "öä", true),
        ("a*b*b", "ab", false),
        ("*ab*b", "aabb", true),
    ] {
        assert_eq!(matches_name(pattern, name), matches, "{pattern} {name}");
    }
}

#[test]
fn many_stars_take_no_longer_than_their_number() {
    let stars = "*".repeat(300_000);
    assert!(
        matches_name(&format!("{stars}x"), "blk.0.attn_qx")
            && !matches_name(&format!("{stars}x"), "blk.0.attn_q")
    );
    assert!(!matches_name(&"*a".repeat(1000), &"a".repeat(999)));
}

#[test]
fn what_the_engine_cannot_do_is_refused_with_what_it_can() {
    let one = |component, precision| MixedPrecisionConfig::default().with_component(component, precision);
    assert_eq!(
        refusal(one(ComponentType::KvCache, BitNet158)),
        "the KV cache cannot be kept as bitnet158; use one of f32, f16, bf16, i8, i4"
    );
    assert_eq!(
        refusal(one(ComponentType::Norm, I8)),
        "the norms cannot be kept as i8; use one of f32, f16, bf16"
    );
    assert_eq!(
        refusal(one(ComponentType::Gradients, F32)),
        "the gradients cannot be kept as f32; give none, as the engine has no such thing"
    );
    assert_eq!(
        refusal(one(ComponentType::Activations, I8)),
        "the activations cannot be kept as i8; use one of f32"
    );
    assert!(
        PrecisionManager::new(one(ComponentType::Activations, I8)).is_ok(),
        "it is not for the engine alone"
    );
    let norms = LayerPrecisionConfig::new(LayerType::Norm, I8);
    assert!(refusal(MixedPrecisionConfig::default().with_layer_config("*".into(), norms)).contains("norms"));
    let of_a_layer = LayerPrecisionConfig::new(LayerType::Attention, F16)
        .with_component_override(ComponentType::KvCache, I8);
    let message = refusal(MixedPrecisionConfig::default().with_layer_config("blk.0.*".into(), of_a_layer));
    assert_eq!(message, "the precision of the KV cache must be the same for all layers, as a component");
}

fn rule(
    action: PolicyAction,
    condition: ConditionType,
    operator: ConditionOperator,
    value: f64,
) -> PrecisionPolicy {
    let condition = PolicyCondition::new(condition, operator, ConditionValue::Float(value));
    let rule = PolicyRule::new("rule".into(), action).add_condition(condition);
    PrecisionPolicy::new("id".into(), "name".into(), "why".into()).add_rule(rule)
}

#[test]
fn policies_hold_under_their_conditions_and_by_priority() {
    use ConditionOperator::{Equal, GreaterThan, LessThan, NotEqual};
    let context = PolicyContext {
        memory_usage: Some(85.0),
        ..PolicyContext::new("blk.7.ffn_up", LayerType::FeedForward, ComponentType::DenseLinear, 1000)
    };
    let text = |s: &str| ConditionValue::Text(s.into());
    for (condition, operator, value, holds) in [
        (ConditionType::MemoryUsage, GreaterThan, ConditionValue::Float(80.0), true),
        (ConditionType::MemoryUsage, LessThan, ConditionValue::Float(80.0), false),
        (ConditionType::ParameterCount, Equal, ConditionValue::Float(1000.0), true),
        (ConditionType::ParameterCount, NotEqual, ConditionValue::Float(1000.0), false),
        // Nobody has measured it.
        (ConditionType::Accuracy, LessThan, ConditionValue::Float(100.0), false),
        (ConditionType::TokensPerSecond, NotEqual, ConditionValue::Float(0.0), false),
        (ConditionType::LayerType, Equal, text("feed_forward"), true),
        (ConditionType::LayerType, NotEqual, text("attention"), true),
        (ConditionType::LayerName, Equal, text("blk.*.ffn_*"), true),
        (ConditionType::LayerName, NotEqual, text("blk.7.*"), false),
        (ConditionType::Component, Equal, text("dense_linear"), true),
        (ConditionType::Component, Equal, text("head"), false),
        // More general names, as elsewhere.
        (ConditionType::LayerType, Equal, text("linear"), true),
        (ConditionType::Component, Equal, text("weights"), true),
        (ConditionType::Component, NotEqual, text("weights"), false),
    ] {
        let condition = PolicyCondition::new(condition, operator, value);
        let rule =
            PolicyRule::new("r".into(), PolicyAction::SetPrecision(I4)).add_condition(condition.clone());
        let mut engine = PolicyEngine::new();
        engine.add_policy(PrecisionPolicy::new("p".into(), String::new(), String::new()).add_rule(rule));
        engine.check().unwrap();
        assert_eq!(engine.evaluate(&context).is_some(), holds, "{condition:?}");
    }
    let mut engine = PolicyEngine::new();
    let set = |precision| {
        rule(PolicyAction::SetPrecision(precision), ConditionType::MemoryUsage, GreaterThan, 50.0)
    };
    engine.add_policy(set(I8));
    engine.add_policy(set(I4).with_priority(1));
    assert_eq!(engine.evaluate(&context), Some(PolicyAction::SetPrecision(I4)));

    let nonsense = rule(PolicyAction::LowerPrecision, ConditionType::LayerName, Equal, 1.0);
    assert_eq!(
        refusal(MixedPrecisionConfig::default().with_policy(nonsense)),
        "what the rule `rule` of the policy `id` has a condition on must be equal or not_equal to a text"
    );
    let other = ComponentPrecisionConfig::new(ComponentType::Head, I8);
    let message =
        refusal(MixedPrecisionConfig::default().with_component_config(ComponentType::Embedding, other));
    assert_eq!(message, "what is configured for the embedding must be about that component");
}

#[test]
fn policies_come_before_what_is_configured() {
    let low =
        rule(PolicyAction::LowerPrecision, ConditionType::MemoryUsage, ConditionOperator::GreaterThan, 80.0);
    let config = MixedPrecisionConfig::default().with_component(ComponentType::KvCache, F16).with_policy(low);
    let manager = PrecisionManager::for_engine(config).unwrap();
    assert_eq!(manager.kv_cache(Some(70.0)).unwrap(), Some(F16));
    assert_eq!(manager.kv_cache(Some(90.0)).unwrap(), Some(I8));
    // A format that the component cannot have shows when the rule does.
    let bad = rule(
        PolicyAction::SetPrecision(I4),
        ConditionType::MemoryUsage,
        ConditionOperator::GreaterThan,
        80.0,
    );
    let manager = PrecisionManager::for_engine(MixedPrecisionConfig::default().with_policy(bad)).unwrap();
    let norm = PolicyContext::new("output_norm", LayerType::Norm, ComponentType::Norm, 8);
    assert_eq!(manager.precision(&norm, Some(DenseFormat::F32)).unwrap(), None);
    let tight = PolicyContext { memory_usage: Some(99.0), ..norm };
    let refused = manager.precision(&tight, Some(DenseFormat::F32));
    assert!(matches!(refused, Err(Error::Precision { precision: I4, .. })));
}

#[test]
fn the_strategies_differ_in_what_they_ask_for() {
    let formats = |config: MixedPrecisionConfig| {
        let manager = PrecisionManager::for_engine(config.clone()).unwrap();
        let head = asked(&config, "output", LayerType::Head, ComponentType::Head);
        let norm = asked(&config, "output_norm", LayerType::Norm, ComponentType::Norm);
        (manager.kv_cache(None).unwrap(), head, norm, config.strategy().name())
    };
    assert_eq!(formats(MixedPrecisionConfig::conservative()), (Some(F32), None, None, "conservative"));
    assert_eq!(formats(MixedPrecisionConfig::balanced()), (Some(F16), Some(I8), None, "balanced"));
    assert_eq!(formats(MixedPrecisionConfig::aggressive()), (Some(I8), Some(I4), Some(BF16), "aggressive"));
    assert_eq!(formats(MixedPrecisionConfig::default()), (None, None, None, "custom"));
}

#[test]
fn files_say_the_same_and_their_faults_have_a_place() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("policy.json");
    let open = |text: &str| {
        std::fs::write(&path, text).unwrap();
        MixedPrecisionConfig::open(&path)
    };
    let config = open(
        r#"{"strategy": "aggressive", "only_narrow": false, "components": {"kv_cache": "f32", "head": "i8"},
            "layers": {"blk.0.*": {"layer_type": "attention", "precision": "f16", "components": {"dense_linear": "bf16"}}},
            "policies": [{"id": "tight", "rules": [{"id": "kv", "action": {"set_precision": "i4"}, "conditions": [
                {"type": "component", "operator": "equal", "value": "kv_cache"},
                {"type": "memory_usage", "operator": "greater_than", "value": 95}]}]}]}"#,
    )
    .unwrap();
    assert_eq!(asked(&config, "output", LayerType::Head, ComponentType::Head), Some(I8));
    assert_eq!(asked(&config, "token_embd", LayerType::Embedding, ComponentType::Embedding), Some(I4));
    assert_eq!(asked(&config, "blk.0.attn_q", LayerType::Attention, ComponentType::DenseLinear), Some(BF16));
    let manager = PrecisionManager::for_engine(config).unwrap();
    assert_eq!([90.0, 96.0].map(|usage| manager.kv_cache(Some(usage)).unwrap()), [Some(F32), Some(I4)]);

    let message = open("{\n  \"components\": {\"kv\": \"f32\"}}").unwrap_err().to_string();
    assert!(
        message.contains("policy.json: at byte ") && message.contains("unknown variant `kv`"),
        "{message}"
    );
    assert!(open(r#"{"component": {}}"#).unwrap_err().to_string().contains("unknown field"));
    let missing = MixedPrecisionConfig::open(&folder.path().join("none.json"));
    assert!(matches!(missing, Err(Error::Io { .. })));
    assert!(matches!(MixedPrecisionConfig::open(folder.path()), Err(Error::NotAFile { .. })));
}

fn spec(name: &str, weight: BitNetDType) -> LayerPrecisionSpec {
    LayerPrecisionSpec::new(name.into(), LayerType::Linear, F32, F32, weight)
}

#[test]
fn analysis_counts_bytes_and_measures_errors() {
    let manager = PrecisionManager::new(MixedPrecisionConfig::default()).unwrap();
    assert_eq!(manager.analyze_configuration().unwrap(), PrecisionAnalysis::default());
    // The error is known: a step of the only block is 1 / 127 in half precision, and the codes are whole.
    let values = [1.0, 0.5, -0.25];
    manager.register_layer(spec("a", I8).with_tensor(ComponentType::Weights, tensor(&values))).unwrap();
    manager.register_layer(spec("b", F16).with_elements(ComponentType::Weights, 1000)).unwrap();
    let analysis = manager.analyze_configuration().unwrap();
    assert_eq!((analysis.bytes, analysis.single_precision_bytes), (34 + 2000, 4 * 1003));
    assert!((analysis.memory_savings - (1.0 - 2034.0 / 4012.0)).abs() < 1e-12);
    let codes: [f64; 3] = [127.0, 64.0, -32.0];
    let squares = |x: [f64; 3]| x.iter().map(|x| x * x).sum::<f64>();
    let step = half::f16::from_f32(1.0 / 127.0).to_f64();
    let differences = std::array::from_fn(|i| f64::from(values[i]) - codes[i] * step);
    let want = (squares(differences) / squares(values.map(f64::from))).sqrt();
    assert!((analysis.accuracy_impact - want).abs() < 1e-6, "{} {want}", analysis.accuracy_impact);
    assert_eq!(analysis.tensors[1].error, None);
    // The same layer again takes the place of the first.
    manager.register_layer(spec("a", F32).with_tensor(ComponentType::Weights, tensor(&values))).unwrap();
    let analysis = manager.analyze_configuration().unwrap();
    assert_eq!((analysis.bytes, analysis.accuracy_impact), (12 + 2000, 0.0));
    let nonsense = spec("c", F32).with_component_precision(ComponentType::Norm, I4);
    assert!(matches!(manager.register_layer(nonsense), Err(Error::Precision { .. })));
}

#[test]
fn activations_are_as_wide_as_what_goes_in_or_out() {
    let bytes = |input, output| {
        let manager = PrecisionManager::new(MixedPrecisionConfig::default()).unwrap();
        let layer = LayerPrecisionSpec::new("a".into(), LayerType::Linear, input, output, BitNet158);
        manager.register_layer(layer.with_elements(ComponentType::Activations, 64)).unwrap();
        manager.analyze_configuration().unwrap().bytes
    };
    assert_eq!([bytes(F16, F16), bytes(F32, F16), bytes(F16, F32), bytes(I8, F16)], [128, 256, 256, 128]);
    let manager = PrecisionManager::new(MixedPrecisionConfig::default()).unwrap();
    let output = LayerPrecisionSpec::new("a".into(), LayerType::Linear, F16, I4, F16);
    let error = manager.register_layer(output).unwrap_err();
    assert!(matches!(error, Error::Precision { component: ComponentType::Activations, precision: I4, .. }));
}

/// Half precision ends at 65504. What has the same bits and holds more is next.
#[test]
fn formats_that_cannot_hold_the_values_are_passed_over() {
    let mut values: Vec<f32> = (0..64).map(|i| 0.37 * i as f32).collect();
    values[9] = 70_000.0;
    let manager = PrecisionManager::new(MixedPrecisionConfig::default()).unwrap();
    let layer = |precision| {
        spec("large", precision)
            .with_tensor(ComponentType::Weights, tensor(&values))
            .with_dynamic_adjustment()
    };
    manager.register_layer(layer(I8)).unwrap();
    let policies = |action| {
        let mut policies = PolicyEngine::new();
        policies.add_policy(rule(action, ConditionType::Accuracy, ConditionOperator::LessThan, 90.0));
        policies
    };
    let nothing = PolicyContext::new("", LayerType::Linear, ComponentType::Weights, 0);
    let poor = PolicyContext { accuracy: Some(50.0), ..nothing };
    let adjust = |action| {
        let changes = manager.adjust(&policies(action), &poor).unwrap();
        changes.first().map(|change| (change.to, change.reason.clone()))
    };
    let noted = "name: why; f16 cannot hold its values".to_owned();
    assert_eq!(adjust(PolicyAction::RaisePrecision), Some((BF16, noted)));
    assert_eq!(adjust(PolicyAction::RaisePrecision), Some((F32, "name: why".into())));
    assert_eq!(adjust(PolicyAction::LowerPrecision), Some((BF16, "name: why".into())));
    assert_eq!(adjust(PolicyAction::SetPrecision(F16)), None);
    manager.analyze_configuration().unwrap();
    manager.register_layer(layer(F32)).unwrap();
    let changes = manager.optimize_precision(OptimizationObjective::Memory).unwrap();
    assert!(
        changes[0].to == I4 && changes[0].reason.ends_with("error; f16 cannot hold its values"),
        "{changes:?}"
    );
}

#[test]
fn the_objective_decides_what_is_better() {
    let values: Vec<f32> = (0..4096).map(|i| ((i * 37 % 1009) as f32 - 500.0) / 1000.0).collect();
    let manager = PrecisionManager::new(MixedPrecisionConfig::default()).unwrap();
    manager.register_layer(spec("dense", F16).with_tensor(ComponentType::Weights, tensor(&values))).unwrap();
    manager
        .register_layer(spec("ternary", BitNet158).with_tensor(ComponentType::Weights, tensor(&values)))
        .unwrap();
    manager.register_layer(spec("unknown", F16).with_elements(ComponentType::Weights, 10)).unwrap();
    let best = |objective| {
        let changes = manager.optimize_precision(objective).unwrap();
        assert!(changes.iter().all(|c| c.layer == "dense" && c.from == F16));
        changes.first().map(|c| c.to)
    };
    assert_eq!(best(OptimizationObjective::Memory), Some(I4));
    assert_eq!(best(OptimizationObjective::Accuracy), Some(F32));
    let balanced = |memory_weight, accuracy_weight| {
        best(OptimizationObjective::Balanced { memory_weight, speed_weight: 0.0, accuracy_weight })
    };
    assert_eq!(balanced(0.5, 0.5), Some(I8), "little is lost from I8 on, and much from I4 on");
    // Which is the fastest is measured, and as it may be: the changes are of the layer that can change.
    best(OptimizationObjective::Speed);
    let nothing =
        OptimizationObjective::Balanced { memory_weight: 0.0, speed_weight: 0.0, accuracy_weight: 0.0 };
    assert!(manager.optimize_precision(nothing).is_err());
}

#[test]
fn layers_that_allow_it_follow_what_is_measured() {
    let manager = PrecisionManager::new(MixedPrecisionConfig::default()).unwrap();
    let weights = |name, precision| spec(name, precision).with_elements(ComponentType::Weights, 64);
    manager.register_layer(weights("dynamic", F16).with_dynamic_adjustment()).unwrap();
    manager.register_layer(weights("fixed", F16)).unwrap();
    manager.register_layer(weights("ternary", BitNet158).with_dynamic_adjustment()).unwrap();
    let mut policies = PolicyEngine::new();
    policies.add_policy(rule(
        PolicyAction::LowerPrecision,
        ConditionType::MemoryUsage,
        ConditionOperator::GreaterThan,
        80.0,
    ));
    policies.add_policy(rule(
        PolicyAction::RaisePrecision,
        ConditionType::Accuracy,
        ConditionOperator::LessThan,
        90.0,
    ));
    let nothing = PolicyContext::new("", LayerType::Linear, ComponentType::Weights, 0);
    let adjust = |context| manager.adjust(&policies, &context).unwrap();
    assert_eq!(adjust(nothing), []);
    let tight = PolicyContext { memory_usage: Some(90.0), ..nothing };
    let (layer, reason) = ("dynamic".into(), "name: why".into());
    let change = PrecisionChange { layer, component: ComponentType::Weights, from: F16, to: I8, reason };
    assert_eq!(adjust(tight), [change]);
    assert_eq!(manager.analyze_configuration().unwrap().bytes, 2 * 34 + 128 + 16);
    assert_eq!(adjust(tight)[0].to, I4);
    assert_eq!(adjust(tight), [], "what is dense does not become ternary");
    let poor = PolicyContext { accuracy: Some(50.0), ..nothing };
    assert_eq!(adjust(poor)[0].to, I8);
}

#[test]
fn the_converter_tells_what_was_lost() {
    let converter = PrecisionConverter::new(ConversionConfig::default()).unwrap();
    let (converted, error) = converter.convert_measured(&tensor(&[1.0, 2049.0]), F16).unwrap();
    assert_eq!(converted.dtype(), F16);
    assert!((error - 1.0 / (1.0f64 + 2049.0 * 2049.0).sqrt()).abs() < 1e-12);
    assert_eq!(converter.convert_measured(&tensor(&[0.0]), I8).unwrap().1, 0.0);
}

/// One large value among small ones spoils its own block, and no other.
#[test]
fn what_is_measured_is_what_the_engine_stores() {
    let mut values: Vec<f32> = (0..1024).map(|i| (i * 37 % 101) as f32 / 100.0).collect();
    values[0] = 1000.0;
    let manager = PrecisionManager::new(MixedPrecisionConfig::default()).unwrap();
    let values = BitNetTensor::from_handle(handle(&values), &[16, 64], F32).unwrap();
    let one_scale = PrecisionConverter::new(ConversionConfig::default()).unwrap();
    for (precision, format) in [(I8, DenseFormat::Q8_0), (I4, DenseFormat::Q4_0)] {
        let layer = spec("a", precision).with_tensor(ComponentType::Weights, values.clone());
        manager.register_layer(layer.with_elements(ComponentType::Weights, 64_000)).unwrap();
        let analysis = manager.analyze_configuration().unwrap();
        assert_eq!(analysis.bytes, 1000 * format.row_bytes(64).unwrap(), "of all, not of the sample");
        let mut stored = Vec::new();
        let wide = values.as_slice::<f32>();
        format.quantize_row(wide, &mut stored).unwrap();
        let mut back = vec![0.0; wide.len()];
        format.dequantize_row(&stored, &mut back);
        let sum = |f: &dyn Fn(f64, f64) -> f64| -> f64 {
            wide.iter().zip(&back).map(|(x, y)| f(f64::from(*x), f64::from(*y))).sum()
        };
        let want = (sum(&|x, y| (x - y) * (x - y)) / sum(&|x, _| x * x)).sqrt();
        assert!((analysis.accuracy_impact - want).abs() < 1e-9, "{precision}");
        assert!(want < 0.5 * one_scale.convert_measured(&values, precision).unwrap().1, "{precision}");
    }
}

#[test]
fn rules_that_the_engine_cannot_follow_are_refused_by_name() {
    use ConditionOperator::{Equal, LessThan, NotEqual};
    let float = || ConditionValue::Float(1.0);
    for (condition, operator, value, named) in [
        (ConditionType::Accuracy, LessThan, float(), "the accuracy"),
        (ConditionType::TokensPerSecond, LessThan, float(), "the tokens per second"),
        (
            ConditionType::Component,
            Equal,
            ConditionValue::Text("activations".into()),
            "the component `activations`",
        ),
        (
            ConditionType::Component,
            NotEqual,
            ConditionValue::Text("gradients".into()),
            "the component `gradients`",
        ),
        (
            ConditionType::Component,
            Equal,
            ConditionValue::Text("attention_scores".into()),
            "`attention_scores`",
        ),
    ] {
        let condition = PolicyCondition::new(condition, operator, value);
        let rule = PolicyRule::new("r".into(), PolicyAction::LowerPrecision).add_condition(condition);
        let policy = PrecisionPolicy::new("p".into(), String::new(), String::new()).add_rule(rule);
        let config = MixedPrecisionConfig::default().with_policy(policy);
        assert!(PrecisionManager::new(config.clone()).is_ok(), "others may know more than the engine");
        let error = PrecisionManager::for_engine(config).unwrap_err();
        assert!(matches!(error, Error::PolicyCondition { .. }), "{error}");
        assert!(error.to_string().contains(named), "{error}");
    }
}

#[test]
fn what_the_user_says_goes_before_what_a_strategy_leaves() {
    let stored = Some(DenseFormat::Q4_0);
    let of = |config: &MixedPrecisionConfig, component, stored| {
        let manager = PrecisionManager::for_engine(config.clone()).unwrap();
        let context = PolicyContext::new("output", LayerType::Head, component, 100);
        manager.precision(&context, stored).unwrap()
    };
    let balanced = MixedPrecisionConfig::balanced();
    assert_eq!(of(&balanced, ComponentType::Head, stored), None, "it would be larger");
    assert_eq!(of(&balanced, ComponentType::Head, Some(DenseFormat::F16)), Some(I8));
    let explicit = balanced.clone().with_component(ComponentType::Head, F16);
    assert_eq!(of(&explicit, ComponentType::Head, stored), Some(F16));
    assert_eq!(of(&explicit.only_narrowing(true), ComponentType::Head, stored), None, "said of everything");
    assert_eq!(of(&balanced.only_narrowing(false), ComponentType::Head, stored), Some(I8));
    // BF16 takes no fewer bytes than F16, and holds less of it.
    let aggressive = MixedPrecisionConfig::aggressive();
    assert_eq!(of(&aggressive, ComponentType::Norm, Some(DenseFormat::F16)), None);
    assert_eq!(of(&aggressive, ComponentType::Norm, Some(DenseFormat::F32)), Some(BF16));
}

/// Q6_K can only be read. It has formats on either side all the same.
#[test]
fn formats_that_are_only_read_can_be_lowered_and_raised() {
    for (action, want) in [(PolicyAction::LowerPrecision, I4), (PolicyAction::RaisePrecision, I8)] {
        let rule = PolicyRule::new("r".into(), action);
        let policy = PrecisionPolicy::new("p".into(), String::new(), String::new()).add_rule(rule);
        let manager =
            PrecisionManager::for_engine(MixedPrecisionConfig::default().with_policy(policy)).unwrap();
        let head = PolicyContext::new("output", LayerType::Head, ComponentType::Head, 100);
        let of = |stored| manager.precision(&head, Some(stored)).unwrap();
        assert_eq!(of(DenseFormat::Q6K), Some(want));
        let end = if want == I4 { DenseFormat::Q4_0 } else { DenseFormat::F32 };
        assert_eq!(of(end), None, "there is nothing beyond {end}");
    }
}

#[test]
fn names_that_nothing_has_are_known() {
    use ConditionOperator::Equal;
    let named = |name: &str| {
        let condition =
            PolicyCondition::new(ConditionType::LayerName, Equal, ConditionValue::Text(name.into()));
        let rule = PolicyRule::new("r".into(), PolicyAction::LowerPrecision).add_condition(condition);
        PrecisionPolicy::new("p".into(), String::new(), String::new()).add_rule(rule)
    };
    let attention = || LayerPrecisionConfig::new(LayerType::Attention, F16);
    let config = MixedPrecisionConfig::default()
        .with_layer_config("blk.*.attn_q".into(), attention())
        .with_layer_config("blk.*.ffn_up".into(), attention())
        .with_policy(named("kv_cache"))
        .with_policy(named("output"))
        .with_policy(named("outptu"));
    let manager = PrecisionManager::for_engine(config).unwrap();
    for (layer, layer_type) in [
        ("blk.0.attn_q", LayerType::Attention),
        ("blk.0.ffn_up", LayerType::FeedForward),
        ("output", LayerType::Head),
    ] {
        manager.precision(&PolicyContext::new(layer, layer_type, ComponentType::Weights, 1), None).unwrap();
    }
    assert_eq!(manager.unmet_names(), ["blk.*.ffn_up", "outptu"], "no such layer, or none of that type");
}

#[test]
fn what_has_no_error_is_not_raised() {
    let manager = PrecisionManager::new(MixedPrecisionConfig::default()).unwrap();
    // Halves, so that F16 holds them.
    let values: Vec<f32> = (0..64).map(|i| i as f32 / 2.0).collect();
    let layer = |name, precision| {
        spec(name, precision).with_tensor(ComponentType::Weights, tensor(&values)).with_dynamic_adjustment()
    };
    manager.register_layer(layer("exact", F16)).unwrap();
    manager.register_layer(layer("rounded", I4)).unwrap();
    let mut policies = PolicyEngine::new();
    policies.add_policy(rule(
        PolicyAction::RaisePrecision,
        ConditionType::Accuracy,
        ConditionOperator::LessThan,
        90.0,
    ));
    let nothing = PolicyContext::new("", LayerType::Linear, ComponentType::Weights, 0);
    let poor = PolicyContext { accuracy: Some(50.0), ..nothing };
    let changes = manager.adjust(&policies, &poor).unwrap();
    assert_eq!(changes.iter().map(|c| (c.layer.as_str(), c.to)).collect::<Vec<_>>(), [("rounded", I8)]);
    manager.apply(&[PrecisionChange { to: F32, ..changes[0].clone() }]);
    let precisions = manager.precisions(ComponentType::Weights);
    assert_eq!(precisions["rounded"], (LayerType::Linear, F32));
}
