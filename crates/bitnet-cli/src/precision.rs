//! `bitnet precision`: what a model's number formats cost and save, measured on the model.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal, Write, stderr};
use std::path::PathBuf;

use anyhow::Context;
use bitnet_core::BitNetDType;
use bitnet_core::mixed_precision::{
    ComponentType, ConditionOperator, ConditionType, ConditionValue, LayerPrecisionConfig, LayerType,
    MixedPrecisionConfig, OptimizationObjective, PolicyAction, PolicyCondition, PolicyContext, PolicyEngine,
    PolicyRule, PrecisionAnalysis, PrecisionChange, PrecisionPolicy, PrecisionStrategy, memory_usage_percent,
};
use bitnet_inference::source::Source;
use bitnet_inference::{
    HeadMode, HeadOptions, Model, ModelBytes, ModelOptions, PrecisionPlan, Preparation, Session,
    SessionOptions,
};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use crate::accuracy::{Accuracy, AccuracyArgs, Reference};
use crate::bench::rounds::{self, Rates};
use crate::interrupt;
use crate::model::{ComputeArgs, LayoutArgs, open_source, print_notices};

/// Tokens of a timed prompt and of a timed generation, and how often each is timed.
const TIMED_TOKENS: usize = 32;
const ROUNDS: u32 = 3;
/// Changes that are listed one by one.
const LISTED_CHANGES: usize = 20;

/// Measure what number formats cost and save.
///
/// For each strategy, the model is loaded and run: bytes of its weights and of a token's keys and values, tokens a second,
/// and how far its predictions are from those of the conservative strategy, which keeps weights as the file has them and
/// keys and values in single precision. --optimize looks for formats that serve a purpose better, and measures the model in
/// these.
#[derive(Debug, Args)]
#[command(after_help = "\
    The divergence is that of Kullback and Leibler in nats, the mean over the tokens of the text; 0 is no difference at \
    all. The perplexity is e to the mean surprise at the text's tokens: a text that the model has generated, at \
    temperature 1, unless --text gives another. Ternary weights are ternary in every strategy.\n\n\
    A file for --policy is JSON, as in {\"strategy\": \"balanced\", \"components\": {\"kv_cache\": \"i8\", \"head\": \
    \"bf16\"}}. Components are embedding, head, dense_linear, weights (for these three), head_bounds, norm and kv_cache, formats \
    f32, f16, bf16, i8 and i4. \"layers\" and \"policies\" hold rules for layers by name and under conditions. \
    --optimize prints such a file.\n\n\
    The error of dense weights is √(Σ difference² / Σ weight²), measured on up to 262,144 weights of each matrix. \
    --optimize measures bytes, error and the time of a product of these in each format, and chooses one for each \
    matrix.\n\n\
    Examples:\n  \
    bitnet precision\n  \
    bitnet precision model.gguf --text story.txt --json\n  \
    bitnet precision model.gguf --policy aggressive --tokens 256\n  \
    bitnet precision model.gguf --optimize memory --min-accuracy 99")]
pub(crate) struct PrecisionArgs {
    /// A GGUF file, a safetensors file, a model folder, or the ORG/NAME of a model in the local Hugging Face cache;
    /// the embedded stories model by default.
    #[arg(value_name = "MODEL")]
    path: Option<PathBuf>,
    /// Measure this one beside the reference: conservative, balanced, aggressive, or a JSON file.
    #[arg(long, value_name = "POLICY")]
    policy: Option<Policy>,
    /// Look for the best format of each dense matrix and measure the model in it: for memory, speed, accuracy, or balanced
    /// between these (by 4, 3 and 3 parts).
    #[arg(long, value_name = "OBJECTIVE", value_parser = objective, conflicts_with = "policy")]
    optimize: Option<Objective>,
    /// Raise the formats that were chosen, step by step, until the likeliest token is the same as before for so many percent
    /// of the text's tokens.
    #[arg(long, value_name = "PERCENT", value_parser = percent, requires = "optimize", allow_negative_numbers = true)]
    min_accuracy: Option<f64>,
    #[command(flatten)]
    accuracy: AccuracyArgs,
    #[command(flatten)]
    compute: ComputeArgs,
    #[command(flatten)]
    layout: LayoutArgs,
}

/// What --optimize is for.
#[derive(Debug, Clone, Copy)]
struct Objective {
    name: &'static str,
    objective: OptimizationObjective,
}

fn objective(text: &str) -> Result<Objective, String> {
    let balanced =
        OptimizationObjective::Balanced { memory_weight: 0.4, speed_weight: 0.3, accuracy_weight: 0.3 };
    let all = [
        ("memory", OptimizationObjective::Memory),
        ("speed", OptimizationObjective::Speed),
        ("accuracy", OptimizationObjective::Accuracy),
        ("balanced", balanced),
    ];
    let found = all.into_iter().find(|(name, _)| *name == text);
    let found = found.map(|(name, objective)| Objective { name, objective });
    found.ok_or_else(|| format!("objectives are {}", all.map(|(name, _)| name).join(", ")))
}

fn percent(text: &str) -> Result<f64, String> {
    let value = text.parse().ok().filter(|value| (0.0..=100.0).contains(value));
    value.ok_or_else(|| "a number from 0 to 100 is needed".into())
}

/// A strategy, or a file that says what is wanted.
#[derive(Debug, Clone)]
pub(crate) enum Policy {
    Strategy(PrecisionStrategy),
    File(PathBuf),
}

impl std::str::FromStr for Policy {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let strategy = STRATEGIES.into_iter().find(|strategy| strategy.name() == text);
        Ok(strategy.map_or_else(|| Policy::File(text.into()), Policy::Strategy))
    }
}

impl Policy {
    pub(crate) fn config(&self) -> anyhow::Result<MixedPrecisionConfig> {
        Ok(match self {
            Policy::Strategy(strategy) => MixedPrecisionConfig::of_strategy(*strategy),
            Policy::File(path) => MixedPrecisionConfig::open(path)
                .context("precisions are conservative, balanced, aggressive, or a JSON file")?,
        })
    }

    fn name(&self) -> String {
        match self {
            Policy::Strategy(strategy) => strategy.name().to_owned(),
            Policy::File(path) => path.display().to_string(),
        }
    }
}

/// The reference comes first.
const STRATEGIES: [PrecisionStrategy; 3] =
    [PrecisionStrategy::Conservative, PrecisionStrategy::Balanced, PrecisionStrategy::Aggressive];

/// What is measured of one strategy.
#[derive(Debug)]
struct Measured {
    name: String,
    bytes: ModelBytes,
    /// What the head has beside, so that most of its rows need not be read as they are stored.
    derived_head: usize,
    kv_dtype: BitNetDType,
    kv_bytes_per_token: usize,
    prompt: Rates,
    generation: Rates,
    accuracy: Accuracy,
    analysis: PrecisionAnalysis,
    optimized: Option<Optimized>,
}

/// How --optimize came to the formats that it found.
#[derive(Debug)]
struct Optimized {
    changes: Vec<PrecisionChange>,
    /// What is left of them, as a file for --policy says it.
    layers: BTreeMap<String, LayerPrecisionConfig>,
}

impl Optimized {
    fn policy(&self) -> Value {
        json!({ "only_narrow": true, "layers": self.layers })
    }
}

pub(crate) fn precision(args: &PrecisionArgs) -> anyhow::Result<()> {
    interrupt::install()?;
    let mut policies: Vec<Policy> = match &args.policy {
        None if args.optimize.is_some() => vec![Policy::Strategy(PrecisionStrategy::Conservative)],
        None => STRATEGIES.map(Policy::Strategy).into(),
        Some(policy) => vec![Policy::Strategy(PrecisionStrategy::Conservative), policy.clone()],
    };
    policies.dedup_by_key(|policy| policy.name());
    // A file that cannot be read shows before anything takes long.
    let configs = policies.iter().map(Policy::config).collect::<anyhow::Result<Vec<_>>>()?;
    let source = open_source(args.path.as_deref(), &args.layout)?;
    let bar = ProgressBar::new((policies.len() + usize::from(args.optimize.is_some())) as u64);
    if stderr().is_terminal() {
        let template = "measuring {msg} {wide_bar} {pos}/{len}";
        bar.set_style(
            ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()),
        );
    } else {
        bar.set_draw_target(indicatif::ProgressDrawTarget::hidden());
    }

    let mut reference = None;
    let mut text = args.accuracy.read_text()?;
    let mut measured = Vec::new();
    let mut machine = (0, "");
    for (policy, config) in policies.iter().zip(configs) {
        bar.set_message(policy.name());
        bar.tick();
        let plan = PrecisionPlan::new(&*source, &config)?;
        let model = load(&*source, args, config)?;
        print_notices(&model);
        machine = (model.n_threads(), model.kernels_name());
        let reference = match &mut reference {
            Some(reference) => reference,
            none => none.insert(Reference::new(&model, args.accuracy.ids(text.take(), &model)?)?),
        };
        let analysis = plan.manager().analyze_configuration()?;
        measured.push(measure(policy.name(), &model, reference, analysis)?);
        bar.inc(1);
    }
    if let (Some(objective), Some(reference)) = (args.optimize, &reference) {
        bar.set_message(objective.name);
        bar.tick();
        measured.push(optimized(&*source, args, objective, reference)?);
        bar.inc(1);
    }
    bar.finish_and_clear();

    let n_tokens = reference.as_ref().map_or(0, Reference::n_tokens);
    let mut stdout = io::stdout().lock();
    if args.accuracy.json {
        let strategies: Vec<Value> = measured.iter().map(Measured::to_json).collect();
        let object = json!({
            "model": source.path().display().to_string(),
            "threads": machine.0,
            "isa": machine.1,
            "tokens": n_tokens,
            "text": args.accuracy.origin(),
            "reference": measured[0].name,
            "strategies": strategies,
        });
        writeln!(stdout, "{object}")?;
        return Ok(());
    }
    let ((threads, isa), origin) = (machine, args.accuracy.origin());
    let name = source.path().display();
    writeln!(stdout, "{name}: {threads} threads, {isa}, {n_tokens} tokens of a {origin} text")?;
    for strategy in &measured {
        strategy.print(&mut stdout)?;
    }
    Ok(())
}

/// The model in the formats that serve `objective` best, or in higher ones as far as it is to be more accurate.
fn optimized(
    source: &dyn Source,
    args: &PrecisionArgs,
    objective: Objective,
    reference: &Reference,
) -> anyhow::Result<Measured> {
    let plan = PrecisionPlan::new(source, &MixedPrecisionConfig::default())?;
    let manager = plan.manager();
    let mut changes = manager.optimize_precision(objective.objective)?;
    manager.apply(&changes);
    let policies = args.min_accuracy.map(raise_below);
    loop {
        let layers = plan.changes();
        let base = MixedPrecisionConfig::default().only_narrowing(true);
        let config =
            layers.iter().fold(base, |all, (name, one)| all.with_layer_config(name.clone(), one.clone()));
        let model = load(source, args, config)?;
        let name = format!("optimized for {}", objective.name);
        let mut measured = measure(name, &model, reference, manager.analyze_configuration()?)?;
        let seen = PolicyContext {
            memory_usage: memory_usage_percent(),
            accuracy: Some(100.0 * measured.accuracy.same_choice),
            tokens_per_second: Some(measured.generation.median),
            ..PolicyContext::new("", LayerType::Linear, ComponentType::Weights, 0)
        };
        let raised = policies.as_ref().map_or(Ok(Vec::new()), |policies| manager.adjust(policies, &seen))?;
        if raised.is_empty() {
            measured.optimized = Some(Optimized { changes, layers });
            return Ok(measured);
        }
        changes.extend(raised);
    }
}

/// Raises precisions while fewer than `min` percent of the choices are the same.
fn raise_below(min: f64) -> PolicyEngine {
    let poor = PolicyCondition::new(
        ConditionType::Accuracy,
        ConditionOperator::LessThan,
        ConditionValue::Float(min),
    );
    let rule = PolicyRule::new("poor".into(), PolicyAction::RaisePrecision).add_condition(poor);
    let (name, why) = (format!("less than {min} % of the choices were the same"), String::new());
    let mut policies = PolicyEngine::new();
    policies.add_policy(PrecisionPolicy::new("accuracy".into(), name, why).add_rule(rule));
    policies
}

fn load(source: &dyn Source, args: &PrecisionArgs, precision: MixedPrecisionConfig) -> anyhow::Result<Model> {
    let options = ModelOptions {
        i2s_layout: args.layout.i2s,
        preparation: Preparation::BeforeUse,
        ..args.compute.options(precision, None)?
    };
    crate::model::load(source, &options)
}

fn measure(
    name: String,
    model: &Model,
    reference: &Reference,
    analysis: PrecisionAnalysis,
) -> anyhow::Result<Measured> {
    let room = model.config().max_seq_len;
    let max_seq_len = Some(reference.n_tokens().max(TIMED_TOKENS + 1).min(room));
    let mut session = model.session(SessionOptions { max_seq_len, ..SessionOptions::default() })?;
    let accuracy = reference.compare(&mut session)?;
    let timed = TIMED_TOKENS.min(room.saturating_sub(1)).max(1);
    let prompt = rounds::prompt(&mut session, timed, ROUNDS)?;
    let (generation, _) = rounds::generation(&mut session, 0, timed, ROUNDS)?;
    Ok(Measured {
        name,
        bytes: model.weight_bytes(),
        derived_head: match model.head_mode() {
            HeadMode::F16 => 0,
            HeadMode::Exact | HeadMode::Int4 => {
                HeadOptions::default().derived_bytes(model.config().vocab_size, model.config().dim)
            }
        },
        kv_dtype: session.kv_dtype(),
        kv_bytes_per_token: Session::kv_bytes_per_token(model.config(), 1, session.kv_dtype()),
        prompt,
        generation,
        accuracy,
        analysis,
        optimized: None,
    })
}

impl Measured {
    fn to_json(&self) -> Value {
        let ModelBytes { ternary, dense, embedding, head, norms } = self.bytes;
        let mut object = json!({
            "name": self.name,
            "bytes": {
                "ternary": ternary,
                "dense": dense,
                "embedding": embedding,
                "head": head,
                "norms": norms,
                "derived_head": self.derived_head,
                "total": self.bytes.total() + self.derived_head,
            },
            "kv": self.kv_dtype.name(),
            "kv_bytes_per_token": self.kv_bytes_per_token,
            "pp_tok_s": self.prompt.median,
            "tg_tok_s": self.generation.median,
            "kl_divergence": self.accuracy.divergence,
            "kl_divergence_max": self.accuracy.largest_divergence,
            "same_choice": self.accuracy.same_choice,
            "perplexity": self.accuracy.perplexity,
            "weights_error": self.analysis.accuracy_impact,
            "weights_saved": self.analysis.memory_savings,
        });
        if let Some(optimized) = &self.optimized {
            let change = |c: &PrecisionChange| json!({ "layer": c.layer, "from": c.from.name(), "to": c.to.name(), "reason": c.reason });
            object["changes"] = optimized.changes.iter().map(change).collect();
            object["policy"] = optimized.policy();
        }
        object
    }

    fn print(&self, out: &mut impl Write) -> io::Result<()> {
        let megabytes = |bytes: usize| bytes as f64 / 1e6;
        let ModelBytes { ternary, dense, embedding, head, norms } = self.bytes;
        writeln!(out, "\n{}", self.name)?;
        write!(out, "  memory    {:.2} MB of weights:", megabytes(self.bytes.total() + self.derived_head))?;
        let parts = [
            ("ternary", ternary),
            ("dense", dense),
            ("embedding", embedding),
            ("head", head),
            ("norms", norms),
            ("derived head", self.derived_head),
        ];
        let parts = parts.iter().filter(|(_, bytes)| *bytes > 0);
        let parts: Vec<String> =
            parts.map(|(name, bytes)| format!(" {name} {:.2}", megabytes(*bytes))).collect();
        writeln!(
            out,
            "{}; {} bytes of keys and values a token ({})",
            parts.join(","),
            self.kv_bytes_per_token,
            self.kv_dtype
        )?;
        writeln!(
            out,
            "  speed     prompt {:.1} tok/s, generation {:.1} tok/s",
            self.prompt.median, self.generation.median
        )?;
        let Accuracy { divergence, largest_divergence, same_choice, perplexity } = self.accuracy;
        writeln!(
            out,
            "  accuracy  divergence {divergence:.3e} (at most {largest_divergence:.3e}), perplexity {perplexity:.4}, \
             {:.1} % of the likeliest tokens are the same",
            100.0 * same_choice
        )?;
        if !self.analysis.tensors.is_empty() {
            let PrecisionAnalysis { memory_savings, accuracy_impact, tensors, .. } = &self.analysis;
            writeln!(
                out,
                "  weights   {} dense matrices take {:.1} % less than in f32, with an error of {:.3} %",
                tensors.len(),
                100.0 * memory_savings,
                100.0 * accuracy_impact
            )?;
        }
        let Some(optimized) = &self.optimized else { return Ok(()) };
        for PrecisionChange { layer, from, to, reason, .. } in optimized.changes.iter().take(LISTED_CHANGES) {
            writeln!(out, "  change    {layer} from {from} to {to}: {reason}")?;
        }
        match optimized.changes.len() {
            0 => writeln!(out, "  change    none: the formats of the file serve best"),
            n if n > LISTED_CHANGES => writeln!(out, "  change    and {} more", n - LISTED_CHANGES),
            _ => Ok(()),
        }?;
        writeln!(out, "  policy    {}", optimized.policy())
    }
}
