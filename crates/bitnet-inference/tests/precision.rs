//! Precisions: for every component and format, what is stored and what is computed.

use bitnet_core::BitNetDType;
use bitnet_core::file::{Bytes, CacheDir, Mapping};
use bitnet_core::mixed_precision::{
    ComponentType, ConditionOperator, ConditionType, ConditionValue, LayerPrecisionConfig, LayerType,
    MixedPrecisionConfig, OptimizationObjective, PolicyAction, PolicyCondition, PolicyContext, PolicyEngine,
    PolicyRule, PrecisionPolicy,
};
use bitnet_inference::config::Architecture;
use bitnet_inference::source::{Part, Proj, Role, Source, SourceInfo, StoredData, StoredTensor, TextParts};
use bitnet_inference::{
    HeadMode, HeadOptions, Model, ModelBytes, ModelOptions, PrecisionPlan, Preparation, Session,
    SessionOptions,
};
use bitnet_quant::dense::DenseFormat;
use bitnet_quant::kernels::Activation;
use bitnet_quant::packing::{I2sLayout, TernaryFormat};

use crate::common::random_model::{RandomModel, Recipe, StoredAs};
use crate::common::{KV_DTYPES, bits, isas, options};

const FORMATS: [BitNetDType; 5] =
    [BitNetDType::F32, BitNetDType::F16, BitNetDType::BF16, BitNetDType::I8, BitNetDType::I4];
const I2_S: StoredAs = StoredAs::Ternary(TernaryFormat::I2s(I2sLayout::Block128));

/// A model with dense and ternary projections, everything else in `embedding`, and norms in half precision.
fn recipe(embedding: DenseFormat, dense: DenseFormat) -> Recipe {
    Recipe {
        architecture: Architecture::Qwen3,
        dim: 128,
        ffn_dim: 256,
        n_heads: 4,
        n_kv_heads: 2,
        head_dim: 32,
        tied: false,
        activation: Activation::Silu,
        projections: vec![StoredAs::Dense(dense), I2_S],
        embedding,
        norms: DenseFormat::F16,
        ..Default::default()
    }
}

/// Bytes by component, and the logits behind some tokens.
fn run(recipe: &Recipe, precision: MixedPrecisionConfig) -> (ModelBytes, Vec<Vec<u32>>) {
    let folder = tempfile::tempdir().unwrap();
    let model = RandomModel::new(recipe.clone());
    let path = model.write_gguf(folder.path());
    let mut results = Vec::new();
    for isa in isas() {
        let options = ModelOptions { precision: precision.clone(), ..options(isa, 2) };
        let opened = Model::open_with(&path, &options, &mut |_| ()).unwrap();
        results.push((opened.weight_bytes(), logits(&opened, &model.prompt(6))));
    }
    // Tiles take fewer bytes than rows, where an instruction set has them.
    assert!(
        results.iter().all(|(_, logits)| *logits == results[0].1),
        "every instruction set computes the same"
    );
    results.swap_remove(0)
}

fn logits(model: &Model, ids: &[u32]) -> Vec<Vec<u32>> {
    let mut session = model.session(SessionOptions::default()).unwrap();
    let mut rows = Vec::new();
    session
        .forward_all(ids, |_, row| {
            rows.push(bits(row));
            Ok(())
        })
        .unwrap();
    rows
}

fn with(component: ComponentType, precision: BitNetDType) -> MixedPrecisionConfig {
    MixedPrecisionConfig::default().with_component(component, precision)
}

/// The rule that what is called `component` is kept as `precision`, whatever is said elsewhere.
fn policy(component: &str, precision: BitNetDType) -> PrecisionPolicy {
    let value = ConditionValue::Text(component.into());
    let condition = PolicyCondition::new(ConditionType::Component, ConditionOperator::Equal, value);
    let rule = PolicyRule::new("format".into(), PolicyAction::SetPrecision(precision));
    PrecisionPolicy::new("formats".into(), String::new(), String::new())
        .add_rule(rule.add_condition(condition))
}

/// What policies are compared with: a configuration in which `component` is not `precision`, so that the policy must change
/// what is stored and computed. The models have single precision, of which every other format rounds something away.
fn otherwise(component: ComponentType, precision: BitNetDType) -> MixedPrecisionConfig {
    match precision {
        BitNetDType::F32 => with(component, BitNetDType::BF16),
        _ => MixedPrecisionConfig::default(),
    }
}

#[test]
fn policies_change_what_is_stored_and_computed() {
    // Wide norms beside a wide embedding have weights that half precision cannot hold.
    let (matrices, norms) = (
        recipe(DenseFormat::F32, DenseFormat::F32),
        Recipe { norms: DenseFormat::F32, ..recipe(DenseFormat::F16, DenseFormat::F16) },
    );
    for (component, name, part) in [
        (ComponentType::Embedding, "embedding", (|bytes| bytes.embedding) as fn(ModelBytes) -> usize),
        (ComponentType::Head, "head", |bytes| bytes.head),
        (ComponentType::DenseLinear, "dense_linear", |bytes| bytes.dense),
        (ComponentType::Norm, "norm", |bytes| bytes.norms),
    ] {
        // A norm is a single vector that is multiplied as floats: it has no rows of blocks with scales, which 8 and 4 bits
        // are stored as, and is so small that they would save nothing. Asking for them is an error.
        let formats = if component == ComponentType::Norm { &FORMATS[..3] } else { &FORMATS };
        assert_eq!(component.engine_formats(), formats);
        let base = if component == ComponentType::Norm { &norms } else { &matrices };
        for &precision in formats {
            let without = otherwise(component, precision);
            let (stored, computed) = run(base, without.clone());
            let with_policy = run(base, without.with_policy(policy(name, precision)));
            assert!(with_policy == run(base, with(component, precision)), "{name} as {precision}");
            assert_ne!(part(with_policy.0), part(stored), "{name} as {precision}");
            assert!(with_policy.1 != computed, "{name} as {precision}");
            assert_eq!(with_policy.0.ternary, stored.ternary);
        }
    }
    for precision in [BitNetDType::I8, BitNetDType::I4] {
        let precision_of_norms = MixedPrecisionConfig::default().with_policy(policy("norm", precision));
        let options = ModelOptions { precision: precision_of_norms, ..Default::default() };
        let message = Model::embedded_with(&options).unwrap_err().to_string();
        assert_eq!(message, format!("the norms cannot be kept as {precision}; use one of f32, f16, bf16"));
    }
}

#[test]
fn policies_leave_ternary_weights_alone() {
    let ternary = Recipe { projections: vec![I2_S], ..recipe(DenseFormat::F16, DenseFormat::F16) };
    let (stored, exact) = run(&ternary, MixedPrecisionConfig::default());
    assert!(stored.ternary > 0 && stored.dense == 0);
    for precision in FORMATS {
        let of = |name| MixedPrecisionConfig::default().with_policy(policy(name, precision));
        assert!(run(&ternary, of("dense_linear")) == (stored, exact.clone()), "{precision}");
        let (bytes, _) = run(&ternary, of("weights"));
        assert_eq!((bytes.ternary, bytes.dense), (stored.ternary, 0), "{precision}");
        assert_eq!(
            bytes.head == stored.head,
            precision.bits() == 16,
            "{precision}: the head is no ternary weight"
        );
    }
}

#[test]
fn policies_choose_the_format_of_caches() {
    let ids: Vec<u32> = (0..40).map(|i| i * 37 % 2048).collect();
    let run = |of_model, of_session| {
        let model =
            Model::embedded_with(&ModelOptions { precision: of_model, ..Default::default() }).unwrap();
        let before = model.pool().get_metrics().total_allocated;
        let options = SessionOptions { precision: of_session, ..Default::default() };
        let mut session = model.session(options).unwrap();
        let taken = model.pool().get_metrics().total_allocated - before;
        let logits = bits(session.forward(&ids).unwrap());
        (session.kv_dtype(), taken, logits)
    };
    for precision in KV_DTYPES {
        // By itself a cache is in half precision.
        let without = match precision {
            BitNetDType::F16 => with(ComponentType::KvCache, BitNetDType::BF16),
            _ => MixedPrecisionConfig::default(),
        };
        let want = run(with(ComponentType::KvCache, precision), MixedPrecisionConfig::default());
        assert_eq!(want.0, precision);
        let policy = without.clone().with_policy(policy("kv_cache", precision));
        assert!(run(policy.clone(), MixedPrecisionConfig::default()) == want, "{precision}: of a model");
        assert!(run(MixedPrecisionConfig::default(), policy) == want, "{precision}: of a session");
        let other = run(without, MixedPrecisionConfig::default());
        assert_ne!(other.0, precision);
        assert_eq!(other.1 == want.1, other.0.bits() == precision.bits());
        assert_ne!(other.2, want.2);
    }
}

#[test]
fn matrices_are_stored_and_computed_in_every_format() {
    let base = recipe(DenseFormat::F32, DenseFormat::F32);
    let (stored, exact) = run(&base, MixedPrecisionConfig::default());
    assert!(stored.dense > 0 && stored.ternary > 0 && stored.head > 0);
    for precision in FORMATS {
        let format = precision.dense_format().unwrap();
        let shrunk = |bytes: usize| bytes / 4 / format.block() * format.block_bytes();
        let same = precision == BitNetDType::F32;
        let check = |component, want: ModelBytes| {
            let (bytes, logits) = run(&base, with(component, precision));
            assert_eq!(bytes, want, "{component} as {precision}");
            assert_eq!(logits == exact, same, "{component} as {precision}");
            logits
        };
        check(ComponentType::Embedding, ModelBytes { embedding: shrunk(stored.embedding), ..stored });
        check(ComponentType::Head, ModelBytes { head: shrunk(stored.head), ..stored });
        // What is converted is what a file in that format would have been.
        let linears = check(ComponentType::DenseLinear, ModelBytes { dense: shrunk(stored.dense), ..stored });
        let file = recipe(DenseFormat::F32, format);
        assert!(
            run(&file, MixedPrecisionConfig::default())
                == (ModelBytes { dense: shrunk(stored.dense), ..stored }, linears)
        );
        let both = with(ComponentType::Embedding, precision).with_component(ComponentType::Head, precision);
        let file = recipe(format, DenseFormat::F32);
        assert!(run(&base, both) == run(&file, MixedPrecisionConfig::default()), "{precision}");
    }
}

#[test]
fn norms_are_stored_and_computed_in_every_float() {
    let base = Recipe { norms: DenseFormat::F32, ..recipe(DenseFormat::F16, DenseFormat::F16) };
    let (stored, exact) = run(&base, MixedPrecisionConfig::default());
    for precision in [BitNetDType::F32, BitNetDType::F16, BitNetDType::BF16] {
        let (bytes, logits) = run(&base, with(ComponentType::Norm, precision));
        assert_eq!(bytes, ModelBytes { norms: stored.norms / 4 * precision.bits() / 8, ..stored });
        assert_eq!(logits == exact, precision == BitNetDType::F32);
        // Norms of a file in that format, which are widened when they are loaded.
        let file = Recipe { norms: precision.dense_format().unwrap(), ..base.clone() };
        if precision == BitNetDType::F16 {
            assert!(logits == run(&file, MixedPrecisionConfig::default()).1, "{precision}");
        }
    }
    for precision in [BitNetDType::I8, BitNetDType::I4] {
        let options = ModelOptions { precision: with(ComponentType::Norm, precision), ..Default::default() };
        let message = Model::embedded_with(&options).unwrap_err().to_string();
        assert_eq!(message, format!("the norms cannot be kept as {precision}; use one of f32, f16, bf16"));
    }
}

#[test]
fn caches_are_stored_and_computed_in_every_format() {
    let ids: Vec<u32> = (0..40).map(|i| i * 37 % 2048).collect();
    let mut seen = Vec::new();
    for precision in KV_DTYPES {
        let config = with(ComponentType::KvCache, precision);
        let model =
            Model::embedded_with(&ModelOptions { precision: config.clone(), ..Default::default() }).unwrap();
        let before = model.pool().get_metrics().total_allocated;
        let session = model.session(SessionOptions::default()).unwrap();
        let taken = model.pool().get_metrics().total_allocated - before;
        assert_eq!(session.kv_dtype(), precision);
        let (c, n) = (model.config(), session.max_seq_len());
        let activations = Session::activation_bytes(c, session.chunk(), n).unwrap();
        assert_eq!(taken - activations, Session::kv_cache_bytes(c, n, precision));
        let row = Session::kv_bytes_per_token(c, 1, precision) / (2 * c.n_layers * c.n_kv_heads);
        let scale = if precision.bits() <= 8 { 4 } else { 0 };
        assert_eq!(row, c.head_dim * precision.bits() / 8 + scale);
        // A session may ask for another than the model.
        let plain = Model::embedded().unwrap();
        let mut asked = plain.session(SessionOptions { precision: config, ..Default::default() }).unwrap();
        let want = bits(asked.forward(&ids).unwrap());
        assert!(*logits(&model, &ids).last().unwrap() == want);
        assert!(!seen.contains(&want), "{precision} computes what another format does");
        seen.push(want);
    }
}

#[test]
fn weights_are_no_business_of_a_session() {
    let model = Model::embedded().unwrap();
    let precision = with(ComponentType::Head, BitNetDType::I8);
    let message = model.session(SessionOptions { precision, ..Default::default() }).unwrap_err().to_string();
    assert_eq!(message, "the precision of a session must be about the KV cache; weights belong to the model");
}

#[test]
fn ternary_weights_are_never_widened() {
    let ternary = Recipe { projections: vec![I2_S], ..recipe(DenseFormat::F16, DenseFormat::F16) };
    let (stored, exact) = run(&ternary, MixedPrecisionConfig::default());
    assert_eq!(stored.dense, 0);
    for precision in FORMATS {
        let all = LayerPrecisionConfig::new(LayerType::Linear, precision)
            .with_component_override(ComponentType::DenseLinear, precision);
        let config = with(ComponentType::DenseLinear, precision).with_layer_config("*".into(), all);
        assert!(run(&ternary, config) == (stored, exact.clone()), "{precision}");
    }
    let (bytes, _) = run(&ternary, with(ComponentType::Weights, BitNetDType::F32));
    assert_eq!((bytes.ternary, bytes.head), (stored.ternary, 2 * stored.head));
}

/// A tied head is a matrix of its own where the two are kept in different formats.
#[test]
fn a_tied_head_follows_its_own_wish() {
    let tied = Recipe { tied: true, ..recipe(DenseFormat::F16, DenseFormat::F16) };
    let (stored, exact) = run(&tied, MixedPrecisionConfig::default());
    assert_eq!(stored.head, 0);
    let eighth = stored.embedding / 2 / 32 * 34;
    let (bytes, of_head) = run(&tied, with(ComponentType::Head, BitNetDType::I8));
    assert_eq!((bytes.embedding, bytes.head), (stored.embedding, eighth));
    let (bytes, of_embedding) = run(&tied, with(ComponentType::Embedding, BitNetDType::I8));
    assert_eq!((bytes.embedding, bytes.head), (eighth, stored.embedding));
    let (bytes, of_both) = run(&tied, with(ComponentType::Weights, BitNetDType::I8));
    assert_eq!((bytes.embedding, bytes.head), (eighth, 0));
    let all = [exact, of_head, of_embedding, of_both];
    assert!((0..4).all(|i| (0..i).all(|j| all[i] != all[j])), "each is another model");
}

#[test]
fn layers_have_formats_by_their_names() {
    let base = recipe(DenseFormat::F32, DenseFormat::F32);
    let dense = Recipe { projections: vec![StoredAs::Dense(DenseFormat::F32)], ..base };
    let (stored, _) = run(&dense, MixedPrecisionConfig::default());
    let first = LayerPrecisionConfig::new(LayerType::Attention, BitNetDType::F16);
    let (bytes, _) = run(&dense, MixedPrecisionConfig::default().with_layer_config("blk.0.*".into(), first));
    // q and o of (128, 128), k and v of (64, 128).
    assert_eq!(stored.dense - bytes.dense, 2 * (2 * 128 * 128 + 2 * 64 * 128));
}

#[test]
fn strategies_never_make_a_weight_larger() {
    let small = recipe(DenseFormat::Q4_0, DenseFormat::Q8_0);
    let (stored, _) = run(&small, MixedPrecisionConfig::default());
    let (balanced, _) = run(&small, MixedPrecisionConfig::balanced());
    // Norms stay what they are in the file, but where nobody says anything single precision is faster.
    let halves = stored.norms / 2;
    assert_eq!(balanced, ModelBytes { norms: halves, ..stored });
    let (aggressive, _) = run(&small, MixedPrecisionConfig::aggressive());
    assert_eq!((aggressive.embedding, aggressive.dense), (stored.embedding, stored.dense / 34 * 18));
    let asked = MixedPrecisionConfig::balanced().only_narrowing(false);
    assert_eq!(run(&small, asked).0.embedding, stored.embedding / 18 * 34);
    // What is asked for by name is done.
    let asked = MixedPrecisionConfig::balanced().with_component(ComponentType::Embedding, BitNetDType::F16);
    assert_eq!(run(&small, asked).0.embedding, stored.embedding / 18 * 64);
    assert_eq!(run(&small, MixedPrecisionConfig::conservative()).0.norms, halves);
    assert_eq!(aggressive.norms, halves);
}

#[test]
fn names_that_no_layer_has_are_noted() {
    let folder = tempfile::tempdir().unwrap();
    let path = RandomModel::new(recipe(DenseFormat::F16, DenseFormat::F16)).write_gguf(folder.path());
    let layer = |layer_type| LayerPrecisionConfig::new(layer_type, BitNetDType::F16);
    let precision = MixedPrecisionConfig::default()
        .with_layer_config("blk.*.ffn_norm".into(), layer(LayerType::Norm))
        .with_layer_config("model.layers.0.*".into(), layer(LayerType::Linear));
    let options = ModelOptions { precision, ..Default::default() };
    let model = Model::open_with(path, &options, &mut |_| ()).unwrap();
    let said: Vec<_> =
        model.notices().iter().filter(|notice| notice.contains("no layer is called")).collect();
    assert!(said.len() == 1 && said[0].contains("`model.layers.0.*`"), "{said:?}");
}

/// A value that the format asked for cannot hold is no infinity, which would break every token that meets it.
#[test]
fn values_beyond_a_format_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let mut model = RandomModel::new(recipe(DenseFormat::F32, DenseFormat::F16));
    model.tensor(Role::Embedding).values[77] = 70_000.0;
    let path = model.write_gguf(folder.path());
    let open = |precision| {
        let precision = with(ComponentType::Embedding, precision);
        Model::open_with(&path, &ModelOptions { precision, ..Default::default() }, &mut |_| ())
    };
    let message = open(BitNetDType::F16).unwrap_err().to_string();
    assert!(message.contains("token_embd.weight") && message.contains("70000"), "{message}");
    assert!(open(BitNetDType::BF16).is_ok());
}

#[test]
fn a_plan_finds_formats_for_the_matrices_of_a_file() {
    let folder = tempfile::tempdir().unwrap();
    let tied = Recipe { tied: true, ..recipe(DenseFormat::F16, DenseFormat::F16) };
    let path = RandomModel::new(tied).write_gguf(folder.path());
    let source = bitnet_inference::source::open(&path, I2sLayout::default()).unwrap();
    let plan = PrecisionPlan::new(&*source, &MixedPrecisionConfig::default()).unwrap();
    let analysis = plan.manager().analyze_configuration().unwrap();
    assert_eq!((analysis.memory_savings, analysis.accuracy_impact), (0.5, 0.0), "as the file has them");
    let model = Model::open(&path).unwrap();
    assert_eq!(analysis.bytes, model.weight_bytes().dense + model.weight_bytes().embedding);
    assert!(plan.manager().optimize_precision(OptimizationObjective::Accuracy).unwrap().is_empty());
    let changes = plan.manager().optimize_precision(OptimizationObjective::Memory).unwrap();
    assert_eq!(changes.len(), analysis.tensors.len());
    assert!(plan.changes().is_empty());
    plan.manager().apply(&changes);
    let names = plan.changes();
    assert!(["output", "token_embd"].iter().all(|name| names.contains_key(*name)), "{names:?}");
    let precision = names
        .into_iter()
        .fold(MixedPrecisionConfig::default(), |all, (name, one)| all.with_layer_config(name, one));
    let options = ModelOptions { precision, ..Default::default() };
    let model = Model::open_with(&path, &options, &mut |_| ()).unwrap();
    let bytes = model.weight_bytes();
    assert_eq!(bytes.dense + bytes.embedding, plan.manager().analyze_configuration().unwrap().bytes);
    assert_eq!(bytes.head, 0, "the embedding is the head still");
    assert!(model.notices().is_empty(), "{:?}", model.notices());
}

/// The configuration that a plan's changes are, as its user writes them.
fn changed(plan: &PrecisionPlan) -> MixedPrecisionConfig {
    let base = MixedPrecisionConfig::default().only_narrowing(true);
    plan.changes().into_iter().fold(base, |all, (name, one)| all.with_layer_config(name, one))
}

/// A weight beyond half precision, in a row that no sample of every second row has, does not end the search for formats.
#[test]
fn a_plan_rises_past_formats_that_cannot_hold_a_weight() {
    let folder = tempfile::tempdir().unwrap();
    let recipe = Recipe { tied: true, vocab_size: 3000, ..recipe(DenseFormat::BF16, DenseFormat::BF16) };
    let mut model = RandomModel::new(recipe);
    let (row, cols) = (1501, 128);
    model.tensor(Role::Embedding).values[row * cols + 5] = 70_144.0;
    let path = model.write_gguf(folder.path());
    let source = bitnet_inference::source::open(&path, I2sLayout::default()).unwrap();
    let plan = PrecisionPlan::new(&*source, &MixedPrecisionConfig::default()).unwrap();
    let manager = plan.manager();
    manager.apply(&manager.optimize_precision(OptimizationObjective::Memory).unwrap());
    let rule = PolicyRule::new("up".into(), PolicyAction::RaisePrecision);
    let mut policies = PolicyEngine::new();
    policies.add_policy(PrecisionPolicy::new("up".into(), String::new(), String::new()).add_rule(rule));
    let nothing = PolicyContext::new("", LayerType::Linear, ComponentType::Weights, 0);
    let mut of_embedding = Vec::new();
    loop {
        let changes = manager.adjust(&policies, &nothing).unwrap();
        manager.analyze_configuration().unwrap();
        let options = ModelOptions { precision: changed(&plan), ..Default::default() };
        Model::from_source(&*source, &options, &mut |_| ()).unwrap();
        if changes.is_empty() {
            break;
        }
        of_embedding.extend(changes.into_iter().filter(|change| change.layer == "token_embd"));
    }
    let steps: Vec<_> = of_embedding.iter().map(|change| change.to).collect();
    assert_eq!(steps, [BitNetDType::I8, BitNetDType::BF16], "and no further, because that is exact");
    assert_eq!(of_embedding[1].reason, "up; f16 cannot hold its values");
}

/// A model with a tensor in a format that can only be read.
#[derive(Debug)]
struct ReadOnly(Box<dyn Source>);

impl Source for ReadOnly {
    fn info(&self) -> &SourceInfo {
        self.0.info()
    }

    fn tensor(&self, role: Role) -> bitnet_inference::Result<Option<StoredTensor>> {
        let mut tensor = self.0.tensor(role)?;
        if let Some(tensor) = tensor.as_mut().filter(|_| role == Role::Layer(1, Part::Proj(Proj::Up))) {
            let n = tensor.rows * DenseFormat::Q6K.row_bytes(tensor.cols).unwrap();
            let bytes = Bytes::new(&Mapping::memory("q6_k", vec![0; n]), 0..n).unwrap();
            tensor.data = StoredData::Dense(DenseFormat::Q6K, bytes);
        }
        Ok(tensor)
    }

    fn unused_tensors(&self) -> Vec<String> {
        Vec::new()
    }

    fn text(&self) -> bitnet_inference::Result<Option<TextParts>> {
        Ok(None)
    }
}

#[test]
fn a_plan_names_no_layer_that_it_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let dense = vec![StoredAs::Dense(DenseFormat::F16)];
    let recipe = Recipe { dim: 256, projections: dense, ..recipe(DenseFormat::F16, DenseFormat::F16) };
    let path = RandomModel::new(recipe).write_gguf(folder.path());
    let source = ReadOnly(bitnet_inference::source::open(&path, I2sLayout::default()).unwrap());
    let plan = PrecisionPlan::new(&source, &MixedPrecisionConfig::default()).unwrap();
    let manager = plan.manager();
    manager.apply(&manager.optimize_precision(OptimizationObjective::Memory).unwrap());
    let names: Vec<String> = plan.changes().into_keys().collect();
    assert!(
        names.iter().any(|name| name == "blk.*.ffn_gate") && names.iter().any(|name| name == "blk.0.ffn_up")
    );
    let options = ModelOptions { precision: changed(&plan), ..Default::default() };
    let bytes = Model::from_source(&source, &options, &mut |_| ()).unwrap().weight_bytes();
    let left_out = 256 * DenseFormat::Q6K.row_bytes(256).unwrap();
    let planned = manager.analyze_configuration().unwrap().bytes;
    assert_eq!(bytes.dense + bytes.embedding + bytes.head, planned + left_out);
}

#[test]
fn rows_that_are_no_whole_blocks_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = RandomModel::new(Recipe::default()).write_hf(folder.path(), false);
    let options =
        ModelOptions { precision: with(ComponentType::Embedding, BitNetDType::I8), ..Default::default() };
    let message = Model::open_with(path, &options, &mut |_| ()).unwrap_err().to_string();
    assert!(
        message.ends_with(
            "the tensor `model.embed_tokens.weight` cannot be kept as q8_0: its rows of 76 are no whole number of \
             blocks of 32; use one of f32, f16, bf16"
        ),
        "{message}"
    );
}

#[test]
fn what_the_bounds_of_a_head_are_kept_in_is_a_precision() {
    let open = |mode, precision| {
        let head = HeadOptions { mode, ..Default::default() };
        Model::embedded_with(&ModelOptions { head, precision, ..Default::default() })
    };
    let bounds = |precision| with(ComponentType::HeadBounds, precision);
    for (mode, precision, want) in [
        (HeadMode::Exact, MixedPrecisionConfig::default(), HeadMode::Exact),
        (HeadMode::Exact, bounds(BitNetDType::I4), HeadMode::Int4),
        (HeadMode::Int4, bounds(BitNetDType::I8), HeadMode::Exact),
        (HeadMode::F16, bounds(BitNetDType::I8), HeadMode::F16),
        (HeadMode::Exact, MixedPrecisionConfig::aggressive(), HeadMode::Int4),
    ] {
        assert_eq!(open(mode, precision).unwrap().head_mode(), want);
    }
    let message = open(HeadMode::Exact, bounds(BitNetDType::F16)).unwrap_err().to_string();
    assert_eq!(message, "the bounds of the head cannot be kept as f16; use one of i8, i4");
}

/// Bounds of a head are of the rows that are computed: those of another format are not taken from the cache.
#[test]
fn derived_heads_belong_to_one_format() {
    let folder = tempfile::tempdir().unwrap();
    let path = RandomModel::new(recipe(DenseFormat::F16, DenseFormat::F16)).write_gguf(folder.path());
    let cache = folder.path().join("cache");
    std::fs::create_dir(&cache).unwrap();
    for (n_files, config) in [
        (1, MixedPrecisionConfig::default()),
        (2, with(ComponentType::Head, BitNetDType::I4)),
        (2, MixedPrecisionConfig::default()),
        (2, with(ComponentType::Embedding, BitNetDType::I4)),
    ] {
        let options = |mode| ModelOptions {
            precision: config.clone(),
            head: HeadOptions { mode, min_rows: 0 },
            cache: Some(CacheDir::new(&cache, u64::MAX)),
            preparation: Preparation::BeforeUse,
            ..Default::default()
        };
        let [fast, full] = [HeadMode::Exact, HeadMode::F16].map(|mode| {
            let model = Model::open_with(&path, &options(mode), &mut |_| ()).unwrap();
            assert_eq!(model.head_mode(), mode);
            let mut session = model.session(SessionOptions::default()).unwrap();
            let mut sampler = bitnet_inference::Sampler::new(Default::default(), 61).unwrap();
            (0..20).map(|id| session.sample(&[id], &mut sampler, 0).unwrap()).collect::<Vec<_>>()
        });
        assert_eq!(fast, full);
        let is_of_a_head = |name: &str| name.contains("head");
        let names = std::fs::read_dir(&cache).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
        assert_eq!(names.filter(|name| is_of_a_head(name)).count(), n_files);
    }
}
