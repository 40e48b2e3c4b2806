//! What ternary weights keep of those that they were made from, matrix by matrix, as the files hold both.

use std::path::Path;

use bitnet_core::Error as CoreError;
use bitnet_core::file::Bytes;
use bitnet_quant::dense::DenseFormat;
use bitnet_quant::linear::DenseView;
use bitnet_quant::quantize::calibration::{CalibrationMethod, Calibrator};
use bitnet_quant::quantize::integer::{IntegerFormat, IntegerMatrix, IntegerParams};
use bitnet_quant::quantize::metrics::ErrorMetrics;
use bitnet_quant::quantize::{Granularity, QuantizeError, Scheme};

use super::is_projection;
use crate::Result;
use crate::convert::WriteProgress;
use crate::source::{Role, Source, SourceInfo, StoredData, StoredTensor, TextParts};
use crate::ternary_rows::TernaryRows;

/// How a format that the loss is compared with finds its scales.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum OtherFormat {
    /// From the values of each group of so many; of each row where there is no number.
    Dynamic(Scheme, Option<usize>),
    /// One for the matrix, for the range that this method finds in all of its values.
    Calibrated(IntegerFormat, CalibrationMethod),
}

/// Formats that the loss is compared with, and their names.
pub const OTHER_FORMATS: [(&str, OtherFormat); 5] = [
    ("fp16", OtherFormat::Dynamic(Scheme::Fp16, None)),
    ("int8 with a zero point", OtherFormat::Dynamic(Scheme::Integer(IntegerFormat::INT8_ASYMMETRIC), None)),
    ("int8", OtherFormat::Dynamic(Scheme::Integer(IntegerFormat::INT8), None)),
    ("int4", OtherFormat::Dynamic(Scheme::Integer(IntegerFormat::INT4), Some(32))),
    ("int4 calibrated", OtherFormat::Calibrated(IntegerFormat::INT4, CalibrationMethod::Histogram)),
];

/// A quantised matrix beside its original.
#[derive(Debug, Clone, PartialEq)]
pub struct MatrixReport {
    /// Its name in the original.
    pub name: String,
    /// Its layer.
    pub layer: usize,
    /// What a weight of 1 stands for.
    pub scale: f32,
    /// Weights.
    pub n: usize,
    /// Those that are 0.
    pub n_zeros: usize,
    /// What ternary weights lose.
    pub error: ErrorMetrics,
    /// What [`OTHER_FORMATS`] would have lost.
    pub other_errors: [ErrorMetrics; OTHER_FORMATS.len()],
}

/// Compares every projection that `quantized` has in ternary weights, and `original` in others.
pub fn compare(
    original: &dyn Source,
    quantized: &dyn Source,
    progress: &mut dyn FnMut(WriteProgress),
) -> Result<Vec<MatrixReport>> {
    let config = original.config();
    let mut at = WriteProgress { done: 0, total: config.n_projection_weights() };
    let mut reports = Vec::new();
    for role in Role::all(config.n_layers).into_iter().filter(is_projection) {
        let Role::Layer(layer, _) = role else { continue };
        let (Some(before), Some(after)) = (original.tensor(role)?, quantized.tensor(role)?) else { continue };
        let (StoredData::Dense(format, bytes) | StoredData::Master { format, bytes, .. }) = &before.data
        else {
            continue;
        };
        if matches!(after.data, StoredData::Ternary { .. }) {
            before.check_dense_size(*format, bytes.len(), original.path())?;
            after.check_shape(before.rows, before.cols, quantized.path())?;
            let matrix = Matrix { before: &before, format: *format, bytes, after: &after };
            reports.push(matrix.report(layer, quantized.path(), |n| {
                at.done += n;
                progress(at);
            })?);
        }
    }
    Ok(reports)
}

/// The same matrix twice.
struct Matrix<'a> {
    before: &'a StoredTensor,
    format: DenseFormat,
    bytes: &'a Bytes,
    after: &'a StoredTensor,
}

impl Matrix<'_> {
    fn report(&self, layer: usize, path: &Path, mut advance: impl FnMut(usize)) -> Result<MatrixReport> {
        let StoredTensor { rows, cols, .. } = *self.before;
        let view = DenseView::new(self.bytes, rows, cols, self.format);
        let mut ternary = TernaryRows::new(self.after, path)?;
        let block = ternary.block().unwrap_or(cols);
        let (mut codes, mut d) = (vec![0; cols], vec![1.0; ternary.n_blocks().max(1)]);
        let (mut values, mut restored) = (vec![0.0; cols], vec![0.0; cols]);
        let n_blocks = ternary.n_blocks();
        let mut report = MatrixReport {
            name: self.before.name.clone(),
            layer,
            scale: 0.0,
            n: rows * cols,
            n_zeros: 0,
            error: ErrorMetrics::default(),
            other_errors: [ErrorMetrics::default(); OTHER_FORMATS.len()],
        };
        let bad = |e: QuantizeError| {
            CoreError::bad_tensor(path, &self.before.name, format!("cannot be compared: {e}"))
        };
        let others = self.others(&view).map_err(bad)?;
        for r in 0..rows {
            view.row(self.before.row_order.file_row(r), &mut values);
            ternary.read(r, &mut codes, &mut d[..n_blocks])?;
            for ((codes, restored), d) in codes.chunks(block).zip(restored.chunks_mut(block)).zip(&d) {
                let scale = d * ternary.scale();
                report.scale = report.scale.max(scale);
                for (code, restored) in codes.iter().zip(restored) {
                    *restored = (f32::from(*code) - 1.0) * scale;
                }
            }
            report.n_zeros += codes.iter().filter(|code| **code == 1).count();
            report.error.push(&values, &restored);
            for (other, error) in others.iter().zip(&mut report.other_errors) {
                other.restore(&values, &mut restored).map_err(bad)?;
                error.push(&values, &restored);
            }
            advance(cols);
        }
        Ok(report)
    }

    /// [`OTHER_FORMATS`] with what has to be known of the matrix as a whole.
    fn others(&self, view: &DenseView<'_>) -> std::result::Result<Vec<RowFormat>, QuantizeError> {
        let StoredTensor { rows, cols, .. } = *self.before;
        let mut values = vec![0.0; cols];
        let mut row_format = |other| match other {
            OtherFormat::Dynamic(scheme, group) => {
                // Rows that are no whole number of groups are one.
                let group = group.filter(|group| cols.is_multiple_of(*group));
                Ok(RowFormat::Dynamic(scheme, group.map_or(Granularity::Channel, Granularity::Group)))
            }
            OtherFormat::Calibrated(format, method) => {
                let mut calibrator = Calibrator::new(method, format)?;
                for r in 0..rows {
                    view.row(r, &mut values);
                    calibrator.observe(&values)?;
                }
                Ok(RowFormat::Static(format, format.params(calibrator.range()?)?))
            }
        };
        OTHER_FORMATS.iter().map(|(_, other)| row_format(*other)).collect()
    }
}

/// One of the other formats, ready for the rows of a matrix.
enum RowFormat {
    Dynamic(Scheme, Granularity),
    Static(IntegerFormat, IntegerParams),
}

impl RowFormat {
    fn restore(&self, values: &[f32], restored: &mut [f32]) -> std::result::Result<(), QuantizeError> {
        let cols = values.len();
        match *self {
            RowFormat::Dynamic(scheme, granularity) => scheme.restore(granularity, values, cols, restored),
            RowFormat::Static(format, params) => {
                IntegerMatrix::with_params(format, Granularity::Channel, vec![params], values, cols)?
                    .dequantize(restored)
            }
        }
    }
}

/// A model with the projections of one layer in place of its own: what its predictions change is how sensitive the layer is.
#[derive(Debug)]
pub struct OneLayer<'a> {
    /// The model.
    pub original: &'a dyn Source,
    /// The one that has the layer's other projections.
    pub quantized: &'a dyn Source,
    /// The layer.
    pub layer: usize,
}

impl<'a> OneLayer<'a> {
    /// The model that the tensor of `role` is from.
    fn of(&self, role: Role) -> &'a dyn Source {
        match role {
            Role::Layer(layer, _) if layer == self.layer && is_projection(&role) => self.quantized,
            _ => self.original,
        }
    }
}

impl Source for OneLayer<'_> {
    fn info(&self) -> &SourceInfo {
        self.original.info()
    }

    fn tensor(&self, role: Role) -> Result<Option<StoredTensor>> {
        self.of(role).tensor(role)
    }

    fn outline(&self, role: Role) -> Result<Option<StoredTensor>> {
        self.of(role).outline(role)
    }

    fn unused_tensors(&self) -> Vec<String> {
        self.original.unused_tensors()
    }

    /// None: predictions are compared by ids.
    fn text(&self) -> Result<Option<TextParts>> {
        Ok(None)
    }
}
