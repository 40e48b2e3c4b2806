//! `bitnet bench`: how fast a model runs, and how far that is from what the machine could do.

mod compare;
mod packing;
mod report;
pub(crate) mod rounds;

use std::io::{self, Write};
use std::time::Instant;

use anyhow::Context;
use bitnet_core::device::probe_bytes;
use bitnet_core::file::CacheDir;
use bitnet_inference::synth::{self, SynthOptions, SynthShape};
use bitnet_inference::{HeadMode, Model, Preparation, Session, SessionOptions, source};
use bitnet_quant::dense::DenseFormat;
use bitnet_quant::limits::Limits;
use bitnet_quant::packing::{I2sLayout, TernaryFormat};
use clap::{Args, Subcommand};
use tempfile::NamedTempFile;

use crate::convert::ProgressLine;
use crate::interrupt;
use crate::model::{ModelArgs, print_notices};
use crate::session::{HeadArgs, KvFormat};
use crate::values;
use compare::Peer;
use packing::PackingArgs;
use report::Report;
use rounds::Candidates;

/// Measure the speed of a model, or of a part of the engine.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, disable_help_subcommand = true)]
#[command(after_help = "\
    Prompt processing (pp) computes all tokens of a prompt and the logits of the last. Generation (tg) starts in an \
    empty context, or behind --depth tokens, and takes the most likely token each time. Both are run once unmeasured, and then --repeat times; the \
    median counts.\n\n\
    The limits are measured in the same process with the same threads, right before and right after. The read \
    bandwidth (peak_gb_s) is the best of several ways to read memory far larger than the caches. The int8 rate \
    (int8_peak_gop_s) is that of the instructions that products are made of, on registers alone, with a multiplication \
    and an addition as two operations: no kernel of the instruction set can exceed it.\n\n\
    tg_bytes_per_token counts the projections as they lie in memory, of the head what --head reads of all rows and \
    the rows that are computed beside, on average (head_candidates), and the keys and values that are read.\n\n\
    --compare runs COMMAND in the shell after each of our runs, which is then preceded by an unmeasured one. It must \
    print the JSON of `llama-bench -o json`, or that of `bitnet bench --json`, for as many tokens as this benchmark.\n\n\
    Examples:\n  \
    bitnet bench\n  \
    bitnet bench --shape 2b-4t\n  \
    bitnet bench packing\n  \
    bitnet bench --model model.gguf --prompt-tokens 512 --gen-tokens 128 --threads 2 --json\n  \
    bitnet bench --model model.gguf --prompt-tokens 512 --compare 'llama-bench -m other.gguf -p 512 -n 64 -t 2 -o json'")]
pub(crate) struct BenchArgs {
    #[command(subcommand)]
    part: Option<Part>,
    #[command(flatten)]
    model: ModelArgs,
    /// A random model of this shape, made for the run in the folder for temporary files, instead of --model.
    #[arg(long, value_parser = SynthShape::NAMES, conflicts_with = "model")]
    shape: Option<String>,
    /// Tokens of the prompt.
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..), allow_negative_numbers = true)]
    prompt_tokens: u32,
    /// Tokens that are generated.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..), allow_negative_numbers = true)]
    gen_tokens: u32,
    /// Tokens that are in the context when generation starts.
    #[arg(long, value_name = "N", default_value_t = 0, allow_negative_numbers = true)]
    depth: u32,
    /// Measured runs [default: 5, or 3 with --compare].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), allow_negative_numbers = true)]
    repeat: Option<u32>,
    /// Run this benchmark in turns with ours, and print both rates and their ratio.
    #[arg(long, value_name = "COMMAND")]
    compare: Option<String>,
    /// Tokens of the prompt that are computed together.
    #[arg(long, value_name = "N", value_parser = values::count, allow_negative_numbers = true)]
    chunk: Option<usize>,
    /// How keys and values are kept; int8 takes half of what f16 takes, and changed a story's perplexity by 0.01 %
    /// [default: what --precision says, or f16].
    #[arg(long, value_enum)]
    kv: Option<KvFormat>,
    #[command(flatten)]
    head: HeadArgs,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// What can be measured without a model.
#[derive(Debug, Subcommand)]
enum Part {
    Packing(PackingArgs),
}

pub(crate) fn bench(args: &BenchArgs) -> anyhow::Result<()> {
    if let Some(Part::Packing(args)) = &args.part {
        return packing::packing(args);
    }
    // Weights that are half made go with an interrupted run.
    interrupt::install()?;
    let precision = KvFormat::asked(args.kv);
    let mut options = args.model.options(Preparation::BeforeUse, args.head.mode())?;
    let made = args.shape.as_deref().map(model_of_shape).transpose()?;
    // What is derived from a model that is made for the run goes with it.
    let cache = made.as_ref().map(|_| tempfile::tempdir()).transpose()?;
    if let Some(cache) = &cache {
        options.cache = Some(CacheDir::new(cache.path(), u64::MAX));
    }
    let start = Instant::now();
    let source = match &made {
        Some(file) => source::open(file.path(), I2sLayout::default())?,
        None => args.model.source.open()?,
    };
    let model = crate::model::load(&*source, &options)?;
    let load_s = start.elapsed().as_secs_f64();
    print_notices(&model);
    args.model.explain(&model);

    let (prompt_tokens, gen_tokens) = (args.prompt_tokens as usize, args.gen_tokens as usize);
    let depth = args.depth as usize;
    // The token that generation starts from takes a position, too.
    let max_seq_len = Some(prompt_tokens.max(depth + gen_tokens + 1));
    let mut session = model.session(SessionOptions { max_seq_len, chunk: args.chunk, precision })?;
    let (kernels, threads) = model.processor();
    let before = Limits::measure(kernels, threads, probe_bytes());
    let mut candidates = Candidates::default();
    let mut measure = |repeat| -> anyhow::Result<_> {
        let pp = rounds::prompt(&mut session, prompt_tokens, repeat)?;
        let (tg, counted) = rounds::generation(&mut session, depth, gen_tokens, repeat)?;
        candidates = counted;
        Ok((pp, tg))
    };
    let (pp, tg, compared) = match args.compare.as_deref() {
        None => {
            let (pp, tg) = measure(args.repeat.unwrap_or(5))?;
            (pp, tg, None)
        }
        Some(command) => {
            let peer = Peer { command, prompt_tokens, gen_tokens };
            let ours = || measure(1).map(|(pp, tg)| (pp.median, tg.median));
            let (pp, tg, compared) = peer.in_turns(args.repeat.unwrap_or(3), ours)?;
            (pp, tg, Some(compared))
        }
    };
    let rss_bytes = rss_bytes();
    let after = Limits::measure(kernels, threads, probe_bytes());

    let report = Report {
        model: args.shape.clone().unwrap_or_else(|| source.path().display().to_string()),
        threads: model.n_threads(),
        isa: model.kernels_name(),
        load_s,
        rss_bytes,
        pp_tokens: prompt_tokens,
        pp,
        ops_per_token: 2 * model.config().n_projection_weights(),
        tg_tokens: gen_tokens,
        tg_depth: depth,
        tg,
        head: head_name(model.head_mode()),
        bytes_per_token: model.projection_bytes()
            + head_bytes_per_token(&model, &candidates)
            + kv_bytes_per_token(&session, depth, gen_tokens),
        candidates,
        before,
        after,
        compared,
    };
    let mut stdout = io::stdout().lock();
    if args.json {
        writeln!(stdout, "{}", report.to_json())?
    } else {
        report.print(&mut stdout)?
    }
    Ok(())
}

/// A random model in the layout of the official files; it is gone when the file is dropped.
fn model_of_shape(name: &str) -> anyhow::Result<NamedTempFile> {
    let shape = SynthShape::named(name).with_context(|| format!("there is no shape `{name}`"))?;
    let file = tempfile::Builder::new().prefix("bitnet-").suffix(".gguf").tempfile()?;
    let options = SynthOptions {
        shape,
        format: TernaryFormat::I2s(I2sLayout::default()),
        embedding: DenseFormat::F16,
        seed: 0,
    };
    let mut line = ProgressLine::new("making a model");
    synth::write(file.path(), &options, &mut |progress| line.show(progress))?;
    Ok(file)
}

fn head_name(mode: HeadMode) -> &'static str {
    match mode {
        HeadMode::Exact => "exact",
        HeadMode::Int4 => "int4",
        HeadMode::F16 => "f16",
    }
}

/// Bytes of the head that a token reads.
fn head_bytes_per_token(model: &Model, candidates: &Candidates) -> usize {
    let bytes = model.head_bytes();
    match model.head_mode() {
        HeadMode::F16 => bytes.full,
        HeadMode::Exact | HeadMode::Int4 => bytes.all_rows + (candidates.mean() * bytes.row as f64) as usize,
    }
}

/// Bytes of keys and values that a token reads, on average over a generation that starts behind `depth` tokens and one.
fn kv_bytes_per_token(session: &Session, depth: usize, gen_tokens: usize) -> usize {
    // The tokens at positions 1..=n read 2..=n + 1 rows, beside those of the tokens before.
    Session::kv_bytes_per_token(session.model().config(), depth + (gen_tokens + 3) / 2, session.kv_dtype())
}

/// Resident memory of the process, where the system tells it.
fn rss_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}
