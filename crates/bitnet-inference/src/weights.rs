//! Weights: immutable, shared, mapped from the file where its layout is the kernels' own, packed once where it is not.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;

use bitnet_core::conversion::StoredMatrix;
use bitnet_core::file::Bytes;
use bitnet_core::memory::{ALIGNMENT, Buffer, HybridMemoryPool, MemoryHandle};
use bitnet_core::mixed_precision::{ConversionConfig, PrecisionConverter};
use bitnet_core::{BitNetDType, BitNetTensor, Device, Error as CoreError};
use bitnet_quant::dense::DenseFormat;
use bitnet_quant::fpenv::DefaultFloatEnv;
use bitnet_quant::layout::{self, Codes, Scales, TernaryView, tiles};
use bitnet_quant::linear::DenseView;
use bitnet_quant::packing::{I2sLayout, TernaryFormat, i2_s};
use bitnet_quant::rows::NormWeights;

use crate::Result;
use crate::config::{Architecture, ModelConfig};
use crate::derived::Derived;
use crate::precision::Precisions;
use crate::source::{Part, Proj, Role, RowOrder, Source, StoredData, StoredTensor};
use crate::ternary_rows::{TernaryRows, uniform_scale};

/// All weights of a model.
#[derive(Debug)]
pub(crate) struct Weights {
    pub(crate) embedding: Dense, // (vocab_size, dim)
    pub(crate) layers: Vec<Layer>,
    pub(crate) output_norm: Norm,             // (dim)
    pub(crate) head: Option<Dense>,           // (vocab_size, dim); the embedding when absent
    pub(crate) inverse_frequencies: Vec<f32>, // (head_dim / 2)
}

/// The weights of one decoder block.
#[derive(Debug)]
pub(crate) struct Layer {
    pub(crate) attn_norm: Norm,             // (dim)
    pub(crate) q_proj: Linear,              // (n_heads * head_dim, dim)
    pub(crate) k_proj: Linear,              // (n_kv_heads * head_dim, dim)
    pub(crate) v_proj: Linear,              // (n_kv_heads * head_dim, dim)
    pub(crate) q_norm: Option<Norm>,        // (head_dim)
    pub(crate) k_norm: Option<Norm>,        // (head_dim)
    pub(crate) attn_sub_norm: Option<Norm>, // (n_heads * head_dim)
    pub(crate) o_proj: Linear,              // (dim, n_heads * head_dim)
    pub(crate) ffn_norm: Norm,              // (dim)
    pub(crate) gate_proj: Linear,           // (ffn_dim, dim)
    pub(crate) up_proj: Linear,             // (ffn_dim, dim)
    pub(crate) ffn_sub_norm: Option<Norm>,  // (ffn_dim)
    pub(crate) down_proj: Linear,           // (dim, ffn_dim)
}

impl Layer {
    pub(crate) fn projection(&self, proj: Proj) -> &Linear {
        match proj {
            Proj::Q => &self.q_proj,
            Proj::K => &self.k_proj,
            Proj::V => &self.v_proj,
            Proj::O => &self.o_proj,
            Proj::Gate => &self.gate_proj,
            Proj::Up => &self.up_proj,
            Proj::Down => &self.down_proj,
        }
    }
}

/// The weights of a root-mean-square norm.
#[derive(Debug)]
pub(crate) struct Norm {
    weight: BitNetTensor, // (n)
    pub(crate) eps: f32,
}

impl Norm {
    pub(crate) fn weights(&self) -> NormWeights<'_> {
        match self.weight.dtype() {
            BitNetDType::F16 => NormWeights::Narrow(DenseFormat::F16, self.weight.as_bytes()),
            BitNetDType::BF16 => NormWeights::Narrow(DenseFormat::BF16, self.weight.as_bytes()),
            _ => NormWeights::F32(self.weight.as_slice()),
        }
    }
}

/// A projection, with the norm that some models have before its quantiser.
#[derive(Debug)]
pub(crate) struct Linear {
    pub(crate) input_norm: Option<Norm>, // (cols)
    pub(crate) matrix: Matrix,
}

/// The matrix of a projection.
#[derive(Debug)]
pub(crate) enum Matrix {
    /// Ternary weights, activations quantised to int8.
    BitLinear(Ternary),
    /// Ternary weights of families that do not quantise activations.
    TernaryF32(Ternary),
    /// Neither is quantised.
    Dense(Dense),
}

impl Linear {
    /// Bytes of the matrix as it lies in memory.
    pub(crate) fn size_bytes(&self) -> usize {
        self.matrix.size_bytes()
    }
}

impl Matrix {
    pub(crate) fn bit_linear(&self) -> Option<&Ternary> {
        match self {
            Matrix::BitLinear(w) => Some(w),
            Matrix::TernaryF32(_) | Matrix::Dense(_) => None,
        }
    }

    fn size_bytes(&self) -> usize {
        match self {
            Matrix::BitLinear(w) | Matrix::TernaryF32(w) => w.size_bytes(),
            Matrix::Dense(w) => w.bytes().len(),
        }
    }
}

/// A ternary matrix in one of the kernels' layouts.
#[derive(Debug)]
pub(crate) struct Ternary {
    codes: TernaryCodes,
    scales: OwnedScales,
    rows: usize,
    cols: usize,
}

#[derive(Debug)]
enum TernaryCodes {
    /// Two bits a weight: (rows, padded cols), BitNet158.
    Rows(BitNetTensor),
    /// Bands of tiles.
    Tiles(WeightBytes),
}

#[derive(Debug)]
enum OwnedScales {
    Tensor(f32),
    Blocks { d: Buffer<f32>, block: usize },
}

impl Ternary {
    pub(crate) fn view(&self) -> TernaryView<'_> {
        let scales = match &self.scales {
            OwnedScales::Tensor(scale) => Scales::Tensor(*scale),
            OwnedScales::Blocks { d, block } => Scales::Blocks { d, block: *block },
        };
        match (&self.codes, scales) {
            (TernaryCodes::Tiles(codes), Scales::Tensor(scale)) => {
                TernaryView::tiled(codes.as_slice(), self.rows, self.cols, scale)
            }
            (TernaryCodes::Rows(codes), scales) => {
                TernaryView::new(codes.as_bytes(), self.rows, self.cols, scales)
            }
            (TernaryCodes::Tiles(_), Scales::Blocks { .. }) => unreachable!("tiles have one scale"),
        }
    }

    fn size_bytes(&self) -> usize {
        let codes = match &self.codes {
            TernaryCodes::Rows(codes) => codes.size_bytes(),
            TernaryCodes::Tiles(codes) => codes.as_slice().len(),
        };
        let scales = match &self.scales {
            OwnedScales::Tensor(_) => 0,
            OwnedScales::Blocks { d, .. } => size_of_val::<[f32]>(d),
        };
        codes + scales
    }
}

/// A dense matrix, as the file stores it or in the format that was asked for.
#[derive(Debug)]
pub(crate) struct Dense {
    bytes: WeightBytes,
    format: DenseFormat,
    rows: usize,
    cols: usize,
}

impl Dense {
    pub(crate) fn view(&self) -> DenseView<'_> {
        DenseView::new(self.bytes(), self.rows, self.cols, self.format)
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        self.bytes.as_slice()
    }

    pub(crate) fn format(&self) -> DenseFormat {
        self.format
    }
}

/// Bytes of a matrix.
#[derive(Debug)]
pub(crate) enum WeightBytes {
    /// As they are in a file.
    File(Bytes),
    /// Brought into another order, layout or format.
    Pool(MemoryHandle),
    /// Rows brought into another order.
    Ordered(BitNetTensor),
}

impl WeightBytes {
    pub(crate) fn as_slice(&self) -> &[u8] {
        match self {
            WeightBytes::File(bytes) => bytes,
            WeightBytes::Pool(handle) => handle.as_slice(),
            WeightBytes::Ordered(rows) => rows.as_bytes(),
        }
    }
}

/// Bytes of a model's weights in memory, those that are mapped from its file among them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ModelBytes {
    /// Ternary projections.
    pub ternary: usize,
    /// Other projections.
    pub dense: usize,
    /// The table of embeddings.
    pub embedding: usize,
    /// The head; 0 where it is the embedding.
    pub head: usize,
    /// All norms.
    pub norms: usize,
}

impl ModelBytes {
    /// All of them.
    pub fn total(&self) -> usize {
        self.ternary + self.dense + self.embedding + self.head + self.norms
    }
}

/// How far loading has come, or the making of derived weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoadProgress {
    /// Layers or tensors done.
    pub done: usize,
    /// Those that there are.
    pub total: usize,
}

/// Where the tiles of projections come from.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Tiles<'a> {
    /// There are none: weights stay in the two-bit layout.
    None,
    /// The derived file, as far as it has them.
    Derived(&'a Derived),
    /// They are packed while the model is loaded.
    Pack,
}

impl Weights {
    /// Loads every tensor that the configuration calls for, layers on `n_threads` threads.
    pub(crate) fn load(
        source: &dyn Source,
        pool: &HybridMemoryPool,
        precision: &Precisions<'_>,
        tiles: Tiles<'_>,
        n_threads: usize,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<Self> {
        let config = source.config();
        let converter = PrecisionConverter::with_pool(conversion(1), pool.clone())?;
        let loader = Loader { source, config, pool, converter, precision, tiles };
        let (embedding, head) = loader.embedding_and_head(n_threads)?;
        Ok(Weights {
            embedding,
            output_norm: loader.norm(Role::OutputNorm, config.dim, config.norm_eps)?,
            head,
            layers: loader.layers(n_threads, progress)?,
            inverse_frequencies: config.inverse_frequencies(),
        })
    }

    /// Bytes of each component.
    pub(crate) fn bytes(&self) -> ModelBytes {
        let mut bytes = ModelBytes {
            embedding: self.embedding.bytes().len(),
            head: self.head.as_ref().map_or(0, |head| head.bytes().len()),
            norms: self.output_norm.weight.size_bytes(),
            ..ModelBytes::default()
        };
        for layer in &self.layers {
            let optional = [&layer.q_norm, &layer.k_norm, &layer.attn_sub_norm, &layer.ffn_sub_norm];
            let norms = [&layer.attn_norm, &layer.ffn_norm].into_iter().chain(optional.into_iter().flatten());
            bytes.norms += norms.map(|norm| norm.weight.size_bytes()).sum::<usize>();
            for linear in Proj::ALL.map(|proj| layer.projection(proj)) {
                bytes.norms += linear.input_norm.as_ref().map_or(0, |norm| norm.weight.size_bytes());
                match &linear.matrix {
                    Matrix::BitLinear(w) | Matrix::TernaryF32(w) => bytes.ternary += w.size_bytes(),
                    Matrix::Dense(w) => bytes.dense += w.bytes().len(),
                }
            }
        }
        bytes
    }

    /// Bytes of all projections, which are read for each token.
    pub(crate) fn projection_bytes(&self) -> usize {
        let projections = self.layers.iter().flat_map(|l| Proj::ALL.map(|proj| l.projection(proj)));
        projections.map(Linear::size_bytes).sum()
    }

    /// Bytes of the head as it is stored.
    pub(crate) fn head_bytes(&self) -> usize {
        self.head().bytes().len()
    }

    /// The matrix of the head.
    pub(crate) fn head(&self) -> &Dense {
        self.head.as_ref().unwrap_or(&self.embedding)
    }
}

struct Loader<'a> {
    source: &'a dyn Source,
    config: &'a ModelConfig,
    pool: &'a HybridMemoryPool,
    converter: PrecisionConverter,
    precision: &'a Precisions<'a>,
    tiles: Tiles<'a>,
}

/// How weights are converted: what a format cannot hold is an error, and no infinity.
fn conversion(threads: usize) -> ConversionConfig {
    ConversionConfig { threads, validate_results: true, ..ConversionConfig::default() }
}

impl Loader<'_> {
    /// Every layer; the error is that of the lowest layer that has one.
    fn layers(&self, n_threads: usize, progress: &mut dyn FnMut(LoadProgress)) -> Result<Vec<Layer>> {
        let total = self.config.n_layers;
        let next = AtomicUsize::new(0);
        let (sender, receiver) = mpsc::channel();
        // Grown as layers are found: a configuration may claim any number of them.
        let mut layers: Vec<(usize, Result<Layer>)> = Vec::new();
        std::thread::scope(|scope| {
            for _ in 0..n_threads.min(total) {
                let (next, sender) = (&next, sender.clone());
                scope.spawn(move || {
                    // A new thread inherits the mode of the host's; weights are quantised in the default one.
                    let _env = DefaultFloatEnv::enter();
                    let mut failed = false;
                    while !failed {
                        let l = next.fetch_add(1, Ordering::Relaxed);
                        if l >= total {
                            break;
                        }
                        let layer = self.layer(l);
                        failed = layer.is_err();
                        // The receiver outlives this scope.
                        let _ = sender.send((l, layer));
                    }
                });
            }
            drop(sender);
            for layer in receiver {
                layers.push(layer);
                progress(LoadProgress { done: layers.len(), total });
            }
        });
        layers.sort_unstable_by_key(|(l, _)| *l);
        layers.into_iter().map(|(_, layer)| layer).collect()
    }

    fn layer(&self, l: usize) -> Result<Layer> {
        let c = self.config;
        let role = |part| Role::Layer(l, part);
        let norm = |part, n| self.norm(role(part), n, c.norm_eps);
        // Sub-norms belong to BitNet and head norms to Qwen3: files of these without them are incomplete.
        let norm_of = |part, n, architecture| {
            if c.architecture == architecture { norm(part, n).map(Some) } else { Ok(None) }
        };
        Ok(Layer {
            attn_norm: norm(Part::AttnNorm, c.dim)?,
            q_proj: self.linear(l, Proj::Q, c.q_dim(), c.dim)?,
            k_proj: self.linear(l, Proj::K, c.kv_dim(), c.dim)?,
            v_proj: self.linear(l, Proj::V, c.kv_dim(), c.dim)?,
            q_norm: norm_of(Part::QNorm, c.head_dim, Architecture::Qwen3)?,
            k_norm: norm_of(Part::KNorm, c.head_dim, Architecture::Qwen3)?,
            attn_sub_norm: norm_of(Part::AttnSubNorm, c.q_dim(), Architecture::BitNet)?,
            o_proj: self.linear(l, Proj::O, c.dim, c.q_dim())?,
            ffn_norm: norm(Part::FfnNorm, c.dim)?,
            gate_proj: self.linear(l, Proj::Gate, c.ffn_dim, c.dim)?,
            up_proj: self.linear(l, Proj::Up, c.ffn_dim, c.dim)?,
            ffn_sub_norm: norm_of(Part::FfnSubNorm, c.ffn_dim, Architecture::BitNet)?,
            down_proj: self.linear(l, Proj::Down, c.dim, c.ffn_dim)?,
        })
    }

    fn norm(&self, role: Role, n: usize, eps: f32) -> Result<Norm> {
        let stored = self.source.tensor(role)?.ok_or_else(|| self.missing(role))?;
        stored.check_shape(1, n, self.source.path())?;
        let StoredData::Dense(format, bytes) = &stored.data else {
            return Err(self.bad(&stored, "is ternary, but norms are not").into());
        };
        let dtype = match format {
            DenseFormat::F32 => BitNetDType::F32,
            DenseFormat::F16 => BitNetDType::F16,
            DenseFormat::BF16 => BitNetDType::BF16,
            other => {
                return Err(self.bad(&stored, format!("is {other}, but norms are f32, f16 or bf16")).into());
            }
        };
        let tensor = BitNetTensor::from_file(bytes.clone(), &[n], dtype)?;
        let wanted = self.precision.norm(role, n, *format, dtype)?;
        let weight =
            self.converter.convert_tensor(&tensor, wanted).map_err(|e| self.beyond(&stored, wanted, e))?;
        Ok(Norm { weight: self.aligned(weight)?, eps })
    }

    /// A file may have its tensors at any address; slices of floats may not.
    fn aligned(&self, tensor: BitNetTensor) -> Result<BitNetTensor> {
        if tensor.as_bytes().as_ptr().addr().is_multiple_of(align_of::<f32>()) {
            return Ok(tensor);
        }
        let mut copy = self.pool.allocate(tensor.size_bytes(), align_of::<f32>(), &tensor.device())?;
        copy.as_mut_slice().copy_from_slice(tensor.as_bytes());
        Ok(BitNetTensor::from_handle(copy, tensor.shape(), tensor.dtype())?)
    }

    /// The embedding, and the head where it is a matrix of its own: by the file, or because the two are kept in different
    /// formats.
    fn embedding_and_head(&self, n_threads: usize) -> Result<(Dense, Option<Dense>)> {
        // Layers are converted side by side, these one after the other.
        let converter = PrecisionConverter::with_pool(conversion(n_threads), self.pool.clone())?;
        let table = |role| -> Result<Option<(StoredTensor, DenseFormat)>> {
            let Some(stored) = self.source.tensor(role)? else { return Ok(None) };
            stored.check_shape(self.config.vocab_size, self.config.dim, self.source.path())?;
            match stored.data {
                StoredData::Dense(format, _) => Ok(Some((stored, format))),
                _ => Err(self.bad(&stored, "is ternary, but embeddings and heads are not").into()),
            }
        };
        let kept = |role, (stored, format): &(StoredTensor, DenseFormat)| -> Result<Dense> {
            self.dense_matrix(&converter, role, stored, *format, stored.data.bytes())
        };
        let stored = table(Role::Embedding)?.ok_or_else(|| self.missing(Role::Embedding))?;
        let embedding = kept(Role::Embedding, &stored)?;
        let head = match table(Role::Head)? {
            Some(head) => Some(kept(Role::Head, &head)?),
            None => {
                let format = self.precision.format(Role::Head, embedding.rows * embedding.cols, stored.1)?;
                if format == embedding.format { None } else { Some(kept(Role::Head, &stored)?) }
            }
        };
        Ok((embedding, head))
    }

    fn dense_matrix(
        &self,
        converter: &PrecisionConverter,
        role: Role,
        stored: &StoredTensor,
        format: DenseFormat,
        bytes: &Bytes,
    ) -> Result<Dense> {
        let StoredTensor { rows, cols, .. } = *stored;
        stored.check_dense_size(format, bytes.len(), self.source.path())?;
        let kept = self.precision.format(role, rows * cols, format)?;
        let bytes = self.ordered(stored, bytes)?;
        if kept == format {
            return Ok(Dense { bytes, format, rows, cols });
        }
        if !cols.is_multiple_of(kept.block()) {
            let problem = format!(
                "cannot be kept as {kept}: its rows of {cols} are no whole number of blocks of {}; use one of f32, f16, bf16",
                kept.block()
            );
            return Err(self.bad(stored, problem).into());
        }
        let matrix = StoredMatrix { bytes: bytes.as_slice(), format, cols };
        let converted = converter.convert_matrix(matrix, kept).map_err(|e| self.beyond(stored, kept, e))?;
        Ok(Dense { bytes: WeightBytes::Pool(converted), format: kept, rows, cols })
    }

    /// The rows of a dense tensor in the engine's order.
    fn ordered(&self, stored: &StoredTensor, bytes: &Bytes) -> Result<WeightBytes> {
        let rows = stored.rows;
        Ok(match stored.row_order {
            RowOrder::Halves => WeightBytes::File(bytes.clone()),
            RowOrder::Interleaved { head_dim } => {
                let pairs = [rows / head_dim, head_dim / 2, 2, bytes.len() / rows];
                let pairs = BitNetTensor::from_file(bytes.clone(), &pairs, BitNetDType::I8)?;
                WeightBytes::Ordered(pairs.permute(&[0, 2, 1, 3])?.contiguous(self.pool)?)
            }
        })
    }

    fn linear(&self, l: usize, proj: Proj, rows: usize, cols: usize) -> Result<Linear> {
        let role = Role::Layer(l, Part::Proj(proj));
        let stored = self.source.tensor(role)?.ok_or_else(|| self.missing(role))?;
        stored.check_shape(rows, cols, self.source.path())?;
        let input_norm = match self.config.input_norm_eps {
            Some(eps) => Some(self.norm(Role::Layer(l, Part::InputNorm(proj)), cols, eps)?),
            None => None,
        };
        Ok(Linear { input_norm, matrix: self.matrix(&stored, l, proj)? })
    }

    fn matrix(&self, stored: &StoredTensor, l: usize, proj: Proj) -> Result<Matrix> {
        let StoredTensor { rows, cols, .. } = *stored;
        if let Tiles::Derived(derived) = self.tiles
            && let Some((tiles, scale)) = derived.tiles(l, proj, rows, cols)
        {
            let codes = TernaryCodes::Tiles(WeightBytes::File(tiles));
            return Ok(Matrix::BitLinear(Ternary { codes, scales: OwnedScales::Tensor(scale), rows, cols }));
        }
        match &stored.data {
            StoredData::Dense(format, bytes) => {
                let role = Role::Layer(l, Part::Proj(proj));
                Ok(Matrix::Dense(self.dense_matrix(&self.converter, role, stored, *format, bytes)?))
            }
            StoredData::Ternary { format: TernaryFormat::I2s(I2sLayout::Block128), bytes, scale }
                if stored.row_order == RowOrder::Halves =>
            {
                Ok(Matrix::BitLinear(self.tiled(self.map_i2_s(stored, bytes, *scale)?)?))
            }
            StoredData::Ternary { .. } | StoredData::Master { .. } => {
                let ternary = self.pack(stored, TernaryRows::new(stored, self.source.path())?)?;
                // Q2_0 is the format of a family without an activation quantiser.
                if matches!(stored.data, StoredData::Ternary { format: TernaryFormat::Q2_0, .. }) {
                    Ok(Matrix::TernaryF32(ternary))
                } else {
                    Ok(Matrix::BitLinear(self.tiled(ternary)?))
                }
            }
        }
    }

    /// Packs the codes as tiles where that is asked for and possible.
    fn tiled(&self, ternary: Ternary) -> Result<Ternary> {
        let view = ternary.view();
        match (self.tiles, view.codes(), &ternary.scales) {
            (Tiles::Pack, Codes::Rows(rows), OwnedScales::Tensor(scale)) => {
                let size = tiles::size_bytes(view.rows(), view.cols());
                let mut handle = self.pool.allocate(size, ALIGNMENT, &Device::Cpu)?;
                tiles::pack(rows, view.cols(), handle.as_mut_slice());
                let codes = TernaryCodes::Tiles(WeightBytes::Pool(handle));
                let (rows, cols) = (view.rows(), view.cols());
                Ok(Ternary { codes, scales: OwnedScales::Tensor(*scale), rows, cols })
            }
            _ => Ok(ternary),
        }
    }

    /// The kernels' own layout: the codes stay where the file is mapped.
    fn map_i2_s(&self, stored: &StoredTensor, bytes: &Bytes, scale: f32) -> Result<Ternary> {
        let (rows, cols) = (stored.rows, stored.cols);
        let format = TernaryFormat::I2s(I2sLayout::Block128);
        let min = format.min_size_bytes(rows, cols).map_err(|e| self.bad(stored, e.to_string()))?;
        let (Some(codes), Some(own_scale)) =
            (bytes.slice(0..rows * cols / 4), format.tensor_scale(bytes, rows, cols))
        else {
            return Err(self.bad(stored, format!("has {} bytes instead of {min}", bytes.len())).into());
        };
        if let Some(at) = i2_s::first_invalid_code(&codes) {
            let problem = format!(
                "has a code that is none of -1, 0, +1 in its byte {at}; if the file is not broken, try another --i2s-layout"
            );
            return Err(self.bad(stored, problem).into());
        }
        let codes = BitNetTensor::from_file(codes, &[rows, cols], BitNetDType::BitNet158)?;
        let codes = TernaryCodes::Rows(codes);
        Ok(Ternary { codes, scales: OwnedScales::Tensor(own_scale * scale), rows, cols })
    }

    /// Any other form: rows of codes are packed in the kernels' layout.
    fn pack(&self, stored: &StoredTensor, mut rows: TernaryRows<'_>) -> Result<Ternary> {
        let n_blocks = rows.n_blocks();
        let mut d = self.pool.buffer::<f32>(stored.rows * n_blocks)?;
        let codes = self.pack_rows(stored.rows, stored.cols, |r, codes| {
            Ok(rows.read(r, codes, &mut d[r * n_blocks..(r + 1) * n_blocks])?)
        })?;
        let scale = rows.scale();
        let scales = match (rows.block(), uniform_scale(&d)) {
            (Some(_), Some(d)) => OwnedScales::Tensor(d * scale),
            (Some(block), None) => {
                d.iter_mut().for_each(|d| *d *= scale);
                OwnedScales::Blocks { d, block }
            }
            (None, _) => OwnedScales::Tensor(scale),
        };
        Ok(Ternary { codes: TernaryCodes::Rows(codes), scales, rows: stored.rows, cols: stored.cols })
    }

    /// Packs rows of codes, which `fill(row, codes)` gives.
    fn pack_rows(
        &self,
        rows: usize,
        cols: usize,
        mut fill: impl FnMut(usize, &mut [u8]) -> Result<()>,
    ) -> Result<BitNetTensor> {
        let row_bytes = layout::row_bytes(cols);
        let mut packed = self.pool.allocate(rows * row_bytes, ALIGNMENT, &Device::Cpu)?;
        let mut codes = vec![0; cols];
        for (r, packed) in packed.as_mut_slice().chunks_exact_mut(row_bytes).enumerate() {
            fill(r, &mut codes)?;
            layout::pack_row(&codes, packed);
        }
        Ok(BitNetTensor::from_handle(packed, &[rows, layout::padded_cols(cols)], BitNetDType::BitNet158)?)
    }

    /// Names the tensor that has a value which `format` cannot hold.
    fn beyond(&self, stored: &StoredTensor, format: impl std::fmt::Display, error: CoreError) -> CoreError {
        match error {
            CoreError::Unrepresentable { value, .. } => {
                let problem =
                    format!("cannot be kept as {format}, which has no place for {value}; use bf16 or f32");
                self.bad(stored, problem)
            }
            other => other,
        }
    }

    fn bad(&self, stored: &StoredTensor, problem: impl Into<String>) -> CoreError {
        CoreError::bad_tensor(self.source.path(), &stored.name, problem)
    }

    fn missing(&self, role: Role) -> crate::Error {
        let name = match self.source.format_name() {
            "gguf" => role.gguf_name(),
            _ => role.hf_names(self.config.architecture).first().cloned().unwrap_or_default(),
        };
        CoreError::MissingTensor { path: self.source.path().into(), name: format!("{name}.weight") }.into()
    }
}
