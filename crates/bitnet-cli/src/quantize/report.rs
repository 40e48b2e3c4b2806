//! What quantising did to a model: measured on the files, and on the predictions of both.

use std::io::{self, Write};

use anyhow::Context;
use bitnet_core::mixed_precision::{MixedPrecisionConfig, PrecisionStrategy};
use bitnet_inference::convert::WriteProgress;
use bitnet_inference::quantize::report::{MatrixReport, OTHER_FORMATS, OneLayer, compare};
use bitnet_inference::quantize::stored_bytes;
use bitnet_inference::source::{self, Source};
use bitnet_inference::{HeadMode, Model, ModelOptions, Preparation, Session, SessionOptions};
use bitnet_quant::quantize::metrics::ErrorMetrics;
use serde_json::{Value, json};

use super::QuantizeArgs;
use crate::accuracy::{Accuracy, GivenText, Reference};
use crate::convert::ProgressLine;
use crate::model::load;

const DESTROYED: &str =
    "this model was not trained to be ternary, and making its weights ternary afterwards destroys it";
const PRUNED: &str =
    "--sparsity makes zeros of weights that this model was trained with, and makes it another model";
/// Tokens of the text on which each layer is measured alone.
const SENSITIVITY_TOKENS: usize = 64;

/// What is measured.
struct Report {
    matrices: Vec<MatrixReport>,
    /// For each layer.
    sensitivity: Vec<f64>,
    n_tokens: usize,
    bytes: (usize, usize),
    perplexity_before: f64,
    after: Accuracy,
    trained_ternary: bool,
}

/// The options with which both models are run: weights as they are stored, keys and values in single precision.
pub(super) fn engine_options(args: &QuantizeArgs) -> anyhow::Result<ModelOptions> {
    let precision = MixedPrecisionConfig::of_strategy(PrecisionStrategy::Conservative);
    Ok(ModelOptions {
        i2s_layout: args.layout.i2s,
        preparation: Preparation::Never,
        ..args.compute.options(precision, Some(HeadMode::F16))?
    })
}

/// What everybody should know before they use the result.
pub(super) fn harm(args: &QuantizeArgs, trained_ternary: bool) -> Option<&'static str> {
    match trained_ternary {
        false => Some(DESTROYED),
        true => (args.sparsity > 0.0).then_some(PRUNED),
    }
}

pub(super) fn print(
    args: &QuantizeArgs,
    options: &ModelOptions,
    original: &dyn Source,
    text: Option<GivenText>,
    trained_ternary: bool,
) -> anyhow::Result<()> {
    let report = measure(args, options, original, text, trained_ternary)
        .with_context(|| format!("{} is written, but cannot be measured", args.output.display()))?;
    let mut stdout = io::stdout().lock();
    if args.accuracy.json {
        let names = (original.path().display().to_string(), args.output.display().to_string());
        writeln!(stdout, "{}", report.to_json(names, args))?;
    } else {
        report.print(&mut stdout)?;
    }
    if let Some(harm) = harm(args, trained_ternary) {
        say!(
            "warning: {harm}: its perplexity was {:.2} and is {:.2}",
            report.perplexity_before,
            report.after.perplexity
        );
    }
    Ok(())
}

fn measure(
    args: &QuantizeArgs,
    options: &ModelOptions,
    original: &dyn Source,
    text: Option<GivenText>,
    trained_ternary: bool,
) -> anyhow::Result<Report> {
    let quantized = source::open(&args.output, Default::default())?;
    let mut line = ProgressLine::new("comparing weights");
    let matrices = compare(original, &*quantized, &mut |progress| line.show(progress))?;
    drop(line);

    let before = load(original, options)?;
    let ids = args.accuracy.ids(text, &before)?;
    let few = Reference::new(&before, ids[..ids.len().min(SENSITIVITY_TOKENS)].to_vec())?;
    let reference = Reference::new(&before, ids)?;
    drop(before);
    let after = reference.compare(&mut session(&load(&*quantized, options)?, &reference)?)?;
    let (mut sensitivity, total) = (Vec::new(), original.config().n_layers);
    let mut line = ProgressLine::new("measuring layers");
    for layer in 0..total {
        line.show(WriteProgress { done: layer, total });
        let model = load(&OneLayer { original, quantized: &*quantized, layer }, options)?;
        sensitivity.push(few.compare(&mut session(&model, &few)?)?.divergence);
    }
    drop(line);
    Ok(Report {
        matrices,
        sensitivity,
        n_tokens: reference.n_tokens(),
        bytes: (stored_bytes(original)?, stored_bytes(&*quantized)?),
        perplexity_before: reference.perplexity(),
        after,
        trained_ternary,
    })
}

fn session(model: &Model, reference: &Reference) -> anyhow::Result<Session> {
    let options = SessionOptions { max_seq_len: Some(reference.n_tokens()), ..SessionOptions::default() };
    Ok(model.session(options)?)
}

/// Some matrices together.
#[derive(Default)]
struct Sum {
    scale: f64,
    n_matrices: usize,
    n: usize,
    n_zeros: usize,
    error: ErrorMetrics,
}

impl<'a> FromIterator<&'a MatrixReport> for Sum {
    fn from_iter<I: IntoIterator<Item = &'a MatrixReport>>(matrices: I) -> Self {
        let mut sum = Sum::default();
        for matrix in matrices {
            sum.scale += f64::from(matrix.scale);
            sum.n_matrices += 1;
            sum.n += matrix.n;
            sum.n_zeros += matrix.n_zeros;
            sum.error.merge(&matrix.error);
        }
        sum
    }
}

impl Sum {
    fn mean_scale(&self) -> f64 {
        self.scale / self.n_matrices.max(1) as f64
    }

    fn zeros(&self) -> f64 {
        self.n_zeros as f64 / self.n.max(1) as f64
    }
}

/// Signal over noise; `None` where there is no noise.
fn decibels(error: &ErrorMetrics) -> Option<f64> {
    Some(error.sqnr_db()).filter(|db| db.is_finite())
}

impl Report {
    fn layer(&self, layer: usize) -> Sum {
        self.matrices.iter().filter(|matrix| matrix.layer == layer).collect()
    }

    /// What each of the other formats would have lost in all matrices.
    fn others(&self) -> impl Iterator<Item = (&'static str, ErrorMetrics)> {
        OTHER_FORMATS.iter().enumerate().map(|(i, (name, ..))| {
            let mut error = ErrorMetrics::default();
            self.matrices.iter().for_each(|matrix| error.merge(&matrix.other_errors[i]));
            (*name, error)
        })
    }

    fn to_json(&self, (input, output): (String, String), args: &QuantizeArgs) -> Value {
        let matrices: Vec<Value> = self
            .matrices
            .iter()
            .map(|matrix| {
                json!({
                    "name": matrix.name,
                    "layer": matrix.layer,
                    "scale": matrix.scale,
                    "zeros": matrix.n_zeros as f64 / matrix.n.max(1) as f64,
                    "mse": matrix.error.mse(),
                    "sqnr_db": decibels(&matrix.error),
                    "cosine": matrix.error.cosine(),
                })
            })
            .collect();
        let layers: Vec<Value> = self
            .sensitivity
            .iter()
            .enumerate()
            .map(|(layer, sensitivity)| {
                let sum = self.layer(layer);
                json!({
                    "layer": layer,
                    "mean_scale": sum.mean_scale(),
                    "zeros": sum.zeros(),
                    "sqnr_db": decibels(&sum.error),
                    "cosine": sum.error.cosine(),
                    "sensitivity": sensitivity,
                })
            })
            .collect();
        let others: serde_json::Map<String, Value> =
            self.others().map(|(name, error)| (name.to_owned(), decibels(&error).into())).collect();
        let all: Sum = self.matrices.iter().collect();
        json!({
            "input": input,
            "output": output,
            "trained_ternary": self.trained_ternary,
            "bytes_before": self.bytes.0,
            "bytes_after": self.bytes.1,
            "sparsity_asked": args.sparsity,
            "zeros": all.zeros(),
            "sqnr_db": decibels(&all.error),
            "cosine": all.error.cosine(),
            "sqnr_db_of_other_formats": others,
            "tokens": self.n_tokens,
            "text": args.accuracy.origin(),
            "kl_divergence": self.after.divergence,
            "kl_divergence_max": self.after.largest_divergence,
            "same_choice": self.after.same_choice,
            "perplexity_before": self.perplexity_before,
            "perplexity_after": self.after.perplexity,
            "layers": layers,
            "matrices": matrices,
        })
    }

    fn print(&self, out: &mut impl Write) -> io::Result<()> {
        let row = |out: &mut dyn Write, name: &str, sum: &Sum, sensitivity: Option<f64>| {
            write!(
                out,
                "{name:>5}  {:>10.3e}  {:>5.1} %  {:>10}  {:>6.4}",
                sum.mean_scale(),
                100.0 * sum.zeros(),
                decibels(&sum.error).map_or("no noise".into(), |db| format!("{db:.2} dB")),
                sum.error.cosine(),
            )?;
            match sensitivity {
                Some(divergence) => writeln!(out, "  {divergence:>11.3e}"),
                None => writeln!(out),
            }
        };
        writeln!(out, "layer       scale    zeros        SQNR  cosine  sensitivity")?;
        for (layer, sensitivity) in self.sensitivity.iter().enumerate() {
            row(out, &layer.to_string(), &self.layer(layer), Some(*sensitivity))?;
        }
        row(out, "all", &self.matrices.iter().collect(), None)?;
        let others = self.others().map(|(name, error)| match decibels(&error) {
            Some(db) => format!("{name} {db:.1} dB"),
            None => format!("{name} everything"),
        });
        writeln!(out, "\nother formats would have kept: {}", others.collect::<Vec<_>>().join(", "))?;
        let megabytes = |bytes: usize| bytes as f64 / 1e6;
        writeln!(
            out,
            "bytes       {:.2} MB before, {:.2} MB after",
            megabytes(self.bytes.0),
            megabytes(self.bytes.1)
        )?;
        let Accuracy { divergence, largest_divergence, same_choice, perplexity } = self.after;
        writeln!(
            out,
            "divergence  {divergence:.3e} (at most {largest_divergence:.3e}), {:.1} % of the likeliest tokens are the same",
            100.0 * same_choice
        )?;
        writeln!(
            out,
            "perplexity  {:.4} before, {perplexity:.4} after, on {} tokens",
            self.perplexity_before, self.n_tokens
        )
    }
}
