//! `bitnet convert`: any readable model as a GGUF file, and what `bitnet synth` shares with it.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use bitnet_inference::convert::WriteProgress;
use bitnet_quant::dense::DenseFormat;
use bitnet_quant::packing::{I2sLayout, TernaryFormat};

/// Less often than the eye can follow, and never for work that is done at once.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);

/// Formats of ternary layers that can be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum LayerType {
    /// Two bits a weight, one f32 scale a matrix; columns in multiples of 128 (bitnet.cpp).
    #[value(name = "i2_s")]
    I2S,
    /// 1.69 bits a weight; columns in multiples of 256 (llama.cpp).
    #[value(name = "tq1_0")]
    Tq1_0,
    /// 2.06 bits a weight; columns in multiples of 256 (llama.cpp).
    #[value(name = "tq2_0")]
    Tq2_0,
}

impl LayerType {
    pub(crate) fn format(self) -> TernaryFormat {
        match self {
            LayerType::I2S => TernaryFormat::I2s(I2sLayout::Block128),
            LayerType::Tq1_0 => TernaryFormat::Tq1_0,
            LayerType::Tq2_0 => TernaryFormat::Tq2_0,
        }
    }
}

/// Formats of embeddings and heads that can be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum DenseType {
    /// Half precision.
    F16,
    /// The upper half of single precision.
    Bf16,
    /// Signed bytes, 32 to a scale.
    #[value(name = "q8_0")]
    Q8_0,
    /// Single precision.
    F32,
}

impl DenseType {
    pub(crate) fn format(self) -> DenseFormat {
        match self {
            DenseType::F16 => DenseFormat::F16,
            DenseType::Bf16 => DenseFormat::BF16,
            DenseType::Q8_0 => DenseFormat::Q8_0,
            DenseType::F32 => DenseFormat::F32,
        }
    }
}

/// A line on the terminal that says how far writing has come; nothing where there is no terminal.
pub(crate) struct ProgressLine {
    verb: &'static str,
    last: Option<Instant>,
    shown: bool,
}

impl ProgressLine {
    pub(crate) fn new(verb: &'static str) -> Self {
        ProgressLine { verb, last: std::io::stderr().is_terminal().then(Instant::now), shown: false }
    }

    pub(crate) fn show(&mut self, progress: WriteProgress) {
        let Some(last) = self.last.filter(|last| last.elapsed() >= PROGRESS_INTERVAL) else { return };
        let percent = progress.done as f64 / progress.total.max(1) as f64 * 100.0;
        // A terminal that cannot be written to is no reason to stop writing the model.
        let _ = write!(std::io::stderr(), "\r{} {percent:.0} %", self.verb);
        self.last = Some(last + last.elapsed());
        self.shown = true;
    }
}

impl Drop for ProgressLine {
    fn drop(&mut self) {
        if self.shown {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}
