//! A ternary tensor in the format of the output, from rows of codes.

use std::path::Path;

use bitnet_core::Result as CoreResult;
use bitnet_quant::packing::TernaryFormat;
use half::f16;

use super::output::{RowSink, bad_tensor};
use crate::source::{RowOrder, StoredTensor};
use crate::ternary_rows::{TernaryRows, uniform_scale};

/// How ternary tensors are written.
#[derive(Debug, Clone, Copy)]
pub(super) struct TernaryOutput {
    pub(super) format: TernaryFormat,
    /// Whether the scale goes into a tensor of its own; into the format's own scales otherwise.
    pub(super) scale_beside: bool,
}

/// What became of a tensor's scale.
pub(super) struct WrittenScale {
    /// What belongs into the tensor beside, where there is one.
    pub(super) beside: f32,
    /// The largest relative difference between a scale and its f16.
    pub(super) error: f32,
}

/// The scale of each block, or of the tensor.
enum BlockScales {
    Same(f32),
    /// That of the block in the source, times a factor.
    Own(f32),
}

impl TernaryOutput {
    /// Writes the rows of `stored`, in `order`.
    pub(super) fn write(
        self,
        stored: &StoredTensor,
        rows: &mut TernaryRows<'_>,
        order: RowOrder,
        path: &Path,
        sink: &mut RowSink<'_, '_>,
    ) -> CoreResult<WrittenScale> {
        let TernaryOutput { format, scale_beside } = self;
        let scales = self.scales(stored, rows, path)?;
        let mut written = WrittenScale { beside: 1.0, error: 0.0 };
        let scales = match scales {
            BlockScales::Same(scale) if scale_beside => {
                written.beside = scale;
                BlockScales::Same(1.0)
            }
            BlockScales::Own(factor) if scale_beside => {
                written.beside = factor;
                BlockScales::Own(1.0)
            }
            scales => scales,
        };
        let mut pack = |codes: &[u8], scale: f32, bytes: &mut Vec<u8>| {
            if format.block().is_some() {
                written.error = written.error.max(f16_error(scale));
                if written.error == 1.0 {
                    let problem =
                        format!("{format} keeps scales as f16, which rounds {scale} to 0; i2_s holds it");
                    return Err(bad_tensor(path, &stored.name, problem));
                }
            }
            format.pack_rows(codes, codes.len(), scale, bytes).map_err(|e| bad_tensor(path, &stored.name, e))
        };

        let (mut codes, mut d) = (vec![0; stored.cols], vec![0.0; rows.n_blocks()]);
        let mut bytes = Vec::new();
        for file_row in 0..stored.rows {
            rows.read(order.engine_row(file_row), &mut codes, &mut d)?;
            bytes.clear();
            match scales {
                BlockScales::Same(scale) => pack(&codes, scale, &mut bytes)?,
                BlockScales::Own(factor) => {
                    for (codes, d) in codes.chunks(stored.cols / d.len()).zip(&d) {
                        pack(codes, d * factor, &mut bytes)?;
                    }
                }
            }
            sink.write(&bytes, stored.cols)?;
        }
        if let BlockScales::Same(scale) = scales {
            bytes.clear();
            format.pack_trailer(scale, &mut bytes);
            sink.write(&bytes, 0)?;
        }
        Ok(written)
    }

    /// The scales of the tensor, as far as the format holds them.
    fn scales(
        self,
        stored: &StoredTensor,
        rows: &mut TernaryRows<'_>,
        path: &Path,
    ) -> CoreResult<BlockScales> {
        let uniform = match rows.block() {
            Some(_) => uniform_block_scale(stored, rows)?,
            None => Some(1.0),
        };
        let factor = rows.scale();
        if !(uniform.unwrap_or(1.0) * factor).is_finite() {
            return Err(bad_tensor(path, &stored.name, "its scale is not a finite number"));
        }
        match uniform {
            Some(d) => Ok(BlockScales::Same(d * factor)),
            None if rows.block() == self.format.block() => Ok(BlockScales::Own(factor)),
            None => {
                let problem = format!(
                    "its blocks have different scales, and {} has one for the tensor; choose tq1_0 or tq2_0",
                    self.format
                );
                Err(bad_tensor(path, &stored.name, problem))
            }
        }
    }
}

/// The scale that all blocks of the tensor share.
fn uniform_block_scale(stored: &StoredTensor, rows: &mut TernaryRows<'_>) -> CoreResult<Option<f32>> {
    let (mut codes, mut d) = (vec![0; stored.cols], vec![0.0; rows.n_blocks()]);
    let mut shared = 0.0;
    for r in 0..stored.rows {
        rows.read(r, &mut codes, &mut d)?;
        match uniform_scale(&d) {
            Some(scale) if scale == 0.0 || shared == 0.0 || scale == shared => {
                if scale != 0.0 {
                    shared = scale;
                }
            }
            _ => return Ok(None),
        }
    }
    Ok(Some(shared))
}

/// The relative difference between a scale and its f16.
fn f16_error(scale: f32) -> f32 {
    let rounded = f16::from_f32(scale).to_f32();
    if rounded == scale { 0.0 } else { ((rounded - scale) / scale).abs() }
}
