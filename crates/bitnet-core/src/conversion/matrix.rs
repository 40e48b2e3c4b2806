//! Matrices as files store them: rows of floats or of blocks, which are converted row by row.

use std::sync::Mutex;

use bitnet_quant::dense::DenseFormat;

use super::ConversionEngine;
use crate::memory::{ALIGNMENT, MemoryHandle};
use crate::{BitNetDType, Device, Error, Result};

/// A matrix in a stored format: (rows, row bytes).
#[derive(Debug, Clone, Copy)]
pub struct StoredMatrix<'a> {
    /// The rows, one after the other.
    pub bytes: &'a [u8],
    /// The format of a row.
    pub format: DenseFormat,
    /// Elements of a row, a whole number of the format's blocks.
    pub cols: usize,
}

impl ConversionEngine {
    /// `matrix` in another stored format, which it can be where the rows are whole blocks of that format too.
    ///
    /// Floats are rounded to the nearest, blocks have the scales of ggml's reference. Each thread takes rows, and has one
    /// of them as numbers at a time. Where results are validated, a finite value that would become an infinity is an error.
    pub fn convert_matrix(&self, matrix: StoredMatrix<'_>, format: DenseFormat) -> Result<MemoryHandle> {
        let StoredMatrix { bytes, format: from, cols } = matrix;
        self.counted(bytes.len(), || {
            let refused = |why| Error::MatrixFormat { from, to: format, cols, why };
            let from_row = from.row_bytes(cols).filter(|row| *row > 0 && bytes.len().is_multiple_of(*row));
            let from_row = from_row.ok_or_else(|| refused("the bytes are no whole number of rows"))?;
            let to_row = format.row_bytes(cols);
            let to_row = to_row.ok_or_else(|| refused("a row is no whole number of its blocks"))?;
            // What cannot be written has no type.
            let to = BitNetDType::of_dense_format(format);
            let to = to.ok_or_else(|| refused("it can be read, but not written"))?;
            let rows = bytes.len() / from_row;
            let mut out = self.pool.allocate(rows * to_row, ALIGNMENT, &Device::Cpu)?;
            let span = rows.div_ceil(self.config.threads).max(1);
            let validate = self.config.validate_results;
            let misfits = Mutex::new(None);
            std::thread::scope(|scope| {
                let spans = bytes.chunks(span * from_row).zip(out.as_mut_slice().chunks_mut(span * to_row));
                for (i, (bytes, out)) in spans.enumerate() {
                    let misfits = &misfits;
                    let mut convert = move || {
                        let (mut values, mut row) = (vec![0.0; cols], Vec::with_capacity(to_row));
                        let mut back = vec![0.0; if validate { cols } else { 0 }];
                        let rows = bytes.chunks(from_row).zip(out.chunks_mut(to_row)).zip(i * span..);
                        for ((bytes, out), r) in rows {
                            from.dequantize_row(bytes, &mut values);
                            row.clear();
                            format.quantize_row(&values, &mut row).expect("what has a type can be written");
                            out.copy_from_slice(&row);
                            if validate {
                                format.dequantize_row(&row, &mut back);
                                let mut pairs = values.iter().zip(&back);
                                if let Some(c) = pairs.position(|(x, y)| x.is_finite() && !y.is_finite()) {
                                    note_first(misfits, r * cols + c, values[c]);
                                    break;
                                }
                            }
                        }
                    };
                    match span < rows {
                        true => drop(scope.spawn(convert)),
                        false => convert(),
                    }
                }
            });
            match misfits.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
                Some((index, value)) => Err(Error::Unrepresentable { index, value: f64::from(value), to }),
                None => Ok(out),
            }
        })
    }
}

/// Keeps the misfit that comes first in the matrix, whichever thread finds its own first.
fn note_first(misfits: &Mutex<Option<(usize, f32)>>, index: usize, value: f32) {
    let mut first = misfits.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if first.is_none_or(|(i, _)| index < i) {
        *first = Some((index, value));
    }
}
