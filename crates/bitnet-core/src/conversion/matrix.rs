//! Matrices as files store them: rows of floats or of blocks, which are converted row by row.

use bitnet_quant::dense::DenseFormat;

use super::ConversionEngine;
use crate::memory::{ALIGNMENT, MemoryHandle};
use crate::{Device, Error, Result};

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
    /// of them as numbers at a time.
    pub fn convert_matrix(&self, matrix: StoredMatrix<'_>, format: DenseFormat) -> Result<MemoryHandle> {
        let StoredMatrix { bytes, format: from, cols } = matrix;
        self.counted(bytes.len(), || {
            let refused = |why| Error::MatrixFormat { from, to: format, cols, why };
            let from_row = from.row_bytes(cols).filter(|row| *row > 0 && bytes.len().is_multiple_of(*row));
            let from_row = from_row.ok_or_else(|| refused("the bytes are no whole number of rows"))?;
            let to_row = format.row_bytes(cols);
            let to_row = to_row.ok_or_else(|| refused("a row is no whole number of its blocks"))?;
            let mut zeros = Vec::new();
            if format.quantize_row(&vec![0.0; format.block()], &mut zeros).is_err() {
                return Err(refused("it can be read, but not written"));
            }
            let rows = bytes.len() / from_row;
            let mut out = self.pool.allocate(rows * to_row, ALIGNMENT, &Device::Cpu)?;
            let span = rows.div_ceil(self.config.threads).max(1);
            std::thread::scope(|scope| {
                let spans = bytes.chunks(span * from_row).zip(out.as_mut_slice().chunks_mut(span * to_row));
                for (bytes, out) in spans {
                    let mut convert = move || {
                        let (mut values, mut row) = (vec![0.0; cols], Vec::with_capacity(to_row));
                        for (bytes, out) in bytes.chunks(from_row).zip(out.chunks_mut(to_row)) {
                            from.dequantize_row(bytes, &mut values);
                            row.clear();
                            format.quantize_row(&values, &mut row).expect("as the zeros were");
                            out.copy_from_slice(&row);
                        }
                    };
                    match span < rows {
                        true => drop(scope.spawn(convert)),
                        false => convert(),
                    }
                }
            });
            Ok(out)
        })
    }
}
