//! A GGUF model in the making: metadata, then tensors a row at a time, with a report of progress.

use std::path::Path;

use bitnet_core::Error as CoreError;
use bitnet_core::Result as CoreResult;
use bitnet_core::file::TensorSink;
use bitnet_core::file::gguf::{GgmlType, GgufWriter};
use bitnet_quant::packing::{I2sLayout, TernaryFormat};

/// How far writing a model has come, in weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WriteProgress {
    /// Weights written.
    pub done: usize,
    /// Weights there are.
    pub total: usize,
}

/// A file to be written, with what is needed to write each of its tensors.
pub(crate) struct ModelWriter<T> {
    pub(crate) gguf: GgufWriter,
    tensors: Vec<T>,
    n_weights: usize,
}

impl<T> ModelWriter<T> {
    /// A file without tensors.
    pub(crate) fn new(gguf: GgufWriter) -> Self {
        ModelWriter { gguf, tensors: Vec::new(), n_weights: 0 }
    }

    /// Adds a tensor of the given dimensions, the fastest varying first.
    pub(crate) fn add(&mut self, name: impl Into<String>, dims: &[usize], ggml_type: GgmlType, content: T) {
        self.gguf.add_tensor(name, dims, ggml_type);
        self.tensors.push(content);
        self.n_weights += dims.iter().product::<usize>();
    }

    /// Writes the file: `fill` writes the rows of each tensor.
    pub(crate) fn write(
        self,
        path: &Path,
        progress: &mut dyn FnMut(WriteProgress),
        mut fill: impl FnMut(&T, &mut RowSink<'_, '_>) -> CoreResult<()>,
    ) -> CoreResult<()> {
        let mut at = WriteProgress { done: 0, total: self.n_weights };
        self.gguf.write(path, |i, sink| {
            fill(&self.tensors[i], &mut RowSink { sink, at: &mut at, progress: &mut *progress })
        })
    }
}

/// Takes the rows of one tensor.
pub(crate) struct RowSink<'a, 'b> {
    sink: &'a mut TensorSink<'b>,
    at: &'a mut WriteProgress,
    progress: &'a mut dyn FnMut(WriteProgress),
}

impl RowSink<'_, '_> {
    /// Appends the bytes of the next `n_weights` weights.
    pub(crate) fn write(&mut self, bytes: &[u8], n_weights: usize) -> CoreResult<()> {
        self.sink.write(bytes)?;
        self.at.done += n_weights;
        (self.progress)(*self.at);
        Ok(())
    }
}

/// The error of a tensor that the output cannot hold.
pub(crate) fn bad_tensor(path: &Path, name: &str, problem: impl std::fmt::Display) -> CoreError {
    CoreError::bad_tensor(path, name, format!("cannot be written: {problem}"))
}

/// Whether `format` can hold a tensor; the error names the formats that can.
pub(crate) fn check_shape(
    format: TernaryFormat,
    name: &str,
    rows: usize,
    cols: usize,
    path: &Path,
) -> CoreResult<()> {
    format.check_shape(rows, cols).map_err(|e| {
        let all = [TernaryFormat::I2s(I2sLayout::Block128), TernaryFormat::Tq1_0, TernaryFormat::Tq2_0];
        let able: Vec<_> =
            all.iter().filter(|f| f.check_shape(rows, cols).is_ok()).map(|f| f.name()).collect();
        let hint = match able.as_slice() {
            [] => "no ternary type of GGUF can hold it".to_owned(),
            able => format!("{} can hold it", able.join(", ")),
        };
        bad_tensor(path, name, format!("{e}; {hint}"))
    })
}
