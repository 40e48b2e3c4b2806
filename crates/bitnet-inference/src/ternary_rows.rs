//! Ternary tensors a row of codes at a time, whatever a file stores: the loader packs these rows, the converter
//! writes them.

use std::path::Path;

use bitnet_core::{Error as CoreError, Result as CoreResult};
use bitnet_quant::linear::DenseView;
use bitnet_quant::packing::TernaryFormat;
use bitnet_quant::quantize::absmean::TernaryRule;

use crate::source::{StoredData, StoredTensor};

/// The rows of a ternary tensor, in the engine's order.
pub(crate) struct TernaryRows<'a> {
    stored: &'a StoredTensor,
    path: &'a Path,
    values: Values<'a>,
}

enum Values<'a> {
    Packed {
        format: TernaryFormat,
        bytes: &'a [u8],
        scale: f32,
    },
    /// Master weights, quantised by `rule` by way of `row`.
    Master {
        view: DenseView<'a>,
        rule: TernaryRule,
        row: Vec<f32>,
    },
}

impl<'a> TernaryRows<'a> {
    /// The rows of `stored`, which is named in errors with the file `path`; dense tensors have none.
    ///
    /// Master weights are read once for their mean, and some times more where they are pruned.
    pub(crate) fn new(stored: &'a StoredTensor, path: &'a Path) -> CoreResult<Self> {
        let values = match &stored.data {
            StoredData::Dense(..) => {
                return Err(CoreError::bad_tensor(
                    path,
                    &stored.name,
                    "is dense where ternary weights are called for",
                ));
            }
            StoredData::Ternary { format, bytes, scale } => {
                Values::Packed { format: *format, bytes, scale: *scale }
            }
            StoredData::Master { format, bytes, sparsity } => {
                stored.check_dense_size(*format, bytes.len(), path)?;
                let view = DenseView::new(bytes, stored.rows, stored.cols, *format);
                let mut row = vec![0.0; stored.cols];
                let rule = TernaryRule::find(*sparsity, |visit| {
                    for r in 0..stored.rows {
                        view.row(r, &mut row);
                        visit(r, &row);
                    }
                });
                let Some(rule) = rule else {
                    let problem = "holds an infinity or NaN, or values too large for their mean";
                    return Err(CoreError::bad_tensor(path, &stored.name, problem));
                };
                Values::Master { view, rule, row }
            }
        };
        Ok(TernaryRows { stored, path, values })
    }

    /// Elements of a row that share one scale; `None` where the scale is the whole tensor's.
    pub(crate) fn block(&self) -> Option<usize> {
        match self.values {
            Values::Packed { format, .. } => format.block(),
            Values::Master { .. } => None,
        }
    }

    /// Block scales of a row.
    pub(crate) fn n_blocks(&self) -> usize {
        self.block().map_or(0, |block| self.stored.cols / block)
    }

    /// The factor of the whole tensor, beside the block scales where there are any.
    pub(crate) fn scale(&self) -> f32 {
        match &self.values {
            Values::Packed { format, bytes, scale } => {
                format.tensor_scale(bytes, self.stored.rows, self.stored.cols).unwrap_or(1.0) * scale
            }
            Values::Master { rule, .. } => rule.scale(),
        }
    }

    /// Row `r`: its (cols) codes and its (n_blocks) block scales. Blocks of scale 0 have codes of 0.
    pub(crate) fn read(&mut self, r: usize, codes: &mut [u8], d: &mut [f32]) -> CoreResult<()> {
        let StoredTensor { name, rows, cols, row_order, .. } = self.stored;
        let n_blocks = self.n_blocks();
        let file_row = row_order.file_row(r);
        match &mut self.values {
            Values::Packed { format, bytes, .. } => {
                format
                    .unpack_rows(bytes, *rows, *cols, file_row..file_row + 1, codes, d)
                    .map_err(|e| CoreError::bad_tensor(self.path, name, e.to_string()))?;
                // Without weight, a block says nothing about the scale of the others.
                for (codes, _) in codes.chunks_mut(cols / n_blocks.max(1)).zip(d).filter(|(_, d)| **d == 0.0)
                {
                    codes.fill(1);
                }
            }
            Values::Master { view, rule, row } => {
                view.row(file_row, row);
                rule.codes(file_row, row, codes);
            }
        }
        Ok(())
    }
}

/// The scale that all blocks share, those without weight aside.
pub(crate) fn uniform_scale(d: &[f32]) -> Option<f32> {
    let mut with_weight = d.iter().copied().filter(|d| *d != 0.0);
    let Some(first) = with_weight.next() else { return d.first().copied() };
    with_weight.all(|d| d == first).then_some(first)
}
